# SPDX-License-Identifier: Apache-2.0
"""Modules x509_authority and x509_authority_info through Ansible, judged by openssl."""

import base64
import os
import stat
import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, join
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority

CHECK = {"check_mode": True}
MODULE = "dodas.cluster.x509_authority"
SUBJECT = "/DC=org/DC=example/CN=Site CA"


def listed(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def openssl_accepts(directory, pem, tmp_path):
    path = tmp_path / "leaf.pem"
    path.write_bytes(pem)
    command = ["openssl", "verify", "-crl_check_all", "-x509_strict", "-no-CAfile", "-no-CAstore"]
    done = subprocess.run([*command, "-CApath", directory, path], capture_output=True, text=True, check=False)
    return done.returncode == 0


def test_an_authority_is_made_once_and_removed(ansible, tmp_path):
    path, directory = tmp_path / "ca", tmp_path / "certificates"
    given = {"path": str(path), "subject": SUBJECT, "ca_directory": str(directory), "days": 30, "key_type": "ec-p256"}
    planned = ansible.play((MODULE, given), options=["--check", "--diff"]).results[0]
    assert planned["changed"] and planned["authority"] is None
    assert listed(tmp_path) == []

    run = ansible.play((MODULE, given), (MODULE, given), (MODULE, given, CHECK), options=["--diff"])
    first, again, checked = run.results
    assert (first["changed"], again["changed"], checked["changed"]) == (True, False, False)
    assert f"+subject: {SUBJECT}" in run.output and "PRIVATE" not in run.output
    assert first["authority"]["subject"] == SUBJECT
    assert 29 * 86400 < first["authority"]["remaining"] <= 30 * 86400
    assert "PRIVATE KEY" not in str(first)
    assert {key: again["authority"][key] for key in ("certificate", "crl", "signing_policy")} == {
        key: checked["authority"][key] for key in ("certificate", "crl", "signing_policy")
    }
    assert stat.S_IMODE((path / "ca.key").stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in (path / "ca.key").read_bytes()
    hashes = first["authority"]["hashes"]
    assert listed(directory) == sorted(f"{h}.{end}" for h in hashes for end in ("0", "r0", "signing_policy"))
    for option, digest in zip(("-subject_hash", "-subject_hash_old"), hashes, strict=True):
        command = ["openssl", "x509", "-noout", option, "-in", path / "ca.pem"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == digest

    own = Authority.open(path, SUBJECT)
    good, bad = (own.issue_host(csr.make_key().public_key(), name, [name]) for name in ("good", "bad"))
    assert openssl_accepts(directory, files.certificate_pem(good), tmp_path)
    own.revoke(bad.serial_number)
    updated = ansible.play((MODULE, given)).results[0]
    assert updated["changed"] and updated["authority"]["revoked"] == 1
    assert updated["files"] == sorted(str(directory / f"{h}.r0") for h in hashes)
    assert openssl_accepts(directory, files.certificate_pem(good), tmp_path)
    assert not openssl_accepts(directory, files.certificate_pem(bad), tmp_path)

    gone = {**given, "state": "absent"}
    (directory / "0badcafe.0").write_text("somebody else's")
    look = ("ansible.builtin.stat", {"path": str(path / "ca.key")})
    planned, key, removed, again = ansible.play((MODULE, gone, CHECK), look, (MODULE, gone), (MODULE, gone)).results
    assert planned["changed"] and key["stat"]["exists"]
    assert removed["changed"] and not again["changed"]
    assert not path.exists()
    assert listed(directory) == ["0badcafe.0"]


def test_a_list_is_signed_anew_in_its_second_half(ansible, tmp_path):
    given = {"path": str(tmp_path / "ca"), "subject": SUBJECT, "crl_hours": 10}
    longer = {**given, "crl_hours": 100}
    tasks = [(MODULE, given), (MODULE, longer, CHECK), (MODULE, longer), (MODULE, longer)]
    _made, checked, renewed, again = ansible.play(*tasks).results
    assert checked["files"] == [str(tmp_path / "ca" / "crl.pem")]
    assert renewed["changed"] and not again["changed"]
    assert renewed["authority"]["crl_remaining"] > 50 * 3600


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The texts of another site's authority."""
    own = Authority.open(tmp_path_factory.mktemp("foreign") / "ca", "/DC=far/O=away/CN=Foreign CA")
    texts = {"certificate": own.ca_pem.decode(), "crl": own.crl_pem.decode(), "signing_policy": own.signing_policy}
    return own, texts


def test_authorities_of_others_are_installed_and_read(ansible, foreign, tmp_path):
    own, texts = foreign
    given = {"ca_directory": str(tmp_path / "trusted"), "authorities": [texts]}
    read = ("dodas.cluster.x509_authority_info", {"ca_directory": given["ca_directory"]})
    first, again, found = ansible.play((MODULE, given), (MODULE, given), read, options=["--diff"]).results
    assert first["changed"] and not again["changed"]
    assert "authority" not in first
    assert [one["file"] for one in found["authorities"]] == sorted(f"{h}.0" for h in own.hashes)
    assert {one["subject"] for one in found["authorities"]} == {own.subject}
    assert [one["problems"] for one in found["authorities"]] == [[], []]

    # What their owners keep stays where nothing is given for it.
    digest = own.hashes[0]
    policy = tmp_path / "trusted" / f"{digest}.signing_policy"
    policy.write_text(own.signing_policy + "# kept by hand\n")
    bare = {**given, "authorities": [{"certificate": texts["certificate"]}]}
    assert not ansible.play((MODULE, bare)).results[0]["changed"]
    assert "kept by hand" in policy.read_text()

    policy.unlink()
    (tmp_path / "trusted" / f"{digest}.r0").write_text("damaged")
    (tmp_path / "trusted" / "00000000.0").write_bytes(own.ca_pem)
    (tmp_path / "trusted" / "11111111.0").write_text("not one")
    found = {one["file"]: one["problems"] for one in ansible.play(read).results[0]["authorities"]}
    assert found[f"{digest}.0"] == [f"{digest}.r0 is no revocation list", f"{digest}.signing_policy is missing"]
    assert "00000000.0 is the certificate of another authority" in found["00000000.0"]
    assert found["11111111.0"] == ["11111111.0 is no certificate"]

    removed = ansible.play((MODULE, {**given, "state": "absent"})).results[0]
    assert removed["changed"]
    assert listed(tmp_path / "trusted") == ["00000000.0", "11111111.0"]


def test_what_does_not_fit_is_refused_in_one_line(ansible, foreign, tmp_path):
    own, texts = foreign
    other = Authority.open(tmp_path / "other", "/DC=x/CN=Other CA")
    leaf = own.issue_host(csr.make_key().public_key(), "h", ["h"])
    directory = tmp_path / "trusted"
    made = tmp_path / "made"
    Authority.open(made, SUBJECT)
    collision = tmp_path / "collision"
    collision.mkdir()
    (collision / f"{own.hashes[0]}.0").write_bytes(other.ca_pem)
    cases = [
        ({"path": str(tmp_path / "a")}, "subject is needed"),
        ({"path": str(tmp_path / "a"), "subject": "CN=x"}, "a DN starts with a slash"),
        ({"path": str(tmp_path / "a"), "subject": "/CN=alone"}, "ends in a CN below something else"),
        ({"path": str(tmp_path / "a"), "subject": SUBJECT, "days": 0}, "days: 0 must be at least 1"),
        ({"path": str(made), "subject": "/DC=x/CN=Another"}, f"has the authority {SUBJECT}, not /DC=x/CN=Another"),
        ({"authorities": [texts], "path": str(made)}, "ca_directory is needed"),
        ({"ca_directory": str(collision), "authorities": [texts]}, "is of /DC=x/CN=Other CA, not of /DC=far"),
    ]
    wrong = [
        ({**texts, "crl": other.crl_pem.decode()}, "the revocation list is not of this authority"),
        ({**texts, "signing_policy": other.signing_policy}, "the signing policy has no access_id_CA"),
        ({"certificate": files.certificate_pem(leaf).decode()}, "is not that of an authority"),
        ({"certificate": "nonsense"}, "not one certificate in PEM"),
        ({"certificate": texts["certificate"] * 2}, "not one certificate in PEM"),
    ]
    cases += [({"ca_directory": str(directory), "authorities": [one]}, said) for one, said in wrong]
    results = ansible.play(*[(MODULE, parameters) for parameters, _said in cases]).results
    for (parameters, said), result in zip(cases, results, strict=True):
        assert result["failed"], parameters
        assert said in result["msg"] and result["msg"].startswith(os.uname().nodename), result["msg"]
    assert not directory.exists()


def test_an_authority_near_its_end_is_said(ansible, tmp_path):
    given = {"path": str(tmp_path / "ca"), "subject": SUBJECT, "days": 3}
    assert f"the authority {SUBJECT} ends on" in ansible.play((MODULE, given)).results[0]["warnings"][0]


def test_join_key(ansible):
    secret = os.urandom(32)
    text = base64.b64encode(secret).decode()
    cases = [(text, "worker-1", None), ("AAAA", "worker-1", "must be 32 bytes in base64"),
             (text + "!", "worker-1", "must be 32 bytes in base64"), (text, "Worker/1", "no host name in lower case"),
             (text, 7, "must be text")]  # fmt: skip
    tasks = [
        ("ansible.builtin.debug", {"msg": "{{ secret | dodas.cluster.join_key(name) }}"},
         {"vars": {"secret": value, "name": name}}) for value, name, _said in cases
    ]  # fmt: skip
    run = ansible.play(*tasks)
    assert run.results[0]["msg"] == base64.b64encode(join.derive(secret, "worker-1")).decode()
    for (value, _name, said), result in zip(cases[1:], run.results[1:], strict=True):
        assert result["failed"] and said in result["msg"]
        assert len(value) < 40 or value not in result["msg"]

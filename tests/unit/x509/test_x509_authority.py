# SPDX-License-Identifier: Apache-2.0
import datetime as dt
import multiprocessing
import ssl
import stat
import subprocess
import time

import pytest
from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, files, names

SUBJECT = "/DC=dodas/O=tier3/CN=dodas online CA"
WORKER = "/DC=dodas/O=tier3/OU=workers/CN=worker-0123456789abcdef0123"


def openssl(*command):
    return subprocess.run(
        ["openssl", *map(str, command)], check=True, capture_output=True, text=True, timeout=30
    ).stdout


def number(ca):
    return ca.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


@pytest.mark.parametrize(
    "subject",
    [
        SUBJECT,
        "/C=IT/O=Some  Body/CN=CA: x@y_z",
        "/DC=dodas/DC=org/O=" + "x" * 64 + "/OU=A b C/CN=" + "Y" * 64,
    ],
)
def test_hashes_are_those_of_openssl(tmp_path, subject):
    ca = authority.Authority.open(tmp_path, subject)
    said = openssl("x509", "-in", tmp_path / "ca.pem", "-noout", "-subject_hash", "-subject_hash_old")
    assert ca.hashes == said.split()
    assert all((tmp_path / "certificates" / f"{name}.0").is_file() for name in ca.hashes)


def test_files_and_reload(tmp_path, ca):
    again = authority.Authority.open(tmp_path / "ca", SUBJECT)
    assert again.certificate == ca.certificate
    assert again.crl == ca.crl
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    assert "/DC=dodas/O=tier3/*" in ca.signing_policy


def test_wrong_files_are_refused(tmp_path, ca):
    folder = tmp_path / "ca"
    with pytest.raises(authority.AuthorityError, match="is /DC=dodas/O=tier3/CN=dodas online CA, not /DC"):
        authority.Authority.open(folder, "/DC=dodas/O=tier3/CN=another")
    (folder / "ca.key").chmod(0o644)
    with pytest.raises(authority.AuthorityError, match="0644"):
        authority.Authority.open(folder, SUBJECT)
    (folder / "ca.key").unlink()
    with pytest.raises(authority.AuthorityError, match="does not belong"):
        authority.Authority.open(folder, SUBJECT)


def test_crash_between_key_and_certificate(tmp_path, ca):
    (tmp_path / "ca" / "ca.pem").unlink()
    again = authority.Authority.open(tmp_path / "ca", SUBJECT)
    assert again.certificate.public_key() == ca.certificate.public_key()
    (tmp_path / "ca" / "crl.pem").write_bytes(b"half a li")
    authority.Authority.open(tmp_path / "ca", SUBJECT)


def _open(folder, results):
    results.put(authority.Authority.open(folder, SUBJECT).ca_pem)


def test_many_first_starts_make_one_authority(tmp_path):
    results = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=_open, args=(tmp_path / "ca", results)) for _ in range(4)]
    for process in processes:
        process.start()
    made = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(made) == 1


def test_eec_verifies_until_revoked(ca, keys, openssl_verify):
    eec = ca.issue_eec(keys[0].public_key(), WORKER, 600)
    other = ca.issue_eec(keys[0].public_key(), WORKER, 600)
    assert eec.serial_number != other.serial_number
    assert openssl_verify(eec) == ""
    assert "expired" in openssl_verify(eec, at=time.time() + 700)
    ca.revoke(eec.serial_number)
    assert ca.is_revoked(eec.serial_number)
    assert "revoked" in openssl_verify(eec)
    assert openssl_verify(other) == ""


def test_revocations_survive_a_restart(tmp_path, ca, keys):
    eec = ca.issue_eec(keys[0].public_key(), WORKER, 600)
    ca.revoke(eec.serial_number)
    before = number(ca)
    again = authority.Authority.open(tmp_path / "ca", SUBJECT, crl_hours=24 * 365)
    assert again.is_revoked(eec.serial_number)
    assert number(again) > before


def test_crl_is_renewed_at_half_its_life(ca, tmp_path):
    before = ca.crl
    assert not ca.refresh_crl()
    assert ca.crl == before
    # To another instance the same list is short.
    other = authority.Authority.open(tmp_path / "ca", SUBJECT, crl_hours=2 * 168 + 1)
    assert number(other) > number(ca)
    assert not ca.refresh_crl()
    assert ca.crl == other.crl


def test_foreign_authority_of_the_same_name(ca, keys, tmp_path, openssl_verify):
    rogue = authority.Authority.open(tmp_path / "rogue", SUBJECT)
    assert openssl_verify(rogue.issue_eec(keys[0].public_key(), WORKER, 600)) != ""


def test_lifetimes_are_clipped(ca, keys):
    key = keys[0].public_key()
    assert ca.issue_eec(key, WORKER, 10**9).not_valid_after_utc == ca.certificate.not_valid_after_utc
    soon = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=90)
    assert ca.issue_eec(key, WORKER, 600, not_after=soon).not_valid_after_utc == soon
    with pytest.raises(authority.AuthorityError, match="ended"):
        ca.issue_eec(key, WORKER, 600, not_after=soon - dt.timedelta(hours=1))


def test_host_certificate_serves_tls(ca, keys, tmp_path, openssl_verify):
    certificate = ca.issue_host(
        keys[0].public_key(),
        "front-1.node.consul",
        ["front-1.node.consul", "localhost"],
        ["127.0.0.1"],
        days=30,
    )
    assert names.slash(certificate.subject) == "/DC=dodas/O=tier3/OU=hosts/CN=front-1.node.consul"
    assert openssl_verify(certificate) == ""
    files.write(tmp_path / "host.pem", files.credential_pem(certificate, keys[0]))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "host.pem")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca" / "ca.pem"))
    for name, good in (("127.0.0.1", True), ("localhost", True), ("front-2.node.consul", False)):
        assert _handshake(server, client, name) is good, name
    with pytest.raises(authority.AuthorityError, match="needs a DNS name"):
        ca.issue_host(keys[0].public_key(), "x")


def _handshake(server, client, name):
    ends = [ssl.MemoryBIO() for _ in range(2)]
    inside = server.wrap_bio(ends[0], ends[1], server_side=True)
    outside = client.wrap_bio(ends[1], ends[0], server_hostname=name)
    done = set()
    for _ in range(20):
        for end in (outside, inside):
            try:
                if end not in done:
                    end.do_handshake()
                    done.add(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return len(done) == 2


@pytest.mark.parametrize(
    "dn",
    [
        "CN=x",
        "/CN=a/b",
        "/CN=a=b",
        "/CN=a,b",
        "/CN=a+b",
        "/CN=a\\b",
        "/CN=é",
        "/CN=",
        "/CN= a",
        "/CN=a\n",
        "/CN=" + "x" * 65,
        "/XX=a",
        "/CN=a\0b",
        "/CN=a'b",
    ],
)
def test_names_outside_the_allowed_characters(dn):
    with pytest.raises(ValueError):
        names.parse(dn)

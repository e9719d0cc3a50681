# SPDX-License-Identifier: Apache-2.0
"""Secrets of a deployment: made once, kept to the owner, certificates renewed in time. OpenSSL is the verifier."""

import base64
import hashlib
import json
import shutil
import subprocess
from datetime import timedelta

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import secrets as module
from ansible_collections.dodas.cluster.plugins.module_utils.secrets import Secrets
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files

NAMES = ["consul_gossip", "user_password"]
HOSTS = {"web": ["web.service.consul", "front-1.node.consul"]}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    store = Secrets("tier3", tmp_path_factory.mktemp("first") / "state")
    assert store.missing(NAMES, HOSTS) == [*NAMES, "web"]
    store.make(store.missing(NAMES, HOSTS), HOSTS, 90)
    return store


@pytest.fixture
def made(first, tmp_path):
    """A copy: keys take a while to make."""
    shutil.copytree(first.path.parent, tmp_path / "state", symlinks=True)
    return Secrets("tier3", tmp_path / "state")


def test_everything_is_made_once_and_only_for_its_owner(made):
    assert made.missing(NAMES, HOSTS) == []
    for path in made.path.parent.rglob("*"):
        public = "certificates" in path.parts or path.name in ("crl.pem", "ca.pem") or path.is_symlink()
        allowed = 0o755 if public and "authority" in path.parts else 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 & ~allowed == 0, path
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.path.parent.stat().st_mode & 0o077 == 0


def test_secrets_are_32_bytes_and_differ_between_deployments(made, tmp_path):
    other = Secrets("other", tmp_path / "other")
    other.make(NAMES, {}, 90)
    mine, theirs = (json.loads(one.path.read_text()) for one in (made, other))
    for name in NAMES:
        assert len(base64.b64decode(mine[name])) == 32
        assert mine[name] != theirs[name]


def test_passwords_have_the_hash_that_the_provider_compares_with(made):
    have = json.loads(made.path.read_text())
    stored = have["user_password_scrypt"]
    salt, digest = base64.b64decode(stored["salt"]), base64.b64decode(stored["hash"])
    assert len(salt) == 16
    assert (
        hashlib.scrypt(have["user_password"].encode(), salt=salt, n=16384, r=8, p=5, maxmem=2**26, dklen=32) == digest
    )
    assert "consul_gossip_scrypt" not in have


def test_what_is_there_stays_when_more_is_asked_for(made):
    before = json.loads(made.path.read_text())
    certificate = (made.pki / "web.crt").read_bytes()
    wanted = {**HOSTS, "more": ["more.service.consul"]}
    assert made.missing([*NAMES, "new"], wanted) == ["new", "more"]
    made.make(["new", "more"], wanted, 90)
    after = json.loads(made.path.read_text())
    assert {name: after[name] for name in before} == before
    assert (made.pki / "web.crt").read_bytes() == certificate


def verified(made, host):
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore",
               "-CAfile", made.pki / "ca.pem", "-verify_hostname", host, made.pki / "web.crt"]  # fmt: skip
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def test_openssl_verifies_certificates_for_their_names_only(made):
    assert all(verified(made, host) for host in HOSTS["web"])
    assert not verified(made, "other.service.consul")


@pytest.mark.parametrize(("days", "due"), [(59, False), (61, True), (91, True)])
def test_a_certificate_is_renewed_when_two_thirds_of_its_life_have_passed(made, monkeypatch, days, due):
    real = module.utcnow
    monkeypatch.setattr(module, "utcnow", lambda: real() + timedelta(days=days))
    assert made.missing(NAMES, HOSTS) == (["web"] if due else [])


def damage(path, text):
    def do(made):
        (made.pki / path).write_bytes(text)

    return do


def foreign_authority(made):
    other = Secrets("tier3", made.path.parent / "foreign")
    other.make(["web"], HOSTS, 90)
    files.write(str(made.pki / "ca.pem"), (other.pki / "ca.pem").read_bytes())


def foreign_key(made):
    """What a run leaves that is killed between the key and the certificate."""
    key = module.rsa.generate_private_key(65537, 2048)
    files.write(str(made.pki / "web.key"), files.key_pem(key))


@pytest.mark.parametrize(
    "harm",
    [
        damage("web.crt", b"nonsense"),
        damage("web.key", b"nonsense"),
        damage("ca.pem", b""),
        lambda made: (made.pki / "web.crt").unlink(),
        lambda made: (made.pki / "web.key").unlink(),
        lambda made: (made.pki / "web.key").chmod(0o644),
        foreign_authority,
        foreign_key,
    ],
)
def test_what_is_damaged_is_made_anew(made, harm):
    harm(made)
    assert made.missing(NAMES, HOSTS) == ["web"]
    made.make(["web"], HOSTS, 90)
    assert made.missing(NAMES, HOSTS) == []
    assert verified(made, HOSTS["web"][0])


def test_other_names_are_another_certificate(made):
    hosts = {"web": ["new.service.consul"]}
    assert made.missing(NAMES, hosts) == ["web"]
    made.make(["web"], hosts, 90)
    assert verified(made, "new.service.consul")


def test_damaged_secrets_are_an_error_and_not_replaced(made):
    made.path.write_text("{")
    with pytest.raises(ValueError, match=r"secrets\.json: not valid JSON"):
        made.missing(NAMES, HOSTS)

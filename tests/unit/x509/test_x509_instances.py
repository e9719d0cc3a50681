# SPDX-License-Identifier: Apache-2.0
"""Own authorities whose store is shared by several instances."""

import threading

import pytest
from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files, proxies
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import store as stores
from openssl_verify import verify

SUBJECT = "/DC=dodas/O=tier3/CN=dodas online CA"


@pytest.fixture
def store(tmp_path):
    return stores.Sealed(stores.Directory(tmp_path / "sealed"), [b"k" * 32])


def test_in_a_sealed_store(store, tmp_path, keys):
    ca = authority.Authority.open(store, SUBJECT)
    again = authority.Authority.open(store, SUBJECT)
    assert again.certificate == ca.certificate
    assert sorted(path.name for path in (tmp_path / "sealed").glob("[a-z]*")) == ["ca.key", "ca.pem", "crl.pem"]
    assert not any(b"-----BEGIN" in path.read_bytes() for path in (tmp_path / "sealed").iterdir())
    with pytest.raises(authority.AuthorityError, match="was not sealed with this key"):
        authority.Authority.open(stores.Sealed(stores.Directory(tmp_path / "sealed"), [b"x" * 32]), SUBJECT)


def test_instances_see_each_others_revocations(store, tmp_path, keys):
    one, two = (authority.Authority.open(store, SUBJECT) for _ in range(2))
    first, second = (one.issue_eec(keys[0].public_key(), f"{one.namespace}/CN=x{i}", 60) for i in range(2))
    one.revoke(first.serial_number)
    assert not two.is_revoked(first.serial_number)
    assert not two.refresh_crl()  # nothing to sign: it takes the other's list
    assert two.is_revoked(first.serial_number)
    two.revoke(second.serial_number)
    one.refresh_crl()
    assert one.crl == two.crl
    one.install(tmp_path / "ca")
    assert all("revoked" in verify(tmp_path / "ca", tmp_path, eec) for eec in (first, second))


def test_many_instances_revoke_at_once(store, keys):
    """None is lost, and no two lists have the same number."""
    instances = [authority.Authority.open(store, SUBJECT) for _ in range(4)]
    numbers, failures = [], []

    def revoke(ca, start):
        try:
            for serial in range(start, start + 5):
                ca.revoke(serial)
                numbers.append((number(ca), files.certificate_pem(ca.crl)))
        except Exception as error:  # shown below
            failures.append(error)

    threads = [threading.Thread(target=revoke, args=(ca, 100 * i + 1)) for i, ca in enumerate(instances)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for ca in instances:
        ca.refresh_crl()
        assert all(ca.is_revoked(100 * i + j) for i in range(4) for j in range(1, 6))
    assert len({first for first, _crl in numbers}) == len(set(numbers))


def number(ca):
    return ca.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_killed_between_revocation_and_list(store):
    ca = authority.Authority.open(store, SUBJECT)
    before = number(ca)
    stores.update(store, "revoked.json", lambda _old: b'{"77": "2026-01-01T00:00:00+00:00"}')
    assert not ca.is_revoked(77)
    assert ca.refresh_crl()
    assert ca.is_revoked(77) and number(ca) > before


def test_lost_list_keeps_its_numbers_growing(store):
    ca = authority.Authority.open(store, SUBJECT)
    ca.revoke(7)
    before = number(ca)
    stores.update(store, "crl.pem", lambda _old: b"half a li")
    again = authority.Authority.open(store, SUBJECT)
    assert again.is_revoked(7) and number(again) > before
    store.remove("crl.pem")
    assert number(authority.Authority.open(store, SUBJECT)) > number(again)
    stores.update(store, "revoked.json", lambda _old: b"{")
    with pytest.raises(stores.StoreError, match="damaged"):
        ca.refresh_crl()


def test_elliptic_authority(store, tmp_path, keys):
    ca = authority.Authority.open(store, SUBJECT, key_type="ec-p256")
    eec = ca.issue_eec(keys[0].public_key(), f"{ca.namespace}/CN=x", 600)
    ca.install(tmp_path / "ca")
    assert verify(tmp_path / "ca", tmp_path, proxies.sign(eec, keys[0], keys[1].public_key(), 60), eec) == ""
    assert authority.Authority.open(store, SUBJECT).certificate == ca.certificate
    assert isinstance(ca.certificate.public_key(), csr.ec.EllipticCurvePublicKey)

# SPDX-License-Identifier: Apache-2.0
import datetime as dt
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, names, proxies

WORKER = "/DC=dodas/O=tier3/OU=workers/CN=worker-0123456789abcdef0123"


@pytest.fixture
def eec(ca, keys):
    return ca.issue_eec(keys[0].public_key(), WORKER, 3600)


def test_encoding_is_that_of_the_rfc():
    assert proxies.ProxyInfo("inherit-all", None).encode().hex() == "300c300a06082b06010505071501"
    assert proxies.ProxyInfo("limited", 0).encode().hex() == "3012020100300d060b2b060104019b5001010109"
    for policy in proxies.POLICIES:
        for length in (None, 0, 1, 127, 128, 70000):
            info = proxies.ProxyInfo(policy, length)
            assert proxies.ProxyInfo.decode(info.encode()) == info


@pytest.mark.parametrize(
    "data",
    [
        "",
        "3000",
        "300c300a06082b06010505071509",
        "300f0201ff300a06082b06010505071501",
        "300c300a06082b0601050507150100",
        "30800000",
    ],
)
def test_damaged_extensions(data):
    with pytest.raises(proxies.ProxyError):
        proxies.ProxyInfo.decode(bytes.fromhex(data))


@pytest.mark.parametrize("policy", proxies.POLICIES)
@pytest.mark.parametrize("path_length", [None, 0, 3])
def test_openssl_accepts(eec, keys, openssl_verify, policy, path_length):
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600, policy, path_length)
    assert openssl_verify(proxy, eec) == ""
    assert "expired" in openssl_verify(proxy, eec, at=time.time() + 700)
    assert proxies.proxy_info(proxy) == proxies.ProxyInfo(policy, path_length)


def test_shape(eec, keys):
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600, path_length=0)
    assert names.slash(proxy.subject) == f"{WORKER}/CN={proxy.serial_number}"
    assert proxy.serial_number.bit_length() == 63
    critical = {extension.oid.dotted_string for extension in proxy.extensions if extension.critical}
    assert critical == {"2.5.29.15", proxies.PROXY_CERT_INFO}
    assert {e.oid.dotted_string for e in proxy.extensions} == critical | {"2.5.29.35"}


def test_openssl_refuses_what_we_refuse(eec, keys, openssl_verify, monkeypatch):
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600, path_length=0)
    with pytest.raises(proxies.ProxyError, match="may not sign"):
        proxies.sign(proxy, keys[1], keys[2].public_key(), 60)
    info = proxies.proxy_info
    monkeypatch.setattr(proxies, "proxy_info", lambda _certificate: None)
    longer = proxies.sign(proxy, keys[1], keys[2].public_key(), 60)
    monkeypatch.setattr(proxies, "proxy_info", info)
    assert "path length" in openssl_verify(longer, proxy, eec)


def test_limited_stays_limited(eec, keys, openssl_verify):
    limited = proxies.sign(eec, keys[0], keys[1].public_key(), 600, "limited")
    with pytest.raises(proxies.ProxyError, match="limited"):
        proxies.sign(limited, keys[1], keys[2].public_key(), 60)
    below = proxies.sign(limited, keys[1], keys[2].public_key(), 60, "limited")
    assert openssl_verify(below, limited, eec) == ""


def test_revoked_eec_takes_its_proxies_along(ca, eec, keys, openssl_verify):
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600)
    ca.revoke(eec.serial_number)
    assert "revoked" in openssl_verify(proxy, eec)


def test_clipped_to_the_issuer_and_the_end_given(eec, keys):
    key = keys[1].public_key()
    assert proxies.sign(eec, keys[0], key, 10**8).not_valid_after_utc == eec.not_valid_after_utc
    soon = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=60)
    assert proxies.sign(eec, keys[0], key, 600, not_after=soon).not_valid_after_utc == soon
    with pytest.raises(proxies.ProxyError, match="ended"):
        proxies.sign(eec, keys[0], key, 600, not_after=soon - dt.timedelta(hours=1))


def test_inspect(eec, keys):
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600, path_length=0)
    held = proxies.inspect(files.credential_pem(proxy, keys[1], [eec]))
    assert (held.kind, held.identity, held.info.path_length) == ("proxy", WORKER, 0)
    assert held.subject.startswith(WORKER + "/CN=")
    assert 590 < held.remaining <= 600
    assert proxies.inspect(files.credential_pem(eec, keys[0])).kind == "eec"
    with pytest.raises(ValueError):
        proxies.inspect(files.credential_pem(proxy, keys[1]))
    with pytest.raises(ValueError):
        proxies.inspect(b"nothing")


def test_rsa_1024_proxy_is_refused(eec, keys):
    class Weak:
        pass

    with pytest.raises(csr.RequestError):
        proxies.sign(eec, keys[0], Weak(), 60)


def test_non_critical_extension_is_refused_by_openssl_too(eec, keys, openssl_verify):
    """What makes sure that the verifier in these tests looks at the extension at all."""
    name = x509.Name([*eec.subject.rdns, *names.parse("/CN=1").rdns])
    now = dt.datetime.now(dt.UTC)
    bare = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(eec.subject)
        .public_key(keys[1].public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(minutes=5))
        .sign(keys[0], hashes.SHA256())
    )
    assert openssl_verify(bare, eec) != ""


def test_path_lengths_count_down(eec, keys, openssl_verify):
    first = proxies.sign(eec, keys[0], keys[1].public_key(), 600, path_length=2)
    second = proxies.sign(first, keys[1], keys[2].public_key(), 600)
    third = proxies.sign(second, keys[2], keys[0].public_key(), 600, path_length=5)
    assert [proxies.proxy_info(one).path_length for one in (first, second, third)] == [2, 1, 0]
    assert openssl_verify(third, second, first, eec) == ""
    held = proxies.inspect(files.credential_pem(third, keys[0], [second, first, eec]))
    assert (held.path_length, held.chain) == (0, (third, second, first, eec))


def test_inspect_takes_the_limits_of_those_above(eec, keys, monkeypatch):
    first = proxies.sign(eec, keys[0], keys[1].public_key(), 600, "independent", path_length=2)
    with monkeypatch.context() as patched:
        patched.setattr(proxies, "proxy_info", lambda _certificate: None)
        second = proxies.sign(first, keys[1], keys[2].public_key(), 600, "limited")
    held = proxies.inspect(files.credential_pem(second, keys[2], [first, eec]))
    assert (held.info.path_length, held.path_length, held.policy) == (None, 1, "limited")
    assert proxies.inspect(files.credential_pem(eec, keys[0])).policy is None


def test_extensions_of_others(eec, keys, openssl_verify):
    attributes = (proxies.VOMS_ATTRIBUTES, bytes.fromhex("3000"), False)
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 600, extensions=[attributes])
    extension = proxy.extensions.get_extension_for_oid(x509.ObjectIdentifier(proxies.VOMS_ATTRIBUTES))
    assert (extension.value.value, extension.critical) == (b"0\0", False)
    assert openssl_verify(proxy, eec) == ""
    below = proxies.sign(proxy, keys[1], keys[2].public_key(), 60)
    assert proxies.inspect(files.credential_pem(below, keys[2], [proxy, eec])).voms
    plain = proxies.sign(eec, keys[0], keys[1].public_key(), 600)
    assert not proxies.inspect(files.credential_pem(plain, keys[1], [eec])).voms
    for oid in ("2.5.29.17", "2.5.29.19", "2.5.29.15", "2.5.29.37"):
        with pytest.raises(proxies.ProxyError, match="takes no extension"):
            proxies.sign(eec, keys[0], keys[1].public_key(), 600, extensions=[(oid, b"0\0", True)])
    with pytest.raises(ValueError):  # its policy is said once
        proxies.sign(eec, keys[0], keys[1].public_key(), 60, extensions=[(proxies.PROXY_CERT_INFO, b"0\0", True)])

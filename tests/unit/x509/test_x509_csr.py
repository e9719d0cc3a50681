# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, names


def build(key, digest=None, subject="x", extensions=()):
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, digest or hashes.SHA256()).public_bytes(Encoding.PEM)


def openssl_request(tmp_path, *options):
    path = tmp_path / "request.pem"
    command = [
        "openssl",
        "req",
        "-new",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        "/dev/null",
        "-out",
        str(path),
    ]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=60)
    return path.read_bytes()


def test_good_requests(keys, tmp_path):
    assert csr.public_key(csr.make(keys[0])) == keys[0].public_key()
    der = x509.load_pem_x509_csr(csr.make(keys[0])).public_bytes(Encoding.DER)
    assert csr.public_key(der) == keys[0].public_key()
    csr.public_key(build(ec.generate_private_key(ec.SECP256R1())))
    csr.public_key(openssl_request(tmp_path, "-newkey", "rsa:2048"))


def test_nothing_but_the_key_is_copied(ca, keys):
    wanted = [
        x509.BasicConstraints(ca=True, path_length=9),
        x509.SubjectAlternativeName([x509.DNSName("evil.example")]),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), b"\x30\x00"),
    ]
    key = csr.public_key(build(keys[0], subject="root", extensions=wanted))
    certificate = ca.issue_eec(key, "/DC=dodas/O=tier3/CN=x", 600)
    assert names.slash(certificate.subject) == "/DC=dodas/O=tier3/CN=x"
    held = {extension.oid.dotted_string: extension for extension in certificate.extensions}
    assert set(held) == {"2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.14", "2.5.29.35"}
    assert held["2.5.29.19"].value.ca is False


WEAK = {
    "rsa1024": lambda tmp: openssl_request(tmp, "-newkey", "rsa:1024"),
    "e3": lambda _tmp: build(rsa.generate_private_key(3, 2048)),
    "sha1": lambda tmp: openssl_request(tmp, "-newkey", "rsa:2048", "-sha1"),
    "md5": lambda tmp: openssl_request(tmp, "-newkey", "rsa:2048", "-md5"),
    "secp256k1": lambda _tmp: build(ec.generate_private_key(ec.SECP256K1())),
    "ed25519": lambda tmp: openssl_request(tmp, "-newkey", "ed25519"),
    "rsa-pss 1024": lambda tmp: openssl_request(
        tmp, "-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:1024"
    ),
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_requests(name, tmp_path):
    with pytest.raises(csr.RequestError):
        csr.public_key(WEAK[name](tmp_path))


def test_damaged_requests(keys, ca):
    good = csr.make(keys[0])
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    der[-5] ^= 1
    damaged = {
        "flipped signature": bytes(der),
        "two": good + good,
        "two in DER": x509.load_pem_x509_csr(good).public_bytes(Encoding.DER) * 2,
        "text around": b"hello\n" + good,
        "empty": b"",
        "garbage": b"\x30\x82\xff\xff" + b"x" * 100,
        "truncated": good[:200],
        "certificate": ca.ca_pem,
        "private key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "large": good + b"\n" * 20000,
        "1 MB": b"\x30" * 2**20,
    }
    for name, data in damaged.items():
        with pytest.raises(csr.RequestError):
            csr.public_key(data)
            pytest.fail(name)


def test_the_library_refuses_weak_keys_without_a_request(ca):
    with pytest.raises(csr.RequestError):
        ca.issue_eec(ed25519.Ed25519PrivateKey.generate().public_key(), "/DC=dodas/O=tier3/CN=x", 60)
    with pytest.raises(authority.AuthorityError, match="not below"):
        ca.issue_eec(csr.make_key().public_key(), "/DC=dodas/O=other/CN=x", 60)

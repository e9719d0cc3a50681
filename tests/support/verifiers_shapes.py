# SPDX-License-Identifier: Apache-2.0
"""Credentials of every shape that a relying party may be shown, good and bad.

What is good is made by the library. What the library refuses to make is made here, with cryptography directly.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, names, proxies
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority

DEPLOYMENT = "tier3"
NAMESPACE = f"/DC=dodas/O={DEPLOYMENT}"
VOMS_ATTRIBUTES = "1.3.6.1.4.1.8005.100.100.5"
HOUR = 3600
INHERIT_ALL = proxies.ProxyInfo("inherit-all", None)


@dataclasses.dataclass(frozen=True)
class Credential:
    """A certificate, its key, and the chain above it as far as it is shown to relying parties."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self):
        """As a file."""
        return files.credential_pem(self.certificate, self.key, self.chain)


class World:
    """Authorities that relying parties trust, and the people and workers that they know.

    Made in folder: ``certificates`` (CA directory), ``ca.pem`` and ``crl.pem`` (the same in one file each), and the
    servers' ``host.crt`` and ``host.key``. voms_attributes: person -> DER, to be set before shapes that hold them are
    made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.voms_attributes = None
        self.keys = [csr.make_key() for _ in range(3)]
        state = folder / "state"
        self.own = Authority.open(state / "own", f"{NAMESPACE}/CN=dodas online CA")
        self.elliptic = Authority.open(state / "elliptic", f"{NAMESPACE}/CN=dodas EC CA", key_type="ec-p256")
        self.foreign = Authority.open(state / "foreign", self.own.subject)
        self.site = self._site(state / "site")
        self.own.revoke(self.revoked.certificate.serial_number)
        host = self.own.issue_host(self.keys[0].public_key(), "localhost", ["localhost"], ["127.0.0.1"])
        files.write(folder / "host.crt", files.certificate_pem(host), files.PUBLIC)
        files.write(folder / "host.key", files.key_pem(self.keys[0]))
        for authority in (self.own, self.elliptic, self.site):
            authority.install(folder / "certificates")
        for name, suffix in (("ca.pem", "*.0"), ("crl.pem", "*.r0")):
            found = {path.read_bytes() for path in (folder / "certificates").glob(suffix)}
            files.write(folder / name, b"".join(sorted(found)), files.PUBLIC)

    def _site(self, folder):
        """The authority of a site: an intermediate one, given to us."""
        keys = csr.make_key(), csr.make_key()
        root, issuing = (names.parse(f"{NAMESPACE}/CN={name}") for name in ("site root CA", "site issuing CA"))
        above = authority_certificate(root, keys[0], 1)
        made = authority_certificate(issuing, keys[1], 0, above, keys[0])
        crl = x509.CertificateRevocationListBuilder(issuer_name=root, last_update=now(-300), next_update=now(24 * HOUR))
        crl = crl.add_extension(x509.CRLNumber(1), critical=False).sign(keys[0], hashes.SHA256())
        chain = b"".join(map(files.certificate_pem, (above, crl)))
        return Authority.given(folder, files.certificate_pem(made), files.key_pem(keys[1]), chain)

    @functools.cached_property
    def eec(self):
        """A good certificate, above most proxies here."""
        return self.person("alice")

    @functools.cached_property
    def revoked(self):
        """A certificate that is on the authority's list."""
        return self.person("mallory")

    def person(self, name, authority=None, key=None, lifetime=12 * HOUR):
        """A certificate as the service makes it."""
        key = key or self.keys[1]
        authority = authority or self.own
        made = authority.issue_eec(key.public_key(), f"{NAMESPACE}/OU=workers/CN={name}", lifetime)
        return Credential(made, key, authority.between)

    def proxy(self, above, key=None, lifetime=HOUR, **options):
        """A proxy as the service makes it."""
        key = key or self.keys[2]
        made = proxies.sign(above.certificate, above.key, key.public_key(), lifetime, **options)
        return Credential(made, key, (above.certificate, *above.chain))


def now(seconds=0):
    """The present, or so many seconds later."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=seconds)


def build(subject, key, issuer, issuer_key, extensions, start=-300, end=HOUR, serial=None):
    """Any certificate at all. issuer: certificate, None for a self-signed one; extensions: (value, critical); start,
    end: seconds from now."""
    above = issuer or issuer_key
    builder = x509.CertificateBuilder(issuer.subject if issuer else subject, subject, key.public_key())
    builder = builder.serial_number(serial or x509.random_serial_number())
    builder = builder.not_valid_before(now(start)).not_valid_after(now(end))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
    for value, critical in [*extensions, (identifier, False)]:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())


def authority_certificate(subject, key, path_length, issuer=None, issuer_key=None):
    """A certificate of a CA."""
    extensions = [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (proxies.key_usage(authority=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    return build(subject, key, issuer, issuer_key or key, extensions, end=365 * 24 * HOUR)


def person(world, dn, above=None, signer=None, **options):
    """An end-entity certificate that the library would not make: of any name, at any time, by whomever is above, or in
    the name of the authority; signer: whose key signs."""
    issuer, issuer_key = (above.certificate, above.key) if above else (world.own.certificate, world.own._key)
    key = world.keys[1]
    extensions = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (proxies.key_usage(key.public_key()), True),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    made = build(names.parse(dn), key, issuer, signer or issuer_key, extensions, **options)
    return Credential(made, key, (above.certificate, *above.chain) if above else ())


def proxy(world, above, key=None, signer=None, base=None, name=None, info=INHERIT_ALL,
          critical=True, extra=(), **options):  # fmt: skip
    """A proxy that the library would not make. base: subject that its own extends; signer: whose key signs."""
    key = key or world.keys[2]
    serial = proxies.secrets.randbits(62)
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, name or str(serial))
    subject = x509.Name([*(base or above.certificate.subject).rdns, x509.RelativeDistinguishedName([common_name])])
    extensions = [(proxies.key_usage(key.public_key()), True), *extra]
    if info:
        identifier = x509.ObjectIdentifier(proxies.PROXY_CERT_INFO)
        extensions.append((x509.UnrecognizedExtension(identifier, info.encode()), critical))
    made = build(subject, key, above.certificate, signer or above.key, extensions, serial=serial, **options)
    return Credential(made, key, (above.certificate, *above.chain))


def weak_key():
    """One of RSA-1024."""
    return rsa.generate_private_key(65537, 1024)


def outside(world):
    """A certificate below another name than the authority may sign."""
    return person(world, "/DC=dodas/O=elsewhere/OU=workers/CN=alice")


def forged(world):
    """A certificate in the authority's name, signed by a foreign one."""
    return person(world, f"{NAMESPACE}/OU=workers/CN=alice", signer=world.foreign._key)


def expired(world):
    """A certificate that ended a minute ago."""
    return person(world, f"{NAMESPACE}/OU=workers/CN=alice", end=-60)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One row of the matrix. make: World -> Credential; ours: whether the library makes such a thing."""

    name: str
    make: Callable[[World], Credential]
    ours: bool = True


def _shapes():
    alternative = x509.SubjectAlternativeName([x509.DNSName("alice.example.org")])
    authority = x509.BasicConstraints(ca=True, path_length=None)

    def ec_key():
        return ec.generate_private_key(ec.SECP256R1())

    def large(world):
        key = rsa.generate_private_key(65537, 4096)
        return world.proxy(world.person("alice", key=key), key=key)

    def voms(world, person):
        return world.proxy(world.eec, extensions=[(VOMS_ATTRIBUTES, world.voms_attributes(person), False)])

    def clipped(world):
        return world.proxy(world.person("alice", lifetime=10**9), lifetime=10**9)

    good = {
        "EEC": lambda w: w.eec,
        "proxy": lambda w: w.proxy(w.eec),
        "proxy of a proxy": lambda w: w.proxy(w.proxy(w.eec), key=w.keys[0]),
        "limited proxy": lambda w: w.proxy(w.eec, policy="limited"),
        "limited proxy of a limited proxy": lambda w: w.proxy(w.proxy(w.eec, policy="limited"), policy="limited"),
        "independent proxy": lambda w: w.proxy(w.eec, policy="independent"),
        "proxy of path length 0": lambda w: w.proxy(w.eec, path_length=0),
        "proxy at the end of path length 1": lambda w: w.proxy(w.proxy(w.eec, path_length=1)),
        "proxy with VOMS attributes": lambda w: voms(w, w.eec),
        "proxy with somebody else's VOMS attributes": lambda w: voms(w, w.revoked),
        "proxy, both keys RSA-4096": large,
        "proxy, lifetimes clipped to the CA's": clipped,
        "EEC of an intermediate CA": lambda w: w.person("alice", w.site),
        "proxy, EEC of an intermediate CA": lambda w: w.proxy(w.person("alice", w.site)),
        "EEC of an EC CA": lambda w: w.person("alice", w.elliptic),
        "proxy, EEC of an EC CA": lambda w: w.proxy(w.person("alice", w.elliptic)),
        "EC EEC": lambda w: w.person("alice", key=ec_key()),
        "proxy of an EC EEC": lambda w: w.proxy(w.person("alice", key=ec_key())),
        "proxy with an EC key": lambda w: w.proxy(w.eec, key=ec_key()),
        "revoked EEC": lambda w: w.revoked,
        "proxy of a revoked EEC": lambda w: w.proxy(w.revoked),
        "EEC of a foreign CA of the same name": lambda w: w.person("alice", w.foreign),
        "proxy, EEC of a foreign CA of the same name": lambda w: w.proxy(w.person("alice", w.foreign)),
    }
    bad = {
        "EEC of a foreign CA of the same name and key identifier": forged,
        "expired EEC": expired,
        "proxy of an expired EEC": lambda w: proxy(w, expired(w)),
        "expired proxy": lambda w: proxy(w, w.eec, end=-60),
        "proxy valid in 10 minutes": lambda w: proxy(w, w.eec, start=600),
        "path length exceeded": lambda w: proxy(w, w.proxy(w.eec, path_length=0), key=w.keys[0]),
        "full proxy of a limited proxy": lambda w: proxy(w, w.proxy(w.eec, policy="limited"), key=w.keys[0]),
        "proxy with an RSA-1024 key": lambda w: proxy(w, w.eec, key=weak_key()),
        "ProxyCertInfo not critical": lambda w: proxy(w, w.eec, critical=False),
        "legacy proxy (no ProxyCertInfo)": lambda w: proxy(w, w.eec, info=None, name="proxy"),
        "proxy with a SAN": lambda w: proxy(w, w.eec, extra=[(alternative, False)]),
        "proxy that says it is a CA": lambda w: proxy(w, w.eec, extra=[(authority, True)]),
        "proxy whose subject is not below its issuer's": lambda w: proxy(w, w.eec, base=w.revoked.certificate.subject),
        "proxy signed by another key": lambda w: proxy(w, w.eec, signer=w.keys[0]),
        "EEC signed by an EEC": lambda w: person(w, f"{NAMESPACE}/OU=workers/CN=mallory", w.eec),
        "EEC outside the signing policy": outside,
        "proxy, EEC outside the signing policy": lambda w: w.proxy(outside(w)),
    }
    return [Shape(*one) for one in good.items()] + [Shape(*one, ours=False) for one in bad.items()]


SHAPES = _shapes()

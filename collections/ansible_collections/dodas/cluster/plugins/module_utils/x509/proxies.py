# SPDX-License-Identifier: Apache-2.0
"""Proxy certificates (RFC 3820)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, der, names
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    NameOID,
    hashes,
    rsa,
    utcnow,
    x509,
)

PROXY_CERT_INFO = "1.3.6.1.5.5.7.1.14"
VOMS_ATTRIBUTES = "1.3.6.1.4.1.8005.100.100.5"
POLICIES = {
    "inherit-all": "1.3.6.1.5.5.7.21.1",
    "independent": "1.3.6.1.5.5.7.21.2",
    "limited": "1.3.6.1.4.1.3536.1.1.1.9",
}
BACKDATE = dt.timedelta(minutes=5)  # relying parties whose clocks are behind


class ProxyError(ValueError):
    """A proxy that cannot be made or is none."""


@dataclasses.dataclass(frozen=True)
class ProxyInfo:
    """The ProxyCertInfo extension; path_length None is without limit."""

    policy: str
    path_length: int | None

    def encode(self):
        """Its DER."""
        length = b"" if self.path_length is None else der.integer(self.path_length)
        return der.tlv(der.SEQUENCE, length, der.tlv(der.SEQUENCE, der.oid(POLICIES[self.policy])))

    @classmethod
    def decode(cls, data):
        """From DER. Raises ProxyError for what is not one of the three policies."""
        try:
            body, rest = der.read(data, der.SEQUENCE)
            length = None
            if body[:1] == bytes((der.INTEGER,)):
                number, body = der.read(body, der.INTEGER)
                length = int.from_bytes(number, "big", signed=True)
            policy, more = der.read(body, der.SEQUENCE)
            known = {der.oid(dotted): name for name, dotted in POLICIES.items()}
            if rest or more or policy not in known or (length is not None and length < 0):
                raise ValueError("unknown policy")
        except ValueError as error:
            raise ProxyError("the ProxyCertInfo extension cannot be read") from error
        return cls(known[policy], length)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A credential. kind: eec or proxy; identity: the DN of who is behind it; remaining: seconds.

    info: what the proxy says of itself; path_length: how many proxies may follow, by it and those above, or None;
    voms: whether it or one above holds attributes of a VO; chain: certificates, as they stand in the file.
    """

    kind: str
    subject: str
    identity: str
    not_before: dt.datetime
    not_after: dt.datetime
    remaining: float
    info: ProxyInfo | None
    path_length: int | None
    voms: bool
    chain: tuple

    @property
    def policy(self):
        """inherit-all, limited or independent; None where it is no proxy."""
        return self.info and self.info.policy


def proxy_info(certificate):
    """The ProxyInfo of a certificate, or None where it is no proxy. Raises ProxyError."""
    for extension in certificate.extensions:
        if extension.oid.dotted_string == PROXY_CERT_INFO:
            return ProxyInfo.decode(extension.value.value)
    return None


def sign(
    issuer,
    issuer_key,
    public_key,
    lifetime,
    policy="inherit-all",
    path_length=None,
    not_after=None,
    extensions=(),
):
    """A proxy for public_key below the certificate issuer.

    lifetime: seconds; the end is clipped to not_after (datetime) and to the issuer's. path_length: how many
    proxies may follow below, fewer where the issuer says so. extensions: more of them, (dotted OID, DER, critical).
    Raises ProxyError where the issuer may not sign such a proxy, csr.RequestError for a weak key.
    """
    csr.check_public_key(public_key)
    if policy not in POLICIES:
        raise ProxyError(f"policy {policy!r} is none of {', '.join(POLICIES)}")
    if path_length is not None and not 0 <= path_length < 2**31:
        raise ProxyError("path_length must be 0 or more")
    if issuer_key.public_key() != issuer.public_key():
        raise ProxyError("the key is not that of the issuer")
    parent = proxy_info(issuer)
    if parent and parent.path_length == 0:
        raise ProxyError("the issuer is a proxy that may not sign another")
    if parent and parent.policy == "limited" and policy != "limited":
        raise ProxyError("a limited proxy signs only limited ones")
    if parent and parent.path_length is not None:
        most = parent.path_length - 1
        path_length = most if path_length is None else min(path_length, most)
    now = utcnow()
    ends = [now + dt.timedelta(seconds=lifetime), issuer.not_valid_after_utc]
    end = min(ends if not_after is None else [*ends, not_after])
    if end <= now:
        raise ProxyError("the issuer or the lifetime asked for has ended")
    serial = secrets.randbits(63) | 1 << 62  # 63 bits are accepted everywhere; 31 collide
    common_name = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, str(serial))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*issuer.subject.rdns, common_name]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(max(now - BACKDATE, issuer.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(key_usage(public_key), critical=True)
        .add_extension(
            x509.UnrecognizedExtension(
                x509.ObjectIdentifier(PROXY_CERT_INFO), ProxyInfo(policy, path_length).encode()
            ),
            critical=True,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    for oid, value, critical in extensions:
        if oid.startswith("2.5.29."):  # whose names, usage and constraints are decided here
            raise ProxyError(f"a proxy takes no extension {oid} from others")
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical)
    return builder.sign(issuer_key, hashes.SHA256())


def key_usage(public_key=None, authority=False):
    """The KeyUsage of an end entity or proxy with this key, or of a CA."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=isinstance(public_key, rsa.RSAPublicKey),
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def inspect(data):
    """What a credential file (PEM bytes: certificate, key, chain) holds; it ends when the first of its chain
    ends.

    Reads only: it verifies no signature. Raises ValueError.
    """
    chain = x509.load_pem_x509_certificates(data)
    infos = [proxy_info(certificate) for certificate in chain]
    person = next((c for c, info in zip(chain, infos, strict=True) if info is None), None)
    if person is None:
        raise ProxyError("the file holds proxies only, and no certificate that signed them")
    used = chain[: chain.index(person) + 1]
    end = min(certificate.not_valid_after_utc for certificate in used)
    return Inspection(
        kind="proxy" if infos[0] else "eec",
        subject=names.slash(chain[0].subject),
        identity=names.slash(person.subject),
        not_before=chain[0].not_valid_before_utc,
        not_after=end,
        remaining=(end - dt.datetime.now(dt.UTC)).total_seconds(),
        info=infos[0],
        path_length=_path_length(infos[: len(used) - 1]),
        voms=any(_holds(certificate, VOMS_ATTRIBUTES) for certificate in used),
        chain=tuple(chain),
    )


def _path_length(infos):
    """How many proxies may follow the first, whose issuer is the second, and so on."""
    limits = [info.path_length - above for above, info in enumerate(infos) if info.path_length is not None]
    return max(0, min(limits)) if limits else None


def _holds(certificate, oid):
    return any(extension.oid.dotted_string == oid for extension in certificate.extensions)

# SPDX-License-Identifier: Apache-2.0
"""Whether a CA that somebody brings can be used: its key, its constraints, and the chain above it."""

from __future__ import annotations

import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, names
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    InvalidSignature,
    UnsupportedAlgorithm,
    hashes,
    utcnow,
    x509,
)

CRL = re.compile(rb"-----BEGIN X509 CRL-----[A-Za-z0-9+/=\s]+-----END X509 CRL-----")
DIGESTS = ("sha256", "sha384", "sha512")


class AuthorityError(RuntimeError):
    """The authority's files cannot be used, or it may not sign what it was asked to."""


def load(certificate_pem, key_pem, chain_pem=b""):
    """(certificate, key, chain, crls) of a CA; chain: the certificates above, the self-signed root last.

    The chain may stand in either PEM, in any order, as may revocation lists (crls: by their issuer's subject). Raises
    AuthorityError.
    """
    try:
        return _load(certificate_pem, key_pem, chain_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"the authority's certificate, or what is above it, cannot be read: {error}") from error


def _load(certificate_pem, key_pem, chain_pem):
    key = _key(key_pem)
    certificate, *pool = x509.load_pem_x509_certificates(certificate_pem)
    pool += x509.load_pem_x509_certificates(chain_pem) if b"BEGIN CERTIFICATE" in chain_pem else []
    lists = [x509.load_pem_x509_crl(pem) for pem in CRL.findall(certificate_pem + b"\n" + chain_pem)]
    if certificate.public_key() != key.public_key():
        raise AuthorityError(f"the key is not that of {names.slash(certificate.subject)}")
    _check(certificate, 0)
    if not _usage(certificate).crl_sign:
        raise AuthorityError(f"{names.slash(certificate.subject)} may not sign revocation lists (keyUsage cRLSign)")
    chain = _chain(certificate, pool)
    return certificate, key, chain, _by_issuer(lists, [certificate, *chain])


def _key(pem):
    try:
        key = files.load_key(pem)
        csr.check_public_key(key.public_key())
    except csr.RequestError as error:
        raise AuthorityError(f"the authority's key: {error}") from None
    except TypeError:
        raise AuthorityError("the authority's key is encrypted: a service needs it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm, AttributeError):
        raise AuthorityError("the authority's key is not a private key in PEM") from None
    return key


def _chain(certificate, pool):
    """What is above a certificate, in order."""
    chain = []
    below = 0  # CAs between this one and an end entity, as path lengths count them
    while certificate.subject != certificate.issuer or not _issued(certificate, certificate):
        _check_digest(certificate)
        above = next((one for one in pool if _issued(certificate, one) and one not in chain), None)
        if above is None:
            raise AuthorityError(
                f"the certificate of {names.slash(certificate.issuer)}, which signed that of "
                f"{names.slash(certificate.subject)}, is missing: the chain must reach a self-signed root"
            )
        below += certificate.subject != certificate.issuer
        _check(above, below)
        chain.append(above)
        certificate = above
    return tuple(chain)


def _issued(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check(certificate, below):
    """That it is a CA, valid now, and may stand above so many others."""
    name = names.slash(certificate.subject)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{name} is no CA (basicConstraints)") from None
    if not constraints.ca:
        raise AuthorityError(f"{name} is no CA (basicConstraints)")
    if not _usage(certificate).key_cert_sign:
        raise AuthorityError(f"{name} may not sign certificates (keyUsage keyCertSign)")
    if constraints.path_length is not None and constraints.path_length < below:
        raise AuthorityError(f"{name} allows {constraints.path_length} CAs below it, and here are {below}")
    if certificate.not_valid_after_utc <= utcnow():
        raise AuthorityError(f"the certificate of {name} ended on {certificate.not_valid_after_utc}")
    if certificate.not_valid_before_utc > utcnow():
        raise AuthorityError(f"the certificate of {name} begins on {certificate.not_valid_before_utc}")


def _check_digest(certificate):
    digest = certificate.signature_hash_algorithm
    if not isinstance(digest, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
        name = names.slash(certificate.subject)
        raise AuthorityError(f"the certificate of {name} is not signed with one of {', '.join(DIGESTS)}")


def _usage(certificate):
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{names.slash(certificate.subject)} does not say its keyUsage") from None


def _by_issuer(lists, certificates):
    found = {}
    for crl in lists:
        issuer = next((one for one in certificates if one.subject == crl.issuer), None)
        if issuer is None or not crl.is_signature_valid(issuer.public_key()):
            raise AuthorityError(f"the revocation list of {names.slash(crl.issuer)} is not signed by a CA of the chain")
        found[issuer.subject] = crl
    return found

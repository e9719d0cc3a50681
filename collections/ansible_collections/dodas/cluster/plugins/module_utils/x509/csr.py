# SPDX-License-Identifier: Apache-2.0
"""Certificate requests (PKCS#10): made by clients, and reduced to their public key by the service."""

from __future__ import annotations

import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    InvalidSignature,
    UnsupportedAlgorithm,
    ec,
    hashes,
    rsa,
    x509,
)

MAX_BYTES = 16 * 1024
ONE_PEM = re.compile(
    rb"\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----"
    rb"[A-Za-z0-9+/=\s]+"
    rb"-----END (NEW )?CERTIFICATE REQUEST-----\s*"
)


class RequestError(ValueError):
    """A request or key that no certificate is made for; str() is safe to send back."""


def make_key():
    """A new RSA-2048 key: the only kind all grid software takes."""
    return rsa.generate_private_key(65537, 2048)


def make(key):
    """A CSR (PEM bytes) for key. Its subject says nothing: the service decides the name."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return files.certificate_pem(request)


def public_key(data):
    """The public key of the one CSR in data (PEM or DER bytes), and nothing else of it.

    Raises RequestError unless the request is signed by that key with SHA-2, and the key is RSA of 2048 to
    4096 bits or on P-256 or P-384.
    """
    if len(data) > MAX_BYTES:
        raise RequestError("the request is larger than 16 KiB")
    try:
        if data[:1] == b"\x30":
            request = x509.load_der_x509_csr(data)
        elif ONE_PEM.fullmatch(data):
            request = x509.load_pem_x509_csr(data)
        else:
            raise RequestError("not one certificate request in PEM or DER")
        digest = request.signature_hash_algorithm
        key = request.public_key()
        check_public_key(key)
        if not isinstance(digest, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
            raise RequestError("the request is not signed with SHA-256, SHA-384 or SHA-512")
        valid = request.is_signature_valid
    except RequestError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise RequestError("the request cannot be read") from error
    if not valid:
        raise RequestError("the request is not signed by its key")
    return key


def check_public_key(key):
    """Raises RequestError for a key that is too weak or that grid software does not take."""
    if isinstance(key, rsa.RSAPublicKey):
        if not 2048 <= key.key_size <= 4096:
            raise RequestError("RSA keys must have 2048 to 4096 bits")
        if key.public_numbers().e < 65537:
            raise RequestError("the RSA exponent must be at least 65537")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
            raise RequestError("EC keys must be on P-256 or P-384")
    else:
        raise RequestError("keys must be RSA or EC")

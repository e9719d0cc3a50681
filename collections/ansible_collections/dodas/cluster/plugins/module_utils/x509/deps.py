# SPDX-License-Identifier: Apache-2.0
"""What this package uses of ``cryptography``, imported in one place.

A file of a collection must import where its libraries are missing: the names are None there and MISSING tells
why.
"""

from __future__ import annotations

import datetime as dt

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    MISSING = None
except ImportError as error:
    x509 = hashes = serialization = ec = rsa = AESGCM = ExtendedKeyUsageOID = NameOID = None
    InvalidSignature = InvalidTag = UnsupportedAlgorithm = ValueError
    MISSING = str(error)

__all__ = [
    "AESGCM",
    "MISSING",
    "ExtendedKeyUsageOID",
    "InvalidSignature",
    "InvalidTag",
    "NameOID",
    "UnsupportedAlgorithm",
    "ec",
    "hashes",
    "rsa",
    "serialization",
    "utcnow",
    "x509",
]


def utcnow():
    """The present in UTC, in whole seconds as certificates keep it."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)

# SPDX-License-Identifier: Apache-2.0
"""Distinguished names: the slash form of the grid, and the hashes under which OpenSSL looks for a CA.

Values keep to a list of ASCII characters without ``/ = , + \\``: in the slash form a CN ``a/CN=b`` would read
as two.
"""

from __future__ import annotations

import hashlib
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import der
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import NameOID, x509

VALUE = re.compile(r"[A-Za-z0-9_.:@-](?:[A-Za-z0-9_.:@ -]{0,62}[A-Za-z0-9_.:@-])?")
ATTRIBUTES = {
    "C": "COUNTRY_NAME",
    "DC": "DOMAIN_COMPONENT",
    "O": "ORGANIZATION_NAME",
    "OU": "ORGANIZATIONAL_UNIT_NAME",
    "CN": "COMMON_NAME",
}


def split(dn):
    """``/DC=dodas/CN=x`` as [("DC", "dodas"), ("CN", "x")]. Raises ValueError; the values are not checked."""
    if not dn.startswith("/"):
        raise ValueError(f"a DN starts with a slash: {dn!r}")
    pairs = [tuple(part.partition("=")[::2]) for part in dn[1:].split("/")]
    for attribute, _value in pairs:
        if attribute not in ATTRIBUTES:
            raise ValueError(f"{dn!r}: attribute {attribute!r} is none of {' '.join(ATTRIBUTES)}")
    return pairs


def parse(dn):
    """The x509.Name of a DN in slash form. Raises ValueError for what is outside the allowed characters."""
    pairs = split(dn)
    for attribute, value in pairs:
        if not VALUE.fullmatch(value):
            raise ValueError(f"{dn!r}: {attribute} must be 1 to 64 letters, digits, _.:@- or inner spaces")
    return x509.Name([x509.NameAttribute(getattr(NameOID, ATTRIBUTES[a]), v) for a, v in pairs])


def slash(name):
    """The slash form of an x509.Name."""
    short = {getattr(NameOID, long): attribute for attribute, long in ATTRIBUTES.items()}
    return "".join(f"/{short.get(a.oid, a.oid.dotted_string)}={a.value}" for a in name)


def namespace(name):
    """The DN below which a CA of this name signs: its own without the last CN."""
    return slash(x509.Name(list(name.rdns)[:-1]))


def _canonical(name):
    """A name as OpenSSL compares it: UTF8String, lower case, spaces collapsed, without the outer SEQUENCE."""
    return b"".join(
        der.tlv(
            der.SET,
            *sorted(
                der.tlv(
                    der.SEQUENCE,
                    der.oid(attribute.oid.dotted_string),
                    der.tlv(der.UTF8, " ".join(attribute.value.split()).lower().encode()),
                )
                for attribute in rdn
            ),
        )
        for rdn in name.rdns
    )


def openssl_hashes(name):
    """[hash, old hash], eight hex digits each: ``openssl x509 -subject_hash`` and ``-subject_hash_old``."""
    digests = (
        hashlib.sha1(_canonical(name), usedforsecurity=False),
        hashlib.md5(name.public_bytes(), usedforsecurity=False),
    )
    return [digest.digest()[3::-1].hex() for digest in digests]

# SPDX-License-Identifier: Apache-2.0
"""Distinguished names: the slash form of the grid, and the hashes under which OpenSSL looks for a CA.

Names that are made here keep to a list of ASCII characters without ``/ = , + \\``: in the slash form a CN ``a/CN=b``
would read as two. Names of others, such as those of a site's CA, may hold anything.
"""

from __future__ import annotations

import hashlib
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import der
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import NameOID, x509

VALUE = re.compile(r"[A-Za-z0-9_.:@-](?:[A-Za-z0-9_.:@ -]{0,62}[A-Za-z0-9_.:@-])?")
ATTRIBUTES = {
    "C": "COUNTRY_NAME",
    "ST": "STATE_OR_PROVINCE_NAME",
    "L": "LOCALITY_NAME",
    "DC": "DOMAIN_COMPONENT",
    "O": "ORGANIZATION_NAME",
    "OU": "ORGANIZATIONAL_UNIT_NAME",
    "CN": "COMMON_NAME",
}
# As OpenSSL calls them, by which grid software knows them too.
SHORT = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.17": "postalCode",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
}
# Of strings, by tag: those that OpenSSL compares as text.
ENCODINGS = {
    0x0C: "utf-8",
    0x13: "latin-1",  # PrintableString
    0x14: "latin-1",  # T61String, as OpenSSL reads it
    0x16: "latin-1",  # IA5String
    0x1A: "latin-1",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
UPPER, LOWER = bytes(range(0x41, 0x5B)), bytes(range(0x61, 0x7B))


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
    """The slash form of an x509.Name as OpenSSL 3 writes it, and grid software with it: ``\\xHH`` for what is not
    printable ASCII, ``\\`` before slash and plus sign in values, plus signs between parts of one relative name."""
    return "".join(
        "/" + "+".join(f"{SHORT.get(oid, oid)}={''.join(map(_printable, value))}" for oid, _tag, value in rdn)
        for rdn in _attributes(name)
    )


def _printable(byte):
    text = chr(byte)
    if not 32 <= byte <= 126:
        return f"\\x{byte:02X}"
    return f"\\{text}" if text in "/+" else text


def namespace(name):
    """The DN (slash form) below which a CA of this name signs: its own without the last part.

    Raises ValueError where that is a DN that nothing may be signed below.
    """
    base = x509.Name(list(name.rdns)[:-1])
    text = slash(base)
    if not text or canonical(parse(text)) != canonical(base):
        raise ValueError(f"{slash(name)} is no name to sign below")
    return text


def canonical(name):
    """A name as OpenSSL compares it (bytes): texts in UTF-8, ASCII letters in lower case, spaces collapsed."""
    return b"".join(
        der.tlv(
            der.SET,
            *sorted(
                der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(*_comparable(tag, value))) for oid, tag, value in rdn
            ),
        )
        for rdn in _attributes(name)
    )


def openssl_hashes(name):
    """[hash, old hash], eight hex digits each: ``openssl x509 -subject_hash`` and ``-subject_hash_old``."""
    digests = (
        hashlib.sha1(canonical(name), usedforsecurity=False),
        hashlib.md5(name.public_bytes(), usedforsecurity=False),
    )
    return [digest.digest()[3::-1].hex() for digest in digests]


def _attributes(name):
    """[[(dotted oid, tag, bytes)]] of a name, by relative name, as they are encoded."""
    body, _rest = der.read(name.public_bytes(), der.SEQUENCE)
    for _tag, rdn in der.elements(body):
        found = []
        for _sequence, attribute in der.elements(rdn):
            (_oid, oid), (tag, value) = der.elements(attribute)
            found.append((der.dotted(oid), tag, value))
        yield found


def _comparable(tag, value):
    if tag not in ENCODINGS:
        return tag, value
    text = value.decode(ENCODINGS[tag]).encode()
    return der.UTF8, b" ".join(text.split()).translate(bytes.maketrans(UPPER, LOWER))

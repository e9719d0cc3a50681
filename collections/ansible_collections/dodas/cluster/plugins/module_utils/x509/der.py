# SPDX-License-Identifier: Apache-2.0
"""As much DER as names and proxies need (ITU-T X.690)."""

from __future__ import annotations

INTEGER, OCTETS, OID, UTF8, TIME, SEQUENCE, SET = 0x02, 0x04, 0x06, 0x0C, 0x18, 0x30, 0x31


def tlv(tag, *parts):
    """Tag, length, and the parts joined."""
    body = b"".join(parts)
    if len(body) < 128:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def integer(value):
    """A non-negative INTEGER."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted):
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray()
    for arc in (first * 40 + second, *rest):
        base128 = [arc & 0x7F]
        while arc := arc >> 7:
            base128.append(0x80 | arc & 0x7F)
        body += bytes(reversed(base128))
    return tlv(OID, bytes(body))


def dotted(body):
    """The text of an OBJECT IDENTIFIER's body."""
    arcs = [0]
    for byte in body:
        arcs[-1] = arcs[-1] << 7 | byte & 0x7F
        if byte < 0x80:
            arcs.append(0)
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:-1])))


def read(data, tag):
    """(body, what follows) of the element at the start of data. Raises ValueError."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("not the DER expected")
    start, length = 2, data[1]
    if length >= 128:
        start += length - 128
        length = int.from_bytes(data[2:start], "big")
        if not 3 <= start <= 6 or length < 128 or data[2] == 0:
            raise ValueError("a length that is not DER")
    if len(data) < start + length:
        raise ValueError("the DER is truncated")
    return data[start : start + length], data[start + length :]


def elements(data):
    """[(tag, body)] of the elements that data holds. Raises ValueError."""
    found = []
    while data:
        tag = data[0]
        body, data = read(data, tag)
        found.append((tag, body))
    return found

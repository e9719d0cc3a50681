# SPDX-License-Identifier: Apache-2.0
"""Reads tar: ustar, GNU's long names and sparse files, pax. Much faster than tarfile, and it believes nothing."""

import os
import struct
import zlib

from . import streams
from .errors import Error

ZERO = bytes(512)
HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")


class Limits:
    """What a layer may ask for. `$UDOCKER_LAYER_LIMITS` ("bytes=2000000000000,ratio=2000") overrides the defaults.

    bytes: of the tar, and of what its sparse files seem to hold; entries: files, folders and links;
    ratio: bytes of the tar to those of the compressed stream, once the tar has more than `small` bytes;
    name: bytes of a path; depth: folders in it; header: bytes of extended headers of one entry
    """

    __slots__ = ("bytes", "depth", "entries", "header", "name", "ratio", "small")

    def __init__(self, **values):
        self.bytes = 1 << 38
        self.entries = 10000000
        self.ratio = 500
        self.small = 1 << 30
        self.name = 4096
        self.depth = 256
        self.header = 1 << 20
        for word in os.environ.get("UDOCKER_LAYER_LIMITS", "").replace(",", " ").split():
            name, _equals, value = word.partition("=")
            if name not in self.__slots__ or not value.isdigit():
                raise Error(f"UDOCKER_LAYER_LIMITS: {word}: NAME=NUMBER with a NAME of {', '.join(self.__slots__)}")
            setattr(self, name, int(value))
        for name, value in values.items():
            setattr(self, name, value)

    def refuse(self, name, what):
        raise Error(
            f"{what}: more than the limit {name}={getattr(self, name)}; if you trust the image, raise it:"
            f" UDOCKER_LAYER_LIMITS={name}=NUMBER"
        )


class Plain:
    """The plain bytes of a stream, made and hashed in a thread beside whoever reads them.

    After the end, `digest` is their sha256. taken, given: bytes read, and bytes made of them.
    """

    def __init__(self, descriptor, limits=None):
        import hashlib
        import queue
        import threading

        self.descriptor = descriptor
        self.limits = limits or Limits()
        self.taken = self.given = 0
        self.hash = hashlib.sha256()
        self.queue = queue.Queue(8)
        self.stopped = False
        self.chunk = b""
        self.at = 0
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def digest(self):
        return "sha256:" + self.hash.hexdigest()

    def _work(self):
        try:
            for chunk in streams.decompressed(iter(lambda: os.read(self.descriptor, 1 << 17), b""), self):
                self.given += len(chunk)
                if self.given > self.limits.bytes:
                    self.limits.refuse("bytes", f"the layer has {self.given} bytes or more")
                if self.given > self.limits.small and self.given > self.taken * self.limits.ratio:
                    self.limits.refuse("ratio", f"{self.taken} bytes become {self.given} or more")
                self.hash.update(chunk)
                self.queue.put(chunk)
                if self.stopped:
                    return
            self.queue.put(b"")
        except Exception as exc:
            self.queue.put(exc)

    def close(self):
        """Let the thread end."""
        import queue

        self.stopped = True
        try:
            while True:
                self.queue.get_nowait()
        except queue.Empty:
            pass

    def more(self):
        """The next chunk, b"" at the end (and again when asked again)."""
        chunk = self.queue.get()
        if isinstance(chunk, Exception):
            raise chunk
        if not chunk:
            self.queue.put(b"")
        return chunk

    def block(self):
        """The next 512 bytes; b"" at the end."""
        at = self.at
        if len(self.chunk) - at >= 512:
            self.at = at + 512
            return self.chunk[at : at + 512]
        return self.read(512, True)

    def read(self, size, may_end=False):
        """The next `size` bytes."""
        block = b"".join(self.parts(size, may_end))
        if len(block) != size and block:
            raise Error("the tar ends too early")
        return block

    def parts(self, size, may_end=False):
        """The next `size` bytes, in parts."""
        while size:
            left = len(self.chunk) - self.at
            if not left:
                self.chunk, self.at = self.more(), 0
                left = len(self.chunk)
                if not left:
                    if may_end:
                        return
                    raise Error("the tar ends too early")
            taken = left if left < size else size
            yield memoryview(self.chunk)[self.at : self.at + taken]
            self.at += taken
            size -= taken

    def skip(self, size):
        for _part in self.parts(size):
            pass

    def finish(self):
        """Read what is left."""
        while self.more():
            pass


class Member:
    """An entry of a tar. sparse: [(offset, size)] of what the stream holds of a file that has `size` bytes."""

    __slots__ = (
        "device", "gid", "kind", "linkname", "mode", "mtime", "name", "size", "sparse", "stored", "uid", "xattrs",
    )  # fmt: skip


def members(stream, limits):
    """The entries of a tar, from a Plain; who takes them reads `stored` bytes of each from the stream, then padding."""
    name = link = pax = None
    extended = 0
    while True:
        block = stream.block()
        if not block or block == ZERO:
            return
        fields = HEADER.unpack(block)
        try:
            # Adler-32's lower half is 1 + the sum of all bytes, modulo 65521; the field itself counts as blanks.
            if ((zlib.adler32(block) & 0xFFFF) - 1 - sum(fields[6]) + 256 - int(fields[6].strip(b" \0"), 8)) % 65521:
                raise Error("the tar is damaged: a header's checksum is wrong")
            kind = fields[7]
            size = number(fields[4])
            if size < 0:
                raise ValueError("negative size")
            if kind in b"xgLK" and kind:
                extended += size
                if extended > limits.header:
                    limits.refuse("header", f"extended headers of {extended} bytes")
                content = stream.read(size) if size else b""
                stream.skip(-size % 512)
                if kind == b"x":
                    pax = parse_pax(content)
                elif kind == b"L":
                    name = content.split(b"\0", 1)[0]
                elif kind == b"K":
                    link = content.split(b"\0", 1)[0]
                continue
            member = Member()
            member.kind = kind
            member.size = member.stored = size
            member.name = fields[0].split(b"\0", 1)[0]
            if fields[9] == b"ustar\x0000" and fields[14][:1] != b"\0":
                member.name = fields[14].split(b"\0", 1)[0] + b"/" + member.name
            member.linkname = fields[8].split(b"\0", 1)[0]
            member.mode = number(fields[1]) & 0o7777
            member.uid = number(fields[2])
            member.gid = number(fields[3])
            member.mtime = number(fields[5]) * 1000000000
            member.sparse = None
            member.xattrs = None
            member.device = (number(fields[12]), number(fields[13])) if kind in b"34" else None
            if name is not None:
                member.name = name
            if link is not None:
                member.linkname = link
            if pax is not None:
                _apply_pax(member, pax)
            if kind == b"S":
                _old_sparse(stream, member, block, limits)
            elif pax is not None and b"GNU.sparse.major" in pax:
                _sparse_1(stream, member, pax)
        except ValueError as exc:
            raise Error(f"the tar is damaged: {exc}") from exc
        if not (0 <= member.uid < 0xFFFFFFFF and 0 <= member.gid < 0xFFFFFFFF):
            raise Error(f"{os.fsdecode(member.name)}: no owner has number {member.uid}:{member.gid}")
        if member.sparse is not None:
            _check_sparse(member, limits)
        name = link = pax = None
        extended = 0
        yield member


def number(field):
    """A number of a header: octal digits, or base 256 where the first bit is set. Raises ValueError."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else -1
    text = field.split(b"\0", 1)[0].strip()
    return int(text, 8) if text else 0


def parse_pax(content):
    """The records of a pax header, {key: value}; sparse maps of format 0.0 become one of 0.1. Raises ValueError."""
    found = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 12)
        length = int(content[at:space]) if space > at and content[at:space].isdigit() else 0
        if space < 0 or length <= space - at + 2 or content[at + length - 1 : at + length] != b"\n":
            raise ValueError("a pax record's length is wrong")
        key, equals, value = content[space + 1 : at + length - 1].partition(b"=")
        if not equals:
            raise ValueError("a pax record has no value")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            known = found.setdefault(b"GNU.sparse.map", [])
            known.append(value)
        else:
            found[key] = value
        at += length
    if isinstance(found.get(b"GNU.sparse.map"), list):
        found[b"GNU.sparse.map"] = b",".join(found[b"GNU.sparse.map"])
    return found


def _apply_pax(member, pax):
    for key, value in pax.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.linkname = value
        elif key == b"size":
            member.size = member.stored = _decimal(value)
        elif key == b"uid":
            member.uid = _decimal(value)
        elif key == b"gid":
            member.gid = _decimal(value)
        elif key == b"mtime":
            member.mtime = _nanoseconds(value)
        elif key.startswith(b"SCHILY.xattr."):
            member.xattrs = member.xattrs or {}
            member.xattrs[key[13:]] = value
    if b"GNU.sparse.name" in pax:
        member.name = pax[b"GNU.sparse.name"]
    if b"GNU.sparse.map" in pax:
        numbers = [_decimal(value) for value in pax[b"GNU.sparse.map"].split(b",") if value]
        member.sparse = _pairs(numbers)
        member.size = _decimal(pax.get(b"GNU.sparse.size", b""))


def _decimal(text):
    if not text.isdigit() or len(text) > 20:
        raise ValueError(f"{text[:40]!r} is no number")
    return int(text)


def _nanoseconds(text):
    whole, _point, part = text.partition(b".")
    digits = whole[1:] if whole[:1] == b"-" else whole
    if not (digits or part) or (digits and not digits.isdigit()) or (part and not part.isdigit()) or len(digits) > 20:
        raise ValueError(f"{text[:40]!r} is no time")
    value = int(digits or b"0") * 1000000000 + int((part + b"000000000")[:9])
    return -value if whole[:1] == b"-" else value


def _pairs(numbers):
    if len(numbers) % 2:
        raise ValueError("a sparse file's map is cut off")
    return [(numbers[at], numbers[at + 1]) for at in range(0, len(numbers), 2)]


def _old_sparse(stream, member, block, limits):
    numbers = []
    count = 0

    def take(part, slots):
        for slot in range(slots):
            entry = part[24 * slot : 24 * slot + 24]
            if entry[:12].strip(b"\0 ") or entry[12:].strip(b"\0 "):
                numbers.append(number(entry[:12]))
                numbers.append(number(entry[12:]))

    take(block[386:482], 4)
    more = block[482]
    while more:
        extension = stream.read(512)
        count += 512
        if count > limits.header:
            limits.refuse("header", "a sparse file's map")
        take(extension, 21)
        more = extension[504]
    member.size = number(block[483:495])
    member.sparse = _pairs(numbers)
    member.kind = b"0"


def _sparse_1(stream, member, pax):
    """Format 1.0: the map precedes the content, lines of decimal numbers in whole blocks."""
    text = b""
    left = member.stored

    def more():
        nonlocal text, left
        if left < 512:
            raise ValueError("a sparse file's map is cut off")
        text += stream.read(512)
        left -= 512

    def take(at):
        while True:
            end = text.find(b"\n", at)
            if end >= 0:
                return _decimal(text[at:end]), end + 1
            if len(text) - at > 64:
                raise ValueError("a sparse file's map is damaged")
            more()

    count, at = take(0)
    if count * 4 > left + 512:
        raise ValueError("a sparse file's map is longer than the file")
    numbers = []
    for _number in range(2 * count):
        value, at = take(at)
        numbers.append(value)
        if at > 1 << 16:  # what was read need not be copied again and again
            text, at = text[at:], 0
    member.sparse = _pairs(numbers)
    member.stored = left
    member.size = _decimal(pax.get(b"GNU.sparse.realsize", b""))


def _check_sparse(member, limits):
    end = total = 0
    for offset, size in member.sparse:
        if offset < end or size < 0 or offset + size > member.size:
            raise Error(f"{os.fsdecode(member.name)}: the map of the sparse file is wrong")
        end = offset + size
        total += size
    if total != member.stored:
        raise Error(f"{os.fsdecode(member.name)}: the map of the sparse file is not that of its content")
    if member.size > limits.bytes:
        limits.refuse("bytes", f"{os.fsdecode(member.name)} has {member.size} bytes")


# Headers to write


def header(name, kind, size=0, mode=0o644, uid=0, gid=0, mtime=0, linkname=b"", xattrs=None):
    """The header of an entry, ustar, with a pax header before it where that is needed.

    name, linkname: bytes; kind: b"0" file, b"1" hard link, b"2" link, b"5" folder, b"6" fifo; mtime: whole seconds
    """
    pax = {}
    short, prefix = name, b""
    if len(name) > 100:
        at = name.rfind(b"/", 0, 156)
        if at > 0 and len(name) - at - 1 <= 100:
            prefix, short = name[:at], name[at + 1 :]
        else:
            pax[b"path"] = name
            short = name[:100]
    if len(linkname) > 100:
        pax[b"linkpath"] = linkname
    numbers = []
    for key, value, digits in ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11), (b"mtime", mtime, 11)):
        if not 0 <= value < 8**digits:
            pax[key] = b"%d" % value
            value = 0
        numbers.append(b"%0*o\0" % (digits, value))
    for key, value in sorted((xattrs or {}).items()):
        pax[b"SCHILY.xattr." + os.fsencode(key)] = value
    block = _block(short, b"%07o\0" % mode, numbers, kind, linkname[:100], prefix)
    if not pax:
        return block
    records = b"".join(_pax_record(key, value) for key, value in sorted(pax.items()))
    plain = [b"0000000\0", b"0000000\0", b"%011o\0" % len(records), b"00000000000\0"]
    base = name.rstrip(b"/").rpartition(b"/")[2][:80]
    return _block(b"PaxHeaders/" + base, b"0000644\0", plain, b"x", b"", b"") + padded(records) + block


def padded(content):
    return content + bytes(-len(content) % 512)


def _block(name, mode, numbers, kind, linkname, prefix):
    uid, gid, size, mtime = numbers
    fields = [name, mode, uid, gid, size, mtime, b" " * 8, kind, linkname, b"ustar\x0000", b"", b"",
              b"0000000\0", b"0000000\0", prefix]  # fmt: skip
    block = bytearray(HEADER.pack(*fields))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_record(key, value):
    content = b" " + key + b"=" + value + b"\n"
    length = len(content) + 1
    while len(content) + len(str(length)) != length:
        length = len(content) + len(str(length))
    return b"%d" % length + content

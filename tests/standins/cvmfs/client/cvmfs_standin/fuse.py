# SPDX-License-Identifier: Apache-2.0
"""A read-only file system by the kernel's FUSE protocol (version 7.31), as far as a tree of files needs it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct

READ_ONLY, NO_SUID, NO_DEVICES = 1, 2, 4  # flags of mount(2)
LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
HEADER = struct.Struct("<IIQQIIII")
KEPT = 1  # seconds that the kernel may keep what it was told
BUFFER = 1 << 18


def mount(point, device):
    """Mount the open `device` (/dev/fuse); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    words = (b"cvmfs2", os.fsencode(point), b"fuse")
    if libc.mount(*words, ctypes.c_ulong(READ_ONLY | NO_SUID | NO_DEVICES), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Server:
    """Answers the kernel for `tree`, which has entry, children, content, attributes and space; see daemon.py.

    What raises OSError in it becomes an error of the caller.
    """

    def __init__(self, device, tree):
        self.device, self.tree = device, tree
        self.paths, self.numbers = {1: ""}, {"": 1}

    def serve(self):
        """Answer until it is unmounted."""
        while True:
            try:
                request = os.read(self.device, BUFFER)
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return
                if exc.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            self.answer(request)

    def answer(self, request):
        _length, code, unique, node, *_ids = HEADER.unpack_from(request)
        if code in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        try:
            data, error = self.handle(code, self.paths.get(node), request[HEADER.size :]), 0
        except OSError as exc:
            data, error = b"", -(exc.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # who asked has gone
            os.write(self.device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)

    def handle(self, code, path, body):
        """What answers a request, as bytes; raises OSError."""
        if code == INIT:
            _major, _minor, ahead, _flags = struct.unpack_from("<IIII", body)
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, ahead, 0, 12, 9, 1 << 16, 1, 0, 0, 0)
        if path is None:
            raise OSError(errno.ESTALE, "unknown node")
        if code == LOOKUP:
            inside = f"{path}/{os.fsdecode(body.rstrip(bytes(1)))}"
            attributes = self._attributes(inside)
            return struct.pack("<QQQQII", self._number(inside), 0, KEPT, KEPT, 0, 0) + attributes
        if code == GETATTR:
            return struct.pack("<QII", KEPT, 0, 0) + self._attributes(path)
        if code == READLINK:
            return os.fsencode(self._entry(path)[4])
        if code in (OPEN, OPENDIR):
            if code == OPEN:
                self.tree.content(path)  # what cannot be had is said when it is opened
            return struct.pack("<QII", 0, 0, 0)
        if code == READ:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            return self.tree.content(path)[offset : offset + size]
        if code == READDIR:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            return self._listing(path, offset, size)
        if code == STATFS:
            used, free = self.tree.space()
            total, free = (used + free) // 4096, free // 4096
            return struct.pack("<QQQQQIIII24x", total, free, free, 0, 0, 4096, 255, 4096, 0)
        if code == GETXATTR:
            size = struct.unpack_from("<II", body)[0]
            name = body[8:].rstrip(bytes(1)).decode()
            found = self.tree.attributes(path).get(name)
            if found is None:
                raise OSError(errno.ENODATA, "no such attribute")
            return _sized(found.encode(), size)
        if code == LISTXATTR:
            size = struct.unpack_from("<II", body)[0]
            return _sized(b"".join(name.encode() + bytes(1) for name in self.tree.attributes(path)), size)
        if code in (RELEASE, RELEASEDIR, FLUSH, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not done here")

    def _number(self, path):
        number = self.numbers.setdefault(path, len(self.numbers) + 1)
        self.paths[number] = path
        return number

    def _entry(self, path):
        found = self.tree.entry(path)
        if found is None:
            raise OSError(errno.ENOENT, "no such file")
        return found

    def _attributes(self, path):
        _digest, size, mode, changed, link = self._entry(path)
        size = len(os.fsencode(link)) if link else size
        owner, group = self.tree.owner
        times = (changed, changed, changed, 0, 0, 0)
        first = (self._number(path), size, -(-size // 512))
        return struct.pack("<QQQQQQIIIIIIIIII", *first, *times, mode, 1, owner, group, 0, 4096, 0)

    def _listing(self, path, offset, size):
        data = b""
        for position, (name, entry) in enumerate(self.tree.children(path)):
            if position < offset:
                continue
            raw = os.fsencode(name)
            number = self._number(f"{path}/{name}")
            one = struct.pack("<QQII", number, position + 1, len(raw), stat.S_IFMT(entry[2]) >> 12) + raw
            one += bytes(-len(one) % 8)
            if len(data) + len(one) > size:
                break
            data += one
        return data


def _sized(value, size):
    """An attribute's value, or how long it is where that was asked for."""
    if size == 0:
        return struct.pack("<II", len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "too long")
    return value

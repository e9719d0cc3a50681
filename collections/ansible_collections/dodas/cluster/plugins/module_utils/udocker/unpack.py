# SPDX-License-Identifier: Apache-2.0
"""Layers: from the tar stream of an image to a folder of the store, once for all containers.

Whatever an image says, nothing is written outside of the layer's folder: each folder on the way to a name is opened
without following links, a name with `..` is refused, and what stands in the way (a link, a file) is replaced.
Whiteouts take the form that overlay reads: a character device 0:0, and user.overlay.opaque on a folder. Where the file
system or the kernel has neither, they stay the files `.wh.NAME` and `.wh..wh..opq`.

Devices are recorded and not made. Of `dev` at the top, which engines mount anew, only the folder is kept.

What a layer holds is written beside it, `layers/HEX.json.z`: for `verify`, and for owners that the file system has not
got. Entries are [path, kind, mode, uid, gid, size, mtime in ns, more]; kind is f, d, l, p, w (whiteout), c, b; more is
the CRC-32 of a file, a link's target, a device's [major, minor], and for a folder whether it is opaque.
"""

import errno
import os
import stat
import zlib

from . import streams, tar
from .errors import Error
from .trees import remove, remove_at

OWNER = "user.containers.override_stat"  # "uid:gid:mode", as fuse-overlayfs and containers/storage write it
OPAQUE = "user.overlay.opaque"
RESERVED = ("user.overlay.", "user.containers.", "user.fuseoverlayfs.")
WHITEOUT = b".wh."
# Folders that a layer uses and does not hold: overlay shows those of the topmost layer, and so /tmp must be right.
IMPLIED = {b"tmp": 0o1777, b"var/tmp": 0o1777, b"root": 0o700}
# Said of owners, attributes and devices that a file system or a namespace has not got.
NO_SUCH = (
    errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EINVAL, errno.ENOSYS,
)  # fmt: skip
OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


def layer(store, source, diff_id=None, limits=None):
    """Unpack a layer into the store, and return its diff-id ("sha256:..." of the tar).

    source: path, descriptor, or object with read(size), of a tar, plain or compressed with gzip, bzip2, xz or zstd.
    It is read to its end. diff_id: what the tar must hash to; the layer appears in the store only if it does.
    Raises Error: the stream is damaged, is hostile, or there is no room.
    """
    # All that the child imports: if another thread were just importing it, the child would wait for it forever.
    import hashlib  # noqa: F401
    import json  # noqa: F401
    import queue  # noqa: F401
    import threading  # noqa: F401

    from . import userns

    limits = limits or tar.Limits()
    # Programs in layers have setuid bits: nobody else gets at them.
    os.makedirs(store.path("layers"), 0o700, exist_ok=True)
    if os.stat(store.path("layers")).st_mode & 0o77:
        os.chmod(store.path("layers"), 0o700)
    with streams.opened(source) as descriptor, store.temporary() as folder:
        try:
            return userns.call(_layer, store, descriptor, folder, diff_id, limits, keep=[descriptor])
        finally:
            # Files of other owners, and folders without rights, are removed by who may.
            remove(os.path.join(folder, "layer"))


def summary(store, diff_id):
    """What a layer holds, {path as bytes: entry}; None where that was not recorded."""
    import json

    try:
        with open(store.layer(diff_id) + ".json.z", "rb") as source:
            entries = json.loads(zlib.decompress(source.read()))
    except FileNotFoundError:
        return None
    except (ValueError, zlib.error) as exc:
        raise Error(f"{store.layer(diff_id)}.json.z is damaged ({exc}): remove it, and pull the image again") from exc
    return {os.fsencode(entry[0]): entry for entry in entries}


def is_whiteout(entry):
    """Whether an os.DirEntry is a whiteout as overlay has it."""
    if entry.is_symlink() or entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
        return False
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def ids(kind):
    """The numbers that may own files here, as ranges: kind is "uid" or "gid"; none where nothing may be given away."""
    if os.geteuid():
        return []
    with open(f"/proc/self/{kind}_map", encoding="ascii") as source:
        lines = [[int(word) for word in line.split()] for line in source]
    return [range(first, first + count) for first, _outside, count in lines]


def _layer(store, descriptor, folder, diff_id, limits):
    import json

    top = os.path.join(folder, "layer")
    os.mkdir(top, 0o755)
    stream = tar.Plain(descriptor, limits)
    try:
        writer = Writer(top, stream, limits)
        try:
            writer.run()
        finally:
            writer.close()
        stream.finish()
        if not stream.given:
            raise Error("the layer is an empty file")
    finally:
        stream.close()
    if diff_id and stream.digest != diff_id:
        raise Error(f"the layer is not what the image says: {stream.digest} instead of {diff_id}")
    entries = [[os.fsdecode(path), *record] for path, record in sorted(writer.records.items())]
    target = store.layer(stream.digest)
    written = os.path.join(folder, "summary")
    with open(written, "wb") as output:
        output.write(zlib.compress(json.dumps(entries).encode("ascii"), 1))
    if not store.has_layer(stream.digest):
        os.replace(written, target + ".json.z")
        store.keep_layer(top, stream.digest)
    return stream.digest


class Writer:
    """Writes the entries of a tar stream below the folder `top`, which is empty.

    records: {path: [kind, mode, uid, gid, size, mtime, more]}, see the module's description
    """

    def __init__(self, top, stream, limits):
        self.stream = stream
        self.limits = limits
        self.top = os.open(top, os.O_RDONLY | os.O_DIRECTORY | OPEN)
        self.folders = {b"": self.top}  # descriptors of folders
        self.records = {b"": ["d", 0o755, 0, 0, 0, 0, False]}
        self.uids = ids("uid")
        self.gids = ids("gid")
        self.root = os.geteuid() == 0
        self.apparent = 0
        self.replaced = 0

    def close(self):
        self._forget()
        os.close(self.top)

    def run(self):
        stream, limits = self.stream, self.limits
        count = 0
        name = b""
        try:
            for member in tar.members(stream, limits):
                count += 1
                if count > limits.entries:
                    limits.refuse("entries", "the layer's files")
                name = member.name
                self._write(member)
            name = b""
            self._finish_folders()
        except OSError as exc:
            raise Error(f"{os.fsdecode(name)[:200] or 'the layer'}: {os.strerror(exc.errno)}") from exc

    def _write(self, member):
        kind = member.kind
        path = self._path(member.name)
        base = path[path.rfind(b"/") + 1 :]
        if kind in b"0\x007S":
            left = member.stored
            if member.name.endswith(b"/"):
                kind = b"5"
        else:
            left = 0
        if path.startswith(b"dev/"):
            pass
        elif base.startswith(WHITEOUT):
            self._whiteout(path, base)
        elif kind in b"0\x007S":
            if not path:
                raise Error("the layer's top is a file")
            self._file(path, base, member)
            left = 0
        elif kind == b"5":
            self._folder(path, member)
        elif kind in b"12346":
            self._special(path, base, member)
        elif kind not in b"VDg":
            raise Error(f"{os.fsdecode(path)[:200]}: entries of type {kind!r} are unknown")
        if left:
            self.stream.skip(left)
        if member.stored % 512 and kind in b"0\x007S":
            self.stream.skip(-member.stored % 512)
        elif left % 512:
            self.stream.skip(-left % 512)

    def _path(self, name):
        """A name as it is below the top: without `.`, doubled and leading slashes."""
        limits = self.limits
        if len(name) > limits.name:
            limits.refuse("name", f"{os.fsdecode(name[:80])}... has {len(name)} bytes")
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise Error(f"{os.fsdecode(name)[:200]}: leads outside of the layer")
        if len(parts) > limits.depth:
            limits.refuse("depth", f"{os.fsdecode(name[:80])}... is {len(parts)} folders deep")
        if b"\0" in name:
            raise Error(f"{os.fsdecode(name)[:200]!r}: a name with a zero byte")
        if WHITEOUT in name:
            for part in parts[:-1]:
                if part.startswith(WHITEOUT):
                    raise Error(f"{os.fsdecode(name)[:200]}: no folder can be named so")
        return b"/".join(parts)

    # Folders

    def _open(self, path):
        """The descriptor of a folder; what is missing is made, what is no folder is replaced."""
        found = self.folders.get(path)
        if found is not None:
            return found
        if len(self.folders) > self.limits.depth:
            self._forget()
        parent_path, _slash, base = path.rpartition(b"/")
        parent = self._open(parent_path)
        record = self.records.get(path)
        if record is None or record[0] != "d":
            hides = record is not None and record[0] == "w"
            if record is not None:
                self._clear(parent, path, base)
            os.mkdir(base, 0o755, dir_fd=parent)
            record = self.records[path] = ["d", IMPLIED.get(path, 0o755), 0, 0, 0, 0, False]
            if hides:
                self._hide(path)
        found = os.open(base, os.O_RDONLY | os.O_DIRECTORY | OPEN, dir_fd=parent)
        self.folders[path] = found
        return found

    def _forget(self):
        for path, descriptor in self.folders.items():
            if path:
                os.close(descriptor)
        self.folders = {b"": self.top}

    def _clear(self, parent, path, base):
        """Make room at a path of this layer."""
        record = self.records.get(path)
        if record is None:
            return
        if record[0] == "d":
            self.replaced += 1
            if self.replaced > 1000:  # each takes a look at all that was unpacked
                raise Error("the layer has more than 1000 folders and files of the same name")
            self._forget()
            parent = self._open(path.rpartition(b"/")[0])
            below = path + b"/"
            for child in [child for child in self.records if child.startswith(below)]:
                del self.records[child]
        remove_at(parent, base)
        if record[0] == "w":
            remove_at(parent, WHITEOUT + base)
        self.records.pop(path, None)

    def _folder(self, path, member):
        self._open(path)
        record = self.records[path]
        record[1:6] = [member.mode, member.uid, member.gid, 0, _time(member.mtime)]
        if member.xattrs:
            self._xattrs(self._open(path), member.xattrs)

    def _finish_folders(self):
        # Deepest first: rights that are taken away from a folder would hide those in it.
        folders = [(path.count(b"/"), path) for path, record in self.records.items() if record[0] == "d"]
        for _depth, path in sorted(folders, reverse=True):
            record = self.records[path]
            descriptor = self._open(path)
            self._owned(descriptor, record, 0o700)
            os.utime(descriptor, ns=(record[5], record[5]))

    # Whiteouts

    def _whiteout(self, path, base):
        parent_path = path.rpartition(b"/")[0]
        parent = self._open(parent_path)
        if base == b".wh..wh..opq":
            self._hide(parent_path)
            return
        if base.startswith(b".wh..wh."):
            return  # of aufs, means nothing here
        name = base[len(WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise Error(f"{os.fsdecode(path)[:200]}: a whiteout of nothing")
        target = parent_path + b"/" + name if parent_path else name
        record = self.records.get(target)
        if record is not None:
            # A whiteout is about lower layers: what this one has stays.
            if record[0] == "d":
                self._hide(target)
            return
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        except OSError as exc:
            if exc.errno not in NO_SUCH:
                raise
            os.close(os.open(base, os.O_WRONLY | os.O_CREAT | OPEN, 0o600, dir_fd=parent))
        self.records[target] = ["w", 0, 0, 0, 0, 0, None]

    def _hide(self, path):
        folder = self._open(path)
        try:
            os.setxattr(folder, OPAQUE, b"y")
        except OSError as exc:
            if exc.errno not in NO_SUCH:
                raise
            os.close(os.open(b".wh..wh..opq", os.O_WRONLY | os.O_CREAT | OPEN, 0o600, dir_fd=folder))
        self.records[path][6] = True

    # Files

    def _file(self, path, base, member):
        slash = path.rfind(b"/")
        parent = self._open(path[:slash] if slash > 0 else b"")
        if path in self.records:
            self._clear(parent, path, base)
            parent = self._open(path[:slash] if slash > 0 else b"")
        mode = member.mode
        descriptor = os.open(base, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN, 0o600, dir_fd=parent)
        try:
            crc = 0
            if member.sparse is not None:
                crc = self._sparse(descriptor, member)
            elif member.size:
                for part in self.stream.parts(member.size):
                    crc = zlib.crc32(part, crc)
                    written = os.write(descriptor, part)
                    while written < len(part):
                        written += os.write(descriptor, part[written:])
            when = _time(member.mtime)
            record = ["f", mode, member.uid, member.gid, member.size, when, crc]
            if member.xattrs:
                self._xattrs(descriptor, member.xattrs, ("user.",))
            self._owned(descriptor, record, 0o400)
            if member.xattrs:
                self._xattrs(descriptor, member.xattrs, ("security.capability",))  # a change of the owner drops it
            os.utime(descriptor, ns=(when, when))
        finally:
            os.close(descriptor)
        self.records[path] = record

    def _sparse(self, descriptor, member):
        self.apparent += member.size
        if self.apparent > self.limits.bytes:
            self.limits.refuse("bytes", f"sparse files of {self.apparent} bytes")
        crc = 0
        for offset, size in member.sparse:
            os.lseek(descriptor, offset, os.SEEK_SET)
            for part in self.stream.parts(size):
                crc = zlib.crc32(part, crc)
                while part:
                    part = part[os.write(descriptor, part) :]
        os.ftruncate(descriptor, member.size)
        # What verify calculates is of the file as it is read: holes count.
        return None if member.size != member.stored else crc

    def _special(self, path, base, member):
        """Links, fifos, devices."""
        if not path:
            raise Error("the layer's top is no folder")
        record = None
        if member.kind == b"1":
            record, source = self._link_source(path, member)
            if source is None:
                return
        parent = self._open(path.rpartition(b"/")[0])
        if path in self.records:
            self._clear(parent, path, base)
            parent = self._open(path.rpartition(b"/")[0])
        when = _time(member.mtime)
        owner = [member.uid, member.gid]
        if member.kind == b"1":
            # What was to be linked to may have gone with what was in the way.
            above, name = self._open(source.rpartition(b"/")[0]), source.rpartition(b"/")[2]
            parent = self._open(path.rpartition(b"/")[0])
            if source not in self.records:
                raise Error(f"{os.fsdecode(path)[:200]}: is linked to what it replaces")
            os.link(name, base, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
            self.records[path] = record
            return
        if member.kind == b"2":
            if not member.linkname or b"\0" in member.linkname or len(member.linkname) > self.limits.name:
                raise Error(f"{os.fsdecode(path)[:200]}: no link can lead to {os.fsdecode(member.linkname)[:80]!r}")
            os.symlink(member.linkname, base, dir_fd=parent)
            record = ["l", 0o777, *owner, len(member.linkname), when, os.fsdecode(member.linkname)]
        elif member.kind == b"6":
            os.mkfifo(base, 0o600, dir_fd=parent)
            os.chmod(base, member.mode, dir_fd=parent)
            record = ["p", member.mode, *owner, 0, when, None]
        else:
            kind = "c" if member.kind == b"3" else "b"
            self.records[path] = [kind, member.mode, *owner, 0, when, list(member.device)]
            return
        if (member.uid or member.gid) and _may_own(self.uids, member.uid) and _may_own(self.gids, member.gid):
            try:
                os.chown(base, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
            except OSError as exc:
                if exc.errno not in NO_SUCH:
                    raise
        os.utime(base, ns=(when, when), dir_fd=parent, follow_symlinks=False)
        self.records[path] = record

    def _link_source(self, path, member):
        source = self._path(member.linkname)
        record = self.records.get(source)
        if record is None or record[0] not in "flp":
            raise Error(
                f"{os.fsdecode(path)[:200]}: is a hard link to {os.fsdecode(member.linkname)[:200]},"
                " which is no file of the layer"
            )
        return record, None if source == path else source

    # Owners, modes, attributes

    def _owned(self, descriptor, record, needed):
        """Give an open file or folder its owner and mode; what cannot be had is recorded in an attribute."""
        _kind, mode, uid, gid = record[:4]
        exact = _may_own(self.uids, uid) and _may_own(self.gids, gid)
        real = mode if self.root else mode | needed  # who is not root keeps the right to read what is theirs
        if exact and (uid or gid):
            try:
                os.fchown(descriptor, uid, gid)
            except OSError as exc:  # root of a container that may not do this
                if exc.errno not in NO_SUCH:
                    raise
                exact = False
        if real != mode or (not exact and (uid or gid)):
            try:
                os.setxattr(descriptor, OWNER, f"{uid}:{gid}:0{mode:o}".encode())
            except OSError as exc:
                if exc.errno not in NO_SUCH:
                    raise  # recorded beside the layer all the same
        os.fchmod(descriptor, real)  # last: attributes need the right to write

    @staticmethod
    def _xattrs(descriptor, xattrs, kinds=("user.", "security.capability")):
        for name, value in xattrs.items():
            name = name.decode("utf-8", "surrogateescape")
            # Those of overlay and of other engines say what a file is: an image has no say in that.
            if not name.startswith(kinds) or name.startswith(RESERVED):
                continue
            try:
                os.setxattr(descriptor, name, value)
            except (OSError, ValueError) as exc:
                if getattr(exc, "errno", errno.EINVAL) not in NO_SUCH:
                    raise


def _time(value):
    """A time, in nanoseconds, that a file system can have."""
    return min(max(value, -(1 << 31) * 1000000000), ((1 << 34) - 1) * 1000000000)


def _may_own(ranges, number):
    return any(number in part for part in ranges)

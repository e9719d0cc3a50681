# SPDX-License-Identifier: Apache-2.0
"""New layers: a tar that is made here becomes a compressed blob and an unpacked layer, in one pass."""

import os
import stat

from .errors import Error


def from_tar(store, write):
    """Keep the layer whose tar write(stream) makes; returns it as Image.layers has it.

    write runs in a user namespace, where there is one, and sees the owners that containers have. Raises Error.
    """
    from . import unpack

    with store.temporary() as folder:
        path = os.path.join(folder, "blob")
        with _Made(write, path) as made:
            diff_id = unpack.layer(store, made.source)
        store.keep_blob(path, made.digest)
        return {"digest": made.digest, "diff_id": diff_id, "size": os.path.getsize(store.blob(made.digest))}


def changes(stream, top, layers=None):
    """Write the tar of a layer: all of folder `top`, which overlay wrote on layers, or how it differs from `layers`."""
    import tarfile

    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as archive:
        _Changes(archive, top, layers).folder((), top)


class _Changes:
    def __init__(self, archive, top, layers):
        from .view import View

        self.archive = archive
        self.top = top
        self.below = View(layers) if layers is not None else None
        self.links = {}
        self.written = set()

    def folder(self, parts, path):
        """Write what is in a folder."""
        from .unpack import is_opaque

        if self.below is None and parts and is_opaque(path):
            self._whiteout((*parts, ".wh..wh..opq"))
        names = os.listdir(path)
        for name in sorted(names):
            self._entry((*parts, name), os.path.join(path, name))
        if self.below is not None:
            for name in self.below.names(parts):
                if name not in names:
                    self._above((*parts, name))
                    self._whiteout((*parts, name))

    def _entry(self, parts, path):
        from .view import Entry

        status = os.lstat(path)
        if self.below is None and stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            self._whiteout(parts)
            return
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO):
            return  # sockets end with who made them, and devices are the machine's
        entry = Entry(path, status).owned()
        known = self.below.entry(parts) if self.below else None
        if known is None or entry.is_folder != known.is_folder or not _same(entry, known.owned()):
            self._above(parts)
            self._write(parts, entry)
            if entry.is_folder and known and not known.is_folder:
                known = None
        if entry.is_folder:
            self.folder(parts, path)

    def _above(self, parts):
        """Folders come before what is in them."""
        from .view import Entry

        for count in range(1, len(parts)):
            if parts[:count] not in self.written:
                path = os.path.join(self.top, *parts[:count])
                self._write(parts[:count], Entry(path, os.lstat(path)).owned())

    def _info(self, parts):
        import tarfile

        return tarfile.TarInfo("/".join(parts))

    def _whiteout(self, parts):
        name = parts[-1] if parts[-1].startswith(".wh..wh.") else ".wh." + parts[-1]
        self.archive.addfile(self._info((*parts[:-1], name)))

    def _write(self, parts, entry):
        import tarfile

        if entry.is_folder:
            if parts in self.written:
                return
            self.written.add(parts)
        info = self._info(parts)
        info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
        if entry.inode:
            first = self.links.setdefault(entry.inode, info.name)
            if first != info.name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                self.archive.addfile(info)
                return
        if entry.is_file:
            info.size = entry.size
            _capabilities(entry.path, info)
            with entry.open() as source:
                self.archive.addfile(info, source)
            return
        if entry.target is not None:
            info.type, info.linkname = tarfile.SYMTYPE, entry.target
        else:
            info.type = tarfile.DIRTYPE if entry.is_folder else tarfile.FIFOTYPE
        self.archive.addfile(info)


def _capabilities(path, info):
    try:
        value = os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return
    info.pax_headers["SCHILY.xattr.security.capability"] = value.decode("utf-8", "surrogateescape")


def _same(entry, known):
    if entry.is_folder:
        return (entry.mode, entry.uid, entry.gid) == (known.mode, known.uid, known.gid)
    names = ("kind", "mode", "uid", "gid", "target", "size", "mtime")
    return all(getattr(entry, name) == getattr(known, name) for name in names)


class _Made:
    """The tar as descriptor `source`; at its end it is also, compressed, in file `path`, and `digest` is of that."""

    def __init__(self, write, path):
        self.write = write
        self.path = path
        self.digest = None

    def __enter__(self):
        from . import userns

        self.source, target = os.pipe()
        self.report, report = os.pipe()

        def make():
            try:
                os.close(self.source)
                stream = _Both(target, self.path)
                self.write(stream)
                message = "." + stream.close()
            except BaseException as exc:
                message = "!" + (str(exc) if isinstance(exc, Error) else f"{type(exc).__name__}: {exc}")
            os.write(report, message.encode("utf-8", "replace")[:4000])

        try:
            self.pid = userns.spawn(0, make)[0]
        except userns.Denied:
            self.pid = os.fork()
            if not self.pid:
                try:
                    make()
                finally:
                    os._exit(0)
        os.close(target)
        os.close(report)
        return self

    def __exit__(self, kind, _exception, _traceback):
        os.close(self.source)
        with open(self.report, "rb") as report:
            message = report.read().decode("utf-8", "replace")
        os.waitpid(self.pid, 0)
        if message.startswith("."):
            self.digest = message[1:]
        elif kind is None or issubclass(kind, Error):
            raise Error(message[1:] or "what wrote the layer was killed")


class _Both:
    """Writes to a descriptor, and compressed to a file."""

    def __init__(self, target, path):
        import hashlib
        import zlib

        self.target = target
        self.blob = open(path, "wb")  # noqa: SIM115 - closed by close
        # No time in its header: the same files make the same bytes.
        self.compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
        self.hash = hashlib.sha256()

    def write(self, content):
        piece = memoryview(content)
        while piece:
            piece = piece[os.write(self.target, piece) :]
        self._keep(self.compressor.compress(content))
        return len(content)

    def _keep(self, content):
        self.hash.update(content)
        self.blob.write(content)

    def close(self):
        """Returns the digest of what is in the file."""
        self._keep(self.compressor.flush())
        self.blob.close()
        return "sha256:" + self.hash.hexdigest()

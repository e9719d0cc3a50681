# SPDX-License-Identifier: Apache-2.0
"""Containers as tars: what one has changed as a layer, or all of its files; and what it has changed as a list.

Files are reached through descriptors of the folders that they are in, and no link is followed: the container may run
meanwhile, and be hostile. The same files make the same tar: names are sorted, times are in whole seconds.
"""

import errno
import os
import stat

from . import tar, trees, unpack
from .errors import Error

CHUNK = 1 << 20
# How a file or a folder cannot be opened that was removed, or became another thing, since it was looked at.
REPLACED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What engines put into a container for as long as it runs: no change of its own.
OURS = frozenset(
    tuple(path.split("/"))
    for path in (
        "dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ".dockerenv",
        "run/.containerenv", "run/secrets",
    )
)  # fmt: skip
MOUNTED = frozenset(("dev", "proc", "sys"))
EMPTY = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)


def diff(container):
    """[(kind, path)] of what a container has changed, sorted by path; kind is A, C or D (added, changed, deleted)."""
    from . import userns

    return userns.call(_diff, container.layers, *top(container.directory))


def layer(container):
    """Keep what a container has changed as a layer of the store: {"digest", "diff_id", "size"}."""
    from . import layers

    lower = container.layers
    folder, whole = top(container.directory)
    return layers.from_tar(container.store, lambda stream: write_changes(stream, lower, folder, whole))


def export(container, descriptor, below=""):
    """Write all files of a container to a descriptor, as a tar; below: the folder that they are in there."""
    from . import userns

    return userns.call(_export, container.layers, *top(container.directory), descriptor, below, keep=[descriptor])


def top(directory):
    """(folder, whole): where the container in a folder of the store writes to; whole: all of its files are there."""
    upper = os.path.join(directory, "upper")
    if os.path.isdir(upper):
        return upper, False
    return os.path.realpath(os.path.join(directory, "ROOT")), True


def _export(layers, folder, whole, descriptor, below):
    with open(descriptor, "wb", buffering=0, closefd=False) as stream:
        write_tree(stream, [folder] if whole else [*layers, folder], (below,) if below else ())


# What has changed


def _diff(layers, folder, whole):
    found = {}
    for kind, parts, _entry in changes(layers, folder, whole):
        if kind == "=":
            continue
        if kind in "AD":
            parent = parts[:-1]
            if parent and parent not in found:
                found[parent] = "C"
        found[parts] = "D" if kind == "O" else kind
    return [(found[parts], "/" + "/".join(parts)) for parts in sorted(found, key="/".join)]


def changes(layers, folder, whole):
    """(kind, parts, Found) of what is other in `folder` (see top) than in the layers, folders before what is in them.

    kind: A added, C changed, D deleted (no Found), = a folder on the way to changes, O a folder that hides the one
    below it
    """
    from .view import View

    yield from (_in_tree if whole else _in_upper)(View(layers), _Walk([folder]))


def _in_upper(view, walk):
    hidden = set()  # folders below which lower layers do not show
    for parts, found in walk:
        if parts[0] in MOUNTED or (parts in OURS and not (found and found.is_folder)):
            continue
        if parts in OURS:
            yield "=", parts, found
            continue
        covered = any(parts[:count] in hidden for count in range(1, len(parts)))
        lower = None if covered else view.entry(parts)
        if found is None:
            if lower:
                yield "D", parts, None
            continue
        if not found.is_folder:
            yield "C" if lower else "A", parts, found
            continue
        opaque = found.opaque
        if opaque or not lower or not lower.is_folder:
            hidden.add(parts)
        if not lower:
            yield "A", parts, found
        elif not lower.is_folder:
            yield "O" if opaque else "C", parts, found
        elif opaque:
            yield "O", parts, found
        else:
            yield "=" if _same(found, lower) else "C", parts, found


def _in_tree(view, walk):
    """The tree has all files: those that are as in the layers are left out."""
    unsaid = []  # folders that are as they were, as long as nothing in them is found to have changed
    added = set()
    for parts, found in walk:
        while unsaid and parts[: len(unsaid[-1][0])] != unsaid[-1][0]:
            unsaid.pop()
        if parts[0] in MOUNTED or (parts in OURS and not found.is_folder):
            continue
        if parts in OURS:
            unsaid.append((parts, found))
            continue
        lower = None if parts[:-1] in added else view.entry(parts)
        gone = []
        if found.is_folder and lower and lower.is_folder:
            gone = [name for name in view.names(parts) if name not in found.names]
        if lower and _same(found, lower) and not gone:
            if found.is_folder:
                unsaid.append((parts, found))
            continue
        for above, folder in unsaid:
            yield "=", above, folder
        unsaid = []
        if found.is_folder and not (lower and lower.is_folder):
            added.add(parts)
        yield "C" if lower else "A", parts, found
        for name in gone:
            if (*parts, name) not in OURS:
                yield "D", (*parts, name), None
    for name in view.names(()):
        if name not in walk.top_names and (name,) not in OURS:
            yield "D", (name,), None


def _same(found, lower):
    lower.owned()
    if found.kind != lower.kind or (found.uid, found.gid) != (lower.uid, lower.gid):
        return False
    if found.target is not None:
        return found.target == lower.target
    if found.mode != lower.mode or int(found.mtime) != int(lower.mtime):
        return False
    return found.is_folder or (found.size == lower.size and found.mtime == lower.mtime)


# Trees through descriptors


class Found:
    """A file: `name` in the folder with descriptor `parent` (open until the walk goes on), and what it is.

    names: what is in a folder
    """

    __slots__ = ("gid", "inode", "kind", "mode", "mtime", "name", "names", "opaque", "parent", "size", "target", "uid")

    def __init__(self, parent, name, status):
        self.parent = parent
        self.name = name
        self.kind = stat.S_IFMT(status.st_mode)
        self.mode = stat.S_IMODE(status.st_mode)
        self.uid, self.gid = status.st_uid, status.st_gid
        self.size = status.st_size
        self.mtime = status.st_mtime
        self.inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 and not self.is_folder else None
        self.opaque = False
        self.names = ()
        self.target = _target(parent, name) if self.kind == stat.S_IFLNK else None
        own = os.geteuid()
        if own and self.uid == own:
            self.uid = self.gid = 0  # no user namespace: what is the user's is root's

    @property
    def is_folder(self):
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self):
        return self.kind == stat.S_IFREG

    def open(self):
        """A descriptor of a file; raises OSError."""
        return os.open(self.name, FILE, dir_fd=self.parent)

    def read_owner(self, descriptor):
        """Take owner and mode from where they are recorded, if they are."""
        try:
            uid, gid, mode = os.getxattr(descriptor, unpack.OWNER).split(b":")[:3]
            self.uid, self.gid, self.mode = int(uid), int(gid), int(mode, 8) & 0o7777
        except (OSError, ValueError):
            pass
        return self


class _Walk:
    """Iterates (parts, Found) over folders that lie on each other, lowest first; Found is None for a whiteout.

    merge: whiteouts and opaque folders take effect, and are not listed
    """

    def __init__(self, folders, merge=False):
        import resource

        self.folders = folders
        self.merge = merge
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or soft < hard:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))
            except (ValueError, OSError):
                pass
        self.top_names = frozenset(os.listdir(folders[-1]))

    def __iter__(self):
        top = []
        try:
            for folder in reversed(self.folders):
                top.append(os.open(folder, FOLDER))
                if self.merge and trees.is_opaque(top[-1]):
                    break
        except BaseException:
            for descriptor in top:
                os.close(descriptor)
            raise
        # (parts, descriptors of the folders that are merged here, [(name, those of them that have it)] to do, reversed)
        stack = [((), top, self._listed(top))]
        try:
            while stack:
                parts, folders, todo = stack[-1]
                if not todo:
                    for descriptor in stack.pop()[1]:
                        os.close(descriptor)
                    continue
                name, having = todo.pop()
                here = (*parts, name)
                if having is None:
                    yield here, None
                    continue
                try:
                    below, found = self._open(having, name)
                except FileNotFoundError:
                    continue  # removed meanwhile
                if below:
                    try:
                        listed = self._listed(below)
                    except BaseException:
                        for descriptor in below:
                            os.close(descriptor)
                        raise
                    stack.append((here, below, listed))
                    found.names = frozenset(name for name, having in listed if having)
                yield here, found
        finally:
            for _parts, folders, _todo in stack:
                for descriptor in folders:
                    os.close(descriptor)

    def _listed(self, folders):
        found = {}
        hidden = set()
        for folder in folders:
            gone = set()
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".wh."):
                        if name != ".wh..wh..opq":
                            gone.add(name[4:])
                    elif unpack.is_whiteout(entry):
                        gone.add(name)
                    elif name not in hidden:
                        having = found.setdefault(name, [])
                        having.append(folder)
                        if not entry.is_dir(follow_symlinks=False):
                            gone.add(name)
            if not self.merge:
                for name in gone - set(found):
                    found[name] = None
            hidden |= gone
        return sorted(found.items(), reverse=True)

    def _open(self, having, name):
        """(descriptors of the folders of that name, topmost first, or []; Found)."""
        status = os.stat(name, dir_fd=having[0], follow_symlinks=False)
        found = Found(having[0], name, status)
        if not found.is_folder:
            if found.is_file:
                try:
                    descriptor = found.open()
                except OSError as exc:
                    if exc.errno in REPLACED:
                        raise FileNotFoundError(name) from None  # replaced meanwhile
                    raise
                try:
                    found.read_owner(descriptor)
                finally:
                    os.close(descriptor)
            return [], found
        below = []
        try:
            for folder in having:
                try:
                    below.append(os.open(name, FOLDER, dir_fd=folder))
                except OSError as exc:
                    if exc.errno not in (errno.ELOOP, errno.ENOTDIR) or not below:
                        raise
                    break  # a file hides what is below it
                opaque = trees.is_opaque(below[-1])
                if len(below) == 1:
                    found.read_owner(below[0])
                    found.opaque = opaque
                if opaque and self.merge:
                    break
        except OSError as exc:
            for descriptor in below:
                os.close(descriptor)
            if exc.errno in REPLACED:
                raise FileNotFoundError(name) from None
            raise
        return below, found


# Tars


def write_changes(stream, layers, folder, whole):
    """Write what is other in `folder` (see top) than in the layers to a stream, as the tar of a layer."""
    writer = Writer(stream)
    writer.top(folder)
    for kind, parts, found in changes(layers, folder, whole):
        if kind == "D":
            writer.whiteout(parts)
            continue
        writer.entry(parts, found)
        if kind == "O":
            writer.whiteout((*parts, ".wh..opq"))
    writer.end()


def write_tree(stream, folders, below=()):
    """Write all that the folders (lowest first) show as a container's files to a stream, as a tar."""
    writer = Writer(stream)
    writer.top(folders[-1], below)
    for parts, found in _Walk(folders, merge=True):
        if len(parts) == 1 or parts[0] not in MOUNTED:
            writer.entry(below + parts, found)
    writer.end()


def _target(parent, name):
    """What a link leads to; raises FileNotFoundError when it is none any more."""
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            raise FileNotFoundError(name) from None
        raise


class Writer:
    """Writes a tar to a stream."""

    def __init__(self, stream):
        self.stream = stream
        self.pieces = []
        self.size = 0
        self.links = {}

    def top(self, folder, name=()):
        """The folder that all are in: the uppermost layer says what the container's root folder is like."""
        parent = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = Found(parent, os.path.basename(folder), os.lstat(folder))
            self.entry(name or (".",), found)
        finally:
            os.close(parent)

    def whiteout(self, parts):
        name = "/".join((*parts[:-1], ".wh." + parts[-1]))
        self._write(tar.header(os.fsencode(name), b"0", mode=0o600))

    def entry(self, parts, found):
        name = os.fsencode("/".join(parts))
        facts = {"mode": found.mode, "uid": found.uid, "gid": found.gid, "mtime": int(found.mtime)}
        if found.inode:
            first = self.links.get(found.inode)
            if first:
                self._write(tar.header(name, b"1", linkname=first, **facts))
                return
            self.links[found.inode] = name
        if found.is_folder:
            try:
                here = os.open(found.name, FOLDER, dir_fd=found.parent)
            except OSError as exc:
                if exc.errno in REPLACED:
                    return  # removed meanwhile, or another thing now
                raise
            try:
                self._write(tar.header(name + b"/", b"5", xattrs=_xattrs(here), **facts))
            finally:
                os.close(here)
        elif found.is_file:
            self._file(name, found, facts)
        elif found.target is not None:
            self._write(tar.header(name, b"2", linkname=os.fsencode(found.target), **facts))
        elif found.kind == stat.S_IFIFO:
            self._write(tar.header(name, b"6", **facts))
        # sockets mean nothing without who listens; devices are the engine's

    def _file(self, name, found, facts):
        try:
            source = found.open()
        except OSError as exc:
            if exc.errno not in REPLACED:
                raise
            self.links.pop(found.inode, None)  # removed meanwhile: other names of it are no links to this one
            return
        try:
            size = os.fstat(source).st_size
            self._write(tar.header(name, b"0", size=size, xattrs=_xattrs(source), **facts))
            left = size
            while left:
                piece = os.read(source, min(left, CHUNK))
                if not piece:  # it became shorter meanwhile
                    piece = bytes(min(left, CHUNK))
                left -= len(piece)
                self._write(piece)
            if size % 512:
                self._write(bytes(-size % 512))
        finally:
            os.close(source)

    def _write(self, piece):
        self.pieces.append(piece)
        self.size += len(piece)
        if self.size >= CHUNK:
            self.flush()

    def flush(self):
        piece = memoryview(b"".join(self.pieces))
        self.pieces, self.size = [], 0
        while piece:
            try:
                piece = piece[self.stream.write(piece) :]
            except BrokenPipeError:
                raise Error("whoever reads the tar has gone") from None

    def end(self):
        self._write(bytes(1024))
        self.flush()


def _xattrs(descriptor):
    """The attributes of an open file that mean something elsewhere."""
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return None
    found = {}
    for name in names:
        if name.startswith(unpack.RESERVED) or not name.startswith(("user.", "security.capability")):
            continue
        try:
            found[name] = os.getxattr(descriptor, name)
        except OSError as exc:
            if exc.errno not in EMPTY:
                raise
    return found

# SPDX-License-Identifier: Apache-2.0
"""Layers seen as one tree of files, without mounting them.

Paths are tuples of names. Links are followed here and not by the kernel, so that none leads out of the tree. What
runs in a mapped user namespace (userns.call) sees the owners that the container has.
"""

import os
import re
import stat

from .errors import Error, NotFound

_LINKS = 40  # that a path may go through, as in Linux
_WHITEOUT = ".wh."


class Entry:
    """A file: where it is on this machine, and what a container sees of it."""

    __slots__ = ("data", "gid", "inode", "kind", "mode", "mtime", "path", "size", "target", "uid")

    def __init__(self, path, status):
        self.path = path
        self.data = None  # content that is in no file
        self.kind = stat.S_IFMT(status.st_mode)
        self.mode = stat.S_IMODE(status.st_mode)
        self.uid, self.gid = status.st_uid, status.st_gid
        self.mtime = status.st_mtime  # seconds
        self.size = status.st_size if self.kind == stat.S_IFREG else 0
        self.inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 and self.kind == stat.S_IFREG else None
        self.target = os.readlink(path) if self.kind == stat.S_IFLNK else None

    @classmethod
    def of(cls, data, mode=0o644, mtime=0.0):
        """A file that holds `data` (bytes), of root."""
        entry = cls.__new__(cls)
        entry.path, entry.target, entry.inode = None, None, None
        entry.data, entry.kind, entry.mode, entry.uid, entry.gid = data, stat.S_IFREG, mode, 0, 0
        entry.mtime, entry.size = mtime, len(data)
        return entry

    @property
    def is_folder(self):
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self):
        return self.kind == stat.S_IFREG

    def owned(self):
        """The entry with owner and mode as recorded where the file system could not be given them."""
        from .unpack import OWNER

        own = os.geteuid()
        if own and self.uid == own:
            self.uid = self.gid = 0  # no user namespace: what is the user's is root's
        if self.is_file or self.is_folder:
            try:
                uid, gid, mode = os.getxattr(self.path, OWNER, follow_symlinks=False).split(b":")[:3]
                self.uid, self.gid, self.mode = int(uid), int(gid), int(mode, 8) & 0o7777
            except (OSError, ValueError):
                pass
        return self

    def open(self):
        """A binary stream of a file's content."""
        import io

        if self.data is not None:
            return io.BytesIO(self.data)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return open(descriptor, "rb", buffering=0)


class View:
    """Folders of unpacked layers, lowest first, as one tree. They stay as they are while it is in use."""

    def __init__(self, layers):
        from .trees import is_opaque

        self._is_opaque = is_opaque
        self._lists = {}
        self._folders = {(): []}  # those that are merged at a path, topmost first
        for folder in reversed(layers):
            self._folders[()].append(folder)
            if is_opaque(folder):
                break

    def _merged(self, parts):
        found = self._folders.get(parts)
        if found is None:
            found = self._folders[parts] = self._look_up(self._merged(parts[:-1]), parts[-1])[1]
        return found

    def _listed(self, folder):
        found = self._lists.get(folder)
        if found is None:
            found = self._lists[folder] = frozenset(os.listdir(folder))
        return found

    def _look_up(self, folders, name):
        """(Entry of the topmost `name` or None, the folders that are merged there)."""
        top, merged = None, []
        for folder in folders:
            names = self._listed(folder)
            if name in names:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                is_folder = stat.S_ISDIR(status.st_mode)
                if (stat.S_ISCHR(status.st_mode) and not status.st_rdev) or (merged and not is_folder):
                    break
                top = top or Entry(path, status)
                if not is_folder:
                    break
                merged.append(path)
                if self._is_opaque(path):
                    break
            if _WHITEOUT + name in names:
                break
        return top, merged

    def entry(self, parts):
        """The entry at `parts`, no link followed; None when there is nothing."""
        if parts:
            return self._look_up(self._merged(parts[:-1]), parts[-1])[0]
        top = self._merged(())
        return Entry(top[0], os.lstat(top[0])) if top else None

    def names(self, parts):
        """The names in folder `parts`, sorted."""
        folders = self._merged(parts)
        every = {name for folder in folders for name in self._listed(folder) if not name.startswith(_WHITEOUT)}
        return sorted(name for name in every if self._look_up(folders, name)[0])

    def resolve(self, path, follow=True):
        """The parts that `path` leads to from the root, links followed; what does not exist stays as it is.

        follow: whether a link at the very end is followed, too. Raises Error for links in a circle.
        """
        pending = split(path)[::-1]
        done, links = [], 0
        while pending:
            name = pending.pop()
            if name == "..":
                del done[-1:]
                continue
            done.append(name)
            if not pending and not follow:
                break
            found = self.entry(tuple(done))
            if found and found.target is not None:
                links += 1
                if links > _LINKS:
                    raise Error(f"{path}: too many links follow each other")
                done = [] if found.target.startswith("/") else done[:-1]
                pending += split(found.target)[::-1]
        return tuple(done)

    def read(self, path):
        """The text of a small file, links followed; "" when there is none."""
        found = self.entry(self.resolve(path))
        if not found or not found.is_file:
            return ""
        with found.open() as source:
            return source.read().decode("utf-8", "surrogateescape")

    def glob(self, pattern):
        """The paths (parts) that fit a pattern with * ? [ ] in its names; links in folders' places are followed."""
        from .dockerignore import translate

        found = [()]
        for name in split(os.path.normpath("/" + pattern)):
            if re.search(r"[*?\[\\]", name):
                fits = re.compile(translate(name.replace("**", "*")), re.S).fullmatch
                found = [
                    (*parts, one) for parts in found for one in self.names(self.resolve("/".join(parts))) if fits(one)
                ]
            else:
                found = [(*parts, name) for parts in found]
        return [parts for parts in found if self.entry(self.resolve("/".join(parts), follow=False))]

    def walk(self, parts, enter=None):
        """Yield (relative parts, entry) of what is below folder `parts`, folders before what is in them.

        enter(relative parts): whether to go into a folder
        """
        pending = [()]
        while pending:
            relative = pending.pop()
            below = []
            for name in self.names(parts + relative):
                found = self.entry((*parts, *relative, name))
                yield (*relative, name), found
                if found.is_folder and (not enter or enter((*relative, name))):
                    below.append((*relative, name))
            pending += below[::-1]


def split(path):
    """The names in a path, less those that mean nothing."""
    return [name for name in path.split("/") if name not in ("", ".")]


def owner(tree, text):
    """(uid, gid) of "user[:group]", looked up in the tree's own files; raises NotFound."""
    user, _colon, group = text.partition(":")
    uid, gid = _identifiers(tree, user, "passwd", "user") if user else (0, 0)
    if group:
        gid = _identifiers(tree, group, "group", "group")[0]
    return uid, gid


def _identifiers(tree, name, file, what):
    if name.isdigit():
        return int(name), int(name)
    for line in tree.read(f"/etc/{file}").splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) > 3 and fields[2].isdigit():
            return int(fields[2]), int(fields[3]) if fields[3].isdigit() else int(fields[2])
    raise NotFound(f"{what} {name} is not in /etc/{file} of the image: give a number, or create it before")

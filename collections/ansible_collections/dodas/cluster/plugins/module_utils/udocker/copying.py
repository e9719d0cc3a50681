# SPDX-License-Identifier: Apache-2.0
"""What COPY and ADD put into an image: chosen files as a tar of one layer, and the hash that stands for them.

    job = Copy(layers, sources, ...)        plain values, so that it goes into a user namespace
    job.digest()                            of all that is copied, times of files apart
    job.write(stream)                       the layer's tar
"""

import hashlib
import re
import stat
import tarfile

from .dockerignore import Ignore
from .errors import Error
from .view import Entry, View, owner, split


class Copy:
    """One COPY or ADD.

    layers: folders of the image that is copied into; root: folders of the tree that is copied from, lowest first
    patterns: paths in that tree, with wildcards; files: [(name, bytes)] besides; target: path in the image
    user: text of --chown, "" for root, None keeps the owners; mode: text of --chmod, or None
    ignore: rules of the context; exclude: patterns; parents: the paths of the sources are kept
    extract: tars are unpacked; folder: the target is made even if nothing is copied; mtime: of `files`
    what: how the tree that is copied from is named in errors
    """

    def __init__(self, layers, root, patterns, target, **more):
        self.layers = layers
        self.root = root
        self.patterns = patterns
        self.target = target
        self.files = more.pop("files", [])
        self.user = more.pop("user", "")
        self.mode = more.pop("mode", None)
        self.ignore = more.pop("ignore", None)
        self.exclude = Ignore("\n".join(more.pop("exclude", [])), "--exclude")
        self.parents = more.pop("parents", False)
        self.extract = more.pop("extract", False)
        self.folder = more.pop("folder", False)
        self.mtime = more.pop("mtime", 0.0)
        self.what = more.pop("what", "the build's context")
        if more:
            raise TypeError(f"unknown: {', '.join(more)}")

    def digest(self):
        """A hash of what is copied; of files their content counts, and not their times."""
        result = hashlib.sha256()
        for relative, entry, _named in self._chosen(View(self.root)):
            mode, uid, gid = entry.mode, entry.uid, entry.gid
            if self.user is not None:
                uid = gid = 0  # of the machine: others have other ids
            if entry.target is not None:
                mode = 0
            line = ["/".join(relative), stat.S_IFMT(entry.kind), mode, uid, gid, entry.target or ""]
            result.update(repr(line).encode("utf-8", "surrogateescape"))
            if entry.is_file:
                content = hashlib.sha256()
                with entry.open() as source:
                    for piece in iter(lambda: source.read(1 << 20), b""):
                        content.update(piece)
                result.update(content.digest())
        return result.hexdigest()

    def write(self, stream):
        """Write the tar of the layer."""
        image = View(self.layers)
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as archive:
            writer = _Writer(image, archive, owner(image, self.user) if self.user else (0, 0), self)
            target = image.resolve(self.target)
            for relative, entry, named in self._chosen(View(self.root)):
                if self.extract and named and entry.is_file and is_tar(entry):
                    writer.unpack(target, entry)
                else:
                    writer.put(target + relative, entry)
            if self.folder:
                writer.folder(target)

    def _into_folder(self):
        """Whether the target is a folder."""
        image = View(self.layers)
        found = image.entry(image.resolve(self.target))
        return self.target.endswith("/") or bool(found and found.is_folder)

    def _chosen(self, tree):
        """Yield (path relative to the target, entry, whether a pattern names it itself).

        The path is () for what takes the target's own name.
        """
        matches = []
        for pattern in self.patterns:
            matches += [(pattern, parts) for parts in self._found(tree, pattern)]
        named = [(name, Entry.of(data, mtime=self.mtime)) for name, data in self.files]
        many = len(matches) + len(named) > 1
        as_folder = self._into_folder()
        if many and not as_folder:
            raise Error(f"several files are copied to {self.target}: a folder is needed, write {self.target}/")
        for pattern, parts in matches:
            entry = tree.entry(parts)
            kept = parts if self.parents else ()
            if self.parents and "/./" in pattern:
                kept = parts[len(split(pattern.partition("/./")[0])) :]
            if entry.is_folder:
                for relative, found in self._folder(tree, parts, entry, kept):
                    yield relative, found, False
            else:
                # By the name it was asked for, though a link may have led to another.
                name = split(pattern)[-1:] if not _is_glob(pattern) else parts[-1:]
                yield kept or (tuple(name) if as_folder else ()), self._finish(entry), True
        for name, entry in named:
            yield (name,) if as_folder else (), self._finish(entry), True

    def _found(self, tree, pattern):
        """The paths that fit, links at their ends followed."""
        found = []
        for parts in tree.glob(pattern):
            if parts and self._left_out(parts) and not self._comes_back(tree, parts):
                continue
            # Whoever names a link means what it leads to; what a wildcard finds is copied as it is.
            found.append(parts if _is_glob(pattern) else tree.resolve("/".join(parts)))
        if not found:
            hint = " (.dockerignore leaves it out)" if tree.glob(pattern) else ""
            raise Error(f"{pattern} is not in {self.what}{hint}")
        missing = [parts for parts in found if not tree.entry(parts)]
        if missing:
            raise Error(f"{pattern} is a link to /{'/'.join(missing[0])}, which is not in {self.what}")
        return found

    def _left_out(self, parts):
        path = "/".join(parts)
        return bool(self.ignore and self.ignore.excludes(path)) or self.exclude.excludes(path)

    def _comes_back(self, tree, parts):
        entry = tree.entry(parts)
        return bool(entry and entry.is_folder and self._enter(parts))

    def _enter(self, parts):
        """Whether something may be copied from below a folder that is left out."""
        path = "/".join(parts)
        return not (
            (self.ignore and self.ignore.excludes(path) and self.ignore.prunes(path))
            or (self.exclude.excludes(path) and self.exclude.prunes(path))
        )

    def _folder(self, tree, parts, entry, kept):
        """What is below a folder, and the folder itself."""
        done = set()

        def above(relative):
            # Folders that are left out are there all the same for what comes back from below them.
            for count in range(len(relative) + 1):
                if relative[:count] not in done:
                    done.add(relative[:count])
                    found = tree.entry(parts + relative[:count]) if count else entry
                    yield kept + relative[:count], self._finish(found)

        yield from above(())
        for relative, found in tree.walk(parts, lambda relative: self._enter(parts + relative)):
            if self._left_out(parts + relative) or stat.S_ISSOCK(found.kind):
                continue
            yield from above(relative if found.is_folder else relative[:-1])
            if not found.is_folder:
                yield kept + relative, self._finish(found)

    def _finish(self, entry):
        return entry.owned() if self.user is None else entry


class _Writer:
    """Writes a layer's tar: folders before what is in them, those of the image with the image's attributes."""

    def __init__(self, image, archive, ids, job):
        self.image = image
        self.archive = archive
        self.ids = ids
        self.job = job
        self.folders = set()
        self.places = {}  # folder asked for: where links of the image lead
        self.links = {}

    def _place(self, parts):
        """Where a folder of the target really is, since folders of the image may be links."""
        found = self.places.get(parts)
        if found is None:
            found = self.image.resolve("/".join(self._place(parts[:-1]) + parts[-1:])) if parts else ()
            self.places[parts] = found
        return found

    def _info(self, parts, entry):
        info = tarfile.TarInfo("/".join(parts))
        info.mtime = entry.mtime
        info.mode = entry.mode
        info.uid, info.gid = (entry.uid, entry.gid) if self.job.user is None else self.ids
        if self.job.mode is not None and entry.target is None:
            info.mode = change_mode(self.job.mode, info.mode, entry.is_folder)
        return info

    def folder(self, parts, entry=None):
        """See that a folder is in the tar; returns where it is. entry: what it is like if it is new."""
        place = self._place(parts)
        if parts in self.folders:
            return place
        self.folders.add(parts)
        if place != parts:
            return self.folder(place, entry)
        if parts:
            self.folder(parts[:-1])
        found = self.image.entry(place)
        if found and not found.is_folder:
            raise Error(f"/{'/'.join(place)} is in the way: it is no folder")
        if found:
            # The uppermost layer says what a folder is like.
            info = tarfile.TarInfo("/".join(place) or ".")
            found.owned()
            info.mode, info.uid, info.gid, info.mtime = found.mode, found.uid, found.gid, found.mtime
            info.type = tarfile.DIRTYPE
            if place or (info.mode, info.uid, info.gid) != (0o755, 0, 0):
                self.archive.addfile(info)
            return place
        if not place:
            return place
        if entry:
            info = self._info(place, entry)
        else:
            info = tarfile.TarInfo("/".join(place))
            info.mode, info.mtime = 0o755, self.job.mtime
            info.uid, info.gid = self.ids
        info.type = tarfile.DIRTYPE
        self.archive.addfile(info)
        return place

    def put(self, parts, entry):
        """Put one entry at `parts`."""
        if entry.is_folder:
            self.folder(parts, entry)
            return
        place = self.folder(parts[:-1]) + parts[-1:]
        self._free(place)
        info = self._info(place, entry)
        first = self.links.get(entry.inode) if entry.inode else None
        if first:
            info.type, info.linkname = tarfile.LNKTYPE, first
            self.archive.addfile(info)
            return
        if entry.inode:
            self.links[entry.inode] = info.name
        if entry.is_file:
            info.size = entry.size
            with entry.open() as source:
                self.archive.addfile(info, source)
        elif entry.target is not None:
            info.type, info.linkname = tarfile.SYMTYPE, entry.target
            self.archive.addfile(info)
        elif stat.S_ISFIFO(entry.kind):
            info.type = tarfile.FIFOTYPE
            self.archive.addfile(info)
        else:
            raise Error(f"/{'/'.join(place)}: devices cannot be copied")

    def _free(self, place):
        found = self.image.entry(place)
        if (found and found.is_folder) or place in self.folders:
            raise Error(f"/{'/'.join(place)} is a folder: a file cannot take its place")

    def unpack(self, parts, entry):
        """Put what is in a tar below folder `parts`."""
        from .streams import decompressed

        self.folder(parts)
        with entry.open() as source:
            stream = _Pieces(decompressed(iter(lambda: source.read(1 << 17), b"")))
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    self._add(parts, archive, member)

    def _add(self, parts, archive, member):
        """Put a member of a tar below folder `parts`."""
        names = tuple(split(member.name))
        if ".." in names:
            raise Error(f"{member.name[:200]}: leads outside of the folder that the archive is unpacked to")
        if not names:
            return
        info = tarfile.TarInfo()
        info.type, info.mode, info.mtime = member.type, member.mode, member.mtime
        info.uid, info.gid = self.ids if self.job.user else (member.uid, member.gid)
        info.linkname, info.devmajor, info.devminor = member.linkname, member.devmajor, member.devminor
        if member.isdir():
            self.folder(parts + names[:-1])
            self.folders.add(parts + names)
            info.name = "/".join(self._place(parts + names))
            self.archive.addfile(info)
            return
        place = self.folder(parts + names[:-1]) + names[-1:]
        self._free(place)
        info.name = "/".join(place)
        if member.islnk():
            linked = tuple(split(member.linkname))
            info.linkname = "/".join(self._place(parts + linked[:-1]) + linked[-1:])
        if member.isreg():
            info.type, info.size = tarfile.REGTYPE, member.size
            self.archive.addfile(info, archive.extractfile(member))
        else:
            self.archive.addfile(info)


class _Pieces:
    """A stream that can be read, of pieces of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.left = b""

    def read(self, size):
        while len(self.left) < size:
            piece = next(self.pieces, b"")
            if not piece:
                break
            self.left += piece
        found, self.left = self.left[:size], self.left[size:]
        return found


def is_tar(entry):
    """Whether a file is a tar, plain or compressed."""
    from .streams import decompressed

    with entry.open() as source:
        head = source.read(6)
        if not head:
            return False
        try:
            stream = _Pieces(decompressed(iter([head, source.read(1 << 17)])))
            block = stream.read(512)
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            return True
        except (tarfile.TarError, Error, ValueError):
            return False


def change_mode(text, mode, is_folder):
    """The mode that --chmod=TEXT makes of `mode`: octal digits, or u=rwX,go-w. Raises Error."""
    if text.isdigit():
        if len(text) > 5 or text.strip("01234567"):
            raise Error(f"--chmod={text}: is a mode in octal digits, or like u=rwX,go=rX")
        return int(text, 8)
    for clause in text.split(","):
        match = re.fullmatch(r"([ugoa]*)([-+=])([rwxXst]*)", clause)
        if not match:
            raise Error(f"--chmod={text}: {clause!r} is not like u=rwX or go-w")
        who, operator, letters = match.group(1).replace("a", "ugo") or "ugo", match.group(2), match.group(3)
        execute = "x" in letters or ("X" in letters and (is_folder or mode & 0o111))
        bits = 4 * ("r" in letters) + 2 * ("w" in letters) + bool(execute)
        change = sum(bits << shift for name, shift in (("u", 6), ("g", 3), ("o", 0)) if name in who)
        if "s" in letters:
            change |= (0o4000 if "u" in who else 0) | (0o2000 if "g" in who else 0)
        if "t" in letters:
            change |= 0o1000
        whole = sum(7 << shift for name, shift in (("u", 6), ("g", 3), ("o", 0)) if name in who)
        mode = {"+": mode | change, "-": mode & ~change, "=": (mode & ~whole) | change}[operator]
    return mode


def _is_glob(pattern):
    return bool(re.search(r"[*?\[]", pattern))

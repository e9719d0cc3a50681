# SPDX-License-Identifier: Apache-2.0
"""Images as files: what `docker save` and `podman save` write, OCI layouts (folder or tar), and root file systems."""

import errno
import os
import stat

from . import images, manifests, reference, streams, tar, unpack
from .errors import Error, NotFound

JSON_BYTES = 16 << 20
MEMBERS = 1000000  # of an archive


def load(store, source, name=None, platform=None, limits=None, progress=None):
    """Take the images of an archive or OCI layout into the store; returns [Image].

    source: path of an archive (also compressed) or of a folder, descriptor, or object with read(size)
    name: the image's name instead of that in the archive, which then must hold one image
    platform: which one of an image for several; this machine's for None
    Raises Error: it is no image, is damaged or is hostile.
    """
    limits = limits or tar.Limits()
    with store.lock("prune", shared=True), _archive(store, source, limits) as archive:
        if archive.has("manifest.json"):
            found = list(_docker_images(archive, source))
        elif archive.has("index.json"):
            found = list(_oci_images(archive, source, manifests.parse_platform(platform)))
        elif archive.has("repositories"):
            raise Error("the archive is of a Docker before 1.10: save it with a newer one")
        else:
            raise Error("this is no archive of images: neither manifest.json nor index.json is in it; see `import`")
        if name and len(found) != 1:
            raise Error(f"the archive holds {len(found)} images: they cannot all be named {name}")
        loaded = []
        for names, manifest, config, paths in found:
            names = [reference.parse(name).name] if name else [reference.parse(one).name for one in names]
            loaded += _keep(store, archive, names, manifest, config, paths, limits, progress)
        return loaded


def _keep(store, archive, names, manifest, config, paths, limits, progress):
    """Store the layers of an image, each in turn, and its names. manifest is None where the archive has none."""
    import concurrent.futures
    import json

    try:
        diff_ids = json.loads(config.decode())["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError, RecursionError):
        diff_ids = None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(paths) or len(paths) > manifests.LAYER_COUNT:
        raise Error(f"{names[0]}: the configuration does not fit the layers")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str):
            raise Error(f"{names[0]}: {diff_id!r} is no digest")
        reference.check_digest(diff_id)
    wanted = manifest.layers if manifest else [None] * len(paths)
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(_take, store, archive, path, diff_id, descriptor, limits, progress)
            for path, diff_id, descriptor in zip(paths, diff_ids, wanted)
        ]
        try:
            layers = [job.result() for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    if not manifest:
        return [images.keep(store, name, config, layers) for name in names]
    return [images.record(store, name, manifest, config) for name in names]


def _take(store, archive, path, diff_id, descriptor, limits, progress):
    """Keep a layer of the archive, as blob and unpacked; returns {"digest", "diff_id", "size"}.

    One that is not compressed is compressed on the way: it is what disk and network are spared.
    """
    reader = archive.open(path)
    if descriptor and reader.size != descriptor["size"]:
        raise Error(f"{path} has {reader.size} bytes instead of {descriptor['size']}")
    if progress:
        progress("layer", digest=diff_id, done=0, total=reader.size, state="unpacking")
    with store.temporary() as folder:
        written = os.path.join(folder, "blob")
        copy = _Copy(reader, written, compress=descriptor is None)
        try:
            if store.has_layer(diff_id):
                actual = streams.digest(copy)
                if actual != diff_id:
                    raise Error(f"{path} is not what the image says: {actual} instead of {diff_id}")
            else:
                unpack.layer(store, copy, diff_id, limits)
        finally:
            copy.close()
        if descriptor and copy.digest != descriptor["digest"]:
            raise Error(f"{path} is not what the manifest says: {copy.digest} instead of {descriptor['digest']}")
        size = os.stat(written).st_size
        if not store.has_blob(copy.digest):
            store.keep_blob(written, copy.digest)
    if progress:
        progress("layer", digest=diff_id, done=reader.size, total=reader.size, state="done")
    return {"digest": copy.digest, "diff_id": diff_id, "size": size}


class _Copy:
    """Reads on, and writes what was read to a file, whose digest it calculates.

    compress: with gzip, unless it is compressed in some way
    """

    def __init__(self, reader, path, compress):
        import hashlib

        self.reader = reader
        self.target = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.hash = hashlib.sha256()
        self.compress = compress
        self.worker = None

    @property
    def digest(self):
        return "sha256:" + self.hash.hexdigest()

    def read(self, size):
        import zlib

        piece = self.reader.read(size)
        if self.compress:
            self.compress = False
            if not streams.compression(piece):
                self.worker = zlib.compressobj(1, zlib.DEFLATED, 31)
        if self.worker:
            self._write(self.worker.compress(piece) if piece else self.worker.flush())
            self.worker = self.worker if piece else None
        else:
            self._write(piece)
        return piece

    def _write(self, piece):
        self.target.write(piece)
        self.hash.update(piece)

    def close(self):
        self.target.close()


# What an archive says


def _docker_images(archive, source):
    """(names, None, configuration, paths of layers) of each image that manifest.json names."""
    listed = _json(archive, "manifest.json", list)
    if not listed or len(listed) > 1000:
        raise Error("manifest.json names no image, or too many")
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
            raise Error("manifest.json is not what it should be")
        paths, names = entry.get("Layers") or [], entry.get("RepoTags") or []
        if not all(isinstance(part, list) and all(isinstance(one, str) for one in part) for part in (paths, names)):
            raise Error("manifest.json is not what it should be")
        config = archive.read(entry["Config"], JSON_BYTES)
        yield names or [_name_of(source, number)], None, config, paths


def _oci_images(archive, source, platform):
    """(names, manifest, configuration, paths of layers) of each image that index.json names."""
    index = _json(archive, "index.json", dict)
    index.setdefault("mediaType", manifests.OCI_INDEX)
    import json

    top = manifests.parse(json.dumps(index).encode(), "index.json")

    def fetch(descriptor):
        content = archive.read(_blob(descriptor["digest"]), manifests.MANIFEST_BYTES)
        return manifests.parse(content, descriptor["digest"], descriptor.get("mediaType") or "", descriptor["digest"])

    for number, descriptor in enumerate(_distinct(top.manifests, platform)):
        where = descriptor["digest"]
        manifest = manifests.choose(fetch(descriptor), platform, fetch, where)
        config = archive.read(_blob(manifest.config["digest"]), manifests.CONFIG_BYTES)
        if "sha256:" + _sha256(config) != manifest.config["digest"]:
            raise Error(f"{where}: the configuration is not what the manifest says")
        paths = [_blob(layer["digest"]) for layer in manifest.layers]
        yield [_oci_name(descriptor, source, number)], manifest, config, paths


def _distinct(descriptors, platform):
    """One descriptor of each name: of several with the same, or with none, the one that suits the platform best."""
    chosen = {}
    for descriptor in descriptors:
        chosen.setdefault(_ref_name(descriptor), []).append(descriptor)
    if not chosen:
        raise Error("index.json names no image")
    for same in chosen.values():
        if len(same) == 1:
            yield same[0]
            continue
        best = manifests.candidates(_Index(same), platform)
        if not best:
            raise NotFound(f"the layout has no image for {platform}")
        yield best[0]


class _Index:
    def __init__(self, descriptors):
        self.manifests = descriptors


def _ref_name(descriptor):
    annotations = descriptor.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    name = annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name") or ""
    return name if isinstance(name, str) else ""


def _oci_name(descriptor, source, number):
    name = _ref_name(descriptor)
    if not name:
        return _name_of(source, number)
    if ":" not in name and "/" not in name:  # a tag alone
        return f"{_name_of(source, 0).partition(':')[0]}:{name}"
    return name


def _name_of(source, number):
    """A name for an image that has none, after the file that it is from."""
    path = os.path.basename(os.path.abspath(source)) if isinstance(source, str) else ""
    base = path.lower().split(".tar")[0].split(".tgz")[0]
    name = "".join(char if char.isascii() and char.isalnum() else "-" for char in base).strip("-")
    while "--" in name:
        name = name.replace("--", "-")
    return f"{name or 'loaded'}{f'-{number + 1}' if number else ''}:latest"


def _blob(digest):
    reference.check_digest(digest)
    return "blobs/" + digest.replace(":", "/")


def _json(archive, path, kind):
    import json

    try:
        value = json.loads(archive.read(path, JSON_BYTES).decode())
    except (ValueError, RecursionError):
        raise Error(f"{path} in the archive is no JSON") from None
    if not isinstance(value, kind):
        raise Error(f"{path} in the archive is not what it should be")
    return value


def _sha256(content):
    import hashlib

    return hashlib.sha256(content).hexdigest()


# Archives and folders


class _archive:
    """Context: the files of an archive, or of a folder."""

    def __init__(self, store, source, limits):
        self.store = store
        self.source = source
        self.limits = limits
        self.undo = []

    def __enter__(self):
        try:
            return self._open()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_exception):
        while self.undo:
            self.undo.pop()()

    def _open(self):
        if isinstance(self.source, str) and os.path.isdir(self.source):
            descriptor = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.undo.append(lambda: os.close(descriptor))
            return Folder(descriptor)
        opened = streams.opened(self.source)
        descriptor = opened.__enter__()
        self.undo.append(lambda: opened.__exit__(None))
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not regular or streams.compression(os.pread(descriptor, 16, 0)):
            # Its parts are read in another order than they come in: it has to be whole.
            temporary = self.store.temporary()
            path = os.path.join(temporary.__enter__(), "archive")
            self.undo.append(lambda: temporary.__exit__(None, None, None))
            whole = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self.undo.append(lambda: os.close(whole))
            self._spool(descriptor, whole)
            descriptor = whole
        return Tar(descriptor, self.limits)

    def _spool(self, source, target):
        plain = tar.Plain(source, self.limits)
        try:
            while True:
                chunk = plain.more()
                if not chunk:
                    return
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]
        finally:
            plain.close()


class Folder:
    """The files of an OCI layout. No link is followed: it could lead to what the user alone may read."""

    def __init__(self, descriptor):
        self.top = descriptor

    def has(self, path):
        try:
            os.close(self._open(path))
            return True
        except Error:
            return False

    def open(self, path):
        descriptor = self._open(path)
        return _Part(descriptor, 0, os.fstat(descriptor).st_size, owned=True)

    def read(self, path, limit):
        return _read(self.open(path), path, limit)

    def _open(self, path):
        *folders, name = _plain_path(path).split("/")
        here = os.dup(self.top)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            for folder in folders:
                below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            found = os.open(name, flags, dir_fd=here)
        except OSError as exc:
            why = "is a link, which is not followed" if exc.errno == errno.ELOOP else exc.strerror
            raise Error(f"{path} in the layout: {why}") from None
        finally:
            os.close(here)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise Error(f"{path} in the layout is no file")
        return found


class Tar:
    """The files of a tar that can be read at any place. Links lead to other files of the archive, and nowhere else."""

    def __init__(self, descriptor, limits):
        self.descriptor = descriptor
        self.files = {}  # path -> (offset, size)
        self.links = {}  # path -> path
        stream = _Seekable(descriptor)
        for count, member in enumerate(tar.members(stream, limits)):
            if count > MEMBERS:
                raise Error(f"the archive holds more than {MEMBERS} files")
            name = "/".join(part for part in os.fsdecode(member.name).split("/") if part not in ("", "."))
            if member.kind in b"0\x007" and member.sparse is None:
                self.files[name] = (stream.at, member.stored)
                self.links.pop(name, None)
                stream.skip(member.stored + -member.stored % 512)
            elif member.sparse is not None:
                raise Error(f"{name} in the archive is sparse, which nothing in an archive of images is")
            elif member.kind in b"12":
                base = name.rpartition("/")[0] if member.kind == b"2" else ""
                self.links[name] = os.path.normpath(os.path.join(base, os.fsdecode(member.linkname)))
                self.files.pop(name, None)

    def _find(self, path):
        path = _plain_path(path)
        for _link in range(8):
            if path in self.files:
                return self.files[path]
            if path not in self.links:
                break
            path = self.links[path]
        raise Error(f"{path} is not in the archive")

    def has(self, path):
        return path in self.files or path in self.links

    def open(self, path):
        return _Part(self.descriptor, *self._find(path))

    def read(self, path, limit):
        return _read(self.open(path), path, limit)


def _plain_path(path):
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or path.startswith("/") or "\0" in path:
        raise Error(f"{path!r} leads out of the archive")
    return "/".join(parts)


def _read(part, path, limit):
    if part.size > limit:
        raise Error(f"{path} in the archive has {part.size} bytes: {limit} at most are expected")
    content = part.read(part.size + 1)
    part.close()
    return content


class _Part:
    """Reads `size` bytes of a descriptor from `offset` on, at a place of its own."""

    def __init__(self, descriptor, offset, size, owned=False):
        self.descriptor = descriptor
        self.at = offset
        self.end = offset + size
        self.size = size
        self.owned = owned

    def read(self, size):
        wanted = min(size, self.end - self.at)
        pieces = []
        while wanted > 0:
            piece = os.pread(self.descriptor, wanted, self.at)
            if not piece:
                raise Error("the archive ends too early")
            self.at += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def close(self):
        if self.owned:
            os.close(self.descriptor)
            self.owned = False


class _Seekable:
    """A tar in a file, as tar.members reads it."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.at = 0
        self.end = os.fstat(descriptor).st_size

    def block(self):
        return self.read(512) if self.at < self.end else b""

    def read(self, size):
        piece = os.pread(self.descriptor, size, self.at)
        if len(piece) < size:
            raise Error("the archive ends too early")
        self.at += size
        return piece

    def skip(self, size):
        self.at += size
        if self.at > self.end + 511:
            raise Error("the archive ends too early")

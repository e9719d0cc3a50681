# SPDX-License-Identifier: Apache-2.0
"""Images as files: what `docker save` and `podman save` write, OCI layouts (folder or tar), and root file systems."""

import errno
import os
import stat

from . import images, manifests, reference, streams, tar, unpack
from .errors import Error, NotFound
from .store import hash_of

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


def take(store, path, diff_id, limits):
    """Keep a layer that is in a file; diff_id may be None. Returns {"digest", "diff_id", "size"}."""
    if diff_id is None:
        return _take_root(store, path, limits)
    with streams.opened(path) as descriptor:
        return _take(store, _One(descriptor), path, diff_id, None, limits, None)


class _One:
    """An archive with one file."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def open(self, _path):
        return _Part(self.descriptor, 0, os.fstat(self.descriptor).st_size)


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
        with open(written, "wb") as target:
            copy = _Copy(reader, target, compress=descriptor is None)
            if store.has_layer(diff_id):
                actual = streams.digest(copy)
                if actual != diff_id:
                    raise Error(f"{path} is not what the image says: {actual} instead of {diff_id}")
            else:
                unpack.layer(store, copy, diff_id, limits)
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

    def __init__(self, reader, target, compress):
        import hashlib

        self.reader = reader
        self.target = target
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


# Save


def save(store, names, target, kind="docker"):
    """Write images to an archive, which podman, skopeo, Docker and udocker 1.3.17 load.

    names: as people type them, or Images; target: path, descriptor, or object with write(bytes)
    kind: "docker" (layers are not compressed) or "oci" (blobs as they are). Raises Error, NotFound.
    """
    if kind not in ("docker", "oci"):
        raise Error(f"{kind}: an archive is of kind docker or oci")
    found = [images.find(store, name) if isinstance(name, str) else name for name in names]
    if not found:
        raise Error("which images are to be saved?")
    with store.lock("prune", shared=True), _output(target) as stream:
        (_save_docker if kind == "docker" else _save_oci)(store, found, _Written(stream))


def _save_docker(store, found, archive):
    import json

    listed, repositories = {}, {}
    for image in found:
        config = store.read_blob(image.config)
        paths, parent = [], None
        for layer in image.layers:
            identifier = _sha256(f"{parent or ''} {layer['diff_id']}".encode())
            described = {"id": identifier, "os": "linux", "config": {}, **({"parent": parent} if parent else {})}
            paths.append(f"{identifier}/layer.tar")
            if archive.once(identifier):
                archive.file(f"{identifier}/VERSION", b"1.0")
                archive.file(f"{identifier}/json", json.dumps(described).encode())
                archive.plain(f"{identifier}/layer.tar", store, layer)
            parent = identifier
        name = images.familiar(image.name)
        entry = listed.get(image.config)
        if entry is None:
            path = image.config.partition(":")[2] + ".json"
            archive.file(path, config)
            entry = listed[image.config] = {"Config": path, "RepoTags": [], "Layers": paths}
        if "@" not in name and name not in entry["RepoTags"]:
            entry["RepoTags"].append(name)
            repository, _colon, tag = name.rpartition(":")
            if parent:
                repositories.setdefault(repository, {})[tag] = parent
    archive.file("manifest.json", json.dumps(list(listed.values())).encode())
    archive.file("repositories", json.dumps(repositories).encode())
    archive.end()


def _save_oci(store, found, archive):
    import json

    entries = []
    for image in found:
        content = manifests.parse(store.read_blob(image.manifest), image.name)
        for digest in [image.manifest, image.config] + [layer["digest"] for layer in image.layers]:
            if archive.once(digest):
                archive.blob(_blob(digest), store, digest)
        name = images.familiar(image.name)
        entry = {"mediaType": content.media_type, "digest": image.manifest, "size": len(content.content)}
        if "@" not in name:
            entry["annotations"] = {
                "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": name,
            }  # fmt: skip
        entries.append(entry)
    index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries}
    archive.file("index.json", json.dumps(index).encode())
    archive.file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    archive.end()


class _Written:
    """Writes an archive of images to a stream: no times, no owners, so that the same images make the same bytes."""

    def __init__(self, stream):
        self.stream = stream
        self.seen = set()

    def once(self, name):
        """Whether this is the first time that it is asked for."""
        first = name not in self.seen
        self.seen.add(name)
        return first

    def file(self, name, content):
        self.stream.write(tar.header(name.encode(), b"0", size=len(content)) + tar.padded(content))

    def blob(self, name, store, digest):
        """A blob as it is."""
        import hashlib

        found = hashlib.new(digest.partition(":")[0])
        with _opened_blob(store, digest) as source:
            size = os.fstat(source.fileno()).st_size
            self._copy(name, size, iter(lambda: source.read(1 << 20), b""), found)
        if found.hexdigest() != digest.partition(":")[2]:
            raise Error(f"blob {digest} is damaged: pull the image again")

    def plain(self, name, store, layer):
        """A layer that is not compressed any more."""
        import hashlib

        # Its size comes before it, and is known when it was decompressed once.
        size = 0
        with _opened_blob(store, layer["digest"]) as source:
            for chunk in streams.decompressed(iter(lambda: source.read(1 << 17), b"")):
                size += len(chunk)
        found = hashlib.sha256()
        with _opened_blob(store, layer["digest"]) as source:
            self._copy(name, size, streams.decompressed(iter(lambda: source.read(1 << 17), b"")), found)
        if found.hexdigest() != layer["diff_id"].partition(":")[2]:
            raise Error(f"blob {layer['digest']} is damaged: pull the image again")

    def _copy(self, name, size, pieces, found):
        self.stream.write(tar.header(name.encode(), b"0", size=size))
        for piece in pieces:
            found.update(piece)
            self.stream.write(piece)
        self.stream.write(bytes(-size % 512))

    def end(self):
        self.stream.write(bytes(1024))


def _opened_blob(store, digest):
    try:
        return open(store.blob(digest), "rb", buffering=0)
    except OSError as exc:
        raise Error(f"blob {digest}: {exc.strerror}: pull the image again") from None


class _output:
    """Context: a stream to write to. A file appears under its name when it is whole."""

    def __init__(self, target):
        self.target = target
        self.temporary = None

    def __enter__(self):
        if hasattr(self.target, "write"):
            self.stream = self.target
        elif isinstance(self.target, int):
            self.stream = open(self.target, "wb", closefd=False)
        elif os.path.exists(self.target) and not os.path.isfile(self.target):
            self.stream = open(self.target, "wb")
        else:
            self.temporary = f"{self.target}.{os.getpid()}"
            try:
                self.stream = open(self.temporary, "wb")
            except OSError as exc:
                raise Error(f"{self.target}: {exc.strerror}") from exc
        return self.stream

    def __exit__(self, kind, exception, _traceback):
        try:
            if self.stream is not self.target:
                self.stream.close()
        except OSError as exc:
            if kind is None:
                kind, exception = type(exc), exc
        if self.temporary:
            if kind is None:
                os.replace(self.temporary, self.target)
            else:
                os.unlink(self.temporary)
        if isinstance(exception, OSError):
            where = self.target if isinstance(self.target, str) else "the archive"
            raise Error(f"{where}: {exception.strerror}") from exception


# Root file systems


def import_(store, source, name, platform=None, config=None, message="", limits=None):
    """Make an image of a root file system's tar; returns the Image.

    source: as with load; name: as people type it; config: the configuration's "config" (Env, Cmd, ...)
    """
    full = reference.parse(name).name
    return _import(store, source, full, platform, {"config": config or {}}, message, limits)


def _import(store, source, name, platform, whole, message, limits):
    """The Image of a root file system; named where `name` is given. whole: the configuration as far as it is known."""
    stated = manifests.parse_platform(platform)
    with store.lock("prune", shared=True):
        layer = _take_root(store, source, limits or tar.Limits())
        now = _now()
        facts = {"architecture": stated.architecture, "os": stated.system}
        if stated.variant:
            facts["variant"] = stated.variant
        entry = {"created": now, "created_by": "import", **({"comment": message} if message else {})}
        for key in ("id", "parent", "container", "history", "rootfs"):
            whole.pop(key, None)
        rootfs = {"type": "layers", "diff_ids": [layer["diff_id"]]}
        config = {**facts, **whole, "created": now, "rootfs": rootfs, "history": [entry]}
        return images.keep(store, name, config, [layer])


def _take_root(store, source, limits):
    """Keep a tar as a layer, also one compressed as layers cannot be; returns it as Image.layers has it."""
    with streams.opened(source) as descriptor, store.temporary() as folder:
        pieces = iter(lambda: os.read(descriptor, 1 << 17), b"")
        first = next(pieces, b"")
        while first and len(first) < 6:
            more = next(pieces, b"")
            if not more:
                break
            first += more
        pieces = _joined(first, pieces)
        if streams.compression(first) in ("bzip2", "xz"):
            pieces = streams.decompressed(pieces)
        written = os.path.join(folder, "blob")
        with open(written, "wb") as target:
            copy = _Copy(_Pieces(pieces), target, compress=True)
            diff_id = unpack.layer(store, copy, None, limits)
        size = os.stat(written).st_size
        if not store.has_blob(copy.digest):
            store.keep_blob(written, copy.digest)
        return {"digest": copy.digest, "diff_id": diff_id, "size": size}


def _joined(first, rest):
    yield first
    yield from rest


class _Pieces:
    """An object to read from, of an iterator of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def read(self, _size):
        return next(self.pieces, b"")


def import_container(store, source, name=None, image="", platform=None, options=None, clone=False, limits=None):
    """Make a container of a root file system's tar; returns containers.Container.

    image: what `ps` shows as its image; clone: the tar is of `export --clone`, udocker's form: the files are below
    ROOT/, and container.json is beside it
    """
    import tempfile

    from . import containers

    limits = limits or tar.Limits()
    with store.lock("prune", shared=True):
        if clone:
            with store.temporary() as folder, tempfile.TemporaryFile(dir=folder) as files:
                whole, said = _unwrap(source, files, limits)
                image = image or said
                platform = platform or _platform_of(whole)
                made = _import(store, files.fileno(), "", platform, dict(whole), "", limits)
        else:
            made = _import(store, source, "", platform, {}, "", limits)
        if image:
            try:
                made.name = reference.parse(image).name
            except Error:
                made.name = image
        return containers.create(store, made, dict(options or {}, **({"name": name} if name else {})))


def _platform_of(whole):
    parts = [whole.get(key) for key in ("os", "architecture", "variant")]
    parts = [part for part in parts if isinstance(part, str) and part]
    try:
        return str(manifests.parse_platform("/".join(parts))) if len(parts) > 1 else None
    except Error:
        return None


def _unwrap(source, target, limits):
    """Write the tar of a clone's files to `target`; returns (its container.json, its image's name)."""
    import json

    whole, image = {}, ""
    found = False
    with streams.opened(source) as descriptor:
        stream = tar.Plain(descriptor, limits)
        try:
            for member in tar.members(stream, limits):
                name = b"/".join(part for part in member.name.split(b"/") if part not in (b"", b"."))
                head, _slash, inside = name.partition(b"/")
                size = member.stored if member.kind in b"0\x007" else 0
                if name in (b"container.json", b"imagerepo.name") and size <= JSON_BYTES:
                    content = stream.read(size) if size else b""
                    stream.skip(-size % 512)
                    if name == b"container.json":
                        whole = json.loads(content.decode() or "{}")
                    else:
                        image = content.decode().strip()
                    continue
                if head == b"ROOT" and member.kind in b"0\x0012567" and member.sparse is None:
                    found = True
                    link = member.linkname
                    if member.kind == b"1":
                        link = b"/".join(part for part in link.split(b"/") if part not in (b"", b"."))
                        link = link.partition(b"/")[2]
                    kind = b"0" if member.kind in b"\x007" else member.kind
                    target.write(
                        tar.header(
                            (inside or b".") + (b"/" if kind == b"5" else b""), kind, size, member.mode, member.uid,
                            member.gid, member.mtime // 1000000000, link,
                            {os.fsdecode(key): value for key, value in (member.xattrs or {}).items()},
                        )
                    )  # fmt: skip
                    for part in stream.parts(size):
                        target.write(part)
                    target.write(bytes(-size % 512))
                    stream.skip(-size % 512)
                elif size:
                    stream.skip(size + -size % 512)
        except (ValueError, RecursionError):
            raise Error("container.json of the clone is no JSON") from None
        finally:
            stream.close()
    if not found or not isinstance(whole, dict):
        raise Error("this is no container of `export --clone`: there is no ROOT in it")
    target.write(bytes(1024))
    target.seek(0)
    return whole, image


def export(container, target, clone=False):
    """Write a container's files as a tar; clone: with container.json, in udocker's form (files below ROOT/)."""
    from . import pack

    with _output(target) as stream:
        if not clone:
            _piped(pack.export, container, stream)
            return
        import json

        archive = _Written(stream)
        archive.file("container.json", json.dumps(container.configuration()).encode())
        archive.file("imagerepo.name", container.image.encode())
        _piped(pack.export, container, stream, "ROOT")


def _piped(function, container, stream, *args):
    """Call function(container, descriptor, *args); what it writes to the descriptor goes to a stream."""
    try:
        stream.flush()
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        descriptor = None
    if descriptor is not None:
        function(container, descriptor, *args)
        return
    import threading

    source, descriptor = os.pipe2(os.O_CLOEXEC)

    def pump():
        with open(source, "rb", buffering=0) as pipe:
            for piece in iter(lambda: pipe.read(1 << 16), b""):
                stream.write(piece)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        function(container, descriptor, *args)
    finally:
        os.close(descriptor)
        thread.join()


def _now():
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
        where, media_type = descriptor["digest"], descriptor.get("mediaType") or ""
        content = archive.read(_blob(where), manifests.MANIFEST_BYTES)
        if len(content) != descriptor["size"] or not isinstance(media_type, str):
            raise Error(f"{where}: the manifest is not what the list of manifests says")
        return manifests.parse(content, where, media_type, where)

    for number, descriptor in enumerate(_distinct(top.manifests, platform)):
        where = descriptor["digest"]
        manifest = manifests.choose(fetch(descriptor), platform, fetch, where)
        config = archive.read(_blob(manifest.config["digest"]), manifests.CONFIG_BYTES)
        if (
            len(config) != manifest.config["size"]
            or hash_of(manifest.config["digest"], config) != manifest.config["digest"]
        ):
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

# SPDX-License-Identifier: Apache-2.0
"""What is kept on disk, and where: blobs and unpacked layers by content, images by name, containers by id.

    blobs/sha256/HEX                 what a registry holds: manifests, configurations, compressed layers
    layers/HEX/                      a layer unpacked once, named by its diff-id, in the form that overlay takes
    images/REPOSITORY/TAG.json       what a name stands for (Image); REPOSITORY is quoted so that it is one folder
    containers/ID/                   a container: record.json, container.json (as udocker keeps it), ROOT, upper, work
    containers/NAME -> ID            its names, as udocker keeps them
    tmp/                             what is half made; a lock tells what is still being worked on
    locks/                           one file a lock

Everything appears under its name by a rename, when it is whole. The folder may be one that udocker wrote: its own
repos/, layers/ and containers/ are read (see legacy), and nothing of it is changed.
"""

import errno
import os
import sys

from . import records
from .errors import Error, NotFound

CHUNK = 1 << 20
PATIENCE = 3600.0  # seconds that another process may hold a lock: as long as a large pull may take


def default_root():
    """Where the store is, unless the command line says otherwise."""
    home = os.environ.get("UDOCKER_DIR")
    return home or os.path.join(os.path.expanduser("~"), ".udocker")


class Image:
    """What a name stands for: the manifest's digest, and what is asked of it most."""

    __slots__ = ("config", "created", "layers", "manifest", "name", "platform", "size")

    def __init__(self, name, manifest, config, layers, created=0.0, platform="", size=0):
        self.name = name  # reference.Reference as text: registry/repository:tag
        self.manifest = manifest  # digests ("sha256:...") of the manifest and of the configuration
        self.config = config
        self.layers = layers  # [{"digest": of the blob, "diff_id": of the tar, "size": of the blob}], lowest first
        self.created = created  # seconds since the epoch: when it came to this store
        self.platform = platform  # linux/amd64
        self.size = size  # bytes of its blobs

    def as_dict(self):
        return {name: getattr(self, name) for name in self.__slots__}


class Store:
    """The store in folder `root`. Nothing is made before it is written."""

    def __init__(self, root=None):
        self.root = os.path.abspath(root or default_root())
        self.access = {}  # how registries are reached, as registry.connect takes it

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    # Blobs

    def blob(self, digest):
        """The path of a blob, whether it is there or not."""
        return self.path("blobs", *_parts(digest))

    def has_blob(self, digest):
        return os.path.exists(self.blob(digest))

    def read_blob(self, digest):
        """A small blob (manifest, configuration), verified; raises NotFound, Error."""
        try:
            with open(self.blob(digest), "rb") as source:
                content = source.read()
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the store: pull the image again") from None
        if hash_of(digest, content) != digest:
            raise Error(f"blob {digest} is damaged: pull the image again")
        return content

    def write_blob(self, content):
        """Keep a small blob; returns its digest."""
        digest = hash_of("sha256:" + 64 * "0", content)
        if not self.has_blob(digest):
            with self.temporary() as folder:
                path = os.path.join(folder, "blob")
                with open(path, "wb") as target:
                    target.write(content)
                self.keep_blob(path, digest)
        return digest

    def keep_blob(self, path, digest):
        """Take file `path`, whose content the caller has verified, as blob `digest`."""
        target = self.blob(digest)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)

    # Layers

    def layer(self, diff_id):
        """The folder of an unpacked layer, whether it is there or not."""
        return self.path("layers", _parts(diff_id)[1])

    def has_layer(self, diff_id):
        return os.path.isdir(self.layer(diff_id))

    def keep_layer(self, folder, diff_id):
        """Take `folder` as the unpacked layer; one that another process made meanwhile stays."""
        target = self.layer(diff_id)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.rename(folder, target)
        except OSError as exc:
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

    # Images

    def image(self, name):
        """The Image of a full name; raises NotFound."""
        try:
            return Image(**records.read(self._image_path(name)))
        except FileNotFoundError:
            raise NotFound(f"no image {name} in the store") from None
        except (ValueError, TypeError) as exc:
            raise Error(f"{self._image_path(name)}: {exc}: remove the image and pull it again") from exc

    def images(self):
        """All images, by name."""
        found = []
        for repository in _listed(self.path("images")):
            for tag in _listed(self.path("images", repository)):
                if tag.endswith(".json"):
                    found.append(self.image(f"{_unquote(repository)}:{_unquote(tag[:-5])}"))
        return sorted(found, key=lambda image: image.name)

    def write_image(self, image):
        records.write(self._image_path(image.name), image.as_dict())

    def remove_image(self, name):
        """Forget a name; blobs and layers stay until they are pruned. Raises NotFound."""
        path = self._image_path(name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            raise NotFound(f"no image {name} in the store") from None
        try:
            os.rmdir(os.path.dirname(path))
        except OSError:
            pass  # other tags are there

    def _image_path(self, name):
        repository, _colon, tag = name.rpartition(":")
        return self.path("images", _quote(repository), _quote(tag) + ".json")

    # Containers

    def container(self, identifier):
        """The folder of a container, whether it is there or not."""
        return self.path("containers", identifier)

    # What is half made

    def temporary(self):
        """A folder below tmp/, for a `with`; it goes when the block ends: what is to stay is renamed out of it."""
        return _Temporary(self.path("tmp"))

    def lock(self, name, shared=False):
        """Hold lock `name` (pull of one image, one container's state, prune) in a `with`; waits for others."""
        return _Lock(self.path("locks"), _quote(name), shared)


# Not made with contextlib: importing that takes longer than running a container.


class _Temporary:
    def __init__(self, parent):
        self.parent = parent

    def __enter__(self):
        import tempfile

        os.makedirs(self.parent, exist_ok=True)
        self.path, self.holder = held(lambda: tempfile.mkdtemp(dir=self.parent))
        return self.path

    def __exit__(self, *_exception):
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.holder)


def held(make):
    """(Path, descriptor that holds it) of the new folder that make() gives: `prune` removes what nobody holds."""
    import fcntl

    while True:
        path = make()
        try:
            holder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # removed before it was held
        fcntl.flock(holder, fcntl.LOCK_EX)
        if same_file(holder, path):
            return path, holder
        os.close(holder)


def same_file(descriptor, path):
    """Whether what is open is what has that name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class _Lock:
    def __init__(self, folder, name, shared):
        self.folder, self.name, self.shared = folder, name, shared

    def __enter__(self):
        import fcntl

        os.makedirs(self.folder, exist_ok=True)
        self.holder = os.open(os.path.join(self.folder, self.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait(fcntl, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BaseException:
            os.close(self.holder)
            raise

    def _wait(self, fcntl, how):
        import time

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(self.holder, how)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    path = os.path.join(self.folder, self.name)
                    raise Error(
                        f"another process has held the lock {path} for {PATIENCE:.0f} s: "
                        f"`fuser {path}` names it; end it, or try again"
                    ) from None
                time.sleep(0.05)

    def __exit__(self, *_exception):
        os.close(self.holder)


_SECOND = "_sha2" if sys.version_info >= (3, 12) else None
_BUILT_IN = {"sha256": _SECOND or "_sha256", "sha512": _SECOND or "_sha512"}


def hash_of(digest, content=b""):
    """The digest of `content` with the algorithm that `digest` uses."""
    algorithm = _parts(digest)[0]
    try:
        # What Python has built in: OpenSSL takes longer to load than a manifest to hash.
        new = getattr(__import__(_BUILT_IN[algorithm]), algorithm)
    except (ImportError, AttributeError):
        import hashlib

        new = getattr(hashlib, algorithm)
    return f"{algorithm}:{new(content).hexdigest()}"


def _parts(digest):
    algorithm, _colon, value = digest.partition(":")
    lengths = {"sha256": 64, "sha512": 128}
    if len(value) != lengths.get(algorithm) or value.strip("0123456789abcdef"):
        raise Error(f"{digest!r} is no digest: sha256: and 64 hexadecimal digits are")
    return algorithm, value


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _quote(name):
    """One file name that stands for `name`, and tells it from every other."""
    content = name.encode("utf-8", "surrogateescape")
    return "".join([chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in content])


def _unquote(name):
    first, *rest = name.encode("utf-8", "surrogateescape").split(b"%")
    content = first + b"".join([bytes([int(part[:2], 16)]) + part[2:] for part in rest])
    return content.decode("utf-8", "surrogateescape")


def _listed(path):
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []

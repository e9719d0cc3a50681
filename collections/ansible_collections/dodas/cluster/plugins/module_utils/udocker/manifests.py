# SPDX-License-Identifier: Apache-2.0
"""Manifests and lists of manifests, of Docker and OCI: checked, and the best one chosen for a platform."""

import json
import os

from .errors import Error, NotFound
from .reference import check_digest

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

LISTS = (DOCKER_LIST, OCI_INDEX)
IMAGES = (DOCKER_MANIFEST, OCI_MANIFEST)
ACCEPTED = LISTS + IMAGES
CONFIGS = (DOCKER_CONFIG, OCI_CONFIG)
LAYERS = (
    DOCKER_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    OCI_LAYER,
    OCI_LAYER + "+gzip",
    OCI_LAYER + "+zstd",
)

MANIFEST_BYTES = 4 << 20
CONFIG_BYTES = 16 << 20
LAYER_BYTES = 1 << 40
LAYER_COUNT = 1024
DEPTH = 4  # lists within lists

_OLD = "application/vnd.docker.distribution.manifest.v1"
_GENERIC = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm/v7",
    "armv8l": "arm/v7",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "armel": "arm/v6",
    "armv5tel": "arm/v5",
    "loongarch64": "loong64",
}
_SYSTEMS = ("linux", "windows", "darwin", "freebsd")
# What an architecture that says no variant has.
_USUAL = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_ARM = ("v5", "v6", "v7", "v8")


class Platform:
    """os/architecture[/variant], as images name them."""

    __slots__ = ("architecture", "system", "variant")

    def __init__(self, system, architecture, variant=""):
        self.system = system
        self.architecture = architecture
        self.variant = variant

    def __str__(self):
        return "/".join(filter(None, (self.system, self.architecture, self.variant)))

    def rank(self, other):
        """How well this platform runs what is made for `other`: 0 not at all, else the more the better."""
        if (self.system, self.architecture) != (other.system, other.architecture):
            return 0
        usual = _USUAL.get(self.architecture, "")
        mine, its = self.variant or usual, other.variant or usual
        if mine == its:
            return 100 if self.variant == other.variant or not self.variant else 99
        if self.architecture == "arm" and mine in _ARM and its in _ARM and its < mine:
            return 50 + _ARM.index(its)
        if self.architecture == "amd64" and its.startswith("v") and mine.startswith("v") and its < mine:
            return 50 + int(its[1:]) if its[1:].isdigit() else 0
        return 0


def parse_platform(text=None):
    """The Platform that `text` names ("linux/arm64/v8", "arm64", "linux"); this machine's for None; raises Error."""
    if isinstance(text, Platform):
        return text
    machine = os.uname().machine
    here = _ARCHITECTURES.get(machine, machine)
    if not text:
        return Platform("linux", *here.split("/"))
    parts = text.strip().lower().split("/")
    if parts[0] not in _SYSTEMS:
        parts.insert(0, "linux")
    if len(parts) == 1:
        parts += here.split("/")
    parts[1:2] = _ARCHITECTURES.get(parts[1], parts[1]).split("/")
    if len(parts) > 4 or not all(parts) or any(not part.replace(".", "").isalnum() for part in parts):
        raise Error(f"{text!r} is no platform: os/architecture[/variant] is, as linux/arm64/v8")
    return Platform(parts[0], parts[1], parts[-1] if len(parts) > 2 else "")


class Manifest:
    """A checked manifest or list: `content` (bytes, as they came), `digest`, `media_type`, `document`."""

    __slots__ = ("content", "digest", "document", "media_type")

    def __init__(self, content, digest, media_type, document):
        self.content = content
        self.digest = digest
        self.media_type = media_type
        self.document = document

    @property
    def is_list(self):
        return self.media_type in LISTS

    @property
    def config(self):
        """The descriptor of the configuration."""
        return self.document["config"]

    @property
    def layers(self):
        """The descriptors of the layers, lowest first."""
        return self.document["layers"]

    @property
    def manifests(self):
        """The descriptors of a list."""
        return self.document["manifests"]


def parse(content, where, media_type="", digest=None):
    """The Manifest in `content`; raises Error, naming `where` it is from.

    media_type: as the registry said, "" if it did not; digest: that was asked for
    """
    import hashlib

    if len(content) > MANIFEST_BYTES:
        raise Error(f"{where}: the manifest is longer than {MANIFEST_BYTES} bytes: refused")
    algorithm = (digest or "sha256:").partition(":")[0]
    actual = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    if digest and actual != digest:
        raise Error(f"{where}: the manifest is not what its digest says: it has {actual}: refused")
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise Error(f"{where}: the manifest is no JSON") from None
    if not isinstance(document, dict):
        raise Error(f"{where}: the manifest is no JSON object")
    media_type = media_type.partition(";")[0].strip().lower()
    if document.get("schemaVersion") == 1 or media_type.startswith(_OLD):
        raise Error(f"{where}: the image has a manifest of schema 1, which nothing vouches for: push it anew")
    stated = document.get("mediaType")
    if media_type in _GENERIC:
        media_type = stated or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    elif stated and stated != media_type:
        raise Error(f"{where}: the manifest says it is {stated!r}, the registry {media_type!r}: refused")
    if media_type not in ACCEPTED:
        raise Error(f"{where}: {media_type!r} is no manifest of an image")
    if ("manifests" in document) != (media_type in LISTS) or ("layers" in document) != (media_type in IMAGES):
        raise Error(f"{where}: the manifest holds other than its type {media_type} says: refused")
    manifest = Manifest(content, actual, media_type, document)
    _check(manifest, where)
    return manifest


def _check(manifest, where):
    if manifest.is_list:
        _check_descriptors(manifest.manifests, where, MANIFEST_BYTES)
        return
    _check_descriptors([manifest.document.get("config")], where, CONFIG_BYTES)
    if manifest.config.get("mediaType") not in CONFIGS:
        raise Error(f"{where}: this is no image of a container, but {manifest.config.get('mediaType')!r}")
    _check_descriptors(manifest.layers, where, LAYER_BYTES)
    for layer in manifest.layers:
        kind = layer.get("mediaType")
        if layer.get("urls") or "foreign" in str(kind) or "nondistributable" in str(kind):
            raise Error(f"{where}: layer {layer['digest']} is to be had from elsewhere than the registry: refused")
        if kind not in LAYERS:
            raise Error(f"{where}: layer {layer['digest']} is of the unknown type {kind!r}")


def _check_descriptors(descriptors, where, limit):
    if not isinstance(descriptors, list) or len(descriptors) > LAYER_COUNT:
        raise Error(f"{where}: the manifest's list is none, or longer than {LAYER_COUNT}")
    for descriptor in descriptors:
        if not isinstance(descriptor, dict) or not isinstance(descriptor.get("digest"), str):
            raise Error(f"{where}: the manifest names something without a digest")
        try:
            check_digest(descriptor["digest"])
        except Error as exc:
            raise Error(f"{where}: {exc}") from None
        size = descriptor.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= limit:
            raise Error(f"{where}: {descriptor['digest']} has the size {size!r}: refused")


def candidates(manifest, platform):
    """The descriptors of a list that suit a platform, best first, and after them the lists within the list."""
    ranked, nested, silent = [], [], []
    for position, descriptor in enumerate(manifest.manifests):
        if descriptor.get("mediaType") in LISTS:
            nested.append(descriptor)
            continue
        stated = descriptor.get("platform")
        if not isinstance(stated, dict) or not stated.get("architecture"):
            silent.append(descriptor)
            continue
        rank = platform.rank(_stated(stated))
        if rank:
            ranked.append((-rank, position, descriptor))
    found = [descriptor for _rank, _position, descriptor in sorted(ranked, key=lambda entry: entry[:2])]
    if not found and len(silent) == len(manifest.manifests) == 1:
        found = silent
    return found + nested


def choose(manifest, platform, fetch, where):
    """The image's Manifest for a platform: `manifest` itself, or one of its list; raises Error, NotFound.

    fetch: a function that returns the Manifest of a descriptor
    """
    chosen, offered = _choose(manifest, platform, fetch, where, ())
    if chosen is None:
        raise NotFound(f"{where} has no image for {platform}, but for: {', '.join(sorted(offered)) or 'none'}")
    return chosen


def _choose(manifest, platform, fetch, where, above):
    if not manifest.is_list:
        return manifest, set()
    if len(above) >= DEPTH:
        raise Error(f"{where}: lists of manifests within lists, more than {DEPTH} deep: refused")
    if manifest.digest in above:
        raise Error(f"{where}: a list of manifests that contains itself: refused")
    offered = {
        str(_stated(descriptor["platform"]))
        for descriptor in manifest.manifests
        if isinstance(descriptor.get("platform"), dict) and descriptor["platform"].get("os") != "unknown"
    }
    for descriptor in candidates(manifest, platform):
        if descriptor["digest"] in (*above, manifest.digest):
            raise Error(f"{where}: a list of manifests that contains itself: refused")
        chosen, more = _choose(fetch(descriptor), platform, fetch, where, (*above, manifest.digest))
        if chosen is not None:
            return chosen, offered
        offered |= more
    return None, offered


def _stated(platform):
    """The Platform of a descriptor or of a configuration."""
    values = [str(platform.get(key) or "") for key in ("os", "architecture", "variant")]
    return Platform(*values)


def parse_config(content, manifest, where):
    """(configuration, diff-ids, Platform) of an image; raises Error."""
    try:
        config = json.loads(content.decode())
        diff_ids = config["rootfs"]["diff_ids"]
        for diff_id in diff_ids:
            check_digest(diff_id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Error(f"{where}: the configuration of the image is not what it should be") from None
    if len(diff_ids) != len(manifest.layers):
        raise Error(f"{where}: the manifest has {len(manifest.layers)} layers, the configuration {len(diff_ids)}")
    return config, diff_ids, _stated(config)

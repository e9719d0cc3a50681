# SPDX-License-Identifier: Apache-2.0
"""Images of the store: kept, named, looked at, checked, removed."""

import time

from . import manifests
from .errors import Error, NotFound
from .store import Image


def keep(store, name, config, layers, created=None):
    """Write the manifest of an image whose layers are in the store, and give it a name; returns the Image.

    name: full (reference.parse(...).name); config: the configuration, bytes or a mapping
    layers: [{"digest", "diff_id", "size"}, optionally "mediaType"], lowest first
    """
    import json

    if not isinstance(config, bytes):
        config = json.dumps(config, separators=(",", ":")).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "config": {"mediaType": manifests.OCI_CONFIG, "digest": store.write_blob(config), "size": len(config)},
        "layers": [
            {
                "mediaType": layer.get("mediaType") or media_type(store.blob(layer["digest"])),
                "digest": layer["digest"],
                "size": layer["size"],
            }
            for layer in layers
        ],
    }
    content = json.dumps(document, separators=(",", ":")).encode()
    return record(store, name, manifests.parse(content, name), config, created)


def record(store, name, manifest, config, created=None):
    """Give a name to the image of a checked Manifest whose configuration (bytes) and layers are in the store."""
    _config, diff_ids, platform = manifests.parse_config(config, manifest, name)
    layers = [
        {"digest": layer["digest"], "diff_id": diff_id, "size": layer["size"]}
        for layer, diff_id in zip(manifest.layers, diff_ids)
    ]
    store.write_blob(manifest.content)
    size = len(manifest.content) + len(config) + sum(layer["size"] for layer in layers)
    created = time.time() if created is None else created
    image = Image(name, manifest.digest, manifest.config["digest"], layers, created, str(platform), size)
    store.write_image(image)
    return image


def media_type(path):
    """OCI's type of the layer in a file, by its first bytes. Raises Error for those that registries do not know."""
    with open(path, "rb") as source:
        head = source.read(4)
    if head[:2] == b"\x1f\x8b":
        return manifests.OCI_LAYER + "+gzip"
    if head == b"(\xb5/\xfd" or head[1:4] == b"*M\x18":
        return manifests.OCI_LAYER + "+zstd"
    if head[:3] == b"BZh" or head == b"\xfd7zX":
        raise Error(f"{path}: no image has layers compressed like this")
    return manifests.OCI_LAYER


def find(store, text):
    """The Image that `text` names: a name as people type it, or the beginning of an image's id or digest.

    Raises NotFound; Error where several images begin so.
    """
    from . import reference

    try:
        parsed = reference.parse(text)
    except Error:
        parsed = None
    if parsed is not None:
        try:
            return store.image(parsed.name)
        except NotFound:
            pass
        if parsed.tag and parsed.digest:
            try:
                return store.image(f"{parsed.registry}/{parsed.repository}@{parsed.digest}")
            except NotFound:
                pass
    start = text.partition(":")[2] if text.startswith("sha256:") else text
    found = {}
    if len(start) >= 4 and not start.strip("0123456789abcdef"):
        for image in store.images():
            if image.config.partition(":")[2].startswith(start) or image.manifest.partition(":")[2].startswith(start):
                found.setdefault(image.config, image)
    if len(found) > 1:
        raise Error(f"{text}: several images begin so: give more digits")
    if not found:
        raise NotFound(f"no image {text} in the store: pull or load it")
    return next(iter(found.values()))


def familiar(name):
    """A full name as people type it."""
    from . import reference

    try:
        return reference.parse(name).familiar
    except Error:
        return name

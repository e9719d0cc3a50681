# SPDX-License-Identifier: Apache-2.0
"""What udocker 1.3.17 keeps in the same folder: its images are listed, and taken over when they are first used.

    repos/REPOSITORY/TAG/     a folder with the file TAG, and v1 or v2: links to layers/, and JSON
    layers/                   tars, compressed or not, named sha256:HEX or HEX.layer; configurations
    containers/ID/            see containers, which runs them where they are

Nothing of it is changed: an image that is taken over is copied.
"""

import os

from . import reference
from .errors import Error, NotFound

JSON_BYTES = 16 << 20


class Old:
    """An image of udocker's: its full `name`, the `folder` that describes it, whether it is `protected`."""

    __slots__ = ("folder", "name", "protected")

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.protected = os.path.exists(os.path.join(folder, "PROTECT"))


def listed(store):
    """All images of udocker's (Old) that can be taken over and are not hidden, by name."""
    found = {}
    top = store.path("repos")
    pending = [("", top)] if os.path.isdir(top) else []
    while pending:
        inside, path = pending.pop()
        try:
            with os.scandir(path) as entries:
                folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for entry in folders:
            if os.path.isfile(os.path.join(entry.path, "TAG")):
                try:
                    name = reference.parse(f"{inside}:{entry.name}").name
                except Error:
                    continue  # it gives those names that nobody can ask for, too
                if not os.path.exists(_hidden(store, name)):
                    found[name] = Old(name, entry.path)
            else:
                pending.append((f"{inside}/{entry.name}" if inside else entry.name, entry.path))
    return [found[name] for name in sorted(found)]


def image(store, name):
    """The Image of a name as people type it, taken over from udocker's; raises NotFound, Error."""
    wanted = reference.parse(name).name
    for old in listed(store):
        if old.name == wanted:
            return _take(store, old)
    raise NotFound(f"no image {name} of udocker 1.3.17 in {store.path('repos')}")


def hide(store, name):
    """Neither list nor find udocker's image of a full name any more: it was removed, and its files stay."""
    if any(old.name == name for old in listed(store)):
        path = _hidden(store, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii"):
            pass


def facts(store, old):
    """The store's Image of an Old one as far as it is known without reading layers: it has no digests."""
    from . import manifests
    from .store import Image

    try:
        config, files = _description(store, old)
    except Error:
        config, files = {}, []
    layers = []
    for path, _diff_id in files:
        digest = os.path.basename(path).partition(".")[0].rpartition(":")[2]
        layers.append({"digest": f"sha256:{digest}", "diff_id": "", "size": os.path.getsize(path)})
    platform = str(manifests._stated(config)) if config else ""
    size = sum(layer["size"] for layer in layers)
    return Image(old.name, "", "", layers, os.stat(old.folder).st_mtime, platform, size)


def _take(store, old):
    """Copy an image to the store."""
    from . import archives, images, manifests, tar

    config, files = _description(store, old)
    limits = tar.Limits()
    layers = []
    with store.lock("prune", shared=True):
        for path, diff_id in files:
            layer = archives.take(store, path, diff_id, limits)
            layers.append(layer)
        whole = dict(config)
        whole["rootfs"] = {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]}
        host = manifests.parse_platform()
        whole.setdefault("os", host.system)
        whole.setdefault("architecture", host.architecture)
        return images.keep(store, old.name, whole, layers)


def _description(store, old):
    """(configuration, [(path of a layer, its diff-id or None)], lowest first); raises Error."""
    names = set(os.listdir(old.folder))
    if "v2" in names:
        config, files = _second(store, old)
    elif "ancestry" in names:
        ancestry = _json(store, old, "ancestry", list)
        files = [_path(store, old, f"{name}.layer") for name in reversed(ancestry)]
        described = "container.json" if "container.json" in names else f"{ancestry[0]}.json"
        config = _json(store, old, described, dict)
    else:
        raise Error(f"{old.folder}: the image is not whole: pull or load it again")
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") if isinstance(config.get("rootfs"), dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(files):
        diff_ids = [None] * len(files)
    return config, list(zip(files, diff_ids))


def _second(store, old):
    """Of an image from a registry: its manifest is of schema 2, or 1."""
    import json

    manifest = _json(store, old, "manifest", dict)
    try:
        if "fsLayers" in manifest:
            files = [_path(store, old, layer["blobSum"]) for layer in reversed(manifest["fsLayers"])]
            return json.loads(manifest["history"][0]["v1Compatibility"]), files
        # udocker appends the configuration to the layers while it pulls.
        layers = [one for one in manifest["layers"] if one["digest"] != manifest["config"]["digest"]]
        files = [_path(store, old, layer["digest"]) for layer in layers]
        return _json(store, old, manifest["config"]["digest"], dict), files
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise Error(f"{old.folder}/manifest is not what it should be: pull the image again") from None


def _path(store, old, name):
    """The file that a name in the image's folder leads to, which is in the store."""
    if not isinstance(name, str) or "/" in name:
        raise Error(f"{old.folder}: {name!r} is no layer")
    path = os.path.realpath(os.path.join(old.folder, name))
    if not path.startswith(os.path.realpath(store.root) + os.sep):
        raise Error(f"{old.folder}/{name} leads out of the store")
    if not os.path.isfile(path):
        raise Error(f"{old.folder}/{name}: the image is not whole: pull or load it again")
    return path


def _json(store, old, name, kind):
    import json

    path = _path(store, old, name)
    if os.path.getsize(path) > JSON_BYTES:
        raise Error(f"{path} is too long")
    try:
        with open(path, encoding="utf-8") as source:
            value = json.load(source)
    except (ValueError, RecursionError):
        raise Error(f"{path} is no JSON") from None
    if not isinstance(value, kind):
        raise Error(f"{path} is not what it should be")
    return value


def _hidden(store, name):
    return store._image_path(name)[: -len(".json")] + ".gone"

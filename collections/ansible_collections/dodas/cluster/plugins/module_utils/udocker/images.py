# SPDX-License-Identifier: Apache-2.0
"""Images of the store: kept, named, looked at, checked, removed."""

import os
import stat
import time

from . import manifests
from .errors import Error, NotFound
from .store import Image

SETTLED = 60.0  # seconds after which what nobody holds a lock on is nobody's
KEPT_STEPS = 30 * 86400.0  # seconds that the cache of builds keeps what no build uses


# Keep


def keep(store, name, config, layers, created=None):
    """Write the manifest of an image whose layers are in the store, and give it a name; returns the Image.

    name: full (reference.parse(...).name), "" for none: only what names its manifest keeps it from being pruned
    config: the configuration, bytes or a mapping
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
    """Give a name to the image of a checked Manifest whose layers are in the store; config: its configuration."""
    _config, diff_ids, platform = manifests.parse_config(config, manifest, name)
    layers = [
        {"digest": layer["digest"], "diff_id": diff_id, "size": layer["size"]}
        for layer, diff_id in zip(manifest.layers, diff_ids)
    ]
    store.write_blob(config)
    store.write_blob(manifest.content)
    size = len(manifest.content) + len(config) + sum(layer["size"] for layer in layers)
    created = time.time() if created is None else created
    image = Image(name, manifest.digest, manifest.config["digest"], layers, created, str(platform), size)
    if name:
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


# Names


def find(store, text):
    """The Image that `text` names: a name as people type it, or the beginning of an image's id or digest.

    One of udocker 1.3.17's is taken over.

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
    if not found and os.path.isdir(store.path("repos")) and parsed is not None:
        from . import legacy

        return legacy.image(store, text)
    if len(found) > 1:
        raise Error(f"{text}: several images begin so: give more digits")
    if not found:
        raise NotFound(f"no image {text} in the store: pull or load it")
    return next(iter(found.values()))


def listed(store):
    """All Images, by name; those of udocker 1.3.17 that were not used yet have no digests."""
    found = {image.name: image for image in store.images()}
    if os.path.isdir(store.path("repos")):
        from . import legacy

        for old in legacy.listed(store):
            if old.name not in found:
                found[old.name] = legacy.facts(store, old)
    return [found[name] for name in sorted(found)]


def familiar(name):
    """A full name as people type it."""
    from . import reference

    try:
        return reference.parse(name).familiar
    except Error:
        return name


def tag(store, image, name):
    """Give an Image a further name, as people type it; returns the Image of that name."""
    from . import reference

    full = reference.parse(name)
    if full.digest:
        raise Error(f"{name}: a digest cannot be given to an image, a tag can")
    if is_protected(store, full.name):
        raise Error(f"{name} is protected: unprotect it first")
    facts = image.as_dict()
    facts["name"] = full.name
    with store.lock("prune", shared=True):
        missing = _missing(store, image)
        if missing:
            raise Error(f"{familiar(image.name)}: {missing[0]}")
        store.write_image(Image(**facts))
    return store.image(full.name)


def protect(store, name):
    """Let nobody remove the image of a full name; raises NotFound."""
    store.image(name)
    with open(_protection(store, name), "w", encoding="ascii"):
        pass


def unprotect(store, name):
    """Let it be removed again; raises NotFound."""
    store.image(name)
    try:
        os.unlink(_protection(store, name))
    except FileNotFoundError:
        pass


def is_protected(store, name):
    if os.path.exists(_protection(store, name)):
        return True
    if not os.path.isdir(store.path("repos")):
        return False
    from . import legacy

    return any(old.protected for old in legacy.listed(store) if old.name == name)


def _protection(store, name):
    return store._image_path(name)[: -len(".json")] + ".protected"


# Look


def configuration(store, image):
    """The configuration, a mapping: what udocker calls container.json."""
    import json

    return json.loads(store.read_blob(image.config).decode())


def manifest(store, image):
    """The manifest, a mapping."""
    import json

    return json.loads(store.read_blob(image.manifest).decode())


def inspect(store, image):
    """What `docker inspect` says of an image: a dictionary of its form."""
    whole = configuration(store, image)
    same = [other.name for other in store.images() if other.config == image.config]
    digests = {
        f"{name.partition('@')[0] if '@' in name else name.rpartition(':')[0]}@{image.manifest}" for name in same
    }
    return {
        "Id": image.config,
        "RepoTags": [familiar(name) for name in same if "@" not in name],
        "RepoDigests": sorted(familiar(name) for name in digests),
        "Parent": "",
        "Comment": whole.get("comment") or "",
        "Created": whole.get("created") or "",
        "DockerVersion": whole.get("docker_version") or "",
        "Author": whole.get("author") or "",
        "Config": whole.get("config") or whole.get("container_config") or {},
        "Architecture": whole.get("architecture") or "",
        "Variant": whole.get("variant") or "",
        "Os": whole.get("os") or "",
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": {
            "Name": "overlay",
            "Data": {"LowerDir": ":".join(store.layer(layer["diff_id"]) for layer in reversed(image.layers))},
        },
        "RootFS": {"Type": "layers", "Layers": [layer["diff_id"] for layer in image.layers]},
        "Digest": image.manifest,
        "History": whole.get("history") or [],
        "Protected": is_protected(store, image.name),
    }


def history(store, image):
    """How an image was made, newest first: [{"id", "created", "created_by", "size", "comment"}].

    created: text as in the configuration, "" for unknown; size: bytes of the layer, as it is compressed
    """
    whole = configuration(store, image)
    layers = list(image.layers)
    found = []
    steps = whole.get("history")
    for step in steps if isinstance(steps, list) else []:
        step = step if isinstance(step, dict) else {}
        size = 0
        if not step.get("empty_layer") and layers:
            size = layers.pop(0)["size"]
        found.append((step, size))
    found += [({}, layer["size"]) for layer in layers]
    rows = [
        {
            "id": "<missing>",
            "created": str(step.get("created") or ""),
            "created_by": str(step.get("created_by") or ""),
            "size": size,
            "comment": str(step.get("comment") or ""),
        }
        for step, size in reversed(found)
    ]
    if rows:
        rows[0]["id"] = image.config
    return rows


# Check


def verify(store, image, progress=None):
    """What is wrong with an image, as texts: blobs that are not what their names say, layers whose files changed."""
    import json

    from . import unpack, userns

    problems = []
    blobs = [image.manifest, image.config] + [layer["digest"] for layer in image.layers]
    for digest in dict.fromkeys(blobs):
        if progress:
            progress("verify", digest=digest)
        problem = _check_blob(store, digest)
        if problem:
            problems.append(problem)
    if not problems:
        config = json.loads(store.read_blob(image.config).decode())
        if config["rootfs"]["diff_ids"] != [layer["diff_id"] for layer in image.layers]:
            problems.append(f"configuration {image.config}: names other layers than the image has")
    for diff_id in dict.fromkeys(layer["diff_id"] for layer in image.layers):
        if progress:
            progress("verify", digest=diff_id)
        if not store.has_layer(diff_id):
            problems.append(f"layer {diff_id} is missing: pull or load the image again")
            continue
        try:
            known = unpack.summary(store, diff_id)
        except Error as exc:
            problems.append(str(exc))
            continue
        if known is None:
            problems.append(f"layer {diff_id}: what it held was not recorded, so that it cannot be checked")
            continue
        problems += [f"layer {diff_id}: {problem}" for problem in userns.call(_check_tree, store.layer(diff_id), known)]
    return problems


def _check_blob(store, digest):
    import hashlib

    algorithm, _colon, value = digest.partition(":")
    found = hashlib.new(algorithm)
    try:
        with open(store.blob(digest), "rb") as source:
            for piece in iter(lambda: source.read(1 << 20), b""):
                found.update(piece)
    except OSError as exc:
        return f"blob {digest}: {exc.strerror}: pull or load the image again"
    return None if found.hexdigest() == value else f"blob {digest} is damaged: remove the image, and pull it again"


def _check_tree(folder, known, most=20):
    """How the files of an unpacked layer differ from what was recorded, `most` at the most."""
    problems = []
    left = {path for path, entry in known.items() if entry[1] not in "cb"}
    # Folders whose names a scan shows are looked at in turn: nothing is reached through a link.
    pending = [b""]
    while pending and len(problems) < most:
        inside = pending.pop()
        path = os.path.join(os.fsencode(folder), inside)
        problem = _check_entry(path, known.get(inside))
        left.discard(inside)
        if problem:
            problems.append(f"/{os.fsdecode(inside)}: {problem}")
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                if name == b".wh..wh..opq":
                    continue
                name = name[4:] if name.startswith(b".wh.") else name
                pending.append(inside + b"/" + name if inside else name)
    problems += [f"/{os.fsdecode(path)}: is missing" for path in sorted(left)] if len(problems) < most else []
    return problems[:most]


def _check_entry(path, entry):
    import zlib

    from .unpack import OWNER

    if entry is None:
        return "is not of the layer"
    _path, kind, mode, uid, gid, size, mtime, more = entry
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        marked = os.path.join(os.path.dirname(path), b".wh." + os.path.basename(path))
        return None if kind == "w" and os.path.exists(marked) else "is missing"
    actual = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "w"}
    if actual.get(stat.S_IFMT(status.st_mode)) != kind:
        return "is of another kind"
    if kind == "w":
        return None
    if kind == "l":
        return None if os.fsdecode(os.readlink(path)) == more else "leads elsewhere"
    noted = False
    if kind in "fd":
        try:
            noted = bool(os.getxattr(path, OWNER, follow_symlinks=False))
        except OSError:
            pass
    if not noted and stat.S_IMODE(status.st_mode) != mode and not os.geteuid():
        return f"has mode {stat.S_IMODE(status.st_mode):o} instead of {mode:o}"
    if not noted and not os.geteuid() and (status.st_uid, status.st_gid) != (uid, gid) and kind != "p":
        return f"belongs to {status.st_uid}:{status.st_gid} instead of {uid}:{gid}"
    if int(status.st_mtime) != mtime // 1000000000:
        return "was changed at another time"
    if kind == "f":
        if status.st_size != size:
            return f"has {status.st_size} bytes instead of {size}"
        if more is not None:
            crc = 0
            with open(path, "rb", buffering=0) as source:
                for piece in iter(lambda: source.read(1 << 20), b""):
                    crc = zlib.crc32(piece, crc)
            if crc != more:
                return "holds something else"
    return None


def _missing(store, image):
    lost = [digest for digest in (image.manifest, image.config) if not store.has_blob(digest)]
    lost += [layer["diff_id"] for layer in image.layers if not store.has_layer(layer["diff_id"])]
    return [f"{digest} is not in the store: pull or load the image again" for digest in lost]


# Remove


def users(store, image):
    """The containers that were made of an Image."""
    from . import containers

    return [one for one in containers.listed(store) if one.record.get("manifest") == image.manifest]


def remove(store, image, force=False, prune=True):
    """Forget an Image's name; returns [("untagged", name)] and what went with its last name, ("deleted", digest).

    prune: layers that nobody else uses go, too. Raises Error: it is protected, or containers use it (which force
    does not mind: they keep their layers).
    """
    if is_protected(store, image.name):
        raise Error(f"{familiar(image.name)} is protected: unprotect it first")
    with store.lock("prune"):
        last = not any(other.manifest == image.manifest and other.name != image.name for other in store.images())
        using = users(store, image) if last and not force else []
        if using:
            names = ", ".join(container.name for container in using[:5])
            raise Error(f"{familiar(image.name)} is used by {len(using)} containers ({names}): remove them, or use -f")
        store.remove_image(image.name)
        if os.path.isdir(store.path("repos")):
            from . import legacy

            legacy.hide(store, image.name)
        done = [("untagged", familiar(image.name))]
        if last and prune:
            own = {image.manifest, image.config}
            for layer in image.layers:
                own.update((layer["digest"], layer["diff_id"]))
            blobs, layers = _unused(store)
            gone = [digest for digest in blobs + layers if digest in own]
            _discard(store, [digest for digest in blobs if digest in own], [one for one in layers if one in own])
            done += [("deleted", digest) for digest in gone]
    return done


def prune(store, all_images=False, dry_run=False, age=SETTLED):
    """Remove what nothing uses; returns {"images", "blobs", "layers", "temporary": lists of names, "bytes": freed}.

    all_images: also images that no container was made of, and the cache of builds; dry_run: only say what would go
    age: seconds that something half made must have been left alone
    """
    from . import cache

    with store.lock("prune"):
        if not dry_run:
            cache.prune(store, 0 if all_images else KEPT_STEPS)
        images = []
        if all_images:
            for image in store.images():
                if not is_protected(store, image.name) and not users(store, image):
                    images.append(image.name)
        blobs, layers = _unused(store, set(images))
        temporary = _abandoned(store, age)
        size = sum(os.path.getsize(store.blob(digest)) for digest in blobs)
        size += sum(layer_size(store, diff_id) for diff_id in layers)
        size += sum(_tree_size(store, path) for path in temporary)
        if not dry_run:
            for name in images:
                store.remove_image(name)
            _discard(store, blobs, layers)
            _sweep(store, temporary)
    names = [os.path.relpath(path, store.root) for path in temporary]
    shown = [familiar(name) for name in images]
    return {"images": shown, "blobs": blobs, "layers": layers, "temporary": names, "bytes": size}


def _used(store, without=()):
    """The digests of all blobs and layers (by diff-id) that images, containers and steps of builds need."""
    from . import cache, containers

    used = set()
    listed = [image for image in store.images() if image.name not in without]
    for image in listed:
        used.update((image.manifest, image.config))
        for layer in image.layers:
            used.update((layer["digest"], layer["diff_id"]))
    for diff_id, layer in cache.layers(store).items():
        used.update((diff_id, layer["digest"]))
    for container in containers.listed(store):
        used.update(container.record.get("layers") or ())
        digest = container.record.get("manifest")
        if digest and digest not in used and store.has_blob(digest):
            # Its image has no name any more: what a commit needs stays.
            used.add(digest)
            content = manifests.parse(store.read_blob(digest), digest)
            used.update([content.config["digest"]] + [layer["digest"] for layer in content.layers])
    return used


def _unused(store, without=()):
    used = _used(store, without)
    blobs = [
        f"{algorithm}:{name}"
        for algorithm in ("sha256", "sha512")
        for name in _listed(store.path("blobs", algorithm))
        if f"{algorithm}:{name}" not in used
    ]
    kept = {digest.partition(":")[2] for digest in used}
    layers = [
        f"{'sha256' if len(name) == 64 else 'sha512'}:{name}"
        for name in _listed(store.path("layers"))
        if name not in kept and _is_layer(store, name)
    ]
    return blobs, layers


def _is_layer(store, name):
    # udocker 1.3.17 keeps files in the same folder.
    return len(name) in (64, 128) and not name.strip("0123456789abcdef") and os.path.isdir(store.path("layers", name))


def _discard(store, blobs, layers):
    """Remove blobs and layers; one that is being removed is no layer any more from its first moment on."""
    from . import userns

    for digest in blobs:
        os.unlink(store.blob(digest))
    if layers:
        with store.temporary() as folder:
            userns.call(_remove_layers, [store.layer(diff_id) for diff_id in layers], folder)
    for name in _listed(store.path("layers")):
        if name.endswith(".json.z") and not os.path.isdir(store.path("layers", name[: -len(".json.z")])):
            _unlink(store.path("layers", name))


def _remove_layers(paths, folder):
    from .trees import remove

    for path in paths:
        gone = os.path.join(folder, os.path.basename(path))
        os.rename(path, gone)
        remove(gone)


def _abandoned(store, age):
    """Paths of what was half made when whoever made it was killed."""
    found = []
    limit = time.time() - age
    for name in _listed(store.path("tmp")):
        path = store.path("tmp", name)
        try:
            status = os.lstat(path)
            if status.st_mtime <= limit and not _is_held(path, status):
                found.append(path)
        except FileNotFoundError:
            continue
    for repository in _listed(store.path("images")):
        for name in _listed(store.path("images", repository)):
            if not name.endswith((".json", ".protected", ".gone")):  # written as NAME.json.PID before it gets its name
                path = store.path("images", repository, name)
                if os.lstat(path).st_mtime <= limit:
                    found.append(path)
    return found


def _is_held(path, status):
    import fcntl

    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return False
    holder = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(holder)


def _sweep(store, paths):
    from .trees import remove

    for path in paths:
        remove(path)
    for repository in _listed(store.path("images")):
        try:
            os.rmdir(store.path("images", repository))
        except OSError:
            pass


# Disk


def usage(store):
    """What takes how much disk, in bytes.

    images: [{"name", "size", "shared", "unique", "containers"}], of the unpacked layers; layers that another image
    has as well are shared. containers: [{"id", "name", "image", "size", "running"}], what is theirs alone.
    layers, blobs: all of them; reclaimable: what `prune` would free
    """
    from . import containers

    sizes, owners = {}, {}
    listed = store.images()
    for image in listed:
        for layer in image.layers:
            diff_id = layer["diff_id"]
            if diff_id not in sizes:
                sizes[diff_id] = layer_size(store, diff_id)
            owners.setdefault(diff_id, set()).add(image.manifest)
    every = containers.listed(store)
    rows = []
    for image in listed:
        own = {layer["diff_id"] for layer in image.layers}
        shared = sum(sizes[diff_id] for diff_id in own if len(owners[diff_id]) > 1)
        total = sum(sizes[diff_id] for diff_id in own)
        count = sum(container.record.get("manifest") == image.manifest for container in every)
        facts = {"size": total, "shared": shared, "unique": total - shared, "containers": count}
        rows.append({"name": image.name, "id": image.config, **facts})
    blobs = [
        store.path("blobs", one, name) for one in ("sha256", "sha512") for name in _listed(store.path("blobs", one))
    ]
    layers = [name for name in _listed(store.path("layers")) if _is_layer(store, name)]
    return {
        "images": rows,
        "containers": [
            {
                "id": container.id, "name": container.name, "image": container.image,
                "size": container_size(container), "running": container.is_running(),
            }
            for container in every
        ],
        "layers": sum(sizes.get(f"sha256:{name}") or layer_size(store, f"sha256:{name}") for name in layers),
        "blobs": sum(os.path.getsize(path) for path in blobs),
        "reclaimable": prune(store, dry_run=True)["bytes"],
    }  # fmt: skip


def layer_size(store, diff_id):
    """Bytes that an unpacked layer takes on disk."""
    return _tree_size(store, store.layer(diff_id))


def container_size(container):
    """Bytes that a container takes on disk, besides its image."""
    return _tree_size(container.store, container.directory)


def _tree_size(store, path):
    from . import userns

    try:
        return _disk(path)
    except PermissionError:
        return userns.call(_disk, path)


def _disk(path):
    """Bytes on disk of a tree; a file of several names counts once. Nothing mounted below it counts."""
    total, seen = 0, set()
    try:
        top = os.lstat(path)
    except FileNotFoundError:
        return 0
    pending = [(path, top)]
    while pending:
        path, status = pending.pop()
        if status.st_dev != top.st_dev:
            continue
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
        total += status.st_blocks * 512
        if stat.S_ISDIR(status.st_mode):
            try:
                with os.scandir(path) as entries:
                    pending += [(entry.path, entry.stat(follow_symlinks=False)) for entry in entries]
            except FileNotFoundError:
                continue
    return total


def _listed(path):
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass

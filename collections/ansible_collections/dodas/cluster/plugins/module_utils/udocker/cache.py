# SPDX-License-Identifier: Apache-2.0
"""What steps of builds made before: cache/build/KEY.json in the store, one file a step."""

import hashlib
import json
import os

from . import records


def key(*parts):
    """The key of what was made from `parts`: values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(store, name):
    """What a step made before, if its layer is still in the store."""
    path = store.path("cache", "build", name + ".json")
    try:
        with open(path, encoding="utf-8") as source:
            found = json.load(source)
    except (FileNotFoundError, ValueError):
        return None
    if not store.has_layer(found["diff_id"]):
        return None
    os.utime(path)
    return found


def keep(store, name, found):
    """Keep what a step made."""
    records.write(store.path("cache", "build", name + ".json"), found)


def layers(store):
    """The layers that the cache holds: {diff_id: {"digest", "diff_id", "size", ...}}; for prune and disk usage."""
    found = {}
    for name in _listed(store.path("cache", "build")):
        try:
            layer = records.read(store.path("cache", "build", name))
        except (OSError, ValueError):
            continue
        found[layer["diff_id"]] = layer
    return found


def prune(store, age=0):
    """Forget steps that no build has used for `age` seconds, and all folders of cache mounts with an age of 0.

    Returns how many steps went; their layers go when images are pruned.
    """
    import time

    from . import trees

    gone = 0
    for name in _listed(store.path("cache", "build")):
        path = store.path("cache", "build", name)
        try:
            if os.stat(path).st_mtime <= time.time() - age:
                os.unlink(path)
                gone += 1
        except FileNotFoundError:
            pass
    if not age:
        trees.remove(store.path("cache", "mounts"))
    return gone


def _listed(folder):
    try:
        return [name for name in os.listdir(folder) if name.endswith(".json")]
    except FileNotFoundError:
        return []

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
    try:
        with open(store.path("cache", "build", name + ".json"), encoding="utf-8") as source:
            found = json.load(source)
    except (FileNotFoundError, ValueError):
        return None
    return found if store.has_layer(found["diff_id"]) else None


def keep(store, name, found):
    """Keep what a step made."""
    records.write(store.path("cache", "build", name + ".json"), found)


def layers(store):
    """The layers that the cache holds, newest use last: {diff_id: {"digest": ...}}; for prune and disk usage."""
    found = {}
    for name in _listed(store.path("cache", "build")):
        layer = find(store, name[: -len(".json")])
        if layer:
            found[layer["diff_id"]] = layer
    return found


def prune(store):
    """Forget the cache and the folders of cache mounts; returns how many steps it held."""
    import shutil

    names = _listed(store.path("cache", "build"))
    for name in names:
        os.unlink(store.path("cache", "build", name))
    shutil.rmtree(store.path("cache", "mounts"), ignore_errors=True)
    return len(names)


def _listed(folder):
    try:
        return [name for name in os.listdir(folder) if name.endswith(".json")]
    except FileNotFoundError:
        return []

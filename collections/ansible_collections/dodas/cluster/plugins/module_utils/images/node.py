# SPDX-License-Identifier: Apache-2.0
"""Reads nodes/: which disk images of hosts in a cloud there are, and the hash of everything that goes into each.

    nodes = node.catalogue("nodes", project)     # project: the folder that has roles/ and containers/
    node.choose(images, nodes["debian-12"])      # the one to use of those that a cloud has

A folder has `node.yaml` (suite, packages, container images, properties), `customize` and `root`, see there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.images import catalogue as containers
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError

try:
    import yaml
except ImportError:
    yaml = None

PREFIX = "dodas-"
CONTENT = "dodas_content"  # properties of an image in a cloud
BASE = "dodas_base"
BUILT = "dodas_built"
LAYOUT = 1  # counts changes of how node_build makes a disk of what is described
KINDS = {str: "text", list: "a list", dict: "a mapping"}
FIELDS = {"suite": str, "packages": list, "roles": dict, "earlier": dict, "images": list, "properties": dict}


@dataclass
class Node:
    """A disk image: `content` stands for everything that goes in, `base` for all of it but the container images."""

    name: str
    folder: Path
    content: str
    base: str
    suite: str
    packages: list[str]
    earlier: dict[str, list[str]]
    images: list[containers.Image]  # container images that are in it
    parents: list[containers.Image]  # and what they are built on
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def reference(self):
        """The image's name in a cloud, with its content."""
        return f"{PREFIX}{self.name}-{self.content}"


def catalogue(folder, project):
    """All disk images in `folder`, by name. Raises ImageError, which names what is wrong and where."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: is no folder of disk images")
    known = containers.catalogue(Path(project) / "containers", project)
    return {path.name: _load(path, Path(project), known) for path in sorted(folder.iterdir()) if path.is_dir()}


def load(folder, project):
    """The disk image that `folder` describes. Raises ImageError."""
    return _load(Path(folder), Path(project), containers.catalogue(Path(project) / "containers", project))


def named(nodes, names):
    """The disk images of these names; all without names. Raises ImageError."""
    for name in names:
        if name not in nodes:
            raise ImageError(f"no disk image {name!r}: there are {', '.join(nodes)}")
    return [one for one in nodes.values() if not names or one.name in names]


def choose(images, node):
    """The image to use of a cloud's `images` (as /v2/images lists them); None where there is none.

    That with exactly this content, or else the newest that lacks only present container images: hosts are given those.
    """
    ready = [image for image in images if image.get("status", "active") == "active"]
    newest = sorted(ready, key=lambda image: (image.get(BUILT) or "", image["id"]), reverse=True)
    for name, value in ((CONTENT, node.content), (BASE, node.base)):
        for image in newest:
            if image.get(name) == value:
                return image
    return None


def _load(folder, project, known):
    path = folder / "node.yaml"
    fields = _read(path)
    packages = set(fields["packages"])
    for role, variables in fields["roles"].items():
        packages |= _role_packages(path, project, role, variables)
    for name in fields["images"]:
        if name not in known:
            raise ImageError(f"{path}: images: no container image {name!r}: there are {', '.join(known)}")
    line = containers.with_parents(known, fields["images"])
    images = [image for image in line if image.name in fields["images"]]
    parents = [image for image in line if image.name not in fields["images"]]
    described = {"layout": LAYOUT, "suite": fields["suite"], "packages": sorted(packages), "earlier": fields["earlier"],
                 "properties": fields["properties"], "files": _files(folder)}  # fmt: skip
    base = _digest(described)
    content = _digest([base, sorted(image.reference for image in images)])
    return Node(folder.name, folder, content, base, fields["suite"], sorted(packages), fields["earlier"], images,
                parents, fields["properties"])  # fmt: skip


def _read(path):
    if yaml is None:
        raise ImageError("the Python library PyYAML is needed")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ImageError(f"{path}: {exc}") from exc
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        raise ImageError(f"{path}: needs exactly {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if not isinstance(fields[name], kind):
            raise ImageError(f"{path}: {name} must be {KINDS[kind]}")
    lists = {name: fields[name] for name in ("packages", "images")}
    for name in ("roles", "earlier"):
        lists |= {f"{name}.{key}": value for key, value in fields[name].items()}
    for name, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ImageError(f"{path}: {name} must be a list of names")
    for name, value in fields["properties"].items():
        if not isinstance(value, str):
            raise ImageError(f"{path}: properties.{name} must be text")
    return fields


def _role_packages(path, project, role, variables):
    """The packages that variables of a role name."""
    defaults = project / "roles" / role / "defaults/main.yml"
    try:
        values = yaml.safe_load(defaults.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ImageError(f"{path}: roles.{role}: {exc}") from exc
    found = set()
    for variable in variables:
        if variable not in values:
            raise ImageError(f"{path}: roles.{role}: {defaults} has no variable {variable}")
        value = values[variable]
        found |= set(value if isinstance(value, list) else [value])
    return found


def _files(folder):
    """What is in the folder beside node.yaml: hash and mode by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / "node.yaml"]
    return {
        str(path.relative_to(folder)): [hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode & 0o100]
        for path in files
    }


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

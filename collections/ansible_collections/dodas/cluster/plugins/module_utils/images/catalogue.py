# SPDX-License-Identifier: Apache-2.0
"""Reads containers/: which images there are, what each is made from, and the hash of everything that goes in.

A folder with `rootfs.yaml` (suite, packages) is a Debian root made by mmdebstrap; one with a `Containerfile` is built
on another image. A line `# inputs: PATH ...` in a Containerfile names files of the project that it copies.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

try:
    import yaml
except ImportError:
    yaml = None

PREFIX = "localhost/dodas/"


class ImageError(Exception):
    """An image's folder is wrong or its build failed; the message names the image."""


@dataclass
class Image:
    """One image: `parent` is the image of ours that it is built on, `digest` stands for everything that goes in."""

    name: str
    folder: Path
    digest: str
    parent: str | None = None
    parent_digest: str = ""
    suite: str | None = None
    packages: list[str] = field(default_factory=list)

    @property
    def reference(self):
        """The image's name with its content as the tag."""
        return f"{PREFIX}{self.name}:{self.digest}"


def catalogue(folder, project):
    """All images in `folder`, by name, parents first. Paths in `# inputs:` lines are relative to `project`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: is no folder of images")
    pending = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    images = {}
    while pending:
        ready = {name: path for name, path in pending.items() if (_parent(path) or "") not in pending}
        if not ready:
            raise ImageError(f"images built on each other in a circle: {', '.join(pending)}")
        for name, path in ready.items():
            images[name] = _image(name, path, images, Path(project))
            del pending[name]
    return images


def with_parents(images, names):
    """The images named, and those that they are built on, parents first."""
    wanted = set()
    for name in names:
        if name not in images:
            raise ImageError(f"no image {name!r}: there are {', '.join(images)}")
        while name:
            wanted.add(name)
            name = images[name].parent
    return [image for image in images.values() if image.name in wanted]


def _parent(folder):
    containerfile = folder / "Containerfile"
    if not containerfile.exists():
        return None
    stages = re.findall(r"^FROM +(\S+)(?: +AS +(\S+))?", containerfile.read_text(encoding="utf-8"), re.M | re.I)
    # One parent for all stages: it is what the image's content and the order of builds depend on.
    parents = {image for image, _name in stages} - {name for _image, name in stages}
    if len(parents) != 1:
        raise ImageError(f"{containerfile}: must be FROM one image, and is from {', '.join(sorted(parents)) or 'none'}")
    found = re.fullmatch(rf"{PREFIX}([\w-]+)", parents.pop())
    return found.group(1) if found else None


def _root(path):
    """The suite and the packages of a root."""
    if yaml is None:
        raise ImageError("the Python library PyYAML is needed")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as exc:
        raise ImageError(f"{path}: {exc}") from exc
    if not isinstance(fields, dict) or set(fields) != {"suite", "packages"}:
        raise ImageError(f"{path}: needs exactly suite and packages")
    packages = fields["packages"]
    if not isinstance(packages, list) or not all(isinstance(one, str) for one in packages):
        raise ImageError(f"{path}: packages must be a list of names")
    return fields


def _image(name, folder, images, project):
    rootfs, containerfile = folder / "rootfs.yaml", folder / "Containerfile"
    if rootfs.exists() == containerfile.exists():
        raise ImageError(f"{folder}: needs either a rootfs.yaml or a Containerfile")
    inputs = [folder]
    parent = None
    fields = {}
    if containerfile.exists():
        parent = _parent(folder)
        if parent not in images:
            raise ImageError(f"{containerfile}: FROM names no image of this folder")
        for line in re.findall(r"^# inputs: (.*)$", containerfile.read_text(encoding="utf-8"), re.M):
            inputs += [project / word for word in line.split()]
    else:
        fields = _root(rootfs)
    digest = hashlib.sha256(images[parent].digest.encode() if parent else b"")
    for path in inputs:
        if not path.exists():
            raise ImageError(f"{containerfile}: input {path} does not exist")
        if not path.is_relative_to(project):
            raise ImageError(f"{path}: is not in the project {project}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and "node_modules" not in file.parts:
                executable = b"x" if file.stat().st_mode & 0o100 else b"-"
                digest.update(f"{file.relative_to(project)}\0".encode() + executable)
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Image(name, folder, digest.hexdigest()[:16], parent, images[parent].digest if parent else "", **fields)

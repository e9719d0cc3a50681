#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The stand-in of Mesos as an archive with the tree of a real one: tests/setup tests/standins/mesos/build.py OUT.tar.gz

The same sources and the same kazoo make the same bytes.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import os
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EMPTY = ("libexec/mesos",)  # folders of a real tree that hold nothing here


def files():
    """{path in the archive: path here}."""
    found = {}
    for folder in ("bin", "lib"):
        for path in (HERE / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[path.relative_to(HERE).as_posix()] = path
    found["share/mesos/README.md"] = HERE / "README.md"
    for file in importlib.metadata.files("kazoo"):
        if file.parts[0] == "kazoo" and file.suffix == ".py" and file.parts[1] not in ("tests", "testing"):
            found[f"lib/{file}"] = file.locate()
        elif file.name.upper().startswith("LICENSE"):
            found["lib/kazoo/LICENSE"] = file.locate()
    return found


def build(out):
    """Write the archive; its path."""
    content = io.BytesIO()
    found = {name: Path(path) for name, path in files().items()}
    folders = {*EMPTY, *(parent.as_posix() for name in [*found, *EMPTY] for parent in Path(name).parents)} - {"."}
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted({*folders, *found}):
            entry = tarfile.TarInfo(name)
            if name in folders:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            data = found[name].read_bytes()
            entry.size, entry.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            tar.addfile(entry, io.BytesIO(data))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
        stream.write(content.getvalue())
    os.replace(temporary, out)
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(build(sys.argv[1]))

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The stand-in for Marathon as an archive: tests/setup tests/standins/marathon/build.py OUT.tar.gz

What it needs of others (kazoo) is in it. The same sources and the same kazoo make the same bytes.
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


def files():
    """{path in the archive: path here}."""
    found = {"README.md": HERE / "README.md"}
    for path in [*(HERE / "bin").iterdir(), *(HERE / "lib").rglob("*.py")]:
        found[path.relative_to(HERE).as_posix()] = path
    for file in importlib.metadata.files("kazoo"):
        if file.parts[0] == "kazoo" and file.suffix == ".py" and file.parts[1] not in ("tests", "testing"):
            found[f"lib/{file}"] = Path(file.locate())
        elif file.name.upper().startswith("LICENSE"):
            found["lib/kazoo/LICENSE"] = Path(file.locate())
    return found


def build(out):
    """Write the archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, path in sorted(files().items()):
            entry, data = tarfile.TarInfo(name), path.read_bytes()
            entry.size, entry.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    temporary = Path(f"{out}.{os.getpid()}")
    with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        packed.write(content.getvalue())
    os.replace(temporary, out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(sys.argv[1])

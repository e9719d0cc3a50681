#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""build.py OUT.tar.gz: the stand-in for the CVMFS client as an archive that is unpacked at the root of a host.

The same input gives the same bytes. Where the real client can be had, its archive has the same tree.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = """#!/usr/bin/python3 -IB
# SPDX-License-Identifier: Apache-2.0
import sys
sys.path.insert(0, "/usr/lib/cvmfs-standin")
from cvmfs_standin import {module}
sys.exit({module}.{function}())
"""
PROGRAMS = {
    "usr/bin/cvmfs2": ("daemon", "main"),
    "usr/bin/cvmfs_config": ("commands", "config"),
    "usr/bin/cvmfs_talk": ("commands", "talk"),
    "usr/sbin/mount.cvmfs": ("commands", "mount"),
}
DEFAULTS = """# What the stand-in assumes where nothing else is said.
CVMFS_USER=cvmfs
CVMFS_MOUNT_DIR=/cvmfs
CVMFS_RELOAD_SOCKETS=/var/run/cvmfs
CVMFS_CACHE_BASE=/var/lib/cvmfs
CVMFS_SHARED_CACHE=yes
CVMFS_DEFAULT_DOMAIN=cern.ch
CVMFS_STRICT_MOUNT=no
CVMFS_QUOTA_LIMIT=4000
CVMFS_NFILES=131072
CVMFS_TIMEOUT=5
CVMFS_TIMEOUT_DIRECT=10
CVMFS_KEYS_DIR=/etc/cvmfs/keys
"""
AUTOFS = '#!/bin/sh\necho "-fstype=cvmfs,nodev :$1"\n'


def members():
    """{path in the archive: (content, mode)}"""
    found = {path: (PROGRAM.format(module=module, function=function).encode(), 0o755)
             for path, (module, function) in PROGRAMS.items()}  # fmt: skip
    found["etc/cvmfs/default.conf"] = (DEFAULTS.encode(), 0o644)
    found["etc/auto.cvmfs"] = (AUTOFS.encode(), 0o755)
    for path in sorted((HERE / "client").rglob("*.py")):
        found[f"usr/lib/cvmfs-standin/{path.relative_to(HERE / 'client')}"] = (path.read_bytes(), 0o644)
    return found


def build(target):
    """Write the archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (data, mode) in sorted(members().items()):
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(data), mode
            archive.addfile(about, io.BytesIO(data))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(gzip.compress(content.getvalue(), mtime=0))


if __name__ == "__main__":
    build(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
"""Builds image.tar from the Containerfile, without root, Docker or a registry.

busybox is a package of Debian and Ubuntu, and comes from where this machine gets its own.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

UDOCKER = [sys.executable, "-m", "ansible_collections.dodas.cluster.plugins.module_utils.udocker"]
HERE = Path(__file__).parent


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))}: {done.stderr.strip()}")


def main():
    image = HERE / "image.tar"
    parts = [HERE / "Containerfile", HERE / "os-release", Path(__file__)]
    if image.exists() and image.stat().st_mtime > max(part.stat().st_mtime for part in parts):
        return
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch) / "context"
        context.mkdir()
        for part in parts[:2]:
            shutil.copy(part, context)
        run("apt-get", "download", "-q", "busybox-static", cwd=scratch)
        [package] = Path(scratch).glob("busybox-static_*.deb")
        run("dpkg-deb", "--extract", package, Path(scratch) / "package")
        (context / "root/bin").mkdir(parents=True)
        # in /bin, or in /usr/bin where that is the same
        [program] = Path(scratch).glob("package/**/bin/busybox")
        shutil.copy(program, context / "root/bin")
        store = f"--repo={scratch}/store"
        run(*UDOCKER, store, "build", "--quiet", "--tag", "darts", context)
        run(*UDOCKER, store, "save", "--output", Path(scratch) / "image.tar", "darts")
        shutil.move(Path(scratch) / "image.tar", image)


if __name__ == "__main__":
    main()

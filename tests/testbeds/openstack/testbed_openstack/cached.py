# SPDX-License-Identifier: Apache-2.0
"""What all testbeds of a machine share, made once: Debian packages, the virtual environment, the databases' template.

Each is named by a hash of what it is made from, and is there in whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from testbed_openstack.place import TestbedError

SOURCE = Path(__file__).resolve().parents[1]
PACKAGES = ["mariadb-server-core", "mariadb-client-core", "python3-venv"]
ENTRY_POINTS = "[neutron.ml2.mechanism_drivers]\ntestbed = testbed_openstack.ml2:Driver\n"
METADATA = "Metadata-Version: 2.1\nName: testbed-openstack\nVersion: 1\n"


def say(text: str) -> None:
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def folder() -> Path:
    """Of the cache: /var/cache/dodas/openstack, or below $DODAS_CACHE."""
    home = Path("/var/cache/dodas") if os.geteuid() == 0 else Path.home() / ".cache" / "dodas"
    path = Path(os.environ.get("DODAS_CACHE") or home) / "openstack"
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    return path


def key(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        whole.update(b"%d:" % len(data) + data)
    return whole.hexdigest()[:16]


@contextlib.contextmanager
def made(target: Path):
    """Yields the empty folder to make the thing in, or None when it is complete; others that want it wait."""
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = target / "complete"
        if complete.exists():
            yield None
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700)
        yield target
        complete.touch()


def packages(names: list[str]) -> None:
    """Install the Debian packages that are missing."""

    def is_missing(name):
        query = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status}", name], capture_output=True, text=True, check=False
        )
        return query.stdout != "installed"

    missing = [name for name in names if is_missing(name)]
    if not missing:
        return
    if os.geteuid():
        raise TestbedError(f"these packages are missing; run as root: apt-get install {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    # Runlevel 1: no server that is installed here starts by itself.
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
        if subprocess.run(["apt-get", *command], env=environment, stdout=sys.stderr, check=False).returncode:
            raise TestbedError(f"apt-get {command[0]} failed: install {' '.join(missing)} by hand")


def python() -> tuple[str, str]:
    """A Python that the release knows, and its version; not that of a virtual environment which the caller is in."""
    question = "import os, sys; print(*sys.version_info[:2], os.path.realpath(sys._base_executable), sys.version)"
    for name in ("python3", "python3.12", "python3.11"):
        if path := shutil.which(name):
            answer = subprocess.run([path, "-c", question], capture_output=True, text=True, check=True).stdout
            major, minor, base, version = answer.split(maxsplit=3)
            if (major, minor) in (("3", "11"), ("3", "12")):
                return base, version
    raise TestbedError("OpenStack 2025.1 needs Python 3.11 or 3.12, and none was found on PATH")


def venv() -> Path:
    """The virtual environment with requirements.txt, and the entry point of neutron's driver."""
    interpreter, version = python()
    pins = SOURCE / "requirements.txt"
    target = folder() / f"venv-{key(interpreter, version, pins.read_bytes(), ENTRY_POINTS)}"
    with made(target) as empty:
        if empty:
            say(f"making {target}: some minutes, once")
            subprocess.run([interpreter, "-m", "venv", target], check=True)
            pip = [target / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if subprocess.run([*pip, "--require-hashes", "-r", pins], stdout=sys.stderr, check=False).returncode:
                raise TestbedError(f"pip could not install {pins}")
            (packages_folder,) = (target / "lib").glob("python3*/site-packages")
            info = packages_folder / "testbed_openstack-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(METADATA)
            (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return target

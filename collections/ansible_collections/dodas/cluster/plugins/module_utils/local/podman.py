# SPDX-License-Identifier: Apache-2.0
"""dodas's own podman on this machine: configuration found by looking at the machine, stores apart from everybody's.

Containers of the local backend live in a store and on networks of their own, so that nobody's podman is touched.
Images live in a second store, kept between deployments, that hosts mount read-only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import host

LOCK_TIMEOUT = 1500  # seconds: longer than any one build


class PodmanError(Exception):
    """podman refused, is missing or took too long; the message says which command and why."""


HOME = Path("/var/lib/dodas")
IMAGES = Path("/var/cache/dodas/images")
RUN = Path("/run/dodas")


def image_store():
    """The image store: `$DODAS_IMAGES`, or /var/cache/dodas/images."""
    return Path(os.environ.get("DODAS_IMAGES", IMAGES)).absolute()


class Podman:
    """Runs podman with dodas's configuration, which is written below `home` (state) and `run` (runtime).

    Each store has a runtime directory of its own; locks, and what the network changes, are the machine's.
    """

    def __init__(self, home, run=RUN, images=None):
        self.home = Path(home) / "local"
        self.images = Path(images) if images else image_store()
        self.machine = Path(run)
        self.run_dir = _own(self.machine, Path(home), HOME)
        self.images_run_dir = _own(self.machine, self.images, IMAGES)

    def configure(self):
        """Write podman's configuration. Raises PodmanError where the machine cannot run it."""
        if os.geteuid() != 0:
            raise PodmanError("the local backend makes hosts that run systemd and needs root: use sudo")
        for program in ("podman", "crun"):
            if not shutil.which(program):
                raise PodmanError(f"{program} is not installed: apt-get install podman crun netavark aardvark-dns")
        for path in (self.home, self.images):
            path.mkdir(parents=True, exist_ok=True, mode=0o711)
        wrapper = host.crun_wrapper(host.cgroups()["version"])
        lines = [
            "[containers]",
            f"default_ulimits = {json.dumps(host.hard_limits())}",
            "pids_limit = 0" if wrapper else "",
            "[network]",
            'network_backend = "netavark"',
            f"network_config_dir = {json.dumps(str(self.home / 'networks'))}",
            "[engine]",
            'runtime = "crun"',
            'cgroup_manager = "cgroupfs"' if wrapper else "",
            'events_logger = "none"',
            'lock_type = "file"',
        ]
        if wrapper:
            path = self.home / "crun"
            _write(path, wrapper, 0o755)
            lines += ["[engine.runtimes]", f"crun = [{json.dumps(str(path))}]"]
        _write(self.home / "containers.conf", "\n".join(line for line in lines if line) + "\n", 0o644)
        _write(self.home / "registries.conf", "unqualified-search-registries = []\n", 0o644)

    def command(self, *arguments, store="containers"):
        """The argument list that runs podman on the store of containers, or on the one of images."""
        if store == "images":
            options = ["--root", self.images, "--runroot", self.images_run_dir / "images"]
            options += ["--tmpdir", self.images_run_dir / "libpod"]
        else:
            options = ["--root", self.home / "storage", "--runroot", self.run_dir / "containers"]
            options += ["--tmpdir", self.run_dir / "libpod", "--storage-opt", f"additionalimagestore={self.images}"]
        return ["podman", *map(str, [*options, *arguments])]

    def environment(self):
        """The environment for `command`."""
        ours = {
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "NETAVARK_FW": "iptables",  # whose rules `machine` knows how to take back
            "CONTAINERS_REGISTRIES_CONF": str(self.home / "registries.conf"),
        }
        return {**os.environ, **ours}

    def run(self, *arguments, store="containers", timeout=60, data=None):
        """Run podman, return what it printed. Raises PodmanError."""
        command = self.command(*arguments, store=store)
        try:
            done = subprocess.run(
                command,
                env=self.environment(),
                capture_output=True,
                text=True,
                timeout=timeout,
                input=data,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise PodmanError(f"podman {arguments[0]}: no answer in {timeout} s") from exc
        if done.returncode != 0:
            error = [line for line in done.stderr.strip().splitlines() if line] or ["no message"]
            raise PodmanError(f"podman {' '.join(map(str, arguments[:2]))}: {error[-1]}")
        return done.stdout

    def json(self, *arguments, **options):
        """What podman printed as JSON; an empty list for nothing."""
        return json.loads(self.run(*arguments, **options) or "[]")

    @contextmanager
    def lock(self, name, timeout=LOCK_TIMEOUT):
        """Hold a lock of this machine: two dodas commands do not build or remove the same thing at once.

        Raises PodmanError, naming the process that holds it, when `timeout` seconds have passed.
        """
        self.machine.mkdir(parents=True, exist_ok=True, mode=0o711)
        path = self.machine / f"{name}.lock"
        deadline = time.monotonic() + timeout
        while True:
            with path.open("a+") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        stream.seek(0)
                        holder = stream.read().strip() or "unknown"
                        raise PodmanError(f"process {holder} still works on {name} after {timeout} s") from None
                    time.sleep(0.2)
                    continue
                if not (path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino):
                    continue  # who held it removed it meanwhile
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _own(run, path, default):
    """The runtime directory of the store at `path`: `run` itself for the default one."""
    return run if path == default else run / hashlib.sha256(str(path).encode()).hexdigest()[:8]


def _write(path, text, mode):
    """Write when different, all or nothing: another dodas may be reading."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)

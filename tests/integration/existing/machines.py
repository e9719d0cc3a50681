# SPDX-License-Identifier: Apache-2.0
"""Machines for the tests of backend `existing`: plain Debian with systemd and sshd, made with podman's command line.

Nothing of dodas is used to make them, only to put this machine's packet filter back; and they have nothing that dodas
brings. Roots are cached by their content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.local import machine

CACHE = Path(os.environ.get("DODAS_CACHE", "/var/cache/dodas")) / "tests"
# A machine's kernel, terminals and timers are not the guest's.
MASKED = (
    "systemd-sysctl.service systemd-modules-load.service systemd-udevd.service getty.target console-getty.service "
    "sys-fs-fuse-connections.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount "
    "apt-daily.timer apt-daily-upgrade.timer"
)
PREPARE = f"""set -e
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/etc/resolv.conf
touch "$1"/etc/machine-id
chroot "$1" systemctl mask --quiet {MASKED}
"""
# crun refuses hybrid control groups: give it a cgroup2 mount of its own.
RUNTIME = """#!/bin/sh
exec unshare --mount --propagation private sh -c '
  umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec crun "$@"' crun "$@"
"""


@dataclass(frozen=True)
class Machine:
    """One machine: `user` is who the project may log in as; one that is not root may use sudo, where there is sudo."""

    name: str
    suite: str
    user: str = "root"
    sudo: bool = True

    @property
    def packages(self):
        return ["systemd-sysv", "openssh-server", "python3", *(["sudo"] if self.user != "root" and self.sudo else [])]

    @property
    def prepare(self):
        if self.user == "root":
            return PREPARE
        user = f'{PREPARE}\nchroot "$1" useradd --create-home --shell /bin/bash {self.user}\n'
        if not self.sudo:
            return user
        return f"""{user}echo '{self.user} ALL=(ALL) NOPASSWD: ALL' > "$1"/etc/sudoers.d/{self.user}
"""


class Machines:
    """Makes machines on a network of their own, all state below `folder`; `close` leaves nothing but the cache."""

    def __init__(self, folder, machines):
        self.folder = Path(folder)
        self.machines = {one.name: one for one in machines}
        self.network = f"existing-{os.getpid()}"
        self.addresses = {}
        self.bridge = None
        self.roots = CACHE / "roots"
        machine.remember(folder)
        self.roots.mkdir(parents=True, exist_ok=True)
        self._configure()

    @property
    def key(self):
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self):
        return self.folder / "known_hosts"

    def start(self):
        """Make the machines and wait for their sshd."""
        _keygen(self.key)
        self.podman("network", "create", "--disable-dns", self.network)
        self.bridge = json.loads(self.podman("network", "inspect", self.network))[0]["network_interface"]
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start, self.machines.values()))
        for name, address in self.addresses.items():
            _wait_for_ssh(name, address)

    def run(self, name, command, check=True, timeout=120):
        """Run a shell command on a machine as root, not through sshd; returns what it printed."""
        return self.podman("exec", f"{self.network}-{name}", "sh", "-c", command, check=check, timeout=timeout).strip()

    def close(self):
        """Remove everything, at whatever state it is; returns what could not be removed, and keeps its files then."""
        names = [f"{self.network}-{name}" for name in self.machines]
        self.podman("rm", "--force", "--ignore", "--volumes", "--time", "0", *names, check=False)
        self.podman("network", "rm", "--force", self.network, check=False)
        left = self.podman("ps", "--all", "--external", "--format", "{{.Names}}").split()
        left += self.podman("network", "ls", "--quiet", "--filter", f"name={self.network}").split()
        for mount in sorted(self.mounts(), reverse=True):  # podman's own, of its stores
            subprocess.run(["umount", mount], check=False, capture_output=True, timeout=30)
        machine.restore(self.folder)
        left += [*self.mounts(), *self._processes(), *(name for name in self._bridges() if name == self.bridge)]
        if not left:
            shutil.rmtree(self.folder / "podman")
        return left

    def mounts(self):
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        return [line.split()[1] for line in lines if line.split()[1].startswith(f"{self.folder}/")]

    def podman(self, *arguments, check=True, timeout=300):
        """Run podman with a configuration and a store that nobody else uses."""
        place = self.folder / "podman"
        command = ["podman", "--root", place / "storage", "--runroot", place / "run", *arguments]
        environment = {**os.environ, "CONTAINERS_CONF": str(place / "containers.conf")}
        done = subprocess.run(
            [str(one) for one in command], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"podman {' '.join(map(str, arguments[:3]))}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def _configure(self):
        place = self.folder / "podman"
        place.mkdir(parents=True)
        lines = ["[containers]", 'default_ulimits = ["nofile=20000:20000", "nproc=32000:32000"]', "pids_limit = 0",
                 "[network]", 'network_backend = "netavark"', f'network_config_dir = "{place}/networks"',
                 "[engine]", 'runtime = "crun"', 'events_logger = "none"', 'lock_type = "file"',
                 f'tmp_dir = "{place}/libpod"']  # fmt: skip
        if not self._unified():
            (place / "crun").write_text(RUNTIME, encoding="utf-8")
            (place / "crun").chmod(0o755)
            lines += ['cgroup_manager = "cgroupfs"', "[engine.runtimes]", f'crun = ["{place}/crun"]']
        (place / "containers.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @staticmethod
    def _unified():
        return Path("/sys/fs/cgroup/cgroup.controllers").exists()

    @staticmethod
    def _bridges():
        return [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith("podman")]

    def _processes(self):
        """Processes that were started with a path of ours, as each container's monitor is."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found += [command] if f"{self.folder}/podman" in command else []
        return found

    def _root(self, machine):
        """The machine's root as an archive, made where the cache lacks it."""
        content = repr((machine.suite, machine.packages, machine.prepare))
        archive = self.roots / f"{machine.suite}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.tar"
        if archive.exists():
            return archive
        memory = Path("/dev/shm")  # dpkg's many small writes are what takes long
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
        with tempfile.TemporaryDirectory(dir=memory if roomy else None) as scratch:
            environment = {**os.environ, "TMPDIR": scratch}
            made, hook = archive.with_suffix(f".{os.getpid()}.tar"), Path(scratch, "prepare")
            hook.write_text(f"#!/bin/sh\n{machine.prepare}", encoding="utf-8")
            hook.chmod(0o755)
            command = ["mmdebstrap", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until false",
                       "--dpkgopt=force-unsafe-io", f"--include={','.join(machine.packages)}",
                       f"--customize-hook={hook}", machine.suite, str(made), *_sources(machine.suite)]  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                made.unlink(missing_ok=True)
                raise RuntimeError(f"mmdebstrap {machine.suite}: {done.stderr[-1000:]}")
            made.replace(archive)
        return archive

    def _start(self, machine):
        name = machine.name
        root = self._root(machine)
        image = f"localhost/existing-{root.stem}"  # two machines of one suite have roots of their own
        self.podman("import", "--quiet", "--change", 'CMD ["/sbin/init"]', root, image)
        keys = self.folder / "keys" / name
        keys.mkdir(parents=True)
        _keygen(keys / "ssh_host_ed25519_key")
        shutil.copy(f"{self.key}.pub", keys / "authorized_keys")
        home = "/root" if machine.user == "root" else f"/home/{machine.user}"
        systemd = ["--systemd=always"] if self._unified() else [
            "--systemd=false", "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp"]  # fmt: skip
        self.podman(
            "run", "--detach", "--pull=never", "--name", f"{self.network}-{name}", "--hostname", name,
            "--network", self.network, "--privileged", "--cgroupns=private", *systemd, "--stop-signal", "SIGRTMIN+3",
            "--env", "container=podman", "--volume", "/proc/sys:/proc/sys:ro", "--volume", "/var/lib/containers", image,
        )  # fmt: skip
        container = f"{self.network}-{name}"
        self.addresses[name] = self.podman(
            "inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{self.network}").IPAddress}}}}', container
        ).strip()
        self.run(name, f"mkdir -p {home}/.ssh")
        self.podman("cp", keys / "ssh_host_ed25519_key", f"{container}:/etc/ssh/")
        self.podman("cp", keys / "authorized_keys", f"{container}:{home}/.ssh/")
        self.run(name, f"chown -R {machine.user}: {home}/.ssh && chmod 600 /etc/ssh/ssh_host_ed25519_key "
                       f"{home}/.ssh/authorized_keys && systemctl restart ssh")  # fmt: skip
        public = (keys / "ssh_host_ed25519_key.pub").read_text(encoding="utf-8")
        with self.known_hosts.open("a", encoding="utf-8") as stream:
            stream.write(f"{self.addresses[name]} {public}")


def _sources(suite):
    """Source lines of `suite` on the mirror that this machine's apt has; none elsewhere than on Debian."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for line in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines():
        origin, codename, mirror = line.split()
        if origin == "Debian" and "-" not in codename:
            return [f"deb {mirror} {suite} main"]
    return []


def _keygen(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)


def _wait_for_ssh(name, address, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, 22), timeout=2) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{name} ({address}): no sshd after {seconds} s")

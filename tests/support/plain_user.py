# SPDX-License-Identifier: Apache-2.0
"""A plain user with a copy of the project, on a machine where it finds neither podman nor sudo."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = "collections/ansible_collections/dodas/cluster/plugins/module_utils"
HIDDEN = ("podman", "docker", "sudo", "udocker", "proot", "fuse-overlayfs")
LISTENING = "0A"  # in /proc/net/tcp
# Caches, and where results are fetched to.
_KEPT = re.compile(r"\.cache(/|$)|\.ansible(/|$)|\.config/matplotlib(/|$)|project/examples/dimuon/")


class User:
    """A person, and what it does with the project in its home."""

    def __init__(self, person, images):
        self.person = person
        self.project = self._copy()
        self.path = self._hide()
        # Where caches and state are made is not what is tested, but that nothing else is.
        self.environment = {"PATH": self.path}
        program = person.home / "udocker"
        command = [person.python, self.project / MODULES / "udocker/bundle.py", program]
        assert person.run(command).returncode == 0
        store = person.home / ".cache/dodas/images/udocker"
        done = person.run([program, f"--repo={store}", "load", "-i", images], timeout=300)
        assert done.returncode == 0, done.stderr
        program.unlink()
        self.dodas("images", "list", "--yes", timeout=300)  # makes its environment

    def dodas(self, *arguments, status=0, timeout=400):
        """Run the command line; what it printed. `status`: how it must end, None for however."""
        done = self.person.run([self.project / "dodas", *arguments], env=self.environment, timeout=timeout)
        assert status in (None, done.returncode), f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def up(self):
        """Bring up the default cluster, a small one."""
        small = {"worker_memory_mb": 512, "worker_scratch_mb": 100, "squid_cache_mb": 128}
        inputs = [word for name, value in small.items() for word in ("-p", f"{name}={value}")]
        return self.dodas("up", "--yes", *inputs)

    def left(self, before):
        """What is there of a cluster that is gone; `before`: files that were there before it."""
        home = self.person.home
        kept = {str(home / path) for path in (".local", ".local/share", ".local/share/dodas", ".config",
                                              ".local/share/dodas/deployments")}  # fmt: skip
        found = {"processes": self.person.processes(), "listeners": self.listeners(), "crontab": self.crontab(),
                 "files": self.files() - before - kept}  # fmt: skip
        return {what: one for what, one in found.items() if one}

    def json(self, *arguments, **more):
        return json.loads(self.dodas(*arguments, "--json", **more).stdout)

    def is_complete(self):
        """Whether every probe holds and every app is healthy now."""
        return self.json("status", status=None)["complete"]

    def run(self, host, command):
        """What a shell command printed on a host."""
        return self.dodas("ssh", host, command).stdout

    def listeners(self):
        """Addresses on which processes of the user listen for others."""
        found = set()
        for path, size in (("/proc/net/tcp", 8), ("/proc/net/tcp6", 32)):
            for line in Path(path).read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENING and self.owns(int(words[7])):
                    found.add(_address(words[1][:size]))
        return found

    def owns(self, uid):
        return self.person._owns(uid)

    def files(self):
        """Everything in its home but for caches, and below /tmp what is its own."""
        home = self.person.home
        found = {str(path) for path in home.rglob("*") if not _KEPT.match(str(path.relative_to(home)))}
        for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run/user"):
            for path in Path(folder).glob("*"):
                if path.exists() and self.owns(path.lstat().st_uid):
                    found.add(str(path))
        return found

    def crontab(self):
        done = subprocess.run(["crontab", "-l", "-u", self.person.name], capture_output=True, text=True, check=False)
        return done.stdout

    def _copy(self):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        names = [name for name in listed.decode().split("\0") if name and (ROOT / name).exists()]
        target = self.person.home / "project"
        target.mkdir()
        packed = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input="\0".join(names).encode(),
                                capture_output=True, check=True).stdout  # fmt: skip
        uid, gid = self.person.uid, self.person.gid
        subprocess.run(["tar", "-C", target, "-x"], input=packed, check=True)
        subprocess.run(["chown", "-R", f"{uid}:{gid}", target], check=True)
        return target

    def _hide(self):
        """A folder of links to the machine's programs, without those that a plain machine lacks."""
        folder = self.person.home / "bin"
        folder.mkdir()
        for place in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
            for program in Path(place).iterdir():
                link = folder / program.name
                if program.name not in HIDDEN and not link.is_symlink():
                    link.symlink_to(program)
        return str(folder)


def _address(text):
    words = [struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET6 if len(words) > 1 else socket.AF_INET, b"".join(words))


def wait_for(condition, seconds, what):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)
    return found

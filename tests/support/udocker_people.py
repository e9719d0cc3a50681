# SPDX-License-Identifier: Apache-2.0
"""Real users without rights, made for a test and removed with all that they left: the runtime is run as one of them.

    with Person("ann", subids=False) as ann:
        ann.run([ann.python, program, "run", "busybox", "true"])

As a program it becomes a user, under a filter that denies namespaces as Docker's default does where that is asked for:
    python3 udocker_people.py UID GID deny|allow COMMAND...
"""

import contextlib
import ctypes
import os
import pathlib
import platform
import pwd
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time

SCRATCH = ("/tmp", "/var/tmp", "/dev/shm", "/run/user", "/run/lock")
# System calls by machine: what Docker's default profile refuses without CAP_SYS_ADMIN.
_DENIED = {
    "x86_64": {"unshare": 272, "mount": 165, "umount2": 166, "setns": 308, "pivot_root": 155, "clone": 56,
               "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "mount_setattr": 442},
    "aarch64": {"unshare": 97, "mount": 40, "umount2": 39, "setns": 268, "pivot_root": 41, "clone": 220,
                "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "mount_setattr": 442},
}  # fmt: skip
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
_DEADLINE = 30


class Person:
    """A user of the system with a home of its own. `name` is extended so that two tests do not meet.

    subids: whether /etc/subuid and /etc/subgid give it 65,536 more ids, as Debian does by default, or none
    python: an interpreter that it may run
    """

    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable

    def __init__(self, name="ann", subids=True):
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.subids = subids
        self._started = []
        self._ids = []
        # Without further ids: none are given, rather than given and taken away.
        counts = [] if subids else ["--key", "SUB_UID_COUNT=0", "--key", "SUB_GID_COUNT=0"]
        self._manage("useradd", "--create-home", "--user-group", "--shell", "/bin/bash", *counts, self.name)
        try:
            entry = pwd.getpwnam(self.name)
            self.uid, self.gid, self.home = entry.pw_uid, entry.pw_gid, pathlib.Path(entry.pw_dir)
            self.home.chmod(0o755)
            have = _ranges("/etc/subuid", self.name)
            if bool(have) != subids or bool(_ranges("/etc/subgid", self.name)) != subids:
                raise RuntimeError(f"{self.name}: /etc/subuid and /etc/subgid are not as wanted: see login.defs(5)")
            self._ids = [(self.uid, 1), *have]
        except BaseException:
            self.remove()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.remove()

    @property
    def environment(self):
        """What a login would give."""
        return {
            "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "LANG": "C.UTF-8", "SHELL": "/bin/bash",
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def command(self, argv, deny=False):
        """What a process of root executes to run `argv` as this user."""
        mode = "deny" if deny else "allow"
        return [self.python, "-IS", __file__, str(self.uid), str(self.gid), mode, *map(str, argv)]

    def run(self, argv, deny=False, env=None, input=None, timeout=120, cwd=None, check=False, text=True, **more):
        """Run it as this user in its home; a subprocess.CompletedProcess with stdout and stderr.

        deny: user namespaces, mounts and setns are refused as in a container of Docker's
        env: more variables than a login gives; input: str, or bytes with text=False
        """
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        if input is None:
            more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            self.command(argv, deny), env={**self.environment, **(env or {})}, cwd=cwd or self.home, check=check,
            input=input, timeout=timeout, text=text, start_new_session=True, **more,
        )  # fmt: skip

    def popen(self, argv, deny=False, env=None, cwd=None, **more):
        """The same, not waited for; removed with the person if it is not stopped."""
        process = subprocess.Popen(
            self.command(argv, deny), env={**self.environment, **(env or {})}, cwd=cwd or self.home,
            start_new_session=True, **more,
        )  # fmt: skip
        self._started.append(process)
        return process

    def give(self, path, name=None):
        """Copy a file or a tree to its home as its own; returns where."""
        path = pathlib.Path(path)
        target = self.home / (name or path.name)
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, target)
        for one in [target, *(target.rglob("*") if target.is_dir() else ())]:
            os.chown(one, self.uid, self.gid, follow_symlinks=False)
        return target

    def processes(self):
        """{pid: command line} of what runs as this user or as one of its further ids."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self._owns(os.stat(f"/proc/{pid}").st_uid):
                    found[int(pid)] = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return {pid: line for pid, line in found.items() if line or _alive(pid)}

    def kill(self):
        """End its processes, at once."""
        deadline = time.monotonic() + _DEADLINE
        while running := self.processes():
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {self.name} do not end: {running}")
            time.sleep(0.01)

    def remove(self):
        """End its processes; remove its files, also those of its further ids, and the user."""
        for process in self._started:  # some may not be this user yet
            if process.poll() is None:
                process.kill()
            process.wait(_DEADLINE)
        self.kill()
        for folder in map(pathlib.Path, SCRATCH):
            for path in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    if self._owns(path.lstat().st_uid):
                        _remove(path)
        if hasattr(self, "home"):
            _remove(self.home)
        self._manage("userdel", "--force", self.name)

    def _owns(self, uid):
        return any(first <= uid < first + count for first, count in self._ids)

    def _manage(self, *command):
        """Change the list of users; another test may hold its lock."""
        deadline = time.monotonic() + _DEADLINE
        while True:
            done = subprocess.run(command, capture_output=True, text=True)
            if not done.returncode:
                return
            if "lock" not in done.stderr or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
            time.sleep(0.05)


def _ranges(path, name):
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in pathlib.Path(path).read_text().splitlines():
            owner, _colon, rest = line.partition(":")
            if owner == name:
                found.append(tuple(map(int, rest.split(":"))))
    return found


def _alive(pid):
    """Neither gone nor a zombie."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def denying(machine=None):
    """The filter as BPF: (code, true, false, k) each 8 bytes, read from the top."""
    calls = _DENIED[machine or platform.machine()]
    load, equal, bits, answer = 0x20, 0x15, 0x45, 0x06
    refuse, unknown, allow = 0x00050001, 0x00050026, 0x7FFF0000  # EPERM, ENOSYS
    program = [(load, 0, 0, 0)]
    for name, number in calls.items():
        if name != "clone":
            program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    # clone with flags of namespaces; clone3's flags cannot be seen, so that it does not exist, and libc uses clone
    program += [(equal, 0, 1, _CLONE3), (answer, 0, 0, unknown)]
    program += [(equal, 0, 3, calls["clone"]), (load, 0, 0, 16), (bits, 0, 1, _NEW_NAMESPACES), (answer, 0, 0, refuse)]
    program += [(answer, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _deny():
    """Install the filter for this process and what it starts. Done as root, so that setuid programs keep their bit."""
    program = denying()
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, ctypes.c_char_p(filter_), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def main():
    uid, gid, mode, *command = sys.argv[1:]
    if mode == "deny":
        _deny()
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        sys.exit(f"{command[0]}: {exc.strerror}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""A host without root: a folder that stands for its root, and a supervisor that keeps its apps running as a plain user.

    bin/                udocker, supervisorctl: with this host's store and socket; start: the supervisor; shell
    lib/                the runtime, the supervisor, the app agent
    etc/dodas, var/lib/dodas    what definitions of apps call /etc/dodas and /var/lib/dodas
    etc/hosts           names of the cluster, which every container has as its /etc/hosts
    etc/supervisor.d/   a file for each app
    udocker/            the runtime's store
    run/, var/log/      what the agent found; what programs said

It is started again after the machine is: by the user's own systemd where that runs without a login, or else by cron.
Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
from ansible_collections.dodas.cluster.plugins.module_utils.engine import app as engine
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import errors, reference, userns
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store

SOCKET_PATH = 90  # bytes; a socket's path may have 107, and the supervisor makes it under a longer name first
PATIENCE = 10  # seconds until processes that were killed must be gone
RUNNING = "RUNNING"
# So that every process of the host can be told from others of the same user.
MARK = "DODAS_HOST"


class PlainHost:
    """The host in folder `root` (~ is the user's home)."""

    def __init__(self, root):
        self.root = Path(root).expanduser().absolute()
        # Names go unquoted into configuration of the supervisor, into scripts and into options of the runtime.
        if not re.fullmatch(r"[\w./@+=-]+", str(self.root)):
            raise EngineError(f"{self.root}: only letters, digits and ./@+=_- may be in the path of a host's folder")
        self.lib = self.root / "lib"
        self.store = self.root / "udocker"
        self.names = self.root / "etc/hosts"
        self.programs = self.root / "etc/supervisor.d"
        self.config = self.root / "etc/supervisord.conf"
        digest = hashlib.sha256(bytes(self.root)).hexdigest()[:12]
        self.short = Path("/tmp", f"dodas-{os.geteuid()}", digest)  # where the folder's own path is too long
        long = len(bytes(self.root / "run/supervisor.sock")) > SOCKET_PATH
        self.run_dir = self.short if long else self.root / "run"
        self.socket = self.run_dir / "supervisor.sock"
        self.pid_file = self.run_dir / "supervisord.pid"
        self.boot_mark = f"# dodas {digest}"
        self.user_unit = Path.home() / f".config/systemd/user/dodas-{digest}.service"

    def program(self, name):
        """The path of one of the host's programs."""
        return self.root / "bin" / name

    def log(self, program):
        """The path of the file with what a program of the supervisor said."""
        return self.root / "var/log" / f"{program}.log"

    @staticmethod
    def ids():
        """ "subids" where users of containers are real ones, "one" where all are the host's user. Raises EngineError
        where this machine lets nobody run containers without root."""
        found = userns.mapped()
        if found != "none" or shutil.which("proot"):
            return "one" if found == "none" else found
        try:
            userns.call(os.getpid, strict=True)
        except errors.Error as exc:
            raise EngineError(str(exc)) from exc
        return userns.mapped()

    # Making and removing it

    def files(self, consul=""):
        """What is written for the host itself, as [ConfigFile]; `consul`: HOST:PORT of its agent or empty."""
        mine = pwd.getpwuid(os.geteuid()).pw_name
        # The interpreter that modules run with may be one of a virtual environment, which does not stay.
        python = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
        home = f"export {MARK}={self.root} UDOCKER_DIR={self.store} PYTHONDONTWRITEBYTECODE=1"
        supervisor = f"PYTHONPATH={self.lib}/supervisor exec {python} -m supervisor"
        scripts = {
            "udocker": f'{home}\nexec {self.lib}/udocker "$@"',
            "supervisorctl": f'{home}\n{supervisor}.supervisorctl -c {self.config} "$@"',
            "start": _START.format(
                folders=f"{self.run_dir.parent} {self.run_dir}", mark=f"{MARK}={self.root}", store=self.store,
                supervisor=f"{self.lib}/supervisor", command=f"{python} -m supervisor.supervisord -c {self.config}",
            ),
            "shell": f"{home}\nexport PATH={self.root}/bin:$PATH\ncd {self.root}\n"
                     '[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"\nexec "$@"',
        }  # fmt: skip
        consul = f" --consul {consul}" if consul else ""
        config = f"""\
# Written by dodas.
[supervisord]
pidfile={self.pid_file}
logfile={self.log("supervisord")}
logfile_maxbytes=5MB
logfile_backups=1
childlogdir={self.root}/var/log
identifier=dodas

[unix_http_server]
file={self.socket}
chmod=0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{self.socket}

[program:dodas-agent]
command={python} -u {self.lib}/dodas_agent.py --root {self.root}{consul}
priority=1
autorestart=true
startsecs=0
redirect_stderr=true
stdout_logfile={self.log("dodas-agent")}
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=1

[include]
files={self.programs}/*.conf
"""
        return [*(ConfigFile(self.program(name), f"#!/bin/sh\n# Written by dodas.\n{text}\n", 0o755, mine)
                  for name, text in scripts.items()),
                ConfigFile(self.config, config, owner=mine)]  # fmt: skip

    def make_folders(self):
        """The folders of the host, for its user alone."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for one in (self.programs, engine.records(self.root), engine.states_folder(self.root), self.root / "var/log",
                    self.root / "var/lib/dodas", self.lib, self.store):  # fmt: skip
            one.mkdir(parents=True, exist_ok=True)
        if not self.names.exists():
            self.names.write_text("127.0.0.1 localhost\n", encoding="ascii")

    def supervisor_differs(self, archive):
        """Whether the supervisor is another than that of a zip `archive`."""
        return engine.read(self.lib / "supervisor/digest") != _digest(archive)

    def unpack_supervisor(self, archive):
        """Put the supervisor there."""
        target, new = self.lib / "supervisor", self.lib / "supervisor.new"
        shutil.rmtree(new, ignore_errors=True)
        with zipfile.ZipFile(archive) as source:
            source.extractall(new)
        (new / "digest").write_text(_digest(archive), encoding="ascii")
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)

    def is_up(self):
        """Whether the supervisor answers."""
        return bool(self._pid()) and "refused" not in self._control("pid", check=False)

    def start(self):
        """Start the supervisor and wait until it answers. Raises EngineError."""
        if self.user_unit.exists():
            _run_systemd("start", self.user_unit.name)
        else:
            engine.run(str(self.program("start")))
        deadline = time.monotonic() + PATIENCE
        while not self.is_up():
            if time.monotonic() > deadline:
                said = (engine.read(self.log("supervisord")) or "").strip().splitlines()[-1:]
                raise EngineError(f"the supervisor did not start: {' '.join(said) or self.log('supervisord')}")
            time.sleep(0.1)

    def reload(self):
        """End the supervisor, and with it all apps, and start it again."""
        self.shut_down()
        self.start()

    def shut_down(self):
        """End the supervisor and everything that runs on the host. Raises EngineError for survivors."""
        if self.user_unit.exists():
            _run_systemd("stop", self.user_unit.name, check=False)
        pid = self._pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            # It gives each app the time that its definition asks for.
            deadline = time.monotonic() + 60
            while self._pid() and time.monotonic() < deadline:
                time.sleep(0.1)
        for name in self.containers():
            self.udocker("rm", "--force", name, check=False)
        deadline = time.monotonic() + PATIENCE
        while left := self.processes():
            if time.monotonic() > deadline:
                raise EngineError(f"{self.root}: processes do not end: {', '.join(map(str, left))}")
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.1)

    def remove(self):
        """Remove the host with everything on it; whether there was anything."""
        there = self.root.exists() or self.boot() != ""
        self.shut_down()
        self.keep(False)
        self.remove_tree(self.root)
        shutil.rmtree(self.short, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.short.parent.rmdir()  # with the last host's
        home = Path.home()
        with contextlib.suppress(OSError):
            for parent in self.root.parents:
                if home not in parent.parents or parent.name == "share":
                    break  # others' folder
                parent.rmdir()
        return there

    def processes(self):
        """Ids of the processes of the host, but for this one."""
        mark = f"{MARK}={self.root}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parts[2]))
        return [one for one in found if one != os.getpid()]

    def remove_tree(self, path):
        """Remove a folder, and in it what belongs to users of containers."""
        path = Path(path)
        if path.exists():
            userns.call(_remove_tree, str(path))
            shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise EngineError(f"{path}: could not be removed")

    # Starting it with the machine

    def boot(self):
        """What starts it with the machine: "systemd", "cron", or "" when nothing does."""
        if self.user_unit.exists():
            return "systemd"
        return "cron" if self.boot_mark in _crontab() else ""

    def keep(self, wanted=True):
        """Have it started with the machine, or no longer; returns what `boot` does."""
        if not wanted or not _lingers():
            if self.user_unit.exists():
                _run_systemd("disable", "--now", self.user_unit.name, check=False)
                self.user_unit.unlink()
                _run_systemd("daemon-reload", check=False)
            self._keep_in_crontab(wanted)
            return self.boot()
        self._keep_in_crontab(False)
        self.user_unit.parent.mkdir(parents=True, exist_ok=True)
        self.user_unit.write_text(f"""\
# Written by dodas.
[Unit]
Description=dodas: apps in {self.root}
[Service]
ExecStart={self.program("start")} --nodaemon
Restart=always
KillMode=mixed
TimeoutStopSec=60
[Install]
WantedBy=default.target
""", encoding="utf-8")  # fmt: skip
        _run_systemd("daemon-reload")
        _run_systemd("enable", self.user_unit.name)
        return self.boot()

    def _keep_in_crontab(self, wanted):
        if not shutil.which("crontab"):
            return
        with _only_one():
            before = _crontab()
            lines = [line for line in before.splitlines() if not line.endswith(self.boot_mark)]
            if wanted:
                lines.append(f"@reboot {self.program('start')} {self.boot_mark}")
            after = "".join(f"{line}\n" for line in lines)
            if after != before:
                command = ["crontab", "-"] if after else ["crontab", "-r"]
                # Where users may not have one, `boot` says so.
                subprocess.run(command, input=after, text=True, capture_output=True, timeout=30, check=False)

    # Its programs

    def is_running(self, program):
        """Whether the supervisor keeps a program running."""
        return RUNNING in self._control("status", program, check=False).split()

    def update(self, program, timeout=60):
        """Have a program run by the configuration that is there now, started anew. Raises EngineError."""
        said = self._control("update", program, timeout=timeout)
        if "added process group" not in said and "updated process group" not in said:
            said = self._control("restart", program, timeout=timeout)
        if "ERROR" in said:
            raise EngineError(f"{program}: {said.strip()}")

    def stop(self, program, timeout=60):
        self._control("stop", program, timeout=timeout, check=False)

    def forget(self, program):
        """A program whose configuration is gone."""
        self._control("update", program, check=False)
        for path in self.log(program).parent.glob(f"{program}.log*"):
            path.unlink()

    def udocker(self, *arguments, check=True, timeout=120):
        """Run the runtime on the host's store; what it printed. Raises EngineError."""
        return engine.run(str(self.program("udocker")), *arguments, check=check, timeout=timeout)

    def containers(self):
        """Ids of the containers in the host's store."""
        try:
            names = os.listdir(self.store / "containers")
        except FileNotFoundError:
            return []
        return [name for name in names if not (self.store / "containers" / name).is_symlink()]

    def image_id(self, name):
        """The digest of an image's configuration; None without such an image."""
        try:
            return Store(str(self.store)).image(reference.parse(name).name).config
        except errors.NotFound:
            return None

    def _control(self, *arguments, check=True, timeout=60):
        # supervisorctl's exit status tells what runs, too: what matters is what it says.
        said = engine.run(str(self.program("supervisorctl")), *arguments, check=False, timeout=timeout)
        if check and ("refused connection" in said or "no such file" in said):
            raise EngineError(f"the supervisor does not run: {self.program('start')} starts it")
        return said

    def _pid(self):
        """The supervisor's process, if it runs."""
        text = (engine.read(self.pid_file) or "").strip()
        if text.isdigit():
            with contextlib.suppress(OSError):
                if bytes(self.config) in Path("/proc", text, "cmdline").read_bytes().split(b"\0"):
                    return int(text)
        return None


# A login, cron and Ansible have environments of their own, with what a program that stays must not keep; and where the
# folders are below /tmp, somebody else could have made them.
_START = """\
for folder in {folders}; do
  mkdir -p -m 700 "$folder"
  [ -O "$folder" ] || {{ echo "$folder belongs to another user" >&2; exit 1; }}
done
exec env -i HOME="$HOME" USER="$(id -un)" LOGNAME="$(id -un)" LANG=C.UTF-8 XDG_RUNTIME_DIR="${{XDG_RUNTIME_DIR:-}}" \\
  PATH="$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={supervisor} \\
  {mark} UDOCKER_DIR={store} {command} "$@\""""


def _digest(archive):
    return hashlib.sha256(Path(archive).read_bytes()).hexdigest()


def _remove_tree(path):
    """Removes it also where a folder lets its owner not do so; called as root of a user namespace."""

    def force(function, one, _error):
        os.chmod(os.path.dirname(one), 0o700)
        with contextlib.suppress(OSError):
            os.chmod(one, 0o700)
        function(one)

    shutil.rmtree(path, onerror=force)


def _crontab():
    if not shutil.which("crontab"):
        return ""
    return engine.run("crontab", "-l", check=False)


@contextlib.contextmanager
def _only_one():
    """One process of the user at a time."""
    holder = os.open(Path.home(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(holder)


def _lingers():
    """Whether the user's systemd runs without a login."""
    if not Path("/run/systemd/system").is_dir() or not os.environ.get("XDG_RUNTIME_DIR"):
        return False
    user = pwd.getpwuid(os.geteuid()).pw_name
    said = engine.run("loginctl", "show-user", user, "--property=Linger", check=False, missing_ok=True)
    return said.strip() == "Linger=yes" and bool(_run_systemd("show-environment", check=False))


def _run_systemd(*arguments, check=True):
    return engine.run("systemctl", "--user", *arguments, check=check, missing_ok=not check)

# SPDX-License-Identifier: Apache-2.0
"""The podman engine: an app is a systemd unit that runs a container, watched by the host's app agent.

The agent (role container_engine) does health checks, restarts an app that fails them and tells Consul; it reads the
records that are written here. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import host
from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile

UNITS = Path("/etc/systemd/system")
RECORDS = Path("/etc/dodas/apps")
STATES = Path("/run/dodas/apps")
HOMES = (Path("/etc/dodas"), Path("/var/lib/dodas"))  # each app has a folder of its name in both


class EngineError(Exception):
    """The app could not be made to run; the message names the app and the reason."""


def unit_name(name):
    """The systemd unit of app `name`; the container has the same name without its suffix."""
    return f"dodas-{name}.service"


class PodmanApp:
    """App `app` on this host, with its configuration `files` [{path, content, mode, owner?}]."""

    def __init__(self, app, files=(), check=False):
        """With `check`, podman and the image may be missing yet."""
        self.app = app
        self.check = check
        self.files = [ConfigFile.parse(one) for one in files]
        self.unit = unit_name(app.id)
        self.container = f"dodas-{app.id}"
        self.restarted = 0.0

    def render(self):
        """All files of the app; the unit's own text carries no secret."""
        app = self.app
        env = "".join(f"{key}={value}\n" for key, value in sorted(app.env.items()))
        rendered = [*self.files, ConfigFile(RECORDS / f"{app.id}.env", env, 0o600)]
        parts = sorted((str(one.path), one.mode, one.owner, one.content) for one in rendered)
        content = json.dumps([asdict(app), self._image_id(), parts], sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:24]
        record = {
            "id": app.id, "unit": self.unit, "container": self.container, "labels": app.labels, "digest": self.digest,
            "ports": [{"name": name, "port": port, "protocol": protocol} for name, port, protocol in app.ports],
            "checks": [asdict(check) for check in app.checks],
        }  # fmt: skip
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        return [*rendered, ConfigFile(RECORDS / f"{app.id}.json", text), ConfigFile(UNITS / self.unit, self._unit())]

    def plan(self):
        """What `apply` would change: {"files": [ConfigFile], "restart": bool}."""
        changed = [one for one in self.render() if one.differs()]
        # A file that somebody edited may be what the app runs with; the record is only the agent's.
        edited = any(one.path != RECORDS / f"{self.app.id}.json" for one in changed)
        return {"files": changed, "restart": edited or self._running_digest() != self.digest}

    def apply(self, plan, timeout):
        """Write what differs, start or restart the app, wait until it is healthy. Raises EngineError."""
        if plan["restart"]:
            self._check_ports()
        for one in plan["files"]:
            one.write()
        if plan["restart"]:
            for path, _inside, _mode in self.app.volumes:
                if not Path(path).exists():  # a file or a socket can be mounted as well
                    Path(path).mkdir(parents=True)
            systemctl("daemon-reload")
            systemctl("enable", "--quiet", self.unit)
            try:
                systemctl("restart", self.unit, timeout=timeout)
            except EngineError as exc:
                raise EngineError(f"{exc}; last log lines:\n{journal(self.unit)}") from exc
            self.restarted = time.time()

    def wait_healthy(self, timeout):
        """Wait for the agent to find the app healthy; raises EngineError with the last check's output."""
        deadline = time.monotonic() + timeout
        state = {}
        while time.monotonic() < deadline:
            state = json.loads(_read(STATES / f"{self.app.id}.json") or "{}")
            if state.get("state") == "passing" and state["checked"] >= self.restarted:
                return
            time.sleep(0.2)
        reason = state.get("output") or "the app agent has not looked at it (systemctl status dodas-agent)"
        raise EngineError(f"app {self.app.id} is not healthy after {timeout} s: {reason}\n{journal(self.unit)}")

    def exists(self, purge=False):
        """Whether anything of the app is on this host; with `purge` also its configuration or state."""
        return any(path.exists() for path in self._own() + (self._folders() if purge else []))

    def remove(self, purge=False):
        """Stop and remove the app, its unit and its records; with `purge` also its configuration and its state."""
        if self.exists():
            systemctl("disable", "--now", "--quiet", self.unit, timeout=self.app.kill_grace + 30, check=False)
            for path in self._own():
                path.unlink(missing_ok=True)
            systemctl("daemon-reload")
        for path in self._folders() if purge else []:
            if path.exists():
                shutil.rmtree(path)
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # with the last app's

    def _folders(self):
        return [home / self.app.id for home in HOMES]

    def _own(self):
        return [UNITS / self.unit, RECORDS / f"{self.app.id}.json", RECORDS / f"{self.app.id}.env"]

    def _unit(self):
        app = self.app
        limits = host.container_limits_work(host.cgroups())
        arguments = [
            "--name", self.container, "--replace", "--rm", "--detach", "--sdnotify=conmon", "--network=host",
            f"--cgroups={'no-conmon' if limits else 'disabled'}", "--pull=never", "--log-driver=journald",
            f"--label=dodas.digest={self.digest}", f"--env-file={RECORDS / app.id}.env",
            f"--stop-timeout={app.kill_grace}",
        ]  # fmt: skip
        if limits:
            arguments += [f"--cpus={app.cpus}", f"--memory={app.mem}m"]
        arguments += ["--privileged"] if app.privileged else []
        arguments += [f"--user={app.user}"] if app.user else []
        arguments += [f"--device={device}" for device in app.devices]
        arguments += [f"--volume={source}:{target}:{mode.lower()}" for source, target, mode in app.volumes]
        command = ["/bin/sh", "-c", app.cmd] if app.cmd else app.args
        line = " ".join(_quote(word) for word in ["/usr/bin/podman", "run", *arguments, app.image, *command])
        after = " ".join(unit_name(one) for one in app.dependencies)
        return f"""\
# Written by dodas from the app's Marathon definition.
[Unit]
Description=dodas app {app.id}
Wants=network-online.target
After=network-online.target consul.service {after}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
ExecStart={line}
ExecStop=/usr/bin/podman stop --ignore --time {app.kill_grace} {self.container}
ExecStopPost=/usr/bin/podman rm --force --ignore {self.container}
Restart=always
RestartSec={app.backoff}
TimeoutStartSec=120
TimeoutStopSec={app.kill_grace + 15}

[Install]
WantedBy=multi-user.target
"""

    def _image_id(self):
        if self.check and not shutil.which("podman"):
            return ""
        return _image_id(self.app.image, missing_ok=self.check)

    def _running_digest(self):
        if self.check and not shutil.which("podman"):
            return ""
        shape = '{{.State.Status}} {{index .Config.Labels "dodas.digest"}}'
        shown = run("podman", "inspect", "--type=container", f"--format={shape}", self.container, check=False).split()
        return shown[1] if len(shown) == 2 and shown[0] == "running" else ""

    def _check_ports(self):
        """Refuse to start on a port that something else listens on: the container would only crash in a loop."""
        ours = set()
        if systemctl("is-active", self.unit, check=False).strip() == "active":
            record = json.loads(_read(RECORDS / f"{self.app.id}.json") or '{"ports": []}')
            ours = {one["port"] for one in record["ports"]}
        for name, port, protocol in self.app.ports:
            if protocol == "udp" or port in ours:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError as exc:
                    listeners = run("ss", "-Hltnp", f"sport = :{port}", check=False)
                    owner = re.search(r'users:\(\("([^"]+)",pid=(\d+)', listeners)
                    who = f"{owner.group(1)} (process {owner.group(2)})" if owner else exc.strerror
                    raise EngineError(f"app {self.app.id}: port {port} ({name}) is in use by {who}") from exc


def states():
    """The apps of this host and what the agent found: {app: {"state": "passing", "output": ..., "since": ...}}."""
    unknown = '{"state": "critical", "output": "the app agent has not looked at it"}'
    return {path.stem: json.loads(_read(STATES / path.name) or unknown) for path in sorted(RECORDS.glob("*.json"))}


def journal(unit, lines=5):
    """The last lines that a unit logged."""
    return run("journalctl", "--unit", unit, "--lines", str(lines), "--no-pager", "--output=cat", check=False).strip()


def systemctl(*arguments, timeout=60, check=True):
    """Run systemctl; raises EngineError."""
    return run("systemctl", *arguments, timeout=timeout, check=check)


def run(*command, timeout=60, check=True):
    """Run a command, return its output; raises EngineError where it fails and `check` says so."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except FileNotFoundError as exc:
        raise EngineError(f"{command[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise EngineError(f"{' '.join(command[:3])}: no answer in {timeout} s") from exc
    if check and done.returncode != 0:
        raise EngineError(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _image_id(image, missing_ok=False):
    found = run("podman", "image", "inspect", "--format={{.Id}}", image, check=False).strip()
    if not found and not missing_ok:
        raise EngineError(f"image {image} is not on this host")
    return found


def _quote(word):
    """A word of a systemd command line: quoted, with specifiers and variables taken literally."""
    word = str(word).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./${}-]+", word):
        return word
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char, char) for char in word) + '"'


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None

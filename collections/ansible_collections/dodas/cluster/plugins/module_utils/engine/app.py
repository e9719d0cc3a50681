# SPDX-License-Identifier: Apache-2.0
"""What engines on one host share: an app's files and record, the difference to what is there, the wait for its health.

The app agent (role container_engine) does health checks, restarts an app that fails them and tells Consul; it reads the
records that are written here. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile


class EngineError(Exception):
    """The app could not be made to run; the message names the app and the reason."""


class EngineApp:
    """App `app` on this host, with its configuration `files` [{path, content, mode, owner?}].

    `root` is the folder that stands for the host's root. With `check`, engine and image may be missing yet.
    """

    owner = "root"  # of the engine's own files
    agent = ""  # the command that tells how the app agent is

    def __init__(self, app, files=(), check=False, root="/"):
        self.app = app
        self.check = check
        self.root = Path(root)
        self.files = [ConfigFile.parse(one) for one in files]
        self.records = records(root)
        self.states = states_folder(root)
        # Each app has a folder of its name in both.
        self.homes = (self.root / "etc/dodas", self.root / "var/lib/dodas")
        self.container = f"dodas-{app.id}"
        self.digest = ""
        self.address = ""  # that apps listen on; all when empty
        self.restarted = 0.0

    # What an engine does in its own way

    def _unit_files(self):
        """What makes the app start, as [ConfigFile]; its text carries no secret."""
        raise NotImplementedError

    def _restart(self, timeout):
        """Start or restart the app from the files just written. Raises EngineError."""
        raise NotImplementedError

    def _stop(self):
        """Stop the app for good."""
        raise NotImplementedError

    def _forget(self):
        """Called when the files are gone."""

    def _image_id(self):
        """The id of the app's image. Raises EngineError where it is missing."""
        raise NotImplementedError

    def _running_digest(self):
        """The digest that the running app was started with; empty when it does not run."""
        raise NotImplementedError

    def _is_active(self):
        raise NotImplementedError

    def _remove_folder(self, path):
        raise NotImplementedError

    def log(self):
        """The last lines that the app logged."""
        raise NotImplementedError

    # What all do alike

    def render(self):
        """All files of the app; the unit's own text carries no secret."""
        app = self.app
        env = "".join(f"{key}={value}\n" for key, value in sorted(app.env.items()))
        rendered = [*self.files, ConfigFile(self.records / f"{app.id}.env", env, 0o600, self.owner)]
        parts = sorted((str(one.path), one.mode, one.owner, one.content) for one in rendered)
        content = json.dumps([asdict(app), self._image_id(), parts], sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:24]
        record = {
            "id": app.id, "unit": f"{self.container}.service", "container": self.container, "labels": app.labels,
            "digest": self.digest, "address": self.address,
            "ports": [{"name": name, "port": port, "protocol": protocol} for name, port, protocol in app.ports],
            "checks": [asdict(check) for check in app.checks], "order": self._order(),
        }  # fmt: skip
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        written = ConfigFile(self.records / f"{app.id}.json", text, owner=self.owner)
        return [*rendered, written, *self._unit_files()]

    def plan(self):
        """What `apply` would change: {"files": [ConfigFile], "restart": bool}."""
        changed = [one for one in self.render() if one.differs()]
        # A file that somebody edited may be what the app runs with; the record is only the agent's.
        edited = any(one.path != self.records / f"{self.app.id}.json" for one in changed)
        return {"files": changed, "restart": edited or self._running_digest() != self.digest}

    def apply(self, plan, timeout):
        """Write what differs, start or restart the app. Raises EngineError."""
        if plan["restart"]:
            self._check_ports()
        for one in plan["files"]:
            one.write()
        if plan["restart"]:
            for path, _inside, _mode in self.app.volumes:
                if not Path(path).exists():  # a file or a socket can be mounted as well
                    Path(path).mkdir(parents=True)
            try:
                self._restart(timeout)
            except EngineError as exc:
                raise EngineError(f"{exc}; last log lines:\n{self.log()}") from exc
            self.restarted = time.time()

    def wait_healthy(self, timeout):
        """Wait for the agent to find the app healthy; raises EngineError with the last check's output."""
        deadline = time.monotonic() + timeout
        state = {}
        while time.monotonic() < deadline:
            state = json.loads(read(self.states / f"{self.app.id}.json") or "{}")
            if state.get("state") == "passing" and state["checked"] >= self.restarted:
                return
            time.sleep(0.2)
        reason = state.get("output") or f"the app agent has not looked at it ({self.agent})"
        raise EngineError(f"app {self.app.id} is not healthy after {timeout} s: {reason}\n{self.log()}")

    def exists(self, purge=False):
        """Whether anything of the app is on this host; with `purge` also its configuration or state."""
        return any(path.exists() for path in self._own() + (self._folders() if purge else []))

    def remove(self, purge=False):
        """Stop and remove the app, its unit and its records; with `purge` also its configuration and its state."""
        if self.exists():
            self._stop()
            for path in self._own():
                path.unlink(missing_ok=True)
            self._forget()
        for path in self._folders() if purge else []:
            if path.exists():
                self._remove_folder(path)
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # with the last app's

    def _folders(self):
        return [home / self.app.id for home in self.homes]

    def _own(self):
        units = [one.path for one in self._unit_files()]
        return [*units, self.records / f"{self.app.id}.json", self.records / f"{self.app.id}.env"]

    def _order(self):
        """1 for an app that depends on none of this host's; more for those that start after it."""
        there = [json.loads(read(self.records / f"{one}.json") or "{}") for one in self.app.dependencies]
        return 1 + max((record.get("order", 1) for record in there if record), default=0)

    def _check_ports(self):
        """Refuse to start on a port that something else listens on: the container would only crash in a loop."""
        ours = set()
        if self._is_active():
            record = json.loads(read(self.records / f"{self.app.id}.json") or '{"ports": []}')
            ours = {one["port"] for one in record["ports"]}
        for name, port, protocol in self.app.ports:
            if protocol == "udp" or port in ours:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.address or "0.0.0.0", port))
                except OSError as exc:
                    listeners = run("ss", "-Hltnp", f"sport = :{port}", check=False, missing_ok=True)
                    owner = re.search(r'users:\(\("([^"]+)",pid=(\d+)', listeners)
                    who = f"{owner.group(1)} (process {owner.group(2)})" if owner else exc.strerror
                    raise EngineError(f"app {self.app.id}: port {port} ({name}) is in use by {who}") from exc


def records(root="/"):
    """Where the records of a host's apps are."""
    return Path(root, "etc/dodas/apps")


def states_folder(root="/"):
    """Where the app agent writes what it found."""
    return Path(root, "run/dodas/apps")


def states(root="/"):
    """The apps of a host and what the agent found: {app: {"state": "passing", "output": ..., "since": ...}}."""
    unknown = '{"state": "critical", "output": "the app agent has not looked at it"}'
    return {path.stem: json.loads(read(states_folder(root) / path.name) or unknown)
            for path in sorted(records(root).glob("*.json"))}  # fmt: skip


def run(*command, timeout=60, check=True, missing_ok=False):
    """Run a command, return its output; raises EngineError where it fails and `check` says so."""
    words = " ".join(str(word) for word in command[:3])
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except FileNotFoundError as exc:
        if missing_ok:
            return ""
        raise EngineError(f"{command[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise EngineError(f"{words}: no answer in {timeout} s") from exc
    if check and done.returncode != 0:
        raise EngineError(f"{words}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def read(path):
    """The text in a file; None without it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None

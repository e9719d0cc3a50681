# SPDX-License-Identifier: Apache-2.0
"""The podman engine: an app is a systemd unit that runs a container. Runs on managed hosts: standard library only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import host
from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
from ansible_collections.dodas.cluster.plugins.module_utils.engine import app as engine
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineApp, EngineError


def unit_name(name):
    """The systemd unit of app `name`; the container has the same name without its suffix."""
    return f"dodas-{name}.service"


class PodmanApp(EngineApp):
    """An app as a systemd unit; `root` is another than / in tests alone."""

    agent = "systemctl status dodas-agent"

    def __init__(self, app, files=(), check=False, root="/"):
        super().__init__(app, files, check, root)
        self.unit = unit_name(app.id)
        self.units = Path(root, "etc/systemd/system")

    def log(self, lines=5):
        command = ("journalctl", "--unit", self.unit, "--lines", str(lines), "--no-pager", "--output=cat")
        return engine.run(*command, check=False).strip()

    def _unit_files(self):
        return [ConfigFile(self.units / self.unit, self._unit(), owner=self.owner)]

    def _restart(self, timeout):
        systemctl("daemon-reload")
        systemctl("enable", "--quiet", self.unit)
        systemctl("restart", self.unit, timeout=timeout)

    def _stop(self):
        systemctl("disable", "--now", "--quiet", self.unit, timeout=self.app.kill_grace + 30, check=False)

    def _forget(self):
        systemctl("daemon-reload")

    def _is_active(self):
        return systemctl("is-active", self.unit, check=False).strip() == "active"

    def _remove_folder(self, path):
        shutil.rmtree(path)

    def _unit(self):
        app = self.app
        limits = host.container_limits_work(host.cgroups())
        arguments = [
            "--name", self.container, "--replace", "--rm", "--detach", "--sdnotify=conmon", "--network=host",
            f"--cgroups={'no-conmon' if limits else 'disabled'}", "--pull=never", "--log-driver=journald",
            f"--label=dodas.digest={self.digest}", f"--env-file={self.records / app.id}.env",
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
        found = engine.run("podman", "image", "inspect", "--format={{.Id}}", self.app.image, check=False).strip()
        if not found and not self.check:
            raise EngineError(f"image {self.app.image} is not on this host")
        return found

    def _running_digest(self):
        if self.check and not shutil.which("podman"):
            return ""
        shape = '{{.State.Status}} {{index .Config.Labels "dodas.digest"}}'
        shown = engine.run("podman", "inspect", "--type=container", f"--format={shape}", self.container, check=False)
        words = shown.split()
        return words[1] if len(words) == 2 and words[0] == "running" else ""


def systemctl(*arguments, timeout=60, check=True):
    """Run systemctl; raises EngineError."""
    return engine.run("systemctl", *arguments, timeout=timeout, check=check)


def _quote(word):
    """A word of a systemd command line: quoted, with specifiers and variables taken literally."""
    word = str(word).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./${}-]+", word):
        return word
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char, char) for char in word) + '"'

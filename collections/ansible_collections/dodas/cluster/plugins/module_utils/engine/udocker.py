# SPDX-License-Identifier: Apache-2.0
"""The udocker engine: an app is a program of the host's supervisor, which runs a container as a plain user.

The host is a folder: what an app's definition calls /etc/dodas and /var/lib/dodas is below it, all other paths are the
machine's own. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex

from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
from ansible_collections.dodas.cluster.plugins.module_utils.engine import app as engine
from ansible_collections.dodas.cluster.plugins.module_utils.engine import plainhost
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineApp, EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError, Refused

OURS = ("/etc/dodas", "/var/lib/dodas")  # what of the host's root is below its folder


class UdockerApp(EngineApp):
    """An app on the host that is folder `root`; `address` is where its apps listen, everywhere when empty."""

    def __init__(self, app, files=(), check=False, root="/", address=""):
        self.place = plainhost.PlainHost(root)
        self._refuse(app)
        app.volumes = [(self._path(source), target, mode) for source, target, mode in app.volumes]
        mine = pwd.getpwuid(os.geteuid()).pw_name
        files = [{**one, "path": self._file(i, one), "owner": mine} for i, one in enumerate(files)]
        super().__init__(app, files, check, self.place.root)
        self.owner = mine
        self.address = address
        self.agent = f"{self.place.program('supervisorctl')} status dodas-agent"
        self.script = self.records / f"{app.id}.sh"
        self.started = self.states / f"{app.id}.digest"

    def log(self, lines=5):
        return "\n".join((engine.read(self.place.log(self.container)) or "").strip().splitlines()[-lines:])

    @staticmethod
    def _refuse(app):
        """Raise Refused for what a plain user cannot give."""
        if app.privileged:
            raise Refused("container.docker.privileged", "udocker", "a plain user has no more rights to give")
        first = _first_port()
        for i, (_name, port, _protocol) in enumerate(app.ports):
            if port < first and os.geteuid() != 0:
                raise Refused(f"portDefinitions[{i}].port", "udocker", f"a plain user's ports begin at {first}")

    def _path(self, path):
        """Where a path of the host is: below its folder if it is one of ours."""
        clean = os.path.normpath(path)
        inside = any(clean == one or clean.startswith(f"{one}/") for one in OURS)
        return f"{self.place.root}{clean}" if inside else clean

    def _file(self, i, one):
        path = self._path(one["path"])
        if path == os.path.normpath(one["path"]) and os.path.isabs(path):
            raise DefinitionError(f"files[{i}].path: {path} belongs to root: the udocker engine writes below {OURS[0]}")
        if one.get("owner") not in (None, "root"):
            raise DefinitionError(f"files[{i}].owner: the udocker engine cannot give a file to {one['owner']}")
        return path

    def _unit_files(self):
        program = self.place.programs / f"{self.container}.conf"
        return [ConfigFile(self.script, self._script(), 0o700, self.owner),
                ConfigFile(program, self._program(), owner=self.owner)]  # fmt: skip

    def _program(self):
        return f"""\
# Written by dodas from the app's Marathon definition.
[program:{self.container}]
command=/bin/sh {self.script}
priority={100 + self._order()}
startsecs=0
autorestart=true
stopsignal=TERM
stopwaitsecs={self.app.kill_grace + 5}
killasgroup=true
redirect_stderr=true
stdout_logfile={self.place.log(self.container)}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""

    def _script(self):
        app, runtime, started = self.app, self.place.program("udocker"), self.started
        arguments = ["--rm", f"--name={self.container}", f"--hostname={self.place.root.name}"]
        arguments += [f"--env-file={self.records / app.id}.env"]
        arguments += [f"--user={app.user}"] if app.user else []
        arguments += [f"--device={device}" for device in app.devices]
        arguments += [f"--volume={source}:{target}:{mode.lower()}" for source, target, mode in app.volumes]
        arguments += [f"--volume={self.place.names}:/etc/hosts:ro"]
        command = ["/bin/sh", "-c", app.cmd] if app.cmd else app.args
        line = " ".join(shlex.quote(str(word)) for word in [*arguments, app.image, *command])
        # The supervisor itself starts a program again within a second.
        wait = f"[ ! -e {started} ] || sleep {app.backoff - 1}\n" if app.backoff > 1 else ""
        return f"""\
# Written by dodas from the app's Marathon definition.
{wait}{runtime} rm --force {self.container} >/dev/null 2>&1
echo {self.digest} > {started}
exec {runtime} run {line}
"""

    def _restart(self, timeout):
        self.started.unlink(missing_ok=True)
        self.place.update(self.container, timeout)

    def _stop(self):
        self.place.stop(self.container, self.app.kill_grace + 30)
        self.place.udocker("rm", "--force", self.container, check=False)

    def _forget(self):
        self.started.unlink(missing_ok=True)
        self.place.forget(self.container)

    def _is_active(self):
        return self.place.is_running(self.container)

    def _remove_folder(self, path):
        self.place.remove_tree(path)

    def _image_id(self):
        found = self.place.image_id(self.app.image)
        if not found and not self.check:
            raise EngineError(f"image {self.app.image} is not in {self.place.store}")
        return found

    def _running_digest(self):
        return (engine.read(self.started) or "").strip() if self._is_active() else ""


def _first_port():
    text = engine.read("/proc/sys/net/ipv4/ip_unprivileged_port_start") or "1024"
    return int(re.match(r"\d+", text).group())

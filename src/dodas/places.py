# SPDX-License-Identifier: Apache-2.0
"""How a host is reached, and what is typed there: one class an engine."""

from __future__ import annotations

import shlex


class Podman:
    """A host where root runs apps, with podman and systemd."""

    runtime = "podman"
    keeps_apps = True  # those of its groups are there, and nowhere else

    @staticmethod
    def start(app):
        """The command that starts an app that was stopped."""
        return f"systemctl start dodas-{app}"

    @staticmethod
    def restart(app):
        return f"systemctl restart dodas-{app}"

    @staticmethod
    def logs(app, lines, follow=False):
        """The command that shows what an app logged."""
        more = " --follow" if follow else ""
        return f"journalctl --unit dodas-{app} --lines {lines} --no-pager --output=short-iso{more}"

    @staticmethod
    def shell(command=""):
        """A shell of the host, or a shell command there."""
        return command

    @staticmethod
    def as_root(command, user):
        return command if user == "root" else f"sudo -n sh -c {shlex.quote(command)}"

    def execute(self, app, *words, user="", folder="", stdin=False):
        """The command that runs words in an app's container, with the words' own standard input."""
        options = [*(["-i"] if stdin else []), *(["-u", user] if user else []), *(["-w", folder] if folder else [])]
        return shlex.join([self.runtime, "exec", *options, f"dodas-{app}", *words])


class Marathon(Podman):
    """An agent of Mesos, where Marathon starts an app's container: it has a label rather than a name."""

    keeps_apps = False
    FIND = 'e=$(command -v docker || command -v podman); c=$("$e" ps -q --filter "label=dodas.app={app}" | head -n 1); '
    MISSING = '[ -n "$c" ] || {{ echo "no container of app {app} runs here" >&2; exit 1; }}; '

    def restart(self, app):
        """Marathon starts another when a container ends."""
        return self._found(app) + 'exec "$e" stop "$c"'

    start = restart

    def logs(self, app, lines, follow=False):
        more = " --follow" if follow else ""
        return self._found(app) + f'exec "$e" logs --tail {lines}{more} "$c"'

    def execute(self, app, *words, user="", folder="", stdin=False):
        options = [*(["-i"] if stdin else []), *(["-u", user] if user else []), *(["-w", folder] if folder else [])]
        return self._found(app) + f'exec "$e" exec {shlex.join(options)} "$c" {shlex.join(words)}'

    def _found(self, app):
        return (self.FIND + self.MISSING).format(app=app)


class Udocker(Podman):
    """A host that is folder `root`, where a plain user runs apps with udocker and a supervisor."""

    runtime = "udocker"

    def __init__(self, root):
        self.root = root

    @staticmethod
    def start(app):
        return f"supervisorctl start dodas-{app}"

    @staticmethod
    def restart(app):
        return f"supervisorctl restart dodas-{app}"

    @staticmethod
    def logs(app, lines, follow=False):
        return f"tail -n {lines} {'-F ' if follow else ''}var/log/dodas-{app}.log"

    def shell(self, command=""):
        return f"{self.root}/bin/shell " + (f"sh -c {shlex.quote(command)}" if command else "")

    @staticmethod
    def as_root(command, user):
        return command  # there is no root, and no need of one

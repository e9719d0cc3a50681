# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: udocker
short_description: Run tasks in a container of udocker, here or on a machine reached by SSH
version_added: 0.1.0
author:
  - The dodas developers (@dodas)
description:
  - A play's host is a container of the runtime of this collection. Neither root nor a daemon is needed on the machine
    that has the container, and nothing needs to be installed there but a Python of version 3.8 or newer.
  - In a container that runs, each command is another process of it (C(udocker exec)).
  - In a container that was created and does not run, each command runs by itself, in the container's files. Such a
    command's background processes end with it. Start the container where a task leaves a service running.
  - With O(host), the container is on another machine. It is reached by P(ansible.builtin.ssh#connection), with all its
    options and variables but those for the machine's address and the login.
extends_documentation_fragment:
  - ansible.builtin.connection_pipelining
options:
  container:
    description: Name or id of the container.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: ansible_udocker_container
  remote_user:
    description: User in the container, by name or number. Default is the user of its image.
    type: str
    keyword:
      - name: remote_user
    vars:
      - name: ansible_user
      - name: ansible_udocker_user
  root:
    description: Folder that has the containers and images. Default is the runtime's own, C(~/.udocker).
    type: str
    env:
      - name: UDOCKER_DIR
    vars:
      - name: ansible_udocker_root
  program:
    description:
      - The runtime on the machine that has the container. Default is the one of this collection, which is copied there
        once, to C(~/.ansible/udocker).
    type: str
    env:
      - name: ANSIBLE_UDOCKER_PROGRAM
    ini:
      - section: udocker_connection
        key: program
    vars:
      - name: ansible_udocker_program
  host:
    description: Address of the machine that has the container. Default is the controller.
    type: str
    vars:
      - name: ansible_udocker_host
  host_user:
    description: User to log in to O(host) as. Default is what SSH's configuration says.
    type: str
    vars:
      - name: ansible_ssh_user
      - name: ansible_udocker_host_user
notes:
  - Modules need a Python in the container; M(ansible.builtin.raw) can install it.
  - Where the user has further ids (C(/etc/subuid)), the users in the container are real ones, else the runtime makes it
    look so. Become another one with O(remote_user), or with C(su) or C(sudo) of the container.
"""

import shlex

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase, ensure_connect
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from ansible_collections.dodas.cluster.plugins.plugin_utils import udocker_program

display = Display()
CHUNK = 1 << 25  # bytes of a file that are sent or fetched at a time
CACHE = ".ansible/udocker"  # below the home of the user there
ABSENT = "the runtime is not there yet"


class Connection(ConnectionBase):
    """The local or the ssh plugin, and the runtime's command line at its other end."""

    transport = "dodas.cluster.udocker"
    has_pipelining = True

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._machine = None
        self._verb = None  # how commands are run: exec or run

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        if self.get_option("host"):
            # By this name, the task executor finds it and gives it the variables that are its own.
            self.ssh_type_conn = self._machine = connection_loader.get("ansible.builtin.ssh", self._play_context)
        else:
            self._machine = connection_loader.get("ansible.builtin.local", self._play_context)
        self._machine.set_options(task_keys=task_keys)

    def _connect(self):
        if self._connected:
            return self
        if self.get_option("host"):
            self._machine.set_option("host", self.get_option("host"))
            self._machine.set_option("remote_user", self.get_option("host_user"))
        self._machine.become = self.become
        self._verb = "exec" if self._state() == "running" else "run"
        display.vvv(f"ESTABLISH UDOCKER CONNECTION BY {self._verb}", host=self._name)
        self._connected = True
        return self

    @property
    def _name(self):
        return self.get_option("container")

    @ensure_connect
    def exec_command(self, cmd, in_data=None, sudoable=True):
        """Run a command in the container: (status, stdout, stderr)."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"EXEC {to_text(cmd)}", host=self._name)
        executable = self._play_context.executable or "/bin/sh"
        return self._inside([executable, "-c", to_text(cmd)], in_data, sudoable)

    @ensure_connect
    def put_file(self, in_path, out_path):
        """Copy a file from the controller into the container."""
        super().put_file(in_path, out_path)
        display.vvv(f"PUT {in_path} TO {out_path}", host=self._name)
        path, redirect = shlex.quote(self._shell.join_path(out_path)), ">"
        with open(to_bytes(in_path, errors="surrogate_or_strict"), "rb") as source:
            while True:
                data = source.read(CHUNK)
                if data or redirect == ">":
                    self._inside_well(f"cat {redirect} {path}", f"{out_path} could not be written", data)
                if len(data) < CHUNK:
                    return
                redirect = ">>"

    @ensure_connect
    def fetch_file(self, in_path, out_path):
        """Copy a file from the container to the controller."""
        super().fetch_file(in_path, out_path)
        display.vvv(f"FETCH {in_path} TO {out_path}", host=self._name)
        path, number = shlex.quote(in_path), 0
        with open(to_bytes(out_path, errors="surrogate_or_strict"), "wb") as target:
            while True:
                part = f"dd if={path} bs={CHUNK} count=1 skip={number}"
                data = self._inside_well(part, f"{in_path} could not be read")
                target.write(data)
                if len(data) < CHUNK:
                    return
                number += 1

    def close(self):
        if self._machine:
            self._machine.close()
        self._connected = False

    def reset(self):
        self._machine.reset()
        self._connected = False

    def _inside(self, argv, in_data=None, sudoable=False):
        words = [self._verb, "--interactive"]
        if self._verb == "run":
            words += ["--nobanner", "--entrypoint="]
        if self.get_option("remote_user"):
            words.append(f"--user={self.get_option('remote_user')}")
        return self._machine.exec_command(self._line(*words, self._name, *argv), in_data=in_data, sudoable=sudoable)

    def _inside_well(self, script, problem, in_data=None):
        status, output, errors = self._inside(["/bin/sh", "-c", script], in_data)
        if status:
            raise AnsibleError(f"container {self._name}: {problem}: {to_text(errors).strip()}")
        return output

    def _state(self):
        """created, running or exited. Brings the runtime to the machine where it is not there."""
        command = self._line("inspect", "--format={{.State.Status}}", self._name)
        for _try in range(2):
            status, output, errors = self._machine.exec_command(command, sudoable=False)
            if ABSENT not in to_text(errors):
                break
            self._install()
        if status:
            where = self.get_option("host") or "the controller"
            raise AnsibleConnectionFailure(f"container {self._name} on {where}: {to_text(errors or output).strip()}")
        return to_text(output).strip()

    def _line(self, *words):
        """A command line for the machine's shell."""
        words = [*([f"--repo={self.get_option('root')}"] if self.get_option("root") else []), *words]
        program = self.get_option("program")
        if program:
            return shlex.join([program, *words])
        path = f'"$HOME"/{CACHE}/{udocker_program.digest()}'
        return f"test -x {path} || {{ echo {shlex.quote(ABSENT)} >&2; exit 127; }}; exec {path} {shlex.join(words)}"

    def _install(self):
        """Copy the runtime to the machine."""
        name = udocker_program.digest()
        with open(udocker_program.path(), "rb") as source:
            content = source.read()
        script = f"mkdir -p {CACHE} && cat > {CACHE}/{name}.$$ && chmod 755 {CACHE}/{name}.$$"
        script = f'umask 077 && cd "$HOME" && {script} && mv {CACHE}/{name}.$$ {CACHE}/{name}'
        status, _output, errors = self._machine.exec_command(script, in_data=content, sudoable=False)
        if status:
            raise AnsibleConnectionFailure(f"udocker could not be copied to ~/{CACHE}: {to_text(errors).strip()}")

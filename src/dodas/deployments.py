# SPDX-License-Identifier: Apache-2.0
"""Deployments as the command line knows them: a name, what they were made from, and how to run a playbook on them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment as store
from ansible_collections.dodas.cluster.plugins.module_utils import sshkeys
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import inputs as tosca_inputs
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import template as tosca
from dodas import lock, places, tunnels
from dodas.errors import DodasError, InputError

ROOT = Path(os.environ.get("DODAS_ROOT", Path(__file__).resolve().parents[2]))
BACKENDS = ("local", "existing", "openstack")
ENGINES = ("podman", "udocker", "marathon")


@dataclass
class Deployment:
    """`source` is the TOSCA template, or for the backend `existing` an Ansible inventory."""

    name: str
    source: Path
    backend: str = "local"
    engine: str = "podman"
    inputs: dict = field(default_factory=dict)
    uuid: str | None = None  # of a cloud's deployment, where it is not recorded here
    _held: tuple = ()  # file descriptors that playbooks inherit
    _listed: dict = field(default_factory=dict)  # the inventory, once it was asked

    @classmethod
    def load(cls, name):
        """The deployment recorded under `name`. Raises InputError."""
        path = _directory(name)
        record = store.read_json(path / "deployment.json")
        if record is None:
            there = ", ".join(names()) or "none"
            raise InputError(f"there is no deployment {name!r} (there are: {there}); ./dodas up makes one")
        inputs, uuid = store.read_json(path / "inputs.json", {}), store.uuid(path, make=False)
        return cls(name, Path(record["source"]), record["backend"], record["engine"], inputs, uuid)

    @property
    def directory(self):
        """Where its state is."""
        return _directory(self.name)

    @property
    def hosts(self):
        """Addresses by host."""
        return store.read_json(self.directory / "hosts.json", {})

    @property
    def sockets(self):
        """Where connections that are kept open for the next command have their sockets: a path may have 100 bytes."""
        run = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR")
        return Path(run, "dodas/ssh", hashlib.sha256(bytes(self.directory)).hexdigest()[:8]) if run else None

    def hang_up(self):
        """Close the connections that are kept open."""
        for path in self.sockets.glob("*") if self.sockets else []:
            subprocess.run(["ssh", "-O", "exit", "-S", path, "host"], capture_output=True, timeout=10, check=False)
        if self.sockets:
            shutil.rmtree(self.sockets, ignore_errors=True)
            with suppress(OSError):
                self.sockets.parent.rmdir()  # with the last deployment's

    def save(self):
        """Record it, so that later commands need only its name."""
        record = {"source": str(self.source), "backend": self.backend, "engine": self.engine}
        store.write_json(self.directory / "inputs.json", self.inputs)
        store.write_json(self.directory / "deployment.json", record)

    @contextmanager
    def lock(self, end=False):
        """Keep other commands from changing it meanwhile; with `end`, end the one that does. Raises InputError."""
        with lock.only_one(self.directory, end) as held:
            self._held = (held,)
            try:
                yield
            finally:
                self._held = ()

    def play(self, playbook, variables=None, verbose=0, quiet=False, check=False):
        """Run a playbook on the deployment; returns its report (see the callback `progress`) with its exit status.

        `variables`: a mapping, or a file of them.
        """
        inventory = str(self.source)
        if playbook == "down" and _is_template(self):
            # What is there is removed, whatever became of the template.
            inventory = "localhost,"
            variables = {"dodas_deployment": self.name, "dodas_state_dir": str(self.directory),
                         "dodas_backend": self.backend, "dodas_engine": self.engine,
                         "dodas_uuid": self.uuid, "ansible_connection": "local",
                         "ansible_python_interpreter": sys.executable,
                         **self.settings}  # fmt: skip
        command = [_ansible(), "-i", inventory, str(ROOT / "playbooks" / f"{playbook}.yml")]
        if variables:
            command += ["-e", f"@{variables.resolve()}" if isinstance(variables, Path) else json.dumps(variables)]
        command += ["--check", "--diff"] if check else []
        command += [f"-{'v' * verbose}"] if verbose else []
        environment = {**os.environ, **self._environment(), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        if not verbose:
            environment["ANSIBLE_STDOUT_CALLBACK"] = "dodas.cluster.progress"
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.json"
            environment["DODAS_REPORT"] = str(report)
            environment["DODAS_INPUTS"] = str(Path(scratch) / "inputs.json")
            store.write_json(environment["DODAS_INPUTS"], self.inputs)
            streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if quiet else {}
            try:
                done = subprocess.run(command, cwd=ROOT, env=environment, pass_fds=self._held, check=False, **streams)
            except KeyboardInterrupt:
                raise DodasError("interrupted: ./dodas up finishes what was begun, ./dodas down removes it") from None
            if quiet and not report.exists():
                sys.stderr.write(done.stderr.decode(errors="replace"))
            return {"errors": [], "probes": {}, "phases": [], **store.read_json(report, {}), "status": done.returncode}

    def place(self, host):
        """How apps run on a host (see places)."""
        if _is_template(self):
            if self.engine == "udocker":
                return places.Udocker(str(self.directory / "hosts" / host))
            return places.Marathon() if self.engine == "marathon" else places.Podman()
        variables = self._variables(host)
        if variables.get("dodas_engine") == "udocker":
            return places.Udocker(variables.get("dodas_root") or f"~/.local/share/dodas/hosts/{self.name}/{host}")
        return places.Marathon() if variables.get("dodas_engine") == "marathon" else places.Podman()

    def ssh(self, host, *command, fresh=False):
        """The argument list that runs a shell command on a host, or a shell. Raises InputError for a host that it has
        not. fresh: not by a connection that is open still."""
        addresses = self.addresses()
        if not addresses.get(host):
            there = ", ".join(name for name, address in addresses.items() if address)
            raise InputError(f"deployment {self.name} has no host {host!r}: {there or 'it has none yet'}")
        place = self.place(host)
        text = place.shell(" ".join(command))
        if self.is_plain:
            return ["/bin/sh", "-c", f"exec {text}"]
        keys = self.directory / "ssh"
        options = ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"]
        if fresh:
            options += ["-o", "ControlPath=none"]
        elif self.sockets:
            self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
            options += ["-o", "ControlMaster=auto", "-o", "ControlPersist=30", "-o", f"ControlPath={self.sockets}/%C"]
        if _is_template(self):
            options += ["-i", str(keys / "id_ed25519"), *sshkeys.options(self.directory, host, self.hosts)]
        else:
            variables = self._variables(host)
            options += shlex.split(variables.get("ansible_ssh_common_args", ""))
            if "ansible_ssh_private_key_file" in variables:
                options += ["-i", variables["ansible_ssh_private_key_file"]]
            options += ["-p", str(variables.get("ansible_port", 22))]
        address = sshkeys.outer_address(self.hosts[host]) if _is_template(self) else addresses[host]
        terminal = ["-t"] if text and not command else []
        return ["ssh", *options, *terminal, f"{self._user(host)}@{address}", *([text] if text else [])]

    def ssh_as_root(self, host, *command, fresh=False):
        """As `ssh`; a user other than root needs sudo without a password, but where apps need no root."""
        return self.ssh(host, self.place(host).as_root(" ".join(command), self._user(host)), fresh=fresh)

    def entry(self, host, ports):
        """The address at which this machine reaches the services on these ports of a host; None for a host without."""
        address = self.addresses().get(host)
        if address and self.is_remote:
            return tunnels.to(self, host, ports)
        return address

    @property
    def settings(self):
        """Those of the cloud that its hosts come from."""
        return tosca_inputs.settings(self.inputs)

    @property
    def is_remote(self):
        """Whether its hosts are in a cloud, where of all ports only SSH's can be counted on to be open."""
        return self.backend == "openstack"

    @property
    def is_plain(self):
        """Whether its hosts are folders of this machine."""
        return _is_template(self) and self.engine == "udocker"

    def _user(self, host):
        return "root" if _is_template(self) else self._variables(host).get("ansible_user", "root")

    def _variables(self, host):
        """What a plain inventory says of a host."""
        return self._inventory()["_meta"]["hostvars"].get(host, {})

    def run(self, host, *command, data=None, timeout=60, check=True):
        """Run a command on a host as root, return what it printed (bytes when `data` is bytes). Raises DodasError."""
        text = not isinstance(data, bytes)
        try:
            arguments = self.ssh_as_root(host, *command)
            done = subprocess.run(arguments, input=data, capture_output=True, text=text, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise DodasError(f"{host}: {command[0]}: no answer in {timeout} s") from None
        if check and done.returncode != 0:
            error = done.stderr if text else done.stderr.decode(errors="replace")
            raise DodasError(f"{host}: {error.strip() or f'{command[0]} failed with status {done.returncode}'}")
        return done.stdout

    def execute(self, host, app, *words, user="", folder="", data=None, timeout=60):
        """Run words in an app's container, return what they printed (bytes when `data` is bytes). Raises DodasError."""
        options = {"user": user, "folder": folder, "stdin": data is not None}
        return self.run(host, self.place(host).execute(app, *words, **options), data=data, timeout=timeout)

    def host_of(self, group):
        """The first host of a group. Raises DodasError."""
        hosts = self.groups().get(group)
        if not hosts:
            raise DodasError(f"deployment {self.name} has no {group}")
        return hosts[0]

    def groups(self):
        """Hosts by group."""
        if _is_template(self):
            return self._template().groups
        return {group: one.get("hosts", []) for group, one in self._inventory().items() if group != "_meta"}

    def addresses(self):
        """The address of each host, or None where it has none yet."""
        if _is_template(self):
            template = self._template()
            return {host.name: self.hosts.get(host.name, {}).get("address") for host in template.hosts}
        variables = self._inventory()["_meta"]["hostvars"]
        return {name: one.get("ansible_host") for name, one in variables.items()}

    def variable(self, name, *groups):
        """What the template or inventory gives a variable of a role, seen from the first group that has hosts."""
        if _is_template(self):
            values = self._template().group_vars
            return next((values[group][name] for group in groups if name in values.get(group, {})), None)
        hosts = [host for group in groups for host in self.groups().get(group, [])]
        return self._inventory()["_meta"]["hostvars"].get(hosts[0], {}).get(name) if hosts else None

    def command(self, words):
        """How the user types a command about this deployment."""
        # Without a name, `up` is about the deployment that is named after the template.
        named = words.startswith("up") or names() != [self.name]
        return f"./dodas {words}" + (f" --name {self.name}" if named else "")

    def _template(self):
        return _parsed(str(self.source), json.dumps(self.inputs, sort_keys=True))

    def _inventory(self):
        """A plain inventory, as `ansible-inventory --list` tells it; asked once."""
        if self._listed:
            return self._listed
        command = [_ansible("ansible-inventory"), "-i", str(self.source), "--list"]
        environment = {**os.environ, **self._environment(), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors = re.findall(r"^\[ERROR\]: (.*)", done.stderr, re.M)
            reason = (errors or ["unknown error"])[0]
            raise InputError(f"{self.source} is neither a TOSCA template nor an inventory: {reason}")
        self._listed = json.loads(done.stdout)
        return self._listed

    def _environment(self):
        return {
            "DODAS_DEPLOYMENT": self.name,
            "DODAS_BACKEND": self.backend,
            "DODAS_ENGINE": self.engine,
            "DODAS_HOME": str(store.home()),
            **({"ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.sockets)} if self.sockets else {}),
            "DODAS_INPUTS": str(self.directory / "inputs.json"),
        }


@functools.lru_cache(maxsize=8)
def _parsed(source, inputs):
    """A template that was loaded; a look at many hosts needs it for each."""
    return tosca.load(source, json.loads(inputs))


def _is_template(deployment):
    return deployment.backend != "existing"


def names():
    """Names of the recorded deployments."""
    folder = store.home() / "deployments"
    return sorted(path.parent.name for path in folder.glob("*/deployment.json")) if folder.is_dir() else []


def only(name):
    """The deployment named, or the only one when no name is given. Raises InputError."""
    if name:
        return Deployment.load(name)
    found = names()
    if len(found) == 1:
        return Deployment.load(found[0])
    if not found:
        raise InputError("there is no deployment; ./dodas up makes one")
    raise InputError(f"there are several deployments, name one with --name: {', '.join(found)}")


def _directory(name):
    try:
        return store.deployment_dir(name)
    except ValueError as exc:
        raise InputError(str(exc)) from exc


def _ansible(program="ansible-playbook"):
    return str(Path(sys.executable).with_name(program))

# SPDX-License-Identifier: Apache-2.0
"""Hosts of a deployment as containers that run systemd and sshd, on a network of the deployment.

Desired state against found state first; then create, start and remove in parallel. Everything carries the label
`dodas.deployment=NAME`, and nothing without it is touched.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment, host
from ansible_collections.dodas.cluster.plugins.module_utils.local import machine, orphans
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.sshkeys import SshKeys

LABEL = "dodas.deployment"
IMAGES_MOUNT = "/var/lib/dodas-images"  # where hosts see the image store
FIRST_ADDRESS = 10  # of the network's; those below are the gateway's and spare
# Folders of a host that must not be on an overlay, since its containers, and those of jobs, have overlays on them.
VOLUMES = {"store": "/var/lib/containers", "state": "/var/lib/dodas"}
NEEDED_DISK_MB = 1000
# Not there, or left by a podman that was killed: such a container can never be started.
HALF_MADE = (None, "created", "initialized", "removing", "stopping", "dead", "unknown")


class LocalCluster:
    """The hosts of deployment `name`; `state_dir` holds its keys and addresses."""

    def __init__(self, name, state_dir, podman):
        if not deployment.valid_name(name):
            raise PodmanError(f"deployment name {name!r} must match {deployment.NAME}")
        self.name = name
        self.state_dir = Path(state_dir)
        self.podman = podman
        self.network = f"dodas-{name}"

    def found(self):
        """Hosts there are: {host: {"state": "running", "address": "10.89.0.10"}}."""
        if not (self.podman.home / "storage").is_dir():
            return {}
        listed = self.podman.json("ps", "--all", "--filter", f"label={LABEL}={self.name}", "--format", "json")
        names = [container["Names"][0] for container in listed]
        details = self.podman.json("inspect", "--type", "container", *names) if names else []
        return {
            one["Config"]["Labels"]["dodas.host"]: {
                "state": one["State"]["Status"],
                "address": one["Config"]["Labels"]["dodas.address"],
            }
            for one in details
        }

    def plan(self, desired):
        """What `apply` would do: lists of host names under create, start and remove. Raises PodmanError."""
        found = self.found()
        wanted = [one["name"] for one in desired]
        for name in wanted:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name) or wanted.count(name) > 1:
                raise PodmanError(f"host name {name!r} is not lower-case letters, digits and dashes, or there twice")
        states = {name: found.get(name, {}).get("state") for name in wanted}
        create = [name for name, state in states.items() if state in HALF_MADE]
        if create:
            self._preflight()
        return {
            "create": create,
            "start": [name for name, state in states.items() if state not in (*HALF_MADE, "running")],
            "remove": [name for name in found if name not in wanted],
        }

    def apply(self, desired, image, timeout=120):
        """Make the hosts be as `desired` [{name, cpus, mem_mb}] and wait for their sshd.

        Returns {host: {"address": ...}}. Raises PodmanError, naming the host; a later call finishes what is half-made.
        """
        deadline = time.monotonic() + timeout
        with self.podman.lock(f"deployment-{self.name}"):
            plan = self.plan(desired)
            if plan["create"]:
                self._make_network()
            self._remove(plan["remove"] + plan["create"])
            if plan["create"]:
                orphans.remove(self.podman, self._network(), [one["address"] for one in self.found().values()])
            addresses, spare = self._addresses(desired)
            hosts = {one["name"]: {"address": addresses[one["name"]]} for one in desired}
            self._write_keys(hosts)
            with ThreadPoolExecutor(4) as pool:
                made = {
                    one["name"]: pool.submit(self._create, one, addresses[one["name"]], spare, image)
                    for one in desired
                    if one["name"] in plan["create"]
                }
                started = [pool.submit(self.podman.run, "start", self._container(name)) for name in plan["start"]]
                for job in started:
                    job.result()
                for name, job in made.items():
                    hosts[name]["address"] = job.result()
                self._write_keys(hosts)  # with the addresses that they really have
                answers = list(pool.map(lambda item: _wait_for_ssh(*item, deadline), _addresses_of(hosts)))
            silent = [one for one in answers if one]
            if silent:
                raise PodmanError("; ".join(silent))
            deployment.write_json(self.state_dir / "hosts.json", hosts)
        return hosts

    def remove(self):
        """Remove everything of the deployment; returns names of what was removed. Raises PodmanError for survivors."""
        with self.podman.lock(f"deployment-{self.name}"):
            removed = self._remove(list(self.found()))
            # A kill in the middle of a creation can leave a layer that belongs to no container, and volumes.
            for one in self.podman.json("ps", "--all", "--external", "--format", "json"):
                owner = (one.get("Labels") or {}).get(LABEL)
                if (one.get("Names") or [""])[0].startswith(f"{self.network}-") and owner in (None, self.name):
                    self.podman.run("rm", "--force", "--storage", one["Id"])
            listed = self.podman.run("volume", "ls", "--quiet", "--filter", f"label={LABEL}={self.name}").split()
            if listed:
                self.podman.run("volume", "rm", "--force", *listed)
            if self._network():
                orphans.remove(self.podman, self._network(), keep=[])
                self.podman.run("network", "rm", "--force", self.network)
                removed.append(self.network)
            left = [*self.found(), *([self.network] if self._network() else [])]
            if left:
                raise PodmanError(f"could not be removed: {', '.join(left)}")
        with self.podman.lock("machine"):
            if not self.podman.run("network", "ls", "--quiet", "--filter", f"label={LABEL}").strip():
                machine.restore(self.podman.machine)
                self.podman.run("network", "prune", "--force")
                _remove_stores(self.podman)
        return removed

    def _container(self, name):
        return f"{self.network}-{name}"

    def _preflight(self):
        free = shutil.disk_usage(self.podman.home).free // 2**20
        if free < NEEDED_DISK_MB:
            raise PodmanError(f"{self.podman.home}: {free} MB free, hosts need {NEEDED_DISK_MB} MB")

    def _network(self):
        found = self.podman.run("network", "ls", "--quiet", "--filter", f"name=^{self.network}$").split()
        return self.podman.json("network", "inspect", self.network)[0] if found else None

    def _make_network(self):
        with self.podman.lock("machine"):
            if not self._network():
                machine.remember(self.podman.machine)
                self.podman.run("network", "create", "--label", f"{LABEL}={self.name}", self.network)

    def _addresses(self, desired):
        """An address for each host, and those left: hosts that exist keep theirs, new ones get the lowest."""
        taken = {name: one["address"] for name, one in self.found().items()}
        network = self._network()
        if network is None:
            return taken, []
        usable = ipaddress.ip_network(network["subnets"][0]["subnet"])
        free = [str(usable[i]) for i in range(usable.num_addresses - 2, FIRST_ADDRESS - 1, -1)]
        free = [address for address in free if address not in taken.values()]
        new = [one["name"] for one in desired if one["name"] not in taken]
        if len(new) > len(free):
            raise PodmanError(f"network {self.network} ({usable}) has no address left for {len(desired)} hosts")
        return {**taken, **{name: free.pop() for name in new}}, free

    def _write_keys(self, hosts):
        """The deployment's SSH key and each host's key, made here: the hosts are known before they exist."""
        keys = SshKeys(self.state_dir, self.name)
        keys.make(hosts)
        authorized = keys.folder / "authorized_keys"
        authorized.write_text(f"{keys.public_key}\n", encoding="utf-8")
        authorized.chmod(0o600)
        keys.know({name: one["address"] for name, one in hosts.items()})

    def _create(self, one, address, spare, image):
        """Make a host; returns its address: a spare one where podman believes that the one wanted is taken.

        It does so for ever when it was killed after it took the address, and before it noted the container.
        """
        self._make_volumes(one["name"])
        while True:
            try:
                self._run(one, address, image)
                return address
            except PodmanError as exc:
                if "is already allocated" not in str(exc) or not spare:
                    raise PodmanError(f"{one['name']}: {exc}") from exc
                self.podman.run("rm", "--force", "--ignore", "--time", "0", self._container(one["name"]))
                address = spare.pop()

    def _run(self, one, address, image):
        name, ssh = one["name"], self.state_dir / "ssh"
        wrapped = host.crun_wrapper(host.cgroups()["version"]) is not None
        options = [
            "--privileged", "--cgroupns=private", "--hostname", name,
            "--network", f"{self.network}:ip={address},mac={orphans.mac(address)}",
            "--label", f"{LABEL}={self.name}", "--label", f"dodas.host={name}", "--label", f"dodas.address={address}",
            "--stop-signal", "SIGRTMIN+3", "--env", "container=podman",
            # Hosts are privileged, and systemd and HTCondor would set kernel variables of the whole machine.
            "--volume", "/proc/sys:/proc/sys:ro",
            *(f"--volume={self._container(name)}-{volume}:{path}" for volume, path in VOLUMES.items()),
            "--volume", f"{self.podman.images}:{IMAGES_MOUNT}:ro",
            "--volume", f"{ssh / 'authorized_keys'}:/root/.ssh/authorized_keys:ro",
            "--volume", f"{ssh / 'hosts' / name}:/etc/ssh/keys:ro",
        ]  # fmt: skip
        if wrapped:
            options += ["--systemd=false", "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp"]
        else:
            options += ["--systemd=always", *([f"--cpus={one['cpus']}"] if one.get("cpus") else [])]
            options += [f"--memory={one['mem_mb']}m"] if one.get("mem_mb") else []
        # What is mounted later is to be seen by services that systemd gave a view of their own, as on a machine.
        command = ["sh", "-c", "mount --make-rshared / && exec /sbin/init"]
        self.podman.run("run", "--detach", "--pull=never", "--name", self._container(name), *options, image, *command)

    def _make_volumes(self, name):
        for volume in VOLUMES:
            label = f"{LABEL}={self.name}"
            self.podman.run("volume", "create", "--label", label, f"{self._container(name)}-{volume}")

    def _remove(self, names):
        """Remove hosts and their volumes, running or not, there or not."""
        containers = [self._container(name) for name in names]
        if containers:
            self.podman.run("rm", "--force", "--ignore", "--time", "0", *containers)
            volumes = self.podman.run("volume", "ls", "--quiet", "--filter", f"label={LABEL}={self.name}").split()
            gone = [volume for volume in volumes if volume.rpartition("-")[0] in containers]
            if gone:
                self.podman.run("volume", "rm", "--force", *gone)
            for name in names:
                SshKeys(self.state_dir, self.name).forget(name)
        return list(names)


def _addresses_of(hosts):
    return [(name, one["address"]) for name, one in hosts.items()]


def _wait_for_ssh(name, address, deadline):
    """Wait for sshd's greeting; returns an error that names the host when the deadline passes first."""
    error = "no attempt"
    while True:
        try:
            with socket.create_connection((address, 22), timeout=2) as connection:
                connection.settimeout(2)
                if connection.recv(4) == b"SSH-":
                    return None
                error = "no SSH greeting"
        except OSError as exc:
            error = str(exc)
        if time.monotonic() > deadline:
            return f"{name} ({address}): sshd did not answer: {error}"
        time.sleep(0.1)


def _remove_stores(podman):
    """Remove the containers' store itself: it is empty, and its mounts would outlive the last deployment."""
    for mount in sorted(_mounts_below(podman.home), reverse=True):
        subprocess.run(["umount", mount], check=False, timeout=30, capture_output=True)
    for name in ("storage", "networks"):
        shutil.rmtree(podman.home / name, ignore_errors=True)
    shutil.rmtree(podman.run_dir / "containers", ignore_errors=True)
    shutil.rmtree(podman.run_dir / "libpod", ignore_errors=True)
    if podman.run_dir != podman.machine:
        shutil.rmtree(podman.run_dir, ignore_errors=True)


def _mounts_below(folder):
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]

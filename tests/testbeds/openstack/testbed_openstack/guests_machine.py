# SPDX-License-Identifier: Apache-2.0
"""A guest: a container that runs systemd, with a disk, a network namespace and a cloud-init seed of its own.

It is run as the hosts of the local backend are, and stands for a virtual machine: its disk outlives a power cycle, its
interfaces have neutron's MAC and address before it starts, and it cannot change the machine's kernel variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from testbed_openstack import network, network_rules
from testbed_openstack.guests_library import Podman, PodmanError, host

# Folders that are not on the disk's overlay, since containers, and those of jobs, have overlays on them.
VOLUMES = ("/var/lib/containers", "/var/lib/dodas")
BRIDGE_TIMEOUT = 30  # seconds
STOP_TIMEOUT = 30  # seconds
DISKS = Path("/var/tmp")  # on a disk, wherever the state is


class Guests:
    """All guests of a testbed. Methods raise PodmanError or NetworkError; each can be called again after a failure."""

    def __init__(self, place):
        self.place = place
        self.disks = DISKS / f"ostb-{place.key}"
        # Sockets are below the runtime directory, and their paths may not be long.
        self.podman = Podman(place.state / "guests", Path(f"/run/ostb-{place.key}"), place.state / "guests/images")

    def prepare(self):
        """What all guests need."""
        self.disks.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.podman.configure()

    def create(self, uuid, hostname, root, seed, interfaces, cpus=None, mem_mb=None):
        """Make a guest with the root file system `root`, and start it.

        seed: NoCloud's files by name, in bytes. interfaces: as `plug` takes them, the first one leads outside.
        """
        self.destroy(uuid)
        folder = self._folder(uuid)
        for name in ("upper", "work", "root", "seed"):
            (folder / name).mkdir(parents=True, mode=0o755 if name != "seed" else 0o700)
        folder.chmod(0o711)
        facts = {"hostname": hostname, "root": str(root), "cpus": cpus, "mem_mb": mem_mb, "interfaces": []}
        self._write(uuid, facts)
        for path in VOLUMES:
            volume = folder / Path(path).name
            if (Path(root) / path.lstrip("/")).is_dir():
                _run("cp", "--archive", "--reflink=auto", f"{root}{path}", str(volume))
            else:
                volume.mkdir(mode=0o755)
        for name, content in seed.items():
            path = folder / "seed" / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        nameservers = [address for one in interfaces for address in one["nameservers"]]
        resolver = "".join(f"nameserver {one}\n" for one in nameservers or [network.NAMESERVER])
        (folder / "upper/etc").mkdir(mode=0o755)
        (folder / "upper/etc/resolv.conf").write_text(resolver, encoding="ascii")
        network.add_namespace(self.namespace(uuid))
        for one in interfaces:
            self.plug(uuid, one)
        self.start(uuid)

    def start(self, uuid):
        """Switch a guest on, unless it is."""
        if self.state(uuid) == "running":
            return
        facts, folder, name = self._read(uuid), self._folder(uuid), self._name(uuid)
        root = folder / "root"
        if not root.is_mount():
            layers = f"lowerdir={facts['root']},upperdir={folder / 'upper'},workdir={folder / 'work'}"
            _run("mount", "-t", "overlay", name, "-o", layers, str(root))
        if not (network.NAMESPACES / self.namespace(uuid)).exists():  # the machine itself was restarted
            network.add_namespace(self.namespace(uuid))
            for one in facts["interfaces"]:
                self._connect(uuid, one)
        self.podman.run("rm", "--force", "--ignore", "--time", "0", name)
        options = [
            "--privileged", "--cgroupns=private", "--hostname", facts["hostname"],
            "--network", f"ns:{network.NAMESPACES / self.namespace(uuid)}", "--dns=none", "--no-hosts",
            "--stop-signal", "SIGRTMIN+3", "--env", "container=podman", "--env", f"container_uuid={uuid}",
            # Guests are privileged, and would set kernel variables of the whole machine.
            "--volume", "/proc/sys:/proc/sys:ro",
            "--volume", f"{folder / 'seed'}:/var/lib/cloud/seed/nocloud:ro",
            *(f"--volume={folder / Path(path).name}:{path}" for path in VOLUMES),
        ]  # fmt: skip
        if host.crun_wrapper(host.cgroups()["version"]):
            options += ["--systemd=false", "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp"]
        else:
            options += ["--systemd=always", *([f"--cpus={facts['cpus']}"] if facts["cpus"] else [])]
            options += [f"--memory={facts['mem_mb']}m"] if facts["mem_mb"] else []
        # What is mounted later is to be seen by services that systemd gave a view of their own, as on a machine.
        command = ["sh", "-c", "mount --make-rshared / && exec /sbin/init"]
        self.podman.run("run", "--detach", "--name", name, *options, "--rootfs", root, *command)

    def stop(self, uuid, timeout=STOP_TIMEOUT):
        """Switch a guest off: in order, or as it is when that takes longer than `timeout` seconds."""
        self.podman.run("stop", "--ignore", "--time", timeout, self._name(uuid), timeout=timeout + 60)

    def reboot(self, uuid, hard=False):
        """Switch a guest off and on; a hard one has no time to shut down."""
        self.stop(uuid, 0 if hard else STOP_TIMEOUT)
        self.start(uuid)

    def pause(self, uuid, paused):
        """Stop a guest's processes where they are, or let them go on."""
        self.podman.run("pause" if paused else "unpause", self._name(uuid))

    def destroy(self, uuid):
        """Remove a guest and its disk, there or not."""
        if self._has_podman():
            self.podman.run("rm", "--force", "--ignore", "--time", "0", self._name(uuid))
        for pid in network.processes(self.namespace(uuid)):  # of a guest that podman no longer knows
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        network.remove_namespace(self.namespace(uuid))
        folder = self._folder(uuid)
        if (folder / "root").is_mount():
            _run("umount", "--lazy", str(folder / "root"))
        if folder.exists():
            shutil.rmtree(folder)

    def plug(self, uuid, interface):
        """Add an interface: {"port", "network", "mac", "mtu", "addresses" (10.0.0.5/24), "gateway", "nameservers"}.

        The gateway of the first one is the guest's.
        """
        facts = self._read(uuid)
        taken = [one["name"] for one in facts["interfaces"]]
        free = next(f"eth{number}" for number in range(len(taken) + 1) if f"eth{number}" not in taken)
        one = {**interface, "name": free, "gateway": interface["gateway"] if not taken else None}
        self._connect(uuid, one)
        self._write(uuid, {**facts, "interfaces": [*facts["interfaces"], one]})

    def unplug(self, uuid, port):
        """Remove the interface of a port."""
        facts = self._read(uuid)
        for one in facts["interfaces"]:
            if one["port"] == port:
                network.ip(self.namespace(uuid), [f"link del {one['name']}"])
        rest = [one for one in facts["interfaces"] if one["port"] != port]
        self._write(uuid, {**facts, "interfaces": rest})

    def state(self, uuid):
        """podman's word for a guest's state ("running", "exited", "paused"), or None."""
        return self.states().get(uuid)

    def states(self):
        """The states of all guests that were started, by uuid."""
        listed = self.podman.json("ps", "--all", "--format", "json") if self._has_podman() else []
        by_name = {one["Names"][0]: one["State"] for one in listed}
        return {uuid: by_name[self._name(uuid)] for uuid in self.known() if self._name(uuid) in by_name}

    def known(self):
        """The guests that have a disk."""
        return sorted(path.parent.name for path in self.disks.glob("*/guest.json"))

    def console(self, uuid, lines=200):
        """What the guest's journal says since it was started."""
        journal = ["journalctl", "--boot", "--output=short", f"--lines={lines}", "--no-pager"]
        return self.podman.run("exec", self._name(uuid), *journal)

    def namespace(self, uuid):
        return f"{network.namespace(self.place)}-g{uuid[:8]}"

    def _connect(self, uuid, one):
        inner, outer = self.namespace(uuid), network.namespace(self.place)
        bridge = network_rules.bridge(one["network"])
        deadline = time.monotonic() + BRIDGE_TIMEOUT
        while not network.has_link(outer, bridge):
            if time.monotonic() > deadline:
                raise PodmanError(f"guest {uuid}: no bridge {bridge} in {outer} after {BRIDGE_TIMEOUT} s")
            time.sleep(0.1)
        link = network_rules.guest_interface(one["port"])
        network.ip(outer, network.cable(link, bridge, inner, one["name"], one["mac"], one["mtu"]))
        network.ip(inner, [
            *(f"address add {address} dev {one['name']}" for address in one["addresses"]),
            f"link set {one['name']} up",
            *([f"route add default via {one['gateway']}"] if one["gateway"] else []),
        ])  # fmt: skip

    def _has_podman(self):
        return (self.podman.home / "containers.conf").exists()

    def _folder(self, uuid):
        return self.disks / uuid

    @staticmethod
    def _name(uuid):
        return f"guest-{uuid}"

    def _read(self, uuid):
        return json.loads((self._folder(uuid) / "guest.json").read_text(encoding="utf-8"))

    def _write(self, uuid, facts):
        path = self._folder(uuid) / "guest.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        partial.replace(path)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise PodmanError(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")

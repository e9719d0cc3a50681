# SPDX-License-Identifier: Apache-2.0
"""Hosts of a deployment without root: folders of this machine, each with an address of its own on the loopback.

All of 127.0.0.0/8 is this machine on Linux, so each deployment takes a network 127.x.y.0/24 of it by its name, and
needs nobody to configure anything. What a host is made of is the engine's business (engine.plainhost).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.engine.plainhost import PlainHost

FIRST_ADDRESS = 10  # of the network's
LAST_ADDRESS = 254
NEEDED_DISK_MB = 500
LISTENING = "0A"  # in /proc/net/tcp


class PlainCluster:
    """The hosts of deployment `name`, in folders below `state_dir`."""

    def __init__(self, name, state_dir):
        if not deployment.valid_name(name):
            raise EngineError(f"deployment name {name!r} must match {deployment.NAME}")
        self.name = name
        self.state_dir = Path(state_dir)
        self.folder = self.state_dir / "hosts"

    def found(self):
        """Hosts there are: {host: {"state": "running", "address": "127.9.8.10"}}."""
        recorded = deployment.read_json(self.state_dir / "hosts.json", {})
        there = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        return {name: {"state": "running", "address": recorded.get(name, {}).get("address", "")} for name in there}

    def plan(self, desired):
        """What `apply` would do: lists of host names under create, start and remove. Raises EngineError."""
        found = self.found()
        wanted = [one["name"] for one in desired]
        for name in wanted:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name) or wanted.count(name) > 1:
                raise EngineError(f"host name {name!r} is not lower-case letters, digits and dashes, or there twice")
            PlainHost(self.folder / name)  # refuses what cannot be its path
        create = [name for name in wanted if not found.get(name, {}).get("address")]
        if create:
            self._preflight()
        return {"create": create, "start": [], "remove": [name for name in found if name not in wanted]}

    def apply(self, desired):
        """Make the hosts be as `desired` [{name, ...}]; returns {host: {"address", "python"}}."""
        with _lock():
            plan = self.plan(desired)
            self._remove(plan["remove"])
            taken = {name: one["address"] for name, one in self.found().items() if one["address"]}
            network = next(iter(taken.values())).rpartition(".")[0] if taken else self._free_network()
            free = [f"{network}.{i}" for i in range(LAST_ADDRESS, FIRST_ADDRESS - 1, -1)]
            free = [address for address in free if address not in taken.values()]
            if len(plan["create"]) > len(free):
                raise EngineError(f"network {network}.0/24 has no address left for {len(desired)} hosts")
            # Modules run with the system's Python: that of the controller's environment may go.
            python = str(Path(getattr(sys, "_base_executable", "") or sys.executable).resolve())
            hosts = {
                one["name"]: {
                    "address": taken.get(one["name"]) or free.pop(),
                    "python": python,
                }
                for one in desired
            }
            deployment.write_json(self.state_dir / "hosts.json", hosts)
            for name in hosts:
                PlainHost(self.folder / name).make_folders()
        return hosts

    def remove(self):
        """Remove everything of the deployment's hosts; returns the names of what was removed."""
        removed = self._remove(list(self.found()))
        if self.folder.is_dir():
            self.folder.rmdir()
        return removed

    def _remove(self, names):
        with ThreadPoolExecutor(8) as pool:  # an app may take a while to end
            list(pool.map(lambda name: PlainHost(self.folder / name).remove(), names))
        return names

    def _preflight(self):
        place = next(path for path in (self.state_dir, *self.state_dir.parents) if path.exists())
        free = shutil.disk_usage(place).free // 2**20
        if free < NEEDED_DISK_MB:
            raise EngineError(f"{place}: {free} MB free, hosts need {NEEDED_DISK_MB} MB")

    def _free_network(self):
        """The first three numbers of a network that no deployment of this user has and nobody listens in."""
        taken = _listening()
        for path in self.state_dir.parent.glob("*/hosts.json"):
            taken |= {one["address"].rpartition(".")[0] for one in deployment.read_json(path).values()}
        for i in range(1000):
            digest = hashlib.sha256(f"{self.state_dir} {os.geteuid()} {i}".encode()).digest()
            network = f"127.{1 + digest[0] % 254}.{digest[1]}"  # 127.0 is where everybody's own servers are
            if network not in taken:
                return network
        raise EngineError("no network of 127.0.0.0/8 is free on this machine")


def _listening(files=("/proc/net/tcp",)):
    """The first three numbers of the loopback addresses that somebody listens on."""
    found = set()
    for path in files:
        for line in Path(path).read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING:
                address = socket.inet_ntoa(struct.pack("=I", int(words[1].partition(":")[0], 16)))
                found.add(address.rpartition(".")[0])
    return found


@contextmanager
def _lock():
    """One change of hosts at a time, of all deployments of a user."""
    place = deployment.home()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    holder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(holder)

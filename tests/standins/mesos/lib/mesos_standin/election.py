# SPDX-License-Identifier: Apache-2.0
"""Who leads: the masters' nodes in ZooKeeper, json.info_NNNNNNNNNN, of which the lowest is the leader's."""

from __future__ import annotations

import json
import re
import threading
import time

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.security import CREATOR_ALL_ACL, OPEN_ACL_UNSAFE, READ_ACL_UNSAFE

PREFIX = "json.info_"


def parse(url):
    """(hosts, path, (scheme, credential) or None) of zk://[user:password@]host:port,.../path; raises ValueError."""
    found = re.fullmatch(r"zk://(?:([^@/]+)@)?([^/@]+)(/.+)", url)
    if not found:
        raise ValueError(f"'{url}' is not zk://host:port,.../path")
    auth = ("digest", found.group(1)) if found.group(1) else None
    return found.group(2), found.group(3).rstrip("/"), auth


class Group:
    """A client of ZooKeeper that knows the leader's MasterInfo (`leader`, None while there is none).

    It believes no more than ZooKeeper does: when that has not been reached for as long as a session lasts, the
    session counts as lost. `info`: MasterInfo to stand for election with; `changed` is called after every change.
    """

    def __init__(self, url, timeout, changed, info=None, replica=None):
        hosts, self.path, auth = parse(url)
        self.timeout, self.changed, self.info, self.replica = timeout, changed, info, replica
        self.acl = [CREATOR_ALL_ACL[0], READ_ACL_UNSAFE[0]] if auth else OPEN_ACL_UNSAFE
        self.leader, self.node, self.replicas = None, None, []
        self.lost = 0  # how often a session was lost
        self.since = None  # since when ZooKeeper is not reached (monotonic)
        self.woken = threading.Event()
        self.ended = False
        self.client = KazooClient(
            hosts, timeout=timeout, auth_data=[auth] if auth else None,
            connection_retry={"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 1},
        )  # fmt: skip
        self.client.add_listener(self._state)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.client.start_async()
        self.thread.start()

    def stop(self):
        """Leave: what stood in ZooKeeper is gone when this returns, or with the session."""
        self.ended = True
        self.woken.set()
        leaving = threading.Thread(target=self.client.stop, daemon=True)
        leaving.start()
        leaving.join(3)  # the client waits 10 s for a connection that does not close

    @property
    def leads(self):
        """Whether the leader is the one of `info`."""
        return bool(self.leader and self.info and self.leader["id"] == self.info["id"])

    def _state(self, state):
        if state == KazooState.CONNECTED:
            self.since = None
        elif self.since is None:
            self.since = time.monotonic()
        if state == KazooState.LOST:
            self.lost += 1
            self.node = None
        self.woken.set()

    def _wake(self, _event):
        """Something has changed that was looked at."""
        self.woken.set()

    def _run(self):
        seen = self.lost
        while not self.ended:
            out = self.since is not None and time.monotonic() - self.since > self.timeout
            if out or seen != self.lost:
                seen = self.lost
                self.node = None
                self._set(None, [])
            if self.client.connected:
                try:
                    self._look()
                except (KazooException, OSError, ValueError):
                    self.woken.wait(0.1)
            self.woken.wait(1)
            self.woken.clear()

    def _look(self):
        if self.info and not self.node:
            self._stand()
        try:
            names = sorted(name for name in self.client.get_children(self.path, self._wake) if name.startswith(PREFIX))
            leader = json.loads(self.client.get(f"{self.path}/{names[0]}")[0]) if names else None
        except NoNodeError:
            leader = None
        self._set(leader, self._others() if self.replica else [])

    def _stand(self):
        folder = f"{self.path}/log_replicas"
        self.client.ensure_path(folder, acl=self.acl)
        self.client.create(f"{folder}/", self.replica.encode(), self.acl, ephemeral=True, sequence=True)
        content = json.dumps(self.info).encode()
        self.node = self.client.create(f"{self.path}/{PREFIX}", content, self.acl, ephemeral=True, sequence=True)

    def _others(self):
        folder = f"{self.path}/log_replicas"
        found = []
        for name in sorted(self.client.get_children(folder)):
            try:
                found.append(self.client.get(f"{folder}/{name}")[0].decode().rpartition("@")[2])
            except NoNodeError:
                continue
        return list(dict.fromkeys(found))

    def _set(self, leader, replicas):
        if (leader, replicas) != (self.leader, self.replicas):
            self.leader, self.replicas = leader, replicas
            self.changed()


class Fixed:
    """Stands for a Group where there is no ZooKeeper: one master, named by its address, or itself."""

    replicas = ()
    lost = 0

    def __init__(self, info, leads=False):
        self.leader, self.leads = info, leads

    def start(self):
        """Nothing has to be found out."""

    def stop(self):
        """Nothing has to be left."""


def detector(master, timeout, changed):
    """A Group that only looks (zk://...), or a Fixed one (HOST:PORT)."""
    if master.startswith("zk://"):
        return Group(master, timeout, changed)
    host, _, port = master.rpartition(":")
    if not host:
        host, port = master, "5050"
    return Fixed({"id": "", "hostname": host, "address": {"hostname": host, "ip": host, "port": int(port)}})


def url(info):
    """Where the master of a MasterInfo listens."""
    return f"http://{info['address']['ip']}:{info['address']['port']}"

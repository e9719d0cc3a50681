# SPDX-License-Identifier: Apache-2.0
"""What Marathon keeps in ZooKeeper: its leader, its apps in all their versions, deployments, tasks.

    leader/member_NNNNNNNNNN     an ephemeral node of each instance, its HOST:PORT; the lowest leads
    state/framework              the framework's id
    state/root, state/roots/V    which version each app has, now and in former versions
    state/apps/ID/VERSION        definitions
    state/deployments/ID         those under way
    state/instances/ID           tasks
"""

from __future__ import annotations

import json
import re
import zlib
from urllib.parse import quote

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

COMPRESS_FROM = 65536  # bytes; a node may have about a million


def parse_url(url):
    """The hosts and the path of a URL zk://[user:password@]HOST:PORT,HOST:PORT/PATH. Raises ValueError."""
    found = re.fullmatch(r"zk://(?:[^@/]+@)?([^/]+)(/.+)?", url)
    if not found:
        raise ValueError(f"{url} is no URL of ZooKeeper: zk://HOST:PORT,HOST:PORT/PATH")
    return found[1], (found[2] or "").rstrip("/")


def connect(url, session_timeout, patience):
    """A client whose root is the URL's path, which is made; times are in seconds.

    Raises kazoo's timeout when nobody answers.
    """
    hosts, path = parse_url(url)
    client = KazooClient(hosts=hosts, timeout=session_timeout, connection_retry={"max_tries": -1, "max_delay": 1})
    client.start(timeout=patience)
    if path:
        client.ensure_path(path)
        client.chroot = path
    return client


class Store:
    """Values by path. Each call raises a KazooException when ZooKeeper cannot do it."""

    def __init__(self, client):
        self.client = client

    def get(self, path):
        """The value at a path; None without one."""
        try:
            data = self.client.get(f"/state/{path}")[0]
        except NoNodeError:
            return None
        return json.loads(zlib.decompress(data) if data[:1] == b"x" else data)

    def put(self, path, value):
        """Write a value."""
        data = json.dumps(value, separators=(",", ":")).encode()
        data = zlib.compress(data) if len(data) >= COMPRESS_FROM else data
        try:
            self.client.set(f"/state/{path}", data)
        except NoNodeError:
            self.client.create(f"/state/{path}", data, makepath=True)

    def delete(self, path):
        """Remove a value and what is below it."""
        try:
            self.client.delete(f"/state/{path}", recursive=True)
        except NoNodeError:
            return

    def names(self, path):
        """What there is below a path."""
        try:
            return sorted(self.client.get_children(f"/state/{path}"))
        except NoNodeError:
            return []

    def values(self, path):
        """All values below a path, by name."""
        found = {name: self.get(f"{path}/{name}") for name in self.names(path)}
        return {name: value for name, value in found.items() if value is not None}


class Versions:
    """The versions of apps."""

    def __init__(self, store, keep):
        self.store = store
        self.keep = keep  # of each app, at most

    def list(self, app_id):
        """The versions of an app, the newest first."""
        return self.store.names(f"apps/{quote(app_id, safe='')}")[::-1]

    def get(self, app_id, version):
        """An app in a version; None without it."""
        return self.store.get(f"apps/{quote(app_id, safe='')}/{version}")

    def put(self, app):
        """Keep an app as it is in its version."""
        home = f"apps/{quote(app['id'], safe='')}"
        self.store.put(f"{home}/{app['version']}", app)
        for version in self.store.names(home)[: -self.keep]:
            self.store.delete(f"{home}/{version}")

    def forget(self, app_id):
        """Remove all versions of an app."""
        self.store.delete(f"apps/{quote(app_id, safe='')}")


class Election:
    """Who leads, of all that share a path in ZooKeeper."""

    FOLDER = "/leader"

    def __init__(self, client, address):
        self.client = client
        self.address = address  # ours, HOST:PORT
        self.node = None
        self.client.ensure_path(self.FOLDER)

    def look(self):
        """HOST:PORT of the leader, or None, and whether it is us. Joins the election if we are not in it."""
        members = self._members()
        if self.node not in members:
            self.node = self.client.create(
                f"{self.FOLDER}/member_", self.address.encode(), ephemeral=True, sequence=True
            ).rpartition("/")[2]
            members = self._members()
        for name in members:
            try:
                return self.client.get(f"{self.FOLDER}/{name}")[0].decode(), name == self.node
            except NoNodeError:
                continue  # it has just left
        return None, False

    def leave(self):
        """Give up our place."""
        if self.node:
            self.client.delete(f"{self.FOLDER}/{self.node}")

    def _members(self):
        return sorted(name for name in self.client.get_children(self.FOLDER) if name.startswith("member_"))

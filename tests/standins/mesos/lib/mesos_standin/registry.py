# SPDX-License-Identifier: Apache-2.0
"""The masters' registry: which agents were admitted, which machines are under maintenance.

One document with a version. Each master keeps a replica of it; the leader reads it from a majority and writes it to a
majority, so it survives as many losses as the quorum says, and the leader can do neither without one.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import web

EMPTY = {"agents": {}, "unreachable": {}, "gone": {}, "schedule": {"windows": []}, "machines": [], "drained": {}}


class Replica:
    """This master's copy, in a folder. status: EMPTY until it may vote, then VOTING."""

    def __init__(self, folder):
        self.path = Path(folder, "replica.json")
        self.lock = threading.Lock()
        self.content = {"status": "EMPTY", "version": 0, "document": EMPTY}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def votes(self):
        return self.content["status"] == "VOTING"

    def read(self):
        with self.lock:
            return self.content

    def write(self, version, document):
        """Take a version; whether this replica votes and has it now."""
        with self.lock:
            if not self.votes or version < self.content["version"]:
                return False
            if version > self.content["version"]:
                self._keep({"status": "VOTING", "version": version, "document": document})
            return True

    def vote(self, version=0, document=None):
        """From now on this replica votes, and begins with what others have."""
        with self.lock:
            self._keep({"status": "VOTING", "version": version, "document": document or EMPTY})

    def _keep(self, content):
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.path)
        self.content = content


class Log:
    """The replicas of all masters. `peers()` are the other ones' addresses, HOST:PORT."""

    def __init__(self, replica, quorum, peers):
        self.replica, self.quorum, self.peers = replica, quorum, peers
        self.pool = ThreadPoolExecutor(8)

    def join(self):
        """Let an empty replica vote when that is safe; whether it votes.

        It is when a majority votes already, or when the whole ensemble of 2 * quorum - 1 has never held anything.
        """
        if self.replica.votes:
            return True
        found = [one for one in self._ask("GET") if isinstance(one, dict)]
        voting = [one for one in found if one["status"] == "VOTING"]
        if len(voting) >= self.quorum:
            newest = max(voting, key=lambda one: one["version"])
            self.replica.vote(newest["version"], newest["document"])
        elif sum(one["version"] == 0 for one in found) + 1 >= 2 * self.quorum - 1:
            self.replica.vote()
        return self.replica.votes

    def fetch(self):
        """The newest content that a majority knows, or None while none answers."""
        found = [one for one in [self.replica.read(), *self._ask("GET")] if isinstance(one, dict)]
        found = [one for one in found if one["status"] == "VOTING"]
        return max(found, key=lambda one: one["version"]) if len(found) >= self.quorum else None

    def store(self, version, document):
        """Whether a majority has taken a version."""
        taken = self.replica.write(version, document)
        done = self._ask("PUT", {"version": version, "document": document})
        return taken + sum(one is True for one in done) >= self.quorum

    def _ask(self, method, body=None):
        def ask(peer):
            try:
                status, answer, _ = web.call(peer, method, "/standin/log", body, timeout=2)
            except OSError:
                return None
            return answer if status == 200 else None

        return list(self.pool.map(ask, self.peers()))


class Registrar:
    """The leader's use of the log. `failed(message)` is called when it is given up; it ends the program."""

    def __init__(self, log, fetch_timeout, store_timeout, failed):
        self.log, self.failed = log, failed
        self.fetch_timeout, self.store_timeout = fetch_timeout, store_timeout
        self.version, self.document, self.recovered = 0, None, False
        self.lock = threading.Lock()

    def recover(self, still_leads):
        """Read the registry and write it once, as a new leader does."""
        end = time.monotonic() + self.fetch_timeout
        while still_leads():
            found = self.log.fetch()
            if found:
                self.document, self.version = json.loads(json.dumps(found["document"])), found["version"]
                self.update(lambda _document: None)
                self.recovered = True
                return
            if time.monotonic() > end:
                self.failed(
                    f"Recovery failed: Failed to recover registrar: Failed to perform fetch within "
                    f"{self.fetch_timeout:g}secs"
                )
            time.sleep(0.2)

    def update(self, change):
        """Change the document by `change(document)` and store it at a majority."""
        with self.lock:
            document = json.loads(json.dumps(self.document))
            change(document)
            end = time.monotonic() + self.store_timeout
            while not self.log.store(self.version + 1, document):
                if time.monotonic() > end:
                    self.failed(f"Failed to update registry: Failed to perform store within {self.store_timeout:g}secs")
                    return
                time.sleep(0.2)
            self.version += 1
            self.document = document

# SPDX-License-Identifier: Apache-2.0
"""The event bus: what happens, to everybody who follows /v2/events."""

from __future__ import annotations

import queue
import threading

from .root import now

BACKLOG = 1000  # events that a follower may be behind before it is cut off


class Events:
    """Followers, each with a queue of (type, event); None in it ends the stream."""

    def __init__(self):
        self.lock = threading.Lock()
        self.followers = {}

    def publish(self, kind, **fields):
        """Tell all followers."""
        event = {**fields, "eventType": kind, "timestamp": now()}
        with self.lock:
            for follower in self.followers.values():
                if follower.qsize() >= BACKLOG:
                    follower.put(None)
                else:
                    follower.put(event)

    def follow(self, key):
        """A queue of all events from now on; `key` stands for the follower."""
        with self.lock:
            self.followers[key] = queue.Queue()
            return self.followers[key]

    def leave(self, key):
        """The follower is gone."""
        with self.lock:
            self.followers.pop(key, None)

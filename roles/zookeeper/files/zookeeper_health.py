#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the ZooKeeper server of this host says of itself by its four-letter words.

    zookeeper_health.py [--wait SECONDS] ZOO_CFG

Prints one line. Exit status as Consul's checks have it: 0 it serves; 1 it leads, and other servers are missing; 2 it
does not serve, because it is down or has no quorum. With --wait it is asked until it serves, and when it does not in
time, each server's state is said. Standard library only, Python 3.9.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path

PASSING, WARNING, CRITICAL = 0, 1, 2
TIMEOUT = 3  # seconds for one answer


class Ensemble:
    """The servers that a configuration names. own: (address, port) of this host's; others: the rest of them."""

    def __init__(self, path):
        lines = (line.partition("=") for line in Path(path).read_text(encoding="utf-8").splitlines())
        values = {key.strip(): value.strip() for key, _equals, value in lines if not key.startswith("#")}
        port = int(values["clientPort"])
        self.own = (values.get("clientPortAddress", "127.0.0.1"), port)
        # server.1=ADDRESS:PEER:ELECTION
        addresses = [value.split(":")[0] for key, value in values.items() if key.startswith("server.")]
        self.others = [(address, port) for address in addresses if address != self.own[0]]
        self.size = max(1, len(addresses))


def ask(server, word):
    """A server's answer to a four-letter word. Raises OSError."""
    with socket.create_connection(server, TIMEOUT) as connection:
        connection.sendall(word.encode("ascii"))
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode("utf-8", "replace").strip()


def look(server, size=1):
    """(exit status, what to say) of the server, which is one of `size`."""
    try:
        if ask(server, "ruok") != "imok":
            return CRITICAL, "does not say that it is well"
        lines = (line.partition("\t") for line in ask(server, "mntr").splitlines())
        values = {key: value for key, _tab, value in lines}
    except OSError as exc:
        return CRITICAL, exc.strerror or str(exc)
    state = values.get("zk_server_state")
    if state is None:
        return CRITICAL, "runs, and has no quorum"
    text = f"{state}, {values.get('zk_num_alive_connections', '?')} connections"
    if state != "leader":
        return PASSING, text
    followers = int(float(values.get("zk_synced_followers", 0)))
    return WARNING if followers < size - 1 else PASSING, f"{text}, {followers} of {size - 1} followers"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="What the ZooKeeper server of this host says of itself.")
    parser.add_argument("--wait", type=float, metavar="SECONDS", default=0, help="how long to wait until it serves")
    parser.add_argument("config", metavar="ZOO_CFG")
    given = parser.parse_args(arguments)
    try:
        ensemble = Ensemble(given.config)
    except (OSError, ValueError, KeyError) as exc:
        print(f"{given.config}: {type(exc).__name__}: {exc}")
        return CRITICAL
    deadline = time.monotonic() + given.wait
    while True:
        status, text = look(ensemble.own, ensemble.size)
        if status != CRITICAL or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    if status == CRITICAL and given.wait:
        states = [f"{address}:{port}: {look((address, port))[1]}" for address, port in ensemble.others]
        text = "; ".join([f"{ensemble.own[0]}:{ensemble.own[1]}: {text}", *states])
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())

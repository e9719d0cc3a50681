# SPDX-License-Identifier: Apache-2.0
"""Ports on loopback for servers of tests."""

from __future__ import annotations

import os
import secrets
import socket

# Below those that the kernel gives to connections: one of these could have the port by the time its server starts.
PORTS = range(20000, 32000)
# Each process of one run has ports of its own: between here and a server's start, nobody has a port.
WORKER, WORKERS = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
OURS = PORTS[int(WORKER.removeprefix("gw")) :: int(WORKERS)]
given = set()


def free_port():
    """A port that nobody has, neither for TCP nor for UDP; each is given once."""
    while True:
        port = secrets.choice(OURS)  # what seeds `random` would choose the same in every process
        if port in given:
            continue
        address = ("127.0.0.1", port)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind(address)
                udp.bind(address)
            except OSError:
                continue
            given.add(port)
            return port

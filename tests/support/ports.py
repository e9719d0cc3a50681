# SPDX-License-Identifier: Apache-2.0
"""Ports on loopback for servers of tests."""

from __future__ import annotations

import secrets
import socket

# Below those that the kernel gives to connections: one of these could have the port by the time its server starts.
PORTS = range(20000, 32000)


def free_port():
    """A port that nobody has, neither for TCP nor for UDP."""
    while True:
        address = ("127.0.0.1", secrets.choice(PORTS))  # what seeds `random` would choose the same in every process
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind(address)
                udp.bind(address)
            except OSError:
                continue
            return address[1]

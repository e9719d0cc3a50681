# SPDX-License-Identifier: Apache-2.0
"""Ways through SSH to services of hosts whose other ports may be closed to this machine. They end with this process."""

from __future__ import annotations

import atexit
import functools
import hashlib
import socket
import subprocess
import time

from dodas.errors import DodasError

PATIENCE = 20  # seconds until a tunnel must be there
TRIES = 5


def to(deployment, host, ports):
    """An address of this machine's loopback at which these ports are those of the host. Raises DodasError."""
    return _open(str(deployment.directory), host, tuple(ports), tuple(deployment.ssh(host, fresh=True)))


@functools.cache
def _open(folder, host, ports, command):
    for attempt in range(TRIES):
        digest = hashlib.sha256(f"{folder} {host} {attempt}".encode()).digest()
        address = f"127.{1 + digest[0] % 254}.{digest[1]}.{1 + digest[2] % 254}"
        if not any(_listens(address, port) for port in ports):
            break
    else:
        raise DodasError(f"{host}: no address of the loopback is free for a way to it")
    forwards = [word for port in ports for word in ("-L", f"{address}:{port}:127.0.0.1:{port}")]
    options = ["-T", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=10", *forwards]
    # It ends when its input does, and so with this process, however that ends.
    process = subprocess.Popen([command[0], *options, *command[1:], "cat"], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    atexit.register(_close, process)
    deadline = time.monotonic() + PATIENCE
    while not _listens(address, ports[0]):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            raise DodasError(f"{host}: no way to it by SSH: {said[-1] if said else 'no answer'}")
        time.sleep(0.05)
    return address


def _close(process):
    process.stdin.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()


def _listens(address, port):
    try:
        with socket.create_connection((address, port), 1):
            return True
    except OSError:
        return False

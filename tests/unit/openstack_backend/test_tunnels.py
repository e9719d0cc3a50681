# SPDX-License-Identifier: Apache-2.0
"""Ways through a real sshd to services that listen on the host only."""

import http.server
import threading
import urllib.request

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import sshkeys
from ansible_collections.dodas.cluster.plugins.module_utils.access import wait
from dodas import tunnels
from dodas.errors import DodasError
from ports import free_port


class Deployment:
    """As much of one as tunnels need."""

    def __init__(self, directory, hosts):
        self.directory, self.hosts, self.name = directory, hosts, directory.name

    def ssh(self, host, fresh=False):
        assert fresh
        key = str(sshkeys.SshKeys(self.directory, self.name).private)
        options = [*sshkeys.options(self.directory, host, self.hosts), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        return ["ssh", "-i", key, *options, f"root@{sshkeys.outer_address(self.hosts[host])}"]


@pytest.fixture
def front(state, sshd):
    server = sshd("front-1")
    hosts = {"front-1": {"address": server.address, "id": "a"}}
    wait(state, hosts, timeout=60)
    return server, Deployment(state, hosts)


def test_a_service_is_reached_at_its_own_port(front):
    _server, deployment = front
    service = http.server.HTTPServer(("127.0.0.1", free_port()), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        address = tunnels.to(deployment, "front-1", [service.server_port])
        assert address.startswith("127.") and address != "127.0.0.1"
        with urllib.request.urlopen(f"http://{address}:{service.server_port}/", timeout=20) as answer:
            assert answer.status == 200
        assert tunnels.to(deployment, "front-1", [service.server_port]) == address  # the same way
    finally:
        service.shutdown()
        service.server_close()


def test_a_host_that_is_away_is_named(front):
    server, deployment = front
    server.stop()
    with pytest.raises(DodasError, match="front-1: no way to it by SSH: .*refused"):
        tunnels.to(deployment, "front-1", [free_port()])

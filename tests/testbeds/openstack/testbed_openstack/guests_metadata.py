# SPDX-License-Identifier: Apache-2.0
"""The metadata service as guests see it: 169.254.169.254 in the namespace of each router, passed on to nova's.

nova believes who asks, since only this process has the secret that it signs with.
"""

import ctypes
import hashlib
import hmac
import http.client
import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from testbed_openstack import network
from testbed_openstack.place import Place

CLONE_NEWNET = 0x40000000
LOOK = 0.3  # seconds until a new router has the service
TIMEOUT = 60  # seconds for nova to answer


class Agent(ThreadingHTTPServer):
    """Answers in one namespace."""

    daemon_threads = True

    def __init__(self, place, namespace):
        super().__init__((network.METADATA, 80), Handler, bind_and_activate=False)
        self.place, self.namespace = place, namespace
        self.socket.close()
        maker = threading.Thread(target=self._listen)  # which is in the namespace then, and ends there
        maker.start()
        maker.join()

    def _listen(self):
        with (network.NAMESPACES / self.namespace).open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"{self.namespace}: {os.strerror(ctypes.get_errno())}")
        self.socket = socket.create_server(self.server_address, backlog=64)


class Handler(BaseHTTPRequestHandler):
    """Passes a question on with the name of the server that asks."""

    def do_GET(self):
        place = self.server.place
        servers = json.loads(network.servers_file(place).read_text(encoding="utf-8"))
        server, project = servers.get(self.server.namespace, {}).get(self.client_address[0], (None, None))
        if server is None:
            self.send_error(404)
            return
        secret = place.secrets()["metadata"].encode()
        headers = {
            "X-Instance-ID": server,
            "X-Tenant-ID": project,
            "X-Instance-ID-Signature": hmac.new(secret, server.encode(), hashlib.sha256).hexdigest(),
            "X-Forwarded-For": self.client_address[0],
        }
        nova = http.client.HTTPConnection("127.0.0.1", place.ports["metadata"], timeout=TIMEOUT)
        try:
            nova.request("GET", self.path, headers=headers)
            answer = nova.getresponse()
            body = answer.read()
        except OSError as error:
            self.send_error(502, str(error))
            return
        finally:
            nova.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        """No log: questions may name what is secret."""


def main():
    place = Place.load()
    agents = {}
    while True:
        wanted = network.present(f"{network.namespace(place)}-r")
        for name in [name for name in agents if name not in wanted]:
            agent = agents.pop(name)
            agent.shutdown()
            agent.server_close()
        for name in [name for name in wanted if name not in agents]:
            try:
                agent = Agent(place, name)
            except OSError as error:  # gone again, or without its address yet
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            threading.Thread(target=agent.serve_forever, daemon=True).start()
            agents[name] = agent
        time.sleep(LOOK)


if __name__ == "__main__":
    main()

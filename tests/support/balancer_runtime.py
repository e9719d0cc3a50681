# SPDX-License-Identifier: Apache-2.0
"""The balancer as a process, with a real HAProxy that it leads, all on loopback; and servers to lead to."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from agent_runtime import eventually
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/load_balancer"
DAEMON = ROLE / "files/dodas_balancer.py"
# Variables of the role that it takes.
GOOD = {
    "load_balancer_hosts": ["localhost", "front-2"],
    "load_balancer_addresses": {"localhost": "192.0.2.1", "front-2": "192.0.2.2", "master-1": "127.0.0.1",
                                "master-2": "127.0.0.1"},
    "load_balancer_password": "aLongEnoughOne-1",
    "load_balancer_tls_certificate": "-----BEGIN CERTIFICATE-----",
    "load_balancer_tls_key": "-----BEGIN EC " + "PRIVATE KEY-----",
    "load_balancer_virtual_address": "192.0.2.100",
}  # fmt: skip
BASE = """\
global
    log stdout format raw local0 notice
    stats socket {folder}/stats.sock mode 600 level admin expose-fd listeners
defaults
    log global
    mode tcp
    timeout connect 2s
    timeout client 20s
    timeout server 20s
    timeout check 1s
    option redispatch
    default-server inter 200ms fastinter 50ms fall 2 rise 1 on-marked-down shutdown-sessions init-addr last,libc,none
frontend health
    mode http
    bind 127.0.0.1:{health}
    monitor-uri /health
"""


class Haproxy:
    """HAProxy in master-worker mode. base: the part of its configuration that stays, by default a small one."""

    def __init__(self, folder, base=None):
        self.folder, self.state, self.master = folder, folder / "state", folder / "master.sock"
        self.health = free_port()
        (self.state / "apps").mkdir(parents=True)
        self.base = folder / "haproxy.cfg"
        self.base.write_text(base or BASE.format(folder=folder, health=self.health))
        self.log = folder / "haproxy.log"
        self.process = None

    def start(self):
        command = ["haproxy", "-W", "-f", self.base, "-f", self.state / "apps", "-S", f"{self.master},mode,600"]
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        eventually(lambda: self.process.poll() is not None or self.master.exists())
        assert self.process.poll() is None, self.log.read_text()

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
            self.process = None

    @property
    def apps(self):
        """The part of the configuration that the balancer wrote."""
        path = self.state / "apps" / "apps.cfg"
        return path.read_text() if path.exists() else ""


class Balancer:
    """The daemon, with shorter waits. patch: Python that changes its module `daemon` before it starts."""

    def __init__(self, haproxy, consul_port, token_file="", reserved=None, patch=""):
        self.haproxy = haproxy
        self.patch = f"daemon.WAIT, daemon.SETTLE, daemon.PAUSE, daemon.RETRY = 1, 0.05, 0.1, 1\n{patch}"
        settings = {
            "base": str(haproxy.base), "state": str(haproxy.state), "master": str(haproxy.master),
            "consul": f"127.0.0.1:{consul_port}", "token_file": str(token_file), "address": "127.0.0.1",
            "reserved": {str(haproxy.health): "health", **(reserved or {})},
        }  # fmt: skip
        self.settings = haproxy.folder / "balancer.json"
        self.settings.write_text(json.dumps(settings))
        self.log = haproxy.folder / "balancer.log"
        self.process = None

    def start(self):
        script = (
            f"import sys; sys.path.insert(0, {str(DAEMON.parent)!r}); sys.dont_write_bytecode = True\n"
            f"import dodas_balancer as daemon\n{self.patch}\n"
            f"daemon.main([{str(self.settings)!r}])"
        )
        with self.log.open("a") as stream:
            self.process = subprocess.Popen([sys.executable, "-c", script], stdout=stream, stderr=stream)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(10) == 0, self.log.read_text()
            self.process = None

    @property
    def status(self):
        try:
            return json.loads((self.haproxy.state / "status.json").read_text())
        except FileNotFoundError:
            return {"published": [], "refused": {}, "error": "not written yet"}

    def published(self):
        """{port: [app]}"""
        found = {}
        for one in self.status["published"]:
            found.setdefault(one["port"], []).append(one["app"])
        return found


class Server:
    """An HTTP server on loopback that says its name; /slow is answered in `parts` parts, one each 0.1 s."""

    def __init__(self, name, parts=10):
        self.name, self.asked, self.headers = name, [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append(self.path)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                body = f"{server.name}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) * (parts if self.path == "/slow" else 1)))
                self.end_headers()
                self.wfile.write(body)
                for _ in range(parts - 1 if self.path == "/slow" else 0):
                    time.sleep(0.1)
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def ask(port, path="/", host=None, seconds=5):
    """What answers at a port of loopback, without its line end; None when nothing does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        body = answer.read().decode()
        return body.strip() if answer.status == 200 else f"HTTP {answer.status}"
    return None


def register(consul, app, server, meta=None, status="passing", host="worker-1", task=None):
    """Register an instance of an app as the registrator does: a service of a node that is no member."""
    task = task or f"{app}.{server}"
    labels = {"HAPROXY_GROUP": "external", **(meta or {})}
    consul.call("PUT", "/v1/catalog/register", {
        "Node": f"{host}-apps", "Address": "127.0.0.1",
        "Service": {"ID": task, "Service": app, "Port": server, "Meta": labels, "Tags": ["app"]},
        "Check": {"CheckID": f"health:{task}", "ServiceID": task, "Name": "health", "Status": status},
    })  # fmt: skip


def deregister(consul, app, server, host="worker-1", task=None):
    consul.call("PUT", "/v1/catalog/deregister", {"Node": f"{host}-apps", "ServiceID": task or f"{app}.{server}"})

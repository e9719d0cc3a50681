# SPDX-License-Identifier: Apache-2.0
"""The app agent as a process, with stand-ins for systemctl and podman in its PATH, and Consul real or a stand-in."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import consul_runtime
from ansible_collections.dodas.cluster.plugins.module_utils.images import build, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, image_store
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "roles/container_engine/files/dodas_agent.py"


def eventually(condition, seconds=10):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


class Server:
    """An HTTP or HTTPS server of an app on loopback; `answers` gives the status and the body."""

    def __init__(self, tls=None):
        self.status, self.body, self.delay, self.asked = 200, b"fine", 0, []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                time.sleep(server.delay)
                with contextlib.suppress(OSError):
                    self.send_response(server.status)
                    self.end_headers()
                    self.wfile.write(server.body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class StandIn:
    """A stand-in for Consul's agent: the four calls that the app agent makes, with Consul's answers to them."""

    def __init__(self):
        self.port = free_port()
        self.server = None
        self.start()

    def start(self):
        self.checks, self.names = {}, {}
        consul = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or "null")
                status, value = consul.answer(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            do_GET = do_PUT = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path, body):
        if path.startswith("/v1/agent/service/register"):
            check = body["Check"]
            assert all(isinstance(value, str) for value in body["Meta"].values())
            self.checks[check["CheckID"]] = {"ServiceID": body["ID"], "Status": check["Status"], "Output": ""}
            self.names[body["ID"]] = body
        elif path == "/v1/agent/checks":
            return 200, self.checks
        elif found := re.fullmatch("/v1/agent/check/update/(.*)", path):
            if found[1] not in self.checks:
                return 404, f"Unknown check {found[1]}"
            self.checks[found[1]].update(body)
        elif found := re.fullmatch("/v1/agent/service/deregister/(.*)", path):
            if found[1] not in self.names:
                return 404, f"Unknown service {found[1]}"
            del self.checks[f"app:{found[1]}"], self.names[found[1]]
        return 200, None

    def stop(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class RealConsul:
    """`consul agent -dev` on loopback."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.port = free_port()
        self.process = None
        self.start()

    def start(self):
        ports = {"http": self.port, "dns": -1, "grpc": -1, "https": -1}
        ports |= {name: free_port() for name in ("serf_lan", "serf_wan", "server")}
        config = self.folder / "consul.json"
        config.write_text(json.dumps({"ports": ports, "node_name": "test", "disable_update_check": True}))
        command = [self.program, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", f"-config-file={config}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self.call("GET", "/v1/agent/checks") is not None, 20)

    def call(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                return json.loads(answer.read() or "{}")
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{path}: {exc.read()}") from exc
        except OSError:
            return None

    @property
    def checks(self):
        return self.call("GET", "/v1/agent/checks") or {}

    @property
    def names(self):
        services = self.call("GET", "/v1/agent/services") or {}
        return {name: {**one, "Name": one["Service"]} for name, one in services.items()}

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None


class GuardedConsul:
    """A real Consul that asks for a token, as role consul sets it up; it remembers what it knew when it was stopped."""

    def __init__(self, folder):
        self.consul = consul_runtime.Consul(folder)
        self.consul.start()
        self.port = self.consul.port
        self.token_file = self.consul.token_file("app_agent")

    def start(self):
        self.consul.start()

    def stop(self):
        self.consul.kill()

    @property
    def checks(self):
        return self.consul.call("GET", "/v1/agent/checks")

    @property
    def names(self):
        services = self.consul.call("GET", "/v1/agent/services")
        return {name: {**one, "Name": one["Service"]} for name, one in services.items()}


def consul_program(tmp_path):
    """A real Consul: the one installed, or that of the hosts' image, which is built where it is not there yet."""
    installed = shutil.which("consul")
    if installed or os.geteuid() != 0:
        return installed
    podman = Podman(tmp_path / "world")
    podman.configure()
    images = catalogue.with_parents(catalogue.catalogue(ROOT / "containers", ROOT), ["host"])
    build.build(podman, images, ROOT)
    return str(next(image_store().glob("overlay/*/diff/usr/bin/consul")))


SYSTEMCTL = f"""#!/bin/sh
# A stand-in for systemctl: a unit is a file with ActiveState and the time of its start.
cd "$(dirname "$0")"
case "$1" in
show) cat "$3" ;;
restart)
  echo "$2" >> restarts
  {sys.executable} -c 'import time; print(
    f"ActiveState=active\\nActiveEnterTimestampMonotonic={{int(time.monotonic() * 1e6)}}")' > .new && mv .new "$2" ;;
esac
"""
PODMAN = """#!/bin/sh
# A stand-in for `podman exec CONTAINER ...`: runs the command here.
[ "$1" = exec ] && shift 2 && exec "$@"
"""


class Agent:
    """The agent as a process of its own, and the host that it looks at."""

    def __init__(self, folder, consul_port, token_file=None):
        self.arguments = [f"--consul-token={token_file}"] if token_file else []
        self.bin, self.records, self.states = folder / "bin", folder / "apps", folder / "states"
        self.ca_file = folder / "ca.pem"
        self.consul_port = consul_port
        for one in (self.bin, self.records):
            one.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("podman", PODMAN)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.log = folder / "agent.log"
        self.process = None

    def start(self):
        script = (
            f"import sys, pathlib; sys.path.insert(0, {str(AGENT.parent)!r}); sys.dont_write_bytecode = True\n"
            f"import dodas_agent as agent; agent.RECORDS = pathlib.Path({str(self.records)!r})\n"
            f"agent.STATES = pathlib.Path({str(self.states)!r}); agent.CONSUL = ('127.0.0.1', {self.consul_port})\n"
            f"agent.CA_FILE = {str(self.ca_file)!r}; agent.EAGER = 0.05\n"
            f"agent.settle({self.arguments!r}); agent.main()"
        )
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script], stdout=stream, stderr=stream, env=environment
            )

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(10) == 0
            self.process = None

    def unit(self, name, active=True, age=1000.0):
        """Say how long the unit has been active."""
        state, entered = ("active", time.monotonic() - age) if active else ("activating", 0)
        new = self.bin / f".{name}"
        new.write_text(f"ActiveState={state}\nActiveEnterTimestampMonotonic={int(entered * 1e6)}\n")
        new.replace(self.bin / f"dodas-{name}.service")

    def app(self, name, *checks, port=0, **unit):
        """Write the record of an app, as the engine does."""
        defaults = {"path": "/", "command": "", "grace": 0, "interval": 0.1, "timeout": 1, "failures": 0, "port": port}
        record = {"id": name, "unit": f"dodas-{name}.service", "container": f"dodas-{name}", "labels": {"a": "b"},
                  "ports": [{"name": "x", "port": port, "protocol": "tcp"}] if port else [],
                  "checks": [{**defaults, **check} for check in checks]}  # fmt: skip
        self.unit(name, **unit)
        new = self.records / ".new"
        new.write_text(json.dumps(record))
        new.replace(self.records / f"{name}.json")

    def state(self, name):
        try:
            return json.loads((self.states / f"{name}.json").read_text())
        except FileNotFoundError:
            return {"state": None, "output": None}

    def wait(self, name, state, output=""):
        return eventually(lambda: (s := self.state(name))["state"] == state and output in s["output"] and s)

    @property
    def restarts(self):
        path = self.bin / "restarts"
        return path.read_text().split() if path.exists() else []

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The app agent of the podman engine: health checks, restarts, registration in Consul.

One process a host. It reads the records that the engine writes (/etc/dodas/apps/*.json), runs each app's health checks
as Marathon defines them (grace period, interval, timeout, consecutive failures), restarts an app that keeps failing,
and keeps Consul's catalogue equal to what it sees. States are in /run/dodas/apps/*.json. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

RECORDS = Path("/etc/dodas/apps")
STATES = Path("/run/dodas/apps")
CA_FILE = "/etc/dodas/tls/ca.pem"
CONSUL = ("127.0.0.1", 8500)
# Until an app is healthy it is looked at this often (seconds): who waits for it should not wait for the interval.
EAGER = 0.5


def log(message):
    print(message, flush=True)


class Consul:
    """The local Consul agent's HTTP API; every call tells whether it worked."""

    @staticmethod
    def put(path, body=None):
        try:
            connection = http.client.HTTPConnection(*CONSUL, timeout=3)
            connection.request("PUT", path, json.dumps(body) if body is not None else None)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def register(self, record, interval):
        port = record["ports"][0]["port"] if record["ports"] else 0
        return self.put("/v1/agent/service/register?replace-existing-checks=true", {
            "ID": record["id"], "Name": record["id"], "Port": port, "Meta": record["labels"],
            "Check": {"CheckID": f"app:{record['id']}", "Name": "health", "TTL": f"{int(interval * 3 + 15)}s",
                      "Status": "critical"},
        })  # fmt: skip

    def update(self, name, status, output):
        return self.put(f"/v1/agent/check/update/app:{name}", {"Status": status, "Output": output[:1000]})

    def deregister(self, name):
        return self.put(f"/v1/agent/service/deregister/{name}")


def probe(check, record):
    """Run one health check; returns None when it passes, otherwise the reason."""
    try:
        if check["protocol"] == "COMMAND":
            command = ["podman", "exec", record["container"], "/bin/sh", "-c", check["command"]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=check["timeout"], check=False)
            output = (done.stdout + done.stderr).strip().splitlines()
            return None if done.returncode == 0 else (output or [f"exit status {done.returncode}"])[-1]
        if check["protocol"] == "TCP":
            with socket.create_connection(("127.0.0.1", check["port"]), check["timeout"]):
                return None
        return _http(check, record["id"])
    except subprocess.TimeoutExpired:
        return f"no answer in {check['timeout']} s"
    except (OSError, http.client.HTTPException) as exc:
        return f"{check['protocol']} port {check['port']}: {exc}"


def _http(check, name):
    connection = http.client.HTTPConnection("127.0.0.1", check["port"], timeout=check["timeout"])
    if check["protocol"] == "HTTPS":
        plain = socket.create_connection(("127.0.0.1", check["port"]), check["timeout"])
        context = ssl.create_default_context(cafile=CA_FILE)
        connection.sock = context.wrap_socket(plain, server_hostname=f"{name}.service.consul")
    try:
        connection.request("GET", check["path"])
        answer = connection.getresponse()
        body = answer.read(500).decode("utf-8", "replace")
        return None if answer.status < 400 else f"HTTP {answer.status}: {body.strip()}"
    finally:
        connection.close()


def started_at(unit):
    """When systemd last saw the unit become active (monotonic seconds), or None while it is not."""
    command = ["systemctl", "show", "--property=ActiveState,ActiveEnterTimestampMonotonic", unit]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return int(values["ActiveEnterTimestampMonotonic"]) / 1e6 if values.get("ActiveState") == "active" else None


class Watch(threading.Thread):
    """Watches one app until it is told to stop."""

    def __init__(self, record):
        super().__init__(daemon=True)
        self.record = record
        self.name = record["id"]
        self.checks = record["checks"]
        self.interval = min((check["interval"] for check in self.checks), default=10)
        self.ended = threading.Event()
        self.consul = Consul()
        self.registered = False
        self.state, self.since, self.failures = None, time.time(), 0

    def run(self):
        while not self.ended.is_set():
            began = time.time()
            reason = self._look()
            self._publish("critical" if reason else "passing", reason or "healthy", began)
            if reason:
                self._restart_if_due(reason)
            self.ended.wait(self.interval if self.state == "passing" else min(EAGER, self.interval))

    def _look(self):
        started = started_at(self.record["unit"])
        if started is None:
            return "not running"
        reasons = [reason for reason in (probe(check, self.record) for check in self.checks) if reason]
        return "; ".join(reasons)

    def _publish(self, state, output, began):
        if state != self.state:
            log(f"{self.name}: {state}: {output}")
            self.state, self.since, self.failures = state, time.time(), 0
        temporary = STATES / f".{self.name}"
        temporary.write_text(json.dumps({"state": state, "since": self.since, "output": output, "checked": began}))
        os.replace(temporary, STATES / f"{self.name}.json")
        if not (self.registered and self.consul.update(self.name, state, output)):
            self.registered = self.consul.register(self.record, self.interval) and self.consul.update(
                self.name, state, output
            )

    def _restart_if_due(self, reason):
        """Restart the app when its checks failed too often, counted once an interval and not in the grace period."""
        most = max((check["failures"] for check in self.checks), default=0)
        grace = max((check["grace"] for check in self.checks), default=0)
        started = started_at(self.record["unit"])
        if not most or started is None:
            return
        self.failures = int((time.time() - self.since) / self.interval) + 1
        if self.failures >= most and time.monotonic() - started > grace:
            log(f"{self.name}: restart after {self.failures} failed checks: {reason}")
            subprocess.run(["systemctl", "restart", self.record["unit"]], timeout=180, check=False)
            self.since = time.time()


def load():
    """The records by path, with their times of change."""
    found = {}
    for path in RECORDS.glob("*.json"):
        try:
            found[path.stem] = (path.stat().st_mtime_ns, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as exc:
            log(f"{path}: {exc}")
    return found


def main():
    RECORDS.mkdir(parents=True, exist_ok=True)
    STATES.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    watches = {}
    for path in STATES.glob("*.json"):
        path.unlink()
    while not ended.is_set():
        found = load()
        for name in [name for name in watches if name not in found or watches[name][0] != found[name][0]]:
            watches.pop(name)[1].ended.set()
            if name not in found:
                Consul().deregister(name)
                (STATES / f"{name}.json").unlink(missing_ok=True)
                log(f"{name}: gone")
        for name, (changed, record) in found.items():
            if name not in watches:
                watches[name] = (changed, Watch(record))
                watches[name][1].start()
        ended.wait(EAGER)


if __name__ == "__main__":
    main()

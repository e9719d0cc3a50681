#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The app agent: health checks, restarts, registration in Consul.

    dodas_agent.py [--root FOLDER] [--consul HOST:PORT] [--consul-token FILE]

One process a host. It reads the records that the engine writes (/etc/dodas/apps/*.json), runs each app's health checks
as Marathon defines them (grace period, interval, timeout, consecutive failures), restarts an app that keeps failing,
and keeps Consul's catalogue equal to what it sees. States are in /run/dodas/apps/*.json.

On a host without root all this is below a folder (--root), a supervisor starts it and keeps the apps, and Consul may be
missing. Standard library only, Python 3.8.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import xmlrpc.client
from pathlib import Path

RECORDS = Path("/etc/dodas/apps")
STATES = Path("/run/dodas/apps")
CA_FILE = "/etc/dodas/tls/ca.pem"
CONSUL = ("127.0.0.1", 8500)
CONSUL_HEADERS = {}
# Until an app is healthy it is looked at this often (seconds): who waits for it should not wait for the interval.
EAGER = 0.5


def log(message):
    print(message, flush=True)


class Consul:
    """The local Consul agent's HTTP API; every call tells whether it worked."""

    @staticmethod
    def call(method, path, body=None):
        """What Consul answered, as bytes; None when it did not or said no."""
        if CONSUL is None:
            return None
        connection = http.client.HTTPConnection(*CONSUL, timeout=3)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, CONSUL_HEADERS)
            answer = connection.getresponse()
            content = answer.read()
            return content if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def put(self, path, body=None):
        return self.call("PUT", path, body) is not None

    def register(self, record, interval):
        port = record["ports"][0]["port"] if record["ports"] else 0
        return self.put("/v1/agent/service/register?replace-existing-checks=true", {
            "ID": record["id"], "Name": record["id"], "Port": port, "Meta": record["labels"],
            "Address": record.get("address", ""),
            "Check": {"CheckID": f"app:{record['id']}", "Name": "health", "TTL": f"{int(interval * 3 + 15)}s",
                      "Status": "critical"},
        })  # fmt: skip

    def update(self, name, status, output):
        return self.put(f"/v1/agent/check/update/app:{name}", {"Status": status, "Output": output[:1000]})

    def keep_only(self, names):
        """Deregister apps that are not among `names`; those of others have no check of ours."""
        checks = self.call("GET", "/v1/agent/checks")
        if checks is None:
            return False
        gone = [check["ServiceID"] for key, check in json.loads(checks).items() if key.startswith("app:")]
        done = [self.put(f"/v1/agent/service/deregister/{name}") for name in gone if name not in names]
        return all(done)


class Systemd:
    """Apps are units of the machine's systemd, in containers of podman."""

    @staticmethod
    def command(record, words):
        """What runs a command in the app's container."""
        return ["podman", "exec", record["container"], *words]

    @staticmethod
    def started_at(record):
        """When the app last became active (monotonic seconds), or None while it is not."""
        command = ["systemctl", "show", "--property=ActiveState,ActiveEnterTimestampMonotonic", record["unit"]]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        return int(values["ActiveEnterTimestampMonotonic"]) / 1e6 if values.get("ActiveState") == "active" else None

    @staticmethod
    def restart(record):
        subprocess.run(["systemctl", "restart", record["unit"]], timeout=180, check=False)


class Supervisor:
    """Apps are programs of the supervisor at `socket`, in containers of the host in folder `root`."""

    RUNNING = 20  # the supervisor's number for it

    def __init__(self, root, path):
        self.root = root
        self.path = path

    def command(self, record, words):
        return [f"{self.root}/bin/udocker", "exec", record["container"], *words]

    def started_at(self, record):
        with self._server() as server:
            found = server.supervisor.getProcessInfo(record["container"])
        if found["state"] != self.RUNNING:
            return None
        return time.monotonic() - (found["now"] - found["start"])

    def restart(self, record):
        for step in ("stopProcess", "startProcess"):
            with contextlib.suppress(xmlrpc.client.Fault), self._server() as server:  # it may have ended by itself
                getattr(server.supervisor, step)(record["container"])

    def _server(self):
        return xmlrpc.client.ServerProxy("http://supervisor/RPC2", transport=_UnixTransport(self.path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def make_connection(self, host):
        return _UnixConnection(host, self.path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, host, path):
        super().__init__(host, timeout=180)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


KEEPER = Systemd()  # what keeps the apps running


def probe(check, record):
    """Run one health check; returns None when it passes, otherwise the reason."""
    try:
        if check["protocol"] == "COMMAND":
            command = KEEPER.command(record, ["/bin/sh", "-c", check["command"]])
            with tempfile.TemporaryFile() as output:  # a pipe could be held open by what the command started
                status = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=check["timeout"],
                    check=False,
                ).returncode  # fmt: skip
                output.seek(0)
                lines = output.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
            return None if status == 0 else (lines or [f"exit status {status}"])[-1]
        if check["protocol"] == "TCP":
            with socket.create_connection((_address(record), check["port"]), check["timeout"]):
                return None
        return _http(check, record)
    except subprocess.TimeoutExpired:
        return f"no answer in {check['timeout']} s"
    except (OSError, http.client.HTTPException) as exc:
        return f"{check['protocol']} port {check['port']}: {exc}"


def _address(record):
    """Where the host's apps listen."""
    return record.get("address") or "127.0.0.1"


def _http(check, record):
    connection = http.client.HTTPConnection(_address(record), check["port"], timeout=check["timeout"])
    try:
        if check["protocol"] == "HTTPS":
            context = ssl.create_default_context(cafile=CA_FILE)
            connection.connect()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=f"{record['id']}.service.consul")
        connection.request("GET", check["path"])
        answer = connection.getresponse()
        body = answer.read(500).decode("utf-8", "replace")
        return None if answer.status < 400 else f"HTTP {answer.status}: {body.strip()}"
    finally:
        connection.close()


class Watch(threading.Thread):
    """Watches one app until it is told to stop."""

    def __init__(self, record):
        super().__init__(daemon=True)
        self.record = record
        self.name = record["id"]
        self.checks = record["checks"]
        self.interval = min((check["interval"] for check in self.checks), default=10)
        self.ended = threading.Event()
        self.publishing = threading.Lock()
        self.consul = Consul()
        self.registered = False
        self.state, self.since = None, time.time()
        self.healthy = 0.0  # when it last was (monotonic)
        self.failing = {}  # since when a check fails (monotonic), by the check's index

    def run(self):
        while not self.ended.is_set():
            try:
                self._round()
            except Exception as exc:  # the app must stay watched, whatever happened this time
                log(f"{self.name}: {type(exc).__name__}: {exc}")
            self.ended.wait(self.interval if self.state == "passing" else min(EAGER, self.interval))

    def stop(self):
        """Publish nothing more: when this returns, what was published can be removed."""
        with self.publishing:
            self.ended.set()

    def _round(self):
        began = time.time()
        started = KEEPER.started_at(self.record)
        found = {} if started is None else {i: probe(check, self.record) for i, check in enumerate(self.checks)}
        found = {i: reason for i, reason in found.items() if reason}
        reason = "not running" if started is None else "; ".join(found.values())
        now = time.monotonic()
        self.failing = {i: self.failing.get(i, now) for i in found}
        if not reason:
            self.healthy = now
        self._publish("critical" if reason else "passing", reason or "healthy", began)
        if found and not self.ended.is_set() and any(self._is_due(i, started, now) for i in found):
            log(f"{self.name}: restart: {reason}")
            self.failing = {}
            KEEPER.restart(self.record)

    def _publish(self, state, output, began):
        with self.publishing:
            if self.ended.is_set():
                return
            if state != self.state:
                log(f"{self.name}: {state}: {output}")
                self.state, self.since = state, time.time()
            temporary = STATES / f".{self.name}"
            temporary.write_text(json.dumps({"state": state, "since": self.since, "output": output, "checked": began}))
            os.replace(temporary, STATES / f"{self.name}.json")
            if CONSUL and not (self.registered and self.consul.update(self.name, state, output)):
                self.registered = self.consul.register(self.record, self.interval) and self.consul.update(
                    self.name, state, output
                )

    def _is_due(self, i, started, now):
        """Whether check `i` failed so often that the app is restarted.

        Failures are counted once an interval, and not in the grace period: that ends when the app is healthy.
        """
        check = self.checks[i]
        counted_from = started if self.healthy > started else started + check["grace"]
        elapsed = now - max(self.failing[i], counted_from)
        return 0 < check["failures"] <= elapsed / check["interval"] + 1


def records():
    """When the records last changed, by app."""
    found = {}
    for path in RECORDS.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_mtime_ns
    return found


def watch(name):
    """Watch app `name`; None where its record cannot be used."""
    try:
        started = Watch(json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log(f"{name}: its record cannot be used: {type(exc).__name__}: {exc}")
        return None
    started.start()
    return started


def main():
    RECORDS.mkdir(parents=True, exist_ok=True)
    STATES.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    watches = {}
    for path in STATES.glob("*.json"):
        path.unlink()
    tidy = False  # whether Consul has no app that is gone: one may have gone while nobody looked
    while not ended.is_set():
        found = records()
        for name in [name for name in watches if watches[name][0] != found.get(name)]:
            watched = watches.pop(name)[1]
            if watched:
                watched.stop()
            if name not in found:
                (STATES / f"{name}.json").unlink(missing_ok=True)
                log(f"{name}: gone")
                tidy = False
        tidy = tidy or CONSUL is None or Consul().keep_only(found)
        for name, changed in found.items():
            if name not in watches:
                watches[name] = (changed, watch(name))
        ended.wait(EAGER)


def settle(arguments):
    """Take what the command line says of where this host is."""
    global RECORDS, STATES, CA_FILE, CONSUL, CONSUL_HEADERS, KEEPER
    parser = argparse.ArgumentParser(description="The app agent of a host.")
    parser.add_argument("--root", metavar="FOLDER", help="the folder that stands for the root of a host without root")
    parser.add_argument("--consul", metavar="HOST:PORT", help="where its Consul agent is")
    parser.add_argument("--consul-token", metavar="FILE", type=Path, help="the token that Consul asks for")
    given = parser.parse_args(arguments)
    if given.root:
        RECORDS, STATES, CA_FILE = (Path(f"{given.root}{path}") for path in (RECORDS, STATES, CA_FILE))
        # The supervisor tells its programs where it is: unix:///path
        KEEPER = Supervisor(given.root, os.environ["SUPERVISOR_SERVER_URL"].partition("://")[2])
        CONSUL = None
    if given.consul:
        name, _colon, port = given.consul.rpartition(":")
        CONSUL = (name, int(port))
    if given.consul_token:
        CONSUL_HEADERS = {"X-Consul-Token": given.consul_token.read_text(encoding="ascii").strip()}


if __name__ == "__main__":
    settle(None)
    main()

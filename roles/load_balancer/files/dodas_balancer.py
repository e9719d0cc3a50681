#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The balancer: what Consul knows of apps becomes HAProxy's configuration.

    dodas_balancer.py SETTINGS

An app is published when its label HAPROXY_GROUP names the balancers' group. Its n-th port is HAPROXY_{n}_PORT, else
that of its definition; HAPROXY_{n}_MODE is tcp or http, and with HAPROXY_{n}_VHOST (names, comma separated) several
apps share a port. HAPROXY_{n}_CLIENTS (networks, comma separated) says who may connect: an app itself sees the balancer
only. Instances that Consul calls critical get no connections. Besides labels, an instance's metadata may have ports and
service_ports (its own and those of the definition, comma separated) and since (when the app came).

HAProxy judges each configuration before it is used. One that it does not take changes nothing, nor does Consul when it
cannot be reached. Two apps that want one port: who has it keeps it, otherwise the one that Consul has known for longer.
SETTINGS is a JSON file: see `Settings`. Standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

WAIT = 10  # seconds that Consul holds a question to which nothing changes
SETTLE = 0.3  # seconds in which changes that come together are taken together
PAUSE = 1  # seconds before Consul is asked again that did not answer
RELOAD = 10  # seconds within which HAProxy must have a new worker
# Seconds before a configuration is tried again that HAProxy could not use: it takes no connections while it tries.
RETRY = 600
IP_FREEBIND = 15  # of Linux; Python 3.9 has no name for it
LABEL = re.compile(r"HAPROXY_(\d+)_(.*)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,254}")
NETWORK = re.compile(r"[0-9A-Fa-f.:/]{1,64}")


class Unreachable(Exception):
    """Consul did not answer, or did not say what was asked; the message says which."""


class Refused(Exception):
    """An app cannot be published; the message says why."""


class Rejected(Exception):
    """HAProxy does not take a configuration; the message has its words."""


class NotRunning(Exception):
    """HAProxy does not run; when it does, it has the configuration that was written last."""


@dataclasses.dataclass
class Settings:
    """What the role writes.

    consul: host and port of its agent; token_file: with the token to ask with, or empty
    group: of apps to publish; address: to listen on, `*` for all; transparent: also while the host does not have it
    reserved: ports that no app gets, and whose they are
    base: the part of HAProxy's configuration that stays; master: socket of HAProxy's master process
    state: folder with what this writes: apps/apps.cfg, and status.json about it
    """

    base: str
    state: str
    master: str
    consul: str = "127.0.0.1:8500"
    token_file: str = ""
    group: str = "external"
    address: str = "*"
    transparent: bool = False
    reserved: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Published:
    """The port number `index` of an app, as others reach it.

    hosts: names that it has on that port; clients: networks that may connect, all when empty
    servers: (address, port) of its instances
    since: when the app came, comparable with that of others: in time where it is known, else by Consul's index
    """

    app: str
    index: int
    port: int
    mode: str = "tcp"
    hosts: tuple = ()
    clients: tuple = ()
    servers: tuple = ()
    since: tuple = ()

    @property
    def backend(self):
        return f"{self.app}_{self.index}"

    def describe(self):
        """As status.json has it."""
        servers = [f"{address}:{port}" for address, port in self.servers]
        return {"app": self.app, "port": self.port, "mode": self.mode, "hosts": list(self.hosts), "servers": servers}


def log(message):
    print(message, flush=True)


class Consul:
    """Reads from the HTTP API of a Consul agent, also while its servers have no leader."""

    def __init__(self, place, token_file=""):
        self.host, _colon, port = place.rpartition(":")
        self.port = int(port)
        self.token_file = token_file

    def get(self, path, index=0):
        """(index, value): with an index, the answer waits until there is a newer one. Raises Unreachable."""
        wait = f"&index={index}&wait={WAIT}s" if index else ""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=2 * WAIT)
        try:
            connection.request("GET", f"{path}?stale{wait}", headers=self._token())
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise Unreachable(f"Consul: {path}: HTTP {answer.status}: {content[:200].decode(errors='replace')}")
            return int(answer.headers.get("X-Consul-Index") or 0), json.loads(content)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise Unreachable(f"Consul at {self.host}:{self.port}: {exc}") from None
        finally:
            connection.close()

    def _token(self):
        if not self.token_file:
            return {}
        return {"X-Consul-Token": Path(self.token_file).read_text(encoding="ascii").strip()}


class Watch(threading.Thread):
    """Sets `changed` when what Consul answers at `path` may have changed, and every WAIT seconds."""

    def __init__(self, consul, path, changed):
        super().__init__(daemon=True)
        self.consul, self.path, self.changed = consul, path, changed

    def run(self):
        index = 0
        while True:
            try:
                newest, _value = self.consul.get(self.path, index)
                # A lower one means that Consul began anew.
                index = newest if newest >= index else 0
                pause = SETTLE
            except Unreachable:
                index, pause = 0, PAUSE
            self.changed.set()
            time.sleep(pause)


def published(name, entries, group):
    """What app `name` publishes. entries: as Consul's /v1/health/service/NAME has them. Raises Refused."""
    newest = max(entries, key=lambda one: one["Service"]["CreateIndex"])["Service"]
    labels = newest.get("Meta") or {}
    if group not in labels.get("HAPROXY_GROUP", "").split(","):
        return []
    if not NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name for HAProxy")
    options = {}
    for label, value in labels.items():
        found = LABEL.fullmatch(label)
        if found:
            options.setdefault(int(found[1]), {})[found[2]] = value
    ports = _numbers(labels, "service_ports", newest["Port"])
    for index in options:
        if index >= len(ports):
            raise Refused(f"HAPROXY_{index}_*: the app has {len(ports)} ports, counted from 0")
    since = min(_came(one["Service"]) for one in entries)
    found = []
    for index, port in enumerate(ports):
        one = options.get(index, {})
        if not one and str(port) == "0":
            continue  # Marathon chooses it anew each time, and nobody asked for it
        hosts = _listed(one.get("VHOST", "").lower())
        clients = _listed(one.get("CLIENTS", ""))
        mode = one.get("MODE") or ("http" if hosts else "tcp")
        _see(f"HAPROXY_{index}_MODE", mode, mode in ("tcp", "http"), "neither tcp nor http")
        _see(f"HAPROXY_{index}_VHOST", mode, mode == "http" or not hosts, "the mode, and only http has virtual hosts")
        for host in hosts:
            _see(f"HAPROXY_{index}_VHOST", host, ADDRESS.fullmatch(host) and ":" not in host, "no host's name")
        for client in clients:
            _see(f"HAPROXY_{index}_CLIENTS", client, _is_network(client), "no network")
        number = _port(f"HAPROXY_{index}_PORT", one.get("PORT") or port)
        found.append(Published(name, index, number, mode, hosts, clients, _servers(entries, index), since))
    if not found:
        raise Refused("HAPROXY_0_PORT: is missing, and the definition has no port either")
    return found


def _listed(text):
    return tuple(sorted({one.strip() for one in text.split(",") if one.strip()}))


def _is_network(text):
    try:
        return bool(NETWORK.fullmatch(text) and ipaddress.ip_network(text))
    except ValueError:
        return False


def _came(service):
    """When an instance's app came: an ISO time, and the index of the instance."""
    return (service.get("Meta") or {}).get("since") or "later", service["CreateIndex"]


def _servers(entries, index):
    """(address, port) of the instances that take connections to the app's port number `index`."""
    servers = set()
    for one in entries:
        service = one["Service"]
        if any(check["Status"] == "critical" for check in one.get("Checks") or []):
            continue
        ports = _numbers(service.get("Meta") or {}, "ports", service["Port"])
        address = service.get("Address") or one["Node"]["Address"]
        _see("address", address, ADDRESS.fullmatch(address), "no address")
        if index < len(ports):
            servers.add((address, _port("ports", ports[index])))
    return tuple(sorted(servers))


def _numbers(labels, key, otherwise):
    """Ports in a label, or the one that Consul has."""
    return labels[key].split(",") if labels.get(key) else [otherwise]


def _port(key, value):
    _see(key, value, re.fullmatch(r"\d{1,5}", str(value)) and 0 < int(value) < 65536, "no port from 1 to 65535")
    return int(value)


def _see(key, value, right, what):
    if not right:
        raise Refused(f"{key}: {str(value)[:100]!r} is {what}")


def assign(wanted, held, reserved, is_free):
    """Who gets which port: ({port: [Published]}, {Published: why it gets none}).

    held: {port: app} until now; reserved: {port: whose it is}; is_free: whether this host has a port to give
    """
    given, refused = {}, {}
    for one in sorted(wanted, key=lambda one: (held.get(one.port) != one.app, one.since, one.app, one.index)):
        there = given.get(one.port, [])
        if one.port in reserved:
            refused[one] = f"port {one.port} is the balancer's own: {reserved[one.port]}"
        elif not there and held.get(one.port) is None and not is_free(one.port):
            refused[one] = f"port {one.port} is used by another program on this host"
        elif there and not (one.hosts and there[0].hosts):
            refused[one] = f"port {one.port} is that of {there[0].app}, which is older"
        else:
            taken = {host: other.app for other in there for host in other.hosts if host in one.hosts}
            for host, owner in taken.items():
                refused[one] = f"host {host} on port {one.port} is that of {owner}"
            if not taken:
                given.setdefault(one.port, []).append(one)
    return given, refused


def render(given, address="*", transparent=False):
    """The apps' part of HAProxy's configuration. given: {port: [Published]}"""
    lines = ["# Written by dodas-balancer from what Consul knows of the apps: changes are lost."]
    for port in sorted(given):
        apps = given[port]
        lines += ["", f"frontend port_{port}", f"    bind {address}:{port}" + (" transparent" if transparent else "")]
        lines += _mode(apps[0].mode)
        for one in apps:
            if one.hosts:
                lines.append(f"    use_backend {one.backend} if {{ hdr(host),field(1,:) -i {' '.join(one.hosts)} }}")
            else:
                lines.append(f"    default_backend {one.backend}")
        for one in apps:
            lines += ["", f"backend {one.backend}", *_mode(one.mode)[:1]]
            if one.clients:
                refuse = "http-request deny" if one.mode == "http" else "tcp-request content reject"
                lines.append(f"    {refuse} unless {{ src {' '.join(one.clients)} }}")
            lines.append(f"    balance {'roundrobin' if one.mode == 'http' else 'leastconn'}")
            lines += [f"    server {server}_{number} {server}:{number} check" for server, number in one.servers]
    return "\n".join(lines) + "\n"


def _mode(mode):
    return ["    mode http", "    option httplog", "    option forwardfor"] if mode == "http" else [
        "    mode tcp", "    option tcplog"
    ]  # fmt: skip


class Haproxy:
    """HAProxy in master-worker mode, with a configuration of two parts: the base, and the apps'."""

    def __init__(self, base, state, master):
        self.base, self.master = base, master
        self.path = Path(state) / "apps" / "apps.cfg"
        self.candidate = Path(state) / "candidate.cfg"

    def held(self):
        """{port: app that it was given to first}, as the configuration on disk has it."""
        found = re.finditer(r"^frontend port_(\d+)$.*?_backend (\S+)_\d+", self._text() or "", re.MULTILINE | re.DOTALL)
        return {int(one[1]): one[2] for one in found}

    def use(self, text):
        """Go on with `text` as the apps' part. Raises Rejected, and then nothing has changed; or NotRunning."""
        earlier = self._text()
        self.candidate.write_text(text, encoding="ascii")
        self._check()
        os.replace(self.candidate, self.path)
        try:
            self._reload()
        except Rejected:
            # The next start would fail with it.
            self.candidate.write_text(earlier or "", encoding="ascii")
            os.replace(self.candidate, self.path)
            raise

    def _text(self):
        try:
            return self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    def _check(self):
        command = ["haproxy", "-c", "-f", self.base, "-f", str(self.candidate)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            raise Rejected("haproxy -c: not finished in 30 s") from None
        if done.returncode:
            raise Rejected(_alerts(done.stderr) or f"haproxy -c: exit status {done.returncode}")

    def _reload(self):
        try:
            before = self._workers()
            answer = self._ask("reload")
        except OSError as exc:
            raise NotRunning(f"HAProxy does not run: {self.master}: {exc.strerror or exc}") from None
        if "Success=1" in answer:  # versions before 2.7 say nothing
            return
        deadline = time.monotonic() + RELOAD
        while "Success=0" not in answer and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the master starts itself anew
                if self._workers() - before:
                    return
            time.sleep(0.05)
        raise Rejected(_alerts(answer) or f"HAProxy has no new worker after {RELOAD} s: its log says why")

    def _workers(self):
        """Process ids of the workers, also of those that only finish what they have."""
        return {int(line.split()[0]) for line in self._ask("show proc").splitlines() if re.match(r"\d+\s+worker", line)}

    def _ask(self, command):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as master:
            master.settimeout(RELOAD)
            master.connect(self.master)
            master.sendall(f"{command}\n".encode())
            master.shutdown(socket.SHUT_WR)  # it would wait for more
            answer = b""
            while part := master.recv(65536):
                answer += part
        return answer.decode(errors="replace")


def _alerts(text):
    """What HAProxy found wrong, in one line."""
    found = [line.partition(") : ")[2] or line for line in text.splitlines() if "[ALERT]" in line]
    return "; ".join(line.strip() for line in found)[:1000]


def is_free(address, port):
    """Whether other programs leave HAProxy the port of that address, which the host need not have at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        try:
            probe.bind(("" if address == "*" else address, port))
        except OSError as exc:
            return exc.errno != errno.EADDRINUSE
    return True


class Balancer:
    """Keeps HAProxy's configuration equal to what Consul knows."""

    def __init__(self, settings):
        self.settings = settings
        self.consul = Consul(settings.consul, settings.token_file)
        self.haproxy = Haproxy(settings.base, settings.state, settings.master)
        self.status = Path(settings.state) / "status.json"
        self.reserved = {int(port): whose for port, whose in settings.reserved.items()}
        self.loaded = None  # what HAProxy runs with, as far as we know
        self.rejected = {}  # what it did not take: (why, when to try it again) by text
        self.shown = self._earlier()
        self.refused, self.error, self.said = {}, "", None

    def run(self, ended):
        """Work until `ended` is set."""
        changed = threading.Event()
        # Services come and go; their checks, and those of hosts, change.
        for path in ("/v1/catalog/services", "/v1/health/state/any"):
            Watch(self.consul, path, changed).start()
        while not ended.is_set():
            if changed.wait(0.5):
                ended.wait(SETTLE)
                changed.clear()
                self.round()

    def round(self):
        """Read, decide, and tell HAProxy where something is new; an error changes nothing."""
        try:
            wanted, refused = self._read()
            given, more = assign(wanted, self.haproxy.held(), self.reserved, self._is_free)
            self.refused = {**refused, **{f"{one.app} port {one.port}": f"not published: {more[one]}" for one in more}}
            self._use(given)
            self.error = ""
        except (Unreachable, Rejected, NotRunning, OSError) as exc:
            self.error = str(exc)
        self._say()

    def _read(self):
        """(what apps publish, {app: why it cannot be})"""
        wanted, refused = [], {}
        _index, names = self.consul.get("/v1/catalog/services")
        for name in sorted(names):
            _index, entries = self.consul.get(f"/v1/health/service/{urllib.parse.quote(name, safe='')}")
            try:
                wanted += published(name, entries, self.settings.group) if entries else []
            except Refused as exc:
                refused[name if NAME.fullmatch(name) else repr(name)] = f"not published: {exc}"
        return wanted, refused

    def _is_free(self, port):
        return is_free(self.settings.address, port)

    def _use(self, given):
        text = render(given, self.settings.address, self.settings.transparent)
        if text == self.loaded:
            return
        why, retry = self.rejected.get(text, ("", 0))
        if time.monotonic() < retry:
            raise Rejected(why)
        try:
            self.haproxy.use(text)
            self.loaded, self.rejected = text, {}
        except Rejected as exc:
            why = f"the last good configuration stays: {exc}"
            self.rejected = {text: (why, time.monotonic() + RETRY)}
            raise Rejected(why) from None
        self.shown = [one.describe() for port in sorted(given) for one in given[port]]

    def _earlier(self):
        """What was published when this program last ran."""
        try:
            return json.loads(self.status.read_text(encoding="ascii"))["published"]
        except (OSError, ValueError, KeyError):
            return []

    def _say(self):
        """Write status.json, and log what is new in it."""
        lines = {f"{one['app']} port {one['port']}": ", ".join(one["servers"]) or "no instance" for one in self.shown}
        lines.update(self.refused)
        if self.error:
            lines["(balancer)"] = self.error
        if lines == self.said:
            return
        before = self.said or {}
        for key in sorted(lines.keys() | before.keys()):
            if lines.get(key) != before.get(key):
                log(f"{key}: {lines.get(key, 'gone')}")
        self.said = lines
        status = {"published": self.shown, "refused": self.refused, "error": self.error}
        temporary = self.status.with_suffix(".new")
        temporary.write_text(json.dumps(status, indent=2) + "\n", encoding="ascii")
        os.replace(temporary, self.status)


def main(arguments):
    if len(arguments) != 1:
        sys.exit("usage: dodas_balancer.py SETTINGS")
    settings = Settings(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    Balancer(settings).run(ended)


if __name__ == "__main__":
    main(sys.argv[1:])

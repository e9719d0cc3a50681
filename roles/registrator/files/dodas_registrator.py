#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The registrator: what Marathon runs is in Consul's catalogue, with its health.

    dodas_registrator.py CONFIG

Several may run; one leads, by a lock in Consul. It follows Marathon's events, and after an event, when it has connected
again and every `interval` seconds it makes the catalogue equal to what Marathon says. A task is a service on the node
AGENT-apps: no Consul agent owns that node, so none takes the service away as one that it does not know.

While Marathon does not answer, nothing is removed: what is known stays, but for the tasks on hosts that Consul finds
dead, which become critical. Standard library only, Python 3.9.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import threading
import time
import urllib.parse
from pathlib import Path

TIMEOUT = 5  # seconds for an answer
CONNECT = 2  # seconds for a connection
PULSE = 3  # seconds between two signs of life
SESSION_TTL = 10  # seconds without one after which Consul gives the lock to another; Consul takes no less
LOCK_DELAY = 1  # seconds that Consul keeps the lock of one that died from the others
QUIET = 60  # seconds without a line after which an event stream is taken for dead
TOGETHER, LONGEST = 0.2, 2  # seconds in which events that belong together arrive, at least and at most
AGAIN = 1  # seconds until something that failed is tried again
DOUBT = 2  # seconds for which Marathon must say that it has no task at all

MARK = {"managed-by": "dodas-registrator"}  # meta of our nodes
SERVICE = "registrator"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
META = re.compile(r"(?!consul)[A-Za-z0-9_-]{1,128}")
META_VALUE, META_PAIRS = 512, 64  # characters of a value, and values, that Consul takes
# States of tasks that have a process. Others have none yet, or none any more.
SHOWN = ("TASK_RUNNING", "TASK_KILLING", "TASK_UNREACHABLE")


class Trouble(Exception):
    """A server did not answer."""


class Refused(Trouble):
    """A server answered that it will not. status: of HTTP"""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


class Log:
    """Lines on standard output; what goes on being so is said once."""

    def __init__(self):
        self._last = {}

    def __call__(self, message, topic=None):
        """Say a message; with a topic, only when it is another one than the last on it."""
        if topic is None or self._last.get(topic) != message:
            print(message, flush=True)
        if topic is not None:
            self._last[topic] = message


log = Log()


def connect(url, context, timeout):
    """A connection to `scheme://host:port`, which notices in about five seconds when the other host is gone.

    timeout: seconds that it may be silent
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=CONNECT, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=CONNECT)
    connection.connect()
    connection.sock.settimeout(timeout)
    for option, value in ((socket.TCP_KEEPIDLE, 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


class Consul:
    """The HTTP API of the host's agent."""

    def __init__(self, url, token):
        self.url = url
        self.headers = {"X-Consul-Token": token} if token else {}

    def call(self, method, path, body=None, wait=0, **query):
        """The answer's value, and its index for the next question; the value is None for what is not there (404).

        body: JSON, or a text as it is
        wait: seconds that Consul may take to say that something is another than at query's `index`
        Raises Trouble, and Refused for a status that says no.
        """
        if wait:
            query["wait"] = f"{wait}s"
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        try:
            connection = connect(self.url, None, wait * 17 / 16 + TIMEOUT)  # Consul adds up to a sixteenth
            with contextlib.closing(connection):
                connection.request(method, target, content, self.headers)
                answer = connection.getresponse()
                content = answer.read()
            if answer.status == 404:
                return None, 0
            if answer.status != 200:
                reason = content.decode(errors="replace").strip()[:300]
                raise Refused(f"Consul: {method} {path}: HTTP {answer.status}: {reason}", answer.status)
            return json.loads(content or "null"), int(answer.headers.get("X-Consul-Index") or 0)
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise Trouble(f"Consul: {self.url}: {exc}") from exc

    def get(self, path, **query):
        """What is at a path."""
        return self.call("GET", path, **query)[0]

    def put(self, path, body=None, **query):
        """What Consul answers to a change."""
        return self.call("PUT", path, body, **query)[0]


class Lock:
    """A lock in Consul that one process at a time holds, as long as it shows signs of life."""

    def __init__(self, consul, key, name):
        self.consul, self.path, self.name = consul, f"/v1/kv/{key}", name
        self.session = None
        self.until = 0.0  # when Consul may give it away (monotonic)
        self.holder = ""

    @property
    def held(self):
        """Whether it is ours for certain."""
        return self.session is not None and time.monotonic() < self.until

    def acquire(self):
        """Returns when the lock is ours. Raises Trouble."""
        self.release()
        self._forget_earlier_life()
        index = 0
        while True:
            entry, index = self.consul.call("GET", self.path, wait=10, index=index)
            if entry and entry[0].get("Session"):
                self.holder = base64.b64decode(entry[0]["Value"] or "").decode(errors="replace")
                log(f"stands by, {self.holder} leads", "role")
                continue
            began = time.monotonic()
            lasting = {"Name": self._session_name(), "TTL": f"{SESSION_TTL}s", "LockDelay": f"{LOCK_DELAY}s"}
            session = self.consul.put("/v1/session/create", lasting)["ID"]
            if self.consul.put(self.path, self.name, acquire=session):
                self.holder, self.until, self.session = self.name, began + SESSION_TTL, session
                log("leads", "role")
                return
            self.consul.put(f"/v1/session/destroy/{session}")
            index = 0  # nothing says when Consul's delay is over
            time.sleep(AGAIN)

    def renew(self):
        """A sign of life, of which Consul may say that it comes too late."""
        session, began = self.session, time.monotonic()
        if session is None:
            return
        try:
            if self.consul.put(f"/v1/session/renew/{session}") is None:
                self.session = None
            else:
                self.until = began + SESSION_TTL
        except Trouble as exc:
            log(str(exc), "consul")

    def release(self):
        """Give it back, if it is ours; without Consul it goes by itself."""
        session, self.session = self.session, None
        if session:
            with contextlib.suppress(Trouble):
                self.consul.put(self.path, self.name, release=session)
                self.consul.put(f"/v1/session/destroy/{session}")

    def _forget_earlier_life(self):
        """One of our name that was killed needs its lock no more."""
        for one in self.consul.get("/v1/session/list") or []:
            if one["Name"] == self._session_name():
                self.consul.put(f"/v1/session/destroy/{one['ID']}")

    def _session_name(self):
        return f"dodas-registrator {self.name}"


class Marathon:
    """The HTTP API of whichever of several Marathons answers; those that do not lead ask the one that does."""

    def __init__(self, urls, ca_file="", user="", password=""):
        self.urls = [url.rstrip("/") for url in urls]
        secure = any(url.startswith("https:") for url in self.urls)
        self.context = ssl.create_default_context(cafile=ca_file or None) if secure else None
        self.headers = {}
        if user:
            self.headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"

    def get(self, path):
        """What is at a path. Raises Trouble with the reasons of all of them."""
        with contextlib.closing(self._ask(path, "application/json", TIMEOUT)) as connection:
            try:
                return json.loads(connection.answer.read())
            except (OSError, ValueError, http.client.HTTPException) as exc:
                raise Trouble(f"Marathon: {self.urls[0]}{path}: {exc}") from exc

    def events(self):
        """A connection whose `answer` is the stream of events."""
        return self._ask("/v2/events", "text/event-stream", QUIET)

    def _ask(self, path, accept, timeout):
        reasons = []
        for url in self.urls:
            try:
                connection = self._request(url, path, accept, timeout)
                self.urls = [url, *(one for one in self.urls if one != url)]
                return connection
            except Refused as exc:
                if exc.status == 401:  # the others will say the same
                    raise
                reasons.append(str(exc))
            except (OSError, http.client.HTTPException) as exc:
                reasons.append(f"{url}: {exc}")
        raise Trouble(f"Marathon does not answer: {'; '.join(reasons)}")

    def _request(self, url, path, accept, timeout, hops=2):
        connection = connect(url, self.context, timeout)
        try:
            connection.request("GET", path, headers={**self.headers, "Accept": accept})
            connection.answer = connection.getresponse()
            status = connection.answer.status
            if status == 200:
                return connection
            if status not in (302, 307, 308) or not hops:
                reason = connection.answer.read(300).decode(errors="replace").strip()
                raise Refused(f"{url}{path}: HTTP {status}: {reason}", status)
            leader = urllib.parse.urlsplit(urllib.parse.urljoin(url, connection.answer.headers.get("Location", "")))
        except BaseException:
            connection.close()
            raise
        connection.close()
        if leader.scheme != urllib.parse.urlsplit(url).scheme or not leader.hostname:
            raise Refused(f"{url}{path}: leads to {leader.geturl()}, which is not asked", status)
        return self._request(f"{leader.scheme}://{leader.netloc}", path, accept, timeout, hops - 1)


class Hosts:
    """The hosts that Consul knows: {name: address}, and the names of those that are dead."""

    def __init__(self, addresses, dead=()):
        self.addresses = addresses
        self.dead = set(dead)
        self._names = {address: name for name, address in addresses.items()}

    def find(self, host):
        """Name and address of a host as Mesos names it: by address, name, or name in a domain. None for an unknown."""
        if host in self._names:
            return self._names[host], host
        with contextlib.suppress(ValueError):
            return f"ip-{re.sub('[.:]', '-', ipaddress.ip_address(host).exploded)}", host
        short = host.partition(".")[0]
        for name in (host, short):
            if name in self.addresses:
                return name, self.addresses[name]
        try:
            return short, socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
        except OSError:
            return None


def service_name(app):
    """The name of an app's service; empty for none."""
    return app.get("labels", {}).get("consul", app["id"].rpartition("/")[2])


def health(app, task, before):
    """Status and reason of a running task as Consul has them. before: what they were, None for a new task"""
    state = task.get("state", "TASK_RUNNING")
    if state != "TASK_RUNNING":
        return "critical", "is being stopped" if state == "TASK_KILLING" else "its host is not reached by Mesos"
    checks = app.get("healthChecks") or []
    if not checks:
        return "passing", "runs, and has no health check"
    results = task.get("healthCheckResults") or []
    bad = [one for one in results if not one.get("alive")]
    if bad:
        return "critical", "; ".join(str(one.get("lastFailureCause") or "unhealthy") for one in bad)[:META_VALUE]
    if len(results) < len(checks):  # a Marathon that has just come to lead knows no results yet
        return before or ("critical", "was not checked yet")
    return "passing", "healthy"


def registrations(apps, hosts, known, reserved=()):
    """What the catalogue shall have: bodies for /v1/catalog/register by (node, id of the service).

    apps: as Marathon has them, with their tasks
    known: what it has now, in the same form
    reserved: names of services that no app may have
    """
    found = {}
    since = {}
    for one in known.values():
        meta = one["Service"]["Meta"]
        since.setdefault(meta.get("app"), []).append(meta.get("since", ""))
    for app in apps:
        name = service_name(app)
        if not name:
            continue
        if not NAME.fullmatch(name) or name in reserved:
            log(f"{app['id']}: {name!r} cannot be its name in Consul, set its label consul", f"name {app['id']}")
            continue
        first = min(filter(None, since.get(app["id"], [])), default=app.get("version", ""))
        for task in app.get("tasks") or []:
            if task.get("state", "TASK_RUNNING") not in SHOWN:
                continue
            place = hosts.find(task["host"])
            if place is None:
                log(f"{task['id']}: its host {task['host']} has no address", f"host {task['id']}")
                found.update({key: one for key, one in known.items() if key[1] == task["id"]})
                continue
            key = (f"{place[0]}-apps", task["id"])
            before = known[key]["Check"] if key in known else None
            status, output = health(app, task, before and (before["Status"], before["Output"]))
            if place[0] in hosts.dead:
                status, output = "critical", f"{place[0]} does not answer Consul"
            found[key] = registration(app, task, name, place, first, (status, output))
    return found


def registration(app, task, name, place, since, status):
    """One body for /v1/catalog/register."""
    host, address = place
    labels = app.get("labels", {})
    ports = task.get("ports") or []
    own = {"app": app["id"], "task": task["id"], "host": host, "ports": ",".join(map(str, ports)),
           "service_ports": ",".join(map(str, service_ports(app))), "since": since}  # fmt: skip
    fitting = [key for key, value in labels.items() if META.fullmatch(key) and len(value) <= META_VALUE]
    meta = {key: labels[key] for key in sorted(set(fitting) - set(own))[: META_PAIRS - len(own)]}
    groups = [one.strip() for one in labels.get("HAPROXY_GROUP", "").split(",") if one.strip()]
    service = {"ID": task["id"], "Service": name, "Address": address, "Port": ports[0] if ports else 0,
               "Tags": ["app", *groups], "Meta": {**meta, **own}}  # fmt: skip
    check = {"CheckID": f"health:{task['id']}", "Name": "health", "ServiceID": task["id"], "Status": status[0],
             "Output": status[1]}  # fmt: skip
    return {"Node": f"{host}-apps", "Address": address, "NodeMeta": MARK, "Service": service, "Check": check}


def service_ports(app):
    """The ports under which an app is published, in the order of its own."""
    container = app.get("container") or {}
    mappings = container.get("portMappings") or (container.get("docker") or {}).get("portMappings")
    if mappings:
        return [one.get("servicePort", 0) for one in mappings]
    return [one.get("port", 0) for one in app.get("portDefinitions") or []]


class Catalogue:
    """What Consul's catalogue has of ours."""

    def __init__(self, consul):
        self.consul = consul

    def read(self):
        """All of it, in the form of `registrations`, and the names of our nodes."""
        mark = ":".join(*MARK.items())
        nodes = {one["Node"]: one["Address"] for one in self.consul.get("/v1/catalog/nodes", **{"node-meta": mark})}
        found = {}
        for node, address in nodes.items():
            checks = {one["ServiceID"]: one for one in self.consul.get(f"/v1/health/node/{node}") or []}
            services = (self.consul.get(f"/v1/catalog/node/{node}") or {}).get("Services") or {}
            for name, one in services.items():
                check = checks.get(name, {"CheckID": "", "Name": "", "ServiceID": "", "Status": "", "Output": ""})
                service = {key: one[key] for key in ("ID", "Service", "Address", "Port", "Tags", "Meta")}
                check = {key: check[key] for key in ("CheckID", "Name", "ServiceID", "Status", "Output")}
                found[node, name] = {"Node": node, "Address": address, "NodeMeta": MARK, "Service": service,
                                     "Check": check}  # fmt: skip
        return found, set(nodes)

    def write(self, wanted, known, nodes):
        """Make it equal to `wanted`. What Consul refuses is said, and stops nothing else. Raises Trouble."""
        for key, one in wanted.items():
            if one != known.get(key):
                check = one["Check"]
                self._put("register", one, f"{one['Service']['Service']}: {check['Status']}: {check['Output']}")
        for node, name in known.keys() - wanted.keys():
            gone = known[node, name]["Service"]["Service"]
            self._put("deregister", {"Node": node, "ServiceID": name}, f"{gone}: gone")
        for node in nodes - {node for node, _name in wanted}:
            self._put("deregister", {"Node": node}, "no app is left here")

    def _put(self, what, body, message):
        name = body.get("ServiceID") or body.get("Service", {}).get("ID", "")
        try:
            self.consul.put(f"/v1/catalog/{what}", body)
            log(f"{body['Node']}: {name}: {message}")
        except Refused as exc:
            log(f"{body['Node']}: {name}: {exc}", f"refused {body['Node']} {name}")

    def hosts(self):
        """The hosts that Consul knows, but for ours that stand for apps."""
        nodes = self.consul.get("/v1/catalog/nodes")
        addresses = {one["Node"]: one["Address"] for one in nodes if not MARK.items() <= (one["Meta"] or {}).items()}
        return Hosts(addresses, self.dead()[0])

    def dead(self, index=0):
        """The names of hosts that Consul's members do not reach, and the index to wait for others."""
        wait = {"index": index, "wait": 30} if index else {}
        checks, index = self.consul.call("GET", "/v1/health/state/critical", **wait)
        return {one["Node"] for one in checks if one["CheckID"] == "serfHealth"}, index

    def mark_leader(self, leader, hosts):
        """Give the service `marathon` of the host that leads ("name:port") the tag `leader`, and take it from others.

        Only where its registration allows that (EnableTagOverride): a Consul agent would take it away again.
        """
        services = self.consul.get("/v1/catalog/service/marathon") or []
        place = hosts.find(leader.rpartition(":")[0])
        for one in services:
            tags = [tag for tag in one["ServiceTags"] or [] if tag != "leader"]
            if place and one["Node"] == place[0]:
                tags.append("leader")
            if one["ServiceEnableTagOverride"] and tags != (one["ServiceTags"] or []):
                service = {"ID": one["ServiceID"], "Service": "marathon", "Tags": tags, "Port": one["ServicePort"],
                           "Address": one["ServiceAddress"], "Meta": one["ServiceMeta"],
                           "EnableTagOverride": True}  # fmt: skip
                body = {"Node": one["Node"], "Address": one["Address"], "SkipNodeUpdate": True, "Service": service}
                self._put("register", body, "leads" if "leader" in tags else "does not lead")


class Registrator:
    """One process's part: waits for the lock, then keeps the catalogue until it loses it."""

    def __init__(self, config):
        self.consul = Consul(config["consul"]["url"], config["consul"].get("token", ""))
        self.marathon = Marathon(**config["marathon"])
        self.catalogue = Catalogue(self.consul)
        self.lock = Lock(self.consul, config.get("lock", "dodas/registrator/lock"), config["name"])
        self.interval = config.get("interval", 30)
        self.reserved = config.get("reserved", [])
        self.changed = threading.Event()  # there may be something to do
        self.empty_since = None  # since when Marathon says that it has no task at all (monotonic)
        self.health = ("critical", "starts")

    def run(self):
        """Until it is told to stop."""
        threading.Thread(target=self._pulse, daemon=True).start()
        try:
            while True:
                try:
                    self.health = ("passing", "stands by")
                    self.lock.acquire()
                    self._lead()
                except Trouble as exc:
                    log(str(exc), "consul")
                    self.health = ("critical", str(exc))
                    time.sleep(AGAIN)
        finally:
            self.lock.release()

    def _lead(self):
        stopped, streaming = threading.Event(), threading.Event()
        threading.Thread(target=self._follow_events, args=(stopped, streaming), daemon=True).start()
        threading.Thread(target=self._follow_hosts, args=(stopped,), daemon=True).start()
        try:
            while self.lock.held:
                self.changed.clear()
                began = time.monotonic()
                try:
                    wait = self._reconcile()
                    log("Marathon and Consul answer", "trouble")
                except Exception as exc:  # whatever it was, the next round may go better
                    reason = str(exc) if isinstance(exc, Trouble) else f"{type(exc).__name__}: {exc}"
                    log(reason, "trouble")
                    self.health = ("warning", reason)
                    wait = AGAIN
                took = time.monotonic() - began
                # Without events Marathon must be asked.
                self.changed.wait(wait if streaming.is_set() else min(wait, AGAIN))
                time.sleep(max(TOGETHER, min(took, LONGEST)))  # at most half of the time is spent on asking
            log("leads no more", "role")
        finally:
            stopped.set()

    def _reconcile(self):
        """Make the catalogue equal to what Marathon says; returns the seconds until it shall be done again at last."""
        known, nodes = self.catalogue.read()
        hosts = self.catalogue.hosts()
        try:
            apps = self.marathon.get("/v2/apps?embed=apps.tasks")["apps"]
        except (KeyError, TypeError):
            raise Trouble("Marathon: /v2/apps: the answer has no apps") from None
        except Trouble:
            self._note_the_dead(known, nodes, hosts)
            raise
        wanted = registrations(apps, hosts, known, self.reserved)
        if wanted or not known:
            self.empty_since = None
        else:
            self.empty_since = self.empty_since or time.monotonic()
            if time.monotonic() - self.empty_since < DOUBT:
                log("Marathon says that nothing runs any more: it is asked again", "empty")
                return AGAIN
        if not self.lock.held:
            raise Trouble("Consul: the lock is lost")
        self.catalogue.write(wanted, known, nodes)
        self.health = ("passing", f"leads: {len(wanted)} tasks of {len(apps)} apps")
        leader = self.marathon.get("/v2/leader")
        if isinstance(leader, dict) and leader.get("leader"):
            self.catalogue.mark_leader(leader["leader"], hosts)
        return self.interval

    def _note_the_dead(self, known, nodes, hosts):
        """Without Marathon: what is on a dead host does not answer."""
        wanted = {}
        for key, one in known.items():
            host = one["Service"]["Meta"].get("host", "")
            lost = {"Status": "critical", "Output": f"{host} does not answer Consul"}
            wanted[key] = {**one, "Check": {**one["Check"], **(lost if host in hosts.dead else {})}}
        if wanted and self.lock.held:
            self.catalogue.write(wanted, known, nodes)

    def _follow_events(self, stopped, streaming):
        while not stopped.is_set():
            try:
                with contextlib.closing(self.marathon.events()) as connection:
                    streaming.set()
                    self.changed.set()
                    while not stopped.is_set() and (line := connection.answer.readline()):
                        if line.startswith(b"data:"):
                            self.changed.set()
                log("Marathon ended its events", "events")
            except Exception as exc:  # whatever it was, they must be followed
                log(f"Marathon's events: {exc}", "events")
            streaming.clear()
            self.changed.set()
            stopped.wait(AGAIN)

    def _follow_hosts(self, stopped):
        before, index = None, 0
        while not stopped.is_set():
            try:
                dead, index = self.catalogue.dead(index)
                if dead != before:
                    before = dead
                    self.changed.set()
            except Exception as exc:
                log(f"Consul's hosts: {exc}", "hosts")
                index = 0
                stopped.wait(AGAIN)

    def _pulse(self):
        """Signs of life: for the lock, and for the service's own check at the host's agent."""
        while True:
            self.lock.renew()
            status, output = self.health
            if status == "passing" and self.lock.holder and not self.lock.held:
                output = f"stands by, {self.lock.holder} leads"
            body = {"Status": status, "Output": output}
            with contextlib.suppress(Trouble):  # not registered, or no Consul: its check will say so
                self.consul.put(f"/v1/agent/check/update/service:{SERVICE}", body)
            time.sleep(PULSE)


def stop(*_):
    """Leave whatever is being done: all of it can be done again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def main():
    parser = argparse.ArgumentParser(description="Keeps Consul's catalogue equal to what Marathon runs.")
    parser.add_argument("config", metavar="CONFIG", help="the configuration, a JSON file that only its user may read")
    given = parser.parse_args()
    path = Path(given.config)
    if os.stat(path).st_mode & 0o077:
        parser.error(f"{path}: others may read it, and it holds secrets")
    registrator = Registrator(json.loads(path.read_text(encoding="utf-8")))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    registrator.run()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The master: who leads, what agents and frameworks there are, and the operator's endpoints."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

from . import BUILD, VERSION, election, flags, maintenance, operator, registry, show, web
from .web import Reply

CAPABILITIES = ["AGENT_UPDATE", "AGENT_DRAINING", "QUOTA_V2"]
FRAMEWORK_SILENCE = 10.0  # after so many seconds without a word a framework counts as disconnected
FAILOVER = 604800.0


class Agent:
    """An agent that is registered; `said` is what it said last: {"tasks", "used"}."""

    def __init__(self, identity, info):
        self.id, self.info = identity, info
        self.registered, self.reregistered = time.time(), None
        self.seen = time.monotonic()
        self.connection = None
        self.token = secrets.token_urlsafe(24)
        self.said = {"tasks": [], "used": {}}

    @property
    def connected(self):
        return self.connection is not None

    @property
    def pid(self):
        return f"slave(1)@{self.info['ip']}:{self.info['port']}"

    @property
    def machine(self):
        return {"hostname": self.info["hostname"].lower(), "ip": self.info["ip"]}

    @property
    def tasks(self):
        return self.said["tasks"]


class Framework:
    """A scheduler. `completed` are tasks that have ended, `unreachable` those of lost agents."""

    def __init__(self, identity, body, recovered=False):
        self.id = identity
        self.registered, self.reregistered, self.unregistered = time.time(), None, None
        self.recovered = recovered
        self.seen = time.monotonic()
        self.completed, self.unreachable = {}, {}
        self.set(body)

    def set(self, body):
        self.name = body.get("name", "")
        self.principal = body.get("principal") or ""
        self.webui_url = body.get("webui_url") or ""
        self.hostname = body.get("hostname") or ""
        self.user = body.get("user") or "root"
        self.role = body.get("role") or "*"
        self.failover_timeout = float(body.get("failover_timeout", FAILOVER))
        self.seen = time.monotonic()

    @property
    def connected(self):
        return not self.recovered and time.monotonic() - self.seen < FRAMEWORK_SILENCE


class Master:
    """All that a master knows. What only the leader has is empty elsewhere."""

    def __init__(self, given):
        self.flags = given
        self.id = str(uuid.uuid4())
        self.started, self.elected = time.time(), None
        self.lock = threading.RLock()
        self.ending = threading.Event()
        self.agents, self.recovering = {}, {}
        self.frameworks, self.completed_frameworks = {}, []
        self.removed_frameworks = set()
        self.numbers = {"agent": 0, "framework": 0}
        self.counts = {}
        self.since = time.monotonic()  # when it began to lead
        known = flags.credentials(given.credentials) if given.credentials else {}
        acls = flags.json_or_file(given.acls, "acls") if given.acls else {}
        self.guard = web.Guard("mesos-master", given, known, acls)
        self.server = web.Server((given.ip or "0.0.0.0", given.port), self.answer)
        self.address = given.advertise_ip or given.ip or _own_address()
        self.port = int(given.advertise_port or given.port)
        given["hostname"] = given.hostname or (_name_of(self.address) if given.hostname_lookup else self.address)
        self.replica = registry.Replica(Path(given.work_dir, "replicated_log"))
        info = self.info()
        if given.zk:
            timeout = given.seconds("zk_session_timeout")
            me = f"log-replica(1)@{self.address}:{self.port}"
            self.group = election.Group(given.zk, timeout, self.elections, info, me)
        else:
            self.group = election.Fixed(info, leads=True)
        self.log = registry.Log(self.replica, given.quorum or 1, self.peers)
        self.registrar = None

    def info(self):
        """MasterInfo, as it is in ZooKeeper and in answers."""
        return {
            "id": self.id, "ip": _as_number(self.address), "port": self.port, "pid": self.pid,
            "hostname": self.flags.hostname, "version": VERSION,
            "address": {"hostname": self.flags.hostname, "ip": self.address, "port": self.port},
            "capabilities": [{"type": name} for name in CAPABILITIES],
        }  # fmt: skip

    @property
    def pid(self):
        return f"master@{self.address}:{self.port}"

    @property
    def leads(self):
        return self.elected is not None

    @property
    def recovered(self):
        return self.registrar is not None and self.registrar.recovered

    @property
    def document(self):
        """The registry."""
        return self.registrar.document if self.recovered else registry.EMPTY

    def peers(self):
        mine = f"{self.address}:{self.port}"
        return [one for one in self.group.replicas if one != mine]

    def count(self, name, by=1):
        self.counts[name] = self.counts.get(name, 0) + by

    # Life

    def run(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ending.set())
        if not self.flags.zk:
            self.replica.vote()
        self.server.start()
        self.group.start()
        print(f"Stand-in of a Mesos master started on {self.address}:{self.port}", file=sys.stderr, flush=True)
        if not self.flags.zk:
            self.elections()
        while not self.ending.wait(0.25):
            self.log.join()
            if self.recovered:
                self.watch()
        self.group.stop()

    def elections(self):
        """The leader has changed, or the masters there are."""
        with self.lock:
            if self.leads and not self.group.leads:
                self.fail("Lost leadership... committing suicide!", 1)
            if self.group.leads and not self.leads:
                self.elected, self.since = time.time(), time.monotonic()
                self.registrar = registry.Registrar(
                    self.log, self.flags.seconds("registry_fetch_timeout"),
                    self.flags.seconds("registry_store_timeout"), self.fail,
                )  # fmt: skip
                threading.Thread(target=self.recover, daemon=True).start()

    def fail(self, message, status=None):
        """End at once: with a status, or as a failed assertion does."""
        if status is None:
            flags.abort(message)
        print(message, file=sys.stderr, flush=True)
        os._exit(status)

    def recover(self):
        self.registrar.recover(lambda: self.leads and not self.ending.is_set())
        with self.lock:
            known = self.document["agents"]
            self.recovering = {key: info for key, info in known.items() if key not in self.agents}

    def watch(self):
        """What time brings: agents that are silent, frameworks that are gone, agents that have drained."""
        silence = self.flags.seconds("agent_ping_timeout") * self.flags.max_agent_ping_timeouts
        now = time.monotonic()
        with self.lock:
            lost = [agent for agent in self.agents.values() if now - agent.seen > silence]
            late = list(self.recovering) if now - self.since > self.flags.seconds("agent_reregister_timeout") else []
            gone = [f for f in self.frameworks.values() if now - f.seen > FRAMEWORK_SILENCE + f.failover_timeout]
            idle = [agent for agent in self.agents.values() if maintenance.has_drained(self, agent)]
        for agent in lost:
            self.mark_unreachable(agent)
        for key in late:
            self.registrar.update(lambda document, key=key: _make_unreachable(document, key))
            with self.lock:
                self.recovering.pop(key, None)
        for framework in gone:
            self.remove_framework(framework.id)
        for agent in idle:
            maintenance.drained(self, agent)

    def mark_unreachable(self, agent):
        self.count("slave_unreachable_scheduled")
        self.registrar.update(lambda document: _make_unreachable(document, agent.id))
        with self.lock:
            if self.agents.pop(agent.id, None) is None:
                return
            self.count("slave_unreachable_completed")
            self.count("slave_removals")
            self.count("slave_removals/reason_unhealthy")
            for task in agent.tasks:
                framework = self.frameworks.get(task["framework_id"])
                if framework and not show.ended(task):
                    framework.unreachable[task["id"]] = {**task, "agent": agent.id, "state": "TASK_UNREACHABLE"}

    def remove_agent(self, agent, reason):
        """It is not there any more, and was asked to go."""
        self.registrar.update(lambda document: document["agents"].pop(agent.id, None))
        with self.lock:
            self.agents.pop(agent.id, None)
            self.count("slave_removals")
            if reason:
                self.count(f"slave_removals/reason_{reason}")

    def remove_framework(self, identity):
        with self.lock:
            framework = self.frameworks.pop(identity, None)
            if framework is None:
                raise Reply(404, f"no framework {identity}")
            framework.unregistered = time.time()
            self.removed_frameworks.add(identity)
            self.completed_frameworks.append(framework)
            del self.completed_frameworks[: -self.flags.max_completed_frameworks]

    # Answers

    def answer(self, request):
        path = request.path
        if path == "/master" or path.startswith("/master/"):
            path = path[len("/master") :] or "/"
        if path.endswith(".json"):
            path = path[: -len(".json")]
        if path.startswith("/standin/"):
            return self.private(request, path)
        if path == "/redirect":
            return self.redirect("")
        open_paths = {"/health": lambda: Reply(), "/version": lambda: Reply(200, {k: BUILD[k] for k in sorted(BUILD)})}
        if path in open_paths:
            return open_paths[path]()
        handler = operator.ENDPOINTS.get(path)
        if handler is None:
            raise Reply(404, "")
        realm, local, function = handler
        self.guard.authenticate(request, realm)
        if not local and not self.leads:
            return self.redirect(request.target)
        return function(self, request)

    def redirect(self, target):
        leader = self.group.leader
        if leader is None:
            raise Reply(503, "No leader elected")
        address = leader["address"]
        return Reply(307, "", {"Location": f"//{address['hostname']}:{address['port']}{target}"})

    def private(self, request, path):
        """What stand-ins ask each other."""
        if path == "/standin/leader":
            leader = election.url(self.group.leader) if self.group.leader else None
            return Reply(200, {"leads": self.leads, "recovered": self.recovered, "leader": leader})
        if path == "/standin/log":
            if request.method == "PUT":
                body = request.json()
                return Reply(200, self.replica.write(body["version"], body["document"]))
            return Reply(200, self.replica.read())
        if not self.leads:
            return self.redirect(request.target)
        if not self.recovered:
            raise Reply(503, "Master has not finished recovery")
        if path == "/standin/agents":
            self.check_framework(request)
            with self.lock:
                return Reply(200, [self.offer(agent) for agent in self.agents.values()])
        if path == "/standin/frameworks" and request.method == "POST":
            return Reply(200, self.register_framework(request))
        if path.startswith("/standin/frameworks/") and request.method == "DELETE":
            self.check_framework(request)
            self.remove_framework(path.rpartition("/")[2])
            return Reply()
        name = path[len("/standin/") :]
        actions = {"register": self.register, "ping": self.ping, "unregister": self.unregister}
        if name not in actions:
            raise Reply(404)
        return actions[name](request, request.json())

    def offer(self, agent):
        """What a scheduler may know of an agent."""
        resources = {name: agent.info["resources"].get(name, 0) for name in ("cpus", "mem", "disk")}
        resources["ports"] = agent.info["resources"].get("ports", [])
        return {
            "id": agent.id, "hostname": agent.info["hostname"], "url": agent.info["url"],
            "active": maintenance.takes_tasks(self, agent), "attributes": agent.info["attributes"],
            "resources": resources, "used": agent.said["used"], "token": agent.token,
        }  # fmt: skip

    def check_framework(self, request):
        if self.flags.authenticate_frameworks or self.flags.authenticate_http_frameworks:
            given = request.credentials()
            if not given or not self.guard.right(given):
                raise Reply(401, "", {"WWW-Authenticate": 'Basic realm="mesos-master-scheduler"'})
            request.principal = given[0]

    def register_framework(self, request):
        self.check_framework(request)
        body = request.json()
        if request.principal is not None and body.get("principal") not in (None, "", request.principal):
            raise Reply(403, f"Framework principal '{body['principal']}' is not the one that is authenticated")
        request.principal = request.principal or body.get("principal")
        self.guard.authorize(request, "register_frameworks", body.get("role") or "*")
        identity = body.get("id")
        with self.lock:
            if identity in self.removed_frameworks:
                raise Reply(403, "Framework has been removed")
            known = self.frameworks.get(identity)
            if known:
                if known.recovered or not known.connected:
                    known.reregistered = time.time()
                known.recovered = False
                known.set(body)
            else:
                if not identity:
                    identity = f"{self.id}-{self.numbers['framework']:04d}"
                    self.numbers["framework"] += 1
                self.frameworks[identity] = Framework(identity, body)
        return {"id": identity}

    # Agents

    def check_agent(self, request):
        """Answers 401 where an agent's secret is wrong, 403 where it has none and needs one."""
        given = request.credentials()
        if given:
            if self.guard.known and not self.guard.right(given):
                raise Reply(401, {"error": "refused authentication"})
        elif self.flags.authenticate_agents:
            raise Reply(403, {"error": "agent is not authenticated"})

    def register(self, request, body):
        self.check_agent(request)
        identity, info = body.get("id"), body["info"]
        document = self.document
        if identity in document["gone"]:
            return Reply(200, {"shutdown": "Agent has been marked gone"})
        machine = {"hostname": info["hostname"].lower(), "ip": info["ip"]}
        if maintenance.mode(document, machine) == "DOWN":
            return Reply(200, {"shutdown": "Machine is `DOWN`"})
        self.replace(identity, info)
        admitted = identity is not None and identity in document["agents"]
        with self.lock:
            if not identity:
                identity = f"{self.id}-S{self.numbers['agent']}"
                self.numbers["agent"] += 1
        if not admitted or document["agents"][identity] != info:
            self.registrar.update(lambda document: _admit(document, identity, info))
        with self.lock:
            agent = self.agents.get(identity)
            self.recovering.pop(identity, None)
            if agent is None:
                agent = self.agents[identity] = Agent(identity, info)
                if body.get("id"):
                    agent.reregistered = time.time()
                self.count("slave_reregistrations" if body.get("id") else "slave_registrations")
            else:
                agent.reregistered = time.time()
                self.count("slave_reregistrations")
            agent.info, agent.connection = info, request.connection
            request.connection.closed.append(lambda: self.disconnected(agent, request.connection))
        self.hear(agent, body)
        return Reply(200, {"id": identity, "token": agent.token, **self.orders(agent)})

    def replace(self, identity, info):
        """A new agent where another one was: that one is gone."""
        with self.lock:
            old = [
                agent for agent in self.agents.values()
                if agent.id != identity and (agent.info["ip"], agent.info["port"]) == (info["ip"], info["port"])
            ]  # fmt: skip
        for agent in old:
            self.remove_agent(agent, "registered")

    def disconnected(self, agent, connection):
        with self.lock:
            if agent.connection is connection:
                agent.connection = None

    def ping(self, request, body):
        with self.lock:
            agent = self.agents.get(body["id"])
            if agent is None or agent.connection is not request.connection:
                raise Reply(410, {"error": "register again"})
        self.hear(agent, body)
        return Reply(200, self.orders(agent))

    def hear(self, agent, body):
        """Take in what an agent says of its tasks."""
        with self.lock:
            agent.seen = time.monotonic()
            agent.said = {"tasks": body["tasks"], "used": body["used"]}
            for task in body["tasks"]:
                framework = self.frameworks.get(task["framework_id"])
                if framework is None:
                    framework = self.framework_of(task)
                framework.unreachable.pop(task["id"], None)
                if show.ended(task):
                    framework.completed.setdefault(task["id"], {**task, "agent": agent.id})
                    for key in list(framework.completed)[: -self.flags.max_completed_tasks_per_framework]:
                        del framework.completed[key]

    def framework_of(self, task):
        """A framework that only its tasks are known of; a removed one stays removed."""
        for framework in self.completed_frameworks:
            if framework.id == task["framework_id"]:
                return framework
        framework = Framework(task["framework_id"], {}, recovered=True)
        self.frameworks[framework.id] = framework
        return framework

    def orders(self, agent):
        """What an agent has to do, as it should be and not as commands: it may hear it again."""
        with self.lock:
            found = {"removed": sorted({t["framework_id"] for t in agent.tasks} & self.removed_frameworks)}
            found.update(maintenance.orders(self, agent))
            return found

    def unregister(self, request, body):
        with self.lock:
            agent = self.agents.get(body["id"])
        if agent:
            self.remove_agent(agent, "unregistered")
        return Reply()


def _make_unreachable(document, identity):
    info = document["agents"].pop(identity, None)
    if info is not None:
        document["unreachable"][identity] = {"info": info, "since": time.time()}


def _admit(document, identity, info):
    document["unreachable"].pop(identity, None)
    document["agents"][identity] = info


def _own_address():
    """The address that this machine's name has, or loopback."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _name_of(address):
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return address


def _as_number(address):
    """An IPv4 address as the 32 bits of its network order, read as this machine does."""
    try:
        return int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)
    except ValueError:
        return 0


def main(arguments=None):
    given = flags.read("mesos-master", flags.MASTER, sys.argv[1:] if arguments is None else arguments, os.environ)
    if given.zk:
        try:
            election.parse(given.zk)
        except ValueError as exc:
            flags.die(f"Failed to create a master contender: {exc}")
    if given.registry not in ("replicated_log", "in_memory"):
        flags.die(f"'{given.registry}' is not a supported option for registry persistence")
    if not given.work_dir:
        flags.die("--work_dir needed for replicated log based registry")
    if given.zk and given.quorum is None:
        flags.die("Need to specify --quorum for replicated log based registry when using ZooKeeper")
    if given.quorum is not None and given.quorum < 1:
        flags.die("Invalid value for --quorum: it must be at least 1")
    authenticates = given.authenticate_agents or given.authenticate_frameworks or given.authenticate_http_readonly
    if (authenticates or given.authenticate_http_readwrite) and not given.credentials:
        flags.die("--credentials needed where authentication is required")
    try:
        master = Master(given)
    except OSError as exc:
        flags.die(f"Failed to initialize: {exc}")
    master.run()

# SPDX-License-Identifier: Apache-2.0
"""The agent: registers with the leading master, and runs tasks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

from . import BUILD, VERSION, election, flags, operator, show, values, web
from .task import KEPT, Task
from .web import Reply

ISOLATORS = {
    "appc/runtime", "cgroups/all", "cgroups/blkio", "cgroups/cpu", "cgroups/cpuset", "cgroups/devices",
    "cgroups/hugetlb", "cgroups/mem", "cgroups/net_cls", "cgroups/net_prio", "cgroups/perf_event", "cgroups/pids",
    "disk/du", "disk/xfs", "docker/runtime", "docker/volume", "environment_secret", "filesystem/linux",
    "filesystem/posix", "filesystem/shared", "gpu/nvidia", "linux/capabilities", "linux/devices", "linux/nnp",
    "linux/seccomp", "namespaces/ipc", "namespaces/pid", "network/cni", "network/port_mapping", "network/ports",
    "posix/cpu", "posix/disk", "posix/mem", "posix/rlimits", "volume/csi", "volume/host_path", "volume/image",
    "volume/sandbox_path", "volume/secret",
}  # fmt: skip
CONTROLLERS = {"cgroups/cpu": "cpu", "cgroups/mem": "memory", "cgroups/pids": "pids"}
# What an executor takes besides its task.
EXECUTOR = {"cpus": 0.1, "mem": 32.0}


class Agent:
    """All that an agent knows. `link` is its word with the master."""

    def __init__(self, given, attributes, resources):
        self.flags = given
        self.as_process = os.environ.get("STANDIN_RUNTIME") == "process"
        self.started = time.time()
        self.lock = threading.RLock()
        self.ending = threading.Event()
        self.status = 0
        self.shutting = False
        self.idle = False  # the operator wants no tasks here
        self.id, self.token = None, ""
        self.tasks = {}
        known = flags.credentials(given.http_credentials, "http_credentials") if given.http_credentials else {}
        self.guard = web.Guard("mesos-agent", given, known)
        self.credential = flags.credential(given.credential) if given.credential else None
        self.server = web.Server((given.ip or "0.0.0.0", given.port), self.answer)
        self.address = given.advertise_ip or given.ip or _own_address()
        self.port = int(given.advertise_port or given.port)
        given["hostname"] = given.hostname or _own_name(self.address, given.hostname_lookup)
        self.info = {
            "hostname": given.hostname, "ip": self.address, "port": self.port,
            "url": f"http://{self.address}:{self.port}", "attributes": attributes, "resources": resources,
        }  # fmt: skip
        self.meta = Path(given.work_dir, "meta")
        self.records = None
        self.docker_program, self.has_docker, self.is_podman, self.auth = given.docker, False, False, None
        self.limited = _limits_work(given.cgroups_hierarchy)
        self.link = Link(self)

    # Life

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: self.ending.set())
        signal.signal(signal.SIGINT, lambda *_: self.ending.set())
        signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=self.shut_down, daemon=True).start())
        self.prepare_docker()
        self.recover()
        if self.flags.recover == "cleanup":
            self.shut_down()
            return self.status
        self.server.start()
        print(f"Stand-in of a Mesos agent started on {self.address}:{self.port}", file=sys.stderr, flush=True)
        self.link.start()
        while not self.ending.wait(1):
            self.forget_old()
        for one in list(self.tasks.values()):
            with one.lock:  # what is being started has its record, by which the next agent finds it
                pass
        self.link.stop()
        return self.status

    def shut_down(self):
        """End all tasks, leave the cluster, and forget the id."""
        with self.lock:
            if self.shutting:
                return
            self.shutting = True
            alive = [one for one in self.tasks.values() if not one.ended]
        for one in alive:
            one.stop(message="Executor terminated: the agent shuts down")
        graces = [one.record["stopping"]["grace"] for one in alive if not one.ended]
        late = time.monotonic() + 30 + max(graces, default=0)
        while any(not one.ended for one in alive) and time.monotonic() < late:
            time.sleep(0.05)
        self.link.unregister()
        (self.meta / "slaves" / "latest").unlink(missing_ok=True)
        self.ending.set()

    def fail(self, message):
        """End with status 1, whatever thread finds out."""
        print(message, file=sys.stderr, flush=True)
        self.status = 1
        self.ending.set()

    def recover(self):
        """Take up what the agent before this one has left in work_dir, or end because it was another one."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        latest, mark = self.meta / "slaves" / "latest", self.meta / "boot_id"
        rebooted = mark.exists() and mark.read_text(encoding="ascii").strip() != boot
        if latest.exists():
            folder = latest.resolve()
            old = json.loads((folder / "slave.info").read_text(encoding="utf-8"))
            reason = self.incompatible(old["info"])
            if reason is None:
                self.id = old["id"]
                self.use(folder)
            elif not rebooted:
                flags.die(
                    f"Failed to perform recovery: Incompatible agent info detected.\n{reason}\n"
                    f"Old agent info: {json.dumps(old['info'])}\nNew agent info: {json.dumps(self.info)}\n"
                    f"To start as a new agent: rm -f {latest}"
                )
        self.kill_orphans()
        self.meta.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{boot}\n", encoding="ascii")

    def incompatible(self, old):
        """Why this agent cannot be the one that it was, by the reconfiguration policy; None when it can."""
        new = {**self.info, "url": ""}
        old = {**old, "url": ""}
        if self.flags.reconfiguration_policy == "equal":
            return None if new == old else "Configuration change not permitted under 'equal' policy"
        for name in ("hostname", "port"):
            if new[name] != old[name]:
                return f"Configuration change not permitted under 'additive' policy: {name} changed"
        if not values.covers(new["resources"], old["resources"]):
            return "Configuration change not permitted under 'additive' policy: resources are missing"
        if any(new["attributes"].get(name) != value for name, value in old["attributes"].items()):
            return "Configuration change not permitted under 'additive' policy: attributes are missing"
        return None

    def use(self, folder):
        """Keep records in `folder`, and go on with the tasks that are there."""
        self.records = folder / "tasks"
        self.records.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.records.glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            self.tasks[record["id"]] = Task(self, record)
        for one in self.tasks.values():
            one.resume()

    def registered(self, identity, token):
        """The master has given an id."""
        with self.lock:
            self.token = token
            folder = self.meta / "slaves" / identity
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"id": identity, "info": self.info})
            (folder / "slave.info").write_text(content, encoding="utf-8")
            latest = self.meta / "slaves" / "latest"
            latest.unlink(missing_ok=True)
            latest.symlink_to(identity)
            if self.id != identity:
                print(f"Registered with agent ID {identity}", file=sys.stderr, flush=True)
                self.use(folder)
            self.id = identity

    def changed(self):
        """Something that the master should know has happened."""
        self.link.woken.set()

    def forget_old(self):
        with self.lock:
            for one in [one for one in self.tasks.values() if one.ended]:
                if time.time() - one.record["ended"] > KEPT:
                    one.forget()
                    del self.tasks[one.id]

    # What runs containers

    def prepare_docker(self):
        """Whether the container program is there; ends the agent when it should be and is not."""
        if self.as_process or "docker" not in self.flags.containerizers.split(","):
            return
        program = shutil.which(self.flags.docker)
        if program is None:
            flags.die(
                "Failed to create a containerizer: Could not create DockerContainerizer: Failed to create docker: "
                f"'{self.flags.docker}' was not found"
            )
        self.docker_program, self.has_docker = program, True
        self.is_podman = "podman" in self.docker("--version").stdout.lower()
        if self.flags.docker_config:
            content = flags.json_or_file(self.flags.docker_config, "docker_config")
            folder = Path(self.flags.runtime_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.auth = folder / "docker_config.json"
            with open(os.open(self.auth, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file)

    def docker(self, *words, timeout=60):
        """Run the container program; a CompletedProcess, also when it does not come back in time."""
        command = [self.docker_program, *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return subprocess.CompletedProcess(command, 125, "", str(exc))

    def kill_orphans(self):
        """Containers of earlier agents of this work_dir that nobody watches any more."""
        if not self.has_docker or not self.flags.docker_kill_orphans:
            return
        label = f"label=mesos_work_dir={self.flags.work_dir}"
        known = {one.container for one in self.tasks.values()}
        listed = self.docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").stdout.split()
        orphans = [name for name in listed if name not in known]
        if orphans:
            self.docker("rm", "--force", *orphans)

    def authfile(self):
        return ["--authfile", str(self.auth)] if self.auth and self.is_podman else []

    def limits(self, wants):
        """Options that limit a container, where the machine can."""
        if not self.limited:
            return ["--cgroups=disabled"] if self.is_podman else []
        found = ["--cpu-shares", str(max(2, int(wants["cpus"] * 1024))), "--memory", f"{max(4, int(wants['mem']))}m"]
        return [*found, "--cpus", str(wants["cpus"])] if self.flags.cgroups_enable_cfs else found

    def outside(self):
        """What puts a task outside of the agent's unit, so that it stays when the unit stops."""
        if self.as_process or not self.flags.systemd_enable_support:
            return []
        return ["systemd-run", "--quiet", "--scope", "--collect", "--slice=mesos_executors.slice"]

    # Tasks

    def launch(self, body):
        """Start a task; answers 409 when it cannot be here."""
        for name, kind in (("id", str), ("framework_id", str), ("app_id", str), ("definition", dict)):
            if not isinstance(body.get(name), kind):
                raise Reply(400, {"message": f"{name}: expecting a {kind.__name__}"})
        with self.lock:
            if self.id is None or self.shutting or self.idle or self.ending.is_set():
                raise Reply(409, {"message": "the agent takes no tasks"})
            if body["id"] in self.tasks:
                raise Reply(409, {"message": f"task {body['id']} is known"})
            run = str(uuid.uuid4())
            sandbox = Path(
                self.flags.work_dir, "slaves", self.id, "frameworks", body["framework_id"], "executors", body["id"],
                "runs", run,
            ).absolute()  # fmt: skip
            one = Task(self, {
                "id": body["id"], "framework_id": body["framework_id"], "app_id": body["app_id"],
                "definition": body["definition"], "ports": list(body.get("ports") or []),
                "env": dict(body.get("env") or {}), "run": run, "sandbox": str(sandbox), "state": "TASK_STAGING",
                "message": "", "statuses": [], "started": None, "ended": None, "stopping": None, "pid": None,
                "born": None,
            })  # fmt: skip
            self.check_room(one)
            self.tasks[one.id] = one
        one.start()
        return Reply(201, {"id": one.id})

    def check_room(self, one):
        have, used, wants = self.info["resources"], self.used(), one.wants
        for name, value in wants.items():
            left = have.get(name, 0) - used[name]
            if value > left + 1e-6:
                raise Reply(409, {"message": f"{name}: {value:g} asked for, {left:g} left"})
        taken = set(used["ports"])
        for port in one.record["ports"]:
            if port in taken or not values.includes(have.get("ports", []), port):
                raise Reply(409, {"message": f"ports: {port} is not free"})

    def used(self):
        """What tasks have of the resources; ports one by one."""
        with self.lock:
            parts = [one.used for one in self.tasks.values()]
        found = {name: round(sum(part.get(name, 0) for part in parts), 6) for name in values.SCALARS}
        return {**found, "ports": sorted(port for part in parts for port in part.get("ports", ()))}

    def obey(self, orders):
        """Do what the master says with each answer."""
        self.idle = bool(orders.get("idle"))
        with self.lock:
            alive = [one for one in self.tasks.values() if not one.ended]
        for one in alive:
            if one.record["framework_id"] in orders.get("removed", ()):
                one.stop(message="Framework has been removed")
            elif "drain" in orders:
                grace, limit = one.definition.get("taskKillGracePeriodSeconds"), orders["drain"]["grace"]
                if limit is not None:
                    grace = min(limit, self.flags.seconds("executor_shutdown_grace_period") if grace is None else grace)
                one.stop(grace, "The agent is drained")
        if "shutdown" in orders:
            print(f"Asked to shut down by the master: {orders['shutdown']}", file=sys.stderr, flush=True)
            self.shut_down()

    # Answers

    def answer(self, request):
        path = request.path
        if path == "/slave(1)" or path.startswith("/slave(1)/"):
            path = path[len("/slave(1)") :] or "/"
        if path.startswith("/standin/tasks"):
            return self.private(request, path)
        if path == "/health":
            return Reply()
        if path == "/version":
            return Reply(200, {key: BUILD[key] for key in sorted(BUILD)})
        handler = ENDPOINTS.get(path)
        if handler is None:
            raise Reply(404)
        realm, function = handler
        self.guard.authenticate(request, realm)
        with self.lock:
            return Reply(200, function(self, request))

    def private(self, request, path):
        if not (self.token and web.token_of(request) == self.token):
            self.guard.authenticate(request, "readwrite")
        name = urllib.parse.unquote(path[len("/standin/tasks") :].lstrip("/"))
        if request.method == "POST" and not name:
            return self.launch(request.json())
        if request.method == "GET" and not name:
            with self.lock:
                return Reply(200, [one.told() for one in self.tasks.values()])
        if request.method == "DELETE" and name:
            with self.lock:
                one = self.tasks.get(name)
            if one is None:
                raise Reply(404, {"message": f"no task {name}"})
            grace = request.query.get("grace")
            one.stop(None if grace is None else float(grace), "Killed by its framework")
            return Reply(202)
        raise Reply(404)


class Link(threading.Thread):
    """The agent's connection to the leading master: one that stays, so that the master sees when it breaks."""

    def __init__(self, agent):
        super().__init__(daemon=True)
        self.agent = agent
        self.woken = threading.Event()
        self.detector = election.detector(agent.flags.master, agent.flags.seconds("zk_session_timeout"), self.look)
        self.client = None
        self.closed = False

    def start(self):
        self.detector.start()
        super().start()

    def stop(self):
        self.closed = True
        self.detector.stop()
        if self.client:
            self.client.close()

    def look(self):
        """Another master leads: the word with the one before is over."""
        if self.client:
            self.client.close()
        self.woken.set()

    def run(self):
        while not self.closed and not self.agent.ending.is_set():
            leader = self.detector.leader
            if leader is not None and not self.agent.shutting:
                with contextlib.suppress(OSError):
                    self.talk(election.url(leader))
            self.woken.wait(0.5)
            self.woken.clear()

    def talk(self, url):
        """Register, and tell what happens until the connection breaks."""
        agent = self.agent
        self.client = web.Client(url, 5, agent.credential)
        try:
            status, answer, headers = self.client.call("POST", "/standin/register", self.word(info=agent.info))
            if status == 307:
                self.client.close()
                self.client = web.Client(f"http:{headers['Location']}", 5, agent.credential)
                status, answer, _ = self.client.call("POST", "/standin/register", self.word(info=agent.info))
            if status == 401:
                agent.fail(f"Master {url} refused authentication")
            if status == 200 and "shutdown" in answer:
                agent.obey(answer)
            elif status == 200:
                agent.registered(answer["id"], answer["token"])
                while status == 200 and not agent.ending.is_set() and not self.closed:
                    agent.obey(answer)
                    self.woken.wait(1)
                    self.woken.clear()
                    status, answer, _ = self.client.call("POST", "/standin/ping", self.word())
        finally:
            self.client.close()

    def word(self, **more):
        agent = self.agent
        with agent.lock:
            tasks = [one.told_master() for one in agent.tasks.values()]
            return {"id": agent.id, "tasks": tasks, "used": agent.used(), **more}

    def unregister(self):
        leader = self.detector.leader
        if leader is not None and self.agent.id:
            with contextlib.suppress(OSError):
                web.call(election.url(leader), "POST", "/standin/unregister", {"id": self.agent.id})


# Answers of the two APIs


def state(agent, _request):
    given = agent.flags
    resources = values.shown(agent.info["resources"])
    used = [one.wants for one in agent.tasks.values() if not one.ended]
    allocated = {name: round(sum(one[name] for one in used), 6) for name in values.SCALARS}
    for name, value in EXECUTOR.items():
        allocated[name] = round(allocated[name] + value * len(used), 6)
    found = {
        **BUILD, "start_time": agent.started, "id": agent.id or "", "pid": f"slave(1)@{agent.address}:{agent.port}",
        "hostname": given.hostname, "capabilities": show.CAPABILITIES, "resources": resources,
        "reserved_resources": {}, "unreserved_resources": resources, "reserved_resources_full": {},
        "unreserved_resources_full": values.full(agent.info["resources"]), "reserved_resources_allocated": {},
        "unreserved_resources_allocated": values.shown(allocated), "resource_providers": [],
        "attributes": values.shown_attributes(agent.info["attributes"]), "flags": given.shown(),
        "frameworks": frameworks(agent, alive=True), "completed_frameworks": frameworks(agent, alive=False),
    }  # fmt: skip
    leader = agent.link.detector.leader
    if leader:
        found["master_hostname"] = leader["hostname"]
    if given.log_dir:
        found["log_dir"] = given.log_dir
    return found


def frameworks(agent, alive):
    """Those that have a task now, or those that have none any more."""
    found = []
    by_framework = {}
    for one in agent.tasks.values():
        by_framework.setdefault(one.record["framework_id"], []).append(one)
    for identity, tasks in sorted(by_framework.items()):
        if any(not one.ended for one in tasks) == alive:
            found.append({
                "id": identity, "name": "", "user": "root", "failover_timeout": 0.0, "checkpoint": True,
                "hostname": "", "role": "*", "executors": [executor(agent, one) for one in tasks if not one.ended],
                "completed_executors": [executor(agent, one) for one in tasks if one.ended],
            })  # fmt: skip
    return found


def executor(agent, one):
    shown = show.task(one.told_master(), agent.id, "*")
    wants = {name: one.wants[name] + EXECUTOR.get(name, 0) for name in values.SCALARS}
    return {
        "id": one.id, "name": f"Command Executor (Task: {one.id})", "source": one.id, "container": one.record["run"],
        "directory": one.record["sandbox"], "resources": values.shown(wants), "role": "*",
        "tasks": [] if one.ended else [shown], "queued_tasks": [], "completed_tasks": [shown] if one.ended else [],
    }  # fmt: skip


def v1(agent, request):
    body = operator.call_of(request)
    kind = body["type"]
    if kind not in CALLS:
        raise Reply(400, f"Failed to validate agent::Call: the stand-in does not know '{kind}'")
    found = CALLS[kind](agent, body)
    return {"type": kind} if found is None else {"type": kind, kind.lower(): found}


def get_state(agent, _body):
    alive = [one for one in agent.tasks.values() if not one.ended]
    ended = [one for one in agent.tasks.values() if one.ended]

    def shown(tasks):
        return [show.task_v1(one.told_master(), agent.id, "*") for one in tasks]

    def executors(tasks):
        return [{"executor_info": executor_info(one)} for one in tasks]

    def infos(tasks):
        identities = sorted({one.record["framework_id"] for one in tasks})
        return [{"framework_info": framework_info(identity)} for identity in identities]

    return {
        "get_tasks": {
            "pending_tasks": [], "queued_tasks": [], "launched_tasks": shown(alive), "terminated_tasks": shown(ended),
            "completed_tasks": [],
        },
        "get_executors": {"executors": executors(alive), "completed_executors": executors(ended)},
        "get_frameworks": {"frameworks": infos(alive), "completed_frameworks": []},
    }  # fmt: skip


def framework_info(identity):
    return {"user": "root", "name": "", "id": {"value": identity}, "failover_timeout": 0.0, "checkpoint": True,
            "role": "*", "capabilities": [{"type": name} for name in show.FRAMEWORK_CAPABILITIES]}  # fmt: skip


def executor_info(one):
    return {
        "executor_id": {"value": one.id}, "framework_id": {"value": one.record["framework_id"]},
        "command": {"shell": False, "value": "mesos-executor", "arguments": ["mesos-executor"]},
        "resources": values.full(EXECUTOR, None, "*"), "name": f"Command Executor (Task: {one.id})", "source": one.id,
    }  # fmt: skip


def get_containers(agent, _body):
    found = []
    for one in agent.tasks.values():
        if not one.ended:
            status = {"container_id": {"value": one.record["run"]}}
            if one.record["pid"]:
                status["executor_pid"] = one.record["pid"]
            found.append({
                "framework_id": {"value": one.record["framework_id"]}, "executor_id": {"value": one.id},
                "executor_name": f"Command Executor (Task: {one.id})", "container_id": {"value": one.record["run"]},
                "container_status": status, "resource_statistics": {
                    "timestamp": time.time(), "cpus_soft_limit": one.wants["cpus"] + EXECUTOR["cpus"],
                    "mem_limit_bytes": int((one.wants["mem"] + EXECUTOR["mem"]) * 2**20),
                },
            })  # fmt: skip
    return {"containers": found} if found else None


def measured(agent):
    used, have = agent.used(), agent.info["resources"]
    found = {
        "slave/registered": float(agent.id is not None), "slave/uptime_secs": time.time() - agent.started,
        "slave/tasks_running": float(sum(one.record["state"] == "TASK_RUNNING" for one in agent.tasks.values())),
    }  # fmt: skip
    for name in ("cpus", "mem", "disk"):
        found[f"slave/{name}_total"], found[f"slave/{name}_used"] = float(have.get(name, 0)), used[name]
    return found


def get_metrics(agent, body):
    if "get_metrics" not in body:
        raise Reply(400, "Failed to validate agent::Call: Expecting 'get_metrics' to be present")
    return {"metrics": [{"name": name, "value": value} for name, value in sorted(measured(agent).items())]}


CALLS = {
    "GET_HEALTH": lambda _agent, _body: {"healthy": True},
    "GET_FLAGS": lambda agent, _body: {
        "flags": [{"name": name, "value": value} for name, value in agent.flags.shown().items()]},
    "GET_VERSION": lambda _agent, _body: {"version_info": BUILD},
    "GET_METRICS": get_metrics,
    "GET_STATE": get_state,
    "GET_TASKS": lambda agent, body: get_state(agent, body)["get_tasks"],
    "GET_EXECUTORS": lambda agent, body: get_state(agent, body)["get_executors"],
    "GET_FRAMEWORKS": lambda agent, body: get_state(agent, body)["get_frameworks"],
    "GET_CONTAINERS": get_containers,
    "GET_AGENT": lambda agent, _body: {"agent_info": show.agent_info(agent.id or "", agent.info)},
}  # fmt: skip
ENDPOINTS = {
    "/": ("readonly", lambda agent, _request: f"Stand-in of a Mesos agent {VERSION}: {agent.address}:{agent.port}\n"),
    "/state": ("readonly", state),
    "/flags": ("readonly", lambda agent, _request: {"flags": agent.flags.shown()}),
    "/metrics/snapshot": ("readonly", lambda agent, _request: dict(sorted(measured(agent).items()))),
    "/containers": ("readonly", lambda agent, body: (get_containers(agent, body) or {"containers": []})["containers"]),
    "/api/v1": ("readwrite", v1),
}


# What must hold before an agent starts


def check_isolation(given):
    """End the agent where its isolation cannot be had."""
    isolators = [name for name in given.isolation.split(",") if name]
    create = "Failed to create a containerizer: Could not create MesosContainerizer: "
    for name in isolators:
        if name not in ISOLATORS:
            flags.die(f"{create}Unknown or unsupported isolator '{name}'")
    wanted = [name for name in isolators if name.startswith("cgroups/")]
    if given.launcher not in ("linux", "posix"):
        flags.die(f"{create}Unknown or unsupported launcher: {given.launcher}")
    if wanted and given.launcher == "posix":
        flags.abort(f"{create}'{wanted[0]}' needs the 'linux' launcher")
    if given.launcher == "posix":
        return
    root = Path(given.cgroups_hierarchy)
    unified = root / "cgroup.controllers"
    if not unified.exists() and (root / "unified").exists():
        flags.die(f"{create}the hybrid control groups at {root} are not supported")
    controllers = unified.read_text(encoding="ascii").split() if unified.exists() else CONTROLLERS.values()
    for name in wanted:
        if CONTROLLERS.get(name, "cpu") not in controllers:
            flags.die(f"{create}Failed to create isolator '{name}': controller '{CONTROLLERS[name]}' is not available")


def check_systemd(given):
    if given.systemd_enable_support and not Path(given.systemd_runtime_directory).is_dir():
        flags.die(
            "Failed to initialize systemd: Failed to locate systemd runtime directory: "
            f"{given.systemd_runtime_directory}"
        )


def read_values(given):
    """(attributes, resources) of the flags, filled up with what the machine has."""
    try:
        attributes = values.attributes(given.attributes or "")
    except values.Invalid as exc:
        flags.abort(str(exc))
    try:
        resources = values.resources(given.resources or "")
    except values.Invalid as exc:
        flags.die(f"Failed to determine agent resources: {exc}")
    for name, value in resources.items():
        if not isinstance(value, list) and value < 0:
            flags.die(f"Failed to determine agent resources: {name} is negative")
    return attributes, {**values.of_machine(), **resources}


def _limits_work(hierarchy):
    """Whether containers can be limited: control groups are v2, with the controllers for it."""
    try:
        controllers = Path(hierarchy, "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError:
        return False
    return "cpu" in controllers and "memory" in controllers


def _own_address():
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _own_name(address, looked_up):
    if looked_up:
        with contextlib.suppress(OSError):
            return socket.gethostbyaddr(address)[0]
    return address


def main(arguments=None):
    given = flags.read("mesos-agent", flags.AGENT, sys.argv[1:] if arguments is None else arguments, os.environ)
    if not given.work_dir:
        flags.die("Flag 'work_dir' is required, but it was not provided")
    if not given.master:
        flags.die("Missing required option `--master`")
    if given.reconfiguration_policy not in ("equal", "additive"):
        flags.die(f"Unknown reconfiguration policy '{given.reconfiguration_policy}': expecting 'equal' or 'additive'")
    if given.recover not in ("reconnect", "cleanup"):
        flags.die(f"Unknown option for 'recover' flag: {given.recover}")
    for name in given.containerizers.split(","):
        if name not in ("mesos", "docker"):
            flags.die(f"Failed to create a containerizer: Unknown or unsupported containerizer: {name}")
    if (given.authenticate_http_readonly or given.authenticate_http_readwrite) and not given.http_credentials:
        flags.die("--http_credentials needed where HTTP authentication is required")
    given["launcher"] = given.launcher or ("linux" if os.geteuid() == 0 else "posix")
    attributes, resources = read_values(given)
    check_isolation(given)
    check_systemd(given)
    try:
        agent = Agent(given, attributes, resources)
    except (OSError, ValueError) as exc:
        flags.die(f"Failed to initialize: {exc}")
    sys.exit(agent.run())

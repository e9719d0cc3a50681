# SPDX-License-Identifier: Apache-2.0
"""The master's endpoints for operators: the older ones by path, and the calls of /api/v1."""

from __future__ import annotations

import os
import time

from . import BUILD, VERSION, maintenance, show, values
from .web import Reply

STATES = (
    "dropped", "error", "failed", "finished", "gone", "gone_by_operator", "killed", "killing", "lost", "running",
    "staging", "starting", "unreachable",
)  # fmt: skip


def state(master, _request):
    with master.lock:
        agents = list(master.agents.values())
        idle = sum(show.withheld(master, one) for one in agents)
        found = {
            **BUILD, "start_time": master.started, "elected_time": master.elected, "id": master.id, "pid": master.pid,
            "hostname": master.flags.hostname, "capabilities": ["AGENT_UPDATE", "AGENT_DRAINING", "QUOTA_V2"],
            "activated_slaves": float(sum(one.connected for one in agents) - idle), "deactivated_slaves": float(idle),
            "unreachable_slaves": float(len(master.document["unreachable"])), "leader": master.pid,
            "leader_info": {
                "id": master.id, "pid": master.pid, "port": master.port, "hostname": master.flags.hostname,
            },
            "flags": master.flags.shown(), "slaves": [show.agent(master, one) for one in agents],
            "recovered_slaves": recovering(master), **frameworks(master), "orphan_tasks": [],
        }  # fmt: skip
        for name in ("cluster", "log_dir"):
            if master.flags[name]:
                found[name] = master.flags[name]
        return Reply(200, found)


def recovering(master):
    """Agents of the registry that have not come back to this leader yet."""
    return [
        {
            "id": identity, "hostname": info["hostname"], "port": info["port"],
            "attributes": values.shown_attributes(info["attributes"]), "resources": values.shown(info["resources"]),
        }
        for identity, info in master.recovering.items()
    ]  # fmt: skip


def frameworks(master):
    return {
        "frameworks": [show.framework(master, one) for one in master.frameworks.values()],
        "completed_frameworks": [show.framework(master, one) for one in master.completed_frameworks],
        "unregistered_frameworks": [],
    }


def slaves(master, request):
    with master.lock:
        wanted = request.query.get("slave_id")
        found = [one for one in master.agents.values() if wanted in (None, one.id)]
        return Reply(200, {
            "slaves": [show.agent(master, one, whole=True) for one in found], "recovered_slaves": recovering(master),
        })  # fmt: skip


def tasks(master, request):
    """Newest framework first, as many as `limit` says (100)."""
    with master.lock:
        found = []
        for framework in [*master.frameworks.values(), *reversed(master.completed_frameworks)]:
            shown = show.framework(master, framework)
            found += shown["tasks"] + shown["unreachable_tasks"] + shown["completed_tasks"]
    for name in ("framework_id", "task_id"):
        if name in request.query:
            key = "id" if name == "task_id" else name
            found = [one for one in found if one[key] == request.query[name]]
    start, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 100))
    return Reply(200, {"tasks": found[start : start + limit]})


def metrics(master, request):
    master.guard.authorize(request, "get_endpoints", "/metrics/snapshot")
    return Reply(200, dict(sorted(measured(master).items())))


def measured(master):
    """All metrics by name; what is not known here is not there."""
    with master.lock:
        agents = list(master.agents.values())
        active = [task for one in agents for task in show.active_tasks(one)]
        have, used = values.total(one.info["resources"] | {"ports": []} for one in agents), values.total(active)
        found = {f"master/tasks_{name}": 0.0 for name in STATES}
        for task in [*active, *_finished(master)]:
            name = f"master/tasks_{task['state'][len('TASK_') :].lower()}"
            found[name] = found.get(name, 0.0) + 1
        for name in ("slave_registrations", "slave_reregistrations", "slave_removals", "slave_unreachable_completed",
                     "slave_unreachable_scheduled", "slave_removals/reason_registered",
                     "slave_removals/reason_unhealthy", "slave_removals/reason_unregistered"):  # fmt: skip
            found[f"master/{name}"] = float(master.counts.get(name, 0))
        for name in ("cpus", "mem", "disk", "gpus"):
            found[f"master/{name}_total"], found[f"master/{name}_used"] = have[name], used[name]
            found[f"master/{name}_percent"] = used[name] / have[name] if have[name] else 0.0
            if name != "gpus":
                found[f"allocator/mesos/resources/{name}/total"] = have[name]
                found[f"allocator/mesos/resources/{name}/offered_or_allocated"] = used[name]
        there = list(master.frameworks.values())
        connected = float(sum(one.connected for one in there))
        away = float(sum(not one.connected for one in agents))
        idle = float(sum(one.connected and show.withheld(master, one) for one in agents))
        found.update({
            "master/elected": float(master.leads), "master/uptime_secs": time.time() - master.started,
            "master/frameworks_active": connected, "master/frameworks_connected": connected,
            "master/frameworks_disconnected": len(there) - connected,
            "master/frameworks_inactive": len(there) - connected,
            "master/slaves_active": len(agents) - away - idle, "master/slaves_connected": len(agents) - away,
            "master/slaves_disconnected": away, "master/slaves_inactive": away + idle,
            "master/slaves_unreachable": float(len(master.document["unreachable"])),
            "master/outstanding_offers": 0.0, "registrar/queued_operations": 0.0,
            "registrar/log/recovered": float(master.replica.votes),
            "registrar/log/ensemble_size": float(len(master.group.replicas) or 1),
        })  # fmt: skip
        pages = os.sysconf("SC_PAGE_SIZE")
        found["system/cpus_total"] = float(os.cpu_count() or 1)
        found["system/mem_total_bytes"] = float(pages * os.sysconf("SC_PHYS_PAGES"))
        found["system/mem_free_bytes"] = float(pages * os.sysconf("SC_AVPHYS_PAGES"))
        one, five, fifteen = os.getloadavg()
        found.update({"system/load_1min": one, "system/load_5min": five, "system/load_15min": fifteen})
        return found


def _finished(master):
    return [
        task for framework in [*master.frameworks.values(), *master.completed_frameworks]
        for task in [*framework.completed.values(), *framework.unreachable.values()]
    ]  # fmt: skip


def flags(master, request):
    master.guard.authorize(request, "view_flags")
    return Reply(200, {"flags": master.flags.shown()})


def only(method, action, function):
    """An endpoint that changes something, which access control lists may close."""

    def answer(master, request):
        if request.method != method:
            raise Reply(405, f"Expecting '{method}', received '{request.method}'", {"Allow": method})
        ready(master)
        master.guard.authorize(request, action)
        return function(master, request.json())

    return answer


def schedule(master, request):
    if request.method == "GET":
        ready(master)
        master.guard.authorize(request, "get_maintenance_schedules")
        return Reply(200, master.document["schedule"] if master.document["schedule"]["windows"] else {})
    return only("POST", "update_maintenance_schedules", maintenance.update_schedule)(master, request)


def maintenance_status(master, request):
    ready(master)
    master.guard.authorize(request, "get_maintenance_statuses")
    return Reply(200, maintenance.status(master.document))


def ready(master):
    if not master.recovered:
        raise Reply(503, "Master has not finished recovery")


# The calls of /api/v1: functions that return what stands below the lower-case name of the call, or a Reply


def get_state(master, body):
    return {
        "get_tasks": get_tasks(master, body), "get_executors": {"executors": []},
        "get_frameworks": get_frameworks(master, body), "get_agents": get_agents(master, body),
    }  # fmt: skip


def get_agents(master, _body):
    return {
        "agents": [show.agent_v1(master, one) for one in master.agents.values()],
        "recovered_agents": [show.agent_info(identity, info) for identity, info in master.recovering.items()],
    }


def get_frameworks(master, _body):
    return {
        "frameworks": [show.framework_v1(master, one) for one in master.frameworks.values()],
        "completed_frameworks": [show.framework_v1(master, one) for one in master.completed_frameworks],
    }


def get_tasks(master, _body):
    found = {"tasks": [], "unreachable_tasks": [], "completed_tasks": []}
    for one in [*master.frameworks.values(), *master.completed_frameworks]:
        if not one.unregistered:
            found["tasks"] += [show.task_v1(task, agent, one.role) for task, agent in show.tasks_of(master, one)]
        found["unreachable_tasks"] += [show.task_v1(task, task["agent"], one.role) for task in one.unreachable.values()]
        found["completed_tasks"] += [show.task_v1(task, task["agent"], one.role) for task in one.completed.values()]
    return found


def get_master(master, _body):
    return {"master_info": master.info(), "start_time": master.started, "elected_time": master.elected}


def get_metrics(master, body):
    if "get_metrics" not in body:
        raise Reply(400, "Failed to validate master::Call: Expecting 'get_metrics' to be present")
    return {"metrics": [{"name": name, "value": value} for name, value in sorted(measured(master).items())]}


def teardown(master, body):
    identity = body.get("teardown", {}).get("framework_id", {}).get("value")
    if identity not in master.frameworks:
        raise Reply(400, "No framework found with specified ID")
    master.remove_framework(identity)
    return Reply()


CALLS = {
    "GET_HEALTH": (None, lambda _master, _body: {"healthy": True}),
    "GET_FLAGS": ("view_flags", lambda master, _body: {
        "flags": [{"name": name, "value": value} for name, value in master.flags.shown().items()]}),
    "GET_VERSION": (None, lambda _master, _body: {"version_info": BUILD}),
    "GET_METRICS": (None, get_metrics),
    "GET_LOGGING_LEVEL": (None, lambda _master, _body: {"level": 0}),
    "GET_STATE": (None, get_state),
    "GET_AGENTS": (None, get_agents),
    "GET_FRAMEWORKS": (None, get_frameworks),
    "GET_EXECUTORS": (None, lambda _master, _body: {"executors": []}),
    "GET_TASKS": (None, get_tasks),
    "GET_MASTER": (None, get_master),
    "GET_MAINTENANCE_STATUS": ("get_maintenance_statuses", lambda master, _body: {
        "status": maintenance.status(master.document)}),
    "GET_MAINTENANCE_SCHEDULE": ("get_maintenance_schedules", lambda master, _body: {
        "schedule": master.document["schedule"]}),
    "UPDATE_MAINTENANCE_SCHEDULE": ("update_maintenance_schedules", lambda master, body:
        maintenance.update_schedule(master, _part(body, "update_maintenance_schedule").get("schedule"))),
    "START_MAINTENANCE": ("start_maintenances", lambda master, body:
        maintenance.machines_down(master, _part(body, "start_maintenance").get("machines"))),
    "STOP_MAINTENANCE": ("stop_maintenances", lambda master, body:
        maintenance.machines_up(master, _part(body, "stop_maintenance").get("machines"))),
    "DRAIN_AGENT": ("drain_agents", lambda master, body: maintenance.drain(master, _part(body, "drain_agent"))),
    "DEACTIVATE_AGENT": ("deactivate_agents", lambda master, body:
        maintenance.deactivate(master, _part(body, "deactivate_agent"))),
    "REACTIVATE_AGENT": ("reactivate_agents", lambda master, body:
        maintenance.reactivate(master, _part(body, "reactivate_agent"))),
    "MARK_AGENT_GONE": ("mark_agents_gone", lambda master, body:
        maintenance.gone(master, _part(body, "mark_agent_gone"))),
    "TEARDOWN": ("teardown_frameworks", teardown),
}  # fmt: skip
# Those that wait for the registry, without the lock that answers need.
CHANGES = ("UPDATE_", "START_", "STOP_", "DRAIN_", "DEACTIVATE_", "REACTIVATE_", "MARK_")


def _part(body, name):
    part = body.get(name)
    if not isinstance(part, dict):
        raise Reply(400, f"Failed to validate master::Call: Expecting '{name}' to be present")
    return part


def v1(master, request):
    ready(master)
    body = call_of(request)
    kind = body["type"]
    if kind not in CALLS:
        raise Reply(400, f"Failed to validate master::Call: the stand-in does not know '{kind}'")
    action, function = CALLS[kind]
    if action:
        master.guard.authorize(request, action)
    if kind.startswith(CHANGES):
        found = function(master, body)
    else:
        with master.lock:
            found = function(master, body)
    return found if isinstance(found, Reply) else Reply(200, {"type": kind, kind.lower(): found})


def call_of(request):
    """The call in a request to /api/v1."""
    if request.method != "POST":
        raise Reply(405, f"Expecting 'POST', received '{request.method}'", {"Allow": "POST"})
    kind = request.headers.get("Content-Type", "").partition(";")[0]
    if not kind:
        raise Reply(400, "Expecting 'Content-Type' to be present")
    if kind != "application/json":
        raise Reply(415, "Expecting 'Content-Type' of application/json (the stand-in reads no protobuf)")
    body = request.json()
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise Reply(400, "Failed to validate Call: Expecting 'type' to be present")
    return body


# By path: the realm whose authentication it needs, whether it is this master's own and not the leader's, the function
ENDPOINTS = {
    "/state": ("readonly", False, state),
    "/slaves": ("readonly", False, slaves),
    "/tasks": ("readonly", False, tasks),
    "/frameworks": ("readonly", False, lambda master, _request: Reply(200, _locked(master, frameworks))),
    "/flags": ("readonly", True, flags),
    "/metrics/snapshot": ("readonly", True, metrics),
    "/maintenance/schedule": ("readwrite", False, schedule),
    "/maintenance/status": ("readonly", False, maintenance_status),
    "/machine/down": ("readwrite", False, only("POST", "start_maintenances", maintenance.machines_down)),
    "/machine/up": ("readwrite", False, only("POST", "stop_maintenances", maintenance.machines_up)),
    "/api/v1": ("readwrite", False, v1),
    "/": (
        "readonly",
        True,
        lambda master, _request: Reply(200, f"Stand-in of a Mesos master {VERSION}, {master.id}\n"),
    ),
}


def _locked(master, function):
    with master.lock:
        return function(master)

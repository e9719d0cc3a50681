# SPDX-License-Identifier: Apache-2.0
"""What masters and agents know, in the shapes that the two APIs answer with.

A task is here as an agent tells of it: {"id", "framework_id", "name", "state", "message", "cpus", "mem", "disk",
"ports", "container", "pid", "address", "statuses": [{"state", "timestamp", "message", "healthy"}]}; "agent" is added
where the master keeps it without the agent.
"""

from __future__ import annotations

import base64
import uuid

from . import VERSION, values

ENDED = ("TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_LOST", "TASK_ERROR")
ACTIVE = ("TASK_STAGING", "TASK_STARTING", "TASK_RUNNING", "TASK_KILLING")
CAPABILITIES = [
    "MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT", "RESOURCE_PROVIDER", "RESIZE_VOLUME",
    "AGENT_OPERATION_FEEDBACK", "AGENT_DRAINING", "TASK_RESOURCE_LIMITS",
]  # fmt: skip
FRAMEWORK_CAPABILITIES = ["RESERVATION_REFINEMENT", "TASK_KILLING_STATE", "REVOCABLE_RESOURCES", "PARTITION_AWARE"]


def ended(task):
    return task["state"] in ENDED


def nanoseconds(seconds):
    return {"nanoseconds": int(seconds * 1e9)}


def resources_of(task):
    """Of a task, with its ports as ranges."""
    return values.total([task])


# Tasks


def container_status(task, pid=False):
    addresses = [{"protocol": "IPv4", "ip_address": task["address"]}]
    found = {"container_id": {"value": task["container"]}, "network_infos": [{"ip_addresses": addresses}]}
    if pid and task.get("pid"):
        found["executor_pid"] = task["pid"]
    return found


def task(one, agent, role):
    """For /state, /tasks and /frameworks."""
    statuses = []
    for status in one["statuses"]:
        shown = {"state": status["state"], "timestamp": status["timestamp"], "container_status": container_status(one)}
        if status.get("healthy") is not None:
            shown["healthy"] = status["healthy"]
        statuses.append(shown)
    return {
        "id": one["id"], "name": one["name"], "framework_id": one["framework_id"], "executor_id": "",
        "slave_id": agent, "state": one["state"], "resources": values.shown(resources_of(one)), "role": role,
        "statuses": statuses,
    }  # fmt: skip


def task_v1(one, agent, role):
    statuses = [_status_v1(one, agent, status) for status in one["statuses"]]
    found = {
        "name": one["name"], "task_id": {"value": one["id"]}, "framework_id": {"value": one["framework_id"]},
        "agent_id": {"value": agent}, "state": one["state"],
        "resources": values.full(resources_of(one), None, role), "statuses": statuses,
    }  # fmt: skip
    if statuses:
        found["status_update_state"] = statuses[-1]["state"]
        found["status_update_uuid"] = statuses[-1]["uuid"]
    return found


def _status_v1(one, agent, status):
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{one['id']} {status['state']} {status['timestamp']}")
    found = {
        "task_id": {"value": one["id"]}, "state": status["state"], "source": "SOURCE_EXECUTOR",
        "agent_id": {"value": agent}, "executor_id": {"value": one["id"]}, "timestamp": status["timestamp"],
        "uuid": base64.b64encode(number.bytes).decode(), "container_status": container_status(one, pid=True),
    }  # fmt: skip
    if status.get("message"):
        found["message"] = status["message"]
    if status.get("healthy") is not None:
        found["healthy"] = status["healthy"]
    return found


# Agents, as the master has them


def agent(master, one, whole=False):
    """For /slaves (whole) and /state."""
    info = one.info
    active = active_tasks(one)
    used = values.total(active)
    found = {
        "id": one.id, "hostname": info["hostname"], "port": info["port"],
        "attributes": values.shown_attributes(info["attributes"]), "pid": one.pid,
        "registered_time": one.registered, "resources": values.shown(info["resources"]),
        "used_resources": values.shown(used), "offered_resources": values.shown({}), "reserved_resources": {},
        "unreserved_resources": values.shown(info["resources"]), "active": one.connected and not withheld(master, one),
        "deactivated": withheld(master, one), "version": VERSION, "capabilities": CAPABILITIES,
    }  # fmt: skip
    if one.reregistered:
        found["reregistered_time"] = one.reregistered
    drain = drain_info(master, one.id)
    if drain:
        found["drain_info"] = drain
        found["estimated_drain_start_time_seconds"] = master.document["drained"][one.id]["since"]
    if whole:
        roles = {task["framework_id"]: role_of(master, task["framework_id"]) for task in active}
        found.update({
            "reserved_resources_full": {}, "unreserved_resources_full": values.full(info["resources"]),
            "used_resources_full": [
                each for identity, role in sorted(roles.items())
                for each in values.full(
                    values.total(task for task in active if task["framework_id"] == identity), "*", role
                )
            ],
            "offered_resources_full": [],
        })  # fmt: skip
    return found


def agent_v1(master, one):
    info = one.info
    found = {
        "agent_info": agent_info(one.id, info), "active": one.connected and not withheld(master, one),
        "deactivated": withheld(master, one), "version": VERSION, "pid": one.pid,
        "registered_time": nanoseconds(one.registered), "total_resources": values.full(info["resources"]),
        "capabilities": [{"type": name} for name in CAPABILITIES],
    }  # fmt: skip
    if one.reregistered:
        found["reregistered_time"] = nanoseconds(one.reregistered)
    allocated = []
    active = active_tasks(one)
    for identity in sorted({task["framework_id"] for task in active}):
        part = values.total(task for task in active if task["framework_id"] == identity)
        allocated += values.full(part, "*", role_of(master, identity))
    if allocated:
        found["allocated_resources"] = allocated
    drain = drain_info(master, one.id)
    if drain:
        found["drain_info"] = drain
        found["estimated_drain_start_time"] = nanoseconds(master.document["drained"][one.id]["since"])
    return found


def agent_info(identity, info):
    found = {
        "hostname": info["hostname"], "port": info["port"], "resources": values.full(info["resources"], None),
        "id": {"value": identity}, "checkpoint": True,
    }  # fmt: skip
    if info["attributes"]:
        found["attributes"] = values.full_attributes(info["attributes"])
    return found


def active_tasks(one):
    return [task for task in one.tasks if not ended(task)]


def withheld(master, one):
    """Whether it is kept from getting tasks: drained or deactivated."""
    return one.id in master.document["drained"]


def drain_info(master, identity):
    entry = master.document["drained"].get(identity)
    if entry is None or entry["state"] is None:
        return None
    config = {"mark_gone": entry["mark_gone"]}
    if entry["grace"] is not None:
        config["max_grace_period"] = nanoseconds(entry["grace"])
    return {"state": entry["state"], "config": config}


def role_of(master, identity):
    framework = master.frameworks.get(identity)
    return framework.role if framework else "*"


# Frameworks, as the master has them


def tasks_of(master, framework):
    """[(task, agent's id)] of those that run."""
    return [
        (task, one.id) for one in master.agents.values() for task in one.tasks
        if task["framework_id"] == framework.id and not ended(task)
    ]  # fmt: skip


def framework(master, one):
    """For /frameworks and /state."""
    running = [] if one.unregistered else tasks_of(master, one)
    used = values.shown(values.total(task for task, _agent in running))
    found = {
        "id": one.id, "name": one.name, "used_resources": used, "offered_resources": values.shown({}),
        "capabilities": FRAMEWORK_CAPABILITIES, "hostname": one.hostname, "webui_url": one.webui_url,
        "active": not one.unregistered and one.connected, "connected": not one.unregistered and one.connected,
        "recovered": one.recovered, "user": one.user, "failover_timeout": one.failover_timeout, "checkpoint": True,
        "registered_time": one.registered, "unregistered_time": one.unregistered or 0.0, "resources": used,
        "role": one.role, "tasks": [task(each, agent, one.role) for each, agent in running],
        "unreachable_tasks": [task(each, each["agent"], one.role) for each in one.unreachable.values()],
        "completed_tasks": [task(each, each["agent"], one.role) for each in one.completed.values()],
        "offers": [], "executors": [], "offer_constraints": {},
    }  # fmt: skip
    if one.principal:
        found["principal"] = one.principal
    if one.reregistered:
        found["reregistered_time"] = one.reregistered
    return found


def framework_info(one):
    found = {
        "user": one.user, "name": one.name, "id": {"value": one.id}, "failover_timeout": one.failover_timeout,
        "checkpoint": True, "role": one.role,
        "capabilities": [{"type": name} for name in FRAMEWORK_CAPABILITIES],
    }  # fmt: skip
    for name in ("hostname", "principal", "webui_url"):
        if getattr(one, name):
            found[name] = getattr(one, name)
    return found


def framework_v1(master, one):
    running = [] if one.unregistered else tasks_of(master, one)
    connected = not one.unregistered and one.connected
    found = {
        "framework_info": framework_info(one), "active": connected, "connected": connected, "recovered": one.recovered,
        "registered_time": nanoseconds(one.registered),
        "reregistered_time": nanoseconds(one.reregistered or one.registered), "offer_constraints": {},
    }  # fmt: skip
    if one.unregistered:
        found["unregistered_time"] = nanoseconds(one.unregistered)
    if running:
        found["allocated_resources"] = values.full(values.total(each for each, _agent in running), "*", one.role)
    return found

# SPDX-License-Identifier: Apache-2.0
"""A Mesos cluster at a glance: masters, majority, what agents have and what of it is used. Standard library only."""

from __future__ import annotations

import re
import time

from ansible_collections.dodas.cluster.plugins.module_utils.mesos.client import PAUSE, problem
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.errors import Denied, MesosError, NoLeader

AGENTS = {"type": "GET_AGENTS"}
SCALARS = ("cpus", "mem", "disk", "gpus")


def look(masters, agents=()):
    """What `masters` (a client) say now, at once and without waiting for a leader.

    agents: names that should be registered.

    ready: whether a leader with its registry answers. leader: its address or "". quorum: masters that there are, that
    are needed, that answer (alive), and whether these are enough (ok). masters: address, state (leading, following,
    recovering, unreachable) and problem of each. unreachable: number of agents that the leader has lost. recovering:
    names of hosts whose agents have not come back to a new leader yet. missing: those of `agents` that are not active,
    as far as a leader says it. Raises Denied.
    """
    answers = masters.ask_all("POST", "/api/v1", AGENTS)
    states = [_master(address, answer) for address, answer in answers.items()]
    leader = next((one["address"] for one in states if one["state"] == "leading"), "")
    alive = sum(one["state"] != "unreachable" for one in states)
    needed = majority(len(states))
    found = {
        "ready": bool(leader),
        "leader": leader,
        "version": "",
        "masters": states,
        "quorum": {"masters": len(states), "needed": needed, "alive": alive, "ok": bool(leader) and alive >= needed},
        "agents": [],
        "recovering": [],
        "missing": [],
        "unreachable": 0,
        "frameworks": [],
    }
    if leader:
        document = answers[leader].json["get_agents"]
        found["agents"] = sorted((agent(one) for one in document.get("agents", [])), key=lambda one: one["hostname"])
        active = {one["hostname"] for one in found["agents"] if one["active"]}
        found["missing"] = [name for name in agents if name not in active]
        found["recovering"] = sorted(one["hostname"] for one in document.get("recovered_agents", []))
        found.update(_more(masters, leader))
    return found


def majority(count):
    """How many of `count` masters must agree."""
    return count // 2 + 1


def wait(masters, agents, timeout):
    """What `look` found once there is a leader, a majority, and an active agent on each host of `agents`.

    agents: names that they are registered with. timeout: seconds. Raises MesosError that says what is missing.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = look(masters, agents)
        lacking = missing(found)
        if not lacking:
            return found
        if time.monotonic() >= deadline:
            raise NoLeader(f"not ready in {timeout} s: {lacking}")
        time.sleep(PAUSE)


def missing(found):
    """What `found` lacks to be a cluster that works, in words; empty when nothing."""
    masters = [f"{one['address']}: {one['problem']}" for one in found["masters"] if one["problem"]]
    quorum = found["quorum"]
    if not quorum["ok"]:
        return f"{quorum['alive']} of {quorum['masters']} masters answer, {quorum['needed']} are needed, and " + (
            f"{found['leader']} leads" if found["leader"] else "none leads"
        ) + "".join(f"; {one}" for one in masters)
    return f"no active agent is registered as {', '.join(found['missing'])}" if found["missing"] else ""


def agent(document):
    """An agent as GET_AGENTS tells it, in fewer words."""
    info = document["agent_info"]
    ip, port = re.search(r"@\[?(.+?)\]?:(\d+)$", document.get("pid", f"@0.0.0.0:{info.get('port', 0)}")).groups()
    drain = document.get("drain_info", {}).get("state", "")
    times = [document.get(name, {}).get("nanoseconds", 0) for name in ("registered_time", "reregistered_time")]
    return {
        "id": info["id"]["value"],
        "hostname": info["hostname"],
        "ip": ip,
        "port": int(port),
        "version": document.get("version", ""),
        "registered": max(times) / 1e9,
        "connected": bool(document.get("active") or document.get("deactivated")),
        "active": bool(document.get("active")) and not document.get("deactivated"),
        "drain": drain.lower(),
        "attributes": {one["name"]: value(one) for one in info.get("attributes", [])},
        "resources": amounts(document.get("total_resources", [])),
        "used": amounts(document.get("allocated_resources", [])),
        "offered": amounts(document.get("offered_resources", [])),
    }


def amounts(resources):
    """Resources of a list, those of all roles together: cpus, mem and disk (MB), gpus, and ports as [[begin, end]]."""
    found = {**dict.fromkeys(SCALARS, 0.0), "ports": []}
    for one in resources:
        if one["name"] in SCALARS:
            found[one["name"]] = round(found[one["name"]] + value(one), 3)
        elif one["name"] == "ports":
            found["ports"] = sorted(found["ports"] + value(one))
    return found


def value(one):
    """The value of a resource or an attribute: a number, a list of [begin, end], or a text."""
    kind = one["type"].lower()
    content = one.get(kind, {})
    if kind == "ranges":
        return [[pair["begin"], pair["end"]] for pair in content.get("range", [])]
    if kind == "set":
        return sorted(content.get("item", []))
    return content.get("value")


def _master(address, answer):
    if isinstance(answer, OSError):
        return {"address": address, "state": "unreachable", "problem": problem(answer)}
    if answer.status in (401, 403):
        raise Denied(f"{address}: Mesos wants a principal and a secret, or these are wrong")
    if answer.status == 200:
        return {"address": address, "state": "leading", "problem": ""}
    if answer.status == 307:
        return {"address": address, "state": "following", "problem": ""}
    said = answer.text or f"HTTP status {answer.status}"
    return {"address": address, "state": "recovering", "problem": said}


def _more(masters, leader):
    """What other questions to the leader tell; nothing of it decides whether Mesos works."""
    try:
        metrics = masters.ask(leader, "GET", "/metrics/snapshot").json or {}
        version = masters.ask(leader, "GET", "/version").json or {}
        frameworks = (masters.ask(leader, "POST", "/api/v1", {"type": "GET_FRAMEWORKS"}).json or {})["get_frameworks"]
    except (OSError, MesosError, KeyError):  # it led a moment ago
        return {}
    return {
        "unreachable": int(metrics.get("master/slaves_unreachable", 0)),
        "version": version.get("version", ""),
        "frameworks": [_framework(one) for one in frameworks.get("frameworks", [])],
    }


def _framework(document):
    info = document["framework_info"]
    return {
        "id": info["id"]["value"],
        "name": info["name"],
        "principal": info.get("principal", ""),
        "url": info.get("webui_url", ""),
        "active": bool(document.get("active")),
        "connected": bool(document.get("connected")),
    }

# SPDX-License-Identifier: Apache-2.0
"""Maintenance of machines, and draining of agents: what the operator asks for, and what follows from it.

In the registry: `schedule` as it was given; `machines` that are down; `drained`: by agent's id {"state": DRAINING,
DRAINED or None (deactivated only), "grace": seconds or None, "mark_gone", "since"}.
"""

from __future__ import annotations

import ipaddress
import time

from . import show
from .web import Reply


def mode(document, machine):
    """UP, DRAINING or DOWN. A machine is the one of an entry when both its hostname and its address are the same."""
    if machine in document["machines"]:
        return "DOWN"
    return "DRAINING" if machine in scheduled(document) else "UP"


def scheduled(document):
    return [_plain(one) for window in document["schedule"]["windows"] for one in window["machine_ids"]]


def takes_tasks(master, agent):
    """Whether schedulers may start something on an agent now."""
    if not agent.connected or show.withheld(master, agent):
        return False
    now = time.time() * 1e9
    return not any(
        agent.machine in [_plain(one) for one in window["machine_ids"]]
        and window["unavailability"]["start"]["nanoseconds"] <= now
        for window in master.document["schedule"]["windows"]
    )


def orders(master, agent):
    """What an agent must do: take no tasks, and end those that it has."""
    entry = master.document["drained"].get(agent.id)
    if entry is None:
        return {}
    if entry["state"] is None:
        return {"idle": True}
    return {"idle": True, "drain": {"grace": entry["grace"]}}


def has_drained(master, agent):
    """Whether an agent that is to be drained has nothing left."""
    entry = master.document["drained"].get(agent.id)
    return bool(entry) and entry["state"] == "DRAINING" and agent.connected and not show.active_tasks(agent)


def drained(master, agent):
    """An agent that was to be drained has nothing left."""
    if master.document["drained"][agent.id]["mark_gone"]:
        mark_gone(master, agent.id)
    else:
        master.registrar.update(lambda document: document["drained"][agent.id].update(state="DRAINED"))


def mark_gone(master, identity):
    """The agent is never to come back: when it says something next, it hears that it has to shut down."""

    def change(document):
        for part in ("agents", "unreachable", "drained"):
            document[part].pop(identity, None)
        document["gone"][identity] = {"since": time.time()}

    master.registrar.update(change)
    with master.lock:
        master.agents.pop(identity, None)


# What the operator asks for


def _plain(machine):
    """A machine's id as it is compared."""
    found = {}
    if machine.get("hostname"):
        found["hostname"] = machine["hostname"].lower()
    if machine.get("ip"):
        found["ip"] = machine["ip"]
    return found


def _machines(given):
    if not isinstance(given, list) or not given:
        raise Reply(400, "Expecting a list of at least one machine")
    found = []
    for one in given:
        if not isinstance(one, dict) or not all(isinstance(value, str) for value in one.values()):
            raise Reply(400, f"Expecting machines as hostname and ip, got {one!r}")
        plain = _plain(one)
        if not plain:
            raise Reply(400, "Both 'hostname' and 'ip' for a machine are empty")
        try:
            ipaddress.ip_address(plain.get("ip", "127.0.0.1"))
        except ValueError as exc:
            raise Reply(400, f"Invalid IP address: {exc}") from None
        if plain in found:
            raise Reply(400, f"Machine '{plain}' is more than once in the list")
        found.append(plain)
    return found


def _time(given, what):
    value = given.get("nanoseconds") if isinstance(given, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Reply(400, f"{what}: expecting nanoseconds, got {given!r}")
    return {"nanoseconds": value}


def _duration(given, what):
    """Seconds of {"seconds", "nanos"}; other fields are not looked at, as protobuf's reader does."""
    if not isinstance(given, dict):
        raise Reply(400, f"{what}: expecting seconds and nanos, got {given!r}")
    parts = [given.get(name, 0) for name in ("seconds", "nanos")]
    if any(isinstance(part, bool) or not isinstance(part, int) or part < 0 for part in parts):
        raise Reply(400, f"{what}: expecting seconds and nanos, got {given!r}")
    return parts[0] + parts[1] / 1e9


def update_schedule(master, schedule):
    windows = schedule.get("windows", []) if isinstance(schedule, dict) else None
    if not isinstance(windows, list):
        raise Reply(400, "Expecting a schedule with windows")
    seen, taken = [], []
    for window in windows:
        machines = _machines(window.get("machine_ids"))
        for machine in machines:
            if machine in seen:
                raise Reply(400, f"Machine '{machine}' appears more than once in the schedule")
        seen += machines
        given = window.get("unavailability")
        if not isinstance(given, dict):
            raise Reply(400, "unavailability: is missing")
        unavailability = {"start": _time(given.get("start"), "unavailability.start")}
        if "duration" in given:
            unavailability["duration"] = _time(given["duration"], "unavailability.duration")
            if unavailability["duration"]["nanoseconds"] < 0:
                raise Reply(400, "unavailability.duration: is negative")
        taken.append({"machine_ids": window["machine_ids"], "unavailability": unavailability})
    for machine in master.document["machines"]:
        if machine not in seen:
            raise Reply(400, f"Machine '{machine}' is deactivated and must remain in the schedule")
    master.registrar.update(lambda document: document.update(schedule={"windows": taken}))
    return Reply()


def machines_down(master, given):
    machines = _machines(given)
    with master.lock:
        known = [*scheduled(master.document), *(agent.machine for agent in master.agents.values())]
    for machine in machines:
        if machine not in known:
            raise Reply(400, f"Machine '{machine}' is not part of a maintenance schedule")
        if mode(master.document, machine) != "DRAINING":
            raise Reply(400, f"Machine '{machine}' is not in DRAINING mode and cannot be brought down")
    master.registrar.update(lambda document: document["machines"].extend(machines))
    with master.lock:
        agents = [agent for agent in master.agents.values() if agent.machine in machines]
    # They hear of it with their next word, and are no agents any more from now on.
    for agent in agents:
        master.remove_agent(agent, None)
    return Reply()


def machines_up(master, given):
    machines = _machines(given)
    for machine in machines:
        if mode(master.document, machine) != "DOWN":
            raise Reply(400, f"Machine '{machine}' is not in DOWN mode and cannot be brought up")

    def change(document):
        document["machines"] = [one for one in document["machines"] if one not in machines]
        windows = []
        for window in document["schedule"]["windows"]:
            window["machine_ids"] = [one for one in window["machine_ids"] if _plain(one) not in machines]
            if window["machine_ids"]:
                windows.append(window)
        document["schedule"]["windows"] = windows

    master.registrar.update(change)
    return Reply()


def status(document):
    """Of the machines that are under maintenance."""
    down = document["machines"]
    draining = [{"id": machine} for machine in scheduled(document) if machine not in down]
    found = {}
    if draining:
        found["draining_machines"] = draining
    if down:
        found["down_machines"] = down
    return found


def _agent(master, given, call):
    value = given.get("agent_id", {}).get("value") if isinstance(given, dict) else None
    if not isinstance(value, str):
        raise Reply(400, f"Expecting '{call.lower()}' with an agent_id")
    document = master.document
    if value not in document["agents"] and value not in document["unreachable"]:
        raise Reply(400, f"Unknown agent {value}")
    return value


def _idle(master, identity, entry):
    master.registrar.update(lambda document: document["drained"].update({identity: {**entry, "since": time.time()}}))
    return Reply()


def drain(master, given):
    identity = _agent(master, given, "DRAIN_AGENT")
    grace = given.get("max_grace_period")
    if grace is not None:
        grace = _duration(grace, "max_grace_period")
    mark_gone = given.get("mark_gone", False)
    if not isinstance(mark_gone, bool):
        raise Reply(400, "mark_gone: expecting a boolean")
    before = master.document["drained"].get(identity)
    if before and before["state"] and before["mark_gone"] and not mark_gone:
        raise Reply(400, f"Agent {identity} is being drained already, to be marked gone")
    return _idle(master, identity, {"state": "DRAINING", "grace": grace, "mark_gone": mark_gone})


def deactivate(master, given):
    identity = _agent(master, given, "DEACTIVATE_AGENT")
    if identity in master.document["drained"]:
        return Reply()
    return _idle(master, identity, {"state": None, "grace": None, "mark_gone": False})


def reactivate(master, given):
    identity = _agent(master, given, "REACTIVATE_AGENT")
    entry = master.document["drained"].get(identity)
    if entry and entry["state"] == "DRAINING":
        raise Reply(400, f"Agent {identity} is still in the DRAINING state")
    master.registrar.update(lambda document: document["drained"].pop(identity, None))
    return Reply()


def gone(master, given):
    mark_gone(master, _agent(master, given, "MARK_AGENT_GONE"))
    return Reply()

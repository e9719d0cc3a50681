# SPDX-License-Identifier: Apache-2.0
"""Where a task fits: an agent's free resources against what an app asks for, and why they do not match."""

from __future__ import annotations

import random
import re
import uuid

from .definition import wanted_host_ports

# Why an offer is not taken, in the order in which it is looked at.
REASONS = (
    "UnfulfilledRole", "UnfulfilledConstraint", "NoCorrespondingReservationFound", "AgentMaintenance",
    "InsufficientCpus", "InsufficientMemory", "InsufficientDisk", "InsufficientGpus", "InsufficientPorts",
)  # fmt: skip


class Offer:
    """What is free on agent `agent` besides what our tasks `instances` have, which it may not have counted yet."""

    def __init__(self, agent, instances):
        self.id = f"{uuid.uuid4()}-O{random.randrange(10000)}"
        self.agent = agent
        total, used = agent["resources"], agent["used"]
        self.free = {
            name: total.get(name, 0) - max(used.get(name, 0), sum(one.resources.get(name, 0) for one in instances))
            for name in ("cpus", "mem", "disk")
        }
        taken = {*used.get("ports", ()), *(port for one in instances for port in one.ports if port)}
        self.ports = [
            port for first, last in total.get("ports", ()) for port in range(first, last + 1) if port not in taken
        ]

    def match(self, app, placed):
        """The host ports for a task of `app`, whose other tasks are `placed`, and no reason; or None and reasons."""
        reasons = []
        if not all(fulfils(one, self.agent, placed) for one in app.get("constraints", ())):
            reasons.append("UnfulfilledConstraint")
        for name, reason in (("cpus", "InsufficientCpus"), ("mem", "InsufficientMemory"), ("disk", "InsufficientDisk")):
            if app[name] > self.free[name] + 1e-6:
                reasons.append(reason)
        ports = self.choose(wanted_host_ports(app))
        if ports is None:
            reasons.append("InsufficientPorts")
        return (None, reasons) if reasons else (ports, [])

    def choose(self, wanted):
        """Ports of ours for those wanted, 0 for any; None when there are too few."""
        fixed = [port for port in wanted if port]
        free = set(self.ports)
        if not free.issuperset(fixed) or len(free) < len([port for port in wanted if port is not None]):
            return None
        others = iter(random.sample(sorted(free.difference(fixed)), len(wanted) - len(fixed) - wanted.count(None)))
        return [port if port is None or port else next(others) for port in wanted]

    def take(self, app, ports):
        """Count a task as placed here."""
        for name in self.free:
            self.free[name] -= app[name]
        self.ports = [port for port in self.ports if port not in ports]

    def view(self):
        """The offer as /v2/queue gives it."""
        resources = [{"name": name, "role": "*", "scalar": round(value, 6)} for name, value in self.free.items()]
        ranges = []
        for port in self.ports:
            if ranges and ranges[-1]["end"] == port - 1:
                ranges[-1]["end"] = port
            else:
                ranges.append({"begin": port, "end": port})
        resources.append({"name": "ports", "role": "*", "ranges": ranges})
        attributes = [{"name": name, "text": str(value)} for name, value in self.agent["attributes"].items()]
        return {
            "id": self.id, "agentId": self.agent["id"], "hostname": self.agent["hostname"],
            "resources": resources, "attributes": attributes,
        }  # fmt: skip


def attribute(agent, field):
    """The value that constraints on `field` look at; None where the agent has none."""
    if field in ("hostname", "@hostname"):
        return agent["hostname"]
    value = agent["attributes"].get(field)
    return f"{value:g}" if isinstance(value, float) else None if value is None else str(value)


def fulfils(constraint, agent, placed):
    """Whether a task may run on `agent` by a constraint [field, operator, value]; `placed`: agents of its siblings."""
    field, operator, wanted = (*constraint, None)[:3]
    value = attribute(agent, field)
    if value is None:
        return operator == "UNLIKE"
    others = [found for found in (attribute(one, field) for one in placed) if found is not None]
    if operator == "UNIQUE":
        return value not in others
    if operator == "CLUSTER":
        return value == wanted if wanted else all(one == value for one in others)
    if operator == "GROUP_BY":
        counts = {one: others.count(one) for one in others}
        if value not in counts:
            return True
        return len(counts) >= int(wanted or 0) and counts[value] == min(counts.values())
    if operator == "MAX_PER":
        return others.count(value) < int(wanted)
    if operator == "IS":
        return value == wanted
    return bool(re.fullmatch(wanted, value)) == (operator == "LIKE")

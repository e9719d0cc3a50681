# SPDX-License-Identifier: Apache-2.0
"""How an agent goes and comes back: maintenance windows, draining, machines that are down. Standard library only.

A host is, from the least to the most: up; scheduled (frameworks know that it will go); draining and drained (its tasks
are killed with their grace period, and it gets no new ones); down (its agent ended and cannot register). Somebody else
can have it deactivated, where tasks stay and no new ones come. Lost: its agent is waited for. Absent: there is none.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import cluster
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.errors import MesosError

STATES = ("up", "scheduled", "drained", "down")
PAUSE = 1.0  # seconds between two looks
SECOND = 10**9  # nanoseconds
ATTEMPTS = 10  # to write the one schedule of a cluster, which others write as well


@dataclass
class Host:
    """A host as Mesos sees it. agents: those registered there; ip: "" when unknown; window: {"start", "duration"} in
    seconds or None; down: whether its maintenance has begun."""

    name: str
    ip: str = ""
    agents: list = field(default_factory=list)
    window: dict = None
    down: bool = False

    @property
    def state(self):
        """One word."""
        drains = {agent["drain"] for agent in self.agents}
        if self.down:
            return "down"
        if "draining" in drains:
            return "draining"
        if drains == {"drained"}:
            return "drained"
        if self.window:
            return "scheduled"
        if not any(agent["connected"] for agent in self.agents):
            return "lost" if self.agents else "absent"
        return "up" if all(agent["active"] for agent in self.agents) else "deactivated"

    @property
    def machine(self):
        """As Mesos names it: both must be those that the agent announces."""
        return {"hostname": self.name, **({"ip": self.ip} if self.ip else {})}


class Maintenance:
    """Of hosts of a cluster; `masters` is a client.

    window: {"start", "duration"} (seconds since the epoch, seconds) for hosts that are not in the schedule yet; for all
    of them when `exact`. grace: seconds at most that tasks get to end, what they ask for themselves when None.
    """

    def __init__(self, masters, window=None, exact=False, grace=None):
        self.masters = masters
        self.window = window or {"start": int(time.time()), "duration": 3600}
        self.exact = exact
        self.grace = grace

    def look(self, names):
        """{name: Host}. Raises MesosError."""
        hosts = {name: Host(name) for name in names}
        known = {name.lower(): name for name in names}  # Mesos makes names lower case here and there
        agents = [cluster.agent(document) for document in self.masters.call("GET_AGENTS").get("agents", [])]
        for agent in sorted(agents, key=lambda one: (one["connected"], one["registered"]), reverse=True):
            host = hosts.get(known.get(agent["hostname"].lower()))
            # One that is lost does not come back where another is there now, or was later.
            if host and not any(not agent["connected"] or one["port"] == agent["port"] for one in host.agents):
                host.agents.append(agent)
                host.ip = agent["ip"]
        for window in self._schedule():
            for machine in window["machine_ids"]:
                host = hosts.get(known.get(machine.get("hostname", "").lower()))
                if host:
                    span = window["unavailability"]
                    host.window = {"start": _seconds(span["start"]), "duration": _seconds(span.get("duration"))}
                    host.ip = host.ip or machine.get("ip", "")
        for machine in (self.masters.request("GET", "/maintenance/status") or {}).get("down_machines", []):
            host = hosts.get(known.get(machine.get("hostname", "").lower()))
            if host:
                host.down = True
        return hosts

    def plan(self, hosts, wanted, absent_ok=False):
        """The Hosts of `hosts` that are not as `wanted`, one of STATES. Raises MesosError for what cannot become so."""
        unknown = [host.name for host in hosts.values() if host.state == "absent"]
        if unknown and not absent_ok and wanted != "up":
            raise MesosError(f"no agent is registered as {', '.join(unknown)}")
        down = [host.name for host in hosts.values() if host.state == "down"]
        if down and wanted in ("scheduled", "drained"):
            raise MesosError(f"{', '.join(down)}: is down; only state up can follow")
        return [host for host in hosts.values() if host.state != "absent" and not self._is(host, wanted)]

    def apply(self, plan, wanted, timeout):
        """Bring the hosts of `plan` there; timeout: seconds for each step. Raises MesosError."""
        if not plan:
            return
        if wanted == "up":
            self._up(plan, timeout)
        if wanted in ("drained", "down"):
            self._drain(plan, timeout)
        if wanted == "scheduled":
            self._write_schedule(plan, self.window, self._is_scheduled)
        if wanted == "down":
            self._write_schedule(plan, self.window, lambda host: host.window)
            self.masters.request("POST", "/machine/down", [host.machine for host in plan])
            self._wait(plan, lambda host: host.down and not host.agents, "its agent is still registered", timeout)

    def _is(self, host, wanted):
        if wanted == "scheduled":
            return self._is_scheduled(host)
        return host.state == wanted or (wanted == "up" and host.state == "lost")

    def _is_scheduled(self, host):
        return host.window == self.window if self.exact else host.window is not None

    def _drain(self, plan, timeout):
        limit = {} if self.grace is None else {"max_grace_period": {"seconds": int(self.grace)}}
        for agent in [agent for host in plan for agent in host.agents if not agent["drain"]]:
            self.masters.call("DRAIN_AGENT", drain_agent={"agent_id": {"value": agent["id"]}, **limit})
        # An agent that goes meanwhile takes its tasks with it.
        problem = "tasks run there, or its agent does not answer"
        self._wait(plan, lambda host: host.state in ("drained", "absent", "down"), problem, timeout)

    def _up(self, plan, timeout):
        down = [host.machine for host in plan if host.down]
        if down:  # which takes them out of the schedule as well
            self.masters.request("POST", "/machine/up", down)
        self._write_schedule([host for host in plan if not host.down], None, lambda host: not host.window)
        for agent in [agent for host in plan for agent in host.agents if not agent["active"]]:
            self.masters.call("REACTIVATE_AGENT", reactivate_agent={"agent_id": {"value": agent["id"]}})
        self._wait(plan, lambda host: host.state in ("up", "lost", "absent"), "it is not active again", timeout)

    def _write_schedule(self, plan, window, good):
        """Change the one schedule of the cluster, which others may write at the same time, until all are `good`:
        put them there with `window`, or take them out when it is None."""
        for _attempt in range(ATTEMPTS):
            wrong = [host for host in self.look([host.name for host in plan]).values() if not good(host)]
            if not wrong:
                return
            named = {host.name.lower() for host in wrong}
            windows = []
            for one in self._schedule():
                left = [machine for machine in one["machine_ids"] if machine.get("hostname", "").lower() not in named]
                windows += [{**one, "machine_ids": left}] if left else []
            if window:
                span = {name: {"nanoseconds": seconds * SECOND} for name, seconds in window.items()}
                windows.append({"machine_ids": [host.machine for host in wrong], "unavailability": span})
            self.masters.request("POST", "/maintenance/schedule", {"windows": windows})
            # Who read the schedule before it was written has written by then, perhaps without these.
            time.sleep(PAUSE * random.uniform(0.5, 1.5))
        names = ", ".join(host.name for host in plan)
        raise MesosError(f"{names}: somebody else keeps changing the maintenance schedule")

    def _schedule(self):
        return (self.masters.request("GET", "/maintenance/schedule") or {}).get("windows", [])

    def _wait(self, plan, there, problem, timeout):
        deadline = time.monotonic() + timeout
        while True:
            late = [host for host in self.look([host.name for host in plan]).values() if not there(host)]
            if not late:
                return
            if time.monotonic() >= deadline:
                states = ", ".join(f"{host.name} is {host.state}" for host in late)
                raise MesosError(f"not finished in {timeout} s: {states}: {problem}")
            time.sleep(PAUSE)


def _seconds(span):
    return int((span or {}).get("nanoseconds", 0)) // SECOND

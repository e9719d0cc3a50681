# SPDX-License-Identifier: Apache-2.0
"""What the leading instance does: takes changes, carries out deployments, starts, watches and replaces tasks.

One thread looks at the agents and acts (`tick`); requests change the root through `change`. Both hold `lock` while they
look at or change what is here, never while they wait for somebody.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from urllib.parse import quote

from . import deployment, instances
from .deployment import Deployment
from .errors import ApiError, locked, unknown_app
from .instances import CONDITIONS, ENDED, Instance
from .mesos import MesosError
from .offers import REASONS, Offer
from .root import Root, later, now

LOG = logging.getLogger("marathon")
TICK = 0.3  # seconds
HEARTBEAT = 3  # seconds between two registrations with the master
ABSENT = 2  # seconds that an agent is away from the master's list until its tasks are unreachable
NEW_MASTER = 10  # seconds in which agents come back to a new leading master
FORGOTTEN = 5  # seconds until a task that its agent does not know is lost
ASK_AGAIN = 5  # seconds until a task that does not end is told again
OFFERS = 1  # seconds between two looks at offers that were not taken
PER_OFFER = 5  # tasks that start on one offer, at most


class Waiting:
    """An app some of whose tasks wait for an offer."""

    def __init__(self):
        self.count = 0
        self.since = now()
        self.looked = 0.0
        self.processed = 0
        self.unused = 0
        self.last_used = ""
        self.last_unused = ""
        self.attempts = dict.fromkeys(REASONS, 0)
        self.last = {}  # agent: {"offer", "reason", "timestamp"} of its last offer that was not taken


class Delay:
    """How long an app that fails is left alone."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.until = time.time() + seconds


class Scheduler:
    """The apps and their tasks; `versions` and `store` keep them, `mesos` runs them, `events` tells about them."""

    def __init__(self, store, versions, mesos, events, options):
        self.store = store
        self.versions = versions
        self.mesos = mesos
        self.events = events
        self.options = options
        self.lock = threading.RLock()
        self.wake = threading.Event()
        self.framework = store.get("framework")
        self.root = self._load_root(store.get("root")) or Root(now())
        self.instances = {one["id"]: Instance(**one) for one in store.values("instances").values()}
        self.deployments = {one["id"]: Deployment(**one) for one in store.values("deployments").values()}
        self.failures = {one["appId"]: one for one in store.values("failures").values()}
        self.waiting = {}
        self.delays = {}
        self.agents = {}
        self.master = ""
        self.master_since = 0.0
        self.seen = {}  # agent: when the master last listed it
        self.registered = 0.0

    def _load_root(self, stored):
        if stored is None:
            return None
        apps = {key: self.versions.get(key, version) for key, version in stored["apps"].items()}
        return Root(stored["version"], {key: app for key, app in apps.items() if app}, stored["groups"])

    def root_at(self, version):
        """The root in a former version; None without it."""
        return self._load_root(self.store.get(f"roots/{version}"))

    # Changes

    def change(self, edit, force=False, restarted=(), kill=()):
        """Change the root by `edit(root)` and deploy what changes; returns the Deployment. Raises ApiError.

        Running deployments that change the same apps lock it, or are ended with `force`. `restarted`: apps whose tasks
        are all replaced; `kill`: tasks that are stopped besides.
        """
        with self.lock:
            after = self.root.copy()
            after.version = max(now(), later(self.root.version))
            edit(after)
            after.settle(self.root, self.options.port_range, restarted)
            found = deployment.plan(self.root, after, restarted, kill)
            changed = set(found.apps)
            conflicts = [one for one in self.deployments.values() if changed & set(one.apps)]
            if conflicts and not force:
                raise locked([one.id for one in conflicts])
            for key in changed & after.apps.keys():
                self.versions.put(after.apps[key])
            stored = {
                "version": after.version,
                "apps": {key: app["version"] for key, app in after.apps.items()},
                "groups": after.groups,
            }
            self.store.put(f"roots/{after.version}", stored)
            self._forget_roots(after)
            for one in conflicts:
                self._end(one, "deployment_failed")
            self.store.put(f"deployments/{found.id}", found.stored())
            self.store.put("root", stored)
            found.groups = (groups(self.root), groups(after))
            before, self.root = self.root, after
            self.deployments[found.id] = found
            for key in changed:
                if key in before.apps and key in after.apps and self._fresh(before.apps[key], after.apps[key]):
                    self.delays.pop(key, None)
            for task in kill:
                self._kill(self.instances[task])
            self.events.publish("group_change_success", groupId="/", version=after.version)
            self.wake.set()
            return found

    def _forget_roots(self, current):
        """Keep so many former roots, and no apps that are in none."""
        names = self.store.names("roots")
        old, kept = names[: -self.options.zk_max_versions], names[-self.options.zk_max_versions :]
        gone = {key for name in old for key in self.store.get(f"roots/{name}")["apps"]} - current.apps.keys()
        if gone:
            gone -= {key for name in kept for key in self.store.get(f"roots/{name}")["apps"]}
        for key in gone:
            self.versions.forget(key)
        for name in old:
            self.store.delete(f"roots/{name}")

    @staticmethod
    def _fresh(old, new):
        return old["versionInfo"]["lastConfigChangeAt"] != new["versionInfo"]["lastConfigChangeAt"]

    def cancel(self, deployment_id, force):
        """End a deployment; unless `force`, deploy what was before it and return that Deployment. Raises ApiError."""
        with self.lock:
            found = self.deployments.get(deployment_id)
            if found is None:
                raise ApiError(404, f"DeploymentPlan {deployment_id} does not exist")
            if force:
                self._end(found, "deployment_failed")
                return None

            def restore(root):
                for key, version in found.original.items():
                    app = self.versions.get(key, version) if version else None
                    if app:
                        root.set_app({name: app[name] for name in app if name not in ("version", "versionInfo")})
                    else:
                        root.apps.pop(key, None)

            reverse = self.change(restore, force=True)
            if deployment_id in self.deployments:  # where all is as it was, nothing else has ended it
                self._end(found, "deployment_failed")
            return reverse

    def kill(self, tasks, scale, force):
        """Stop tasks; with `scale` their apps shrink by them, and the Deployment is returned. Raises ApiError."""
        with self.lock:
            if not scale:
                for one in tasks:
                    self._kill(one)
                self.wake.set()
                return None

            def shrink(root):
                for one in tasks:
                    app = root.apps[one.app_id]
                    app["instances"] = max(0, app["instances"] - 1)

            return self.change(shrink, force, kill=[one.id for one in tasks])

    # What is going on

    def of_app(self, app_id):
        """The tasks of an app."""
        return [one for one in self.instances.values() if one.app_id == app_id]

    def app(self, app_id):
        """An app. Raises ApiError."""
        if app_id not in self.root.apps:
            raise unknown_app(app_id)
        return self.root.apps[app_id]

    def delay(self, app_id):
        """Seconds until the next task of an app may start."""
        found = self.delays.get(app_id)
        return max(0, found.until - time.time()) if found else 0

    # The loop

    def tick(self):
        """Look at the agents, and do what there is to do."""
        tasks, strays = self._look(), []
        with self.lock:
            if tasks is not None:
                strays = self._absorb(tasks)
            for one in list(self.deployments.values()):
                self._advance(one)
            for key in {*self.root.apps, *(one.app_id for one in self.instances.values())}:
                self._keep(key)
            orders = self._place() if tasks is not None else []
            kills = [one for one in self.instances.values() if one.killing and time.time() - one.asked >= ASK_AGAIN]
        self._send(orders, kills)
        for agent, task_id in strays:
            self._stop_stray(agent, task_id)

    def _look(self):
        """The tasks on each agent that answers, {url: [task]}; None when no master leads."""
        try:
            leader = self.mesos.leader()
            if leader != self.master:
                LOG.info("the leading Mesos master is %s", leader)
                self.master, self.master_since, self.registered = leader, time.monotonic(), 0.0
            if time.monotonic() - self.registered >= HEARTBEAT:
                self._register(leader)
            listed = self.mesos.agents(leader)
        except MesosError as exc:
            LOG.warning("%s", exc)
            self.agents = {}
            return None
        moment = time.monotonic()
        self.agents = {one["id"]: one for one in listed}
        self.seen = {**self.seen, **dict.fromkeys(self.agents, moment)}
        return self.mesos.tasks(list(self.agents.values()))

    def _register(self, leader):
        try:
            found = self.mesos.register(leader, self.framework, self.options.framework_name, self.options.webui_url)
        except MesosError as exc:
            if exc.status != 403 or not self.framework:
                raise
            LOG.error("Mesos has removed framework %s: a new one is registered", self.framework)
            found = self.mesos.register(leader, None, self.options.framework_name, self.options.webui_url)
        if found != self.framework:
            self.store.put("framework", found)
            self.framework = found
        self.registered = time.monotonic()

    def _absorb(self, tasks):
        """Take over what agents say about tasks; returns [(agent, task id)] of ours that nobody knows any more."""
        for one in list(self.instances.values()):
            listed = self.agents.get(one.agent_id)
            reported = tasks.get(listed["url"]) if listed else None
            if reported is None:
                self._silent(one, listed)
                continue
            found = next((task for task in reported if task["id"] == one.id), None)
            if found:
                self._update(one, found)
            elif time.time() - one.staged > FORGOTTEN:
                one.missing = one.missing or time.time()
                if time.time() - one.missing > 1:
                    self._ended(one, "TASK_LOST", "Reconciliation: Task is unknown to the agent")
        return [
            (agent, task["id"]) for agent in self.agents.values() for task in tasks.get(agent["url"], ())
            if task["framework_id"] == self.framework and task["state"] not in ENDED
            and task["id"] not in self.instances
        ]  # fmt: skip

    def _stop_stray(self, agent, task_id):
        LOG.warning("task %s on %s is not known: it is stopped", task_id, agent["hostname"])
        try:
            self.mesos.kill(agent, task_id, 3)
        except MesosError as exc:
            LOG.warning("%s", exc)

    def _silent(self, one, listed):
        """The agent of a task does not answer, or the master does not know it."""
        moment = time.monotonic()
        away = moment - self.seen.get(one.agent_id, self.master_since)
        if listed or away < ABSENT or moment - self.master_since < NEW_MASTER:
            return
        if not one.unreachable:
            one.unreachable = time.time()
            self._set_state(one, "TASK_UNREACHABLE", f"Agent {one.host} is unreachable")
        app = self.root.apps.get(one.app_id)
        strategy = app["unreachableStrategy"] if app else {"expungeAfterSeconds": 0}
        patience = math.inf if strategy == "disabled" else strategy["expungeAfterSeconds"]
        if one.killing or time.time() - one.unreachable >= patience:
            self._forget(one)

    def _update(self, one, task):
        one.confirmed, one.missing = True, 0
        if one.unreachable:
            one.unreachable = 0
            LOG.info("task %s is back", one.id)
        state = task["state"]
        if state in ENDED:
            self._ended(one, state, task.get("message") or "")
            return
        if task.get("started") and not one.started:
            one.started = task["started"]
        if state != one.state:
            self._set_state(one, state, task.get("message") or "")
        if one.checked and task.get("healthy") is not one.healthy:
            self._health(one, task)

    def _health(self, one, task):
        one.healthy, one.health_output = task["healthy"], task.get("health_output") or ""
        if one.healthy is None:
            return
        if one.healthy:
            one.failures, one.last_success = 0, now()
            one.first_success = one.first_success or one.last_success
        else:
            one.failures, one.last_failure = one.failures + 1, now()
            check = self.root.apps.get(one.app_id, {}).get("healthChecks", [{}])[0]
            self.events.publish(
                "failed_health_check_event", appId=one.app_id, taskId=one.id, instanceId=one.instance_id,
                healthCheck=check,
            )  # fmt: skip
        self.store.put(f"instances/{one.id}", one.stored())
        self.events.publish(
            "health_status_changed_event", appId=one.app_id, taskId=one.id, instanceId=one.instance_id,
            version=one.version, alive=one.healthy,
        )  # fmt: skip
        self.events.publish(
            "instance_health_changed_event", instanceId=one.instance_id, runSpecId=one.app_id,
            runSpecVersion=one.version, healthy=one.healthy,
        )  # fmt: skip

    def _set_state(self, one, state, message):
        one.state = state
        self.store.put(f"instances/{one.id}", one.stored())
        self._tell(one, state, message)

    def _tell(self, one, state, message):
        self.events.publish(
            "status_update_event", slaveId=one.agent_id, taskId=one.id, taskStatus=state, message=message,
            appId=one.app_id, host=one.host, ipAddresses=one.view()["ipAddresses"],
            ports=[port for port in one.ports if port is not None], version=one.version,
        )  # fmt: skip
        self.events.publish(
            "instance_changed_event", instanceId=one.instance_id, agentId=one.agent_id, slaveId=one.agent_id,
            condition=CONDITIONS[state], host=one.host, runSpecId=one.app_id, runSpecVersion=one.version,
        )  # fmt: skip

    def _ended(self, one, state, message):
        """A task has ended: why it did is kept, and a failed one makes its app wait."""
        LOG.info("task %s: %s %s", one.id, state, message)
        unhealthy = one.healthy is False and not one.killing
        if unhealthy:
            for kind in ("unhealthy_task_kill_event", "unhealthy_instance_kill_event"):
                self.events.publish(
                    kind, appId=one.app_id, taskId=one.id, instanceId=one.instance_id, version=one.version,
                    reason=one.health_output or message, host=one.host, slaveId=one.agent_id,
                )  # fmt: skip
        app = self.root.apps.get(one.app_id)
        if app and (state in ("TASK_FAILED", "TASK_LOST", "TASK_ERROR") or unhealthy):
            self.failures[one.app_id] = {
                "appId": one.app_id, "host": one.host, "message": message, "state": state, "taskId": one.id,
                "timestamp": now(), "version": one.version, "slaveId": one.agent_id,
            }  # fmt: skip
            self.store.put(f"failures/{quote(one.app_id, safe='')}", self.failures[one.app_id])
        late = state != "TASK_KILLED" or unhealthy
        if app and late and not one.killing and not self._outdated(app, one):
            known = self.delays.get(one.app_id)
            if known and time.time() - known.until > app["maxLaunchDelaySeconds"]:
                known = None  # it went well for so long
            seconds = known.seconds * app["backoffFactor"] if known else app["backoffSeconds"]
            self.delays[one.app_id] = Delay(min(seconds, app["maxLaunchDelaySeconds"]))
        self._tell(one, state, message)
        self._forget(one)

    def _forget(self, one):
        self.instances.pop(one.id, None)
        self.store.delete(f"instances/{one.id}")
        self.wake.set()

    def _kill(self, one):
        if not one.killing:
            one.killing, one.asked = True, 0
            self.store.put(f"instances/{one.id}", one.stored())
            self.events.publish(
                "instance_changed_event", instanceId=one.instance_id, agentId=one.agent_id, slaveId=one.agent_id,
                condition="Killing", host=one.host, runSpecId=one.app_id, runSpecVersion=one.version,
            )  # fmt: skip

    # Deployments

    def _end(self, one, event):
        """A deployment is over."""
        LOG.info("%s: %s", event, one.id)
        self.deployments.pop(one.id, None)
        self.store.delete(f"deployments/{one.id}")
        self.events.publish(event, id=one.id, plan=self._plan(one))

    def _plan(self, one):
        """A deployment as events give it."""
        one.groups = one.groups or (groups(self.root), groups(self.root))
        return one.plan()

    def _announce(self, one, event):
        step = {"actions": [{"action": action["action"], "app": action["app"]} for action in one.actions]}
        self.events.publish(event, plan=self._plan(one), currentStep=step)

    def _advance(self, one):
        """Carry a deployment on as far as it goes now."""
        while one.actions:
            if not one.started:
                one.started = True
                self._announce(one, "deployment_info")
            done = [self._act(action) for action in one.actions]
            if not all(done):
                return
            self._announce(one, "deployment_step_success")
            one.step, one.started = one.step + 1, False
            self.store.put(f"deployments/{one.id}", one.stored())
        self._end(one, "deployment_success")

    def _act(self, action):
        """Do what an action needs now; returns whether it is done."""
        key = action["app"]
        tasks = self.of_app(key)
        if action["action"] == "StopApplication":
            for one in tasks:
                self._kill(one)
            if tasks:
                return False
            if self.failures.pop(key, None):
                self.store.delete(f"failures/{quote(key, safe='')}")
            self.waiting.pop(key, None)
            self.delays.pop(key, None)
            self.events.publish("app_terminated_event", appId=key)
            return True
        app = self.root.apps.get(key)
        if app is None or action["action"] == "StartApplication":
            return True
        if action["action"] == "RestartApplication":
            return self._replace(app, tasks)
        self._scale(app, tasks)
        done = len([one for one in tasks if one.ready]) >= app["instances"]
        return done and len(tasks) == app["instances"] and not any(one.killing for one in tasks)

    @staticmethod
    def _outdated(app, one):
        return one.version < app["versionInfo"]["lastConfigChangeAt"]

    @staticmethod
    def _active(app, tasks):
        """The tasks that count as instances of an app."""
        strategy = app["unreachableStrategy"]
        inactive = math.inf if strategy == "disabled" else strategy["inactiveAfterSeconds"]
        return [
            one for one in tasks
            if not one.killing and not (one.unreachable and time.time() - one.unreachable >= inactive)
        ]  # fmt: skip

    def _scale(self, app, tasks):
        """Start or stop tasks until there are as many as there should be."""
        active = self._active(app, tasks)
        self._want(app, app["instances"] - len(active))
        young = app["killSelection"] == "YOUNGEST_FIRST"
        # Those that do not run yet go first, then by age.
        order = sorted(active, key=lambda one: (one.ready, -one.staged if young else one.staged))
        for one in order[: max(0, len(active) - app["instances"])]:
            self._kill(one)

    def _replace(self, app, tasks):
        """Go on replacing tasks of an old configuration, within what the upgrade strategy allows."""
        strategy, wanted = app["upgradeStrategy"], app["instances"]
        most = math.floor(wanted * (1 + strategy["maximumOverCapacity"]) + 1e-9)
        least = math.ceil(wanted * strategy["minimumHealthCapacity"] - 1e-9)
        active = self._active(app, tasks)
        old = sorted((one for one in active if self._outdated(app, one)), key=lambda one: (one.ready, one.staged))
        fresh = [one for one in active if not self._outdated(app, one)]
        if most == least and old:
            most += 1  # or nothing could ever move
        ready = len([one for one in active if one.ready])
        for one in old:
            # One that is not ready does not count as health capacity: it may go at once.
            if not one.ready:
                self._kill(one)
            elif ready - 1 >= least:
                ready -= 1
                self._kill(one)
        there = len([one for one in tasks if not one.unreachable])
        self._want(app, max(0, min(wanted - len(fresh), most - there)))
        for one in sorted(fresh, key=lambda one: (one.ready, -one.staged))[: max(0, len(fresh) - wanted)]:
            self._kill(one)
        return len(tasks) == wanted and all(one.ready and not self._outdated(app, one) for one in tasks)

    def _keep(self, key):
        """Keep an app that no deployment changes at its number of instances."""
        if any(key in one.apps for one in self.deployments.values()):
            return
        app = self.root.apps.get(key)
        if app:
            self._scale(app, self.of_app(key))
        else:
            for one in self.of_app(key):
                self._kill(one)

    # Offers

    def _want(self, app, count):
        """Have `count` more tasks of an app started."""
        if count <= 0:
            self.waiting.pop(app["id"], None)
        else:
            self.waiting.setdefault(app["id"], Waiting()).count = count

    def _place(self):
        """Find places for tasks that wait; returns [(agent, Instance, order)]."""
        orders = []
        agents = [one for one in self.agents.values() if one["active"]]
        offers = {}
        for key, waiting in list(self.waiting.items()):
            app = self.root.apps.get(key)
            if app is None:
                self.waiting.pop(key)
                continue
            if self.delay(key) > 0:
                continue
            counted = time.monotonic() - waiting.looked >= OFFERS
            waiting.looked = time.monotonic() if counted else waiting.looked
            random.shuffle(agents)
            for agent in agents:
                if agent["id"] not in offers:
                    there = [one for one in self.instances.values() if one.agent_id == agent["id"]]
                    offers[agent["id"]] = Offer(agent, there)
                self._offer(app, waiting, offers[agent["id"]], counted, orders)
            waiting.last = {one: found for one, found in waiting.last.items() if one in self.agents}
        return orders

    def _offer(self, app, waiting, offer, counted, orders):
        """Start on an offer what fits; note why the rest does not."""
        for _ in range(PER_OFFER):
            if not waiting.count:
                return
            siblings = [one for one in self.of_app(app["id"]) if not one.killing and not one.unreachable]
            placed = [self.agents[one.agent_id] for one in siblings if one.agent_id in self.agents]
            ports, reasons = offer.match(app, placed)
            if reasons:
                if counted:
                    self._unmatched(waiting, offer, reasons)
                return
            offer.take(app, ports)
            one = instances.new(app, offer.agent, ports)
            self.instances[one.id] = one
            self.store.put(f"instances/{one.id}", one.stored())
            self._tell(one, "TASK_STAGING", "")
            waiting.count -= 1
            waiting.processed += 1
            waiting.last_used = now()
            waiting.last.pop(offer.agent["id"], None)
            orders.append((offer.agent, one, instances.order(one, self.framework, app)))

    @staticmethod
    def _unmatched(waiting, offer, reasons):
        waiting.processed += 1
        waiting.unused += 1
        waiting.last_unused = now()
        waiting.attempts[min(reasons, key=REASONS.index)] += 1
        waiting.last[offer.agent["id"]] = {"offer": offer.view(), "reason": reasons, "timestamp": waiting.last_unused}

    def _send(self, orders, kills):
        """Tell agents what to start and to stop."""
        for agent, one, order in orders:
            try:
                self.mesos.launch(agent, order)
                one.confirmed = True
            except MesosError as exc:
                LOG.warning("%s", exc)
                with self.lock:
                    if exc.status == 409:
                        self._tell(one, "TASK_LOST", str(exc))
                        self._forget(one)
                    elif exc.status:
                        self._ended(one, "TASK_ERROR", str(exc))
        for one in kills:
            agent = self.agents.get(one.agent_id)
            one.asked = time.time()
            app = self.root.apps.get(one.app_id, {})
            try:
                if agent:
                    self.mesos.kill(agent, one.id, app.get("taskKillGracePeriodSeconds", 3))
            except MesosError as exc:
                LOG.warning("%s", exc)
                if exc.status == 404:
                    with self.lock:
                        self._ended(one, "TASK_KILLED", "the agent does not know it")

    # The queue

    def queue(self, with_offers):
        """What waits for offers, as /v2/queue gives it."""
        with self.lock:
            found = []
            for key, one in self.waiting.items():
                if not one.count or key not in self.root.apps:
                    continue
                left = math.ceil(self.delay(key))
                summary = {"processedOffersCount": one.processed, "unusedOffersCount": one.unused}
                if one.last_unused:
                    summary["lastUnusedOfferAt"] = one.last_unused
                if one.last_used:
                    summary["lastUsedOfferAt"] = one.last_used
                last = dict.fromkeys(REASONS, 0)
                for unused in one.last.values():
                    last[min(unused["reason"], key=REASONS.index)] += 1
                summary["rejectSummaryLastOffers"] = funnel(last, len(one.last))
                summary["rejectSummaryLaunchAttempt"] = funnel(one.attempts, one.processed)
                item = {
                    "count": one.count,
                    "delay": {"timeLeftSeconds": left, "overdue": left == 0},
                    "since": one.since,
                    "processedOffersSummary": summary,
                    "app": self.root.apps[key],
                }
                if with_offers:
                    item["lastUnusedOffers"] = list(one.last.values())
                found.append(item)
            return {"queue": found}


def groups(root):
    """A root as events give it: its apps at the top."""
    return {
        "id": "/", "apps": list(root.apps.values()), "groups": [], "dependencies": [], "pods": [],
        "version": root.version,
    }  # fmt: skip


def funnel(declined, processed):
    """How many offers each reason declined, of those that the ones before it let through."""
    found = []
    for reason in REASONS:
        found.append({"reason": reason, "declined": declined[reason], "processed": processed})
        processed -= declined[reason]
    return found

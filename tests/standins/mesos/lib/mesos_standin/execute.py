# SPDX-License-Identifier: Apache-2.0
"""mesos-execute: runs one command as a framework of its own, and ends with 0 however the task ended."""

from __future__ import annotations

import json
import os
import sys
import time

from . import election, flags, values, web

ENDED = ("TASK_FINISHED", "TASK_FAILED", "TASK_KILLED")
WANTED = {"cpus": 1.0, "mem": 128.0}


class Scheduler:
    """Speaks for one task."""

    def __init__(self, given, definition):
        self.given, self.definition = given, definition
        self.credential = (given.principal, given.secret or "") if given.principal else None
        self.framework, self.said = None, 0.0
        self.master = None

    def ask(self, method, path, body=None):
        """The leading master's answer; waits for one."""
        while True:
            try:
                status, answer, headers = web.call(self.master, method, path, body, credential=self.credential)
            except OSError:
                time.sleep(0.5)
                self.master = find(self.given.master)
                continue
            if status == 307:
                self.master = f"http:{headers['Location']}".rpartition(path)[0]
            elif status in (401, 403):
                flags.die(f"Framework failed to authenticate or register: {status}")
            elif status == 503:
                time.sleep(0.5)
            else:
                return answer

    def run(self):
        self.master = find(self.given.master)
        self.subscribe()
        print(f"Subscribed with ID {self.framework}", flush=True)
        agent = self.place()
        print(f"Submitted task '{self.given.name}' to agent '{agent['id']}'", flush=True)
        self.follow(agent)
        self.ask("DELETE", f"/standin/frameworks/{self.framework}")

    def subscribe(self):
        body = {"name": self.given.framework_name, "principal": self.given.principal, "role": self.given.role,
                "failover_timeout": 0, "user": "root", "id": self.framework}  # fmt: skip
        self.framework = self.ask("POST", "/standin/frameworks", body)["id"]
        self.said = time.monotonic()

    def stay(self):
        """The master forgets frameworks that say nothing."""
        if time.monotonic() - self.said > 3:
            self.subscribe()

    def place(self):
        """Start the task on an agent that has room: as long as there is none it is waited for."""
        body = {"id": self.given.name, "framework_id": self.framework, "app_id": self.given.name,
                "definition": self.definition, "ports": [], "env": {}}  # fmt: skip
        while True:
            self.stay()
            for agent in self.ask("GET", "/standin/agents"):
                if agent["active"]:
                    try:
                        status, _, _ = web.call(agent["url"], "POST", "/standin/tasks", body, token=agent["token"])
                    except OSError:
                        continue
                    if status == 201:
                        return agent
            time.sleep(0.5)

    def follow(self, agent):
        """Print each state, until the task has ended."""
        began = time.monotonic()
        limit = flags.seconds(self.given.kill_after) if self.given.kill_after else None
        seen = "TASK_STAGING"
        while seen not in ENDED:
            self.stay()
            if limit is not None and time.monotonic() - began > limit:
                limit = None
                web.call(agent["url"], "DELETE", f"/standin/tasks/{self.given.name}", token=agent["token"])
            try:
                _, tasks, _ = web.call(agent["url"], "GET", "/standin/tasks", token=agent["token"])
            except OSError:
                time.sleep(0.5)
                continue
            for one in tasks if isinstance(tasks, list) else ():
                if one["id"] == self.given.name and one["state"] != seen:
                    seen = one["state"]
                    print(f"Received status update {seen} for task '{self.given.name}'")
                    if one["message"]:
                        print(f"  message: '{one['message']}'")
                    print("  source: SOURCE_EXECUTOR", flush=True)
            time.sleep(0.2)


def find(master):
    """Where the leading master is, by the flag; waits for one."""
    if not master.startswith("zk://"):
        return f"http://{master}"
    group = election.detector(master, 10, lambda: None)
    group.start()
    while group.leader is None:
        time.sleep(0.1)
    found = election.url(group.leader)
    group.stop()
    return found


def main(arguments=None):
    given = flags.read("mesos-execute", flags.EXECUTE, sys.argv[1:] if arguments is None else arguments, os.environ)
    for name in ("master", "name"):
        if not given[name]:
            flags.die(f"Flag '{name}' is required, but it was not provided")
    for name in ("task", "task_group", "networks", "volumes"):
        if given[name]:
            flags.die(f"--{name}: the stand-in does not know it")
    if not given.command and not given.docker_image:
        flags.die("Either --command or --docker_image must be given")
    try:
        wants = {**WANTED, **values.resources(given.resources)}
        environment = json.loads(given.env) if given.env else {}
    except ValueError as exc:
        flags.die(f"Failed to parse: {exc}")
    definition = {**wants, "env": environment, "taskKillGracePeriodSeconds": 3}
    definition["cmd" if given.shell else "args"] = given.command if given.shell else [given.command]
    if given.docker_image:
        definition["container"] = {"type": "DOCKER", "docker": {"image": given.docker_image, "network": "HOST"}}
    Scheduler(given, definition).run()

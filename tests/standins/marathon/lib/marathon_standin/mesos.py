# SPDX-License-Identifier: Apache-2.0
"""The stand-in for Mesos as a framework sees it: which master leads, which agents there are, tasks on them."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from kazoo.exceptions import KazooException

from .store import connect

PATIENCE = 3  # seconds for an answer
PAUSE = 3  # seconds in which an agent that does not answer is left alone


class MesosError(Exception):
    """A master or an agent did not answer, or refused; `status` is 0 without an answer."""

    def __init__(self, message, status=0):
        super().__init__(message)
        self.status = status


class Mesos:
    """The cluster behind `master`, zk://HOST:PORT,.../mesos or HOST:PORT."""

    def __init__(self, master, principal="", secret="", session_timeout=10, patience=10):
        self.zookeeper = connect(master, session_timeout, patience) if master.startswith("zk://") else None
        self.fixed = "" if self.zookeeper else (master if "://" in master else f"http://{master}")
        self.principal = principal
        login = base64.b64encode(f"{principal}:{secret}".encode()).decode()
        self.headers = {"Authorization": f"Basic {login}"} if principal and secret else {}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.pool = ThreadPoolExecutor(16)
        self.silent = {}  # url of an agent: when it did not answer

    def leader(self):
        """The URL of the leading master. Raises MesosError."""
        if self.fixed:
            return self.fixed
        try:
            names = self.zookeeper.get_children_async("/").get(timeout=PATIENCE)
            names = sorted(name for name in names if name.startswith("json.info_"))
            if not names:
                raise MesosError("no Mesos master leads")
            info = json.loads(self.zookeeper.get_async(f"/{names[0]}").get(timeout=PATIENCE)[0])
        except (KazooException, self.zookeeper.handler.timeout_exception) as exc:
            raise MesosError(f"ZooKeeper does not say which Mesos master leads: {exc!r}") from exc
        return f"http://{info['address']['ip']}:{info['address']['port']}"

    def register(self, leader, framework_id, name, webui_url):
        """(Re-)register as a framework; returns its id. Raises MesosError."""
        body = {"name": name, "principal": self.principal, "webui_url": webui_url}
        if framework_id:
            body["id"] = framework_id
        return self.call("POST", f"{leader}/standin/frameworks", body)["id"]

    def agents(self, leader):
        """The agents that a leading master knows. Raises MesosError."""
        return self.call("GET", f"{leader}/standin/agents")

    def tasks(self, agents):
        """The tasks on agents, {url: [task]}, of those that answer."""
        now = time.monotonic()
        asked = [one for one in agents if now - self.silent.get(one["url"], -PAUSE) >= PAUSE]
        return {url: found for url, found in self.pool.map(self._tasks, asked) if found is not None}

    def _tasks(self, agent):
        url = agent["url"]
        try:
            found = self.call("GET", f"{url}/standin/tasks", agent=agent)
            self.silent.pop(url, None)
            return url, found
        except MesosError:
            self.silent[url] = time.monotonic()
            return url, None

    def launch(self, agent, task):
        """Start a task on an agent. Raises MesosError, with status 409 when its resources are gone."""
        self.call("POST", f"{agent['url']}/standin/tasks", task, agent)

    def kill(self, agent, task_id, grace):
        """Stop a task, by force after `grace` seconds. Raises MesosError."""
        self.call("DELETE", f"{agent['url']}/standin/tasks/{task_id}?grace={grace}", agent=agent)

    def call(self, method, url, body=None, agent=None):
        """The JSON that a request is answered with. Raises MesosError."""
        data = None if body is None else json.dumps(body).encode()
        login = {"Authorization": f"Bearer {agent['token']}"} if agent and agent.get("token") else self.headers
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **login}, method=method)
        try:
            with self.opener.open(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as exc:
            said = exc.read(500).decode(errors="replace")
            raise MesosError(f"{method} {url}: status {exc.code}: {said}", exc.code) from exc
        except OSError as exc:
            raise MesosError(f"{method} {url}: {exc}") from exc
        try:
            return json.loads(text) if text else None
        except ValueError as exc:
            raise MesosError(f"{method} {url}: no JSON in the answer") from exc

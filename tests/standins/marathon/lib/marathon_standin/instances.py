# SPDX-License-Identifier: Apache-2.0
"""Tasks of apps: what Marathon knows of each, and what agents are told to start."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import asdict, dataclass, field

from .definition import ports as port_list
from .definition import service_ports
from .root import stamp

ENDED = {"TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_LOST", "TASK_ERROR", "TASK_GONE"}
CONDITIONS = {
    "TASK_STAGING": "Staging", "TASK_STARTING": "Starting", "TASK_RUNNING": "Running", "TASK_FINISHED": "Finished",
    "TASK_FAILED": "Failed", "TASK_KILLED": "Killed", "TASK_KILLING": "Killing", "TASK_LOST": "Dropped",
    "TASK_UNREACHABLE": "Unreachable", "TASK_ERROR": "Error", "TASK_GONE": "Gone",
}  # fmt: skip


@dataclass
class Instance:
    """One task of an app. Times are seconds since 1970, 0 for not yet; `ports` has None for what has no host port."""

    id: str
    app_id: str
    version: str
    agent_id: str
    url: str
    host: str
    ports: list
    resources: dict
    service_ports: list = field(default_factory=list)
    state: str = "TASK_STAGING"
    staged: float = 0
    started: float = 0
    confirmed: bool = False  # the agent has taken it
    killing: bool = False
    asked: float = 0  # when it was last told to stop
    healthy: object = None
    checked: bool = False  # the app has health checks
    health_output: str = ""
    first_success: str = ""
    last_success: str = ""
    last_failure: str = ""
    failures: int = 0
    unreachable: float = 0
    missing: float = 0  # since when its agent does not have it

    @property
    def instance_id(self):
        """The instance's id: what all tasks that ever took this place share."""
        return self.id.split("._app")[0]

    @property
    def ready(self):
        """Whether a deployment counts it as done."""
        return self.state == "TASK_RUNNING" and not self.killing and (not self.checked or self.healthy is True)

    def stored(self):
        """As it is kept."""
        return asdict(self)

    def view(self):
        """As /v2/tasks gives it."""
        found = {
            "ipAddresses": [{"ipAddress": address(self.url), "protocol": "IPv4"}] if self.started else [],
            "stagedAt": stamp(self.staged),
            "state": "TASK_KILLING" if self.killing and self.state != "TASK_UNREACHABLE" else self.state,
            "ports": [port for port in self.ports if port is not None],
            "startedAt": stamp(self.started) if self.started else None,
            "version": self.version,
            "id": self.id,
            "appId": self.app_id,
            "slaveId": self.agent_id,
            "host": self.host,
            "servicePorts": self.service_ports,
            "healthCheckResults": [self.health()] if self.checked and self.healthy is not None else [],
            "localVolumes": [],
            "role": "*",
        }
        optional = ("startedAt", "servicePorts", "healthCheckResults", "localVolumes")
        return {key: value for key, value in found.items() if value or key not in optional}

    def health(self):
        """The result of its health check."""
        return {
            "alive": bool(self.healthy),
            "consecutiveFailures": self.failures,
            "firstSuccess": self.first_success or None,
            "lastFailure": self.last_failure or None,
            "lastSuccess": self.last_success or None,
            "lastFailureCause": (self.health_output or None) if not self.healthy else None,
            "instanceId": self.instance_id,
        }


def address(url):
    """The host in a URL http://HOST:PORT."""
    return re.sub(r"^\w+://|:\d+/?$", "", url)


def new(app, agent, ports):
    """A task of `app` for `agent` with these host ports."""
    name = app["id"].strip("/").replace("/", "_")
    return Instance(
        id=f"{name}.instance-{uuid.uuid4()}._app.1",
        app_id=app["id"],
        version=app["version"],
        agent_id=agent["id"],
        url=agent["url"],
        host=agent["hostname"],
        ports=ports,
        resources={key: app[key] for key in ("cpus", "mem", "disk")},
        service_ports=service_ports(app),
        staged=time.time(),
        checked=bool(app.get("healthChecks")),
    )


def order(instance, framework_id, app):
    """What an agent is told to start."""
    ports = [port for port in instance.ports if port is not None]
    return {
        "id": instance.id,
        "framework_id": framework_id,
        "app_id": app["id"],
        "definition": app,
        "ports": ports,
        "env": environment(instance, app),
    }


def environment(instance, app):
    """The variables of a task: the app's own, and Marathon's over them."""
    docker = app.get("container", {}).get("docker", {})
    found = {
        **app.get("env", {}),
        "MESOS_TASK_ID": instance.id,
        "MARATHON_APP_ID": app["id"],
        "MARATHON_APP_VERSION": app["version"],
        "MARATHON_APP_RESOURCE_CPUS": str(float(app["cpus"])),
        "MARATHON_APP_RESOURCE_MEM": str(float(app["mem"])),
        "MARATHON_APP_RESOURCE_DISK": str(float(app["disk"])),
        "MARATHON_APP_RESOURCE_GPUS": str(app["gpus"]),
        "HOST": instance.host,
    }
    if docker:
        found["MARATHON_APP_DOCKER_IMAGE"] = docker["image"]
    labels = {re.sub(r"[^A-Z0-9_]", "_", key.upper()): value for key, value in app["labels"].items()}
    found["MARATHON_APP_LABELS"] = " ".join(sorted(labels))
    found.update({f"MARATHON_APP_LABEL_{key}": value for key, value in labels.items() if len(value) <= 512})
    return {**found, **port_environment(instance, app)}


def port_environment(instance, app):
    """PORT, PORT0, PORTS and so on: ports of the host, or of the container where it has none there."""
    found, numbers = {}, []
    for index, one in enumerate(port_list(app)):
        host_port = instance.ports[index]
        number = one.get("containerPort") if host_port is None else host_port
        if number is None:
            continue
        numbers.append(str(number))
        found[f"PORT{index}"] = str(number)
        declared = one.get("port") or one.get("containerPort")
        if declared:
            found[f"PORT_{declared}"] = str(number)
        if one.get("name"):
            found["PORT_" + re.sub(r"[^A-Z0-9_]", "_", one["name"].upper())] = str(number)
    if numbers:
        found.update(PORT=numbers[0], PORTS=",".join(numbers))
    return found

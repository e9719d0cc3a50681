# SPDX-License-Identifier: Apache-2.0
"""Marathon app definitions, read strictly: what is wrong or not understood is refused by its path in the definition.

Field names and their meaning are those of Marathon 1.5's REST API (`/v2/apps`). Runs on managed hosts: standard
library only.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

MIB = 2**20


class DefinitionError(Exception):
    """The definition is wrong or asks for what the engine cannot do; the message starts with the path of the field."""


@dataclass
class HealthCheck:
    """One health check; times are in seconds."""

    protocol: str
    port: int = 0
    path: str = "/"
    command: str = ""
    grace: int = 300
    interval: int = 60
    timeout: int = 20
    failures: int = 3


@dataclass
class App:
    """An app as an engine runs it; `cpus` are cores, `mem` is in MiB."""

    id: str
    image: str
    args: list = field(default_factory=list)
    cmd: str = ""
    cpus: float = 1.0
    mem: int = 128
    env: dict = field(default_factory=dict)
    user: str = ""
    privileged: bool = False
    devices: list = field(default_factory=list)
    volumes: list = field(default_factory=list)  # (host path, container path, "RO" or "RW")
    ports: list = field(default_factory=list)  # (name, port, protocol)
    checks: list = field(default_factory=list)
    dependencies: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)
    kill_grace: int = 10
    backoff: int = 1


# What a definition may contain, by path. True: read here. A string: why no engine of ours on one host honours it.
_FIELDS = {
    "": {
        "id": True, "cmd": True, "args": True, "cpus": True, "mem": True, "instances": True, "env": True, "user": True,
        "container": True, "networks": True, "portDefinitions": True, "healthChecks": True, "dependencies": True,
        "labels": True, "taskKillGracePeriodSeconds": True, "backoffSeconds": True,
        "constraints": "placement is the inventory's: a host is in the group of the app or it is not",
        "disk": "podman cannot limit disk on every file system",
        "gpus": "use container.docker.parameters with key device",
        "fetch": "files come with the role", "uris": "files come with the role", "residency": "use a host volume",
        "secrets": "write a file of mode 0600 and mount it",
        "upgradeStrategy": "one instance a host is restarted in place",
        "unreachableStrategy": "there is no agent to lose", "acceptedResourceRoles": "there are no offers",
        "readinessChecks": "use healthChecks", "ipAddress": "deprecated: use networks", "ports": "use portDefinitions",
        "requirePorts": "ports are always those asked for", "executor": "podman is the executor",
    },
    "container": {"type": True, "docker": True, "volumes": True, "portMappings": "containers use the host's network"},
    "container.docker": {"image": True, "privileged": True, "forcePullImage": "images are put on hosts beforehand",
                         "parameters": True},
    "healthChecks": {"protocol": True, "path": True, "port": True, "portIndex": True, "command": True,
                     "gracePeriodSeconds": True, "intervalSeconds": True, "timeoutSeconds": True,
                     "maxConsecutiveFailures": True},
}  # fmt: skip


def parse(definition):
    """The App that a definition describes. Raises DefinitionError."""
    _known("", definition)
    name = _typed(definition, "id", str, required=True)
    if not re.fullmatch(r"/?[a-z][a-z0-9-]{0,40}", name):
        raise DefinitionError(f"id: {name!r} must be lower-case letters, digits and dashes")
    container = _typed(definition, "container", dict, required=True)
    _known("container", container)
    if container.get("type", "DOCKER") not in ("DOCKER", "MESOS"):
        raise DefinitionError(f"container.type: {container['type']!r} is neither DOCKER nor MESOS")
    docker = _typed(container, "docker", dict, "container.", required=True)
    _known("container.docker", docker)
    if definition.get("instances", 1) != 1:
        raise DefinitionError("instances: this engine runs one instance on each host of the app's group")
    for i, network in enumerate(definition.get("networks", [])):
        if network != {"mode": "host"}:
            raise DefinitionError(f"networks[{i}]: this engine offers only mode host")
    ports = [_port(i, one) for i, one in enumerate(_typed(definition, "portDefinitions", list, default=[]))]
    checks = [_check(i, one, ports) for i, one in enumerate(_typed(definition, "healthChecks", list, default=[]))]
    mem = _number(definition, "mem", 128)
    return App(
        id=name.strip("/"),
        image=_typed(docker, "image", str, "container.docker.", required=True),
        args=_typed(definition, "args", list, default=[]),
        cmd=_typed(definition, "cmd", str, default=""),
        cpus=_number(definition, "cpus", 1.0),
        mem=int(mem),
        env={key: str(value) for key, value in _typed(definition, "env", dict, default={}).items()},
        user=_typed(definition, "user", str, default=""),
        privileged=_typed(docker, "privileged", bool, "container.docker.", default=False),
        devices=[_device(i, one) for i, one in enumerate(docker.get("parameters", []))],
        volumes=[_volume(i, one) for i, one in enumerate(_typed(container, "volumes", list, "container.", default=[]))],
        ports=ports,
        checks=checks,
        dependencies=[one.strip("/") for one in _typed(definition, "dependencies", list, default=[])],
        labels=_typed(definition, "labels", dict, default={}),
        kill_grace=int(_number(definition, "taskKillGracePeriodSeconds", 10)),
        backoff=int(_number(definition, "backoffSeconds", 1)),
    )


def _known(path, mapping):
    if not isinstance(mapping, dict):
        raise DefinitionError(f"{path or 'definition'}: must be a mapping")
    fields = _FIELDS[re.sub(r"\[\d+\]$", "", path)]
    for key in mapping:
        where = f"{path}.{key}" if path else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise DefinitionError(f"{where}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        if fields[key] is not True:
            raise DefinitionError(f"{where}: the podman engine does not do this: {fields[key]}")


def _typed(mapping, key, kind, path="", default=None, required=False):
    value = mapping.get(key, default)
    if value is None and required:
        raise DefinitionError(f"{path}{key}: is missing")
    if value is not None and not isinstance(value, kind):
        raise DefinitionError(f"{path}{key}: must be a {kind.__name__}, got {value!r}")
    return value


def _number(mapping, key, default, path="", least=0):
    value = mapping.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise DefinitionError(f"{path}{key}: must be a number of at least {least}, got {value!r}")
    return value


def _port(i, one):
    path = f"portDefinitions[{i}]."
    port = _number(one, "port", 0, path, 1)
    if port > 65535:
        raise DefinitionError(f"{path}port: {port} is above 65535")
    return one.get("name", f"port{i}"), int(port), one.get("protocol", "tcp")


def _volume(i, one):
    path = f"container.volumes[{i}]."
    host, inside = (_typed(one, key, str, path, required=True) for key in ("hostPath", "containerPath"))
    mode = one.get("mode", "RO")
    for key, value in (("hostPath", host), ("containerPath", inside)):
        if not value.startswith("/") or ":" in value:
            raise DefinitionError(f"{path}{key}: {value!r} must be an absolute path without colons")
    if mode not in ("RO", "RW"):
        raise DefinitionError(f"{path}mode: {mode!r} is neither RO nor RW")
    return host, inside, mode


def _device(i, one):
    if one.get("key") != "device":
        raise DefinitionError(f"container.docker.parameters[{i}]: only key device is passed on, got {one.get('key')!r}")
    return one["value"]


def _check(i, one, ports):
    path = f"healthChecks[{i}]."
    _known(f"healthChecks[{i}]", one)
    protocol = one.get("protocol")
    protocol = {"MESOS_HTTP": "HTTP", "MESOS_HTTPS": "HTTPS", "MESOS_TCP": "TCP"}.get(protocol, protocol)
    if protocol not in ("HTTP", "HTTPS", "TCP", "COMMAND"):
        raise DefinitionError(f"{path}protocol: {protocol!r} is none of HTTP, HTTPS, TCP, COMMAND")
    port = one.get("port")
    if protocol != "COMMAND" and port is None:
        index = one.get("portIndex", 0)
        if not isinstance(index, int) or not 0 <= index < len(ports):
            raise DefinitionError(f"{path}portIndex: {index!r} names no portDefinition")
        port = ports[index][1]
    command = (one.get("command") or {}).get("value", "")
    if protocol == "COMMAND" and not command:
        raise DefinitionError(f"{path}command.value: is missing")
    return HealthCheck(
        protocol=protocol,
        port=port or 0,
        path=one.get("path", "/"),
        command=command,
        grace=_number(one, "gracePeriodSeconds", 300, path),
        interval=_number(one, "intervalSeconds", 60, path, 1),
        timeout=_number(one, "timeoutSeconds", 20, path, 1),
        failures=_number(one, "maxConsecutiveFailures", 3, path),
    )

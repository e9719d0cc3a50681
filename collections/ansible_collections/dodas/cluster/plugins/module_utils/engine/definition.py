# SPDX-License-Identifier: Apache-2.0
"""Marathon app definitions, read strictly: what is wrong or not understood is refused by its path in the definition.

Field names and their meaning are those of Marathon 1.5's REST API (`/v2/apps`). Runs on managed hosts: standard
library only.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field

MIB = 2**20


class DefinitionError(Exception):
    """The definition is wrong or asks for what the engine cannot do; the message starts with the path of the field."""


class Refused(DefinitionError):
    """Field `path` asks for what `engine` cannot do, for this `reason`."""

    def __init__(self, path, engine, reason):
        super().__init__(f"{path}: the {engine} engine does not do this: {reason}")


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


# What a definition may contain, by path. True: read here. A string: why no engine of ours on one host honours it;
# what only one of them cannot, that engine refuses itself.
# A refused field that is empty (`"gpus": 0`, as Marathon returns it) asks for nothing and passes.
_FIELDS = {
    "": {
        "id": True, "cmd": True, "args": True, "cpus": True, "mem": True, "instances": True, "env": True, "user": True,
        "container": True, "networks": True, "portDefinitions": True, "healthChecks": True, "dependencies": True,
        "labels": True, "taskKillGracePeriodSeconds": True, "backoffSeconds": True,
        "constraints": "placement is the inventory's: a host is in the group of the app or it is not",
        "disk": "not every file system can limit it",
        "gpus": "use container.docker.parameters with key device",
        "fetch": "files come with the role", "uris": "files come with the role", "residency": "use a host volume",
        "secrets": "write a file of mode 0600 and mount it",
        "upgradeStrategy": "one instance a host is restarted in place",
        "unreachableStrategy": "there is no agent to lose", "acceptedResourceRoles": "there are no offers",
        "readinessChecks": "use healthChecks", "ipAddress": "deprecated: use networks", "ports": "use portDefinitions",
        "requirePorts": "ports are always those asked for", "executor": "the engine is the executor",
        "backoffFactor": "it waits backoffSeconds each time", "killSelection": "there is one instance",
        "maxLaunchDelaySeconds": "it waits backoffSeconds each time",
    },
    "container": {"type": True, "docker": True, "volumes": True, "portMappings": "containers use the host's network"},
    "container.volumes": {"hostPath": True, "containerPath": True, "mode": True,
                          "persistent": "use hostPath", "external": "use hostPath"},
    "container.docker.parameters": {"key": True, "value": True},
    "portDefinitions": {"port": True, "name": True, "protocol": True, "labels": "labels are the app's"},
    "container.docker": {"image": True, "privileged": True, "forcePullImage": "images are put on hosts beforehand",
                         "parameters": True},
    "healthChecks": {"protocol": True, "path": True, "port": True, "portIndex": True, "command": True,
                     "gracePeriodSeconds": True, "intervalSeconds": True, "timeoutSeconds": True,
                     "maxConsecutiveFailures": True},
}  # fmt: skip


_NAME = r"[a-z][a-z0-9-]{0,40}"
_ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_LABEL = r"[A-Za-z0-9_-]{1,128}"  # what Consul takes as a service's metadata


def parse(definition):
    """The App that a definition describes. Raises DefinitionError."""
    _known("", definition)
    container = _typed(definition, "container", dict, required=True)
    _known("container", container)
    if container.get("type", "DOCKER") not in ("DOCKER", "MESOS"):
        raise DefinitionError(f"container.type: {container['type']!r} is neither DOCKER nor MESOS")
    docker = _typed(container, "docker", dict, "container.", required=True)
    _known("container.docker", docker)
    image = _typed(docker, "image", str, "container.docker.", required=True)
    if not re.match(r"\w", image):
        raise DefinitionError(f"container.docker.image: {image!r} is no image's name")
    if _number(definition, "instances", 1) != 1:
        raise DefinitionError("instances: this engine runs one instance on each host of the app's group")
    for i, network in enumerate(_typed(definition, "networks", list, default=[])):
        if network != {"mode": "host"}:
            raise DefinitionError(f"networks[{i}]: this engine offers only mode host")
    if definition.get("cmd") and definition.get("args"):
        raise DefinitionError("cmd: give either cmd or args")
    ports = [_port(i, one) for i, one in enumerate(_typed(definition, "portDefinitions", list, default=[]))]
    parameters = enumerate(_typed(docker, "parameters", list, "container.docker.", default=[]))
    return App(
        id=_name("id", _typed(definition, "id", str, required=True)),
        image=image,
        args=_scalars("args", enumerate(_typed(definition, "args", list, default=[]))),
        cmd=_typed(definition, "cmd", str, default=""),
        # 0 would mean no limit at all
        cpus=_number(definition, "cpus", 1.0, least=0.01),
        mem=int(_number(definition, "mem", 128, least=1)),
        env=_mapping("env", _typed(definition, "env", dict, default={}), _ENV_NAME),
        user=_typed(definition, "user", str, default=""),
        privileged=_typed(docker, "privileged", bool, "container.docker.", default=False),
        devices=[_device(i, one) for i, one in parameters],
        volumes=[_volume(i, one) for i, one in enumerate(_typed(container, "volumes", list, "container.", default=[]))],
        ports=ports,
        checks=[_check(i, one, ports) for i, one in enumerate(_typed(definition, "healthChecks", list, default=[]))],
        dependencies=[
            _name(f"dependencies[{i}]", one)
            for i, one in enumerate(_typed(definition, "dependencies", list, default=[]))
        ],
        labels=_mapping("labels", _typed(definition, "labels", dict, default={}), _LABEL),
        kill_grace=int(_number(definition, "taskKillGracePeriodSeconds", 10)),
        backoff=int(_number(definition, "backoffSeconds", 1)),
    )


def _name(path, value):
    if not isinstance(value, str) or not re.fullmatch(f"/?{_NAME}", value):
        raise DefinitionError(f"{path}: {value!r} must be lower-case letters, digits and dashes")
    return value.strip("/")


def _scalars(path, items):
    """Texts and numbers as texts, from (index, value) pairs."""
    values = []
    for i, value in items:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise DefinitionError(f"{path}[{i}]: must be a text or a number, not {type(value).__name__}")
        values.append(str(value))
    return values


def _mapping(path, given, names):
    """Names to texts. A value is not shown when it is wrong: it may be a secret."""
    for key, value in given.items():
        if not re.fullmatch(names, str(key)):
            raise DefinitionError(f"{path}.{key}: the name must match {names}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise DefinitionError(f"{path}.{key}: must be a text or a number, not {type(value).__name__}")
        if re.search(r"[\n\r\0]", str(value)):
            raise DefinitionError(f"{path}.{key}: must be one line")
    return {key: str(value) for key, value in given.items()}


def _known(path, mapping):
    if not isinstance(mapping, dict):
        raise DefinitionError(f"{path or 'definition'}: must be a mapping")
    fields = _FIELDS[re.sub(r"\[\d+\]$", "", path)]  # one rule for all elements of a list
    for key in mapping:
        where = f"{path}.{key}" if path else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise DefinitionError(f"{where}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        if fields[key] is not True and mapping[key]:
            raise DefinitionError(f"{where}: dodas does not do this: {fields[key]}")


def _typed(mapping, key, kind, path="", default=None, required=False):
    value = mapping.get(key)
    if value is None and required:
        raise DefinitionError(f"{path}{key}: is missing")
    if value is not None and not isinstance(value, kind):
        raise DefinitionError(f"{path}{key}: must be a {kind.__name__}, not {type(value).__name__}")
    return default if value is None else value


def _number(mapping, key, default, path="", least=0):
    value = mapping.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise DefinitionError(f"{path}{key}: must be a number of at least {least}, got {value!r}")
    return value


def _port(i, one):
    path = f"portDefinitions[{i}]"
    _known(path, one)
    protocol = one.get("protocol", "tcp")
    if protocol not in ("tcp", "udp", "udp,tcp"):
        raise DefinitionError(f"{path}.protocol: {protocol!r} is none of tcp, udp, udp,tcp")
    return _typed(one, "name", str, f"{path}.", f"port{i}"), _port_number(one, f"{path}."), protocol


def _port_number(mapping, path):
    port = _number(mapping, "port", 0, path, 1)
    if port > 65535 or port != int(port):
        raise DefinitionError(f"{path}port: {port} is no port: they are whole numbers from 1 to 65535")
    return int(port)


def _volume(i, one):
    path = f"container.volumes[{i}]."
    _known(f"container.volumes[{i}]", one)
    host, inside = (_typed(one, key, str, path, required=True) for key in ("hostPath", "containerPath"))
    mode = one.get("mode", "RO")
    for key, value in (("hostPath", host), ("containerPath", inside)):
        if not value.startswith("/") or ":" in value:  # podman splits at colons
            raise DefinitionError(f"{path}{key}: {value!r} must be an absolute path without colons")
    if mode not in ("RO", "RW"):
        raise DefinitionError(f"{path}mode: {mode!r} is neither RO nor RW")
    return host, inside, mode


def _device(i, one):
    path = f"container.docker.parameters[{i}]"
    _known(path, one)
    if one.get("key") != "device":
        raise DefinitionError(f"{path}.key: only device is passed on, got {one.get('key')!r}")
    return _typed(one, "value", str, f"{path}.", required=True)


def _check(i, one, ports):
    path = f"healthChecks[{i}]."
    _known(f"healthChecks[{i}]", one)
    protocol = str(one.get("protocol")).removeprefix("MESOS_")
    if protocol not in ("HTTP", "HTTPS", "TCP", "COMMAND"):
        raise DefinitionError(f"{path}protocol: {one.get('protocol')!r} is none of HTTP, HTTPS, TCP, COMMAND")
    port, command = 0, ""
    if protocol == "COMMAND":
        given = _typed(one, "command", dict, path, required=True)
        command = _typed(given, "value", str, f"{path}command.", required=True)
    elif one.get("port") is not None:
        port = _port_number(one, path)
    else:
        index = one.get("portIndex", 0)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(ports):
            raise DefinitionError(f"{path}portIndex: {index!r} names no portDefinition")
        port = ports[index][1]
    return HealthCheck(
        protocol=protocol,
        port=port,
        path=_typed(one, "path", str, path, default="/"),
        command=command,
        grace=_number(one, "gracePeriodSeconds", 300, path),
        interval=_number(one, "intervalSeconds", 60, path, 1),
        timeout=_number(one, "timeoutSeconds", 20, path, 1),
        failures=_number(one, "maxConsecutiveFailures", 3, path),
    )

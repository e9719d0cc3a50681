# SPDX-License-Identifier: Apache-2.0
"""The documented fields of app definitions, as Marathon 1.5 to 1.11 take them, and what may be in each.

A rule is a function (path, value) that raises DefinitionError where the value is wrong. Values of environments are not
shown: they may be secrets.
"""

from __future__ import annotations

import difflib
import math
import re

from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import DefinitionError

PART = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def wrong(path, problem):
    """Raise DefinitionError for a field."""
    raise DefinitionError(f"{path}: {problem}")


def anything(_path, _value):
    """What Marathon checks itself."""


def text(path, value):
    if not isinstance(value, str) or not value:
        wrong(path, f"must be a text, not {type(value).__name__}" if value != "" else "must not be empty")


def scalar(path, value):
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        wrong(path, f"must be a text or a number, not {type(value).__name__}")


def truth(path, value):
    if not isinstance(value, bool):
        wrong(path, f"must be true or false, not {type(value).__name__}")


def app_id(path, value):
    text(path, value)
    parts = value.strip("/").split("/")
    if value.strip("/") and not all(one == ".." or re.fullmatch(PART, one) for one in parts):
        wrong(path, f"{value!r}: each part must be lower-case letters, digits, dots and dashes, these not at its ends")


def number(least=0, most=math.inf, whole=False):
    def rule(path, value):
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            upper = "" if most == math.inf else f" and at most {most}"
            wrong(path, f"must be a {'whole ' if whole else ''}number of at least {least}{upper}, got {value!r}")

    return rule


def one_of(*values):
    def rule(path, value):
        if value not in values:
            wrong(path, f"{value!r} is none of {', '.join(map(str, values))}")

    return rule


def items(element):
    def rule(path, value):
        if not isinstance(value, list):
            wrong(path, f"must be a list, not {type(value).__name__}")
        for i, one in enumerate(value):
            element(f"{path}[{i}]", one)

    return rule


def texts(names=r".+"):
    """Names to texts; numbers are taken for texts."""

    def rule(path, value):
        _mapping(path, value)
        for key, one in value.items():
            if not re.fullmatch(names, str(key)):
                wrong(f"{path}.{key}", f"the name must match {names}")
            scalar(f"{path}.{key}", one)

    return rule


def environment(path, value):
    _mapping(path, value)
    for key, one in value.items():
        if isinstance(one, dict):
            record({"secret": text}, "secret")(f"{path}.{key}", one)
    texts(ENV_NAME)(path, {key: one for key, one in value.items() if not isinstance(one, dict)})


def record(fields, *required):
    """A mapping with these fields and no others. A text instead of a rule says why there must be none."""

    def rule(path, value):
        _mapping(path or "definition", value)
        for key, one in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, 1)
                wrong(where, "unknown field" + (f"; did you mean {near[0]}?" if near else ""))
            if isinstance(fields[key], str):
                wrong(where, fields[key])
            fields[key](where, one)
        for key in required:
            if key not in value:
                wrong(f"{path}.{key}" if path else key, "is missing")

    return rule


def _mapping(path, value):
    if not isinstance(value, dict):
        wrong(path, f"must be a mapping, not {type(value).__name__}")


def constraint(path, value):
    items(scalar)(path, value)
    if not 2 <= len(value) <= 3:
        wrong(path, "must be a field, an operator and, for most operators, a value")
    operator, given = value[1], str(value[2]) if len(value) == 3 else ""
    if operator not in OPERATORS:
        near = difflib.get_close_matches(str(operator).upper(), OPERATORS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        wrong(path, f"unknown operator {operator!r}: there are {', '.join(OPERATORS)}{hint}")
    if not re.fullmatch(OPERATORS[operator], given):
        needs = {"": "takes no value", r"\d*": "takes a number or nothing", r"\d+": "needs a number"}
        wrong(path, f"operator {operator} {needs.get(OPERATORS[operator], 'needs a value')}")


# What the value of each may be.
OPERATORS = {"UNIQUE": "", "CLUSTER": ".+", "GROUP_BY": r"\d*", "LIKE": ".+", "UNLIKE": ".+", "MAX_PER": r"\d+",
             "IS": ".+"}  # fmt: skip

_port = number(0, 65535, whole=True)
_seconds = number(0, 2**31 - 1, whole=True)
_answer = "is a part of Marathon's answers, not of definitions"
_share = number(0, 1)
_protocol = one_of("tcp", "udp", "udp,tcp", "tcp,udp")
_labels = texts()

_volume = record(
    {
        "containerPath": text, "hostPath": text, "mode": one_of("RO", "RW"), "secret": text,
        "persistent": record({"type": one_of("root", "path", "mount"), "size": number(0), "maxSize": number(0),
                              "profileName": text, "constraints": items(anything)}, "size"),
        "external": record({"size": number(0), "name": text, "provider": text, "options": _labels, "shared": truth}),
    },
    "containerPath",
)  # fmt: skip

_port_mapping = record(
    {"containerPort": _port, "hostPort": _port, "servicePort": _port, "protocol": _protocol, "name": text,
     "labels": _labels, "networkNames": items(text)}
)  # fmt: skip

_docker = record(
    {
        "image": text, "privileged": truth, "forcePullImage": truth,
        "parameters": items(record({"key": text, "value": scalar}, "key", "value")),
        "pullConfig": record({"secret": text}, "secret"),
        "network": "is deprecated: use networks, such as [{mode: host}]",
        "portMappings": "is deprecated: use container.portMappings",
        "credential": "is deprecated: use pullConfig",
    },
    "image",
)  # fmt: skip

_health_check = record(
    {
        "protocol": one_of("HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP"),
        "command": record({"value": text}, "value"), "path": text, "port": _port, "portIndex": _port,
        "gracePeriodSeconds": _seconds, "intervalSeconds": _seconds, "timeoutSeconds": _seconds,
        "delaySeconds": _seconds, "maxConsecutiveFailures": _seconds, "ignoreHttp1xx": truth,
        "ipProtocol": one_of("IPv4", "IPv6"),
    }
)  # fmt: skip

_readiness_check = record(
    {"name": text, "protocol": one_of("HTTP", "HTTPS"), "path": text, "portName": text, "intervalSeconds": _seconds,
     "timeoutSeconds": _seconds, "httpStatusCodesForReady": items(number(100, 999, whole=True)),
     "preserveLastResponse": truth}
)  # fmt: skip


def _unreachable(path, value):
    if value != "disabled":
        names = ("inactiveAfterSeconds", "expungeAfterSeconds")
        record(dict.fromkeys(names, _seconds), *names)(path, value)


APP = {
    "id": app_id, "acceptedResourceRoles": items(text), "args": items(scalar), "backoffFactor": number(1),
    "backoffSeconds": _seconds, "check": anything, "cmd": text, "constraints": items(constraint),
    "container": record({"type": one_of("DOCKER", "MESOS"), "docker": _docker, "appc": anything,
                         "linuxInfo": anything, "volumes": items(_volume), "portMappings": items(_port_mapping)}),
    "cpus": number(0.001), "dependencies": items(app_id), "disk": number(), "env": environment,
    "executor": anything, "executorResources": anything,
    "fetch": items(record({"uri": text, "extract": truth, "executable": truth, "cache": truth, "destPath": text},
                          "uri")),
    "gpus": number(0, whole=True), "healthChecks": items(_health_check), "instances": number(0, whole=True),
    "killSelection": one_of("YOUNGEST_FIRST", "OLDEST_FIRST"), "labels": _labels, "maxLaunchDelaySeconds": _seconds,
    "mem": number(),
    "networks": items(record({"name": text, "mode": one_of("host", "container", "container/bridge"),
                              "labels": _labels})),
    "portDefinitions": items(record({"port": _port, "protocol": _protocol, "name": text, "labels": _labels})),
    "readinessChecks": items(_readiness_check), "requirePorts": truth,
    "residency": record({"relaunchEscalationTimeoutSeconds": _seconds,
                         "taskLostBehavior": one_of("WAIT_FOREVER", "RELAUNCH_AFTER_TIMEOUT")}),
    "resourceLimits": anything, "role": text, "secrets": anything, "taskKillGracePeriodSeconds": _seconds,
    "tty": truth, "unreachableStrategy": _unreachable,
    "upgradeStrategy": record({"minimumHealthCapacity": _share, "maximumOverCapacity": _share},
                              "minimumHealthCapacity", "maximumOverCapacity"),
    "user": text,
    "ipAddress": "is deprecated: use networks", "ports": "is deprecated: use portDefinitions",
    "uris": "is deprecated: use fetch", "storeUrls": "is deprecated: use fetch",
    **dict.fromkeys(("version", "versionInfo", "tasks", "tasksStaged", "tasksRunning", "tasksHealthy",
                     "tasksUnhealthy", "deployments", "lastTaskFailure", "taskStats"), _answer),
}  # fmt: skip
app = record(APP, "id")


def group(path, value):
    """A group of apps, which are looked at one by one."""
    record({**GROUP, "groups": items(group)}, "id")(path, value)


GROUP = {
    "id": app_id, "apps": items(anything), "dependencies": items(app_id), "enforceRole": truth, "pods": "are not done",
    "scaleBy": "changes again with each run: give each app its instances", "version": _answer,
}  # fmt: skip

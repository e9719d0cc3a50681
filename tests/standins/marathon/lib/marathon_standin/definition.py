# SPDX-License-Identifier: Apache-2.0
"""App definitions: what is wrong with one, what Marathon fills in, and what an update makes of it.

An app is the dict that the API gives, complete and in its canonical form: `networks` rather than
`container.docker.network`, `portDefinitions` rather than `ports`.
"""

from __future__ import annotations

import copy
import re

from .errors import invalid_json, invalid_object
from .readers import (
    OPTIONAL,
    PORT,
    REQUIRED,
    Problems,
    anything,
    array,
    boolean,
    integer,
    mapping,
    number,
    record,
    text,
)

PART = r"([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])"
ID = rf"^(({PART}\.)*{PART})|(\.|\.\.)$"
OPERATORS = ("UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "UNLIKE", "MAX_PER", "IS")
NOT_DONE = "the stand-in does not do this"
# What scaling changes; the rest is configuration, and changing it replaces the app's tasks.
NOT_CONFIGURATION = {"instances", "version", "versionInfo"}


def env_value(value, path, problems):
    """The value of an environment variable."""
    if isinstance(value, dict):
        problems.values.append((path, "Feature secrets is not enabled. Enable with --enable_features secrets)"))
    elif isinstance(value, bool):
        return str(value).lower()
    elif not isinstance(value, (str, int, float)):
        problems.shape.append((path, "error.expected.jsstring"))
    return str(value)


def unreachable(value, path, problems):
    """The word disabled, or after how many seconds a lost task is replaced and forgotten."""
    if value == "disabled":
        return value
    found = UNREACHABLE(value, path, problems)
    if found.get("expungeAfterSeconds", 0) < found.get("inactiveAfterSeconds", 0):
        problems.values.append((path, "inactiveAfterSeconds must be less or equal to expungeAfterSeconds"))
    return found


LABELS = mapping(text())
PROTOCOL = text(choices=("tcp", "udp", "udp,tcp"))
UNREACHABLE = record(inactiveAfterSeconds=(integer(0), 0), expungeAfterSeconds=(integer(0), 0))
MAPPING = record(
    containerPort=(PORT, 0), hostPort=(PORT, OPTIONAL), labels=(LABELS, dict), name=(text(least=1), OPTIONAL),
    protocol=(PROTOCOL, "tcp"), servicePort=(PORT, 0), networkNames=(array(text()), OPTIONAL),
)  # fmt: skip
DOCKER = record(
    forcePullImage=(boolean, False), image=(text(least=1), REQUIRED),
    network=(text(choices=("BRIDGE", "HOST", "NONE", "USER")), OPTIONAL),
    parameters=(array(record(key=(text(least=1), REQUIRED), value=(text(), REQUIRED))), list),
    portMappings=(array(MAPPING), OPTIONAL), privileged=(boolean, False), pullConfig=(anything, OPTIONAL),
)  # fmt: skip
VOLUME = record(
    containerPath=(text(least=1), REQUIRED), hostPath=(text(least=1), OPTIONAL),
    mode=(text(choices=("RO", "RW")), REQUIRED), persistent=(anything, OPTIONAL), external=(anything, OPTIONAL),
)  # fmt: skip
CONTAINER = record(
    type=(text(choices=("MESOS", "DOCKER")), "DOCKER"), docker=(DOCKER, OPTIONAL), appc=(anything, OPTIONAL),
    volumes=(array(VOLUME), list), portMappings=(array(MAPPING), OPTIONAL),
)  # fmt: skip
CHECK_PROTOCOLS = ("HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_TCP", "MESOS_HTTP", "MESOS_HTTPS")
HEALTH_CHECK = record(
    command=(record(value=(text(least=1), REQUIRED)), OPTIONAL), gracePeriodSeconds=(integer(0), 300),
    ignoreHttp1xx=(boolean, False), intervalSeconds=(integer(0), 60), maxConsecutiveFailures=(integer(0), 3),
    path=(text(), OPTIONAL), port=(PORT, OPTIONAL), portIndex=(integer(0), OPTIONAL),
    protocol=(text(choices=CHECK_PROTOCOLS), "HTTP"), ipProtocol=(text(choices=("IPv4", "IPv6")), OPTIONAL),
    timeoutSeconds=(integer(0), 20), delaySeconds=(integer(0), 15),
)  # fmt: skip
NETWORK = record(
    name=(text(least=1), OPTIONAL), mode=(text(choices=("container", "container/bridge", "host")), "container"),
    labels=(LABELS, OPTIONAL),
)  # fmt: skip
PORT_DEFINITION = record(
    port=(PORT, 0), labels=(LABELS, OPTIONAL), name=(text(least=1), OPTIONAL), protocol=(PROTOCOL, "tcp")
)
APP = record(
    id=(text(least=1), REQUIRED),
    acceptedResourceRoles=(array(text(), unique=True), lambda: ["*"]),
    args=(array(text()), OPTIONAL),
    backoffFactor=(number(1), 1.15),
    backoffSeconds=(integer(0), 1),
    cmd=(text(least=1), OPTIONAL),
    constraints=(array(array(text()), unique=True), OPTIONAL),
    container=(CONTAINER, OPTIONAL),
    cpus=(number(0.001), 1),
    dependencies=(array(text(least=1), unique=True), OPTIONAL),
    disk=(number(0), 0),
    env=(mapping(env_value), OPTIONAL),
    executor=(text(), ""),
    fetch=(anything, OPTIONAL),
    healthChecks=(array(HEALTH_CHECK, unique=True), OPTIONAL),
    instances=(integer(0), 1),
    ipAddress=(anything, OPTIONAL),
    labels=(LABELS, dict),
    maxLaunchDelaySeconds=(integer(0), 300),
    mem=(number(0), 128),
    gpus=(integer(0), 0),
    networks=(array(NETWORK), OPTIONAL),
    ports=(array(PORT), OPTIONAL),
    portDefinitions=(array(PORT_DEFINITION), OPTIONAL),
    readinessChecks=(anything, OPTIONAL),
    requirePorts=(boolean, False),
    residency=(anything, OPTIONAL),
    role=(text(least=1), "*"),
    secrets=(anything, OPTIONAL),
    taskKillGracePeriodSeconds=(integer(0), OPTIONAL),
    tty=(boolean, OPTIONAL),
    upgradeStrategy=(
        record(maximumOverCapacity=(number(0, 1), REQUIRED), minimumHealthCapacity=(number(0, 1), REQUIRED)),
        lambda: {"maximumOverCapacity": 1, "minimumHealthCapacity": 1},
    ),
    uris=(array(text()), OPTIONAL),
    user=(text(), OPTIONAL),
    killSelection=(text(choices=("YOUNGEST_FIRST", "OLDEST_FIRST")), "YOUNGEST_FIRST"),
    unreachableStrategy=(unreachable, lambda: {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0}),
    version=(text(), OPTIONAL),
)
# Left out of an answer while they are empty.
OMITTED = ("args", "constraints", "dependencies", "env", "healthChecks")


def canonical(path, base="/"):
    """The absolute form of an app's or group's id, which is relative to group `base`."""
    parts = [] if path.startswith("/") else [part for part in base.split("/") if part]
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def id_problems(path, field="/id"):
    """What is wrong with an id, as [(path, text)]."""
    for part in path.split("/"):
        if part and not re.fullmatch(ID, part):
            return [(field, f"must fully match regular expression '{ID}'")]
    return []


def parse(value, base="/"):
    """The complete app that JSON `value` describes, in group `base`. Raises ApiError."""
    problems = Problems()
    app = APP(value, "", problems)
    refuse(problems)
    app.pop("version", None)
    app["id"] = canonical(app["id"], base)
    return complete(app, problems)


def parse_update(value, app_id):
    """The fields that JSON `value` changes of app `app_id`: canonical, without what is not given. Raises ApiError."""
    problems = Problems()
    update = APP(value, "", problems, defaults=False)
    refuse(problems)
    update["id"] = app_id
    if "version" in update and len(update) > 2:
        problems.values.append(("/", "The 'version' field may only be combined with the 'id' field."))
    translate(update, problems)
    refuse(problems)
    return update


def updated(app, update):
    """`app` with the fields of `update` replaced. Raises ApiError."""
    merged = {key: value for key, value in app.items() if key not in ("version", "versionInfo")}
    if "networks" in update and update["networks"] != app["networks"]:
        merged.pop("portDefinitions", None)
        if "container" in merged:
            merged["container"] = {key: one for key, one in merged["container"].items() if key != "portMappings"}
    return complete(copy.deepcopy({**merged, **update}), Problems())


def complete(app, problems):
    """`app` in canonical form with what Marathon fills in. Raises ApiError."""
    translate(app, problems)
    refuse(problems)
    host = all(one["mode"] == "host" for one in app.get("networks", ()))
    container = app.get("container")
    if host:
        app["networks"] = [{"mode": "host"}]
        if container and container.pop("portMappings", None):
            problems.values.append(("/", "portMappings are not allowed with host-networking"))
        if "portDefinitions" not in app:
            app["portDefinitions"] = [{"port": 0, "name": "default", "protocol": "tcp"}]
    else:
        app["requirePorts"] = False
        if app.pop("portDefinitions", None):
            problems.values.append(("/", "portDefinitions are only allowed with host-networking"))
        container = app.setdefault("container", {"type": "MESOS", "volumes": []})
        mappings = container.setdefault(
            "portMappings",
            [{"containerPort": 0, "labels": {}, "name": "default", "protocol": "tcp", "servicePort": 0}],
        )
        if any(one["mode"] == "container/bridge" for one in app["networks"]):
            for one in mappings:
                one.setdefault("hostPort", 0)
    for check in app.get("healthChecks", ()):
        complete_check(check, bool(ports(app)))
    for name in OMITTED:
        if not app.get(name, True):
            del app[name]
    app["dependencies"] = [canonical(one, app["id"].rpartition("/")[0]) for one in app.get("dependencies", ())]
    if not app["dependencies"]:
        del app["dependencies"]
    validate(app, problems)
    refuse(problems)
    return app


def translate(app, problems):
    """Write what is given in deprecated fields of an app or update into those that took their place."""
    container = app.get("container") or {}
    docker = container.get("docker") or {}
    network, mappings = docker.pop("network", None), docker.pop("portMappings", None)
    if network and "networks" in app:
        problems.values.append(("/", "must not specify both container.docker.network and networks"))
    elif network == "NONE":
        problems.values.append(("/container/docker/network", "unsupported docker network type NONE"))
    elif network:
        app["networks"] = [{"mode": {"BRIDGE": "container/bridge", "HOST": "host", "USER": "container"}[network]}]
    if mappings is not None:
        if container.get("portMappings") and mappings:
            problems.values.append(("/", "cannot specify both portMappings and docker.portMappings"))
        elif "portMappings" not in container:
            container["portMappings"] = mappings
    given = app.pop("ports", None)
    if given is not None:
        if app.get("portDefinitions") and given != [one["port"] for one in app["portDefinitions"]]:
            problems.values.append(("/", "cannot specify both ports and port definitions"))
        elif "portDefinitions" not in app:
            app["portDefinitions"] = [{"port": port, "protocol": "tcp"} for port in given]
    if any(one["mode"] != "host" for one in app.get("networks", ())) and not app.get("portDefinitions", True):
        del app["portDefinitions"]
    for name in ("fetch", "gpus", "ipAddress", "readinessChecks", "residency", "secrets", "uris"):
        if app.get(name):
            problems.values.append((f"/{name}", NOT_DONE))
        elif name != "gpus":
            app.pop(name, None)


def complete_check(check, has_ports):
    """Fill in a health check."""
    protocol = check["protocol"]
    if protocol == "COMMAND":
        for name in ("port", "portIndex", "path", "ignoreHttp1xx"):
            check.pop(name, None)
        return
    if "port" not in check and "portIndex" not in check and has_ports:
        check["portIndex"] = 0
    if protocol.startswith("MESOS_"):
        check.setdefault("ipProtocol", "IPv4")
    if protocol not in ("HTTP", "HTTPS"):
        check.pop("ignoreHttp1xx", None)


def ports(app):
    """The port definitions or mappings of an app: what is at the n-th place is port n of its tasks."""
    if "portDefinitions" in app:
        return app["portDefinitions"]
    return app.get("container", {}).get("portMappings", [])


def service_ports(app):
    """The service ports of an app, in order."""
    return [one.get("servicePort", one.get("port")) for one in ports(app)]


def wanted_host_ports(app):
    """For each port of a task the port of the host that it must have, 0 for any, None for none."""
    if "portDefinitions" in app:
        return [one["port"] if app["requirePorts"] else 0 for one in app["portDefinitions"]]
    return [one.get("hostPort") for one in ports(app)]


def validate(app, problems):
    """Note what a complete app's values have wrong."""
    wrong = problems.values.append
    problems.values += id_problems(app["id"])
    for index, one in enumerate(app.get("dependencies", ())):
        problems.values += id_problems(one, f"/dependencies({index})")
    if app["id"] == "/":
        wrong(("/", "must not be root"))
    container = app.get("container", {})
    image = container.get("docker") or container.get("appc")
    cmd, args = "cmd" in app, "args" in app
    if (cmd and args) or not (cmd or args or image):
        wrong(("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'."))
    if container:
        validate_container(container, problems)
    for name in ("name", "port"):
        given = [one[name] for one in app.get("portDefinitions", ()) if one.get(name)]
        if len(given) != len(set(given)):
            wrong(("/portDefinitions", "Port names must be unique." if name == "name" else "Ports must be unique."))
    validate_checks(app, problems)
    for index, one in enumerate(app.get("constraints", ())):
        if problem := constraint_problem(one):
            wrong((f"/constraints({index})", problem))
    if not app["acceptedResourceRoles"]:
        wrong(("/acceptedResourceRoles", "must not be empty"))
    if app["labels"].get("MARATHON_SINGLE_INSTANCE_APP") == "true" and app["instances"] > 1:
        wrong(("/", "Single instance app may only have one instance"))
    if len([one for one in app["networks"] if one["mode"] == "container"]) > 1:
        wrong(("/", "may only specify a single container network when using the Docker container engine"))


def validate_container(container, problems):
    """Note what a container's values have wrong."""
    if container["type"] == "DOCKER" and "docker" not in container:
        problems.values.append(("/container/docker", "not defined"))
    if container.get("appc"):
        problems.values.append(("/container/appc", NOT_DONE))
    for index, volume in enumerate(container["volumes"]):
        if "persistent" in volume or "external" in volume:
            problems.values.append((f"/container/volumes({index})", NOT_DONE))
        elif "hostPath" not in volume:
            problems.values.append((f"/container/volumes({index})/hostPath", "not defined"))
    names = [one["name"] for one in container.get("portMappings", ()) if "name" in one]
    if len(names) != len(set(names)):
        problems.values.append(("/container/portMappings", "Port names must be unique."))


def validate_checks(app, problems):
    """Note what health checks have wrong."""
    checks = app.get("healthChecks", ())
    for index, check in enumerate(checks):
        path = f"/healthChecks({index})"
        if check["protocol"] == "COMMAND":
            if "command" not in check:
                problems.values.append((f"{path}/command", "not defined"))
        elif "port" not in check and check.get("portIndex", -1) not in range(len(ports(app))):
            text_ = "Health check port indices must address an element of the ports array or container port mappings."
            problems.values.append((path, text_))
    mesos = [one for one in checks if one["protocol"] == "COMMAND" or one["protocol"].startswith("MESOS_")]
    if len(mesos) > 1:
        problems.values.append(("/", "AppDefinition can contain at most one Mesos health check"))


def constraint_problem(one):
    """What is wrong with a constraint [field, operator, value], or nothing."""
    if len(one) not in (2, 3):
        return "Each constraint must have either 2 or 3 fields"
    operator, value = one[1], one[2] if len(one) == 3 else None
    if operator not in OPERATORS:
        return f"Constraint operator must be one of the following {', '.join(OPERATORS)}"
    if operator == "UNIQUE" and value is not None:
        return "Value specified but not used"
    if operator in ("GROUP_BY", "MAX_PER") and value is not None and not re.fullmatch(r"\d+", value):
        return "Value was specified but is not a number"
    if operator in ("MAX_PER", "IS") and value is None:
        return "Missing value"
    if operator in ("LIKE", "UNLIKE"):
        if value is None:
            return "A regular expression value must be provided"
        try:
            re.compile(value)
        except re.error:
            return f"'{value}' is not a valid regular expression"
    return ""


def configuration(app):
    """What of an app is the same for all its instances and replaces them when it changes."""
    return {key: value for key, value in app.items() if key not in NOT_CONFIGURATION}


def refuse(problems):
    """Raise what is wrong, if anything: wrong shape before wrong values."""
    if problems.shape:
        raise invalid_json(problems.shape)
    if problems.values:
        raise invalid_object(problems.values)

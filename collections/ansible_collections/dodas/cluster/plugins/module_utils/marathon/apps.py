# SPDX-License-Identifier: Apache-2.0
"""App definitions: read strictly, completed as Marathon does, compared with what runs, refused together.

A definition is a dict as for `/v2/apps`. What Marathon chooses itself (service ports that are 0, its role, the number
of instances where none is given) is taken from the app that is there, so that it makes no difference.
"""

from __future__ import annotations

import copy
import graphlib
import json

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import fields
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import DefinitionError

HIDDEN = "(hidden)"

DEFAULTS = {
    "cpus": 1, "mem": 128, "disk": 0, "gpus": 0, "instances": 1, "args": [], "constraints": [], "dependencies": [],
    "env": {}, "labels": {}, "secrets": {}, "fetch": [], "healthChecks": [], "readinessChecks": [],
    "backoffSeconds": 1, "backoffFactor": 1.15, "killSelection": "YOUNGEST_FIRST", "requirePorts": False, "tty": False,
}  # fmt: skip
# Those that differ between Marathon's versions: each of these values stands for none given.
VARYING = {
    "maxLaunchDelaySeconds": [300, 3600],
    "executor": ["", "//cmd"],
    "acceptedResourceRoles": [None, ["*"]],
    "unreachableStrategy": [
        {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0},
        {"inactiveAfterSeconds": 300, "expungeAfterSeconds": 600},
    ],
}
# Marathon's own choice where a definition says nothing.
CHOSEN = ("role", "executorResources", "instances")

_HEALTH_CHECK = {
    "protocol": "HTTP", "gracePeriodSeconds": 300, "intervalSeconds": 60, "timeoutSeconds": 20,
    "maxConsecutiveFailures": 3, "delaySeconds": 15, "ignoreHttp1xx": False, "ipProtocol": "IPv4",
}  # fmt: skip
_READINESS_CHECK = {
    "name": "readinessCheck", "protocol": "HTTP", "path": "/", "portName": "http-api", "intervalSeconds": 30,
    "timeoutSeconds": 10, "httpStatusCodesForReady": [200], "preserveLastResponse": False,
}  # fmt: skip
_PORT_MAPPING = {"containerPort": 0, "servicePort": 0, "protocol": "tcp", "labels": {}, "networkNames": []}
_DOCKER = {"forcePullImage": False, "privileged": False, "parameters": []}
_RESIDENCY = {"relaunchEscalationTimeoutSeconds": 3600, "taskLostBehavior": "WAIT_FOREVER"}
_NEEDS = (("cpus", "cpus"), ("mem", "MB of memory"), ("disk", "MB of disk"), ("gpus", "gpus"))


# Reading


def parse(given, parent="/"):
    """The definition as it is sent: checked, with absolute ids, without what is null. given: a dict, or strict JSON.

    Raises DefinitionError, which names the app and the field.
    """
    definition = _without_nulls(parse_json(given) if isinstance(given, str) else given)
    name = definition.get("id") if isinstance(definition, dict) else None
    try:
        fields.app("", definition)
        definition = copy.deepcopy(definition)
        definition["id"] = absolute(definition["id"], parent)
        _agree(definition)
    except DefinitionError as exc:
        raise DefinitionError(f"app {name}: {exc}" if isinstance(name, str) else f"app definition: {exc}") from None
    for key in ("env", "labels"):
        if key in definition:
            definition[key] = {one: value if isinstance(value, dict) else str(value)
                               for one, value in definition[key].items()}  # fmt: skip
    if "args" in definition:
        definition["args"] = [str(one) for one in definition["args"]]
    for one in definition.get("container", {}).get("docker", {}).get("parameters", []):
        one["value"] = str(one["value"])
    if "constraints" in definition:
        definition["constraints"] = [[str(one) for one in parts] for parts in definition["constraints"]]
    if "dependencies" in definition:
        definition["dependencies"] = [absolute(one, parent) for one in definition["dependencies"]]
    return definition


def parse_id(given):
    """The absolute id in a definition of which nothing else is looked at. Raises DefinitionError."""
    definition = parse_json(given) if isinstance(given, str) else given
    fields.record(dict.fromkeys(fields.APP, fields.anything), "id")("app definition", definition)
    fields.app_id("id", definition["id"])
    return absolute(definition["id"])


def parse_json(text):
    """The value of strict JSON: no trailing comma, no name twice, no NaN. Raises DefinitionError with the line."""

    def once(pairs):
        names = [name for name, _value in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DefinitionError(f"JSON: {twice!r} is there twice")
        return dict(pairs)

    def no_number(name):
        raise DefinitionError(f"JSON: {name} is not a number in JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except json.JSONDecodeError as exc:
        # Where Python's parser stops differs with its version: at the comma, or at what follows.
        before, after = text[: exc.pos].rstrip(), text[exc.pos :].lstrip(", \t\r\n")
        trailing = (before.endswith(",") or text[exc.pos : exc.pos + 1] == ",") and after[:1] in ("]", "}")
        problem = "trailing comma" if trailing else exc.msg
        raise DefinitionError(f"JSON, line {exc.lineno}, column {exc.colno}: {problem}") from None


def absolute(path, parent="/"):
    """An id from the root: `db` in `/dodas` is `/dodas/db`. Raises DefinitionError where it is the root or above."""
    parts = [] if path.startswith("/") else [one for one in parent.split("/") if one]
    for one in path.strip("/").split("/"):
        if one != "..":
            parts.append(one)
        elif parts:
            parts.pop()
        else:
            raise DefinitionError(f"id {path!r}: there is nothing above the root")
    if not any(parts):
        raise DefinitionError(f"id {path!r}: the root is no app")
    return "/" + "/".join(parts)


def _without_nulls(value):
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _agree(definition):
    """What fields say together. Raises DefinitionError."""
    container = definition.get("container", {})
    modes = [one.get("mode", "container") for one in definition.get("networks", [])] or ["host"]
    host = "host" in modes
    if host and len(modes) > 1:
        fields.wrong("networks", "the host's network is the only one, or none of them")
    if host and container.get("portMappings"):
        fields.wrong("container.portMappings", "are for other networks than the host's: use portDefinitions")
    if not host and definition.get("portDefinitions"):
        fields.wrong("portDefinitions", "are for the host's network: use container.portMappings")
    if "cmd" in definition and definition.get("args"):
        fields.wrong("args", "cmd is there as well: only one of them can be")
    image = container.get("docker") or container.get("appc")
    if not (definition.get("cmd") or definition.get("args") or image):
        fields.wrong("cmd", "is missing: there is neither args nor a container's image")
    if "container" in definition and container.get("type", "DOCKER") == "DOCKER" and "docker" not in container:
        fields.wrong("container.docker", "is missing for a container of type DOCKER")
    for i, one in enumerate(container.get("volumes", [])):
        if sum(key in one for key in ("hostPath", "persistent", "external", "secret")) != 1:
            fields.wrong(f"container.volumes[{i}]", "needs one of hostPath, persistent, external and secret")
        if "secret" not in one and "mode" not in one:
            fields.wrong(f"container.volumes[{i}].mode", "is missing: RO or RW")
    given = definition.get("portDefinitions", container.get("portMappings"))
    ports, count = given or [], 1 if given is None else len(given)  # without any, Marathon gives it one
    where = "portDefinitions" if host else "container.portMappings"
    _unlike(where, "name", [one.get("name") for one in ports])
    if host:
        _unlike(where, "port", [one.get("port") for one in ports])
    for i, check in enumerate(definition.get("healthChecks", [])):
        _agree_check(f"healthChecks[{i}]", check, count)
    by_mesos = [i for i, one in enumerate(definition.get("healthChecks", []))
                if one.get("protocol") == "COMMAND" or one.get("protocol", "").startswith("MESOS_")]  # fmt: skip
    if len(by_mesos) > 1:
        fields.wrong(f"healthChecks[{by_mesos[1]}]", "an app can have one of protocol COMMAND or MESOS_*, not more")
    strategy = definition.get("unreachableStrategy", {})
    if isinstance(strategy, dict) and strategy:
        inactive, expunge = strategy["inactiveAfterSeconds"], strategy["expungeAfterSeconds"]
        if inactive >= expunge and (inactive, expunge) != (0, 0):
            fields.wrong("unreachableStrategy", "expungeAfterSeconds must be more than inactiveAfterSeconds, or both 0")
    for key, value in definition.get("env", {}).items():
        if isinstance(value, dict) and value["secret"] not in definition.get("secrets", {}):
            fields.wrong(f"env.{key}.secret", f"{value['secret']!r} is not in secrets")


def _agree_check(path, check, ports):
    if check.get("protocol") == "COMMAND":
        if "command" not in check:
            fields.wrong(f"{path}.command", "is missing")
    elif "command" in check:
        fields.wrong(f"{path}.command", "is for protocol COMMAND only")
    elif "port" in check and "portIndex" in check:
        fields.wrong(f"{path}.portIndex", "port is there as well: only one of them can be")
    elif "port" not in check and check.get("portIndex", 0) >= ports:
        fields.wrong(f"{path}.portIndex", f"{check.get('portIndex', 0)} names no port: there are {ports}")


def _unlike(path, key, values):
    seen = set()
    for i, one in enumerate(values):
        if one and one in seen:
            fields.wrong(f"{path}[{i}].{key}", f"{one!r} is there twice")
        seen.add(one)


# Comparing


def filled(definition):
    """The definition with what Marathon fills in, lists without an order sorted. Only documented fields stay."""
    done = copy.deepcopy(DEFAULTS)
    given = _without_nulls(definition).items()
    done.update((key, copy.deepcopy(value)) for key, value in given if callable(fields.APP.get(key)))
    networks = done.get("networks") or [{"mode": "host"}]
    done["networks"] = [{"mode": "container", "labels": {}, **one} for one in networks]
    mode = done["networks"][0]["mode"]
    if done.get("container") or mode != "host":
        done["container"] = _filled_container(done.get("container") or {"type": "MESOS"}, mode)
    if mode == "host":
        given = done.get("portDefinitions", [{"name": "default"}])
        done["portDefinitions"] = [{"port": 0, "protocol": "tcp", "labels": {}, **one} for one in given]
    else:
        done.pop("portDefinitions", None)
        done["requirePorts"] = False
    done["healthChecks"] = _sorted(_filled_check(one) for one in done["healthChecks"])
    done["readinessChecks"] = [{**_READINESS_CHECK, **one} for one in done["readinessChecks"]]
    done["fetch"] = [{"extract": True, "executable": False, "cache": False, **one} for one in done["fetch"]]
    done["constraints"] = _sorted([str(one) for one in parts if one != ""] for parts in done["constraints"])
    for key in ("dependencies", "acceptedResourceRoles"):
        if key in done:
            done[key] = sorted(done[key])
    stays = any("persistent" in one for one in (done.get("container") or {}).get("volumes", []))
    done.setdefault("upgradeStrategy", {"minimumHealthCapacity": 0.5 if stays else 1,
                                        "maximumOverCapacity": 0 if stays else 1})  # fmt: skip
    if stays:
        done.setdefault("unreachableStrategy", "disabled")
    if stays or done.get("residency"):
        done["residency"] = {**_RESIDENCY, **done.get("residency", {})}
    return done


def _filled_container(container, mode):
    done = {"type": "DOCKER", **container}
    done["volumes"] = [_filled_volume(one) for one in done.get("volumes", [])]
    if "docker" in done:
        done["docker"] = {**_DOCKER, **done["docker"]}
    if mode == "host":
        done.pop("portMappings", None)
    else:
        bridge = {"hostPort": 0} if mode == "container/bridge" else {}
        given = done.get("portMappings", [{"name": "default"}])
        done["portMappings"] = [{**_PORT_MAPPING, **bridge, **one} for one in given]
    return done


def _filled_volume(volume):
    done = dict(volume)
    if "persistent" in done:
        done["persistent"] = {"type": "root", "constraints": [], **done["persistent"]}
    if "external" in done:
        done["external"] = {"options": {}, **done["external"]}
    return done


def _filled_check(check):
    done = {**_HEALTH_CHECK, **check}
    if "HTTP" in done["protocol"]:
        done.setdefault("path", "/")
    else:
        done.pop("ignoreHttp1xx")
        done.pop("path", None)
    if done["protocol"] == "COMMAND":
        done.pop("ipProtocol")
        done.pop("portIndex", None)
    elif "port" not in done:
        done.setdefault("portIndex", 0)
    return done


def _sorted(values):
    return sorted(values, key=lambda one: json.dumps(one, sort_keys=True))


def settled(definition, current):
    """Both `filled`: the definition with what Marathon chose for the app that is there, and that app."""
    before, after = filled(current), filled(definition)
    for key in CHOSEN:
        if key not in definition:
            after.pop(key, None)
            after.update({key: before[key]} if key in before else {})
    for key, values in VARYING.items():
        if key not in definition and before.get(key) in values:
            after.pop(key, None)
            after.update({key: before[key]} if key in before else {})
    _settle_ports(after.get("portDefinitions"), before.get("portDefinitions"), "port", "portDefinitions" in definition)
    mapped = "portMappings" in definition.get("container", {})
    ours, theirs = ((one.get("container") or {}).get("portMappings") for one in (after, before))
    _settle_ports(ours, theirs, "servicePort", mapped)
    return before, after


def _settle_ports(ours, theirs, key, given):
    """Ports that are 0 become those that were assigned; the one port of an app without any is as it is there."""
    if not ours or not theirs:
        return
    if not given and len(ours) == len(theirs) == 1:
        ours[0] = copy.deepcopy(theirs[0])
    for i, one in enumerate(ours[: len(theirs)]):
        if not one[key]:
            one[key] = theirs[i][key]


def difference(definition, current):
    """{field: (before, after)} by which an app is to change. current: as Marathon gives it, or None."""
    if current is None:
        return {key: (None, value) for key, value in definition.items()}
    before, after = settled(definition, current)
    return {key: (before.get(key), after.get(key)) for key in sorted({*before, *after})
            if before.get(key) != after.get(key)}  # fmt: skip


def shown(definition):
    """The definition for people to see: names of its environment, not the values."""
    hidden = {key: value if isinstance(value, dict) else HIDDEN for key, value in (definition.get("env") or {}).items()}
    return {**definition, **({"env": hidden} if hidden else {})}


def wanted_instances(definition, current):
    """How many instances there shall be; current: the app that is there or None."""
    return definition.get("instances", (current or {}).get("instances", 1))


# Refusing


def refuse(definitions, agents=None, known=()):
    """Raise one DefinitionError for all that can never work, before anything starts.

    definitions: dicts or JSON texts. agents: [{"hostname", "resources": {"cpus", "mem", "disk", "gpus"}}], None where
    they are not known. known: apps that Marathon has, as definitions; None where they are not known either, and then
    nor are the dependencies that are not given. Returns the parsed definitions.
    """
    problems, parsed = [], []
    for one in definitions:
        try:
            parsed.append(parse(one))
        except DefinitionError as exc:
            problems.append(str(exc))
    ids = [one["id"] for one in parsed]
    problems += [f"app {one}: is there twice" for one in sorted({one for one in ids if ids.count(one) > 1})]
    others = [one for one in known or () if one["id"] not in ids]
    for one in parsed if agents is not None else []:
        problems += _too_large(one, agents)
    problems += _same_ports(parsed, others)
    # Names of what failed to parse are unknown: what depends on them would only be reported a second time.
    if known is not None and len(parsed) == len(definitions):
        problems += _unknown(parsed, [*ids, *(one["id"] for one in others)])
    try:
        order(parsed)
    except DefinitionError as exc:
        problems.append(str(exc))
    if problems:
        raise DefinitionError("; ".join(problems))
    return parsed


def order(definitions):
    """Ids so that each comes after those that it depends on. Raises DefinitionError for a circle."""
    ids = {one["id"] for one in definitions}
    graph = {one["id"]: {other for need in one.get("dependencies", []) for other in ids if below(other, need)}
             for one in definitions}  # fmt: skip
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as exc:
        raise DefinitionError(f"dependencies: {' -> '.join(exc.args[1])}: none of these can be the first") from None


def service_ports(definition):
    """[(port, virtual host or empty)] that the app publishes: its ports, or what its HAPROXY labels say instead."""
    labels = definition.get("labels") or {}
    ports = [one.get("port", 0) for one in definition.get("portDefinitions") or []]
    mapped = (definition.get("container") or {}).get("portMappings") or []
    found = []
    for i, own in enumerate(ports or [one.get("servicePort", 0) for one in mapped]):
        port = labels.get(f"HAPROXY_{i}_PORT") or own
        if str(port).isdigit() and int(port):
            found.append((int(port), labels.get(f"HAPROXY_{i}_VHOST", "")))
    return found


def _same_ports(definitions, known):
    problems, taken = [], [(port, host, one["id"]) for one in known for port, host in service_ports(one)]
    for one in definitions:
        for port, host in service_ports(one):
            for other_port, other_host, other in taken:
                apart = host and other_host and host != other_host  # virtual hosts share a port
                if port == other_port and other != one["id"] and not apart:
                    problems.append(f"app {one['id']}: service port {port} is that of app {other} as well")
            taken.append((port, host, one["id"]))
    return problems


def _unknown(definitions, ids):
    return [f"app {one['id']}: dependencies[{i}]: there is no app {need}"
            for one in definitions for i, need in enumerate(one.get("dependencies", []))
            if not any(below(other, need) for other in ids)]  # fmt: skip


def below(app_id, path):
    """Whether an id is this app, or in this group."""
    return app_id == path or app_id.startswith(path + "/")


def _too_large(definition, agents):
    needs = {key: filled(definition)[key] for key, _unit in _NEEDS}
    problems = []
    for key, unit in _NEEDS:
        largest = max(agents, key=lambda one: _has(one, key), default=None)
        if largest is None:
            return [f"app {definition['id']}: there is no agent"]
        if needs[key] > _has(largest, key):
            problems.append(f"app {definition['id']}: {key}: no agent has {needs[key]:g} {unit}: the largest, "
                            f"{largest.get('hostname')}, has {_has(largest, key):g}")  # fmt: skip
    if not problems and not any(all(_has(one, key) >= needs[key] for key in needs) for one in agents):
        asked = ", ".join(f"{needs[key]:g} {unit}" for key, unit in _NEEDS if needs[key])
        problems = [f"app {definition['id']}: no agent has {asked} at once"]
    return problems


def _has(agent, key):
    """How much an agent has of a resource."""
    amount = (agent.get("resources") or {}).get(key) or 0
    try:
        return float(amount)
    except (TypeError, ValueError):
        raise DefinitionError(f"agents: {agent.get('hostname')}: {key} must be a number, got {amount!r}") from None

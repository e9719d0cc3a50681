# SPDX-License-Identifier: Apache-2.0
"""Marathon definitions: what is read, and that everything else is refused by its path."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError, parse

FULL = {
    "id": "/squid",
    "cpus": 0.5,
    "mem": 256,
    "instances": 1,
    "args": ["-N", 3],
    "env": {"MODE": "proxy", "SIZE_MB": 100},
    "user": "proxy",
    "labels": {"tier": "front", "weight": 3},
    "container": {
        "type": "DOCKER",
        "docker": {
            "image": "localhost/dodas/squid:latest",
            "privileged": False,
            "parameters": [{"key": "device", "value": "/dev/fuse"}],
        },
        "volumes": [
            {"hostPath": "/etc/dodas/squid", "containerPath": "/etc/dodas/squid", "mode": "RO"},
            {"hostPath": "/var/lib/dodas/squid", "containerPath": "/var/spool/squid", "mode": "RW"},
        ],
    },
    "networks": [{"mode": "host"}],
    "portDefinitions": [{"port": 3128, "name": "proxy", "protocol": "tcp"}, {"port": 3401, "protocol": "udp"}],
    "healthChecks": [
        {"protocol": "MESOS_HTTP", "path": "/up", "portIndex": 0, "gracePeriodSeconds": 30, "intervalSeconds": 10,
         "timeoutSeconds": 5, "maxConsecutiveFailures": 4},
        {"protocol": "TCP", "port": 8080},
        {"protocol": "COMMAND", "command": {"value": "squidclient mgr:info"}},
    ],
    "dependencies": ["/identity", "credentials"],
    "taskKillGracePeriodSeconds": 5,
    "backoffSeconds": 2,
    # what Marathon returns for an app that asks for nothing special
    "gpus": 0, "disk": 0, "fetch": [], "constraints": [], "secrets": {}, "requirePorts": False,
}  # fmt: skip


def test_a_full_definition_is_read():
    app = parse(FULL)
    assert (app.id, app.image, app.cpus, app.mem) == ("squid", "localhost/dodas/squid:latest", 0.5, 256)
    assert app.args == ["-N", "3"]
    assert app.env == {"MODE": "proxy", "SIZE_MB": "100"}
    assert app.labels == {"tier": "front", "weight": "3"}
    assert app.ports == [("proxy", 3128, "tcp"), ("port1", 3401, "udp")]
    assert app.volumes[1] == ("/var/lib/dodas/squid", "/var/spool/squid", "RW")
    assert app.devices == ["/dev/fuse"]
    assert app.dependencies == ["identity", "credentials"]
    http, tcp, command = app.checks
    assert (http.protocol, http.port, http.path) == ("HTTP", 3128, "/up")
    assert (http.grace, http.interval, http.timeout, http.failures) == (30, 10, 5, 4)
    assert (tcp.port, tcp.grace, tcp.interval, tcp.failures) == (8080, 300, 60, 3), "Marathon's own defaults"
    assert command.command == "squidclient mgr:info"


def test_null_is_as_good_as_absent():
    wanted = dict.fromkeys(("args", "cmd", "env", "labels", "dependencies", "networks", "healthChecks"))
    assert parse({"id": "a", "container": {"docker": {"image": "i", "parameters": None}, "volumes": None}, **wanted})


def changed(path, value):
    """FULL with one field set; `path` is a list of keys and indexes."""
    new = copy.deepcopy(FULL)
    at = new
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return new


DOCKER = ["container", "docker"]
CHECK = ["healthChecks", 0]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["id"], None, "id: is missing"),
        (["id"], "/Squid", "id: '/Squid' must be lower-case"),
        (["id"], "/group/app", "id: '/group/app' must be lower-case"),
        (["id"], "a\n", "id: 'a\\n' must be lower-case"),
        (["container"], None, "container: is missing"),
        (["container"], "squid", "container: must be a dict, not str"),
        (["container", "type"], "LXC", "container.type: 'LXC' is neither"),
        (["container", "docker"], None, "container.docker: is missing"),
        ([*DOCKER, "image"], None, "container.docker.image: is missing"),
        ([*DOCKER, "image"], "--privileged", "container.docker.image: '--privileged' is no image's name"),
        ([*DOCKER, "privileged"], "yes", "container.docker.privileged: must be a bool, not str"),
        ([*DOCKER, "forcePullImage"], True, "container.docker.forcePullImage: dodas does not do this"),
        ([*DOCKER, "parameters"], "device", "container.docker.parameters: must be a list"),
        ([*DOCKER, "parameters", 0], "device", "container.docker.parameters[0]: must be a mapping"),
        ([*DOCKER, "parameters", 0, "key"], "net", "container.docker.parameters[0].key: only device"),
        ([*DOCKER, "parameters", 0, "value"], None, "container.docker.parameters[0].value: is missing"),
        (["container", "portMappings"], [{}], "container.portMappings: dodas does not do this"),
        (["container", "volumes", 0], "/etc", "container.volumes[0]: must be a mapping"),
        (["container", "volumes", 0, "hostPath"], None, "container.volumes[0].hostPath: is missing"),
        (["container", "volumes", 0, "hostPath"], "data", "container.volumes[0].hostPath: 'data' must be an absolute"),
        (["container", "volumes", 1, "containerPath"], "/a:/b", "container.volumes[1].containerPath: '/a:/b' must be"),
        (["container", "volumes", 1, "mode"], "rw", "container.volumes[1].mode: 'rw' is neither RO nor RW"),
        (["container", "volumes", 1, "external"], {"name": "x"}, "container.volumes[1].external: dodas does not"),
        (["container", "volumes", 1, "hostpath"], "/x", "container.volumes[1].hostpath: unknown field; did you mean"),
        (["instances"], 2, "instances: this engine runs one"),
        (["instances"], True, "instances: must be a number"),
        (["constraints"], [["hostname", "UNIQUE"]], "constraints: dodas does not do this: placement"),
        (["gpus"], 1, "gpus: dodas does not do this"),
        (["nonsense"], 1, "nonsense: unknown field"),
        (["instance"], 1, "instance: unknown field; did you mean instances?"),
        (["cmd"], "squid -N", "cmd: give either cmd or args"),
        (["args"], [{"a": 1}], "args[0]: must be a text or a number, not dict"),
        (["args"], "squid -N", "args: must be a list, not str"),
        (["networks"], "host", "networks: must be a list"),
        (["networks"], [{"mode": "host"}, {"mode": "container"}], "networks[1]: this engine offers only mode host"),
        (["env"], ["A=1"], "env: must be a dict"),
        (["env", "TOKEN"], {"secret": "s"}, "env.TOKEN: must be a text or a number, not dict"),
        (["env", "FLAG"], True, "env.FLAG: must be a text or a number, not bool"),
        (["env", "TOKEN"], "hidden\nEVIL=1", "env.TOKEN: must be one line"),
        (["env", "A B"], "x", "env.A B: the name must match"),
        (["labels", "traefik.enable"], "true", "labels.traefik.enable: the name must match"),
        (["labels", "tier"], ["front"], "labels.tier: must be a text"),
        (["user"], 13, "user: must be a str, not int"),
        (["portDefinitions", 0], 3128, "portDefinitions[0]: must be a mapping"),
        (["portDefinitions", 0, "port"], 65536, "portDefinitions[0].port: 65536 is no port"),
        (["portDefinitions", 0, "port"], 80.5, "portDefinitions[0].port: 80.5 is no port"),
        (["portDefinitions", 1, "port"], 0, "portDefinitions[1].port: must be a number of at least 1"),
        (["portDefinitions", 1, "protocol"], "sctp", "portDefinitions[1].protocol: 'sctp' is none of"),
        (["healthChecks", 1], "TCP", "healthChecks[1]: must be a mapping"),
        ([*CHECK, "protocol"], "ICMP", "healthChecks[0].protocol: 'ICMP' is none of"),
        ([*CHECK, "protocol"], ["TCP"], "healthChecks[0].protocol: ['TCP'] is none of"),
        ([*CHECK, "portIndex"], 2, "healthChecks[0].portIndex: 2 names no portDefinition"),
        ([*CHECK, "portIndex"], True, "healthChecks[0].portIndex: True names no portDefinition"),
        ([*CHECK, "path"], 3, "healthChecks[0].path: must be a str"),
        ([*CHECK, "grace"], 3, "healthChecks[0].grace: unknown field"),
        (["healthChecks", 1, "port"], "http", "healthChecks[1].port: must be a number"),
        (["healthChecks", 2, "command"], None, "healthChecks[2].command: is missing"),
        (["healthChecks", 2, "command"], "true", "healthChecks[2].command: must be a dict, not str"),
        (["healthChecks", 2, "command", "value"], None, "healthChecks[2].command.value: is missing"),
        (["dependencies"], ["/identity", "../x"], "dependencies[1]: '../x' must be lower-case"),
        (["dependencies"], [7], "dependencies[0]: 7 must be lower-case"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(path, value, message):
    with pytest.raises(DefinitionError) as caught:
        parse(changed(path, value))
    assert str(caught.value).startswith(message)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("given", [None, [], "squid", 3])
def test_a_definition_is_a_mapping(given):
    with pytest.raises(DefinitionError, match=r"^definition: must be a mapping"):
        parse(given)


NUMBERS = [
    (["cpus"], 0.01), (["mem"], 1), (["taskKillGracePeriodSeconds"], 0), (["backoffSeconds"], 0),
    ([*CHECK, "gracePeriodSeconds"], 0), ([*CHECK, "intervalSeconds"], 1), ([*CHECK, "timeoutSeconds"], 1),
    ([*CHECK, "maxConsecutiveFailures"], 0), (["portDefinitions", 0, "port"], 1), (["healthChecks", 1, "port"], 1),
]  # fmt: skip
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.none(), max_size=1)


@given(st.sampled_from(NUMBERS), st.integers() | st.floats() | st.booleans() | st.text(max_size=3))
@settings(max_examples=300, deadline=None)
def test_numbers_are_in_range_or_refused_by_their_path(field, value):
    path, least = field
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = number and least <= value < float("inf") and (path[-1] != "port" or (value <= 65535 and value % 1 == 0))
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
    try:
        parse(changed(path, value))
    except DefinitionError as exc:
        assert not good and str(exc).startswith(f"{where}: ")
    else:
        assert good


def paths(at=FULL, before=()):
    """The paths of all fields of FULL."""
    for key, value in at.items() if isinstance(at, dict) else enumerate(at):
        yield [*before, key]
        if isinstance(value, (dict, list)):
            yield from paths(value, (*before, key))


@given(st.sampled_from(list(paths())), JSON | st.dictionaries(st.text(max_size=3), JSON, max_size=2))
@settings(max_examples=400, deadline=None)
def test_no_value_anywhere_raises_anything_else(path, value):
    try:
        app = parse(changed(path, value))
    except DefinitionError as exc:
        # a check may name a port that is gone
        assert str(exc).startswith(("healthChecks[0].portIndex", path[0]))
    else:
        json.dumps(app.__dict__, default=vars)

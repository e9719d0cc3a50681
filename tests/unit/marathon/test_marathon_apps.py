# SPDX-License-Identifier: Apache-2.0
"""App definitions: what is refused and how, what Marathon fills in, what makes a difference and what does not."""

import copy

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, groups
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import DefinitionError

SQUID = {
    "id": "/dodas/squid",
    "cpus": 0.5,
    "mem": 512,
    "env": {"MODE": "cvmfs"},
    "container": {"type": "DOCKER", "docker": {"image": "registry.service.consul:5000/squid:1"}},
    "networks": [{"mode": "host"}],
    "portDefinitions": [{"port": 3128, "name": "proxy"}],
    "requirePorts": True,
    "constraints": [["hostname", "UNIQUE"], ["rack", "LIKE", "a|b"]],
    "healthChecks": [{"protocol": "MESOS_TCP"}],
    "dependencies": ["/dodas/identity", "/dodas/credentials"],
}
# What versions 1.8 and newer answer for it.
ANSWER = {
    "id": "/dodas/squid", "acceptedResourceRoles": ["*"], "backoffFactor": 1.15, "backoffSeconds": 1, "cpus": 0.5,
    "constraints": [["rack", "LIKE", "a|b"], ["hostname", "UNIQUE", ""]],
    "container": {"type": "DOCKER", "volumes": [], "docker": {"image": "registry.service.consul:5000/squid:1",
        "forcePullImage": False, "parameters": [], "privileged": False}},
    "dependencies": ["/dodas/credentials", "/dodas/identity"], "disk": 0, "env": {"MODE": "cvmfs"}, "executor": "",
    "gpus": 0, "healthChecks": [{"gracePeriodSeconds": 300, "intervalSeconds": 60, "maxConsecutiveFailures": 3,
        "portIndex": 0, "protocol": "MESOS_TCP", "ipProtocol": "IPv4", "timeoutSeconds": 20, "delaySeconds": 15}],
    "instances": 1, "killSelection": "YOUNGEST_FIRST", "labels": {}, "maxLaunchDelaySeconds": 300, "mem": 512.0,
    "networks": [{"mode": "host"}],
    "portDefinitions": [{"labels": {}, "name": "proxy", "port": 3128, "protocol": "tcp"}], "requirePorts": True,
    "role": "*", "unreachableStrategy": {"expungeAfterSeconds": 0, "inactiveAfterSeconds": 0},
    "upgradeStrategy": {"maximumOverCapacity": 1, "minimumHealthCapacity": 1},
    "version": "2024-01-02T03:04:05.678Z", "versionInfo": {"lastScalingAt": "2024-01-02T03:04:05.678Z"},
    "tasksStaged": 0, "tasksRunning": 1, "tasksHealthy": 1, "tasksUnhealthy": 0, "deployments": [], "args": None,
}  # fmt: skip


def squid(**changes):
    return {**copy.deepcopy(SQUID), **changes}


def answer(**changes):
    return {**copy.deepcopy(ANSWER), **changes}


def plain(**more):
    return {"id": "/a", "cmd": "true", **more}


def test_what_marathon_fills_in_makes_no_difference():
    assert apps.difference(apps.parse(SQUID), ANSWER) == {}


@pytest.mark.parametrize(
    "there",
    [
        # older versions, which have other defaults
        {"maxLaunchDelaySeconds": 3600, "executor": "//cmd"},
        {"unreachableStrategy": {"inactiveAfterSeconds": 300, "expungeAfterSeconds": 600}},
        # chosen by Marathon
        {"role": "batch"},
        {"acceptedResourceRoles": None},
        # scaled since
        {"instances": 7},
    ],
)
def test_nor_does_what_other_versions_fill_in_or_what_is_marathons_choice(there):
    assert apps.difference(apps.parse(SQUID), answer(**there)) == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cpus": 1}, "cpus"),
        ({"instances": 2}, "instances"),
        ({"env": {"MODE": "frontier"}}, "env"),
        ({"env": {}}, "env"),
        ({"labels": {"HAPROXY_GROUP": "external"}}, "labels"),
        ({"constraints": [["hostname", "UNIQUE"]]}, "constraints"),
        ({"container": {"docker": {"image": "registry.service.consul:5000/squid:2"}}}, "container"),
        ({"portDefinitions": [{"port": 3129, "name": "proxy"}]}, "portDefinitions"),
        ({"healthChecks": [{"protocol": "MESOS_TCP", "intervalSeconds": 5}]}, "healthChecks"),
        ({"healthChecks": []}, "healthChecks"),
        ({"dependencies": ["/dodas/identity"]}, "dependencies"),
        ({"upgradeStrategy": {"minimumHealthCapacity": 0, "maximumOverCapacity": 0}}, "upgradeStrategy"),
        ({"maxLaunchDelaySeconds": 60}, "maxLaunchDelaySeconds"),
        ({"unreachableStrategy": "disabled"}, "unreachableStrategy"),
        ({"taskKillGracePeriodSeconds": 30}, "taskKillGracePeriodSeconds"),
        ({"role": "batch"}, "role"),
        ({"user": "nobody"}, "user"),
    ],
)
def test_each_change_is_seen_and_only_that(change, field):
    assert list(apps.difference(apps.parse(squid(**change)), ANSWER)) == [field]


@pytest.mark.parametrize("field", ["maxLaunchDelaySeconds", "taskKillGracePeriodSeconds", "user", "backoffSeconds"])
def test_what_is_not_asked_for_any_more_is_a_difference(field):
    there = answer(**{field: 77})
    assert apps.difference(apps.parse(SQUID), there)[field][0] == 77


def test_the_order_counts_where_it_means_something():
    two = [{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]
    there = answer(portDefinitions=two)
    assert apps.difference(apps.parse(squid(portDefinitions=two)), there) == {}
    assert list(apps.difference(apps.parse(squid(portDefinitions=two[::-1])), there)) == ["portDefinitions"]


def test_service_ports_that_marathon_assigned_are_kept():
    port = {"port": 10007, "protocol": "tcp", "labels": {}}
    definition = apps.parse(plain(portDefinitions=[{"port": 0}]))
    assert apps.difference(definition, apps.filled(plain(portDefinitions=[port]))) == {}
    assert apps.difference(apps.parse(plain()), apps.filled(plain(portDefinitions=[{**port, "name": "default"}]))) == {}
    bridge = {"networks": [{"mode": "container/bridge"}], "container": {"docker": {"image": "i"}}}
    assigned = {"docker": {"image": "i"}, "portMappings": [
        {"containerPort": 0, "hostPort": 0, "servicePort": 10008, "protocol": "tcp", "name": "default"}]}  # fmt: skip
    there = apps.filled({"id": "/b", **bridge, "container": assigned})
    assert apps.difference(apps.parse({"id": "/b", **bridge}), there) == {}
    more = {"docker": {"image": "i"}, "portMappings": [{"containerPort": 80}]}
    assert list(apps.difference(apps.parse({"id": "/b", **bridge, "container": more}), there)) == ["container"]


def test_persistent_volumes_have_other_defaults():
    volume = {"containerPath": "data", "mode": "RW", "persistent": {"size": 100}}
    definition = apps.parse(plain(container={"type": "MESOS", "volumes": [volume]}))
    done = apps.filled(definition)
    assert done["upgradeStrategy"] == {"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0}
    assert done["unreachableStrategy"] == "disabled"
    assert done["residency"]["taskLostBehavior"] == "WAIT_FOREVER"
    assert apps.difference(definition, done) == {}


def test_every_field_that_a_definition_may_have_survives_a_second_run():
    everything = {
        "id": "/all", "args": ["-x", 5], "backoffFactor": 2, "backoffSeconds": 5, "cpus": 0.1, "disk": 10, "gpus": 1,
        "env": {"N": 5, "S": {"secret": "s"}}, "secrets": {"s": {"source": "/s"}}, "user": "nobody", "tty": True,
        "fetch": [{"uri": "https://example.org/a.tgz"}], "killSelection": "OLDEST_FIRST", "labels": {"a": 1},
        "container": {"type": "MESOS", "docker": {"image": "i", "parameters": []}, "volumes": [
            {"containerPath": "/c", "hostPath": "/h", "mode": "RO"}, {"containerPath": "s", "secret": "s"}]},
        "networks": [{"mode": "container", "name": "net"}], "requirePorts": False, "role": "r",
        "readinessChecks": [{"portName": "main"}], "taskKillGracePeriodSeconds": 3, "acceptedResourceRoles": ["r", "*"],
        "healthChecks": [{"protocol": "HTTP"}, {"protocol": "COMMAND", "command": {"value": "true"}}],
    }  # fmt: skip
    definition = apps.parse(everything)
    assert definition["args"] == ["-x", "5"]
    assert definition["env"]["N"] == "5"
    assert apps.difference(definition, apps.filled(definition)) == {}


WRONG = [
    ({"id": "/a", "cmds": "x"}, "app /a: cmds: unknown field; did you mean cmd?"),
    ({"cmd": "x"}, "app definition: id: is missing"),
    ({"id": "/A b", "cmd": "x"}, "app /A b: id: '/A b': each part must be lower-case"),
    ({"id": "/", "cmd": "x"}, "the root is no app"),
    ({"id": "../../a", "cmd": "x"}, "there is nothing above the root"),
    ({"id": "/a"}, "app /a: cmd: is missing: there is neither args nor a container's image"),
    (plain(args=["x"]), "args: cmd is there as well"),
    (plain(cpus="1"), "cpus: must be a number of at least 0.001, got '1'"),
    (plain(cpus=True), "cpus: must be a number"),
    (plain(mem=-1), "mem: must be a number of at least 0, got -1"),
    (plain(instances=1.5), "instances: must be a whole number of at least 0, got 1.5"),
    (plain(upgradeStrategy={"minimumHealthCapacity": 1.5, "maximumOverCapacity": 0}),
     "upgradeStrategy.minimumHealthCapacity: must be a number of at least 0 and at most 1, got 1.5"),
    (plain(constraints=[["hostname", "unique"]]),
     "constraints[0]: unknown operator 'unique': there are UNIQUE, CLUSTER, GROUP_BY, LIKE, UNLIKE, MAX_PER, IS; "
     "did you mean UNIQUE?"),
    (plain(constraints=[["hostname"]]), "constraints[0]: must be a field, an operator and"),
    (plain(constraints=[["hostname", "MAX_PER"]]), "constraints[0]: operator MAX_PER needs a number"),
    (plain(constraints=[["hostname", "LIKE"]]), "constraints[0]: operator LIKE needs a value"),
    (plain(constraints=[["hostname", "UNIQUE", "x"]]), "constraints[0]: operator UNIQUE takes no value"),
    (plain(healthChecks=[{"protocol": "MESOS_TPC"}]), "healthChecks[0].protocol: 'MESOS_TPC' is none of"),
    (plain(healthChecks=[{"protocol": "TCP", "portIndex": 1}]), "healthChecks[0].portIndex: 1 names no port: there"),
    (plain(healthChecks=[{"protocol": "TCP"}], portDefinitions=[]), "healthChecks[0].portIndex: 0 names no port"),
    (plain(healthChecks=[{"protocol": "COMMAND"}]), "healthChecks[0].command: is missing"),
    (plain(healthChecks=[{"protocol": "MESOS_TCP"}, {"protocol": "MESOS_HTTP"}]), "healthChecks[1]: an app can have"),
    (plain(portDefinitions=[{"port": 70000}]), "portDefinitions[0].port: must be a whole number of at least 0 and at"),
    (plain(portDefinitions=[{"port": 5}, {"port": 5}]), "portDefinitions[1].port: 5 is there twice"),
    (plain(portDefinitions=[{"name": "x"}, {"name": "x"}]), "portDefinitions[1].name: 'x' is there twice"),
    (plain(portDefinitions=[{}], networks=[{"mode": "container/bridge"}]), "portDefinitions: are for the host's"),
    (plain(container={"type": "MESOS", "portMappings": [{}]}), "container.portMappings: are for other networks"),
    (plain(container={"docker": {"image": "i", "network": "HOST"}}), "container.docker.network: is deprecated: use"),
    (plain(container={"docker": {}}), "container.docker.image: is missing"),
    (plain(container={}), "container.docker: is missing for a container of type DOCKER"),
    (plain(container={"docker": {"image": "i"}, "volumes": [{"containerPath": "/c", "mode": "RW"}]}),
     "container.volumes[0]: needs one of hostPath"),
    (plain(container={"docker": {"image": "i"}, "volumes": [{"containerPath": "/c", "hostPath": "/h"}]}),
     "container.volumes[0].mode: is missing"),
    (plain(ports=[80]), "ports: is deprecated: use portDefinitions"),
    (plain(version="2024"), "version: is a part of Marathon's answers"),
    (plain(unreachableStrategy={"inactiveAfterSeconds": 9, "expungeAfterSeconds": 9}), "unreachableStrategy: expunge"),
    (plain(env={"a-b": "x"}), "env.a-b: the name must match"),
    (plain(env={"A": {"secret": "s"}}), "env.A.secret: 's' is not in secrets"),
    ("[1]", "app definition: definition: must be a mapping"),
    ('{"id": "/a", "id": "/b"}', "JSON: 'id' is there twice"),
    ('{"id": "/a", "cpus": NaN}', "JSON: NaN is not a number in JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("definition", "message"), WRONG)
def test_wrong_definitions_are_refused_by_their_field(definition, message):
    with pytest.raises(DefinitionError) as caught:
        apps.parse(definition)
    assert message in str(caught.value)


@pytest.mark.parametrize("definition", ['{"id": "/a", "cmd": "x",}', '{"id": "/a",\n "args": ["x" , ]}'])
def test_a_trailing_comma_is_called_that_with_its_line(definition):
    with pytest.raises(DefinitionError, match=r"JSON, line \d+, column \d+: trailing comma"):
        apps.parse(definition)


def test_values_of_environments_are_in_no_message():
    with pytest.raises(DefinitionError) as caught:
        apps.parse(plain(env={"PASSWORD": ["hunter2"]}))
    assert "hunter2" not in str(caught.value)
    assert "env.PASSWORD: must be a text or a number, not list" in str(caught.value)


def test_nulls_are_as_nothing():
    assert apps.parse(plain(user=None, container={"docker": {"image": "i", "parameters": None}})) == plain(
        container={"docker": {"image": "i"}}
    )


# Together

AGENTS = [
    {"hostname": "worker-1", "resources": {"cpus": 2, "mem": 8000, "disk": 100, "gpus": 0}},
    {"hostname": "worker-2", "resources": {"cpus": 4, "mem": 2000, "disk": 100, "gpus": 0}},
]


def refused(definitions, agents=None, known=()):
    with pytest.raises(DefinitionError) as caught:
        apps.refuse(definitions, agents, known)
    return str(caught.value)


def test_good_definitions_are_returned_parsed():
    first, second = apps.refuse([plain(), plain(id="b", dependencies=["a"])], AGENTS)
    assert (first["id"], second["id"], second["dependencies"]) == ("/a", "/b", ["/a"])


def test_more_than_any_agent_has():
    message = "app /a: cpus: no agent has 6 cpus: the largest, worker-2, has 4"
    assert refused([plain(cpus=6)], AGENTS) == message
    assert refused([plain(cpus=3, mem=4000)], AGENTS) == "app /a: no agent has 3 cpus, 4000 MB of memory at once"
    assert "no agent has 1 gpus: the largest" in refused([plain(gpus=1)], AGENTS)
    assert refused([plain()], []) == "app /a: there is no agent"
    many = [{"hostname": "worker-1", "resources": {"cpus": "many"}}]
    assert "agents: worker-1: cpus must be a number, got 'many'" in refused([plain()], many)


def test_two_apps_on_one_service_port():
    one, other = plain(portDefinitions=[{"port": 3128}]), plain(id="/b", portDefinitions=[{"port": 3128}])
    assert refused([one, other]) == "app /b: service port 3128 is that of app /a as well"
    labelled = plain(id="/b", portDefinitions=[{"port": 1}], labels={"HAPROXY_0_PORT": "3128"})
    assert refused([one, labelled]) == "app /b: service port 3128 is that of app /a as well"
    assert refused([one], known=[other]) == "app /a: service port 3128 is that of app /b as well"
    # what is there under the same id is what is to be changed
    apps.refuse([one], known=[{**one, "id": "/a"}])


def test_virtual_hosts_share_a_port():
    def web(name, host):
        return plain(id=name, portDefinitions=[{"port": 443}], labels={"HAPROXY_0_VHOST": host} if host else {})

    apps.refuse([web("/a", "a.example.org"), web("/b", "b.example.org")])
    for host in ("a.example.org", ""):
        assert "service port 443" in refused([web("/a", "a.example.org"), web("/b", host)])


def test_dependencies_that_are_nowhere():
    needs = plain(dependencies=["/dodas/squid"])
    assert refused([needs]) == "app /a: dependencies[0]: there is no app /dodas/squid"
    apps.refuse([needs], known=[{"id": "/dodas/squid"}])
    apps.refuse([plain(dependencies=["/dodas"])], known=[{"id": "/dodas/squid"}])  # a group
    assert "there is no app /dod" in refused([plain(dependencies=["/dod"])], known=[{"id": "/dodas/squid"}])
    apps.refuse([needs], known=None)


def test_a_circle_of_dependencies():
    both = [plain(dependencies=["/b"]), plain(id="/b", dependencies=["/a"])]
    assert "none of these can be the first" in refused(both)


def test_one_app_twice():
    assert refused([plain(), plain(id="a")]) == "app /a: is there twice"


def test_all_that_is_wrong_is_said_at_once():
    message = refused([plain(cpus=99), plain(id="/b", instance=1)], AGENTS)
    assert "app /a: cpus" in message
    assert "app /b: instance: unknown field; did you mean instances?" in message


def test_order_follows_dependencies():
    given = [plain(id="/c", dependencies=["/b"]), plain(id="/b", dependencies=["/a"]), plain()]
    assert apps.order(given) == ["/a", "/b", "/c"]


# Groups


def group(**more):
    return {"id": "/data", "apps": [{"id": "cache", "cmd": "x"}], **more}


def test_ids_in_a_group_are_below_it():
    done = groups.parse(group(groups=[{"id": "deep", "apps": [{"id": "a", "cmd": "x", "dependencies": ["../cache"]}]}]))
    assert list(groups.apps_of(done)) == ["/data/cache", "/data/deep/a"]
    assert groups.apps_of(done)["/data/deep/a"]["dependencies"] == ["/data/cache"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (group(apps=[{"id": "/other/a", "cmd": "x"}]), "group /data: /other/a is not below /data"),
        (group(apps=[{"id": "a"}]), "group /data: app a: cmd: is missing"),
        (group(scaleBy=2), "group /data: scaleBy: changes again with each run"),
        (group(app=[]), "group /data: app: unknown field; did you mean apps?"),
        ({"apps": []}, "group: id: is missing"),
        ('{"id": "/data",}', "trailing comma"),
    ],
)
def test_wrong_groups_are_refused_by_their_field(given, message):
    with pytest.raises(DefinitionError) as caught:
        groups.parse(given)
    assert message in str(caught.value)


def test_apps_that_a_list_does_not_name_go():
    there = groups.parse(group(apps=[{"id": "cache", "cmd": "x"}, {"id": "old", "cmd": "x"}],
                               groups=[{"id": "deep", "apps": [{"id": "a", "cmd": "x"}]}]))  # fmt: skip
    assert groups.removed(groups.parse(group()), there) == ["/data/old"]
    assert groups.removed(groups.parse({"id": "/data"}), there) == []
    assert groups.removed(groups.parse(group(groups=[])), there) == ["/data/old", "/data/deep/a"]
    emptied = groups.parse(group(groups=[{"id": "deep", "apps": []}]))
    assert groups.removed(emptied, there) == ["/data/old", "/data/deep/a"]


def test_groups_differ_by_what_they_say_themselves():
    there = groups.parse(group(dependencies=["/dodas"], groups=[{"id": "deep"}]))
    assert not groups.differs(groups.parse(group()), there)
    assert groups.differs(groups.parse(group()), None)
    assert groups.differs(groups.parse(group(dependencies=["/other"])), there)
    assert groups.differs(groups.parse(group(groups=[])), there)
    assert groups.differs(groups.parse(group(groups=[{"id": "new"}])), there)
    assert groups.differs(groups.parse(group(enforceRole=True)), there)

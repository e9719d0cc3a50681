# SPDX-License-Identifier: Apache-2.0
"""What an app's definition becomes for Marathon, and what Marathon's tasks are to a person."""

from __future__ import annotations

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.engine import marathon
from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError

SQUID = {
    "id": "/squid", "cpus": 0.5, "mem": 512, "user": "proxy",
    "container": {"type": "DOCKER", "docker": {"image": "localhost/dodas/squid:latest"}, "volumes": [
        {"hostPath": "/etc/dodas/squid", "containerPath": "/etc/dodas/squid", "mode": "RO"},
        {"hostPath": "/var/lib/dodas/squid", "containerPath": "/var/lib/dodas/squid", "mode": "RW"},
    ]},
    "networks": [{"mode": "host"}],
    "portDefinitions": [{"port": 3128, "name": "proxy"}],
    "healthChecks": [{"protocol": "TCP", "portIndex": 0}, {"protocol": "COMMAND", "command": {"value": "true"}}],
    "dependencies": ["/credentials"],
}  # fmt: skip
IMAGES = {"squid": "registry.service.consul:5000/dodas/squid:abc"}
AGENTS = ["agent-1.node.consul", "agent-2.node.consul"]


def test_an_app_is_placed_named_and_labelled():
    app = marathon.translate(SQUID, AGENTS, IMAGES)
    docker = app["container"]["docker"]
    assert app["id"] == "/dodas/squid"
    assert app["dependencies"] == ["/dodas/credentials"]
    assert docker["image"] == IMAGES["squid"]
    assert docker["parameters"] == [{"key": "label", "value": "dodas.app=squid"}, {"key": "user", "value": "proxy"}]
    assert "user" not in app  # for Marathon it is the user of the host
    assert app["constraints"] == [["hostname", "LIKE", r"agent\-1\.node\.consul|agent\-2\.node\.consul"]]
    assert app["requirePorts"] is True
    assert [one["protocol"] for one in app["healthChecks"]] == ["MESOS_TCP", "COMMAND"]
    assert SQUID["id"] == "/squid"  # the definition is another engine's as well


def test_instances_of_a_fixed_port_are_on_hosts_of_their_own():
    app = marathon.translate(SQUID, AGENTS, IMAGES, 2)
    assert ["hostname", "UNIQUE"] in app["constraints"]
    with pytest.raises(DefinitionError, match="3 instances have one port, and 2 hosts"):
        marathon.translate(SQUID, AGENTS, IMAGES, 3)
    many = marathon.translate({**SQUID, "portDefinitions": [{"port": 0, "name": "startd"}]}, AGENTS, IMAGES, 6)
    assert many["instances"] == 6
    assert ["hostname", "UNIQUE"] not in many["constraints"]


@pytest.mark.parametrize(("change", "message"), [
    ({"id": "Squid!"}, "id: 'Squid!'"),
    ({"container": {"docker": {"image": "localhost/dodas/other:latest"}}}, "container.docker.image: localhost/dodas"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_its_path(change, message):
    with pytest.raises(DefinitionError, match=message):
        marathon.translate({**SQUID, **change}, AGENTS, IMAGES)


def test_another_file_on_one_host_is_another_version():
    files = [{"path": "/etc/dodas/squid/squid.conf", "content": "a", "mode": "0644", "owner": "root"}]
    app = marathon.translate(SQUID, AGENTS, IMAGES)

    def label(*contents):
        found = {f"agent-{i}": {"squid": {"definition": app, "digest": marathon.digest([{**files[0], "content": one}])}}
                 for i, one in enumerate(contents)}  # fmt: skip
        (one,) = marathon.collect(found)
        return one["labels"]["dodas-files"]

    assert label("a", "a") == label("a", "a")
    assert len({label("a", "a"), label("a", "b"), label("b", "a"), label("a")}) == 4


def test_an_app_waits_for_those_that_the_cluster_has():
    app = {**SQUID, "dependencies": ["/identity", "/conditions"]}
    assert marathon.translate(app, AGENTS, IMAGES)["dependencies"] == ["/dodas/identity", "/dodas/conditions"]
    known = {"squid", "conditions"}
    assert marathon.translate(app, AGENTS, IMAGES, known=known)["dependencies"] == ["/dodas/conditions"]


def test_folders_that_an_app_writes_are_made():
    assert marathon.folders(SQUID) == ["/var/lib/dodas/squid"]


def test_states_are_told_by_host():
    task = {"host": AGENTS[0], "state": "TASK_RUNNING", "startedAt": "2026-01-01T00:00:00.000Z",
            "healthCheckResults": [{"alive": True}, {"alive": True}]}  # fmt: skip
    sick = {**task, "healthCheckResults": [{"alive": True}, {"alive": False, "lastFailureCause": "no answer"}]}
    app = {"id": "/dodas/squid", "instances": 3, "healthChecks": [{}, {}]}
    assert marathon.states([{**app, "tasks": [task, task]}], AGENTS[0]) == {
        "squid": {"state": "passing", "output": "2 of 3 here", "since": 1767225600.0}
    }
    assert marathon.states([{**app, "tasks": [task, sick]}], AGENTS[0])["squid"]["output"] == "no answer"
    assert marathon.states([{**app, "tasks": [task]}], AGENTS[1]) == {}
    lacking = {**app, "tasks": [task], "lastTaskFailure": {"message": "image not found"}}
    assert marathon.states([lacking])["squid"]["output"] == "2 of 3: image not found"
    assert marathon.states([{**app, "tasks": [task] * 3}]) == {}

# SPDX-License-Identifier: Apache-2.0
"""Apps brought to what they shall be on the stand-ins of Marathon and Mesos: planned, waited for, explained, undone."""

import re
import threading
from contextlib import suppress

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, deployments, groups
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.client import Deadline
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import (
    Invalid,
    Locked,
    NotDeployed,
    NotFound,
)
from mesos_runtime import wait_for

HEALTHY = [{"protocol": "COMMAND", "command": {"value": "true"}, "delaySeconds": 0, "intervalSeconds": 1}]


def sleeper(name, **more):
    return {"id": f"/test/{name}", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16, **more}


def bring(client, *given, force=False, wait=True):
    """Make apps what they shall be, as the module does. Returns the changes and their deployments."""
    found = deployments.current(client)
    definitions = apps.refuse(given, known=found.values())
    changes = deployments.plan(definitions, found)
    changed = {one.id for one in changes}
    made = deployments.put(client, [one for one in definitions if one["id"] in changed], found, force)
    if wait:
        deployments.wait(client, definitions)
    return changes, made


def actions(changes):
    return [(one.id, one.action, one.fields) for one in changes]


def tasks(client, app_id):
    return {one["id"] for one in client.app(app_id, embed=("tasks",))["tasks"]}


@pytest.fixture
def client(cluster):
    client = cluster.client(timeout=120)
    yield client
    with client.within(60):
        for one in client.deployments():
            with suppress(NotFound):  # it has ended meanwhile
                client.request("DELETE", f"/v2/deployments/{one['id']}", [("force", "true")])
        deployments.remove_group(client, "/test", force=True)
        wait_for(lambda: not client.deployments() and not client.apps(), "what the test made is gone")


def test_an_app_comes_is_left_alone_and_changes(client):
    (created,), (deployment,) = bring(client, sleeper("a", healthChecks=HEALTHY))
    assert (created.id, created.action) == ("/test/a", "created")
    assert deployment not in {one["id"] for one in client.deployments()}
    before = tasks(client, "/test/a")
    assert len(before) == 1

    assert bring(client, sleeper("a", healthChecks=HEALTHY)) == ([], [])
    assert tasks(client, "/test/a") == before

    changes, _made = bring(client, sleeper("a", healthChecks=HEALTHY, instances=3))
    assert actions(changes) == [("/test/a", "scaled", ["instances"])]
    assert tasks(client, "/test/a") > before
    assert len(tasks(client, "/test/a")) == 3

    # a definition that does not say how many leaves them
    assert bring(client, sleeper("a", healthChecks=HEALTHY)) == ([], [])

    changes, _made = bring(client, sleeper("a", healthChecks=HEALTHY, env={"A": "1"}))
    assert actions(changes) == [("/test/a", "changed", ["env"])]
    after = tasks(client, "/test/a")
    assert len(after) == 3
    assert not after & before

    # what is not said any more is as if it had never been
    changes, _made = bring(client, sleeper("a"))
    assert actions(changes) == [("/test/a", "changed", ["env", "healthChecks"])]
    assert client.app("/test/a").get("env", {}) == {}


def test_everything_that_our_apps_use_makes_no_difference_a_second_time(client):
    everything = sleeper(
        "all", args=None, env={"PORT": 3128}, labels={"HAPROXY_GROUP": "external"}, instances=2,
        portDefinitions=[{"port": 0, "name": "main"}, {"port": 0, "protocol": "udp"}], dependencies=["/test/base"],
        constraints=[["hostname", "LIKE", ".*"], ["rack", "MAX_PER", 2]], backoffSeconds=2, maxLaunchDelaySeconds=60,
        upgradeStrategy={"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0}, taskKillGracePeriodSeconds=3,
        networks=[{"mode": "host"}], killSelection="OLDEST_FIRST", healthChecks=HEALTHY,
        unreachableStrategy={"inactiveAfterSeconds": 60, "expungeAfterSeconds": 120},
    )  # fmt: skip
    bring(client, sleeper("base"), everything)
    assert bring(client, sleeper("base"), everything) == ([], [])


def test_apps_of_one_call_are_one_deployment_in_their_order(client):
    slow = [{**HEALTHY[0], "command": {"value": "sleep 1"}}]
    changes, made = bring(client, sleeper("b", dependencies=["/test/a"]), sleeper("a", healthChecks=slow))
    assert [one.action for one in changes] == ["created", "created"]
    assert len(made) == 1
    (first,) = client.app("/test/a", embed=("tasks",))["tasks"]
    (second,) = client.app("/test/b", embed=("tasks",))["tasks"]
    assert first["startedAt"] < second["startedAt"]


def test_what_does_not_fit_is_told_in_plain_words_and_rolled_back(client):
    client.deadline = Deadline(5)
    with pytest.raises(NotDeployed) as caught:
        bring(client, sleeper("a", cpus=4))
    message = str(caught.value)
    assert message.startswith("after 5 s: app /test/a: 0 of 1 instances run; no offer has 4 cpus: the largest has 2 (")
    (deployment,) = caught.value.deployments
    assert f"deployment {deployment} of " in message

    assert deployments.roll_back(client, [deployment], 60) == "it was rolled back"
    assert client.app("/test/a") is None
    assert client.deployments() == []


def test_what_comes_after_it_is_told_too(client):
    client.deadline = Deadline(5)
    with pytest.raises(NotDeployed) as caught:
        bring(client, sleeper("a", cpus=4), sleeper("b", dependencies=["/test/a"]))
    assert "app /test/b: 0 of 1 instances run; it comes after /test/a" in str(caught.value)


def test_a_change_that_fails_goes_back_to_what_was(client):
    bring(client, sleeper("a", cpus=0.2))
    client.deadline = Deadline(5)
    with pytest.raises(NotDeployed) as caught:
        bring(client, sleeper("a", cpus=4))
    assert deployments.roll_back(client, caught.value.deployments, 60) == "it was rolled back"
    with client.within(60):
        deployments.wait(client, [apps.parse(sleeper("a", cpus=0.2))])


def test_constraints_and_ports_are_told_apart(client):
    client.deadline = Deadline(5)
    far = sleeper("far", constraints=[["rack", "IS", "c"]])
    port = sleeper("port", portDefinitions=[{"port": 80}], requirePorts=True)
    with pytest.raises(NotDeployed) as caught:
        bring(client, far, port)
    message = str(caught.value)
    assert "app /test/far: 0 of 1 instances run; no offer fulfils the constraints rack IS c" in message
    assert "app /test/port: 0 of 1 instances run; no offer has port 80 free" in message


def test_a_program_that_ends_is_told_with_its_end(client):
    client.deadline = Deadline(5)
    with pytest.raises(NotDeployed) as caught:
        bring(client, sleeper("a", cmd="exit 3", backoffSeconds=60))
    assert "it ended with TASK_FAILED: " in str(caught.value)
    assert "it failed before and is started again in" in str(caught.value)


def test_a_health_check_that_fails_is_told(client):
    client.deadline = Deadline(5)
    checks = [{**HEALTHY[0], "command": {"value": "false"}}]
    with pytest.raises(NotDeployed) as caught:
        bring(client, sleeper("a", healthChecks=checks))
    assert "app /test/a: 0 of 1 instances are healthy" in str(caught.value)


def test_a_locked_app_is_waited_for_then_its_deployment_is_named(client):
    _changes, (stuck,) = bring(client, sleeper("a", cpus=4), wait=False)
    client.deadline = Deadline(2)
    with pytest.raises(Locked) as caught:
        bring(client, sleeper("a", cpus=0.2))
    assert f"after 2 s still locked by deployment {stuck} of " in str(caught.value)
    with client.within(60):
        bring(client, sleeper("a", cpus=0.2), force=True)
    assert client.app("/test/a")["tasksRunning"] == 1


def test_a_lock_that_goes_is_no_problem(client):
    _changes, (stuck,) = bring(client, sleeper("a", cpus=4), wait=False)
    other = threading.Timer(1.0, client.request, ("DELETE", f"/v2/deployments/{stuck}", [("force", "true")]))
    other.start()
    try:
        bring(client, sleeper("a", cpus=0.2))
    finally:
        other.join()
    assert client.app("/test/a")["tasksRunning"] == 1


def test_a_deployment_that_somebody_undoes_is_not_waited_for(client):
    _changes, (made,) = bring(client, sleeper("a", cpus=4), wait=False)
    client.roll_back(made)
    began = client.deadline.left()
    with pytest.raises(NotDeployed, match="app /test/a: it was removed, or its deployment was rolled back"):
        deployments.wait(client, [apps.parse(sleeper("a", cpus=4))])
    assert began - client.deadline.left() < 60  # long before the deadline


def test_a_change_that_somebody_undoes_is_told_with_its_fields(client):
    bring(client, sleeper("a", cpus=0.2))
    _changes, (made,) = bring(client, sleeper("a", cpus=4), wait=False)
    other = threading.Timer(1.0, client.roll_back, (made,))
    other.start()
    try:
        with pytest.raises(NotDeployed, match="app /test/a: its deployment was undone, or somebody else changed cpus"):
            deployments.wait(client, [apps.parse(sleeper("a", cpus=4))])
    finally:
        other.join()


def test_a_field_that_marathon_writes_in_its_own_way_is_nobody_elses_change(client, monkeypatch):
    known = apps.difference
    monkeypatch.setattr(apps, "difference", lambda *given: {**known(*given), "executor": ("", "//cmd")})
    bring(client, sleeper("a"))
    before = tasks(client, "/test/a")
    changes, _made = bring(client, sleeper("a"))
    assert actions(changes) == [("/test/a", "changed", ["executor"])]
    assert tasks(client, "/test/a") == before


def test_restarted_apps_have_other_tasks(client):
    bring(client, sleeper("a", instances=2), sleeper("b"))
    before, untouched = tasks(client, "/test/a"), tasks(client, "/test/b")
    deployments.restart(client, ["/test/a"])
    deployments.wait(client, [{"id": "/test/a"}])
    after = tasks(client, "/test/a")
    assert len(after) == 2
    assert not after & before
    assert tasks(client, "/test/b") == untouched


def test_removed_apps_are_gone(client):
    bring(client, sleeper("a"), sleeper("b", dependencies=["/test/a"]))
    found = deployments.current(client)
    assert len(deployments.remove(client, list(found.values()))) == 2
    assert deployments.wait(client, [], gone=list(found)) == {}
    assert deployments.remove(client, [{"id": "/test/a"}]) == []


def test_what_only_marathon_finds_wrong_is_told_with_its_field(client):
    with pytest.raises(Invalid) as caught:
        client.put_apps([{"id": "/test/a", "cmd": "x", "mem": "much"}])
    assert re.search(r"Invalid JSON: .*/mem: error\.expected", str(caught.value))
    assert client.app("/test/a") is None


def test_groups_come_change_and_go(client):
    given = {"id": "/test", "apps": [sleeper("a")], "groups": [{"id": "deep", "apps": [sleeper("deep/b")]}]}
    group = groups.parse(given)
    deployments.put_group(client, group, {})
    found = deployments.wait(client, list(groups.apps_of(group).values()))
    assert set(found) == {"/test/a", "/test/deep/b"}
    there = client.group("/test")
    assert not groups.differs(group, there)
    assert deployments.plan(list(groups.apps_of(group).values()), found) == []

    smaller = groups.parse({"id": "/test", "apps": [sleeper("a", instances=2)], "groups": []})
    gone = groups.removed(smaller, there)
    assert gone == ["/test/deep/b"]
    deployments.put_group(client, smaller, found)
    assert set(deployments.wait(client, list(groups.apps_of(smaller).values()), gone)) == {"/test/a"}
    assert client.app("/test/a")["tasksRunning"] == 2

    deployments.remove_group(client, "/test")
    deployments.wait(client, [], gone=["/test/a"])
    assert deployments.remove_group(client, "/test") == []


def test_the_leader_of_marathon_may_go_in_the_middle(three_marathons):
    client = three_marathons.client(timeout=120)
    leader = three_marathons.marathon.leader()
    slow = [{**HEALTHY[0], "command": {"value": "sleep 1"}}]
    found = deployments.current(client)
    definitions = [apps.parse(sleeper("a", healthChecks=slow)), apps.parse(sleeper("b", dependencies=["/test/a"]))]
    deployments.put(client, definitions, found)
    leader.kill()
    found = deployments.wait(client, definitions)
    assert set(found) == {"/test/a", "/test/b"}
    assert bring(client, *definitions) == ([], [])
    assert not client.leader().endswith(f":{leader.port}")

    # and before the change is asked for
    three_marathons.marathon.leader().kill()
    changes, _made = bring(client, *definitions[:1], sleeper("c"))
    assert [one.id for one in changes] == ["/test/c"]

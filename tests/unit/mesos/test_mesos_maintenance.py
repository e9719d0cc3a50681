# SPDX-License-Identifier: Apache-2.0
"""How hosts leave a cluster and come back, before masters and agents of the stand-in."""

import threading
import time

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import errors
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.maintenance import Maintenance
from mesos_runtime import Agent, Masters, call, wait_for

FIRST, SECOND = "worker-1.example", "worker-2.example"


@pytest.fixture(scope="module")
def masters(zookeeper, secure):
    with Masters(zookeeper, 1, **secure) as running:
        yield running


@pytest.fixture
def agents(masters, credentials, client_of):
    """Two agents; the hosts are up again at the end."""
    first, second = (Agent(masters, credential=credentials["agent"], hostname=name) for name in (FIRST, SECOND))
    with first, second:
        yield {FIRST: first, SECOND: second}
        _bring(Maintenance(client_of(masters)), "up", FIRST, SECOND)


@pytest.fixture
def maintenance(masters, client_of):
    return Maintenance(client_of(masters))


def _bring(maintenance, wanted, *names, absent_ok=False):
    """Bring hosts there; the names of those that were not."""
    plan = maintenance.plan(maintenance.look(names), wanted, absent_ok)
    maintenance.apply(plan, wanted, 20)
    return [host.name for host in plan]


def _states(maintenance, *names):
    return [host.state for host in maintenance.look(names or (FIRST, SECOND)).values()]


def _task(agent, masters, client, name, script, grace=1):
    """Start a task on an agent as the stand-in of a scheduler does."""
    framework = client.request("POST", "/standin/frameworks", {"name": "test"})["id"]
    app = {"id": "/test", "cmd": script, "cpus": 0.1, "mem": 32, "taskKillGracePeriodSeconds": grace}
    body = {"id": name, "framework_id": framework, "app_id": "/test", "ports": [], "env": {}, "definition": app}
    assert call(f"{agent.url}/standin/tasks", body=body).status == 201
    wait_for(lambda: _task_state(agent, name) == "TASK_RUNNING", "the task runs")


def _task_state(agent, name):
    return next((one["state"] for one in agent.tasks() if one["id"] == name), "")


def test_announcing_and_taking_back(agents, maintenance):
    assert _states(maintenance) == ["up", "up"]
    assert _bring(maintenance, "scheduled", FIRST) == [FIRST]
    assert _bring(maintenance, "scheduled", FIRST) == []
    assert _bring(maintenance, "scheduled", FIRST, SECOND) == [SECOND]
    assert _states(maintenance) == ["scheduled", "scheduled"]
    assert maintenance.look([FIRST])[FIRST].window == maintenance.window
    assert _bring(maintenance, "up", FIRST) == [FIRST]
    assert _states(maintenance) == ["up", "scheduled"]  # what others announced stays


def test_another_time_is_another_announcement(agents, maintenance, masters, client_of):
    _bring(maintenance, "scheduled", FIRST, SECOND)
    later = {"start": int(time.time()) + 3600, "duration": 60}
    assert _bring(Maintenance(client_of(masters), later, exact=True), "scheduled", SECOND) == [SECOND]
    assert _bring(Maintenance(client_of(masters), later, exact=True), "scheduled", SECOND) == []
    found = maintenance.look([FIRST, SECOND])
    assert found[SECOND].window == later
    assert found[FIRST].window == maintenance.window


def test_a_drained_agent_has_no_tasks_and_gets_none(agents, maintenance, masters, client_of):
    _task(agents[FIRST], masters, client_of(masters), "long", "sleep 1000")
    assert _bring(maintenance, "drained", FIRST) == [FIRST]
    assert _task_state(agents[FIRST], "long") == "TASK_KILLED"
    assert _states(maintenance) == ["drained", "up"]
    assert _bring(maintenance, "drained", FIRST) == []
    assert _bring(maintenance, "up", FIRST) == [FIRST]
    assert _states(maintenance) == ["up", "up"]


def test_a_task_that_takes_its_time_is_waited_for_until_the_deadline(agents, maintenance, masters, client_of):
    script = "trap '' TERM; while true; do sleep 0.2; done"
    _task(agents[FIRST], masters, client_of(masters), "slow", script, grace=6)
    plan = maintenance.plan(maintenance.look([FIRST]), "drained")
    with pytest.raises(errors.MesosError, match=f"not finished in 1 s: {FIRST} is draining: tasks run there"):
        maintenance.apply(plan, "drained", 1)
    assert _bring(maintenance, "drained", FIRST) == [FIRST]
    assert _task_state(agents[FIRST], "slow") == "TASK_KILLED"


def test_less_time_than_a_task_asks_for(agents, masters, client_of):
    script = "trap '' TERM; while true; do sleep 0.2; done"
    _task(agents[FIRST], masters, client_of(masters), "slowest", script, grace=600)
    assert _bring(Maintenance(client_of(masters), grace=1), "drained", FIRST) == [FIRST]


def test_a_host_that_is_down_has_no_agent_until_it_is_up(agents, maintenance):
    assert _bring(maintenance, "down", FIRST) == [FIRST]
    assert _states(maintenance) == ["down", "up"]
    assert _bring(maintenance, "down", FIRST) == []
    assert agents[FIRST].program.wait() == 0
    with pytest.raises(errors.MesosError, match=f"{FIRST}: is down; only state up can follow"):
        _bring(maintenance, "drained", FIRST)
    assert _bring(maintenance, "up", FIRST) == [FIRST]
    agents[FIRST].start()
    wait_for(lambda: _states(maintenance) == ["up", "up"], "it is up")


def test_a_host_without_an_agent(agents, maintenance):
    with pytest.raises(errors.MesosError, match="no agent is registered as worker-9"):
        _bring(maintenance, "drained", FIRST, "worker-9")
    assert _bring(maintenance, "drained", "worker-9", absent_ok=True) == []


def test_an_agent_that_is_not_there_cannot_be_drained(agents, maintenance):
    agents[FIRST].program.kill()
    wait_for(lambda: _states(maintenance, FIRST) == ["lost"], "it is missed")
    assert _bring(maintenance, "up", FIRST) == []
    plan = maintenance.plan(maintenance.look([FIRST]), "drained")
    with pytest.raises(errors.MesosError, match=f"{FIRST} is draining: tasks run there, or its agent does not"):
        maintenance.apply(plan, "drained", 1)
    agents[FIRST].start()
    assert _bring(maintenance, "drained", FIRST) == [FIRST]


def test_somebody_else_has_it_deactivated(agents, maintenance, masters, client_of):
    identity = maintenance.look([FIRST])[FIRST].agents[0]["id"]
    client_of(masters).call("DEACTIVATE_AGENT", deactivate_agent={"agent_id": {"value": identity}})
    assert _states(maintenance) == ["deactivated", "up"]
    assert _bring(maintenance, "up", FIRST) == [FIRST]
    assert _states(maintenance) == ["up", "up"]


def test_two_who_announce_at_once_lose_nothing(agents, masters, client_of):
    done = []

    def announce(name):
        done.append(_bring(Maintenance(client_of(masters)), "scheduled", name))

    for _ in range(2):
        threads = [threading.Thread(target=announce, args=(name,)) for name in (FIRST, SECOND)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert _states(Maintenance(client_of(masters))) == ["scheduled", "scheduled"]
        _bring(Maintenance(client_of(masters)), "up", FIRST, SECOND)
    assert sorted(done) == [[FIRST]] * 2 + [[SECOND]] * 2

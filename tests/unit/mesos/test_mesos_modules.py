# SPDX-License-Identifier: Apache-2.0
"""The modules through Ansible itself: check mode, diff, a second run, messages, and no secret anywhere."""

import pytest

from ansible_runtime import Ansible
from mesos_runtime import Agent, Masters

NAME = "worker-1.example"


@pytest.fixture(scope="module")
def masters(zookeeper, secure, credentials):
    with Masters(zookeeper, 1, **secure) as running, Agent(running, credential=credentials["agent"], hostname=NAME):
        yield running


@pytest.fixture(scope="module")
def asked(masters):
    """Whom the modules ask, and as whom."""
    addresses = [f"127.0.0.1:{program.port}" for program in masters.programs]
    return {"masters": addresses, "principal": "operator", "secret": "operator-secret-0123"}


@pytest.fixture(scope="module")
def done(asked, tmp_path_factory):
    """One play: results in order, and all that was printed with much of it."""
    maintenance = {**asked, "agents": [NAME], "state": "drained", "timeout": 30}
    wrong = {**asked, "secret": "another-secret-0123"}
    tasks = [
        ("dodas.cluster.mesos_info", {**asked, "agents": [NAME], "timeout": 10}),
        ("dodas.cluster.mesos_maintenance", maintenance, {"check_mode": True}),
        ("dodas.cluster.mesos_info", asked),
        ("dodas.cluster.mesos_maintenance", maintenance),
        ("dodas.cluster.mesos_maintenance", maintenance),
        ("dodas.cluster.mesos_info", asked),
        ("dodas.cluster.mesos_maintenance", {**maintenance, "state": "up"}),
        ("dodas.cluster.mesos_maintenance", {**maintenance, "agents": ["worker-9"]}),
        ("dodas.cluster.mesos_info", {**asked, "agents": ["worker-9"], "timeout": 1}),
        ("dodas.cluster.mesos_info", wrong),
        ("dodas.cluster.mesos_info", {**asked, "masters": ["nowhere"]}),
    ]
    return Ansible(tmp_path_factory.mktemp("ansible")).play(*tasks, options=["--diff", "-vvv"])


def test_what_is_read(done):
    assert done.results[0]["ready"]
    assert [one["hostname"] for one in done.results[0]["agents"]] == [NAME]


def test_check_mode_tells_and_does_nothing(done):
    told, seen = done.results[1:3]
    assert told["changed"]
    assert (told["before"], told["after"]) == ({NAME: "up"}, {NAME: "drained"})
    assert (told["diff"]["before"], told["diff"]["after"]) == (f"{NAME}: up\n", f"{NAME}: drained\n")
    assert seen["agents"][0]["active"]


def test_it_is_done_once(done):
    first, second, seen, back = done.results[3:7]
    assert [first["changed"], second["changed"], back["changed"]] == [True, False, True]
    assert first["after"] == second["before"] == {NAME: "drained"}
    assert seen["agents"][0]["drain"] == "drained"
    assert not seen["agents"][0]["active"]
    assert back["after"] == {NAME: "up"}


@pytest.mark.parametrize(("number", "message"), [
    (7, "no agent is registered as worker-9"),
    (8, "not ready in 1 s: no active agent is registered as worker-9"),
    (9, "wants a principal and a secret, or these are wrong"),
    (10, "nowhere: the address of a master must be HOST:PORT"),
])  # fmt: skip
def test_messages(done, number, message):
    assert done.results[number]["failed"]
    assert message in done.results[number]["msg"]


def test_no_secret_is_printed(done):
    assert "operator-secret" not in done.output
    assert "another-secret" not in done.output

# SPDX-License-Identifier: Apache-2.0
"""What is read out of answers: of a client that gets them from a folder, and of recorded ones where these are."""

import json
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import client, cluster, errors

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "mesos"


class Folder(client.Masters):
    """A client of one master whose answers are files, as they were recorded."""

    def __init__(self, name):
        super().__init__(["master-1:5050"])
        self.folder = RECORDED / name

    def ask(self, address, method, path, body=None):
        names = {"/metrics/snapshot": "top_metrics_snapshot", "/version": "top_version"}
        name = names.get(path) or f"master_v1_{body['type']}"
        if name == "master_v1_GET_FRAMEWORKS":  # it was not recorded by itself
            state = json.loads((self.folder / "master_v1_GET_STATE.json").read_text() or "{}")
            found = state.get("get_state", {}).get("get_frameworks", {})
            return client.Answer(200, json.dumps({"get_frameworks": found}).encode(), None)
        content = (self.folder / f"{name}.json").read_bytes()
        return client.Answer(200 if content else 307, content, None if content else "//master-2:5050/api/v1")


recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded answers of a real Mesos are not here")


@recorded
def test_a_real_cluster_at_work():
    found = cluster.look(Folder("running"))
    assert found["ready"]
    assert (found["leader"], found["version"], found["unreachable"]) == ("master-1:5050", "1.12.0", 0)
    (agent,) = found["agents"]
    assert agent["id"].endswith("-S0")
    assert (agent["hostname"], agent["ip"], agent["port"]) == ("127.0.0.1", "127.0.0.1", 24051)
    assert agent["active"]
    assert agent["attributes"] == {"rack": "r1", "kit": "test"}
    assert agent["resources"] == {"cpus": 2.0, "mem": 1024.0, "disk": 2000.0, "gpus": 0.0, "ports": [[24100, 24200]]}
    assert agent["used"] == {"cpus": 1.0, "mem": 128.0, "disk": 0.0, "gpus": 0.0, "ports": []}
    assert agent["offered"]["cpus"] == 0.0
    (framework,) = found["frameworks"]
    assert framework["name"] == "mesos-execute instance"
    assert framework["active"]


@recorded
def test_real_agents_that_are_lost():
    found = cluster.look(Folder("unreachable"))
    assert found["agents"] == []
    assert found["unreachable"] == 2


@recorded
def test_a_real_follower_does_not_lead():
    found = cluster.look(Folder("zk-follower"))
    assert not found["ready"]
    assert found["masters"] == [{"address": "master-1:5050", "state": "following", "problem": ""}]


def test_values_of_each_kind():
    assert cluster.value({"type": "SCALAR", "scalar": {"value": 1.5}}) == 1.5
    assert cluster.value({"type": "TEXT", "text": {"value": "r1"}}) == "r1"
    assert cluster.value({"type": "RANGES", "ranges": {"range": [{"begin": 1, "end": 2}]}}) == [[1, 2]]
    assert cluster.value({"type": "SET", "set": {"item": ["b", "a"]}}) == ["a", "b"]


def test_resources_of_several_roles_are_one_amount():
    some = [{"name": "cpus", "type": "SCALAR", "scalar": {"value": value}, "role": role}
            for value, role in ((0.1, "*"), (0.2, "batch"))]  # fmt: skip
    assert cluster.amounts(some)["cpus"] == 0.3


def test_majorities():
    assert [cluster.majority(count) for count in (1, 3, 5, 7)] == [1, 2, 3, 4]


def test_what_is_missing_is_named():
    masters = [{"address": "master-1:5050", "state": "recovering", "problem": "Master has not finished recovery"},
               {"address": "master-2:5050", "state": "unreachable", "problem": "Connection refused"}]  # fmt: skip
    found = {"leader": "", "masters": masters, "agents": [],
             "quorum": {"masters": 2, "needed": 2, "alive": 1, "ok": False}}  # fmt: skip
    assert cluster.missing(found) == (
        "1 of 2 masters answer, 2 are needed, and none leads; master-1:5050: Master has not finished recovery; "
        "master-2:5050: Connection refused"
    )


@pytest.mark.parametrize("address", ["master-1", "m:", "http://master-1:5050", "ann@master-1:5050", ":5050", "m:x"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        client.Masters([address])


def test_an_answer_that_is_no_json_is_said():
    with pytest.raises(errors.Refused, match="the answer is not JSON: <html>"):
        client.Answer(200, b"<html>", None).json  # noqa: B018

# SPDX-License-Identifier: Apache-2.0
"""The client before three masters: who leads, what agents have, and who is let in."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import cluster, errors
from mesos_runtime import Agent, Masters


@pytest.fixture(scope="module")
def three(zookeeper, secure):
    with Masters(zookeeper, 3, **secure) as running:
        yield running


@pytest.fixture(scope="module")
def agent(three, credentials):
    flags = {"credential": credentials["agent"], "attributes": "rack:r1;slots:4", "hostname": "worker-1.example"}
    with Agent(three, **flags) as running:
        yield running


def test_the_leader_is_found_among_masters(three, agent, client_of):
    client = client_of(three)
    found = cluster.look(client)
    assert found["leader"] == f"127.0.0.1:{three.leader().port}"
    assert sorted(one["state"] for one in found["masters"]) == ["following", "following", "leading"]
    assert found["quorum"] == {"masters": 3, "needed": 2, "alive": 3, "ok": True}
    (known,) = found["agents"]
    assert (known["hostname"], known["ip"]) == ("worker-1.example", "127.0.0.1")
    assert (known["active"], known["drain"]) == (True, "")
    assert known["attributes"] == {"rack": "r1", "slots": 4.0}
    assert known["resources"]["cpus"] == 2.0
    assert found["version"]


def test_names_with_an_address_are_not_looked_up(three, client_of):
    client = client_of(three, resolve={"master.invalid": "127.0.0.1"})
    client.addresses = [one.replace("127.0.0.1", "master.invalid") for one in client.addresses]
    assert cluster.look(client)["leader"] == f"master.invalid:{three.leader().port}"


def test_a_follower_says_who_leads(three, client_of):
    follower = next(one for one in three.alive if one.port != three.leader().port)
    client = client_of(three)
    client.addresses = [f"127.0.0.1:{follower.port}"]
    assert "agents" in client.call("GET_AGENTS")
    assert client.leader == f"127.0.0.1:{three.leader().port}"


def test_nobody_is_let_in_without_the_secret(three, client_of):
    for name, secret in (("", ""), ("operator", "another-secret-012345")):
        client = client_of(three, name, secret)
        with pytest.raises(errors.Denied, match="wants a principal and a secret"):
            client.call("GET_AGENTS")
        with pytest.raises(errors.Denied, match="wants a principal and a secret") as denied:
            cluster.look(client)
        assert secret == "" or secret not in str(denied.value)


def test_what_the_leader_refuses_is_told_in_its_words(three, client_of):
    with pytest.raises(errors.Refused, match=r"127.0.0.1:\d+: POST /api/v1 DRAIN_AGENT: HTTP status 4"):
        client_of(three).call("DRAIN_AGENT", drain_agent={"agent_id": {"value": "nobody"}})


def test_waiting_names_the_agent_that_is_missing(three, agent, client_of):
    assert cluster.wait(client_of(three), ["worker-1.example"], 10)["ready"]
    with pytest.raises(errors.NoLeader, match="not ready in 1 s: no active agent is registered as worker-9"):
        cluster.wait(client_of(three), ["worker-1.example", "worker-9"], 1)

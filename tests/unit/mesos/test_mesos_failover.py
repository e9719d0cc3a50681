# SPDX-License-Identifier: Apache-2.0
"""Masters that die or hang, and what the client makes of it."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import cluster, errors
from mesos_runtime import Masters, call, freeze, thaw, wait_for


def test_a_leader_that_answers_no_more_is_replaced(zookeeper, secure, client_of):
    with Masters(zookeeper, 3, **secure) as masters:
        client = client_of(masters, patience=60.0)
        client.call("GET_AGENTS")
        before = client.leader
        masters.leader().kill()
        client.call("GET_AGENTS")  # waits for the next one
        assert client.leader != before
        found = cluster.look(client)
        assert found["quorum"] == {"masters": 3, "needed": 2, "alive": 2, "ok": True}
        assert next(one for one in found["masters"] if one["address"] == before)["problem"] == "Connection refused"


def test_without_a_majority_it_is_not_ready_although_it_is_healthy(zookeeper, secure, client_of):
    with Masters(zookeeper, 3, **secure) as masters:
        leader = masters.leader()
        client = client_of(masters, patience=1.0)
        survivor = next(one for one in masters.alive if one is not leader)
        for program in masters.programs:
            if program is not survivor:
                program.kill()
        wait_for(lambda: _is_recovering(client), "it is elected")
        assert call(f"{survivor.url}/health").status == 200
        found = cluster.look(client)
        assert not found["ready"]
        assert not found["quorum"]["ok"]
        with pytest.raises(errors.NoLeader, match="Master has not finished recovery"):
            client.call("GET_AGENTS")
        with pytest.raises(errors.NoLeader, match="1 of 3 masters answer, 2 are needed, and none leads"):
            cluster.wait(client, [], 1)


def test_a_leader_alone_is_no_majority(zookeeper, secure, client_of):
    with Masters(zookeeper, 3, **secure) as masters:
        leader = masters.leader()
        for program in masters.programs:
            if program is not leader:
                program.kill()
        found = cluster.look(client_of(masters))
        assert found["ready"]  # it goes on as if nothing had happened
        assert not found["quorum"]["ok"]
        assert cluster.missing(found).startswith("1 of 3 masters answer, 2 are needed, and 127.0.0.1:")


def test_a_master_that_hangs_holds_nobody_up_for_ever(zookeeper, secure, client_of):
    with Masters(zookeeper, 3, **secure) as masters:
        follower = next(one for one in masters.alive if one is not masters.leader())
        freeze(follower)
        try:
            found = cluster.look(client_of(masters))
        finally:
            thaw(follower)
        assert found["ready"]
        stuck = next(one for one in found["masters"] if one["address"].endswith(f":{follower.port}"))
        assert (stuck["state"], stuck["problem"]) == ("unreachable", "timed out")


def _is_recovering(client):
    return any(one["state"] == "recovering" and "recovery" in one["problem"] for one in cluster.look(client)["masters"])

# SPDX-License-Identifier: Apache-2.0
"""The life of a deployment: made, changed, scaled, mended and removed, and what is not its own."""

from __future__ import annotations

import re

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from openstack_clients import SETTINGS, Deployment, Reality, hosts

# Its own network, router and floating IP: what `up` makes where nothing is said.
OWN = {key: value for key, value in SETTINGS.items() if key != "network"}
TWO = hosts(workers=1)


@pytest.fixture(scope="module")
def life(make_once):
    """A deployment that several tests find as two hosts, on a network of its own."""
    deployment = make_once("life", settings={**OWN, "owner": "alice", "expires": "7d"})
    deployment.first = deployment.up(TWO)
    return deployment


def test_everything_is_there_and_labelled(life, reality):
    servers = reality.whole(life, TWO)
    front = servers["front-1"]
    assert front.metadata["dodas_deployment"] == life.uuid
    assert (front.metadata["dodas_host"], front.metadata["dodas_owner"]) == ("front-1", "alice")
    assert re.match(r"20\d\d-\d\d-\d\dT", front.metadata["dodas_expires"])
    tags = {"dodas", f"dodas:deployment={life.uuid}", f"dodas:name={life.name}", "dodas:host=front-1"}
    assert tags <= set(front.tags)
    kinds = [line.rsplit(" ", 1)[0] for line in reality.of(life)]
    assert (kinds.count("server"), kinds.count("port"), kinds.count("floating IP")) == (2, 3, 1)  # one: the router's
    assert {"network", "subnet", "router", "security group", "floating IP"} <= set(kinds)


def test_addresses_are_those_of_the_cloud(life, reality):
    servers = reality.servers(life)
    for host, told in life.first.items():
        addresses = [a for network in servers[host].addresses.values() for a in network]
        fixed = [a["addr"] for a in addresses if a["OS-EXT-IPS:type"] == "fixed"]
        assert told["address"] in fixed
        assert told["id"] == servers[host].id
    assert reality.inside(life.first["front-1"]["public_address"], "public")
    assert not life.first["worker-1"].get("public_address")


def test_a_second_run_changes_nothing(life, reality):
    before = reality.everything()
    plan = life.plan(TWO)
    assert not plan.changed
    life.up(TWO)
    assert life.changes() == 0
    assert sum(life.calls.values()) < 10
    assert reality.everything() == before


def test_a_plan_changes_nothing(life, reality):
    before = reality.everything()
    plan = life.plan(hosts(workers=2), flavor="m1.small", open_ports=[{"port": 8080}])
    assert plan.changed
    assert life.changes() == 0
    assert reality.everything() == before


def test_a_plan_before_anything_is_there(make, reality):
    deployment = make("new", settings=OWN)
    plan = deployment.plan(TWO)
    assert plan.hosts["create"] == ["front-1", "worker-1"]
    assert not plan.hosts["remove"]
    assert not plan.hosts["replace"]
    assert "worker-1" in plan.text()
    assert deployment.changes() == 0
    assert reality.of(deployment) == []


def test_one_more_touches_one_and_one_less_too(life, reality):
    before = {host: server.updated_at for host, server in reality.servers(life).items()}
    life.up(hosts(workers=2))
    assert life.calls["POST compute"] <= 2  # the server, and what keeps a second run out
    after = reality.whole(life, hosts(workers=2))
    assert {host: after[host].updated_at for host in before} == before
    assert life.plan(TWO).hosts["remove"] == ["worker-2"]
    life.up(TWO)
    after = reality.whole(life, TWO)
    assert {host: after[host].updated_at for host in before} == before


@pytest.mark.parametrize("harm", ["error", "deleted", "flavor"])
def test_a_lost_server_is_replaced(life, reality, admin, harm):
    life.up(TWO)
    before = reality.servers(life)
    settings = {}
    if harm == "error":
        admin.compute.reset_server_state(before["worker-1"], "error")
    elif harm == "deleted":
        reality.connection.compute.delete_server(before["worker-1"])
        reality.connection.compute.wait_for_delete(before["worker-1"], interval=0.3, wait=60)
    else:
        settings = {"flavor": {"front": "m1.tiny", "worker": "m1.small"}}
    plan = life.plan(TWO, **settings)
    assert "worker-1" in plan.hosts["replace"] + plan.hosts["create"]
    assert "front-1" not in plan.hosts["replace"] + plan.hosts["create"]
    told = life.up(TWO, **settings)
    after = reality.whole(life, TWO)
    assert after["front-1"].id == before["front-1"].id
    assert after["worker-1"].id != before["worker-1"].id
    assert told["worker-1"]["id"] == after["worker-1"].id


def test_a_stopped_server_is_started(life, reality):
    life.up(TWO)
    worker = reality.servers(life)["worker-1"]
    reality.connection.compute.stop_server(worker)
    reality.connection.compute.wait_for_server(worker, status="SHUTOFF", interval=0.3, wait=60)
    assert life.plan(TWO).changed
    life.up(TWO)
    assert reality.whole(life, TWO)["worker-1"].id == worker.id


def test_changes_by_hand_are_seen_and_mended(life, reality):
    life.up(TWO)
    network = reality.connection.network
    groups = [g for g in network.security_groups() if f"dodas:deployment={life.uuid}" in g.tags]
    rules = {_rule(rule) for group in groups for rule in group.security_group_rules}
    gone = next(r for g in groups for r in g.security_group_rules if r["direction"] == "ingress" and r["protocol"])
    network.delete_security_group_rule(gone["id"])
    network.create_security_group_rule(
        security_group_id=groups[0].id, direction="ingress", protocol="tcp", port_range_min=6667, port_range_max=6667
    )
    plan = life.plan(TWO)
    assert plan.drift
    assert "6667" in plan.text()
    life.up(TWO)
    groups = [g for g in network.security_groups() if f"dodas:deployment={life.uuid}" in g.tags]
    assert {_rule(rule) for group in groups for rule in group.security_group_rules} == rules
    assert not life.plan(TWO).changed


def _rule(rule):
    names = ("security_group_id", "direction", "ethertype", "protocol", "port_range_min", "port_range_max")
    return tuple(rule[name] for name in (*names, "remote_ip_prefix", "remote_group_id"))


def test_labels_changed_by_hand(life, reality):
    """What says whose a server is comes back."""
    life.up(TWO)
    worker = reality.servers(life)["worker-1"]
    reality.connection.compute.set_server_metadata(worker, dodas_owner="mallory")
    plan = life.plan(TWO)
    assert plan.changed
    assert "owner" in plan.text()
    life.up(TWO)
    assert reality.servers(life)["worker-1"].metadata["dodas_owner"] == "alice"


def test_down_without_a_state_and_the_list_of_deployments(make, reality, testbed):
    deployment = make("gone")
    deployment.up(TWO)
    (listed,) = [one for one in deployment.listed() if one["uuid"] == deployment.uuid]
    assert listed["name"] == deployment.name
    assert listed["hosts"] in (2, ["front-1", "worker-1"])
    nameless = Deployment(testbed.clouds_file, "another-name", uuid=deployment.uuid)
    removed = nameless.down()
    assert sum("worker-1" in name for name in removed) >= 1
    assert reality.of(deployment) == []
    assert nameless.down() == []


def test_down_names_what_survives(make, reality):
    """A port of somebody else on the deployment's network keeps the network, and is left alone."""
    deployment = make("kept", settings=OWN)
    deployment.up(hosts(workers=0))
    network = next(thing for thing in reality.everything()["network"] if deployment.name in thing["name"])
    foreign = reality.connection.network.create_port(network_id=network["id"], name="not-ours")
    try:
        with pytest.raises(OpenStackError, match=network["name"]):
            deployment.down(timeout=20)
        assert reality.connection.network.get_port(foreign).name == "not-ours"
    finally:
        reality.connection.network.delete_port(foreign)


def test_things_of_others_are_left_alone(make, reality):
    """Things that are called as ours would be, in the same project, also with tags of another deployment."""
    deployment = make("mine", settings=OWN)
    connection = reality.connection
    shared = connection.network.find_network("shared")
    group = connection.network.create_security_group(name=f"dodas-{deployment.name}")
    network = connection.network.create_network(name=f"dodas-{deployment.name}")
    port = connection.network.create_port(network_id=shared.id, name=f"{deployment.name}-worker-1")
    connection.network.set_tags(port, ["dodas", "dodas:deployment=00000000-1111-4222-8333-444444444444"])
    server = connection.compute.create_server(
        name=f"{deployment.name}-worker-1",
        image_id=connection.image.find_image("debian-12").id,
        flavor_id=connection.compute.find_flavor("m1.tiny").id,
        networks=[{"port": port.id}],
        tags=["dodas", f"dodas:name={deployment.name}"],
    )
    try:
        connection.compute.wait_for_server(server, interval=0.3, wait=120)
        connection.compute.set_server_metadata(server, dodas_deployment="00000000-1111-4222-8333-444444444444")
        foreign = [thing.id for thing in (group, network, port, server)]

        def those():
            return [thing for things in reality.everything().values() for thing in things if thing["id"] in foreign]

        before = those()
        assert len(before) == 4
        deployment.up(TWO)
        assert server.id not in {one.id for one in reality.servers(deployment).values()}
        deployment.up(hosts(workers=0))
        deployment.down()
        assert those() == before
    finally:
        connection.compute.delete_server(server)
        connection.compute.wait_for_delete(server, interval=0.3, wait=60)
        for thing, delete in (
            (port, connection.network.delete_port),
            (network, connection.network.delete_network),
            (group, connection.network.delete_security_group),
        ):
            delete(thing)


def test_another_project_with_the_same_name(life, reality, testbed):
    """A deployment of the same name and even the same UUID in another project is another one."""
    life.up(TWO)
    other = Deployment(testbed.clouds_file, life.name, cloud="other", uuid=life.uuid)
    before = reality.everything()
    assert other.down() == []
    assert reality.everything() == before
    theirs = Reality(testbed.connection("other"))
    try:
        other.up(hosts(workers=0))
        theirs.whole(other, hosts(workers=0))
    finally:
        other.down()
    assert theirs.of(other) == []
    assert reality.everything() == before

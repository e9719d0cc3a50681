# SPDX-License-Identifier: Apache-2.0
"""What sites have: networks of their own, few floating IPs; and the rules and groups that are made for a cluster."""

from __future__ import annotations

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from openstack_clients import SETTINGS, hosts

OWN = {key: value for key, value in SETTINGS.items() if key != "network"}
TWO = hosts(workers=1)
EVERYWHERE = {"IPv4": "0.0.0.0/0", "IPv6": "::/0"}


def _of(things, deployment):
    return [thing for thing in things if f"dodas:deployment={deployment.uuid}" in (thing.tags or ())]


def _ingress(reality, deployment):
    """{(protocol, first port, last port, from)} of all rules that let something in; `group` is a group of ours."""
    groups = _of(reality.connection.network.security_groups(), deployment)
    own = {group.id for group in groups}
    return {
        (
            rule["protocol"],
            rule["port_range_min"],
            rule["port_range_max"],
            "group" if rule["remote_group_id"] in own else rule["remote_ip_prefix"] or EVERYWHERE[rule["ethertype"]],
        )
        for group in groups
        for rule in group.security_group_rules
        if rule["direction"] == "ingress"
    }


def test_a_network_of_the_site(make, reality):
    """Shared, no router, no floating IPs: neither is made, and the site's network is not ours."""
    deployment = make("site")
    told = deployment.up(TWO)
    assert {line.rsplit(" ", 1)[0] for line in reality.of(deployment)}.isdisjoint(
        {"network", "subnet", "router", "floating IP"}
    )
    assert all(reality.inside(one["address"], "shared") for one in told.values())
    assert not any(one.get("public_address") for one in told.values())
    shared = reality.connection.network.find_network("shared")
    assert not shared.tags


def test_rules(make, reality):
    """ssh from where it may come, the ports that were asked for, everything among the hosts, and nothing else."""
    deployment = make("rules", settings=OWN)
    opened = [{"port": 9618, "protocol": "tcp", "from": "192.0.2.0/24"}, {"port": 53, "protocol": "udp"}]
    told = deployment.up(TWO, ssh_from=["192.0.2.7/32"], open_ports=opened, nameservers=["192.0.2.53"])
    rules = _ingress(reality, deployment)
    assert ("tcp", 22, 22, "192.0.2.7/32") in rules
    assert ("tcp", 9618, 9618, "192.0.2.0/24") in rules
    assert ("udp", 53, 53, "0.0.0.0/0") in rules
    assert [rule for rule in rules if rule[:2] == ("tcp", 22) and rule[3] != "192.0.2.7/32"] == []
    assert any(rule[3] == "group" for rule in rules)
    # without the remote group, nothing is open to everybody but what was asked for
    assert {rule[1] for rule in rules if rule[3] in EVERYWHERE.values()} <= {53}
    (subnet,) = _of(reality.connection.network.subnets(), deployment)
    assert subnet.dns_nameservers == ["192.0.2.53"]
    assert told["worker-1"]["jump"]
    deployment.up(TWO, ssh_from=["192.0.2.8/32"], nameservers=["192.0.2.53"])
    rules = _ingress(reality, deployment)
    assert {rule[3] for rule in rules if rule[:2] == ("tcp", 22)} == {"192.0.2.8/32"}
    assert not any(rule[1] == 9618 for rule in rules)


@pytest.mark.parametrize(("which", "expected"), [("all", {"front-1", "worker-1"}), ("none", set())])
def test_floating_ips(make, reality, which, expected):
    deployment = make("ips", settings=OWN)
    told = deployment.up(TWO, floating_ips=which)
    assert {host for host, one in told.items() if one.get("public_address")} == expected
    found = {line for line in reality.of(deployment) if line.startswith("floating IP")}
    assert len(found) == len(expected)


def test_shared_addresses(make, reality):
    """An address that moves between hosts is allowed on the ports of those, and on no others."""
    deployment = make("vip", settings=OWN)
    told = deployment.up(
        hosts(workers=2), floating_ips="none", shared_addresses=[{"name": "balancer", "node": "worker"}]
    )
    allowed = {}
    for port in reality.ports(deployment):
        if port.device_id:
            allowed[port.device_id] = [pair["ip_address"] for pair in port.allowed_address_pairs]
    assert allowed[told["front-1"]["id"]] == []
    (address,) = allowed[told["worker-1"]["id"]]
    assert allowed[told["worker-2"]["id"]] == [address]
    assert address not in {one["address"] for one in told.values()}


def test_anti_affinity(make, reality, admin, testbed):
    """Hard: no two workers on one machine, and one more than there are machines fails with nova's own words."""
    machines = {service.host for service in admin.compute.services(binary="nova-compute")}
    deployment = make("apart")
    few = hosts(workers=min(len(machines), 3))
    deployment.up(few, anti_affinity="hard")
    servers = reality.whole(deployment, few)
    workers = [server.id for host, server in servers.items() if host.startswith("worker-")]
    placed = [admin.compute.get_server(server).compute_host for server in workers]
    assert len(set(placed)) == len(placed) == min(len(machines), 3)
    many = hosts(workers=len(machines) + 1)
    with pytest.raises(OpenStackError, match=f"worker-.*(No valid host|{len(machines)})"):
        deployment.up(many, anti_affinity="hard")


def test_no_block_storage(make, reality):
    """The testbed has none: said before anything is made."""
    deployment = make("volume")
    with pytest.raises(OpenStackError, match=r"boot_volume_gb|block storage"):
        deployment.up(TWO, boot_volume_gb=10)
    assert reality.of(deployment) == []


def test_which_external_network(make, admin):
    """Two, and nobody said which: both are named. With a name, that one."""
    deployment = make("which", settings=OWN)
    second = admin.network.create_network(name="public-2", is_router_external=True, provider_network_type="local")
    try:
        with pytest.raises(OpenStackError, match="external_network.*public.*public-2"):
            deployment.plan(TWO)
        assert deployment.plan(TWO, external_network="public").changed
    finally:
        admin.network.delete_network(second)


def test_sizes_instead_of_a_flavor(make, reality):
    """The smallest flavor that has what the template asks for."""
    deployment = make("size", settings={"image": "debian-12", "network": "shared"})
    wanted = hosts(workers=1)
    wanted[1].update(cpus=2, mem_mb=1500)
    deployment.up(wanted)
    servers = reality.whole(deployment, wanted)
    assert servers["front-1"].flavor.original_name == "m1.tiny"
    assert servers["worker-1"].flavor.original_name == "m1.medium"


def test_size_and_cost(make):
    """The plan says what comes, and what it costs where prices are known."""
    deployment = make("cost")
    plan = deployment.plan(hosts(workers=3), prices={"m1.tiny": 0.02}, currency="EUR")
    assert "0.08" in plan.text()
    assert "EUR" in plan.text()
    assert "4" in str(plan.summary)

# SPDX-License-Identifier: Apache-2.0
"""What has to be done follows from what is wanted and what is there; what was changed by hand is said."""

from __future__ import annotations

import datetime

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.cluster import reached
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from openstack_paper import UUID, Paper, plan, standing, wanted

FRONT, WORKER = "front-1", "worker-1"
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def kinds(steps):
    return sorted(one.kind for one in steps)


def test_everything_is_made_from_nothing():
    made = plan(Paper(), wanted(), finding.Found(), public_key="ssh-ed25519 AAAA x")
    assert made.changed
    assert made.hosts == {"create": [FRONT, WORKER], "remove": [], "replace": []}
    assert kinds(made.create) == sorted(
        ["network", "subnet", "router", "interface", "security_group", "keypair", "floating_ip", "server", "server"]
        + ["rule"] * 4
    )
    assert not (made.update or made.delete or made.replace or made.drift)
    assert made.needs == {
        "network": 1, "subnet": 1, "router": 1, "port": 3, "security_group": 1, "security_group_rule": 6,
        "instances": 2, "cores": 2, "ram": 1024, "floatingip": 1,
    }  # fmt: skip


def test_what_stands_is_left_alone():
    made = plan(Paper(), wanted(), standing())
    assert not made.changed and not made.drift
    assert made.text().startswith("nothing to change\nin all 2 hosts, 2 cpus, 1.0 GB of memory, 10 GB of disk")
    assert made.before == made.after
    assert reached(made.addresses, FRONT) == {
        FRONT: {"address": "10.88.0.10", "public_address": "203.0.113.5", "id": "server-front-1", "jump": None},
        WORKER: {"address": "10.88.0.11", "public_address": None, "id": "server-worker-1", "jump": FRONT},
    }


def test_one_more_touches_one():
    made = plan(Paper(), wanted(hosts=(FRONT, WORKER, "worker-2")), standing())
    assert made.hosts == {"create": ["worker-2"], "remove": [], "replace": []}
    assert kinds(made.create) == ["server"] and not (made.update or made.delete or made.replace)


def test_one_less_removes_its_things():
    found = standing((FRONT, WORKER, "worker-2"))
    made = plan(Paper(), wanted(), found)
    assert made.hosts == {"create": [], "remove": ["worker-2"], "replace": []}
    assert sorted(one.data["id"] for one in made.delete) == ["port-worker-2", "server-worker-2"]
    assert made.addresses["worker-2"]["address"] == "10.88.0.12"  # who drains it must reach it
    assert made.needs == {}


@pytest.mark.parametrize(
    ("change", "steps", "drift"),
    [
        (lambda f: f.servers[1].update(status="SHUTOFF"), "update server", "server tier3-worker-1 was stopped"),
        (lambda f: f.servers[1].update(status="BUILD"), "update server", None),
        (lambda f: f.floatingips[0].update(port_id=None), "update floating_ip", "203.0.113.5 is not attached"),
        (lambda f: f.floatingips.clear(), "create floating_ip", "front-1 has no floating IP"),
        (lambda f: f.routers[0].update(external_gateway_info=None), "update router", "does not lead to public"),
        (lambda f: f.ports[0].update(device_id=""), "create interface", "is not connected"),
        (lambda f: f.ports[1].update(security_groups=["other"]), "update port", "has other security groups"),
        (lambda f: f.ports[1].update(allowed_address_pairs=[{"ip_address": "10.0.0.1"}]), "update port", None),
        (lambda f: f.security_groups[0]["security_group_rules"].pop(), "create rule", "no longer lets in tcp 22"),
        (lambda f: f.servers[1]["metadata"].update(dodas_owner="x"), "update labels", None),
        (lambda f: f.networks[0].update(tags=[]), "update tags", None),
    ],
)
def test_what_was_changed_by_hand_is_seen(change, steps, drift):
    found = standing()
    change(found)
    made = plan(Paper(), wanted(), found)
    verbs = ("create", "update", "delete", "replace")
    assert [f"{verb} {one.kind}" for verb in verbs for one in getattr(made, verb)] == [steps]
    assert [drift in one for one in made.drift] == [True] if drift else True
    assert made.hosts == {"create": [], "remove": [], "replace": []}


def test_a_rule_that_nobody_asked_for_goes():
    found = standing()
    rule = {"id": "open", "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "port_range_min": 80}
    found.security_groups[0]["security_group_rules"].append({**rule, "port_range_max": 80})
    made = plan(Paper(), wanted(), found)
    assert [(one.kind, one.data["id"]) for one in made.delete] == [("rule", "open")]
    assert made.drift == ["security group dodas-tier3-hosts lets in tcp 80 from anywhere (IPv4)"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.update(status="ERROR", fault={"message": "disk full"}), "is ERROR: disk full"),
        (lambda s: s.update({"OS-EXT-STS:task_state": "deleting"}), "is being deleted"),
        (lambda s: s["flavor"].update(original_name="m1.large"), "has flavor m1.large instead of m1.tiny"),
    ],
)
def test_a_server_that_is_lost_is_replaced(change, why):
    found = standing()
    change(found.servers[1])
    made = plan(Paper(), wanted(), found)
    assert made.hosts == {"create": [], "remove": [], "replace": [WORKER]}
    assert made.replace[0].why == why and len(made.drift) == 1
    (launch,) = made.launches
    assert launch.old == "server-worker-1" and launch.port is None
    assert launch.address == "10.88.0.11"  # others know it by that
    assert [one.data["id"] for one in made.delete] == ["port-worker-1"]


def test_a_server_without_its_port_is_replaced():
    found = standing()
    found.ports.pop()
    made = plan(Paper(), wanted(), found)
    assert made.hosts["replace"] == [WORKER] and made.drift == ["server tier3-worker-1 has lost its port"]


def test_a_server_that_is_gone_is_made_with_the_port_it_left():
    found = standing()
    found.servers.pop()
    found.ports[-1]["device_id"] = ""
    made = plan(Paper(), wanted(), found)
    assert made.hosts["create"] == [WORKER] and made.launches[0].port["id"] == "port-worker-1"
    assert made.drift == ["server tier3-worker-1 is gone, or was never made"] and made.needs.get("port") is None


def test_settings_that_change_servers_replace_them():
    made = plan(Paper(), wanted({"flavor": {"worker": "m1.large"}}), standing())
    assert made.hosts["replace"] == [WORKER] and not made.drift
    assert made.replace[0].why == "flavor m1.tiny becomes m1.large"
    workers = [[line for line in side if "worker-1" in line] for side in (made.before, made.after)]
    assert workers == [["server tier3-worker-1 m1.tiny ACTIVE"], ["server tier3-worker-1 m1.large ACTIVE"]]
    assert made.needs["cores"] == 3 and made.needs["ram"] == 4096 - 512
    made = plan(Paper(), wanted({"image": "rocky-9"}), standing())
    assert made.hosts["replace"] == [FRONT, WORKER] and made.replace[0].why == "image becomes rocky-9"


@pytest.mark.parametrize("settings", [{"flavor": "m1.tiny"}, {"image": "debian-12"}, {"flavor": "id-m1.tiny"}])
def test_other_words_for_the_same_change_nothing(settings):
    assert not plan(Paper(), wanted(settings), standing()).changed


def test_a_newer_image_replaces_nothing():
    found = standing()
    found.servers[1]["metadata"]["dodas_image_id"] = "image-1"
    found.servers[1]["image"] = {"id": "image-1"}
    assert not plan(Paper(), wanted(), found).changed


def test_what_is_there_twice_is_once_afterwards():
    found = standing()
    found.servers.append({**found.servers[1], "id": "twin", "status": "BUILD"})
    found.networks.append({**found.networks[0], "id": "net-2"})
    found.floatingips.append({**found.floatingips[0], "id": "ip-2", "port_id": None})
    made = plan(Paper(), wanted(), found)
    assert {(one.kind, one.data["id"]) for one in made.delete} == {
        ("server", "twin"),
        ("network", "net-2"),
        ("floating_ip", "ip-2"),
    }
    assert made.hosts == {"create": [], "remove": [], "replace": []}


def test_owner_and_expiry_are_labels():
    made = plan(Paper(), wanted({"owner": "me@example.org", "expires": "7d"}), standing(), now=NOW)
    assert made.expires == "2030-01-08T00:00:00Z"
    assert {one.name: one.data["metadata"] for one in made.update}["tier3-front-1"] == {
        "dodas_owner": "me@example.org",
        "dodas_expires": "2030-01-08T00:00:00Z",
        "dodas_lifetime": "168h",
    }


def test_a_lifetime_counts_from_the_beginning():
    found = standing()
    for one in found.servers:
        one["metadata"] |= {"dodas_expires": "2029-12-31T00:00:00Z", "dodas_lifetime": "168h"}
    made = plan(Paper(), wanted({"expires": "7d"}), found, now=NOW)
    assert made.expires == "2029-12-31T00:00:00Z" and not made.changed


def test_size_and_price():
    made = plan(Paper(), wanted({"prices": {"m1.tiny": 0.5}, "currency": "CHF"}), standing())
    assert made.summary == {
        "hosts": 2, "vcpus": 2, "memory_mb": 1024, "disk_gb": 10, "volumes_gb": 0, "floating_ips": 1,
        "flavors": {"m1.tiny": 2}, "per_hour": 1.0, "currency": "CHF",
    }  # fmt: skip
    assert "1.00 CHF an hour (24.00 a day)" in made.text()
    assert plan(Paper(), wanted({"prices": {"m1.small": 1}}), standing()).summary["per_hour"] is None


# Networks


def test_an_existing_network_needs_nothing_else():
    cloud = Paper()
    made = plan(cloud, wanted({"network": "shared"}), finding.Found())
    assert kinds(made.create) == sorted(["security_group", *["rule"] * 4, "server", "server"])
    assert made.network["id"] == "net-shared" and made.summary["floating_ips"] == 0
    cloud.listings["/ports"] = [{"id": "of a router"}]
    made = plan(cloud, wanted({"network": "shared"}), finding.Found())
    assert kinds(made.create).count("floating_ip") == 1
    made = plan(cloud, wanted({"network": "shared", "floating_ips": "all"}), finding.Found())
    assert kinds(made.create).count("floating_ip") == 2


def test_moving_to_another_network_replaces_hosts_and_removes_the_old_one():
    made = plan(Paper(), wanted({"network": "shared"}), standing())
    assert made.hosts["replace"] == [FRONT, WORKER]
    assert {"network", "router", "port"} <= {one.kind for one in made.delete}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "sharde"}, "settings.network: the cloud has no network sharde; did you mean shared?"),
        ({"network": "public"}, "settings.network: public is an external network that takes no hosts"),
        ({"external_network": "pulbic"}, "settings.external_network: .* network pulbic; did you mean public"),
        ({"flavor": "m1.tny"}, r"settings.flavor \(host front-1\): .* no flavor m1.tny; did you mean m1.tiny"),
        ({"image": "debain-12"}, "settings.image: the cloud has no active image debain-12; did you mean debian-12"),
        ({"availability_zone": "nva"}, "settings.availability_zone: the cloud has no available zone nva; did you mean"),
        ({"volumes": [{"node": "worker", "size_gb": 1}]}, "settings.volumes: cloud paper has no service for volumes"),
        ({"boot_volume_gb": 1}, "cloud paper has no service for volumes"),
    ],
)
def test_what_the_cloud_does_not_have_is_named(settings, message):
    with pytest.raises(OpenStackError, match=message):
        plan(Paper(), wanted(settings), finding.Found())


def test_the_network_keeps_its_addresses():
    with pytest.raises(OpenStackError, match=r"settings.cidr: the deployment's network has 10.88.0.0/24, which cannot"):
        plan(Paper(), wanted({"cidr": "10.99.0.0/24"}), standing())


def test_several_external_networks_must_be_chosen_from():
    cloud = Paper()
    cloud.listings["/networks"].append({"id": "x", "name": "campus", "router:external": True, "project_id": "admin"})
    with pytest.raises(OpenStackError, match="settings.external_network: choose one of campus, public"):
        plan(cloud, wanted(), finding.Found())
    assert plan(cloud, wanted({"external_network": "campus"}), finding.Found()).external["id"] == "x"


def test_open_ports_are_the_fronts():
    settings = {"open_ports": [{"port": "9000-9010", "protocol": "udp", "from": ["192.0.2.0/24"]}]}
    made = plan(Paper(), wanted(settings), standing())
    assert [one.name for one in made.create] == ["dodas-tier3-front", "in udp 9000-9010 from 192.0.2.0/24 (IPv4)"]
    assert [one.name for one in made.update] == ["dodas-tier3-front-1"]  # its port gets the new group
    assert not plan(Paper(), wanted(settings), _with_front_group(settings)).changed


def _with_front_group(settings):
    found = standing(settings=settings)
    found.ports[1]["security_groups"] = ["sg-front", "sg-hosts"]
    return found


def test_shared_addresses_have_a_port_and_pairs():
    settings = {"shared_addresses": [{"name": "vip", "node": "worker"}]}
    made = plan(Paper(), wanted(settings), standing())
    assert [(one.kind, one.name) for one in made.create] == [("shared_address", "dodas-tier3-shared-vip")]
    assert [(one.kind, one.name) for one in made.update] == [("port", "dodas-tier3-worker-1")]


def test_servers_of_a_node_keep_apart_when_asked():
    cloud = Paper()
    made = plan(cloud, wanted({"anti_affinity": "hard"}), finding.Found())
    groups = made.steps("create", "server_group")
    assert [one.data["node"] for one in groups] == ["front", "worker"]
    assert all(one.data["policy"] == "anti-affinity" and one.name.endswith(UUID) for one in groups)
    cloud.listings["/os-server-groups"] = [{"id": "g", "name": one.name} for one in groups]
    assert not plan(cloud, wanted({"anti_affinity": "hard"}), finding.Found()).steps("create", "server_group")


# What is ours


def test_only_the_mark_makes_a_thing_ours():
    mark = finding.mark(UUID)
    assert finding.is_ours({"tags": ["dodas", mark]}, UUID)
    assert finding.is_ours({"tags": [], "description": f"{mark} dodas:host=front-1"}, UUID)
    assert not finding.is_ours({"tags": ["dodas", "dodas:name=tier3"], "name": "dodas-tier3"}, UUID)
    assert not finding.is_ours({"tags": [], "description": f"a copy of {mark}"}, UUID)
    assert not finding.is_ours({"tags": [], "description": None, "name": "tier3-front-1"}, UUID)


def test_tags_fit_nova():
    tags = finding.tags("a" * 31, UUID, "b" * 41)
    assert all(len(one) <= 60 and "/" not in one and "," not in one for one in tags)


def test_things_of_others_are_not_found():
    cloud = Paper()
    name = "dodas-tier3"
    cloud.listings |= {
        "/networks": [{"id": "n", "name": name, "tags": ["dodas"], "project_id": "project"}],
        "/subnets": [{"id": "s", "name": name, "tags": []}],
        "/routers": [{"id": "r", "name": name, "tags": [finding.mark("other")]}],
        "/security-groups": [{"id": "g", "name": f"{name}-hosts"}],
        "/floatingips": [{"id": "i", "floating_ip_address": "203.0.113.9", "description": ""}],
        "/os-keypairs": [{"keypair": {"name": name}}, {"keypair": {"name": f"dodas-lock-{UUID}-1"}}],
        "/os-server-groups": [{"id": "x", "name": f"{name}-worker-anti-affinity"}],
    }
    found = finding.find(cloud, UUID, thorough=True)
    assert found.names() == []


def test_a_network_of_another_project_is_never_ours():
    cloud = Paper()
    cloud.listings["/networks"] = [{"id": "n", "name": "x", "tags": [finding.mark(UUID)], "project_id": "other"}]
    assert finding.find(cloud, UUID).networks == []


def test_deployments_are_told_by_their_tags():
    cloud = Paper()
    server = standing().servers[0]
    server["metadata"]["dodas_owner"] = "me"
    cloud.listings |= {"/servers/detail": [server], "/routers": [{"tags": finding.tags("lost", "some-uuid")}]}
    assert finding.deployments(cloud) == [
        {"uuid": "some-uuid", "name": "lost", "hosts": [], "owner": None, "expires": None},
        {"uuid": UUID, "name": "tier3", "hosts": [FRONT], "owner": "me", "expires": None},
    ]

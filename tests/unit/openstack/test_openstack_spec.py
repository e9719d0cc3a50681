# SPDX-License-Identifier: Apache-2.0
"""Settings are read strictly, and errors say where the mistake is."""

from __future__ import annotations

import datetime

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError, nearest

UUID = "11111111-2222-3333-4444-555555555555"
HOSTS = [{"name": "front-1", "node": "front"}, {"name": "worker-1", "node": "worker"}]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINHb9Fj0ZbWqqB1V5c3YTeWJZ0yOo6mGpDOJzWYW4cA5 me"


def parse(hosts=HOSTS, **settings):
    return spec.parse("tier3", UUID, hosts, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imgae": "x"}, r"settings.imgae: unknown; did you mean image"),
        ({"image": "a\nb"}, r"settings.image: must be text of one line"),
        ({"flavor": {"wroker": "m1.tiny"}}, r"settings.flavor.wroker: unknown; did you mean worker"),
        ({"cidr": "10.88.0.1/24"}, r"settings.cidr: '10.88.0.1/24' is not a network"),
        ({"cidr": "2001:db8::/64"}, r"settings.cidr: .* must be an IPv4 network"),
        ({"cidr": "10.88.0.0/30"}, r"settings.cidr: .* 8 addresses"),
        ({"nameservers": ["dns.example.org"]}, r"settings.nameservers\[0\]: 'dns.example.org' is not an address"),
        ({"floating_ips": "some"}, r"settings.floating_ips: 'some' must be front, all or none"),
        ({"ssh_from": ["192.0.2.300/24"]}, r"settings.ssh_from\[0\]: '192.0.2.300/24' is not a network"),
        ({"open_ports": [{"port": 70000}]}, r"settings.open_ports\[0\].port: 70000 is no port"),
        ({"open_ports": [{"port": "90-80"}]}, r"settings.open_ports\[0\].port: '90-80' is no port"),
        ({"open_ports": [{"prt": 80}]}, r"settings.open_ports\[0\].prt: unknown; did you mean port"),
        ({"open_ports": [{"port": 80, "protocol": "icmp"}]}, r"open_ports\[0\].protocol: 'icmp' must be tcp or udp"),
        ({"anti_affinity": "yes"}, r"settings.anti_affinity: 'yes' must be none, soft or hard"),
        ({"boot_volume_gb": "many"}, r"settings.boot_volume_gb: 'many' is not a number"),
        ({"boot_volume_gb": 1.5}, r"settings.boot_volume_gb: 1.5 must be a whole number above 0"),
        ({"volume_type": "fast"}, r"settings.volume_type: there is no volume"),
        ({"volumes": [{"node": "wrk", "size_gb": 1}]}, r"settings.volumes\[0\].node: wrk is no node"),
        ({"volumes": [{"node": "worker"}]}, r"settings.volumes\[0\].size_gb: is needed"),
        ({"volumes": [{"node": "worker", "size_gb": 1, "mount": "x"}]}, r"volumes\[0\].mount: 'x' is not an absolute"),
        ({"shared_addresses": [{"name": "vip"}]}, r"settings.shared_addresses\[0\]: name its hosts"),
        ({"shared_addresses": [{"name": "vip", "hosts": ["front-2"]}]}, r"front-2 is no host; did you mean front-1"),
        ({"expires": "soon"}, r"settings.expires: 'soon' is no time"),
        ({"prices": {"m1.tiny": "cheap"}}, r"settings.prices.m1.tiny: 'cheap' is not a number"),
        ({"authorized_keys": ["AAAA"]}, r"settings.authorized_keys\[0\]: is no ssh public key"),
        ({"quota_check": "perhaps"}, r"settings.quota_check: 'perhaps' is neither true nor false"),
    ],
)
def test_a_mistake_is_named(settings, message):
    with pytest.raises(OpenStackError, match=message):
        parse(**settings)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ([], "hosts: there must be at least one"),
        ([{"node": "front"}], r"hosts\[0\].name: None is not"),
        ([{"name": "A"}], r"hosts\[0\].name: 'A' is not lower-case"),
        ([{"name": "a"}, {"name": "a"}], r"hosts\[1\].name: a is there twice"),
        ([{"name": "a", "mem": 1}], r"hosts\[0\].mem: unknown; did you mean mem_mb"),
        ([{"name": "a", "cpus": -1}], r"hosts\[0\].cpus: -1 must be a number above 0"),
        (["a"], r"hosts\[0\]: must be a mapping"),
    ],
)
def test_a_wrong_host_is_named(hosts, message):
    with pytest.raises(OpenStackError, match=message):
        parse(hosts)


def test_a_name_and_a_uuid_are_checked():
    with pytest.raises(OpenStackError, match="name: 'Tier 3' must match"):
        spec.parse("Tier 3", UUID, HOSTS, {})
    with pytest.raises(OpenStackError, match="uuid: 'x' is not a UUID"):
        spec.parse("tier3", "x", HOSTS, {})


def test_too_many_hosts_for_the_network():
    many = [{"name": f"worker-{i}"} for i in range(300)]
    with pytest.raises(OpenStackError, match="settings.cidr: 10.88.0.0/24 has too few addresses for 300 hosts"):
        parse(many)
    assert len(parse(many, cidr="10.0.0.0/22").hosts) == 300
    assert len(parse(many, network="shared").hosts) == 300  # whose size is not known here


def test_text_is_taken_for_values():
    settings = parse(
        boot_volume_gb="20",
        quota_check="false",
        nameservers="192.0.2.1, 192.0.2.2",
        open_ports="8080, 9000-9010",
        authorized_keys=KEY,
        image="",
        region=None,
    ).settings
    assert settings.boot_volume_gb == 20
    assert settings.quota_check is False
    assert settings.nameservers == ("192.0.2.1", "192.0.2.2")
    assert [(one.first, one.last, one.protocol) for one in settings.open_ports] == [
        (8080, 8080, "tcp"),
        (9000, 9010, "tcp"),
    ]
    assert settings.authorized_keys == (KEY,)
    assert settings.image is None and settings.region is None


def test_a_node_is_part_of_a_host_name():
    assert parse([{"name": "big-worker-12"}]).hosts[0].node == "big-worker"


def test_times():
    assert parse(expires="7d").settings.expires == datetime.timedelta(days=7)
    assert parse(expires="2030-01-31T12:00:00").settings.expires.isoformat() == "2030-01-31T12:00:00+00:00"


def test_every_setting_is_a_field_and_has_a_line_of_help():
    fields = {one.name for one in spec.fields(spec.Settings)}
    assert set(spec.SETTINGS) == fields
    assert all("\n" not in line and len(line) < 120 for line in spec.SETTINGS.values())


def test_nearest():
    assert nearest("m1.smal", ["m1.small", "c5"]) == "; did you mean m1.small?"
    assert nearest("x", []) == "; there is none"
    assert nearest("zzz", ["a", "b"]) == "; there is a, b"
    assert nearest("zzz", [f"flavor-{i}" for i in range(20)]).endswith("and 12 more")

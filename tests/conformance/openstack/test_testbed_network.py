# SPDX-License-Identifier: Apache-2.0
"""The testbed's networking by itself: what neutron says, made of namespaces, bridges and nftables, and tried."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import types
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "testbeds/openstack"))
from testbed_openstack import network, network_rules

SERVER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
try:
    address, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    connection = socket.create_connection((address, port), 1, (source, 0) if source else None)
    print(connection.recv(100).decode())
except OSError as error:
    print("no:", error)
"""
EVERYTHING = {"direction": "egress", "ethertype": "IPv4"}
OUTSIDE = "198.18.0.1"  # the gateway of the external network


class Cloud:
    """A view of neutron that is made real; guests are namespaces with an interface and a server on two ports."""

    def __init__(self, stack, state):
        self.place = types.SimpleNamespace(key=secrets.token_hex(2), state=state)
        (state / "guests").mkdir()
        self.stack, self.namespaces = stack, {"outside": network.namespace(self.place)}
        self.networks, self.subnets, self.ports, self.routers, self.floating, self.groups = [], [], [], [], [], []
        network.add_namespace(network.namespace(self.place))
        stack.callback(self.remove)
        network.sysctl(network.namespace(self.place), ipv4__ip_forward=1)

    def network(self, name, cidr, external=False):
        identity = f"{name}-{secrets.token_hex(8)}"
        self.networks.append({"id": identity, "mtu": 1450, "router:external": external})
        gateway = cidr.replace(".0/", ".1/").split("/")[0]
        subnet = {"id": name, "network_id": identity, "cidr": cidr, "ip_version": 4, "gateway_ip": gateway}
        self.subnets.append(subnet)
        return subnet

    def port(self, subnet, address, owner="compute:nova", device="", **more):
        mac = "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        port = {
            "id": secrets.token_hex(16), "network_id": subnet["network_id"], "mac_address": mac, "device_id": device,
            "device_owner": owner, "fixed_ips": [{"subnet_id": subnet["id"], "ip_address": address}],
            "security_groups": [], "allowed_address_pairs": [], "port_security_enabled": True, **more,
        }  # fmt: skip
        self.ports.append(port)
        return port

    def router(self, inner, address, outer=None, outer_address=None):
        router = {"id": secrets.token_hex(16), "external_gateway_info": {"enable_snat": True}}
        self.routers.append(router)
        self.port(inner, address, "network:router_interface", router["id"])
        if outer:
            self.port(outer, outer_address, "network:router_gateway", router["id"])
        return router

    def group(self, name, *rules):
        rules = [{"direction": "ingress", "ethertype": "IPv4", "remote_ip_prefix": None, **rule} for rule in rules]
        self.groups.append({"id": name, "security_group_rules": rules})
        return name

    def guest(self, name, subnet, address, *groups, extra=(), **more):
        """Plug a guest in; `extra` are addresses that it takes besides its own."""
        port = self.port(subnet, address, security_groups=list(groups), **more)
        inner = f"{network.namespace(self.place)}-g{secrets.token_hex(2)}"
        self.namespaces[name] = inner
        network.add_namespace(inner)
        self.apply()
        bridge = network_rules.bridge(subnet["network_id"])
        link = network_rules.guest_interface(port["id"])
        network.ip(network.namespace(self.place), network.cable(link, bridge, inner, "eth0", port["mac_address"], 1450))
        gateway = subnet["gateway_ip"]
        addresses = [f"address add {one}/24 dev eth0" for one in (address, *extra)]
        network.ip(inner, [*addresses, "link set eth0 up", f"route add default via {gateway}"])
        self.serve(name, 22, 80)
        return port

    def serve(self, name, *ports):
        for port in ports:
            command = ["ip", "netns", "exec", self.namespaces[name], sys.executable, "-c", SERVER, str(port)]
            process = self.stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            self.stack.callback(process.kill)
            assert process.stdout.readline() == "ready\n"

    def view(self):
        return {
            "networks": self.networks, "subnets": self.subnets, "ports": self.ports, "routers": self.routers,
            "floatingips": self.floating, "security_groups": self.groups,
        }  # fmt: skip

    def apply(self):
        network.apply(self.place, self.view())

    def connect(self, name, address, port=22, source=""):
        """Who a server saw, or None when the client saw no server."""
        inner = self.namespaces[name]
        command = ["ip", "netns", "exec", inner, sys.executable, "-c", CLIENT, address, str(port), source]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        return None if answer.startswith("no:") else answer

    def remove(self):
        for name in network.present(network.namespace(self.place)):
            network.remove_namespace(name)


@pytest.fixture
def cloud(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Cloud(stack, tmp_path)


@pytest.fixture
def routed(cloud):
    """A network behind a router, and the outside."""
    cloud.outer = cloud.network("public", "198.18.0.0/24", external=True)
    cloud.inner = cloud.network("inner", "10.88.0.0/24")
    cloud.one = cloud.router(cloud.inner, "10.88.0.1", cloud.outer, "198.18.0.20")
    cloud.apply()
    cloud.serve("outside", 80)
    return cloud


def floating(cloud, address, fixed):
    one = {"router_id": cloud.one["id"], "floating_ip_address": address, "fixed_ip_address": fixed}
    cloud.floating.append(one)
    cloud.apply()
    return one


def test_group_lets_in_what_it_names_and_nothing_else(routed):
    ssh = {"protocol": "tcp", "port_range_min": 20, "port_range_max": 25}
    routed.group("ssh", EVERYTHING, ssh)
    routed.group("closed", EVERYTHING)
    routed.guest("a", routed.inner, "10.88.0.5", "ssh")
    routed.guest("b", routed.inner, "10.88.0.6", "closed")
    assert routed.connect("b", "10.88.0.5", 22) == "10.88.0.6"
    assert routed.connect("b", "10.88.0.5", 80) is None
    assert routed.connect("a", "10.88.0.6", 22) is None
    assert routed.connect("b", OUTSIDE, 80) == "198.18.0.20"  # answers need no rule


def test_group_without_egress_rules_lets_nothing_out(routed):
    routed.group("mute", {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "mute")
    assert routed.connect("a", OUTSIDE, 80) is None


def test_rule_for_members_of_a_group_follows_the_members(routed):
    routed.group("members", EVERYTHING, {"protocol": "tcp", "remote_group_id": "members"})
    routed.group("others", EVERYTHING)
    routed.guest("a", routed.inner, "10.88.0.5", "members")
    other = routed.guest("b", routed.inner, "10.88.0.6", "others")
    assert routed.connect("b", "10.88.0.5") is None
    other["security_groups"].append("members")
    routed.apply()
    assert routed.connect("b", "10.88.0.5") == "10.88.0.6"


def test_rule_for_a_range_of_addresses(routed):
    routed.group("narrow", EVERYTHING, {"protocol": "tcp", "remote_ip_prefix": "10.88.0.6/32"})
    routed.guest("a", routed.inner, "10.88.0.5", "narrow")
    routed.guest("b", routed.inner, "10.88.0.6", "narrow")
    routed.guest("c", routed.inner, "10.88.0.7", "narrow")
    assert routed.connect("b", "10.88.0.5") == "10.88.0.6"
    assert routed.connect("c", "10.88.0.5") is None


def test_guest_sends_from_its_own_addresses_only(routed):
    routed.group("open", EVERYTHING, {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "open")
    port = routed.guest("b", routed.inner, "10.88.0.6", "open", extra=["10.88.0.100"])
    assert routed.connect("b", "10.88.0.5", source="10.88.0.6") == "10.88.0.6"
    assert routed.connect("b", "10.88.0.5", source="10.88.0.100") is None
    assert routed.connect("a", "10.88.0.100") is None
    port["allowed_address_pairs"].append({"ip_address": "10.88.0.100"})
    routed.apply()
    assert routed.connect("b", "10.88.0.5", source="10.88.0.100") == "10.88.0.100"
    assert routed.connect("a", "10.88.0.100") == "10.88.0.5"


def test_port_without_security_may_do_anything(routed):
    routed.group("closed", EVERYTHING)
    routed.guest("a", routed.inner, "10.88.0.5", "closed")
    routed.guest("b", routed.inner, "10.88.0.6", port_security_enabled=False, extra=["10.88.0.100"])
    assert routed.connect("a", "10.88.0.100") == "10.88.0.5"
    assert routed.connect("b", OUTSIDE, 80, source="10.88.0.100") == "198.18.0.20"


def test_port_that_neutron_has_not_shown_yet_reaches_nobody(routed):
    routed.group("open", EVERYTHING, {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "open")
    late = routed.guest("b", routed.inner, "10.88.0.6", "open")
    routed.ports.remove(late)
    routed.apply()
    assert routed.connect("b", "10.88.0.5") is None
    assert routed.connect("a", "10.88.0.6") is None


def test_floating_address_leads_in_and_stands_for_its_guest(routed):
    routed.group("open", EVERYTHING, {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "open")
    routed.guest("b", routed.inner, "10.88.0.6", "open")
    assert routed.connect("outside", "198.18.0.30") is None
    one = floating(routed, "198.18.0.30", "10.88.0.5")
    assert routed.connect("outside", "198.18.0.30") == OUTSIDE
    assert routed.connect("a", OUTSIDE, 80) == "198.18.0.30"
    assert routed.connect("b", OUTSIDE, 80) == "198.18.0.20"
    assert routed.connect("b", "198.18.0.30") == "198.18.0.20"  # from within, by way of the router
    assert routed.connect("a", "198.18.0.30") == "198.18.0.30"
    one["fixed_ip_address"] = "10.88.0.6"
    routed.apply()
    assert routed.connect("b", OUTSIDE, 80) == "198.18.0.30"
    routed.floating.clear()
    routed.apply()
    assert routed.connect("outside", "198.18.0.30") is None


def test_networks_with_the_same_addresses_are_strangers(routed):
    twin = routed.network("twin", "10.88.0.0/24")
    second = routed.router(twin, "10.88.0.1", routed.outer, "198.18.0.21")
    routed.group("open", EVERYTHING, {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "open")
    routed.guest("b", routed.inner, "10.88.0.6", "open")
    routed.guest("c", twin, "10.88.0.6", "open")
    floating(routed, "198.18.0.30", "10.88.0.5")
    assert routed.connect("c", "10.88.0.5") is None
    assert routed.connect("b", "10.88.0.5") == "10.88.0.6"
    assert routed.connect("c", OUTSIDE, 80) == "198.18.0.21"
    assert routed.connect("c", "198.18.0.30") == "198.18.0.21"
    routed.routers.remove(second)
    routed.ports[:] = [port for port in routed.ports if port["device_id"] != second["id"]]
    routed.apply()
    assert routed.connect("c", OUTSIDE, 80) is None
    assert routed.connect("b", OUTSIDE, 80) == "198.18.0.20"


def test_what_neutron_has_no_more_is_gone(routed):
    inner = network.namespace(routed.place)
    assert network.present(f"{inner}-r")
    for things in (routed.networks, routed.subnets, routed.ports, routed.routers):
        things.clear()
    routed.apply()
    assert network.present(f"{inner}-r") == []
    links = json.loads(network.run("ip", "-netns", inner, "-json", "link", "show"))
    assert [one["ifname"] for one in links] == ["lo"]


def test_second_look_changes_nothing(routed, monkeypatch):
    routed.group("open", EVERYTHING, {"protocol": "tcp"})
    routed.guest("a", routed.inner, "10.88.0.5", "open")
    floating(routed, "198.18.0.30", "10.88.0.5")
    run, commands = network.run, []

    def recording(*command, data=None):
        commands.append((command, data))
        return run(*command, data=data)

    monkeypatch.setattr(network, "run", recording)
    routed.apply()
    assert commands and all("show" in command for command, _data in commands)

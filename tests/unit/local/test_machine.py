# SPDX-License-Identifier: Apache-2.0
"""What networks change on the machine, put back: with the real iptables, in a network namespace of the test's own."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("iptables-save")
    or subprocess.run(["unshare", "--net", "iptables", "-S"], capture_output=True, check=False).returncode != 0,
    reason="needs root, iptables and network namespaces",
)  # fmt: skip

# What netavark does for a network, and what it leaves when the network is gone.
UP = """
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add br-{n} type bridge; ip addr add 10.77.{n}.1/24 dev br-{n}; ip link set br-{n} up
iptables -N NETAVARK_FORWARD 2>/dev/null && \
  iptables -I FORWARD -m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD
iptables -A NETAVARK_FORWARD -d 10.77.{n}.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A NETAVARK_FORWARD -s 10.77.{n}.0/24 -j ACCEPT
for chain in NETAVARK-HOSTPORT-DNAT NETAVARK-HOSTPORT-SETMARK NETAVARK-HOSTPORT-MASQ; do
  iptables -t nat -N $chain 2>/dev/null || continue
  case $chain in
  *DNAT) iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j $chain
         iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j $chain ;;
  *MASQ) iptables -t nat -A POSTROUTING -j $chain
         iptables -t nat -A $chain -m mark --mark 0x2000/0x2000 -j MASQUERADE ;;
  *) iptables -t nat -A $chain -j MARK --set-xmark 0x2000/0x2000 ;;
  esac
done
iptables -t nat -N NETAVARK-{n}; iptables -t nat -A NETAVARK-{n} -d 10.77.{n}.0/24 -j ACCEPT
iptables -t nat -A POSTROUTING -s 10.77.{n}.0/24 -j NETAVARK-{n}
"""
DOWN = """
ip link del br-{n}
iptables -D NETAVARK_FORWARD -d 10.77.{n}.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -D NETAVARK_FORWARD -s 10.77.{n}.0/24 -j ACCEPT
iptables -t nat -D POSTROUTING -s 10.77.{n}.0/24 -j NETAVARK-{n}
iptables -t nat -F NETAVARK-{n}; iptables -t nat -X NETAVARK-{n}
"""
DRIVER = """
import json, subprocess, sys
from ansible_collections.dodas.cluster.plugins.module_utils.local import machine

def state():
    tables = [subprocess.run(["iptables-save", "-t", one], capture_output=True, text=True, check=True).stdout
              for one in ("filter", "nat")]
    rules = [line.split(" [")[0] for line in "".join(tables).splitlines() if not line.startswith("#")]
    return {"rules": rules, "forward": machine.FORWARD.read_text().strip()}

states = []
home = sys.argv[1]
for step in json.load(sys.stdin):
    if step == "remember":
        machine.remember(home)
    elif step == "restore":
        machine.restore(home)
    elif step == "state":
        states.append(state())
    else:
        subprocess.run(["sh", "-c", step], check=True)
json.dump(states, sys.stdout)
"""
FOREIGN_RULES = """
iptables -N KEPT; iptables -A KEPT -s 192.0.2.0/24 -j DROP; iptables -A INPUT -j KEPT
iptables -A FORWARD -m comment --comment "see NETAVARK_FORWARD -j NETAVARK_FORWARD" -j ACCEPT
"""


@pytest.fixture
def steps(tmp_path):
    def run(*given):
        command = ["unshare", "--net", sys.executable, "-c", DRIVER, tmp_path]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=30, check=False,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def up(n):
    return UP.format(n=n)


def down(n):
    return DOWN.format(n=n)


@pytest.mark.parametrize("forward", [0, 1])
@pytest.mark.parametrize("others", ["true", FOREIGN_RULES])
def test_the_machine_is_as_it_was(steps, forward, others):
    before, during, after = steps(
        f"echo {forward} > /proc/sys/net/ipv4/ip_forward", others, "state", "remember", up(1), "state",
        down(1), "restore", "state",
    )  # fmt: skip
    assert during != before
    assert any("NETAVARK" in rule for rule in during["rules"])
    assert after == before


def test_chains_of_somebody_who_was_here_first_stay(steps):
    before, after = steps(up(9), "state", "remember", up(1), down(1), "restore", "state")
    assert after == before
    idle, after = steps(up(9), down(9), "state", "remember", up(1), down(1), "restore", "state")
    assert after == idle, "also where its network is gone and its chains are not"


def test_somebody_who_came_later_keeps_network_and_forwarding(steps):
    before, during, after, last = steps(
        "echo 0 > /proc/sys/net/ipv4/ip_forward", "state", "remember", up(1), up(9), down(1), "state",
        "restore", "state", down(9), "restore", "state",
    )  # fmt: skip
    assert after == during
    assert after["forward"] == "1"
    assert last == before, "when nobody needs them any more they go"


def test_rules_of_a_network_that_was_not_taken_down_properly_go_as_well(steps):
    before, after = steps("state", "remember", up(1), "ip link del br-1", "restore", "state")
    assert [rule for rule in after["rules"] if "NETAVARK-1" in rule or "NETAVARK_" in rule] == []
    assert after["rules"] == before["rules"]


def test_a_second_remember_keeps_the_first(steps):
    first, after = steps("echo 0 > /proc/sys/net/ipv4/ip_forward", "state", "remember", up(1), "remember", down(1),
                         "restore", "state", "restore")  # fmt: skip
    assert after == first

# SPDX-License-Identifier: Apache-2.0
"""What a container network changes on the whole machine, remembered before the first and put back after the last.

netavark switches IPv4 forwarding on and leaves its empty chains in the packet filter. What was so before is the
machine's, whosoever's deployments they are, and is remembered as long as its kernel runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def remember(folder):
    """Write down what is so now, unless an earlier deployment already did."""
    path = Path(folder) / "machine.json"
    if not path.exists():
        state = {"ip_forward": FORWARD.read_text(encoding="ascii").strip(), "chains": _netavark_chains()}
        deployment.write_json(path, state)


def restore(folder):
    """Put back what `remember` wrote down, unless somebody else's containers need it by now."""
    path = Path(folder) / "machine.json"
    before = deployment.read_json(path)
    if before is None or _in_use():
        return
    for table, chains in _netavark_chains().items():
        gone = [chain for chain in chains if chain not in before["chains"].get(table, [])]
        _remove_chains(table, gone)
    if FORWARD.read_text(encoding="ascii").strip() != before["ip_forward"]:
        FORWARD.write_text(before["ip_forward"], encoding="ascii")
    path.unlink()


def _in_use():
    """Whether netavark has rules for a network that is there: ours is gone by now, so it is somebody else's."""
    if not shutil.which("iptables-save"):
        return False
    networks = re.findall(r"^-A NETAVARK\S* -[sd] ([\d.]+)/", _iptables("iptables-save", "-t", "filter"), re.M)
    routes = Path("/proc/net/route").read_text(encoding="ascii").split()
    return any(f"{int.from_bytes(ip_address(one).packed, 'little'):08X}" in routes for one in networks)


def _netavark_chains():
    """Netavark's chains by table; empty where there is no iptables."""
    found = {}
    if shutil.which("iptables-save"):
        for table in ("filter", "nat"):
            chains = re.findall(r"^:(NETAVARK\S*) ", _iptables("iptables-save", "-t", table), re.M)
            if chains:
                found[table] = chains
    return found


def _remove_chains(table, chains):
    """Remove chains and the rules that lead to them."""
    if not chains:
        return
    for rule in _iptables("iptables-save", "-t", table).splitlines():
        words = rule.split()
        if rule.startswith("-A ") and words[-1] in chains and words[-2] in ("-j", "-g"):
            quoted = re.findall(r'"([^"]*)"|(\S+)', rule)
            _iptables("iptables", "-t", table, "-D", *[a or b for a, b in quoted][1:])
    for action in ("-F", "-X"):
        for chain in chains:
            _iptables("iptables", "-t", table, action, chain)


def _iptables(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout

# SPDX-License-Identifier: Apache-2.0
"""What a container network changes on the whole machine, remembered before the first and put back after the last.

netavark switches IPv4 forwarding on and leaves its empty chains in the packet filter.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def remember(home):
    """Write down what is so now, unless an earlier deployment already did."""
    path = Path(home) / "machine.json"
    if not path.exists():
        state = {"ip_forward": FORWARD.read_text(encoding="ascii").strip(), "chains": _netavark_chains()}
        deployment.write_json(path, state)


def restore(home):
    """Put back what `remember` wrote down."""
    path = Path(home) / "machine.json"
    before = deployment.read_json(path)
    if before is None:
        return
    for table, chains in _netavark_chains().items():
        gone = [chain for chain in chains if chain not in before["chains"].get(table, [])]
        _remove_chains(table, gone)
    if FORWARD.read_text(encoding="ascii").strip() != before["ip_forward"]:
        FORWARD.write_text(before["ip_forward"], encoding="ascii")
    path.unlink()


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
        if rule.startswith("-A ") and words[-1] in chains and words[words.index("-j") + 1] == words[-1]:
            quoted = re.findall(r'"([^"]*)"|(\S+)', rule)
            _iptables("iptables", "-t", table, "-D", *[a or b for a, b in quoted][1:])
    for action in ("-F", "-X"):
        for chain in chains:
            _iptables("iptables", "-t", table, action, chain)


def _iptables(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout

# SPDX-License-Identifier: Apache-2.0
"""Network namespaces whose podman was killed before it noted the container: nobody else would ever remove them.

Those of a deployment's hosts are known by their addresses, IP and MAC, which dodas chooses.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from pathlib import Path

NAMESPACES = Path("/run/netns")
HELPERS = "/usr/lib/podman:/usr/libexec/podman:/usr/local/lib/podman:/usr/local/libexec/podman"  # as podman looks


def mac(address):
    """The MAC of a host's interface: the same address has the same one, so that neighbours find a host made anew."""
    return "02:da:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


def remove(podman, network, keep):
    """Remove what is left in `network` (as podman inspects it) of hosts but for those with addresses in `keep`."""
    subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
    for path in NAMESPACES.glob("netns-*"):
        address = _address(path)
        if address and ipaddress.ip_address(address) in subnet and address not in keep:
            _tear_down(podman, network, path, address)
            subprocess.run(["umount", "--lazy", path], check=False, timeout=30, capture_output=True)
            path.unlink(missing_ok=True)


def _address(path):
    """The address of the host whose namespace it is; None for what is none of ours."""
    command = ["nsenter", f"--net={path}", "ip", "-json", "address", "show", "dev", "eth0"]
    done = subprocess.run(command, check=False, timeout=30, capture_output=True, text=True)
    for link in json.loads(done.stdout or "[]"):
        for one in link.get("addr_info", []):
            if one["family"] == "inet" and link["address"] == mac(one["local"]):
                return one["local"]
    return None


def _tear_down(podman, network, path, address):
    """Let netavark take back the interface, the rules and, with the last host, the bridge."""
    netavark = shutil.which("netavark", path=HELPERS)
    options = {"interface_name": "eth0", "static_ips": [address], "static_mac": mac(address)}
    request = {
        "container_id": path.name, "container_name": path.name, "networks": {network["name"]: options},
        "network_info": {network["name"]: network},
    }  # fmt: skip
    if netavark:
        folder = podman.run_dir / "containers/networks"
        command = [netavark, "--config", folder, "teardown", path]
        subprocess.run(command, input=json.dumps(request), check=False, timeout=30, capture_output=True, text=True)

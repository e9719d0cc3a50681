# SPDX-License-Identifier: Apache-2.0
"""What podman leaves when it is killed while it makes a container: nobody else would ever remove it.

Monitors are known by the container that they watch, and network namespaces of hosts by their addresses, IP and MAC,
which dodas chooses.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

NAMESPACES = Path("/run/netns")
HELPERS = "/usr/lib/podman:/usr/libexec/podman:/usr/local/lib/podman:/usr/local/libexec/podman"  # as podman looks


def mac(address):
    """The MAC of a host's interface: the same address has the same one, so that neighbours find a host made anew."""
    return "02:da:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


def remove(podman, network, keep):
    """Remove what is left in `network` (as podman inspects it) of hosts but for those with addresses in `keep`."""
    _kill_monitors(podman)
    subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
    for path in NAMESPACES.glob("netns-*"):
        address = _address(path)
        if address and ipaddress.ip_address(address) in subnet and address not in keep and _deserted(path):
            _tear_down(podman, network, path, address)
            subprocess.run(["umount", "--lazy", path], check=False, timeout=30, capture_output=True)
            path.unlink(missing_ok=True)


def _kill_monitors(podman):
    """Kill monitors, and what they started, of containers that are not there."""
    bundles = f"{podman.home}/storage/overlay-containers/".encode()
    watched = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        bundle = next((word for word in words if word.startswith(bundles)), None)
        if bundle and words[0].endswith(b"/conmon"):
            watched[path.parent] = bundle[len(bundles) :][:64].decode()
    if watched:  # listed after them: a container is noted before its monitor starts
        there = podman.run("ps", "--all", "--quiet", "--no-trunc").split()
        for monitor in [path for path, container in watched.items() if container not in there]:
            for process in [*_children(monitor), monitor.name]:
                try:
                    os.kill(int(process), signal.SIGKILL)
                except ProcessLookupError:
                    continue


def _children(process):
    try:
        return (process / "task" / process.name / "children").read_text(encoding="ascii").split()
    except OSError:
        return []


def _deserted(path, seconds=2):
    """Whether no process is in a network namespace, or at least soon: who was killed needs a moment to end.

    A host of another home can have the same address while its network is only planned here: it is alive.
    """
    wanted = path.stat().st_ino
    deadline = time.monotonic() + seconds
    while any(_inode(one) == wanted for one in Path("/proc").glob("[0-9]*/ns/net")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _inode(path):
    try:
        return path.stat().st_ino
    except OSError:
        return None


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

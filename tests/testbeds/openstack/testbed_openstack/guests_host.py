# SPDX-License-Identifier: Apache-2.0
"""What guests need of the machine: packages, the root file system, the namespace of bridges, ways in and out.

The machine's own network gets one interface and two routes; its forwarding and its packet filter are left alone.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

from testbed_openstack import guests_library, guests_machine, guests_root, network
from testbed_openstack.place import TestbedError
from testbed_openstack.processes import Processes

PACKAGES = [
    "podman", "crun", "netavark", "nftables", "iproute2", "slirp4netns", "mmdebstrap", "debian-archive-keyring",
    "qemu-utils", "e2fsprogs", "fdisk",
]  # fmt: skip
BRIDGE_FILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
UPLINK_TIMEOUT = 10  # seconds
LINK_NETWORK = ipaddress.ip_network("100.65.0.0/16")  # four addresses of it join a testbed and the machine


class HostError(TestbedError):
    """The machine cannot have guests; the message says why."""


def prepare(place):
    """Make what guests need before they are. Raises TestbedError."""
    guests_root.prune(place.cache)
    root = guests_root.guest_root(place.cache)
    _bridge_filter()
    try:
        guests_machine.Guests(place).prepare()
    except guests_library.PodmanError as exc:
        raise HostError(f"podman: {exc}") from exc
    (place.state / "guests" / "root").symlink_to(root)
    inner = network.namespace(place)
    if _routed(place.public_cidr):
        raise HostError(
            f"the machine has a route to {place.public_cidr} already ({_routed(place.public_cidr)}): "
            "another testbed with guests is up, and --public gives this one another range"
        )
    network.add_namespace(inner)
    network.sysctl(inner, ipv4__ip_forward=1, **{"bridge__bridge-nf-call-iptables": 1})
    _uplink(place, inner)
    _way_in(place, inner)
    _metadata(place)


def check(place):
    """Raise HostError where guests could not reach the Debian mirror: it would be looked for in the cloud."""
    for source in guests_library.debian_sources(guests_root.SUITE):
        address = urllib.parse.urlsplit(source.split()[1])
        try:
            found = socket.getaddrinfo(address.hostname, address.port or address.scheme, socket.AF_INET)
        except OSError:
            continue  # it is reached by a proxy
        for *_kind, (mirror, _port) in found:
            for option, cidr in (("public", place.public_cidr), ("shared", place.shared_cidr)):
                if ipaddress.ip_address(mirror) in ipaddress.ip_network(cidr):
                    raise HostError(
                        f"network {option}, {cidr}, has the address of this machine's Debian mirror, {mirror}: "
                        f"--{option} gives it another range"
                    )


def wrap(_place):
    """What nova is started with: nothing, since only crun needs a view of control groups of its own."""
    return []


def after_down(place):
    """Remove all that guests left on the machine, there or not."""
    guests = guests_machine.Guests(place)
    inner = network.namespace(place)
    for uuid in guests.known():
        guests.destroy(uuid)
    if Path(f"/sys/class/net/{inner}").exists():  # at once: those of a namespace go some time after it
        network.run("ip", "link", "del", inner)
    for name in network.present(f"{inner}-"):
        network.remove_namespace(name)
    network.remove_namespace(inner)
    for mount in sorted(_mounts(place.state / "guests", guests.disks, guests.podman.machine), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, timeout=30)
    for folder in (guests.disks, guests.podman.machine, place.state / "guests"):
        shutil.rmtree(folder, ignore_errors=True)


def _bridge_filter():
    """Security groups are enforced by what br_netfilter hands on; a machine that lacked it is left as it was."""
    if BRIDGE_FILTER.exists():
        return
    subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False, timeout=30)
    if not BRIDGE_FILTER.exists():
        raise HostError("security groups need the kernel's br_netfilter: modprobe br_netfilter")
    for path in BRIDGE_FILTER.parent.glob("bridge-nf-call-*"):
        path.write_text("0", encoding="ascii")


def _uplink(place, inner):
    """The way out: slirp4netns makes the guests' connections as a process of this machine."""
    command = ["slirp4netns", "--configure", "--mtu=1500", f"--cidr={network.UPLINK}", "--disable-host-loopback",
               "--netns-type=path", network.NAMESPACES / inner, "uplink"]  # fmt: skip
    processes = Processes(place)
    processes.start("uplink", command, dict(os.environ))
    deadline = time.monotonic() + UPLINK_TIMEOUT
    while not network.has_link(inner, "uplink"):
        processes.check()
        if time.monotonic() > deadline:
            raise HostError(f"slirp4netns made no interface in {UPLINK_TIMEOUT} s\n{processes.tail('uplink')}")
        time.sleep(0.05)


def _metadata(place):
    """The metadata service in the namespaces of routers."""
    environment = {**os.environ, "TESTBED_STATE": str(place.state), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "testbed_openstack.guests_metadata"]
    Processes(place).start("metadata-agent", command, environment)


def _way_in(place, inner):
    """The machine reaches floating IPs, and what is on the provider's networks, by one interface."""
    outer = f"ostb-{place.key}"
    network_number = int(place.key, 16) % (LINK_NETWORK.num_addresses // 4)
    base = LINK_NETWORK.network_address + 4 * network_number
    ours, theirs = base + 1, base + 2
    network.run("ip", "link", "add", outer, "type", "veth", "peer", "name", "machine", "netns", inner)
    network.ip(inner, [f"address add {theirs}/30 dev machine", "link set machine up"])
    lines = [f"address add {ours}/30 dev {outer}", f"link set {outer} up"]
    reached = [cidr for cidr in (place.public_cidr, place.shared_cidr) if not _routed(cidr)]
    lines += [f"route add {cidr} via {theirs}" for cidr in reached]
    network.run("ip", "-batch", "-", data="\n".join(lines) + "\n")


def _routed(cidr):
    """The machine's own route to a range; empty where there is none but the default."""
    return network.run("ip", "route", "show", cidr).strip()


def _mounts(*folders):
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines]
    return [point for point in points if any(point.startswith(f"{folder}/") for folder in folders)]

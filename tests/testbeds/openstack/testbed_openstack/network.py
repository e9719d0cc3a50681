# SPDX-License-Identifier: Apache-2.0
"""Makes the machine as neutron's view says: one bridge a network and one namespace a router.

`apply` may be called for every change: what is so already costs one look.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from testbed_openstack import network_rules as rules
from testbed_openstack.place import TestbedError

TIMEOUT = 30  # seconds for any one command
NAMESPACES = Path("/run/netns")
UPLINK = "100.64.0.0/24"  # between the namespace of bridges and the way out of it
METADATA = "169.254.169.254"
NAMESERVER = "100.64.0.3"  # slirp4netns's, which asks the machine's

_loaded = {}  # rule set by namespace and text by path, as far as this process loaded and wrote them


class NetworkError(TestbedError):
    """A command that changes the network failed; the message has its own words."""


def namespace(place):
    """The namespace with all bridges of the testbed."""
    return f"ostb-{place.key}"


def router_namespace(place, router_id):
    return f"{namespace(place)}-r{router_id[:8]}"


def apply(place, view):
    """Make bridges, routers and rules as wanted, and remove what is not. Raises NetworkError."""
    inner = namespace(place)
    links = _links(inner)
    bridges = rules.networks(view)
    routers = {router_namespace(place, identity): one for identity, one in rules.routers(view).items()}
    ip(inner, [*_bridge_changes(links, bridges)])
    # Rules before routers: the first packet that one passes on is subject to them.
    load(inner, rules.filters(view))
    wanted = {rules.router_interface(one["port"]) for router in routers.values() for one in router["interfaces"]}
    # Interfaces before namespaces: those of one that is gone go some time later.
    ip(inner, [f"link del {name}" for name in links if name.startswith("r-") and name not in wanted])
    for name in present(f"{inner}-r"):
        if name not in routers:
            remove_namespace(name)
    for name, router in routers.items():
        _apply_router(inner, name, router)
    _write(servers_file(place), {router_namespace(place, one): who for one, who in rules.servers(view).items()})


def servers_file(place):
    """Where the metadata service reads who asks: {namespace: {address: [server id, project id]}}."""
    return place.state / "guests" / "servers.json"


def add_namespace(name):
    """A network namespace with its loopback up, unless it is there."""
    if not (NAMESPACES / name).exists():
        run("ip", "netns", "add", name)
    ip(name, ["link set lo up"])


def remove_namespace(name):
    """Remove a namespace and the interfaces in it; those of others that are paired with them go too."""
    if (NAMESPACES / name).exists():
        run("ip", "netns", "del", name)
    _loaded.pop(name, None)


def processes(name):
    """The processes in a namespace."""
    return [int(pid) for pid in run("ip", "netns", "pids", name).split()] if (NAMESPACES / name).exists() else []


def present(prefix):
    """Namespaces whose name begins with `prefix`."""
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}*")) if NAMESPACES.is_dir() else []


def cable(link, bridge, other, name, mac, mtu):
    """Lines of ip(8) that plug an interface of another namespace, with its MAC, into a bridge of this one."""
    return [
        f"link add {link} mtu {mtu} type veth peer name {name} mtu {mtu} address {mac} netns {other}",
        f"link set {link} master {bridge} up",
    ]


def ip(name, lines):
    """Run lines of ip(8) in a namespace, as one batch."""
    if lines:
        run("ip", "-netns", name, "-batch", "-", data="\n".join(lines) + "\n")


def has_link(name, link):
    """Whether a namespace has an interface."""
    return link in _links(name)


def load(name, text):
    """Load a rule set of nftables into a namespace, unless it is the one loaded last."""
    if _loaded.get(name) != text:
        run("ip", "netns", "exec", name, "nft", "--file", "-", data=text)
        _loaded[name] = text


def sysctl(name, **values):
    """Set variables below /proc/sys/net of a namespace; a double underscore stands for a slash."""
    script = "".join(f"echo {value} > /proc/sys/net/{key.replace('__', '/')}\n" for key, value in values.items())
    run("ip", "netns", "exec", name, "sh", "-e", data=script)


def run(*command, data=None):
    """Run a command that changes the network; returns what it printed. Raises NetworkError."""
    try:
        done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as exc:
        raise NetworkError(f"{' '.join(command)}: no answer in {TIMEOUT} s") from exc
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _links(name):
    """Interfaces of a namespace: {name: {"mtu", "addresses"}}."""
    listed = json.loads(run("ip", "-netns", name, "-json", "address", "show") or "[]")
    return {
        one["ifname"]: {
            "mtu": one.get("mtu"),
            "addresses": {f"{a['local']}/{a['prefixlen']}" for a in one.get("addr_info", []) if a["family"] == "inet"},
        }
        for one in listed
        if one
    }


def _bridge_changes(links, bridges):
    for name in links:
        if name.startswith("br-") and name not in bridges:
            yield f"link del {name}"
    for name, wanted in bridges.items():
        if name not in links:
            yield f"link add {name} mtu {wanted['mtu']} type bridge"
            yield f"link set {name} up"
        yield from _address_changes(name, links.get(name, {}).get("addresses", set()), wanted["addresses"])


def _address_changes(name, found, wanted):
    for address in sorted(found - set(wanted)):
        yield f"address del {address} dev {name}"
    for address in wanted:
        if address not in found:
            yield f"address add {address} dev {name}"


def _apply_router(inner, name, router):
    if not (NAMESPACES / name).exists():
        add_namespace(name)
        sysctl(name, ipv4__ip_forward=1)
        ip(name, [f"address add {METADATA}/32 dev lo"])
    links = _links(name)
    wanted = {rules.router_interface(one["port"]): one for one in router["interfaces"]}
    ip(name, [f"link del {one}" for one in links if one.startswith("r-") and one not in wanted])
    changes = []
    moved = False
    for link, one in wanted.items():
        if link not in links:
            ip(inner, cable(link, one["bridge"], name, link, one["mac"], one["mtu"]))
            changes.append(f"link set {link} up")
        found = links.get(link, {}).get("addresses", set())
        moved = moved or found != set(one["addresses"])
        changes += _address_changes(link, found, one["addresses"])
    ip(name, changes)
    if moved or changes or not links:
        routes = [f"route replace default via {router['gateway']}"] if router["gateway"] else []
        ip(name, [*routes, *(f"route replace {to} via {via}" for to, via in router["routes"])])
        ip(inner, ["neigh flush all"])  # a floating IP may have another router's MAC by now
    load(name, router["nat"])


def _write(path, content):
    text = json.dumps(content, indent=1)
    if _loaded.get(path) != text:
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        _loaded[path] = text

# SPDX-License-Identifier: Apache-2.0
"""What neutron's networks, routers, floating IPs and security groups come to: bridges, router namespaces, nftables.

Pure: dictionaries of neutron's API in, dictionaries and rule sets out.

A security group cannot be enforced by the interface alone: the connections that a bridge passes are tracked by
br_netfilter, whose rules see the bridge but not its port. So the bridge family checks who a port says it is (MAC and
address, unless its port security is off), and the groups of a port apply to its addresses on its bridge.
"""

from __future__ import annotations

import hashlib
import ipaddress

ROUTER_PORTS = ("network:router_interface", "network:router_gateway")
LARGEST_PAIR = 256  # addresses of one allowed address pair
PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "vrrp": 112, "sctp": 132}


def bridge(network_id):
    """The name of a network's bridge."""
    return f"br-{network_id[:11]}"


def guest_interface(port_id):
    """The name, on the bridge's side, of a guest's interface."""
    return f"p-{port_id[:11]}"


def router_interface(port_id):
    """The name, on the bridge's side, of a router's interface."""
    return f"r-{port_id[:11]}"


def networks(view):
    """Bridges wanted: {name: {"mtu": bytes, "addresses": ["198.18.0.1/24"]}}.

    The provider's networks have their gateway outside the cloud: here it is the testbed's own namespace.
    """
    wanted = {}
    for network in view["networks"]:
        provided = network.get("router:external") or network.get("provider:network_type") == "flat"
        taken = {address for port in _ports_of(view, network) for _subnet, address in _addresses(port)}
        wanted[bridge(network["id"])] = {
            "mtu": network.get("mtu") or 1500,
            "addresses": [
                f"{subnet['gateway_ip']}/{_prefix(subnet)}"
                for subnet in view["subnets"]
                if provided
                and subnet["network_id"] == network["id"]
                and subnet["ip_version"] == 4
                and subnet["gateway_ip"]
                and subnet["gateway_ip"] not in taken
            ],
        }
    return wanted


def routers(view):
    """Routers wanted: {router id: {"interfaces": [...], "gateway": address or None, "nat": rule set, "routes": [...]}}.

    An interface is {"port", "bridge", "mac", "mtu", "addresses"}.
    """
    subnets = {subnet["id"]: subnet for subnet in view["subnets"]}
    mtus = {network["id"]: network.get("mtu") or 1500 for network in view["networks"]}
    wanted = {}
    for router in view["routers"]:
        interfaces, outer, gateway = [], None, None
        floating = _floating(view, router)
        for port in view["ports"]:
            if port["device_id"] != router["id"] or port["device_owner"] not in ROUTER_PORTS:
                continue
            addresses = [f"{address}/{_prefix(subnets[subnet])}" for subnet, address in _addresses(port)]
            if port["device_owner"] == "network:router_gateway" and addresses:
                outer = addresses[0].split("/")[0]
                gateway = subnets[_addresses(port)[0][0]]["gateway_ip"]
                addresses += [f"{address}/32" for address in sorted(floating)]
            interfaces.append({
                "port": port["id"], "bridge": bridge(port["network_id"]), "mac": port["mac_address"],
                "mtu": mtus[port["network_id"]], "addresses": addresses,
                "outer": port["device_owner"] == "network:router_gateway",
            })  # fmt: skip
        snat = (router.get("external_gateway_info") or {}).get("enable_snat", True)
        wanted[router["id"]] = {
            "interfaces": sorted(interfaces, key=lambda one: one["port"]),
            "gateway": gateway if router.get("admin_state_up", True) else None,
            "routes": sorted((route["destination"], route["nexthop"]) for route in router.get("routes") or []),
            "nat": _nat(interfaces, outer, snat, floating),
        }
    return wanted


def servers(view):
    """Who asks the metadata service: {router id: {address: [server id, project id]}}."""
    behind = {}
    for port in view["ports"]:
        if port["device_owner"] == "network:router_interface":
            behind.setdefault(port["network_id"], []).append(port["device_id"])
    found = {router["id"]: {} for router in view["routers"]}
    for port in view["ports"]:
        for router in behind.get(port["network_id"], []) if is_guest(port) else []:
            for _subnet, address in _addresses(port):
                found.setdefault(router, {})[address] = [port["device_id"], port.get("project_id", "")]
    return found


def filters(view):
    """The rule set of the namespace of bridges; loading it replaces the one before in one step."""
    groups = {group["id"]: group for group in view["security_groups"]}
    known, checks, chains, ingress, egress = [], {}, {}, {}, {}
    owned, members = {}, {identity: set() for identity in groups}
    for port in view["ports"]:
        if not is_guest(port):
            continue
        name = guest_interface(port["id"])
        known.append(name)
        if not port.get("port_security_enabled", True):
            continue
        pairs = _pairs(port)
        checks[name] = pairs
        for _mac, address in pairs:
            owned.setdefault((bridge(port["network_id"]), address), set()).update(port["security_groups"])
        for identity in port["security_groups"]:
            members.setdefault(identity, set()).update(address for _mac, address in pairs)
    for (name, address), identities in sorted(owned.items()):
        key = _key(identities)
        for direction, where in (("ingress", ingress), ("egress", egress)):
            chains[f"{direction}-{key}"] = _chain(direction, [groups[one] for one in identities if one in groups])
            where[name, address] = f"{direction}-{key}"
    tenants = sorted(bridge(network["id"]) for network in view["networks"] if _tenant(network))
    zones = ", ".join(f'"{name}" : {_zone(name)}' for name in tenants)
    return "\n".join([
        "table bridge ostb", "delete table bridge ostb", "table ip ostb", "delete table ip ostb",
        *_bridge_table(known, checks),
        "table ip ostb {",
        *(_set(f"group-{_short(one)}", "ipv4_addr", sorted(members[one], key=_by_value)) for one in sorted(members)),
        *(f"  chain {name} {{\n{rules}  }}" for name, rules in sorted(chains.items())),
        _map("from", "ifname . ipv4_addr : verdict", [f'"{n}" . {a} : jump {c}' for (n, a), c in egress.items()]),
        _map("to", "ifname . ipv4_addr : verdict", [f'"{n}" . {a} : jump {c}' for (n, a), c in ingress.items()]),
        # Two projects may have the same addresses: the connections of a network are its own.
        "  chain zone { type filter hook prerouting priority raw;",
        *([f"    ct zone set iifname map {{ {zones} }}"] if zones else []),
        "  }",
        # What comes late for a connection that is over must not reset whoever has its addresses now.
        "  chain input { type filter hook input priority filter;", "    ct state invalid drop", "  }",
        "  chain forward { type filter hook forward priority filter;",
        "    ct state invalid drop",
        "    ct state established,related accept",
        "    iifname . ip saddr vmap @from",
        "    oifname . ip daddr vmap @to",
        "  }",
        "  chain uplink { type nat hook postrouting priority srcnat;", '    oifname "uplink" masquerade', "  }",
        "}", "",
    ])  # fmt: skip


def is_guest(port):
    """Whether a port is a server's."""
    return port["device_owner"].startswith("compute:")


def _bridge_table(known, checks):
    yield "table bridge ostb {"
    for name, pairs in checks.items():
        macs = sorted({mac for mac, _address in pairs})
        yield f"  chain {name} {{"
        yield f"    ether saddr . ip saddr != {{ {', '.join(f'{mac} . {address}' for mac, address in pairs)} }} drop"
        probes = [f"{mac} . 0.0.0.0" for mac in macs]
        claims = [*(f"{mac} . {address}" for mac, address in pairs), *probes]
        yield f"    ether saddr . arp saddr ip != {{ {', '.join(claims)} }} drop"
        yield "    ether type { ip, arp } accept"
        yield "    drop"
        yield "  }"
    verdicts = [f'"{name}" : {f"jump {name}" if name in checks else "accept"}' for name in known]
    yield _map("guests", "ifname : verdict", verdicts)
    yield _set("known", "ifname", [f'"{name}"' for name in known])
    yield "  chain prerouting { type filter hook prerouting priority -300;"
    yield "    iifname vmap @guests"
    yield '    iifname "p-*" drop'  # there before its rules are
    yield "  }"
    for hook in ("forward", "output"):
        yield f"  chain {hook} {{ type filter hook {hook} priority -300;"
        yield '    oifname "p-*" oifname != @known drop'
        yield "  }"
    yield "}"


def _chain(direction, groups):
    rules = [rule for group in groups for rule in group["security_group_rules"] if rule["direction"] == direction]
    # What a sender may send still has to be what the receiver takes.
    verdict = "accept" if direction == "ingress" else "return"
    matches = sorted({_rule(rule) for rule in rules} - {None})
    return "".join(f"    {' '.join([*match, verdict])}\n" for match in matches) + "    drop\n"


def _rule(rule):
    """A rule of a group as words of nftables, or None where it says nothing of IPv4."""
    if rule["ethertype"] != "IPv4" or rule.get("remote_address_group_id"):
        return None
    end = "saddr" if rule["direction"] == "ingress" else "daddr"
    words = []
    if rule.get("remote_ip_prefix"):
        words.append(f"ip {end} {ipaddress.ip_network(rule['remote_ip_prefix'], strict=False)}")
    if rule.get("remote_group_id"):
        words.append(f"ip {end} @group-{_short(rule['remote_group_id'])}")
    protocol = str(rule.get("protocol") or "any").lower()
    if protocol not in ("any", "0"):
        number = int(PROTOCOLS.get(protocol, protocol))
        low, high = rule.get("port_range_min"), rule.get("port_range_max")
        if low is None or number not in (1, 6, 17, 132):
            words.append(f"ip protocol {number}")
        elif number == 1:
            words.append(f"icmp type {low}" + (f" icmp code {high}" if high is not None else ""))
        else:
            name = {6: "tcp", 17: "udp", 132: "sctp"}[number]
            words.append(f"{name} dport {low}-{high if high is not None else low}")
    return tuple(words)


def _nat(interfaces, outer, snat, floating):
    gateway = next((router_interface(one["port"]) for one in interfaces if one["outer"]), None)
    lines = ["table ip ostb", "delete table ip ostb", "table ip ostb {"]
    if gateway:
        to = ", ".join(f"{address} : {fixed}" for address, fixed in sorted(floating.items()))
        back = ", ".join(f"{fixed} : {address}" for address, fixed in sorted(floating.items()))
        lines.append("  chain prerouting { type nat hook prerouting priority dstnat;")
        lines += [f"    dnat to ip daddr map {{ {to} }}"] if floating else []
        lines += ["  }", "  chain postrouting { type nat hook postrouting priority srcnat;"]
        if floating:
            # The answer of a guest to its neighbour's floating IP has to come back this way.
            lines.append(f'    oifname "{gateway}" snat to ip saddr map {{ {back} }}')
            lines.append(f'    ct status dnat iifname != "{gateway}" snat to ip saddr map {{ {back} }}')
            lines.append(f'    ct status dnat iifname != "{gateway}" snat to {outer}')
        lines += [f'    oifname "{gateway}" snat to {outer}'] if snat else []
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _floating(view, router):
    return {
        one["floating_ip_address"]: one["fixed_ip_address"]
        for one in view["floatingips"]
        if one["router_id"] == router["id"] and one["fixed_ip_address"]
    }


def _pairs(port):
    """(MAC, address) of all that a port may send from."""
    pairs = [(port["mac_address"], address) for _subnet, address in _addresses(port)]
    for pair in port.get("allowed_address_pairs") or []:
        network = ipaddress.ip_network(pair["ip_address"], strict=False)
        if network.version == 4 and network.num_addresses <= LARGEST_PAIR:
            pairs += [(pair.get("mac_address") or port["mac_address"], str(address)) for address in network]
    return sorted(set(pairs))


def _addresses(port):
    """(subnet id, IPv4 address) of a port."""
    return [(one["subnet_id"], one["ip_address"]) for one in port["fixed_ips"] if ":" not in one["ip_address"]]


def _ports_of(view, network):
    return [port for port in view["ports"] if port["network_id"] == network["id"]]


def _tenant(network):
    return not network.get("router:external") and network.get("provider:network_type") != "flat"


def _zone(name):
    """A number for a bridge that stays the same while others come and go."""
    return 1 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % 65534


def _prefix(subnet):
    return subnet["cidr"].split("/")[1]


def _short(identity):
    return identity[:13]


def _key(identities):
    return hashlib.sha256(" ".join(sorted(identities)).encode()).hexdigest()[:12]


def _by_value(address):
    return int(ipaddress.ip_address(address))


def _map(name, kind, elements):
    return _declaration("map", name, kind, elements)


def _set(name, kind, elements):
    return _declaration("set", name, kind, elements)


def _declaration(what, name, kind, elements):
    content = f"elements = {{ {', '.join(elements)} }}; " if elements else ""
    return f"  {what} {name} {{ type {kind}; {content}}}"

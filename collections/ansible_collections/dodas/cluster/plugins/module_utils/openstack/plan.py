# SPDX-License-Identifier: Apache-2.0
"""What has to be done in a cloud, from what is wanted and what was found. Nothing here changes anything."""

from __future__ import annotations

import datetime
import ipaddress
from collections import Counter
from dataclasses import dataclass, field

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.names import Names

POLICIES = {"soft": "soft-anti-affinity", "hard": "anti-affinity"}
ROUTER_OWNERS = [
    "network:router_interface",
    "network:router_interface_distributed",
    "network:ha_router_replicated_interface",
]
# What brings a server back that somebody stopped, by its status.
REVIVALS = {
    "SHUTOFF": ("was stopped: start it", {"os-start": None}),
    "PAUSED": ("was paused: let it go on", {"unpause": None}),
    "SUSPENDED": ("was suspended: resume it", {"resume": None}),
    "SHELVED": ("was shelved: take it back", {"unshelve": None}),
    "SHELVED_OFFLOADED": ("was shelved: take it back", {"unshelve": None}),
    "RESCUE": ("is being rescued: end that", {"unrescue": None}),
}
LOST = ("ERROR", "DELETED", "SOFT_DELETED")


@dataclass
class Step:
    """One thing to do; `data` is for who does it."""

    kind: str
    name: str
    why: str = ""
    data: dict = field(default_factory=dict)

    def shown(self):
        """The step as part of a result."""
        shown = {"kind": self.kind, "name": self.name}
        return {**shown, "why": self.why} if self.why else shown

    def __str__(self):
        return f"{self.kind} {self.name}{f' ({self.why})' if self.why else ''}"


@dataclass
class Launch:
    """A server to make; `port` and `ip` are those that are there already, `old` the id of the server it replaces."""

    host: object
    flavor: dict
    image: dict
    port: dict | None = None
    ip: dict | None = None
    needs_ip: bool = False
    address: str | None = None
    old: str | None = None


@dataclass
class Plan:
    """What apply does, and what a person wants to know before.

    `drift` says in words where the cloud differs from what had been made. `summary` is the deployment's size once the
    plan is carried out: memory in MB, price of an hour, None for a price that is not known. `needs` is what quotas must
    leave, see Catalogue.lacks; `addresses` are those of hosts that are there, also of those that leave.
    """

    wanted: object
    found: finding.Found
    network: dict | None = None
    external: dict | None = None
    create: list = field(default_factory=list)
    update: list = field(default_factory=list)
    delete: list = field(default_factory=list)
    replace: list = field(default_factory=list)
    drift: list = field(default_factory=list)
    launches: list = field(default_factory=list)
    leaving: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    addresses: dict = field(default_factory=dict)
    expires: str | None = None
    needs: dict = field(default_factory=dict)

    @property
    def changed(self):
        return bool(self.create or self.update or self.delete or self.replace)

    @property
    def hosts(self):
        """Host names under create, remove and replace."""
        replaced = [one.host.name for one in self.launches if one.old]
        created = [one.host.name for one in self.launches if not one.old]
        return {"create": created, "remove": list(self.leaving), "replace": replaced}

    def steps(self, verb, kind):
        return [one for one in getattr(self, verb) if one.kind == kind]

    def as_dict(self):
        verbs = {verb: [one.shown() for one in getattr(self, verb)] for verb in _VERBS}
        return {**verbs, "hosts": self.hosts, "drift": list(self.drift), "summary": dict(self.summary)}

    def text(self):
        """The plan for people: what is done, what was found changed, and the size and price of the result."""
        lines = [f"{verb} {one}" for verb in _VERBS for one in getattr(self, verb)]
        lines += [f"drift: {one}" for one in self.drift]
        return "\n".join([*(lines or ["nothing to change"]), self._size()])

    def _size(self):
        size = self.summary
        parts = [_count(size["hosts"], "host"), _count(size["vcpus"], "cpu")]
        parts += [f"{size['memory_mb'] / 1024:.1f} GB of memory", f"{size['disk_gb']} GB of disk"]
        parts += [f"{size['volumes_gb']} GB of volumes"] if size["volumes_gb"] else []
        parts += [_count(size["floating_ips"], "floating IP")] if size["floating_ips"] else []
        price = size["per_hour"]
        if price is not None:
            parts.append(f"{price:.2f} {size['currency']} an hour ({price * 24:.2f} a day)")
        if self.expires:
            parts.append(f"until {self.expires}")
        flavors = ", ".join(f"{number} {flavor}" for flavor, number in sorted(size["flavors"].items()))
        return f"in all {', '.join(parts)} [{flavors}]"

    @property
    def before(self):
        """What is there, a line each: one side of a diff."""
        lines = []
        for kind in self.found.KINDS:
            for one in getattr(self.found, kind):
                if kind == "servers":
                    lines.append(f"server {one['name']} {one['flavor'].get('original_name')} {one['status']}")
                elif kind != "ports":
                    lines.append(f"{_SINGULAR[kind]} {finding.label(one)}")
        return sorted(lines)

    @property
    def after(self):
        """What will be there: the other side."""
        touched = {(one.kind, one.name) for verb in ("delete", "update", "replace") for one in getattr(self, verb)}
        lines = [line for line in self.before if tuple(line.split()[:2]) not in touched]
        flavors = {one.host.name: one.flavor["name"] for one in self.launches}
        for one in [*self.create, *self.update, *self.replace]:
            flavor = flavors.get(one.data.get("host"))
            lines.append(f"server {one.name} {flavor} ACTIVE" if one.kind == "server" and flavor else str(one))
        return sorted(lines)


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


_VERBS = ("create", "update", "replace", "delete")
_SINGULAR = {
    "networks": "network",
    "subnets": "subnet",
    "routers": "router",
    "security_groups": "security_group",
    "floatingips": "floating_ip",
    "keypairs": "keypair",
    "server_groups": "server_group",
    "volumes": "volume",
}


def make(cloud, wanted, found, catalogue, public_key=None, now=None):
    """The Plan. Raises OpenStackError when a setting fits nothing that the cloud has."""
    return _Planner(cloud, wanted, found, catalogue, public_key, now).plan()


class _Planner:
    def __init__(self, cloud, wanted, found, catalogue, public_key, now):
        self.cloud = cloud
        self.wanted = wanted
        self.settings = wanted.settings
        self.found = found
        self.catalogue = catalogue
        self.public_key = public_key
        self.now = now or datetime.datetime.now(datetime.UTC)
        self.names = Names(wanted.name, wanted.uuid)
        self.result = Plan(wanted, found)
        self.needs = Counter()
        self.kept = {}  # host: server
        self._image = None

    def plan(self):
        self.result.expires = self._expires()
        self._network()
        groups = self._security_groups()
        self._shared_addresses()
        self._hosts(groups)
        self._leaving()
        if self.result.launches:
            self._server_groups()
            self._keypair()
            if self.settings.availability_zone:
                self.catalogue.zone(self.settings.availability_zone)
        self._untagged()
        self._summary()
        if self.settings.quota_check and (self.result.create or self.result.replace):
            self.result.needs = dict(self.needs)
        return self.result

    # -- what several kinds need --

    def _add(self, verb, kind, name, why="", **data):
        getattr(self.result, verb).append(Step(kind, name, why, data))

    def _create(self, kind, name, why="", quota=None, **data):
        self._add("create", kind, name, why, **data)
        if quota:
            self.needs[quota] += 1

    def _drift(self, text):
        self.result.drift.append(text)

    def _delete(self, kind, thing, why):
        self._add("delete", kind, finding.label(thing), why, id=thing["id"], host=finding.host_of(thing))

    def _only(self, kind, things, best=None):
        """The one to keep of things that should be one: half-made ones may be there twice."""
        ranked = sorted(things, key=lambda one: (best(one) if best else 0, one.get("created_at") or "", one["id"]))
        for one in ranked[1:]:
            self._delete(kind, one, "is there twice")
        return ranked[0] if ranked else None

    # -- the network --

    def _network(self):
        found, settings = self.found, self.settings
        routers = [one for one in found.ports if one["name"] == self.names.interface]
        if settings.network:
            self.result.network = self.catalogue.network(settings.network)
            if not self.result.network.get("subnets"):
                raise OpenStackError(f"settings.network: {settings.network} has no subnet")
            chosen = self.result.network
            ours = chosen.get("shared") or chosen["project_id"] == self.cloud.project_id
            if chosen.get("router:external") and not ours:
                raise OpenStackError(
                    f"settings.network: {settings.network} is an external network that takes no hosts; leave it out, "
                    "and a network is made that leads there"
                )
            for kind, things in (("router", found.routers), ("network", found.networks)):
                for one in things:
                    self._delete(kind, one, f"hosts are on {settings.network}")
            self._floating_policy_of_existing()
            return
        used = Counter(one["network_id"] for one in found.ports)
        network = self._only("network", found.networks, best=lambda one: -used[one["id"]])
        self.result.network = network
        self.policy = settings.floating_ips or "front"
        self.result.external = self.catalogue.external(settings.external_network)
        if self.result.external is None:
            raise OpenStackError(
                "settings.network: the cloud has no external network, so a network that is made would lead nowhere; "
                f"choose one that exists: {', '.join(sorted(one['name'] for one in self.catalogue.networks)) or 'none'}"
            )
        if network is None:
            self._create("network", self.names.network, quota="network")
        subnets = [one for one in found.subnets if network and one["network_id"] == network["id"]]
        subnet = self._only("subnet", subnets)
        if subnet is None:
            self._create("subnet", self.names.network, str(settings.cidr), quota="subnet")
            if network is not None and used[network["id"]]:
                self._drift(f"subnet {self.names.network} is gone")
        else:
            self._subnet(subnet)
        router = self._only("router", found.routers)
        gateway = {"network_id": self.result.external["id"]}
        if router is None:
            self._create("router", self.names.network, f"to {self.result.external['name']}", quota="router")
            if self.found.servers:
                self._drift(f"router {self.names.network} is gone")
        elif (router.get("external_gateway_info") or {}).get("network_id") != gateway["network_id"]:
            why = f"does not lead to {self.result.external['name']}"
            self._add("update", "router", router["name"], why, id=router["id"], body={"external_gateway_info": gateway})
            self._drift(f"router {router['name']} {why}")
        interface = self._only("port", routers, best=lambda one: not one.get("device_id"))
        if interface is None or router is None or interface.get("device_id") != router["id"]:
            why = "connects the network"
            self._create("interface", self.names.interface, why, quota=None if interface else "port", port=interface)
            if router is not None and self.found.servers:
                self._drift(f"router {router['name']} is not connected to network {self.names.network}")

    def _subnet(self, subnet):
        if ipaddress.ip_network(subnet["cidr"]) != self.settings.cidr:
            raise OpenStackError(
                f"settings.cidr: the deployment's network has {subnet['cidr']}, which cannot be changed to "
                f"{self.settings.cidr}; remove the deployment first"
            )
        servers = list(self.settings.nameservers)
        if servers and subnet.get("dns_nameservers") != servers:
            why = f"name servers {', '.join(servers)}"
            body = {"dns_nameservers": servers}
            self._add("update", "subnet", subnet["name"], why, id=subnet["id"], body=body)

    def _floating_policy_of_existing(self):
        policy, network = self.settings.floating_ips, self.result.network
        if policy is None:
            routers = []
            if not network.get("router:external"):
                query = {"network_id": network["id"], "device_owner": ROUTER_OWNERS, "fields": ["id"]}
                routers = self.cloud.list("network", "/ports", "ports", **query)
            policy = "front" if routers else "none"
        self.policy = policy
        if policy != "none":
            self.result.external = self.catalogue.external(self.settings.external_network)
            if self.result.external is None:
                raise OpenStackError("settings.floating_ips: the cloud has no external network; set it to none")

    def _wants_ip(self, host):
        return self.policy == "all" or (self.policy == "front" and host == self.wanted.front)

    # -- security groups --

    def _security_groups(self):
        """Plan the groups and their rules; returns {host: ids of its groups}, where they are there."""
        rules = group_rules(self.settings)
        found = {}
        for key, wanted in rules.items():
            name = self.names.group(key)
            group = self._only("security_group", [one for one in self.found.security_groups if one["name"] == name])
            found[key] = group
            if group is None:
                self._create("security_group", name, quota="security_group", key=key)
                self.needs["security_group_rule"] += 2  # neutron's own, for what goes out
                missing = [one for one in wanted if one not in GOING_OUT]
            else:
                there = {rule_of(one, group["id"]): one["id"] for one in group["security_group_rules"]}
                missing = [one for one in wanted if one not in there]
                for one in [one for one in there if one not in wanted]:
                    why = f"{name} has a rule that nobody asked for"
                    self._add("delete", "rule", describe(one), why, id=there[one])
                    self._drift(f"security group {name} lets {describe(one)}")
                for one in missing:
                    self._drift(f"security group {name} no longer lets {describe(one)}")
            for one in missing:
                self._create("rule", describe(one), f"of {name}", quota="security_group_rule", group=key, rule=one)
        names = {self.names.group(key) for key in rules}
        for one in self.found.security_groups:
            if one["name"] not in names:
                self._delete("security_group", one, "is not needed any more")
        self.group_ids = {key: group["id"] if group else None for key, group in found.items()}
        return {
            one.name: [
                self.group_ids[key] for key in rules if self.group_ids[key] and (key != "front" or self._front(one))
            ]
            for one in self.wanted.hosts
        }

    def _front(self, host):
        return host.name == self.wanted.front

    # -- addresses that hosts share --

    def _shared_addresses(self):
        """Plan their ports; {host: addresses that it may take}, None where one is not known yet."""
        self.pairs = {one.name: [] for one in self.wanted.hosts}
        names = set()
        for shared in self.settings.shared_addresses:
            name = self.names.shared(shared.name)
            names.add(name)
            port = self._only("port", [one for one in self.found.ports if one["name"] == name])
            if port is None:
                self._create("shared_address", name, f"of {', '.join(shared.hosts)}", quota="port", shared=shared)
            address = port["fixed_ips"][0]["ip_address"] if port else None
            for host in shared.hosts:
                self.pairs[host].append(address)
        for port in self.found.ports:
            if port["name"].startswith(self.names.shared("")) and port["name"] not in names:
                self._delete("port", port, "is shared no more")

    # -- hosts --

    def _hosts(self, groups):
        servers, ports, ips, volumes = (
            self._by_host(things)
            for things in (self.found.servers, self.found.ports, self.found.floatingips, self.found.volumes)
        )
        network = self.result.network
        for host in self.wanted.hosts:
            there = servers.get(host.name, [])
            server = self._only("server", there, best=lambda one: (one["status"] in LOST, one["status"] != "ACTIVE"))
            port = self._only(
                "port", ports.get(host.name, []), best=lambda one, s=server: not s or one.get("device_id") != s["id"]
            )
            ip = self._only("floating_ip", ips.get(host.name, []), best=lambda one: not one.get("port_id"))
            if ip and not self._wants_ip(host.name):
                self._delete("floating_ip", ip, f"host {host.name} shall have none")
                ip = None
            self._volumes(host, volumes.get(host.name, []))
            on_network = port and network and port["network_id"] == network["id"]
            why = self._lost(host, server, port, on_network) if server else None
            if server and not why:
                self._keep(host, server, port, ip, groups[host.name])
            else:
                self._launch(host, server, port, ip, on_network, why)

    @staticmethod
    def _by_host(things):
        sorted_out = {}
        for one in things:
            host = finding.host_of(one) or (one.get("metadata") or {}).get("dodas_host")
            if host:
                sorted_out.setdefault(host, []).append(one)
        return sorted_out

    def _lost(self, host, server, port, on_network):
        """Why a server cannot stay, or None."""
        name, status = server["name"], server["status"]
        if status in LOST:
            reason = finding.fault(self.cloud, server)
            self._drift(f"server {name} is {status}{f': {reason}' if reason else ''}")
            return f"is {status}{f': {reason}' if reason else ''}"
        if server.get("OS-EXT-STS:task_state") == "deleting":
            self._drift(f"server {name} is being deleted")
            return "is being deleted"
        if port is None or (status == "ACTIVE" and port.get("device_id") != server["id"]):
            self._drift(f"server {name} has lost its port")
            return "has lost its port"
        if not on_network:
            return f"is not on network {self.result.network['name'] if self.result.network else self.names.network}"
        metadata, flavor = server.get("metadata") or {}, server["flavor"].get("original_name")
        made_with = metadata.get("dodas_flavor_name")
        if made_with and made_with != flavor:
            self._drift(f"server {name} has flavor {flavor}, but was made with {made_with}")
            return f"has flavor {flavor} instead of {made_with}"
        wish = self.settings.flavor_of(host.node)
        if metadata.get("dodas_flavor") != (wish or "") or metadata.get("dodas_size") != _size_of(host):
            chosen = self._flavor(host)["name"]
            if chosen != flavor:
                return f"flavor {flavor} becomes {chosen}"
        if self.settings.image and metadata.get("dodas_image") != self.settings.image:
            image = self._wanted_image()
            if image["id"] not in (metadata.get("dodas_image_id"), (server.get("image") or {}).get("id")):
                return f"image becomes {image['name']}"
        return None

    def _keep(self, host, server, port, ip, groups):
        name = server["name"]
        self.kept[host.name] = server
        status = server["status"]
        if status in REVIVALS:
            why, action = REVIVALS[status]
            self._add("update", "server", name, why, id=server["id"], action=action, host=host.name)
            self._drift(f"server {name} {why.partition(':')[0]}")
        elif status != "ACTIVE":
            why = f"is {status}: wait for it"
            self._add("update", "server", name, why, id=server["id"], action=None, host=host.name)
        labels = server.get("metadata") or {}
        wanted = server_metadata(self.result, host)
        changed = {key: value for key, value in wanted.items() if labels.get(key, "") != value}
        if changed:
            why = ", ".join(f"{key.removeprefix('dodas_')} {value or 'none'}" for key, value in sorted(changed.items()))
            self._add("update", "labels", name, why, id=server["id"], metadata=changed)
        self._port(host, port, groups)
        if self._wants_ip(host.name):
            self._floating_ip(host, port, ip)
        address = port["fixed_ips"][0]["ip_address"] if port["fixed_ips"] else None
        attached = ip and ip.get("port_id") == port["id"]
        self.result.addresses[host.name] = {
            "address": address,
            "public_address": ip["floating_ip_address"] if attached else None,
            "id": server["id"],
        }

    def _port(self, host, port, groups):
        """Plan what the port of a server that stays lacks."""
        if self.result.network.get("port_security_enabled") is False:
            return
        body, why = {}, []
        missing = any(key == "hosts" or self._front(host) for key, one in self.group_ids.items() if one is None)
        if missing or sorted(port.get("security_groups") or []) != sorted(groups):
            body["groups"] = True  # their ids are known when they are made
            why.append("security groups")
            if not missing:
                self._drift(f"port {port['name']} has other security groups")
        pairs = sorted(one["ip_address"] for one in port.get("allowed_address_pairs") or [])
        if None in self.pairs[host.name] or pairs != sorted(self.pairs[host.name]):
            body["pairs"] = True
            why.append("shared addresses")
        if body:
            self._add("update", "port", port["name"], ", ".join(why), id=port["id"], host=host.name, **body)

    def _floating_ip(self, host, port, ip):
        if ip is None:
            self._create("floating_ip", host.name, quota="floatingip", host=host.name, port_id=port["id"])
            self._drift(f"host {host.name} has no floating IP")
        elif ip.get("port_id") != port["id"]:
            name = ip["floating_ip_address"]
            self._add("update", "floating_ip", name, f"attach to {host.name}", id=ip["id"], port_id=port["id"])
            self._drift(f"floating IP {name} is not attached to host {host.name}")

    def _launch(self, host, server, port, ip, on_network, why):
        image, flavor = self._wanted_image(), self._flavor(host)
        launch = Launch(host, flavor, image, ip=ip, needs_ip=self._wants_ip(host.name))
        name = self.names.server(host.name)
        if server:
            launch.old = server["id"]
            old = server["flavor"]
            self.needs["cores"] += max(0, flavor["vcpus"] - old.get("vcpus", 0))
            self.needs["ram"] += max(0, flavor["ram"] - old.get("ram", 0))
            self._add("replace", "server", name, why, id=server["id"], host=host.name)
        else:
            if port:  # nova leaves the port, as does a run that was killed
                self._drift(f"server {name} is gone, or was never made")
            self._create("server", name, flavor["name"], quota="instances", host=host.name)
            self.needs["cores"] += flavor["vcpus"]
            self.needs["ram"] += flavor["ram"]
        reusable = port and on_network and not server and not port.get("device_id")
        if reusable:
            launch.port = port
        elif port:
            if on_network and not self.settings.network and port["fixed_ips"]:
                launch.address = port["fixed_ips"][0]["ip_address"]
            self._delete("port", port, f"of the old server of host {host.name}")
        else:
            self.needs["port"] += 1
        if launch.needs_ip and ip is None:
            self._create("floating_ip", host.name, quota="floatingip", host=host.name)
        if self.settings.boot_volume_gb and not server:
            self.needs["volumes"] += 1
            self.needs["gigabytes"] += self.settings.boot_volume_gb
        self.result.launches.append(launch)

    def _flavor(self, host):
        settings = self.settings
        wish = settings.flavor_of(host.node)
        image = self._wanted_image()
        return self.catalogue.flavor(wish, host, image, settings.boot_volume_gb, settings.prices)

    def _wanted_image(self):
        if self._image is None:
            self._image = self.catalogue.image(self.settings.image)
        return self._image

    def _volumes(self, host, found):
        """Plan the host's volumes, which outlive its server."""
        wanted = [one for one in self.settings.volumes if one.node == host.node]
        if (wanted or self.settings.boot_volume_gb) and not self.cloud.has("volume"):
            setting = "volumes" if wanted else "boot_volume_gb"
            raise OpenStackError(f"settings.{setting}: cloud {self.cloud.name} has no service for volumes")
        for index, one in enumerate(wanted):
            name = self.names.volume(host.name, index)
            if not self._only("volume", [other for other in found if other["name"] == name]):
                size = one.size_gb
                self._create("volume", name, f"{size} GB", quota="volumes", host=host.name, size=size)
                self.needs["gigabytes"] += one.size_gb

    def _leaving(self):
        """Plan the end of what belongs to hosts that are not wanted any more."""
        wanted = {one.name for one in self.wanted.hosts}
        kinds = {
            "server": self.found.servers,
            "floating_ip": self.found.floatingips,
            "port": self.found.ports,
            "volume": self.found.volumes,
        }
        for kind, things in kinds.items():
            for host, several in self._by_host(things).items():
                if host in wanted:
                    continue
                for one in several:
                    self._delete(kind, one, f"host {host} leaves")
                if kind == "server":
                    self.result.leaving.append(host)
                    self._note_leaving(host, several[0])
        for one in [one for one in self.found.servers if not finding.host_of(one)]:
            self._delete("server", one, "is of no host")

    def _note_leaving(self, host, server):
        ports = [one for one in self.found.ports if one.get("device_id") == server["id"]]
        ids = {one["id"] for one in ports}
        ips = [one for one in self.found.floatingips if one.get("port_id") in ids]
        self.result.addresses[host] = {
            "address": ports[0]["fixed_ips"][0]["ip_address"] if ports and ports[0]["fixed_ips"] else None,
            "public_address": ips[0]["floating_ip_address"] if ips else None,
            "id": server["id"],
        }
        for kind, amount in (("instances", 1), ("cores", server["flavor"].get("vcpus", 0))):
            self.needs[kind] -= amount
        self.needs["ram"] -= server["flavor"].get("ram", 0)

    # -- what new servers need --

    def _server_groups(self):
        policy = POLICIES.get(self.settings.anti_affinity)
        if not policy:
            return
        self.found.server_groups = finding.server_groups(self.cloud, self.wanted.uuid)
        members = Counter(one.node for one in self.wanted.hosts)
        for node in sorted({one.host.node for one in self.result.launches}):
            name = self.names.server_group(node, policy)
            if not self._only("server_group", [one for one in self.found.server_groups if one["name"] == name]):
                self._create("server_group", name, quota="server_groups", node=node, policy=policy)
            self.needs["server_group_members"] = max(self.needs["server_group_members"], members[node])

    def _keypair(self):
        if not self.public_key:
            return
        self.found.keypairs = finding.keypairs(self.cloud, self.wanted.uuid)
        there = next((one for one in self.found.keypairs if one["name"] == self.names.keypair), None)
        if there and there["public_key"].split()[:2] != self.public_key.split()[:2]:
            self._add("delete", "keypair", there["name"], "has another key", id=there["name"])
            there = None
        if there is None:
            self._create("keypair", self.names.keypair)

    def _untagged(self):
        """Plan the tags of what was made but not yet tagged."""
        deleted = {one.data.get("id") for one in self.result.delete}
        for kind in ("networks", "subnets", "routers", "security_groups", "floatingips", "ports"):
            for one in getattr(self.found, kind):
                wanted = finding.tags(self.wanted.name, self.wanted.uuid, finding.host_of(one))
                if not set(wanted) <= set(one.get("tags", [])) and one["id"] not in deleted:
                    path = f"/{kind.replace('_', '-')}/{one['id']}/tags"
                    tags = sorted({*wanted, *one.get("tags", [])})
                    self._add("update", "tags", finding.label(one), "lacks our tags", path=path, tags=tags)

    def _expires(self):
        expires = self.settings.expires
        if isinstance(expires, datetime.timedelta):
            lifetime = lifetime_of(expires)
            for server in self.found.servers:
                metadata = server.get("metadata") or {}
                if metadata.get("dodas_lifetime") == lifetime and metadata.get("dodas_expires"):
                    return metadata["dodas_expires"]
            expires = self.now + expires
        return expires.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if expires else None

    def _summary(self):
        flavors = [
            {"name": one["flavor"].get("original_name"), **one["flavor"]}
            for one in self.kept.values()
        ] + [one.flavor for one in self.result.launches]
        volumes = {one.node: 0 for one in self.wanted.hosts}
        for one in self.settings.volumes:
            volumes[one.node] += one.size_gb
        boot = self.settings.boot_volume_gb or 0
        prices = self.settings.prices
        known = [prices.get(one["name"]) for one in flavors]
        front = {"all": len(self.wanted.hosts), "front": 1}
        self.result.summary = {
            "hosts": len(self.wanted.hosts),
            "vcpus": sum(one.get("vcpus", 0) for one in flavors),
            "memory_mb": sum(one.get("ram", 0) for one in flavors),
            "disk_gb": 0 if boot else sum(one.get("disk", 0) for one in flavors),
            "volumes_gb": sum(volumes[one.node] + boot for one in self.wanted.hosts),
            "floating_ips": front.get(self.policy, 0),
            "flavors": dict(Counter(one["name"] for one in flavors)),
            "per_hour": None if None in known or not known else round(sum(known), 6),
            "currency": self.settings.currency,
        }


# -- rules of security groups: (direction, ethertype, protocol, first port, last port, CIDR, "self" or None) --

GOING_OUT = [("egress", "IPv4", None, None, None, None, None), ("egress", "IPv6", None, None, None, None, None)]
_ANYWHERE = ("0.0.0.0/0", "::/0")


def group_rules(settings):
    """The rules of each security group, by its key: `hosts` trust each other; the `front` has open ports."""
    hosts = [("ingress", family, None, None, None, None, "self") for family in ("IPv4", "IPv6")]
    hosts += [_taking("tcp", 22, 22, cidr) for cidr in settings.ssh_from]
    rules = {"hosts": [*GOING_OUT, *dict.fromkeys(hosts)]}
    if settings.open_ports:
        front = [_taking(one.protocol, one.first, one.last, cidr) for one in settings.open_ports for cidr in one.cidrs]
        rules["front"] = [*GOING_OUT, *dict.fromkeys(front)]
    return rules


def _taking(protocol, first, last, cidr):
    family = f"IPv{ipaddress.ip_network(cidr).version}"
    return ("ingress", family, protocol, first, last, None if cidr in _ANYWHERE else cidr, None)


def rule_of(rule, group_id):
    """Neutron's rule as ours; the group itself is `self`."""
    cidr = rule.get("remote_ip_prefix")
    group = rule.get("remote_group_id")
    return (
        rule["direction"],
        rule["ethertype"],
        rule.get("protocol"),
        rule.get("port_range_min"),
        rule.get("port_range_max"),
        None if cidr in _ANYWHERE else cidr,
        "self" if group == group_id else group,
    )


def rule_body(rule, group_id):
    """What neutron is sent to make the rule."""
    direction, family, protocol, first, last, cidr, group = rule
    body = {"security_group_id": group_id, "direction": direction, "ethertype": family}
    body |= {"protocol": protocol} if protocol else {}
    body |= {"port_range_min": first, "port_range_max": last} if first is not None else {}
    body |= {"remote_ip_prefix": cidr} if cidr else {}
    return body | ({"remote_group_id": group_id} if group else {})


def describe(rule):
    """The rule in words, such as `in tcp 22 from anywhere (IPv4)`."""
    direction, family, protocol, first, last, cidr, group = rule
    ports = "" if first is None else f" {first}" if first == last else f" {first}-{last}"
    peer = "the group's hosts" if group == "self" else f"group {group}" if group else cidr or "anywhere"
    way, word = ("in", "from") if direction == "ingress" else ("out", "to")
    return f"{way} {protocol or 'anything'}{ports} {word} {peer} ({family})"


# -- labels of servers --


def _size_of(host):
    return f"{host.cpus or 0:g}/{host.mem_mb or 0}/{host.disk_gb or 0:g}"


def lifetime_of(expires):
    """The label of a lifetime: hours, or nothing for a time that was given."""
    return f"{expires.total_seconds() / 3600:g}h" if isinstance(expires, datetime.timedelta) else ""


def server_metadata(plan, host):
    """The labels that a server of `host` has all its life."""
    wanted = plan.wanted
    return {
        "dodas_deployment": wanted.uuid,
        "dodas_host": host.name,
        "dodas_node": host.node,
        "dodas_roles": ",".join(host.roles),
        "dodas_owner": wanted.settings.owner or "",
        "dodas_expires": plan.expires or "",
        "dodas_lifetime": lifetime_of(wanted.settings.expires),
    }


def launch_metadata(plan, launch):
    """The labels of a new server: also what it was made of, so that a change by hand is seen."""
    settings, host = plan.wanted.settings, launch.host
    return {
        **server_metadata(plan, host),
        "dodas_flavor": settings.flavor_of(host.node) or "",
        "dodas_flavor_name": launch.flavor["name"],
        "dodas_size": _size_of(host),
        "dodas_image": settings.image or "",
        "dodas_image_id": launch.image["id"],
    }

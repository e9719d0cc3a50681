# SPDX-License-Identifier: Apache-2.0
"""A cloud on paper: listings written by hand, and a record of what was asked."""

from __future__ import annotations

import copy
import itertools

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import plan as planning
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.catalogue import Catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.names import Names

UUID = "11111111-2222-3333-4444-555555555555"
FLAVORS = [
    {"id": f"id-{name}", "name": name, "vcpus": cpus, "ram": ram, "disk": disk}
    for name, cpus, ram, disk in (("m1.tiny", 1, 512, 5), ("m1.small", 1, 1024, 10), ("m1.large", 4, 4096, 40))
]
IMAGES = [
    {"id": "image-2", "name": "debian-12", "os_distro": "debian", "os_version": "12", "tags": ["new"], "min_disk": 2},
    {"id": "image-1", "name": "debian-12", "os_distro": "debian", "os_version": "12", "tags": ["old"], "min_disk": 2},
    {"id": "image-0", "name": "rocky-9", "os_distro": "rocky", "os_version": "9", "tags": []},
]
PUBLIC = {"id": "net-public", "name": "public", "router:external": True, "project_id": "admin", "subnets": ["s"]}
SHARED = {"id": "net-shared", "name": "shared", "shared": True, "project_id": "admin", "subnets": ["s"]}


class Paper:
    """Answers listings from `listings` {path: [things]}, and remembers what would have changed something."""

    name = "paper"
    project_id = "project"
    user_id = "user"
    deadline = None

    def __init__(self):
        self.listings = {
            "/flavors/detail": FLAVORS,
            "/images": IMAGES,
            "/networks": [PUBLIC, SHARED],
            "/os-availability-zone": [{"zoneName": "nova", "zoneState": {"available": True}}],
        }
        self.limits = {"maxTotalInstances": 10, "totalInstancesUsed": 8, "maxTotalCores": -1}
        self.sent = []
        self.services = {"compute", "network", "image", "identity"}
        self._numbers = itertools.count(1)

    def has(self, service):
        return service in self.services

    def list(self, service, path, key, **query):
        return copy.deepcopy(self.listings.get(path, []))

    def get(self, service, path, **query):
        if path == "/limits":
            return {"limits": {"absolute": self.limits}}
        if path == "/os-availability-zone":
            return {"availabilityZoneInfo": self.listings[path]}
        if path.startswith("/servers/"):
            return {"server": next(one for one in self.listings["/servers/detail"] if path.endswith(one["id"]))}
        return {"quota": {"port": {"limit": 5, "used": 4, "reserved": 0}}}

    def post(self, service, path, body, find=None, **options):
        self.sent.append(("POST", path, body))
        kind = next(iter(body))
        made = [dict(one) for one in (body[kind] if isinstance(body[kind], list) else [body[kind]])]
        for one in made:
            one["id"] = f"new-{next(self._numbers)}"
            one |= {"gateway_ip": "10.88.0.1", "floating_ip_address": "203.0.113.9"}
            if "network_id" in one:
                one["fixed_ips"] = [{"ip_address": "10.88.0.99"}]
        return {kind: made if isinstance(body[kind], list) else made[0]}

    def put(self, service, path, body, **options):
        self.sent.append(("PUT", path, body))

    def delete(self, service, path, **options):
        self.sent.append(("DELETE", path, None))

    def each(self, function, items):
        return [function(one) for one in items]

    def left(self, limit=None):
        return 1e9

    def pause(self, seconds):
        pass


def wanted(settings=None, hosts=("front-1", "worker-1")):
    """A front and workers; settings as a user gives them."""
    return spec.parse("tier3", UUID, [{"name": one, "mem_mb": 500} for one in hosts], settings or {})


def standing(names=("front-1", "worker-1"), settings=None):
    """Found: what apply leaves, for hosts `names`."""
    wish = wanted(settings, names)
    called = Names("tier3", UUID)
    tagged = {"tags": finding.tags("tier3", UUID), "description": finding.description(UUID), "project_id": "project"}
    found = finding.Found()
    found.networks = [{"id": "net", "name": called.network, "subnets": ["sub"], **tagged}]
    found.all_networks = [PUBLIC, SHARED, *found.networks]
    subnet = {"id": "sub", "name": called.network, "network_id": "net", "cidr": "10.88.0.0/24", **tagged}
    found.subnets = [{**subnet, "dns_nameservers": [], "gateway_ip": "10.88.0.1"}]
    gateway = {"external_gateway_info": {"network_id": "net-public"}}
    found.routers = [{"id": "router", "name": called.network, **gateway, **tagged}]
    router_port = {"id": "port-router", "name": called.interface, "network_id": "net", "device_id": "router"}
    found.ports = [{**router_port, "fixed_ips": [{"ip_address": "10.88.0.1"}], **tagged}]
    for key, rules in planning.group_rules(wish.settings).items():
        listed = [{"id": f"rule-{key}-{i}", **_neutron(rule, f"sg-{key}")} for i, rule in enumerate(rules)]
        group = {"id": f"sg-{key}", "name": called.group(key), "security_group_rules": listed}
        found.security_groups.append({**group, **tagged})
    plan = planning.Plan(wish, found)
    for i, host in enumerate(wish.hosts):
        mine = {"tags": finding.tags("tier3", UUID, host.name), "description": finding.description(UUID, host.name)}
        launch = planning.Launch(host, FLAVORS[0], IMAGES[0])
        server = {"id": f"server-{host.name}", "name": called.server(host.name), "tags": mine["tags"]}
        server |= {"status": "ACTIVE", "metadata": planning.launch_metadata(plan, launch), "image": {"id": "image-2"}}
        server |= {"flavor": {"original_name": "m1.tiny", "vcpus": 1, "ram": 512, "disk": 5}}
        found.servers.append(server)
        port = {"id": f"port-{host.name}", "name": called.port(host.name), "network_id": "net", **mine}
        port |= {"device_id": server["id"], "security_groups": ["sg-hosts"], "allowed_address_pairs": []}
        found.ports.append({**port, "fixed_ips": [{"ip_address": f"10.88.0.{10 + i}"}]})
    ip = {"id": "ip", "floating_ip_address": "203.0.113.5", "port_id": f"port-{names[0]}"}
    mine = {"tags": finding.tags("tier3", UUID, names[0]), "description": finding.description(UUID, names[0])}
    found.floatingips = [{**ip, **mine}]
    return found


def _neutron(rule, group_id):
    keys = ("direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix")
    return dict(zip(keys, rule, strict=False)) | {"remote_group_id": group_id if rule[6] else None}


def plan(cloud, wish, found, **options):
    """The Plan of what is wanted and found."""
    catalogue = Catalogue(cloud, found.all_networks or None)
    return planning.make(cloud, wish, found, catalogue, **options)

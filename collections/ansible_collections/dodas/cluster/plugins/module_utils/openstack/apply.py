# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan: in order where things need each other, at once where they do not.

Whatever moment it is killed at, the next plan finds what was made: servers and ports carry their tags from the
beginning, the rest its description or name.
"""

from __future__ import annotations

import base64
import threading
import time

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import plan as planning
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import teardown
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, OpenStackError, Quota
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.names import Names

PORTS_AT_ONCE = 12  # of one request: the first servers begin while the next ports are made
ATTEMPTS = 3  # to get a server of a host to run
LAST_LOOK = 30  # seconds, when the time is over, to see what is late
USER_DATA_LIMIT = 65535  # nova's, of the encoded text
QUOTA_PAUSES = (3, 6, 12)  # seconds; nova counts twice what it moves, and what leaves is still counted


class Applier:
    """Carries out `plan`. `user_data`: {host: text}, or a callable(host), or None; `progress`: a callable(text)."""

    def __init__(self, cloud, plan, user_data=None, public_key=None, progress=None):
        self.cloud = cloud
        self.plan = plan
        self.wanted = plan.wanted
        self.settings = plan.wanted.settings
        self.names = Names(self.wanted.name, self.wanted.uuid)
        self.user_data = user_data if callable(user_data) else (user_data or {}).get
        self.public_key = public_key
        self.progress = progress or (lambda text: None)
        self.network = plan.network
        self.subnet = None
        self.groups = {}  # key: id
        self.shared = {}  # name: address
        self.server_groups = {}  # node: id
        self.volumes = {}  # host: ids
        self.hosts = {name: dict(one) for name, one in plan.addresses.items() if name not in plan.leaving}
        self.ports = {}  # host: port, of new servers
        self.attempts = {}  # host: number
        self.waited = {}  # server id: host

    def run(self):
        """Returns {host: {"address", "public_address", "id"}}. Raises OpenStackError; a later run finishes the rest."""
        plan = self.plan
        self.volumes = self._kept_volumes()
        user_data = self._user_data()
        self._start_deleting()
        self.cloud.each(
            lambda part: part(),
            [self._make_network, self._make_groups, self._make_keypair, self._make_server_groups, self._make_volumes],
        )
        self._make_rules()
        self._make_shared()
        self._updates()
        gone = [one.data["id"] for one in [*plan.steps("delete", "server"), *plan.steps("replace", "server")]]
        replaced = [one.old for one in plan.launches if one.old]
        if replaced:
            self._wait_gone(replaced)
        if plan.launches:
            self.progress(f"making {len(plan.launches)} servers")
        self._launch(plan.launches, user_data)
        self._wait_active(user_data)
        self._wait_gone(gone)
        self._finish_deleting()
        return self.hosts

    # -- what the others stand on --

    def _post(self, service, path, kind, body, find):
        """Make a thing; `find` returns it, or None, when the cloud's answer was lost."""

        def wrapped():
            made = find()
            return {kind: made} if made else None

        return self.cloud.post(service, path, {kind: body}, find=wrapped)[kind]

    def _neutron(self, kind, body, host=None):
        """Make a thing of neutron and tag it."""
        plural = f"{kind}s"
        path = f"/{plural.replace('_', '-')}"
        body = {"description": finding.description(self.wanted.uuid, host), **body}

        def find():
            listed = self.cloud.list("network", path, plural, description=body["description"])
            return next((one for one in listed if one.get("name") == body.get("name", one.get("name"))), None)

        made = self._post("network", path, kind, body, find)
        tags = finding.tags(self.wanted.name, self.wanted.uuid, host)
        self.cloud.put("network", f"{path}/{made['id']}/tags", {"tags": tags})
        return made

    def _make_network(self):
        plan, found = self.plan, self.plan.found
        name = self.names.network
        if plan.steps("create", "network"):
            self.progress(f"making network {name}")
            self.network = self._neutron("network", {"name": name})
        if self.settings.network:
            return
        subnets = [one for one in found.subnets if one["network_id"] == self.network["id"]]
        self.subnet = subnets[0] if subnets else None
        router = next(iter(found.routers), None)

        def subnet():
            body = {"network_id": self.network["id"], "name": name, "ip_version": 4, "cidr": str(self.settings.cidr)}
            body |= {"dns_nameservers": list(self.settings.nameservers)} if self.settings.nameservers else {}
            self.subnet = self._neutron("subnet", body)

        def make_router():
            nonlocal router
            gateway = {"network_id": plan.external["id"]}
            router = self._neutron("router", {"name": name, "external_gateway_info": gateway})

        parts = [subnet] if plan.steps("create", "subnet") else []
        parts += [make_router] if plan.steps("create", "router") else []
        self.cloud.each(lambda part: part(), parts)
        for step in plan.steps("create", "interface"):
            self._connect(router, step.data["port"])

    def _connect(self, router, port):
        """Connect the router by a port that carries our tags."""
        if port is None:
            fixed = {"subnet_id": self.subnet["id"], "ip_address": self.subnet["gateway_ip"]}
            body = {
                "network_id": self.network["id"],
                "name": self.names.interface,
                "description": finding.description(self.wanted.uuid),
                "tags": finding.tags(self.wanted.name, self.wanted.uuid),
                "fixed_ips": [fixed],
            }
            port = self._post("network", "/ports", "port", body, lambda: self._port_named(self.names.interface))
        path = f"/routers/{router['id']}/add_router_interface"
        self.cloud.put("network", path, {"port_id": port["id"]})

    def _port_named(self, name):
        tag = finding.mark(self.wanted.uuid)
        return next(iter(self.cloud.list("network", "/ports", "ports", tags=tag, name=name)), None)

    def _make_groups(self):
        known = {one["name"]: one["id"] for one in self.plan.found.security_groups}
        for key in planning.group_rules(self.settings):
            name = self.names.group(key)
            self.groups[key] = known.get(name)
        steps = self.plan.steps("create", "security_group")
        made = self.cloud.each(lambda step: self._neutron("security_group", {"name": step.name}), steps)
        for step, group in zip(steps, made, strict=True):
            self.groups[step.data["key"]] = group["id"]

    def _make_rules(self):
        rules = {}
        for step in self.plan.steps("create", "rule"):
            rules.setdefault(self.groups[step.data["group"]], []).append(step.data["rule"])

        def make(group_id):  # one request takes the rules of one group only
            bodies = [planning.rule_body(one, group_id) for one in rules[group_id]]

            def find():
                (group,) = self.cloud.list("network", "/security-groups", "security_groups", id=group_id)
                there = {planning.rule_of(one, group_id) for one in group["security_group_rules"]}
                return {} if there.issuperset(rules[group_id]) else None  # all or none are made

            self.cloud.post("network", "/security-group-rules", {"security_group_rules": bodies}, find=find)

        self.cloud.each(make, rules)

    def _make_keypair(self):
        for step in self.plan.steps("delete", "keypair"):
            self.cloud.delete("compute", f"/os-keypairs/{step.data['id']}")
        for step in self.plan.steps("create", "keypair"):
            body = {"name": step.name, "public_key": self.public_key, "type": "ssh"}
            try:
                self._post("compute", "/os-keypairs", "keypair", body, find=lambda: None)
            except ApiError as exc:
                if exc.status == 400:
                    raise OpenStackError(f"the cloud refuses the deployment's public key: {exc}") from exc
                if exc.status != 409:  # it was made by the request whose answer was lost
                    raise

    def _make_server_groups(self):
        if self.settings.anti_affinity == "none":
            return
        policy = planning.POLICIES[self.settings.anti_affinity]
        known = {one["name"]: one["id"] for one in self.plan.found.server_groups}
        for node in {one.node for one in self.wanted.hosts}:
            name = self.names.server_group(node, policy)
            if name in known:
                self.server_groups[node] = known[name]
        for step in self.plan.steps("create", "server_group"):

            def find(name=step.name):
                listed = self.cloud.list("compute", "/os-server-groups", "server_groups")
                return next((one for one in listed if one["name"] == name), None)

            body = {"name": step.name, "policy": step.data["policy"]}
            made = self._post("compute", "/os-server-groups", "server_group", body, find)
            self.server_groups[step.data["node"]] = made["id"]

    def _kept_volumes(self):
        volumes = {}
        for one in sorted(self.plan.found.volumes, key=lambda one: one["name"]):
            volumes.setdefault(one["metadata"].get("dodas_host"), []).append(one["id"])
        return volumes

    def _make_volumes(self):
        steps = self.plan.steps("create", "volume")

        def make(step):
            host = step.data["host"]
            body = {
                "name": step.name,
                "size": step.data["size"],
                "description": finding.description(self.wanted.uuid, host),
                "metadata": {"dodas_deployment": self.wanted.uuid, "dodas_host": host},
            }
            body |= {"volume_type": self.settings.volume_type} if self.settings.volume_type else {}
            body |= {"availability_zone": self.settings.availability_zone} if self.settings.availability_zone else {}

            def find():
                listed = self.cloud.list("volume", "/volumes/detail", "volumes", name=step.name)
                same = [one for one in listed if one["metadata"].get("dodas_deployment") == self.wanted.uuid]
                return same[0] if same else None

            return self._post("volume", "/volumes", "volume", body, find)

        for step, volume in zip(steps, self.cloud.each(make, steps), strict=True):
            self.volumes.setdefault(step.data["host"], []).append(volume["id"])

    def _wait_volumes(self, hosts):
        """Wait until the volumes of `hosts` can be attached."""
        ids = {one for host in hosts for one in self.volumes.get(host, [])}
        while ids:
            listed = [one for one in self.cloud.list("volume", "/volumes/detail", "volumes") if one["id"] in ids]
            for one in listed:
                if one["status"].startswith("error"):
                    raise OpenStackError(f"volume {one['name']} is {one['status']}: remove it, then try again")
            waiting = [one["name"] for one in listed if one["status"] != "available"]
            if not waiting:
                return
            if not self.cloud.left():
                raise OpenStackError(f"volume {waiting[0]} was not available in time")
            self.cloud.pause(1)

    def _make_shared(self):
        for port in self.plan.found.ports:
            for shared in self.settings.shared_addresses:
                if port["name"] == self.names.shared(shared.name):
                    self.shared[shared.name] = port["fixed_ips"][0]["ip_address"]
        for step in self.plan.steps("create", "shared_address"):
            shared = step.data["shared"]
            body = {
                "network_id": self.network["id"],
                "name": step.name,
                "description": finding.description(self.wanted.uuid),
                "tags": finding.tags(self.wanted.name, self.wanted.uuid),
                "security_groups": self._groups_of(shared.hosts[0]),
            }
            port = self._post("network", "/ports", "port", body, lambda name=step.name: self._port_named(name))
            self.shared[shared.name] = port["fixed_ips"][0]["ip_address"]

    # -- what is there and stays --

    def _updates(self):
        way_out = [one for one in self.plan.update if one.kind in ("subnet", "router")]  # floating IPs need it
        self.cloud.each(self._update, way_out)
        self.cloud.each(self._update, [one for one in self.plan.update if one not in way_out])
        rules = self.plan.steps("delete", "rule")
        self.cloud.each(lambda one: self.cloud.delete("network", f"/security-group-rules/{one.data['id']}"), rules)
        missing = [one for one in self.plan.steps("create", "floating_ip") if one.data.get("port_id")]
        for step in missing:
            host = step.data["host"]
            self.hosts[host]["public_address"] = self._new_ip(host, step.data["port_id"])["floating_ip_address"]

    def _update(self, step):
        kind, data = step.kind, step.data
        if kind in ("subnet", "router"):
            self.cloud.put("network", f"/{kind}s/{data['id']}", {kind: data["body"]})
        elif kind == "tags":
            self.cloud.put("network", data["path"], {"tags": data["tags"]})
        elif kind == "labels":
            path = f"/servers/{data['id']}/metadata"
            self.cloud.post("compute", path, {"metadata": data["metadata"]}, find=lambda: None)
        elif kind == "port":
            body = {"security_groups": self._groups_of(data["host"])} if data.get("groups") else {}
            body |= {"allowed_address_pairs": self._pairs_of(data["host"])} if data.get("pairs") else {}
            self.cloud.put("network", f"/ports/{data['id']}", {"port": body})
        elif kind == "floating_ip":
            body = {"port_id": data["port_id"]}
            self.cloud.put("network", f"/floatingips/{data['id']}", {"floatingip": body}, conflict=True)
            host = next(name for name in self.hosts if step.why.endswith(f" {name}"))
            self.hosts[host]["public_address"] = step.name
        elif kind == "server":
            if data["action"]:
                self._act(data["id"], data["action"])
            self.waited[data["id"]] = data["host"]

    def _act(self, server_id, action):
        try:
            self.cloud.post("compute", f"/servers/{server_id}/action", action, find=lambda: None)
        except ApiError as exc:
            if exc.status != 409:  # it is on its way already
                raise

    # -- new servers --

    def _user_data(self):
        """The encoded user data of new servers, checked before anything is made."""
        encoded = {}
        for launch in self.plan.launches:
            host = launch.host.name
            text = self.user_data(host)
            encoded[host] = base64.b64encode(text.encode()).decode() if text else None
            if text and len(encoded[host]) > USER_DATA_LIMIT:
                raise OpenStackError(f"host {host}: its user data has {len(text)} bytes; nova takes 49000")
        return encoded

    def _groups_of(self, host):
        return [one for key, one in self.groups.items() if key != "front" or host == self.wanted.front]

    def _pairs_of(self, host):
        return [{"ip_address": self.shared[one.name]} for one in self.settings.shared_addresses if host in one.hosts]

    def _launch(self, launches, user_data):
        """Some ports in one request, then floating IPs, which may run out, then servers; meanwhile the next ports."""
        making = threading.Lock()  # ports that are made at once compete for addresses

        def launch(some):
            with making:
                self._make_ports([one for one in some if one.port is None])
            for one in some:
                self.ports.setdefault(one.host.name, one.port)
            self.cloud.each(self._give_ip, [one for one in some if one.needs_ip])
            self._wait_volumes([one.host.name for one in some])
            self.cloud.each(lambda one: self._make_server(one, user_data[one.host.name]), some)

        starts = range(0, len(launches), PORTS_AT_ONCE)
        self.cloud.each(launch, [launches[first : first + PORTS_AT_ONCE] for first in starts])

    def _make_ports(self, launches):
        if not launches:
            return
        secured = self.network.get("port_security_enabled") is not False
        bodies = []
        for one in launches:
            host = one.host.name
            body = {
                "network_id": self.network["id"],
                "name": self.names.port(host),
                "description": finding.description(self.wanted.uuid, host),
                "tags": finding.tags(self.wanted.name, self.wanted.uuid, host),
            }
            body |= {"security_groups": self._groups_of(host)} if secured else {}
            # on a network of others not even an empty list of pairs is allowed
            body |= {"allowed_address_pairs": self._pairs_of(host)} if secured and self._pairs_of(host) else {}
            body |= {"fixed_ips": [{"ip_address": one.address}]} if one.address else {}
            bodies.append(body)
        names = {one["name"] for one in bodies}

        def find():
            listed = self.cloud.list("network", "/ports", "ports", tags=finding.mark(self.wanted.uuid))
            there = [one for one in listed if one["name"] in names]
            return {"ports": there} if names <= {one["name"] for one in there} else None  # all or nothing is made

        again = any(one.address for one in launches)  # an address is in use until the old port is quite gone
        made = self.cloud.post("network", "/ports", {"ports": bodies}, find=find, conflict=again)
        for port in made["ports"]:
            self.ports[finding.host_of(port)] = port

    def _give_ip(self, launch):
        host = launch.host.name
        port = self.ports[host]
        if launch.ip is None:
            ip = self._new_ip(host, port["id"])
            launch.ip = ip
        else:
            ip = launch.ip
            if ip.get("port_id") != port["id"]:
                body = {"floatingip": {"port_id": port["id"]}}
                self.cloud.put("network", f"/floatingips/{ip['id']}", body, conflict=True)
        self.hosts.setdefault(host, {})["public_address"] = ip["floating_ip_address"]

    def _new_ip(self, host, port_id):
        external = self.plan.external
        body = {"floating_network_id": external["id"], "port_id": port_id}
        try:
            return self._neutron("floatingip", body, host)
        except Quota:
            raise
        except ApiError as exc:
            if exc.status == 409 and "no more ip" in str(exc).lower():
                raise OpenStackError(
                    f"host {host}: network {external['name']} has no free floating IP: ask the site for more, choose "
                    "another external_network, or set floating_ips to none"
                ) from exc
            if exc.status == 404 and "external network" in str(exc).lower():
                raise OpenStackError(
                    f"host {host}: no router leads from {self.network['name']} to {external['name']}, so it can have "
                    "no floating IP: choose another external_network, or set floating_ips to none"
                ) from exc
            raise

    def _make_server(self, launch, user_data):
        host, port = launch.host, self.ports[launch.host.name]
        name = self.names.server(host.name)
        body = {
            "name": name,
            "flavorRef": launch.flavor["id"],
            "networks": [{"port": port["id"]}],
            "metadata": planning.launch_metadata(self.plan, launch),
            "tags": finding.tags(self.wanted.name, self.wanted.uuid, host.name),
            "config_drive": True,  # not every network has a metadata service
            **self._disks(launch),
        }
        body |= {"user_data": user_data} if user_data else {}
        body |= {"key_name": self.names.keypair} if self.public_key else {}
        zone = self.settings.availability_zone
        body |= {"availability_zone": zone} if zone else {}
        whole = {"server": body}
        if host.node in self.server_groups:
            whole["os:scheduler_hints"] = {"group": self.server_groups[host.node]}

        def find():
            listed = finding.servers(self.cloud, self.wanted.uuid)
            same = [one for one in listed if finding.host_of(one) == host.name and one["id"] != launch.old]
            return {"server": same[0]} if same else None

        server = self._patiently(lambda: self.cloud.post("compute", "/servers", whole, find=find), host.name)["server"]
        self.attempts[host.name] = self.attempts.get(host.name, 0) + 1
        self.waited[server["id"]] = host.name
        known = self.hosts.setdefault(host.name, {})
        known |= {"id": server["id"], "address": port["fixed_ips"][0]["ip_address"] if port["fixed_ips"] else None}
        known.setdefault("public_address", None)

    def _patiently(self, request, host):
        """What the request returns; quotas that are used up only at the moment are waited for."""
        for pause in QUOTA_PAUSES:
            try:
                return request()
            except Quota:
                self.cloud.pause(pause)
        try:
            return request()
        except Quota as exc:
            raise Quota(
                f"host {host}: {exc}. Somebody else took what was free. What has been made stays; the next run goes on",
                exc.service,
                exc.status,
            ) from exc

    def _disks(self, launch):
        volumes = self.volumes.get(launch.host.name, [])
        kept = {"source_type": "volume", "destination_type": "volume", "boot_index": -1, "delete_on_termination": False}
        attached = [{**kept, "uuid": one} for one in volumes]
        size, image = self.settings.boot_volume_gb, launch.image["id"]
        if size:
            boot = {"boot_index": 0, "source_type": "image", "destination_type": "volume", "uuid": image}
            boot |= {"volume_size": size, "delete_on_termination": True}
            boot |= {"volume_type": self.settings.volume_type} if self.settings.volume_type else {}
            return {"block_device_mapping_v2": [boot, *attached]}
        if not attached:
            return {"imageRef": image}
        local = {"boot_index": 0, "source_type": "image", "destination_type": "local", "uuid": image}
        return {"imageRef": image, "block_device_mapping_v2": [{**local, "delete_on_termination": True}, *attached]}

    def _wait_active(self, user_data):
        """Wait for all servers, by one short listing a tick; those in ERROR are made again, ATTEMPTS times."""
        launches = {one.host.name: one for one in self.plan.launches}
        tag = finding.mark(self.wanted.uuid)
        interval, last = 0.5, None
        while self.waited:
            settled = {
                one["id"]
                for one in self.cloud.list("compute", "/servers", "servers", tags=tag, status=["ACTIVE", "ERROR"])
            }
            missing = set(self.waited) - settled
            if not missing:
                failed = self._failed()
                if not failed:
                    return
                self._again(failed, launches, user_data)
                interval = 0.5
                continue
            if len(missing) != last:
                last = len(missing)
                self.progress(f"{len(self.waited) - last} of {len(self.waited)} servers run")
            if self.cloud.left() <= interval:
                raise OpenStackError(self._late(missing))
            self.cloud.pause(interval)
            interval = min(interval * 1.3, 3)

    def _failed(self):
        """{host: server} of those that we wait for and that are in ERROR or gone."""
        servers = {one["id"]: one for one in finding.servers(self.cloud, self.wanted.uuid)}
        failed = {}
        for server_id, host in self.waited.items():
            server = servers.get(server_id, {"id": server_id, "status": "DELETED"})
            if server["status"] != "ACTIVE":
                failed[host] = server
        return failed

    def _again(self, failed, launches, user_data):
        for host, server in failed.items():
            fault = finding.fault(self.cloud, server) or f"its status is {server['status']}"
            launch = launches.get(host)
            if launch is None:  # it was there before this run
                raise OpenStackError(f"host {host}: server {self.names.server(host)} does not start: {fault}")
            if self.attempts[host] >= ATTEMPTS:
                raise OpenStackError(self._for_good(launch, fault))
        self.progress(f"making again: {', '.join(sorted(failed))}")
        ids = [one["id"] for one in failed.values()]
        old_ports = [self.ports.pop(host)["id"] for host in failed]
        self.cloud.each(lambda one: self.cloud.delete("network", f"/ports/{one}"), old_ports)
        self.cloud.each(lambda one: self.cloud.delete("compute", f"/servers/{one}"), ids)
        for one in ids:
            self.waited.pop(one, None)
        self._wait_gone(ids)
        again = [launches[host] for host in failed]
        for one in again:
            one.port = None
            one.old = failed[one.host.name]["id"]
        self._launch(again, user_data)

    def _for_good(self, launch, fault):
        host, flavor = launch.host.name, launch.flavor
        text = f"host {host}: nova gave up {ATTEMPTS} times: {fault}"
        if "no valid host" in fault.lower():
            size = f"{flavor['name']}: {flavor['vcpus']} cpus, {flavor['ram']} MB, {flavor['disk']} GB"
            text += f" That is, no hypervisor has room for it ({size})"
            zone = self.settings.availability_zone
            text += f" in zone {zone}" if zone else ""
            if self.settings.anti_affinity == "hard":
                text += (
                    f", apart from the other hosts of node {launch.host.node}: set anti_affinity to soft, or have fewer"
                )
            else:
                text += ": choose a smaller flavor or another availability_zone, or try later"
        return text

    def _late(self, missing):
        self.cloud.deadline = time.monotonic() + LAST_LOOK
        hosts = sorted(self.waited[one] for one in missing)
        states = {one["id"]: one for one in finding.servers(self.cloud, self.wanted.uuid)}
        said = []
        for server_id in sorted(missing, key=lambda one: self.waited[one])[:5]:
            one = states.get(server_id) or {"status": "not to be found"}
            said.append(f"{self.waited[server_id]} is {one['status']} ({one.get('OS-EXT-STS:task_state') or 'idle'})")
        more = f" and {len(hosts) - 5} more" if len(hosts) > 5 else ""
        return f"these servers were not active in time: {', '.join(said)}{more}; run it again with a longer timeout"

    # -- what goes --

    def _start_deleting(self):
        """Ask for the end of servers that leave or are replaced; ports first, so that nova has nothing to unplug."""
        plan = self.plan
        servers = [*plan.steps("delete", "server"), *plan.steps("replace", "server")]
        if servers:
            self.progress(f"removing {len(servers)} servers")
        ips = plan.steps("delete", "floating_ip")
        self.cloud.each(lambda one: self.cloud.delete("network", f"/floatingips/{one.data['id']}"), ips)
        by_host = {}
        for one in plan.steps("delete", "port"):
            by_host.setdefault(one.data["host"], []).append(one)

        def remove(step):
            for port in by_host.get(step.data["host"], []):
                self.cloud.delete("network", f"/ports/{port.data['id']}", conflict=True)
            self.cloud.delete("compute", f"/servers/{step.data['id']}", conflict=True)

        self.cloud.each(remove, servers)
        hosts = {one.data["host"] for one in servers}
        rest = [one for host, several in by_host.items() if host not in hosts for one in several]
        self.cloud.each(lambda one: self.cloud.delete("network", f"/ports/{one.data['id']}", conflict=True), rest)

    def _wait_gone(self, ids):
        if ids:
            teardown.wait_gone(self.cloud, self.wanted.uuid, ids)

    def _finish_deleting(self):
        """Remove what servers needed that are gone now."""
        plan, cloud = self.plan, self.cloud
        for step in plan.steps("delete", "router"):
            teardown.remove_router(cloud, step.data["id"], plan.found.ports)
        for kind in ("subnet", "network", "security_group", "volume"):
            service = "volume" if kind == "volume" else "network"
            for step in plan.steps("delete", kind):
                path = f"/{kind.replace('_', '-')}s/{step.data['id']}"
                cloud.delete(service, path, conflict=True)
        for step in plan.steps("delete", "server_group"):
            cloud.delete("compute", f"/os-server-groups/{step.data['id']}")

# SPDX-License-Identifier: Apache-2.0
"""Deployments on a testbed, through the library, and what the cloud itself says about them.

Run as a program, it does what a job on standard input says, so that a test can kill it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.cloud import connect
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.cluster import OpenStackCluster, deployments
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError

TIMEOUT = 240
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICQ/CgvCnPLgYHs9WNm+ggdtxgZbwQvkgcS6R9VGQ4N3 dodas@example.org"
SETTINGS = {"image": "debian-12", "flavor": "m1.tiny", "network": "shared"}
CHANGES = ("POST", "PUT", "PATCH", "DELETE")


def hosts(workers=1, front=True):
    """A front host and workers, as a template gives them."""
    size = {"cpus": 1, "mem_mb": 512}
    fronts = [{"name": "front-1", "node": "front", "roles": ["schedd"], **size}] if front else []
    names = [f"worker-{number + 1}" for number in range(workers)]
    return [*fronts, *({"name": name, "node": "worker", "roles": ["worker"], **size} for name in names)]


@dataclass
class Deployment:
    """clouds: a clouds.yaml; cloud: its entry. calls: of the last operation, as the library counted them."""

    clouds: Path
    name: str
    cloud: str = "demo"
    settings: dict = field(default_factory=lambda: dict(SETTINGS))
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    calls: object = None

    def login(self, timeout=None):
        before = os.environ.get("OS_CLIENT_CONFIG_FILE")
        os.environ["OS_CLIENT_CONFIG_FILE"] = str(self.clouds)
        try:
            cloud = connect(self.cloud, timeout=timeout)
        finally:
            if before is None:
                del os.environ["OS_CLIENT_CONFIG_FILE"]
            else:
                os.environ["OS_CLIENT_CONFIG_FILE"] = before
        self.calls = cloud.calls
        return cloud

    def cluster(self):
        """A new login, and the deployment on it."""
        return OpenStackCluster(self.login(), self.name, self.uuid, public_key=PUBLIC_KEY)

    def listed(self):
        """What the library says which deployments there are."""
        return deployments(self.login())

    def wanted(self, wanted_hosts, **settings):
        return spec.parse(self.name, self.uuid, wanted_hosts, {**self.settings, **settings})

    def plan(self, wanted_hosts, **settings):
        return self.cluster().plan(self.wanted(wanted_hosts, **settings), user_data)

    def up(self, wanted_hosts, timeout=TIMEOUT, **settings):
        """{host: addresses}"""
        return self.cluster().apply(self.wanted(wanted_hosts, **settings), user_data, timeout)

    def down(self, timeout=TIMEOUT):
        return self.cluster().remove(timeout)

    def process(self, action, wanted_hosts=(), **settings):
        """The same in a process of its own; its output is one line of JSON, `{"result"}` or `{"error"}`."""
        job = {
            "clouds": str(self.clouds),
            "name": self.name,
            "cloud": self.cloud,
            "settings": {**self.settings, **settings},
            "uuid": self.uuid,
            "action": action,
            "hosts": list(wanted_hosts),
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env=environment, text=True)  # fmt: skip
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        process.stdin = None
        return process

    def changes(self):
        """How many of the last operation's calls may have changed something (logins apart)."""
        return sum(n for call, n in self.calls.items() if call.startswith(CHANGES) and "identity" not in call)


def _sorted(thing):
    """The thing with its lists in an order: neutron gives rules, tags and addresses in any."""
    return {key: sorted(value, key=repr) if isinstance(value, list) else value for key, value in thing.items()}


def user_data(host):
    return f"#cloud-config\nhostname: {host}\n"


@dataclass
class Reality:
    """What a project holds, asked with the SDK, not with the library. connection: of the project."""

    connection: object

    def everything(self):
        """{kind: [object as a dict]} of the project."""
        own = {"project_id": self.connection.current_project_id}
        network, compute = self.connection.network, self.connection.compute
        found = {
            "server": compute.servers(),
            "keypair": compute.keypairs(),
            "server group": compute.server_groups(),
            "port": network.ports(**own),
            "network": network.networks(**own),
            "subnet": network.subnets(**own),
            "router": network.routers(**own),
            "security group": (g for g in network.security_groups(**own) if g.name != "default"),
            "floating IP": network.ips(**own),
        }
        return {kind: [_sorted(thing.to_dict()) for thing in things] for kind, things in found.items()}

    def of(self, deployment):
        """[`kind name`] of what is a deployment's by its tags, or may be by its name, sorted."""
        marks = (deployment.name, deployment.uuid[:8])
        found = []
        for kind, things in self.everything().items():
            for thing in things:
                name = thing.get("name") or thing.get("floating_ip_address") or thing["id"]
                texts = (name, thing.get("description") or "", *(thing.get("tags") or ()))
                if any(mark in text for mark in marks for text in texts):
                    found.append(f"{kind} {name}")
        return sorted(found)

    def servers(self, deployment):
        """{host: server} of a deployment; two of one name are an error."""
        servers = {}
        for server in self.connection.compute.servers():
            if f"dodas:deployment={deployment.uuid}" in (server.tags or ()):
                host = server.name.removeprefix(f"{deployment.name}-")
                assert host not in servers, f"there are two of {server.name}"
                servers[host] = server
        return servers

    def inside(self, address, network):
        """Whether an address is one of a network's."""
        network = self.connection.network.find_network(network, ignore_missing=False)
        subnets = self.connection.network.subnets(network_id=network.id)
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(subnet.cidr) for subnet in subnets)

    def ports(self, deployment):
        """The ports of a deployment's servers, and those that are for none."""
        return [
            port
            for port in self.connection.network.ports(project_id=self.connection.current_project_id)
            if f"dodas:deployment={deployment.uuid}" in port.tags and port.device_owner != "network:router_interface"
        ]

    def whole(self, deployment, wanted_hosts):
        """Fail unless each host has one ACTIVE server and one port of its own, and nothing is there twice."""
        servers, ports = self.servers(deployment), self.ports(deployment)
        assert sorted(servers) == sorted(host["name"] for host in wanted_hosts)
        assert {host: server.status for host, server in servers.items()} == dict.fromkeys(servers, "ACTIVE")
        assert sorted(port.device_id for port in ports) == sorted(server.id for server in servers.values())
        names = self.of(deployment)
        assert len(names) == len(set(names)), f"something is there twice: {names}"
        return servers


def main():
    job = json.load(sys.stdin)
    deployment = Deployment(Path(job["clouds"]), job["name"], job["cloud"], job["settings"], job["uuid"])
    with contextlib.suppress(BrokenPipeError):
        try:
            result = {"result": deployment.up(job["hosts"]) if job["action"] == "up" else deployment.down()}
        except OpenStackError as exc:
            result = {"error": str(exc), "kind": type(exc).__name__}
        print(json.dumps(result))


if __name__ == "__main__":
    main()

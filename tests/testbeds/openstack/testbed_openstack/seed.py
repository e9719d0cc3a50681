# SPDX-License-Identifier: Apache-2.0
"""What a new cloud holds: users, the catalog, flavors, an image, networks. Done once, with the database's template."""

from __future__ import annotations

import ipaddress

from testbed_openstack.api import Api
from testbed_openstack.config import REGION
from testbed_openstack.place import Place

SERVICE_USERS = ("glance", "placement", "nova", "neutron")
PEOPLE = {"demo": "demo", "other": "other"}  # user: project
FLAVORS = {"m1.tiny": (1, 512, 5), "m1.small": (1, 1024, 10), "m1.medium": (2, 2048, 20), "m1.large": (4, 4096, 40)}
IMAGE = {
    "name": "debian-12",
    "disk_format": "raw",
    "container_format": "bare",
    "visibility": "public",
    "min_disk": 2,
    "min_ram": 256,
    "os_distro": "debian",
    "os_version": "12",
    "os_admin_user": "debian",
    "testbed_root": "guest",
}
FEDERATED = "federated"  # the group of all who come with a token


def identity(place: Place) -> None:
    """Users, projects and the catalog: keystone runs."""
    api = Api(place, "admin", "admin")
    roles = {role["name"]: role["id"] for role in api.get("keystone", "/v3/roles")["roles"]}
    if "service" not in roles:
        roles["service"] = api.post("keystone", "/v3/roles", {"role": {"name": "service"}})["role"]["id"]

    def project(name):
        body = {"project": {"name": name, "domain_id": "default"}}
        return api.post("keystone", "/v3/projects", body)["project"]["id"]

    def user(name, home, *granted):
        body = {"user": {"name": name, "domain_id": "default", "password": place.secrets()[name]}}
        number = api.post("keystone", "/v3/users", body)["user"]["id"]
        for role in granted:
            api.put("keystone", f"/v3/projects/{home}/users/{number}/roles/{roles[role]}")

    services = project("service")
    for name in SERVICE_USERS:
        user(name, services, "admin", "service")
    projects = {name: project(name) for name in PEOPLE.values()}
    for name, home in PEOPLE.items():
        user(name, projects[home], "member")
    group = api.post("keystone", "/v3/groups", {"group": {"name": FEDERATED, "domain_id": "default"}})["group"]["id"]
    api.put("keystone", f"/v3/projects/{projects['demo']}/groups/{group}/roles/{roles['member']}")

    for name, kind, path in (
        ("glance", "image", ""),
        ("placement", "placement", ""),
        ("nova", "compute", "/v2.1"),
        ("neutron", "network", ""),
    ):
        service = api.post("keystone", "/v3/services", {"service": {"name": name, "type": kind}})["service"]["id"]
        for interface in ("public", "internal", "admin"):
            endpoint = {"interface": interface, "region_id": REGION, "url": place.url(name) + path}
            api.post("keystone", "/v3/endpoints", {"endpoint": {**endpoint, "service_id": service}})


def cloud(place: Place) -> None:
    """Flavors, image and networks: all services run."""
    api = Api(place, "admin", "admin")
    for name, (vcpus, ram, disk) in FLAVORS.items():
        api.post("nova", "/v2.1/flavors", {"flavor": {"name": name, "vcpus": vcpus, "ram": ram, "disk": disk}})
    image = api.post("glance", "/v2/images", IMAGE)["id"]
    api.put("glance", f"/v2/images/{image}/file", b"\0" * 65536, "application/octet-stream")
    network(api, "public", place.public_cidr, {"router:external": True})
    network(api, "shared", place.shared_cidr, {"shared": True})


def network(api: Api, name: str, cidr: str, more: dict) -> None:
    """A provider's network; its addresses begin with the tenth."""
    body = {"name": name, "provider:network_type": "flat", "provider:physical_network": name, **more}
    number = api.post("neutron", "/v2.0/networks", {"network": body})["network"]["id"]
    addresses = ipaddress.ip_network(cidr)
    subnet = {
        "name": name,
        "network_id": number,
        "ip_version": 4,
        "cidr": cidr,
        "gateway_ip": str(addresses[1]),
        "allocation_pools": [{"start": str(addresses[10]), "end": str(addresses[-6])}],
    }
    api.post("neutron", "/v2.0/subnets", {"subnet": {**subnet, "enable_dhcp": "router:external" not in more}})


def identity_provider(place: Place, provider: str, issuer: str, groups: list[str], claim: str) -> None:
    """Let tokens of an issuer in: their subject is the user's name; with groups, only who is in one of them.

    Does nothing that is done already. Raises TestbedError.
    """
    api = Api(place, "admin", "admin")
    base = "/v3/OS-FEDERATION"
    remote = [{"type": "OIDC-sub"}]
    if groups:
        remote.append({"type": f"OIDC-{claim}", "any_one_of": groups})
    local = [{"user": {"name": "{0}"}, "group": {"name": FEDERATED, "domain": {"id": "default"}}}]
    mapping = {"mapping": {"rules": [{"local": local, "remote": remote}]}}
    known = {one["id"] for one in api.get("keystone", f"{base}/mappings")["mappings"]}
    (api.patch if provider in known else api.put)("keystone", f"{base}/mappings/{provider}", mapping)
    body = {"identity_provider": {"enabled": True, "remote_ids": [issuer]}}
    known = {one["id"] for one in api.get("keystone", f"{base}/identity_providers")["identity_providers"]}
    (api.patch if provider in known else api.put)("keystone", f"{base}/identity_providers/{provider}", body)
    protocols = f"{base}/identity_providers/{provider}/protocols"
    if "openid" not in {one["id"] for one in api.get("keystone", protocols)["protocols"]}:
        api.put("keystone", f"{protocols}/openid", {"protocol": {"mapping_id": provider}})

# SPDX-License-Identifier: Apache-2.0
"""What a deployment has in a cloud, found by its tags alone.

Servers and ports are made with their tags. Other things of neutron get them by a second request; until then it is
their description that says whose they are. Keypairs and server groups have only a name, which ends with the UUID.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError

TAG = "dodas"
HOST = "dodas:host="
NAME = "dodas:name="
DEPLOYMENT = "dodas:deployment="
# neutron's listings that are read for the whole project, since what is half-made has no tag
PLAIN = ("subnets", "routers", "security_groups", "floatingips")


def mark(uuid):
    """The tag, and the beginning of the description, of everything that is of deployment `uuid`."""
    return f"{DEPLOYMENT}{uuid}"


def tags(name, uuid, host=None):
    """The tags of a thing of the deployment, or of one of its hosts."""
    return [TAG, mark(uuid), f"{NAME}{name}", *([f"{HOST}{host}"] if host else [])]


def description(uuid, host=None):
    """The description of a thing of neutron or cinder."""
    return f"{mark(uuid)} {HOST}{host}" if host else mark(uuid)


def is_ours(thing, uuid):
    """Whether the thing of neutron carries the mark of deployment `uuid`."""
    words = (thing.get("description") or "").split()
    return mark(uuid) in thing.get("tags", []) or words[:1] == [mark(uuid)]


def host_of(thing):
    """The host that a thing is of, or None."""
    words = [*thing.get("tags", []), *(thing.get("description") or "").split()]
    return next((one.removeprefix(HOST) for one in words if one.startswith(HOST)), None)


@dataclass
class Found:
    """Listings, as the cloud gave them; all but `all_networks` only of the deployment."""

    servers: list = field(default_factory=list)
    ports: list = field(default_factory=list)
    networks: list = field(default_factory=list)
    subnets: list = field(default_factory=list)
    routers: list = field(default_factory=list)
    security_groups: list = field(default_factory=list)
    floatingips: list = field(default_factory=list)
    keypairs: list = field(default_factory=list)
    server_groups: list = field(default_factory=list)
    volumes: list = field(default_factory=list)
    all_networks: list = field(default_factory=list)

    KINDS = (
        "servers",
        "floatingips",
        "ports",
        "routers",
        "subnets",
        "networks",
        "security_groups",
        "volumes",
        "server_groups",
        "keypairs",
    )

    def names(self):
        """What there is, each as `kind name`."""
        return [f"{kind[:-1].replace('_', ' ')} {label(one)}" for kind in self.KINDS for one in getattr(self, kind)]


def label(thing):
    """How a thing is called in messages."""
    return thing.get("name") or thing.get("floating_ip_address") or thing["id"]


def find(cloud, uuid, thorough=False, volumes=False):
    """Found: everything of deployment `uuid`, in one listing of a kind, all at once.

    `volumes` are read when asked for. `thorough` also reads keypairs and server groups, which only new servers need
    besides, and finds ports that lost their tags.
    """
    own = {"project_id": cloud.project_id}

    def ports():
        listed = cloud.list("network", "/ports", "ports", tags=mark(uuid))
        if thorough:
            known = {one["id"] for one in listed}
            marked = cloud.list("network", "/ports", "ports", **own)
            listed += [one for one in marked if one["id"] not in known and is_ours(one, uuid)]
        return listed

    def plain(kind):
        listed = cloud.list("network", f"/{kind.replace('_', '-')}", kind, **own)
        return [one for one in listed if is_ours(one, uuid)]

    readers = {
        "servers": lambda: servers(cloud, uuid),
        "ports": ports,
        "all_networks": lambda: cloud.list("network", "/networks", "networks"),
        **{kind: lambda kind=kind: plain(kind) for kind in PLAIN},
    }
    if thorough:
        readers["server_groups"] = lambda: server_groups(cloud, uuid)
        readers["keypairs"] = lambda: keypairs(cloud, uuid)
    if (thorough or volumes) and cloud.has("volume"):
        readers["volumes"] = lambda: [
            one
            for one in cloud.list("volume", "/volumes/detail", "volumes")
            if (one.get("metadata") or {}).get("dodas_deployment") == uuid
        ]
    listings = dict(zip(readers, cloud.each(lambda read: read(), readers.values()), strict=True))
    found = Found(**listings)
    found.networks = [
        one for one in found.all_networks if is_ours(one, uuid) and one["project_id"] == cloud.project_id
    ]
    return found


def servers(cloud, uuid):
    """The deployment's servers with their details."""
    return cloud.list("compute", "/servers/detail", "servers", tags=mark(uuid))


def fault(cloud, server):
    """What nova says went wrong with a server in ERROR, or None; listings leave it out where it found no place."""
    try:
        told = server.get("fault") or cloud.get("compute", f"/servers/{server['id']}")["server"].get("fault") or {}
    except ApiError as exc:
        if exc.status == 404:
            return None
        raise
    return told.get("message")


def server_groups(cloud, uuid):
    """The deployment's server groups."""
    listed = cloud.list("compute", "/os-server-groups", "server_groups")
    return [one for one in listed if one["name"].startswith("dodas-") and one["name"].endswith(uuid)]


def keypairs(cloud, uuid):
    """The deployment's keypairs of this user, locks not among them."""
    listed = [one["keypair"] for one in cloud.list("compute", "/os-keypairs", "keypairs")]
    return [one for one in listed if one["name"].startswith("dodas-") and one["name"].endswith(uuid)]


def deployments(cloud):
    """What carries our tags in the project: [{"uuid", "name", "hosts", "owner", "expires"}], sorted by name."""
    own = {"project_id": cloud.project_id, "tags": TAG}
    kinds = ["servers", "networks", "ports", "routers", "security_groups", "floatingips"]

    def read(kind):
        if kind == "servers":
            return cloud.list("compute", "/servers/detail", "servers", tags=TAG)
        return cloud.list("network", f"/{kind.replace('_', '-')}", kind, **own)

    known = {}
    for kind, listed in zip(kinds, cloud.each(read, kinds), strict=True):
        for thing in listed:
            words = dict(one.split("=", 1) for one in thing.get("tags", []) if one.startswith("dodas:") and "=" in one)
            if "dodas:deployment" not in words:
                continue
            uuid = words["dodas:deployment"]
            entry = known.setdefault(uuid, {"uuid": uuid, "name": None, "hosts": [], "owner": None, "expires": None})
            entry["name"] = entry["name"] or words.get("dodas:name")
            if kind == "servers":
                metadata = thing.get("metadata") or {}
                entry["hosts"].append(words.get("dodas:host") or thing["name"])
                entry["owner"] = entry["owner"] or metadata.get("dodas_owner") or None
                entry["expires"] = entry["expires"] or metadata.get("dodas_expires") or None
    for entry in known.values():
        entry["hosts"].sort()
    return sorted(known.values(), key=lambda one: (one["name"] or "", one["uuid"]))

# SPDX-License-Identifier: Apache-2.0
"""Removes everything that carries a deployment's mark, and says what survived."""

from __future__ import annotations

import time

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import credentials
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, OpenStackError

LAST_LOOK = 60  # seconds that the listing at the end may take
CONFLICT_PATIENCE = 60  # seconds for which something may be in use by what goes at the same time


def remove(cloud, uuid, progress=None):
    """Remove the deployment and return what was there, as `kind name`. Raises OpenStackError, naming each survivor."""
    progress = progress or (lambda text: None)
    found = finding.find(cloud, uuid, thorough=True)
    removed = found.names()
    removed += [f"application credential {one}" for one in credentials.revoke(cloud, uuid)]
    if not removed:
        return []
    problems = {}  # id: why

    def attempt(thing, service, path, **options):
        try:
            cloud.delete(service, path, **options)
        except ApiError as exc:
            problems[thing["id"]] = str(exc)

    if found.servers:
        progress(f"removing {len(found.servers)} servers")
    of_servers = {}
    for port in found.ports:
        of_servers.setdefault(port.get("device_id") or None, []).append(port)
    ids = {one["id"] for one in found.servers}
    routed = {one["id"]: of_servers.pop(one["id"], []) for one in found.routers}
    loose = [port for device, several in of_servers.items() if device not in ids for port in several]

    def server(one):
        # without a port, nova has nothing to unplug, and asks neutron for less
        for port in of_servers.get(one["id"], []):
            attempt(port, "network", f"/ports/{port['id']}", conflict=True, patience=CONFLICT_PATIENCE)
        attempt(one, "compute", f"/servers/{one['id']}", conflict=True, patience=CONFLICT_PATIENCE)

    def ip(one):
        attempt(one, "network", f"/floatingips/{one['id']}", conflict=True, patience=CONFLICT_PATIENCE)

    def router(one):
        try:
            remove_router(cloud, one["id"], routed[one["id"]])
        except ApiError as exc:
            problems[one["id"]] = str(exc)

    def port(one):
        attempt(one, "network", f"/ports/{one['id']}", conflict=True, patience=CONFLICT_PATIENCE)

    cloud.each(ip, found.floatingips)
    jobs = [(router, one) for one in found.routers]
    jobs += [(server, one) for one in found.servers]
    jobs += [(port, one) for one in loose]
    cloud.each(lambda job: job[0](job[1]), jobs)
    try:
        wait_gone(cloud, uuid, [one["id"] for one in found.servers if one["id"] not in problems])
    except OpenStackError as exc:
        problems |= {one["id"]: str(exc) for one in found.servers}
    last = [(one, "network", f"/security-groups/{one['id']}") for one in found.security_groups]
    last += [(one, "network", f"/networks/{one['id']}") for one in found.networks]
    last += [(one, "compute", f"/os-server-groups/{one['id']}") for one in found.server_groups]
    last += [({"id": one["name"]}, "compute", f"/os-keypairs/{one['name']}") for one in found.keypairs]
    last += [(one, "volume", f"/volumes/{one['id']}") for one in found.volumes]
    patience = {"conflict": True, "patience": CONFLICT_PATIENCE}
    cloud.each(lambda job: attempt(*job, **patience), last)
    networks = {one["id"] for one in found.networks}
    # those of its own go with a network
    orphans = [one for one in found.subnets if one["network_id"] not in networks or one["network_id"] in problems]
    cloud.each(lambda one: attempt(one, "network", f"/subnets/{one['id']}", **patience), orphans)
    survivors = _survivors(cloud, uuid, problems)
    if survivors:
        raise OpenStackError(f"not everything could be removed: {'; '.join(survivors)}")
    return removed


def _survivors(cloud, uuid, problems):
    """What is still there, each with the reason, even when the time is over; volumes take a moment to go."""
    cloud.deadline = max(cloud.deadline or 0, time.monotonic() + LAST_LOOK)
    while True:
        left = finding.find(cloud, uuid, thorough=True)
        if not left.volumes or any(one["id"] in problems for one in left.volumes) or cloud.left() < LAST_LOOK / 2:
            break
        cloud.pause(1)
    texts = []
    for kind in left.KINDS:
        for one in getattr(left, kind):
            why = problems.get(one.get("id", one["name"]))
            text = f"{kind[:-1].replace('_', ' ')} {finding.label(one)}"
            if kind == "networks":
                why = _users(cloud, one["id"]) or why
            texts.append(f"{text} ({why})" if why else text)
    return texts


def _users(cloud, network_id):
    """Who is still on a network, for a message."""
    ports = cloud.list("network", "/ports", "ports", network_id=network_id)
    users = [f"port {one['name'] or one['id']} of {one['device_owner'] or 'nobody'}" for one in ports]
    return f"in use by {', '.join(users[:5])}" if users else None


def wait_gone(cloud, uuid, ids):
    """Wait until the deployment's servers `ids` are gone. Raises OpenStackError, naming what stays."""
    ids, interval = set(ids), 0.3
    while ids:
        there = cloud.list("compute", "/servers", "servers", tags=finding.mark(uuid))
        left = [one for one in there if one["id"] in ids]
        if not left:
            return
        if cloud.left() <= interval:
            names = ", ".join(sorted(one["name"] for one in left)[:5])
            raise OpenStackError(f"nova did not remove {len(left)} servers in time, such as {names}")
        cloud.pause(interval)
        interval = min(interval * 1.3, 2)


def remove_router(cloud, router_id, ports):
    """Remove a router and its ports on networks, which neutron removes as it takes them off."""
    for one in ports:
        if one.get("device_id") == router_id:
            path = f"/routers/{router_id}/remove_router_interface"
            try:
                cloud.put("network", path, {"port_id": one["id"]}, conflict=True, patience=CONFLICT_PATIENCE)
            except ApiError as exc:
                if exc.status != 404:
                    raise
    cloud.delete("network", f"/routers/{router_id}", conflict=True, patience=CONFLICT_PATIENCE)

# SPDX-License-Identifier: Apache-2.0
"""A deployment's hosts as servers of a cloud: plan, apply, remove."""

from __future__ import annotations

import time

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import apply as applying
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import lock, spec, teardown
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import plan as planning
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.catalogue import Catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError, Quota

deployments = finding.deployments
QUOTA_READS = 3  # nova counts twice what it moves at the moment
QUOTA_PAUSE = 4  # seconds between them


class OpenStackCluster:
    """The hosts of deployment `name` with `uuid` in `cloud`.

    `progress`: a callable(text). `public_key`: a line for the keypair that servers are made with, or None for none.
    `state_dir` is not needed: everything is found in the cloud.
    """

    def __init__(self, cloud, name, uuid, state_dir=None, progress=None, public_key=None):
        if not deployment.valid_name(name):
            raise OpenStackError(f"name: {name!r} must match {deployment.NAME}")
        self.cloud = cloud
        self.name = name
        self.uuid = spec.valid_uuid(uuid)
        self.state_dir = state_dir
        self.progress = progress
        self.public_key = public_key
        self.applied = None

    def plan(self, wanted, user_data=None):
        """The Plan for `wanted`, see spec.parse; changes nothing. `user_data` never makes a difference.

        Raises OpenStackError for what the cloud does not have, Quota where the project may not have as much.
        """
        found = finding.find(self.cloud, self.uuid, volumes=bool(wanted.settings.volumes))
        catalogue = Catalogue(self.cloud, found.all_networks)
        plan = planning.make(self.cloud, wanted, found, catalogue, self.public_key)
        self._check_quotas(plan, catalogue)
        return plan

    def apply(self, wanted, user_data=None, timeout=900):
        """Make the cloud be as `wanted` within `timeout` seconds.

        `user_data`: {host: text}, or a callable(host) that is asked only for new servers. Returns {host: {"address",
        "public_address", "id", "jump"}}; `jump` is the host through which one without a public address is reached.
        Raises Busy when another run is at it, and other OpenStackErrors; a later run finishes what is half-made.
        """
        self.cloud.deadline = time.monotonic() + timeout
        plan = self.plan(wanted)
        if plan.changed:
            with lock.held(self.cloud, self.uuid, timeout):
                plan = self.plan(wanted)
                applier = applying.Applier(self.cloud, plan, user_data, self.public_key, self.progress)
                hosts = applier.run()
        else:
            hosts = plan.addresses
        self.applied = plan
        return reached({name: hosts[name] for name in (one.name for one in wanted.hosts)}, wanted.front)

    def found(self):
        """The hosts there are: {host: {"address", "public_address", "id", "jump", "status", "node", "roles", ...}}."""
        found = finding.find(self.cloud, self.uuid)
        ips = {one["port_id"]: one["floating_ip_address"] for one in found.floatingips if one.get("port_id")}
        ports = {one["device_id"]: one for one in found.ports if one.get("device_id")}
        hosts = {}
        for one in sorted(found.servers, key=lambda one: one["name"]):
            port = ports.get(one["id"]) or {}
            fixed = port.get("fixed_ips") or [{}]
            metadata = one.get("metadata") or {}
            hosts[finding.host_of(one) or one["name"]] = {
                "address": fixed[0].get("ip_address"),
                "public_address": ips.get(port.get("id")),
                "id": one["id"],
                "status": one["status"],
                "flavor": one["flavor"].get("original_name"),
                "node": metadata.get("dodas_node"),
                "roles": [role for role in metadata.get("dodas_roles", "").split(",") if role],
                "owner": metadata.get("dodas_owner"),
                "expires": metadata.get("dodas_expires"),
            }
        public = [name for name, one in hosts.items() if one["public_address"]]
        return reached(hosts, public[0] if public else None)

    def remove(self, timeout=600):
        """Remove everything that carries the deployment's mark; returns what was there, as `kind name`.

        Raises Busy when another run is at it, OpenStackError naming each thing that survived.
        """
        self.cloud.deadline = time.monotonic() + timeout
        with lock.held(self.cloud, self.uuid, timeout):
            return teardown.remove(self.cloud, self.uuid, self.progress)

    def _check_quotas(self, plan, catalogue):
        if not plan.needs:
            return
        for attempt in range(QUOTA_READS):
            lacks = catalogue.lacks(plan.needs)
            if not lacks:
                return
            if attempt < QUOTA_READS - 1:
                self.cloud.pause(QUOTA_PAUSE)
                catalogue = Catalogue(self.cloud, catalogue.networks)
        raise Quota(
            f"the project's quotas leave too little: {'; '.join(lacks)}. Ask the site for more, or take fewer or "
            "smaller hosts; nothing was made"
        )


def reached(hosts, front):
    """The hosts, each with `jump`: the front for those without a public address, when it has one."""
    jump = front if hosts.get(front, {}).get("public_address") else None
    return {
        name: {**one, "jump": jump if name != front and not one.get("public_address") else None}
        for name, one in hosts.items()
    }

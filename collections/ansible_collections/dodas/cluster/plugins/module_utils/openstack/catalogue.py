# SPDX-License-Identifier: Apache-2.0
"""What a cloud has to choose from: images, flavors, networks, zones and quotas, each read at most once."""

from __future__ import annotations

import math
from functools import cached_property

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, OpenStackError, nearest

MIB = 1024**2 / 1000**2  # MB in nova's MB
LEAST_CPUS, LEAST_MB = 1, 1000  # of hosts that ask for nothing
UNLIMITED = -1


class Catalogue:
    """The catalogue of `cloud`; `networks` is a listing that was made already, or None."""

    def __init__(self, cloud, networks=None):
        self._cloud = cloud
        if networks is not None:
            self.networks = networks

    @cached_property
    def images(self):
        return self._cloud.list("image", "/images", "images", limit=1000, sort="created_at:desc", status="active")

    @cached_property
    def flavors(self):
        return self._cloud.list("compute", "/flavors/detail", "flavors")

    @cached_property
    def networks(self):
        return self._cloud.list("network", "/networks", "networks")

    @cached_property
    def zones(self):
        zones = self._cloud.get("compute", "/os-availability-zone")["availabilityZoneInfo"]
        return [one["zoneName"] for one in zones if one["zoneState"].get("available")]

    @cached_property
    def compute_limits(self):
        """Nova's limits and what is used of them, as nova names them."""
        return self._cloud.get("compute", "/limits")["limits"]["absolute"]

    @cached_property
    def volume_limits(self):
        return self._cloud.get("volume", "/limits")["limits"]["absolute"]

    @cached_property
    def network_quotas(self):
        """{"port": {"limit", "used", "reserved"}, ...}, or {} where neutron does not tell."""
        try:
            return self._cloud.get("network", f"/quotas/{self._cloud.project_id}/details.json")["quota"]
        except ApiError as exc:
            if exc.status in (403, 404):
                return {}
            raise

    def image(self, wish):
        """The newest active image for a name, an id, tag:TAG, property:KEY=VALUE, or None for the best Debian.

        That is one made by `dodas images build`, or else the newest Debian 12. Raises OpenStackError.
        """
        if wish is None:
            ours = [one for one in self.images if one.get("dodas_content")]
            plain = [one for one in self.images if (one.get("os_distro"), one.get("os_version")) == ("debian", "12")]
            if not (ours or plain):
                plain = [one for one in self.images if (one.get("name") or "").lower().startswith("debian-12")]
            if not (ours or plain):
                raise OpenStackError(
                    f"settings.image: the cloud has no Debian 12 image; choose one{nearest('debian-12', self._names)}"
                )
            return (ours or plain)[0]
        kind, _colon, rest = wish.partition(":")
        if kind == "tag" and rest:
            found = [one for one in self.images if rest in one.get("tags", [])]
            others = {f"tag:{tag}" for one in self.images for tag in one.get("tags", [])}
        elif kind == "property" and "=" in rest:
            key, _equals, value = rest.partition("=")
            found = [one for one in self.images if str(one.get(key)) == value]
            others = {f"property:{key}={one[key]}" for one in self.images if isinstance(one.get(key), str)}
        else:
            found = [one for one in self.images if wish in (one["id"], one.get("name"))]
            others = self._names
        if not found:
            raise OpenStackError(f"settings.image: the cloud has no active image {wish}{nearest(wish, others)}")
        return found[0]

    @property
    def _names(self):
        return {one.get("name") for one in self.images}

    def flavor(self, wish, host, image, volume_gb=None, prices=None):
        """The flavor named `wish`, or the smallest with the host's cpus, mem_mb and disk_gb, that can run `image`.

        The smallest has the lowest price, where all have one, then the fewest cpus, memory and disk.
        """
        where = f"settings.flavor (host {host.name})"
        if wish:
            found = [one for one in self.flavors if wish in (one["id"], one["name"])]
            if not found:
                names = {one["name"] for one in self.flavors}
                raise OpenStackError(f"{where}: the cloud has no flavor {wish}{nearest(wish, names)}")
            self._can_run(where, found[0], image, volume_gb)
            return found[0]
        cpus, memory = host.cpus or LEAST_CPUS, host.mem_mb or LEAST_MB
        memory = max(memory, (image.get("min_ram") or 0) * MIB)
        disk = 0 if volume_gb else max((host.disk_gb or 0) * 1000**3 / 1024**3, image.get("min_disk") or 0)
        fit = [
            one
            for one in self.flavors
            if one["vcpus"] >= cpus and one["ram"] * MIB >= memory and one["disk"] >= disk and not _special(one)
        ]
        if not fit:
            largest = max(self.flavors, key=lambda one: (one["vcpus"], one["ram"]), default=None)
            has = f"the largest is {_described(largest)}" if largest else "it has none at all"
            raise OpenStackError(
                f"host {host.name}: the cloud has no flavor with {cpus:g} cpus, {memory:.0f} MB of memory and "
                f"{disk:g} GB of disk; {has}"
            )
        priced = prices and all(one["name"] in prices for one in fit)
        return min(
            fit,
            key=lambda one: (
                prices[one["name"]] if priced else 0,
                one["vcpus"],
                one["ram"],
                one["disk"],
                one["name"],
            ),
        )

    @staticmethod
    def _can_run(where, flavor, image, volume_gb):
        if flavor["ram"] < (image.get("min_ram") or 0):
            needs = f"image {image['name']} needs {image['min_ram']} MB"
            raise OpenStackError(f"{where}: {_described(flavor)}, but {needs}")
        disk = volume_gb or flavor["disk"]
        if 0 < disk < (image.get("min_disk") or 0):
            raise OpenStackError(f"{where}: {disk} GB of disk, but image {image['name']} needs {image['min_disk']} GB")

    def network(self, wish):
        """The network with this name or id. Raises OpenStackError, also when several have the name."""
        return self._one_network("settings.network", wish, self.networks)

    def external(self, wish):
        """The external network with this name or id, or the only one for None; None where the cloud has none."""
        external = [one for one in self.networks if one.get("router:external")]
        if wish:
            return self._one_network("settings.external_network", wish, external, "external network")
        if len(external) > 1:
            names = ", ".join(sorted(one["name"] for one in external))
            raise OpenStackError(f"settings.external_network: choose one of {names}")
        return external[0] if external else None

    @staticmethod
    def _one_network(where, wish, networks, kind="network"):
        found = [one for one in networks if one["id"] == wish] or [one for one in networks if one["name"] == wish]
        if not found:
            raise OpenStackError(
                f"{where}: the cloud has no {kind} {wish}{nearest(wish, {one['name'] for one in networks})}"
            )
        if len(found) > 1:
            raise OpenStackError(f"{where}: {len(found)} networks are named {wish}; give the id of one")
        return found[0]

    def zone(self, wish):
        """The availability zone `wish`. Raises OpenStackError where there is none such, or it takes no servers."""
        if wish not in self.zones:
            raise OpenStackError(
                f"settings.availability_zone: the cloud has no available zone {wish}{nearest(wish, self.zones)}"
            )
        return wish

    def lacks(self, needs):
        """What quotas leave too little of, one text each, for `needs` {kind: number}.

        Kinds: instances, cores, ram (nova's MB), server_groups, server_group_members, keypairs, port, floatingip,
        network, subnet, router, security_group, security_group_rule, volumes, gigabytes.
        """
        lacks = []
        for kind, number in needs.items():
            limit, used = self._quota(kind) if number > 0 else (None, 0)
            if limit is not None and limit != UNLIMITED and used + number > limit:
                unit = {"ram": " MB", "gigabytes": " GB"}.get(kind, "")
                free = max(0, limit - used)
                lacks.append(
                    f"{kind}: {math.ceil(number)}{unit} more needed, {free}{unit} free ({used} of {limit}{unit} in use)"
                )
        return lacks

    def _quota(self, kind):
        """(limit, used), limit None when the cloud does not tell."""
        if kind in _COMPUTE_LIMITS:
            limit, used = _COMPUTE_LIMITS[kind]
            return self.compute_limits.get(limit), self.compute_limits.get(used, 0)
        if kind in _VOLUME_LIMITS:
            limit, used = _VOLUME_LIMITS[kind]
            return self.volume_limits.get(limit), self.volume_limits.get(used, 0)
        quota = self.network_quotas.get(kind) or {}
        return quota.get("limit"), quota.get("used", 0) + int(quota.get("reserved", 0))


_COMPUTE_LIMITS = {
    "instances": ("maxTotalInstances", "totalInstancesUsed"),
    "cores": ("maxTotalCores", "totalCoresUsed"),
    "ram": ("maxTotalRAMSize", "totalRAMUsed"),
    "server_groups": ("maxServerGroups", "totalServerGroupsUsed"),
    "server_group_members": ("maxServerGroupMembers", ""),
    "keypairs": ("maxTotalKeypairs", ""),
}
_VOLUME_LIMITS = {
    "volumes": ("maxTotalVolumes", "totalVolumesUsed"),
    "gigabytes": ("maxTotalVolumeGigabytes", "totalGigabytesUsed"),
}


def _special(flavor):
    """Whether a flavor has devices or is a whole machine: nobody should get such by size alone."""
    extra = flavor.get("extra_specs") or {}
    return any(key.startswith(("pci_passthrough:", "resources:VGPU", "resources:CUSTOM_")) for key in extra)


def _described(flavor):
    return f"{flavor['name']} with {flavor['vcpus']} cpus, {flavor['ram']} MB of memory and {flavor['disk']} GB of disk"

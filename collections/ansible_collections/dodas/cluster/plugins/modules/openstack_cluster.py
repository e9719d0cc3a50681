#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: openstack_cluster
short_description: Hosts of a deployment in an OpenStack cloud
version_added: 0.1.0
description:
  - Makes servers, and the network, router, security groups, ports, keypair, server groups, volumes and floating IPs
    that they need, and removes them.
  - Everything carries the tag of the deployment; nothing without it is changed or removed.
  - A server that is in error, gone, or was changed by hand is replaced; one that was stopped is started.
  - What a run that was killed has left half-made is finished by the next one, or removed with the deployment.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.openstack
options:
  name:
    description: The deployment's name.
    type: str
    required: true
  uuid:
    description:
      - What tells the deployment from others of that name.
      - By default the one in O(state_dir), which is made there where it is missing.
    type: str
  state_dir:
    description: The deployment's directory for keys and addresses. Needed for O(state=present).
    type: path
  hosts:
    description:
      - The hosts that there shall be; others of the deployment are removed. Needed for O(state=present).
      - The first one is the front, through which the others are reached.
    type: list
    elements: dict
    suboptions:
      name:
        description: The host's name.
        type: str
        required: true
      node:
        description: The node of the template that the host is of. By default its name without the number.
        type: str
      cpus:
        description: CPUs that its flavor must have.
        type: float
      mem_mb:
        description: Memory in MB that its flavor must have.
        type: int
      disk_gb:
        description: Disk in GB that its flavor must have.
        type: float
      roles:
        description: The host's roles.
        type: list
        elements: str
  settings:
    description: Which cloud, and what is made there.
    type: dict
    suboptions:
      name:
        description: Entry of C(clouds.yaml). By default that of E(OS_CLOUD), or the C(OS_*) variables.
        type: str
      region:
        description: The cloud's region.
        type: str
      image:
        description:
          - Image of new servers, by its name or id, by V(tag:TAG) or V(property:KEY=VALUE).
            The newest that fits is taken.
          - By default the newest that was made by C(dodas images build), or else the newest Debian 12.
        type: str
      flavor:
        description:
          - Flavor by its name or id, or a mapping with one for each node.
          - By default the smallest that has what the host asks for.
        type: raw
      network:
        description: Name or id of an existing network that hosts are put on. By default a network is made.
        type: str
      cidr:
        description: Addresses of the network that is made. By default V(10.88.0.0/24).
        type: str
      nameservers:
        description: Name servers of the network that is made.
        type: list
        elements: str
      external_network:
        description: Network that floating IPs come from. By default the only external one.
        type: str
      floating_ips:
        description:
          - Hosts that get a floating IP.
          - By default V(front), and V(none) on a O(settings.network) without a router.
        type: str
        choices: [front, all, none]
      ssh_from:
        description: CIDRs from which hosts take ssh. By default everywhere.
        type: list
        elements: str
      open_ports:
        description: Ports of the front that are open.
        type: list
        elements: dict
        suboptions:
          port:
            description: A port, or a range such as V(9000-9010).
            type: str
            required: true
          protocol:
            description: Its protocol. By default V(tcp).
            type: str
            choices: [tcp, udp]
          from:
            description: CIDRs for which it is open. By default everywhere.
            type: list
            elements: str
      availability_zone:
        description: Availability zone of new servers and volumes.
        type: str
      anti_affinity:
        description:
          - Whether new servers of a node are kept on different hypervisors, V(soft) where possible, V(hard) always.
          - By default V(none).
        type: str
        choices: [none, soft, hard]
      boot_volume_gb:
        description: New servers boot from a volume of this size.
        type: int
      volume_type:
        description: Type of the volumes.
        type: str
      volumes:
        description: Volumes of hosts. They stay when a server is replaced, and go with their host.
        type: list
        elements: dict
        suboptions:
          node:
            description: The node whose hosts have one each.
            type: str
            required: true
          size_gb:
            description: Its size.
            type: int
            required: true
          mount:
            description: Where it is mounted.
            type: str
      shared_addresses:
        description: Addresses that hosts may take over from each other.
        type: list
        elements: dict
        suboptions:
          name:
            description: The address's name.
            type: str
            required: true
          hosts:
            description: The hosts that may have it.
            type: list
            elements: str
          node:
            description: The node all of whose hosts may have it.
            type: str
      owner:
        description: Who answers for the deployment, a label on its servers.
        type: str
      expires:
        description:
          - When the deployment may be removed, a label on its servers, such as V(2030-01-31T12:00:00Z).
          - V(12h), V(7d) and V(2w) count from the first server's creation.
        type: str
      prices:
        description: Price of an hour of each flavor.
        type: dict
      currency:
        description: Currency of the prices. By default V(EUR).
        type: str
      authorized_keys:
        description: SSH public keys of people who may log in besides.
        type: list
        elements: str
      apt_mirror:
        description: Debian mirror of the hosts.
        type: str
      proxy:
        description: HTTP proxy by which hosts reach the world.
        type: str
      quota_check:
        description: Whether the project's quotas are compared before anything is made. By default they are.
        type: bool
  timeout:
    description: Seconds within which all must be done.
    type: int
    default: 900
  state:
    description: Whether the hosts shall be there.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: dodas.cluster.openstack_cluster_info
"""

EXAMPLES = r"""
- name: A front that is reached from outside, and two workers behind it
  dodas.cluster.openstack_cluster:
    name: tier3
    state_dir: /var/lib/dodas/deployments/tier3
    hosts:
      - {name: front-1, node: front, cpus: 2, mem_mb: 4000}
      - {name: worker-1, node: worker, cpus: 4, mem_mb: 8000}
      - {name: worker-2, node: worker, cpus: 4, mem_mb: 8000}
    settings:
      name: site
      image: debian-12
      ssh_from: [192.0.2.0/24]
      owner: physicist@example.org
      expires: 7d

- name: Remove a deployment whose directory is lost
  dodas.cluster.openstack_cluster:
    name: tier3
    uuid: 8c6c4c0e-0a2e-4a6c-9d43-0e8f3c7d2f10
    settings: {name: site}
    state: absent
"""

RETURN = r"""
hosts:
  description:
    - Each host with its C(address), C(public_address), server C(id), and C(jump), the host through which it is reached.
    - In check mode those that are there already.
  returned: when O(state=present)
  type: dict
plan:
  description: What was done, or in check mode would be.
  returned: always
  type: dict
  contains:
    create:
      description: Hosts whose servers are made.
      returned: always
      type: list
      elements: str
    replace:
      description: Hosts whose servers are removed and made again.
      returned: always
      type: list
      elements: str
    remove:
      description: Hosts whose servers are removed.
      returned: always
      type: list
      elements: str
    drift:
      description: What somebody changed by hand, in words.
      returned: always
      type: list
      elements: str
    steps:
      description: Lists of things under C(create), C(update), C(replace) and C(delete).
      returned: when O(state=present)
      type: dict
size:
  description: The deployment's size and price, such as C(vcpus), C(memory_mb), C(floating_ips) and C(per_hour).
  returned: when O(state=present)
  type: dict
summary:
  description: The plan, the size and the price for people.
  returned: always
  type: str
removed:
  description: What was removed.
  returned: when O(state=absent)
  type: list
  elements: str
uuid:
  description: What tells the deployment from others of that name.
  returned: always
  type: str
calls:
  description: The number of requests to the cloud, by method and service.
  returned: always
  type: dict
"""

import uuid as uuids

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.cloudinit import Seed
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud, found, spec
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.cluster import OpenStackCluster, reached
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from ansible_collections.dodas.cluster.plugins.module_utils.sshkeys import SshKeys

_TEXT = {"type": "str"}
_WORDS = {"type": "list", "elements": "str"}
_HOST = {
    "name": {"type": "str", "required": True},
    "node": _TEXT,
    "cpus": {"type": "float"},
    "mem_mb": {"type": "int"},
    "disk_gb": {"type": "float"},
    "roles": _WORDS,
}
_PORT = {
    "port": {"type": "str", "required": True},
    "protocol": {"type": "str", "choices": ["tcp", "udp"]},
    "from": _WORDS,
}
_VOLUME = {
    "node": {"type": "str", "required": True},
    "size_gb": {"type": "int", "required": True},
    "mount": _TEXT,
}
_SHARED = {"name": {"type": "str", "required": True}, "hosts": _WORDS, "node": _TEXT}
_SETTINGS = {
    "name": _TEXT,
    "region": _TEXT,
    "image": _TEXT,
    "flavor": {"type": "raw"},
    "network": _TEXT,
    "cidr": _TEXT,
    "nameservers": _WORDS,
    "external_network": _TEXT,
    "floating_ips": {"type": "str", "choices": ["front", "all", "none"]},
    "ssh_from": _WORDS,
    "open_ports": {"type": "list", "elements": "dict", "options": _PORT},
    "availability_zone": _TEXT,
    "anti_affinity": {"type": "str", "choices": ["none", "soft", "hard"]},
    "boot_volume_gb": {"type": "int"},
    "volume_type": _TEXT,
    "volumes": {"type": "list", "elements": "dict", "options": _VOLUME},
    "shared_addresses": {"type": "list", "elements": "dict", "options": _SHARED},
    "owner": _TEXT,
    "expires": _TEXT,
    "prices": {"type": "dict"},
    "currency": _TEXT,
    "authorized_keys": {"type": "list", "elements": "str", "no_log": False},
    "apt_mirror": _TEXT,
    "proxy": _TEXT,
    "quota_check": {"type": "bool"},
}


def main():
    module = Module(
        argument_spec={
            "name": {"type": "str", "required": True},
            "uuid": _TEXT,
            "state_dir": {"type": "path"},
            "hosts": {"type": "list", "elements": "dict", "options": _HOST},
            "settings": {"type": "dict", "options": _SETTINGS},
            "timeout": {"type": "int", "default": 900},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("state_dir", "hosts")), ("state", "absent", ("state_dir", "uuid"), True)],
        supports_check_mode=True,
    )
    parameters = module.params
    settings = {key: _given(value) for key, value in (parameters["settings"] or {}).items() if value is not None}
    act = {"present": present, "absent": absent}[parameters["state"]]
    try:
        uuid = parameters["uuid"] or _uuid(parameters["state_dir"], parameters["state"], module.check_mode)
        if uuid is None:
            nothing = {"plan": _plan({}), "removed": [], "summary": "nothing to remove", "calls": {}}
            module.exit_json(changed=False, uuid=None, **nothing)
        module.exit_json(uuid=uuid, **act(module, uuid, settings))
    except (OSError, ValueError, OpenStackError) as exc:
        module.fail_json(msg=str(exc))


def present(module, uuid, settings):
    parameters = module.params
    name, state_dir = parameters["name"], parameters["state_dir"]
    hosts = [_given(one) for one in parameters["hosts"]]
    wanted = spec.parse(name, uuid, hosts, settings)  # mistakes are named before anybody is asked
    site = cloud.connect(settings.get("name"), settings.get("region"), timeout=parameters["timeout"])
    key = None
    if not module.check_mode:
        keys = SshKeys(state_dir, name)
        keys.make()
        key = keys.public_key
    cluster = OpenStackCluster(site, name, uuid, state_dir, public_key=key)
    if module.check_mode:
        plan = cluster.plan(wanted)
        hosts = reached(plan.addresses, wanted.front)
    else:
        hosts = cluster.apply(wanted, Seed(state_dir, name, settings), parameters["timeout"])
        plan = cluster.applied
        deployment.write_json(f"{state_dir}/hosts.json", hosts)
        for host in plan.hosts["remove"]:
            keys.forget(host)
    steps = plan.as_dict()
    return {
        "changed": plan.changed,
        "hosts": hosts,
        "plan": _plan(plan.hosts, plan.drift)
        | {"steps": {verb: steps[verb] for verb in ("create", "update", "replace", "delete")}},
        "size": plan.summary,
        "summary": plan.text(),
        "diff": {"before": _lines(plan.before), "after": _lines(plan.after)},
        "calls": dict(site.calls),
    }


def absent(module, uuid, settings):
    parameters = module.params
    site = cloud.connect(settings.get("name"), settings.get("region"), timeout=parameters["timeout"])
    cluster = OpenStackCluster(site, parameters["name"], uuid, parameters["state_dir"])
    if module.check_mode:
        removed = found.find(site, uuid, thorough=True).names()
    else:
        removed = cluster.remove(parameters["timeout"])
    hosts = [one.removeprefix("server ") for one in removed if one.startswith("server ")]
    names = [one.removeprefix(f"{parameters['name']}-") for one in hosts]
    return {
        "changed": bool(removed),
        "plan": _plan({"remove": names}),
        "removed": removed,
        "summary": "\n".join(f"remove {one}" for one in removed) or "nothing to remove",
        "diff": {"before": _lines(removed), "after": ""},
        "calls": dict(site.calls),
    }


def _plan(hosts, drift=()):
    return {verb: list(hosts.get(verb, [])) for verb in ("create", "replace", "remove")} | {"drift": list(drift)}


def _lines(lines):
    return "".join(f"{one}\n" for one in lines)


def _given(value):
    """The value without what was not given."""
    if isinstance(value, dict):
        return {key: _given(one) for key, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list) else value


def _uuid(state_dir, state, check_mode):
    """The deployment's UUID. Where there is none yet, one is made; in check mode it is not kept."""
    if state == "absent":
        return deployment.uuid(state_dir, make=False)
    return deployment.uuid(state_dir, make=not check_mode) or str(uuids.uuid4())


if __name__ == "__main__":
    main()

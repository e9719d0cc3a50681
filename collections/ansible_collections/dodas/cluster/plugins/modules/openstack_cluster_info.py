#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: openstack_cluster_info
short_description: Hosts of deployments in an OpenStack cloud
version_added: 0.1.0
description:
  - Lists the hosts that M(dodas.cluster.openstack_cluster) made, as the cloud has them, and the deployments of a
    project.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  - dodas.cluster.attributes.info
  - dodas.cluster.openstack
options:
  uuid:
    description: The deployment whose hosts are wanted.
    type: str
  cloud:
    description: Entry of C(clouds.yaml). By default that of E(OS_CLOUD), or the C(OS_*) variables.
    type: str
  region:
    description: The cloud's region.
    type: str
  timeout:
    description: Seconds within which the cloud must have answered.
    type: int
    default: 120
seealso:
  - module: dodas.cluster.openstack_cluster
"""

EXAMPLES = r"""
- name: List the deployments of a project
  dodas.cluster.openstack_cluster_info:
    cloud: site

- name: List the hosts of one
  dodas.cluster.openstack_cluster_info:
    cloud: site
    uuid: 8c6c4c0e-0a2e-4a6c-9d43-0e8f3c7d2f10
"""

RETURN = r"""
hosts:
  description:
    - Each host with its C(address), C(public_address), server C(id), C(status), C(flavor), C(node), C(owner),
      C(expires) and C(jump), the host through which it is reached.
  returned: when O(uuid) is given
  type: dict
deployments:
  description: Each deployment of the project with its C(uuid), C(name), C(hosts), C(owner) and C(expires).
  returned: always
  type: list
  elements: dict
"""

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.cluster import OpenStackCluster, deployments
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError


def main():
    text = {"type": "str"}
    module = Module(
        argument_spec={"uuid": text, "cloud": text, "region": text, "timeout": {"type": "int", "default": 120}},
        supports_check_mode=True,
    )
    parameters = module.params
    try:
        site = cloud.connect(parameters["cloud"], parameters["region"], timeout=parameters["timeout"])
        result = {"deployments": deployments(site)}
        if parameters["uuid"]:
            known = {one["uuid"]: one["name"] for one in result["deployments"]}
            name = known.get(parameters["uuid"].lower()) or "unknown"
            result["hosts"] = OpenStackCluster(site, name, parameters["uuid"]).found()
        module.exit_json(changed=False, **result)
    except (OSError, OpenStackError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

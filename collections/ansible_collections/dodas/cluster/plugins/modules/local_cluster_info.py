#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: local_cluster_info
short_description: Hosts of a deployment on this machine
version_added: 0.1.0
description:
  - Lists the hosts that M(dodas.cluster.local_cluster) made, with their states and addresses.
author: [The dodas developers (@dodas)]
requirements: [podman, root]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  name:
    description: The deployment's name.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: List the hosts
  dodas.cluster.local_cluster_info:
    name: tier3
"""

RETURN = r"""
hosts:
  description: State and address of each host.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.local.cluster import LocalCluster
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, PodmanError


def main():
    module = AnsibleModule(argument_spec={"name": {"type": "str", "required": True}}, supports_check_mode=True)
    try:
        podman = Podman(deployment.home())
        podman.configure()
        cluster = LocalCluster(module.params["name"], "/nonexistent", podman)
        module.exit_json(changed=False, hosts=cluster.found())
    except (OSError, ValueError, PodmanError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

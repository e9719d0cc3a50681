#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_access
short_description: Wait until hosts of a deployment can be logged in to
version_added: 0.1.0
description:
  - Runs on the controller. Logs in to all hosts at once, as root, with the deployment's key, and waits there until
    cloud-init has done what the host was told at its first boot.
  - A host must have the key that the deployment made for it.
  - Fails when the time is over, and names each host that did not answer, with the reason.
  - Writes the names of the hosts and their keys to the deployment's own list of known hosts.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  hosts:
    description: The hosts by name, each with C(address), and as far as they have it C(public_address), C(id), C(jump).
    type: dict
    required: true
  state_dir:
    description: The deployment's directory, where its keys are.
    type: path
    required: true
  timeout:
    description: Seconds until all hosts must have booted.
    type: int
    default: 300
  at_once:
    description: How many hosts are tried at a time.
    type: int
    default: 32
"""

EXAMPLES = r"""
- name: Wait until hosts have booted
  dodas.cluster.host_access:
    hosts:
      front-1: {address: 10.88.0.5, public_address: 203.0.113.10}
      worker-1: {address: 10.88.0.6, jump: front-1}
    state_dir: /var/lib/dodas/deployments/tier3
  delegate_to: localhost
"""

RETURN = r"""
seconds:
  description: How long each host took.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import access


def main():
    module = AnsibleModule(
        argument_spec={
            "hosts": {"type": "dict", "required": True},
            "state_dir": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 300},
            "at_once": {"type": "int", "default": 32},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, seconds={})
    try:
        took = access.wait(given["state_dir"], given["hosts"], given["timeout"], given["at_once"])
        module.exit_json(changed=False, seconds=took)
    except (OSError, ValueError, access.AccessError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

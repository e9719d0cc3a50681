#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: consul_acl_info
short_description: Look at who may do what in Consul
version_added: 0.1.0
description:
  - Policies with their rules, and which tokens have them; no token itself.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  url:
    description: Address of the Consul agent.
    type: str
    default: http://127.0.0.1:8500
  token:
    description: The management token, or another that may read access rules.
    type: str
    required: true
seealso:
  - module: dodas.cluster.consul_acl
"""

EXAMPLES = r"""
- name: Look at the rules
  dodas.cluster.consul_acl_info:
    token: "{{ consul_tokens.management }}"
  register: access
"""

RETURN = r"""
policies:
  description: Rules by the policy's name.
  returned: always
  type: dict
tokens:
  description: Description and policies of each token.
  returned: always
  type: list
  elements: dict
"""

import platform

from ansible_collections.dodas.cluster.plugins.module_utils.consul import Consul, ConsulError
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module


def main():
    module = Module(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8500"},
            "token": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    consul = Consul(module.params["url"], module.params["token"])
    try:
        policies = {
            one["Name"]: consul.call("GET", f"/v1/acl/policy/{one['ID']}")["Rules"]
            for one in consul.call("GET", "/v1/acl/policies")
        }
        tokens = [
            {
                "description": one["Description"],
                "policies": [policy["Name"] for policy in one.get("Policies") or []],
            }
            for one in consul.call("GET", "/v1/acl/tokens")
        ]
    except ConsulError as exc:
        module.fail_json(msg=f"{platform.node()}: {exc}")
    module.exit_json(changed=False, policies=policies, tokens=tokens)


if __name__ == "__main__":
    main()

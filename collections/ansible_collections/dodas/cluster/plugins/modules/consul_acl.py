#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: consul_acl
short_description: Who may do what in Consul
version_added: 0.1.0
description:
  - Gives each use of Consul a policy and a token that is known beforehand, so that who needs one can be configured
    before Consul runs.
  - A token that had the same use before is removed; policies and tokens that others made are left alone.
  - Waits until the servers have a leader that takes the management token.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes, dodas.cluster.attributes.diff]
attributes:
  diff_mode:
    details: Shows policies, and never a token.
options:
  url:
    description: Address of the Consul agent.
    type: str
    default: http://127.0.0.1:8500
  token:
    description: The management token, which the servers' configuration names.
    type: str
    required: true
  grants:
    description: The uses.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Lower-case letters, digits and underscores.
        type: str
        required: true
      rules:
        description: Rules of its policy, in Consul's language.
        type: str
        required: true
      token:
        description: Its token, a UUID.
        type: str
        required: true
  timeout:
    description: Seconds to wait for a leader that takes the management token.
    type: int
    default: 60
seealso:
  - module: dodas.cluster.consul_acl_info
"""

EXAMPLES = r"""
- name: Let the balancer read the catalogue
  dodas.cluster.consul_acl:
    token: "{{ consul_tokens.management }}"
    grants:
      - name: balancer
        rules: |
          node_prefix "" { policy = "read" }
          service_prefix "" { policy = "read" }
        token: "{{ consul_tokens.balancer }}"
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode.
  returned: always
  type: list
  elements: str
"""

import platform

from ansible_collections.dodas.cluster.plugins.module_utils.consul import Access, Consul, ConsulError, Grant
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module


def main():
    grant = {
        "name": {"type": "str", "required": True},
        "rules": {"type": "str", "required": True},
        "token": {"type": "str", "required": True, "no_log": True},
    }
    module = Module(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8500"},
            "token": {"type": "str", "required": True, "no_log": True},
            "grants": {"type": "list", "elements": "dict", "options": grant, "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        grants = [Grant(**one) for one in module.params["grants"]]
        access = Access(Consul(module.params["url"], module.params["token"]), grants)
        access.wait(module.params["timeout"])
        steps = access.steps()
        if not module.check_mode:
            access.apply(steps)
    except ValueError as exc:
        module.fail_json(msg=f"grants: {exc}")
    except ConsulError as exc:
        module.fail_json(msg=f"{platform.node()}: {exc}")
    after = "".join(f"{what}\n{(body or {}).get('Rules', '')}" for what, _method, _path, body in steps)
    diff = {"before_header": "access", "after_header": "access", "before": "", "after": after}
    module.exit_json(changed=bool(steps), steps=[one[0] for one in steps], diff=diff)


if __name__ == "__main__":
    main()

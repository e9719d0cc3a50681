#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_secrets
short_description: Keys, secrets and certificates of one deployment
version_added: 0.1.0
description:
  - Makes, once and for one deployment, random secrets, the authority that signs certificates of its servers, and
    these certificates.
  - A certificate is made anew when its names change or a third of its life is left. Everything has mode 0600.
  - Runs on the controller; the authority's key stays there.
author: [The dodas developers (@dodas)]
requirements: [cryptography]
extends_documentation_fragment: [dodas.cluster.attributes]
options:
  name:
    description: The deployment's name.
    type: str
    required: true
  state_dir:
    description: The deployment's directory.
    type: path
    required: true
  secrets:
    description:
      - Names of secrets to have in C(secrets.json), 32 random bytes each in base64.
      - One named C(..._password) also gets its scrypt hash.
    type: list
    elements: str
    default: []
  certificates:
    description: DNS names of each server certificate, by its name. They are C(pki/NAME.crt) and C(pki/NAME.key).
    type: dict
    default: {}
  days:
    description: Lifetime of server certificates in days.
    type: int
    default: 90
"""

EXAMPLES = r"""
- name: Secrets of the deployment
  dodas.cluster.deployment_secrets:
    name: tier3
    state_dir: /var/lib/dodas/deployments/tier3
    secrets: [consul_gossip]
    certificates:
      credentials: [credentials.service.consul]
"""

RETURN = r"""
made:
  description: Names of secrets and certificates that were made.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import secrets
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import MISSING


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            # names of secrets, not secrets
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "certificates": {"type": "dict", "default": {}},
            "days": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=f"the Python library cryptography is needed: {MISSING}")
    parameters = module.params
    for name, hosts in parameters["certificates"].items():
        if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
            module.fail_json(msg=f"certificates.{name}: must be a list of DNS names")
    if parameters["days"] < 1:
        module.fail_json(msg=f"days: {parameters['days']} must be at least 1")
    try:
        store = secrets.Secrets(parameters["name"], parameters["state_dir"])
        made = store.missing(parameters["secrets"], parameters["certificates"])
        if made and not module.check_mode:
            store.make(made, parameters["certificates"], parameters["days"])
        module.exit_json(changed=bool(made), made=made)
    except (OSError, ValueError, RuntimeError) as exc:
        module.fail_json(msg=f"secrets of {parameters['name']}: {exc}")


if __name__ == "__main__":
    main()

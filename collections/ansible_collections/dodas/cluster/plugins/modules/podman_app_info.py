#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: podman_app_info
short_description: Apps of a host and their health
version_added: 0.1.0
description:
  - Reads what the app agent of the host found when it last looked at each app.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
"""

EXAMPLES = r"""
- name: Look at the apps
  dodas.cluster.podman_app_info:
"""

RETURN = r"""
apps:
  description: State (V(passing) or V(critical)), since when, and what the last check said, by app.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.engine import app


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, apps=app.states())


if __name__ == "__main__":
    main()

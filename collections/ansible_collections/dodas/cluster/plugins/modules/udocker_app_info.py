#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_app_info
short_description: Apps of a host without root, and their health
version_added: 0.1.0
description:
  - Reads what the app agent of the host found when it last looked at each app.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.app.place]
"""

EXAMPLES = r"""
- name: Look at the apps
  dodas.cluster.udocker_app_info:
    root: ~/.local/share/dodas/campus
"""

RETURN = r"""
apps:
  description: State (V(passing) or V(critical)), since when, and what the last check said, by app.
  returned: always
  type: dict
boot:
  description: What starts the apps with the machine, V(systemd) or V(cron); empty when nothing does.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.engine import app, plainhost


def main():
    module = AnsibleModule(argument_spec={"root": {"type": "path", "required": True}}, supports_check_mode=True)
    try:
        host = plainhost.PlainHost(module.params["root"])
        module.exit_json(changed=False, apps=app.states(host.root), boot=host.boot())
    except app.EngineError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

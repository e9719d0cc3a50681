# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: marathon_apps
short_description: What the hosts of a cluster have for Marathon
version_added: 0.1.0
description:
  - With the engine V(marathon), M(dodas.cluster.app) writes an app's files on each host that may run it, and leaves the
    app's definition in the fact C(dodas_marathon_apps). This collects them.
  - When a file differs on any of the hosts, the app's label C(dodas-files) is another one, and Marathon starts it anew.
options:
  _input:
    description: The variables of all hosts, by name (C(hostvars)).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Hand the apps to Marathon
  dodas.cluster.marathon_group:
    id: /dodas
    apps: "{{ hostvars | dodas.cluster.marathon_apps }}"
"""

RETURN = r"""
_value:
  description: Definitions as for Marathon's C(/v2/apps), by id.
  type: list
  elements: dict
"""

from ansible_collections.dodas.cluster.plugins.module_utils.engine import marathon


def marathon_apps(hostvars):
    """The definitions of all hosts' apps."""
    found = {host: hostvars[host].get("dodas_marathon_apps") for host in hostvars}
    return marathon.collect({host: apps for host, apps in found.items() if apps})


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"marathon_apps": marathon_apps}

# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: mesos_environment
short_description: Flags of Mesos as an environment file
version_added: 0.1.0
description:
  - Turns flags into lines such as C(MESOS_QUORUM="2") that systemd and a person can read.
author: [The dodas developers (@dodas)]
options:
  _input:
    description:
      - Values by the flag's name. Lists are joined with commas, mappings become JSON, what is null is left out.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Configure a master
  dodas.cluster.config_files:
    files:
      - path: /etc/dodas/mesos/master.env
        content: "{{ {'quorum': 2, 'authenticate_agents': true} | dodas.cluster.mesos_environment }}"
"""

RETURN = r"""
_value:
  description: The file's lines.
  type: str
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import flags


def mesos_environment(values):
    """See DOCUMENTATION."""
    try:
        return flags.write(values)
    except (AttributeError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"mesos_environment: {error}") from error


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"mesos_environment": mesos_environment}

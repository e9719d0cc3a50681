# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: mesos_text
short_description: Attributes or resources of a Mesos agent in its own words
version_added: 0.1.0
description:
  - Turns a mapping into what the flags C(--attributes) and C(--resources) take.
  - Refuses what Mesos would end for, naming it.
author: [The dodas developers (@dodas)]
positional: numbers, name
options:
  _input:
    description: Values by name. A value is a number, a text, or a list of ranges such as V(31000-32000).
    type: dict
    required: true
  numbers:
    description: Whether texts are refused, as they are for resources.
    type: bool
    default: false
  name:
    description: What an error calls the mapping.
    type: str
    default: mesos_text
"""

EXAMPLES = r"""
- name: Say what the agent offers
  ansible.builtin.debug:
    msg: "{{ {'cpus': 4, 'mem': 8192, 'ports': ['31000-32000']} | dodas.cluster.mesos_text(numbers=true) }}"
"""

RETURN = r"""
_value:
  description: The flag's value, such as C(cpus:4;mem:8192;ports:[31000-32000]).
  type: str
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import flags


def mesos_text(values, numbers=False, name="mesos_text"):
    """See DOCUMENTATION."""
    try:
        return flags.text(values, numbers)
    except (AttributeError, ValueError) as error:
        raise AnsibleFilterError(f"{name}: {error}") from error


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"mesos_text": mesos_text}

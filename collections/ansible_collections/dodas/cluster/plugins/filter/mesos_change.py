# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: mesos_change
short_description: Whether a Mesos agent may come back with other attributes or resources
version_added: 0.1.0
description:
  - Compares the environment file with which an agent was started with the one that it shall have.
  - An agent that says less than it did, or other things, ends when it is started, unless it forgets who it was.
author: [The dodas developers (@dodas)]
positional: after
options:
  _input:
    description:
      - The environment file that the agent was started with, as P(dodas.cluster.mesos_environment#filter) makes it.
    type: str
    required: true
  after:
    description: The one that it shall have.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: See what a change means
  ansible.builtin.debug:
    msg: "{{ old_file | dodas.cluster.mesos_change(new_file) }}"
"""

RETURN = r"""
_value:
  description:
    - C(kind) is V(same), V(additive) (there is only more than there was) or V(incompatible).
    - C(reason) says what changed.
  type: dict
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import flags


def mesos_change(before, after):
    """See DOCUMENTATION."""
    try:
        return flags.change(flags.read(before), flags.read(after))
    except AttributeError as error:
        raise AnsibleFilterError(f"mesos_change: {error}") from error


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"mesos_change": mesos_change}

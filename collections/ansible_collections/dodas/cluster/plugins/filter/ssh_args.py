# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh_args
short_description: How a host of a deployment is reached by SSH
version_added: 0.1.0
description:
  - Gives the value of C(ansible_ssh_common_args) for a host whose key is among the deployment's own known hosts, and
    which may be behind another host of the deployment.
author: [The dodas developers (@dodas)]
positional: host, hosts
options:
  _input:
    description: The deployment's directory.
    type: path
    required: true
  host:
    description: The host's name.
    type: str
    required: true
  hosts:
    description: What is known of the deployment's hosts, as in its C(hosts.json).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Reach a host that is in no inventory any more
  ansible.builtin.add_host:
    name: worker-3
    ansible_ssh_common_args: "{{ dodas_state_dir | dodas.cluster.ssh_args('worker-3', recorded) }}"
"""

RETURN = r"""
_value:
  description: Arguments of ssh.
  type: str
"""

import shlex

from ansible_collections.dodas.cluster.plugins.module_utils import sshkeys


def ssh_args(state_dir, host, hosts):
    """Arguments of ssh for a host of which `hosts` tells."""
    return shlex.join(sshkeys.options(state_dir, host, hosts))


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"ssh_args": ssh_args}

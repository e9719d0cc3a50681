# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: udocker_program
short_description: The container runtime of this collection as one file
version_added: 0.1.0
author: [The dodas developers (@dodas)]
description:
  - Makes the one-file runtime on the controller, in C(~/.ansible/udocker), and returns its path. It is made once.
  - The file runs on any machine with Linux and Python 3.8 or newer. It needs nothing else, and no root.
options:
  _terms:
    description: Nothing.
    type: list
    elements: str
seealso:
  - plugin: dodas.cluster.udocker
    plugin_type: connection
"""

EXAMPLES = r"""
- name: Install the runtime for the user
  ansible.builtin.copy:
    src: "{{ lookup('dodas.cluster.udocker_program') }}"
    dest: ~/.local/bin/udocker
    mode: "0755"
"""

RETURN = r"""
_list:
  description: The path, alone.
  type: list
  elements: str
"""

from ansible.plugins.lookup import LookupBase

from ansible_collections.dodas.cluster.plugins.plugin_utils import udocker_program


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        return [udocker_program.path()]

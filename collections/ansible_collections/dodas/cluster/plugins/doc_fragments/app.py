# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What every engine's module takes.
    DOCUMENTATION = r"""
attributes:
  diff_mode:
    details: Files that only their owner may read are named and not shown.
options:
  definition:
    description: The app as for Marathon's C(/v2/apps). For O(state=absent) only C(id) is needed.
    type: dict
    required: true
  files:
    description: Configuration files of the app.
    default: []
  timeout:
    description: Seconds within which the app must be healthy.
    type: int
    default: 120
  state:
    description: Whether the app shall run.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description:
      - With O(state=absent), whether its configuration in C(/etc/dodas) and its state in C(/var/lib/dodas) go too.
    type: bool
    default: false
"""
    # The folder of a host without root.
    PLACE = r"""
options:
  root:
    description: The folder that stands for the host's root; C(~) is the user's home.
    type: path
    required: true
"""

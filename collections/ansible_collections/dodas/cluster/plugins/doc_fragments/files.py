# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Files with their content; a module says what they are for.
    DOCUMENTATION = r"""
options:
  files:
    type: list
    elements: dict
    suboptions:
      path:
        description: Absolute path on the host.
        type: path
        required: true
      content:
        description: The file's text.
        type: str
        required: true
      mode:
        description: The file's mode.
        type: str
        default: "0644"
      owner:
        description: The file's user; when empty, the one who runs the task.
        type: str
        default: root
      in_place:
        description: Write the file without replacing it, as one must be that is mounted somewhere by itself.
        type: bool
        default: false
"""

# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Where images and containers are.
    DOCUMENTATION = r"""
options:
  root:
    description:
      - Folder that has the images and containers. Default is the runtime's own for the user who logs in,
        E(UDOCKER_DIR) or C(~/.udocker).
    type: path
"""

    # For modules that change something.
    PROGRAM = r"""
options:
  program:
    description:
      - The runtime on the managed host. Default is the one of this collection, which is copied once to
        C(~/.ansible/udocker) of the user, also in check mode.
    type: path
requirements:
  - Linux and Python 3.8 or newer on the managed host; neither root nor any other package
"""

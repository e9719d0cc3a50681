# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What reads or makes certificates on the managed host.
    DOCUMENTATION = r"""
requirements:
  - cryptography >= 42 on the managed host (C(python3-cryptography) of Debian 13)
options: {}
"""

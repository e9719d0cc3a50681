# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What changes something.
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
"""

    # With it, where there is a diff.
    DIFF = r"""
attributes:
  diff_mode:
    description: Shows with C(--diff) what changed or, in check mode, would change.
    support: full
"""

    # What only reads.
    INFO = r"""
attributes:
  check_mode:
    description: Can run in check mode and changes nothing.
    support: full
"""

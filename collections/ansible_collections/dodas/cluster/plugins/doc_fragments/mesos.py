# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Who is asked, and as whom.
    DOCUMENTATION = r"""
options:
  masters:
    description: Addresses of the masters, V(HOST:PORT) each. The one that leads is found among them.
    type: list
    elements: str
    required: true
  resolve:
    description: Addresses of names that are not looked up, such as those in Consul, which may be what is out of order.
    type: dict
    default: {}
  principal:
    description: The principal that asks; nobody when it is empty.
    type: str
    default: ""
  secret:
    description: Its secret.
    type: str
    default: ""
"""

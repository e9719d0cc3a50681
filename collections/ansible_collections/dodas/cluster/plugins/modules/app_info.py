#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: app_info
short_description: Apps of a host and their health, whatever its engine
version_added: 0.1.0
description:
  - Runs M(dodas.cluster.podman_app_info) or M(dodas.cluster.udocker_app_info), as the variable C(dodas_engine) of the
    host says (V(podman) when it says nothing).
notes:
  - An action plugin of this name does the work.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
"""

EXAMPLES = r"""
- name: Look at the apps
  dodas.cluster.app_info:
"""

RETURN = r"""
apps:
  description: State (V(passing) or V(critical)), since when, and what the last check said, by app.
  returned: always
  type: dict
"""

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: app
short_description: Run a Marathon app definition with the engine of the host
version_added: 0.1.0
description:
  - Runs M(dodas.cluster.podman_app) or M(dodas.cluster.udocker_app), as the variable C(dodas_engine) of the host says
    (V(podman) when it says nothing), so that a role need not know the engine.
  - For V(udocker), C(dodas_root) is the host's folder and C(dodas_address) the address that its apps listen on.
  - Restarts the app when its definition, its files or its image changed, and only then.
  - Waits until the app's health checks pass. What the engine cannot honour is refused by its path in the definition.
author: [The dodas developers (@dodas)]
notes:
  - An action plugin of this name does the work.
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.files
  - dodas.cluster.app
"""

EXAMPLES = r"""
- name: Run squid
  dodas.cluster.app:
    definition:
      id: /squid
      cpus: 0.5
      mem: 256
      container:
        type: DOCKER
        docker:
          image: localhost/dodas/squid:latest
      portDefinitions:
        - port: 3128
          name: proxy
      healthChecks:
        - protocol: TCP
          portIndex: 0
"""

RETURN = r"""
restarted:
  description: Whether the app was started or restarted.
  returned: always
  type: bool
"""

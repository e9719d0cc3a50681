#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_app
short_description: Run a Marathon app definition as a plain user
version_added: 0.1.0
description:
  - Turns a Marathon app definition into a program of the host's supervisor, which runs a container with udocker, with
    its configuration files. Needs no root on the host.
  - The host is a folder, O(root). What the definition calls C(/etc/dodas) and C(/var/lib/dodas) is below it; all other
    paths are the machine's own.
  - Restarts the app when its definition, its files or its image changed, and only then.
  - Waits until the app's health checks pass. What the engine cannot honour is refused by its path in the definition.
author: [The dodas developers (@dodas)]
requirements: [a host that M(dodas.cluster.udocker_host) made]
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.files
  - dodas.cluster.app
  - dodas.cluster.app.place
options:
  address:
    description: The address that apps of this host listen on; all when empty.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Run squid
  dodas.cluster.udocker_app:
    root: ~/.local/share/dodas/campus
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

from ansible_collections.dodas.cluster.plugins.module_utils.engine import module
from ansible_collections.dodas.cluster.plugins.module_utils.engine.udocker import UdockerApp


def main():
    module.main(UdockerApp, root={"type": "path", "required": True}, address={"type": "str", "default": ""})


if __name__ == "__main__":
    main()

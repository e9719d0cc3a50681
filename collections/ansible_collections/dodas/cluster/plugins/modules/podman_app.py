#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: podman_app
short_description: Run a Marathon app definition as a systemd unit
version_added: 0.1.0
description:
  - Turns a Marathon app definition into a systemd unit that runs a container with podman, with its configuration files.
  - Restarts the app when its definition, its files or its image changed, and only then.
  - Waits until the app's health checks pass. What the engine cannot honour is refused by its path in the definition.
author: [The dodas developers (@dodas)]
requirements: [podman, systemd, the app agent of role container_engine]
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.files
  - dodas.cluster.app
"""

EXAMPLES = r"""
- name: Run squid
  dodas.cluster.podman_app:
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
from ansible_collections.dodas.cluster.plugins.module_utils.engine.podman import PodmanApp


def main():
    module.main(PodmanApp)


if __name__ == "__main__":
    main()

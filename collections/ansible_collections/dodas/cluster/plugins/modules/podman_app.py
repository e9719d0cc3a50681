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
extends_documentation_fragment: [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.files]
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

from ansible_collections.dodas.cluster.plugins.module_utils.engine import definition
from ansible_collections.dodas.cluster.plugins.module_utils.engine.podman import EngineError, PodmanApp
from ansible_collections.dodas.cluster.plugins.module_utils.module import FILES, Module


def main():
    module = Module(
        argument_spec={
            "definition": {"type": "dict", "required": True},
            "files": {**FILES, "default": []},
            "timeout": {"type": "int", "default": 120},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "purge": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    parameters = dict(module.params)
    module.params["definition"] = {"id": parameters["definition"].get("id")}
    module.params["files"] = [one["path"] for one in parameters["files"]]
    try:
        if parameters["state"] == "absent":
            _absent(module)
        app = PodmanApp(definition.parse(parameters["definition"]), parameters["files"], module.check_mode)
        plan = app.plan()
        result = {
            "changed": bool(plan["files"]) or plan["restart"],
            "restarted": plan["restart"],
            "diff": [one.diff() for one in plan["files"]],
        }
        if not module.check_mode:
            app.apply(plan, parameters["timeout"])
            app.wait_healthy(parameters["timeout"])
        module.exit_json(**result)
    except definition.DefinitionError as exc:
        module.fail_json(msg=f"app definition: {exc}")
    except (EngineError, OSError, ValueError, LookupError) as exc:
        module.fail_json(msg=str(exc))


def _absent(module):
    minimal = {"id": module.params["definition"].get("id"), "container": {"docker": {"image": "none"}}}
    app = PodmanApp(definition.parse(minimal))
    purge = module.params["purge"]
    there = app.exists(purge)
    if not module.check_mode:
        app.remove(purge)
    module.exit_json(changed=there, restarted=False)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_container_info
short_description: Containers without root, and what they log
version_added: 0.1.0
description:
  - Reads what is recorded of containers, what they do, and the last lines that they wrote.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.udocker]
options:
  name:
    description: Name or id of a container. Default is all.
    type: str
  logs:
    description: How many of the last lines of each container's log to return.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Look at the cache
  dodas.cluster.udocker_container_info:
    name: cache
    logs: 20
  register: cache
"""

RETURN = r"""
containers:
  description: They, in the form of C(docker inspect); with O(logs), each has C(Logs), a list of lines.
  returned: always
  type: list
  elements: dict
  sample:
    - Name: /cache
      Id: 5f0b3b0c-8b4e-3c40-9a4e-d1d3ac6a3f4e
      ImageName: registry.example.org/team/squid:6
      State: {Status: running, Running: true, Pid: 4711, ExitCode: 0}
"""

from ansible_collections.dodas.cluster.plugins.module_utils import udocker_module
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import containers
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import logs as kept
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import NotFound


def main():
    module = udocker_module.UdockerModule(
        argument_spec={**udocker_module.ROOT, "name": {"type": "str"}, "logs": {"type": "int", "default": 0}},
        supports_check_mode=True,
    )
    udocker_module.run(module, look)


def look(module):
    name = module.params["name"]
    try:
        found = [containers.find(module.store, name)] if name else containers.listed(module.store)
    except NotFound:
        found = []
    module.exit_json(changed=False, containers=[_describe(one, module.params["logs"]) for one in found])


def _describe(container, lines):
    made = containers.inspect(container)
    if lines:
        written = []
        kept.read(container, lambda _stream, data: written.append(data), tail=lines)
        made["Logs"] = b"".join(written).decode("utf-8", "replace").splitlines()
    return made


if __name__ == "__main__":
    main()

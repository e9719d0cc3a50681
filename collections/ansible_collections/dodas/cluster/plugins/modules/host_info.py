#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: What a host can do
version_added: 0.1.0
description:
  - Looks at control groups, capabilities, limits, name resolution and the operating system, in one quick task.
  - Roles of dodas decide by it instead of gathering all facts.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  packages:
    description: Debian packages to look for.
    type: list
    elements: str
    default: []
  programs:
    description: Programs to look for.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Look at the host
  dodas.cluster.host_info:
  register: host
"""

RETURN = r"""
host:
  description: What was found.
  returned: always
  type: dict
  contains:
    cgroups:
      description: Version (v2, hybrid or v1) and the v2 controllers that can be used.
      returned: always
      type: dict
    limits_work:
      description: Whether containers can have limits on cpu, memory and processes.
      returned: always
      type: bool
    hard_limits:
      description: Limits that cannot be raised, as C(default_ulimits) of containers.conf.
      returned: always
      type: list
      elements: str
    crun_wrapper:
      description: A runtime script for hosts without cgroup v2, empty elsewhere.
      returned: always
      type: str
    nameservers:
      description: Addresses of the name servers.
      returned: always
      type: list
      elements: str
    resolver:
      description: V(resolved) where systemd-resolved answers, else V(file).
      returned: always
      type: str
    os:
      description: Identifier, codename and version of the operating system.
      returned: always
      type: dict
    address:
      description: The IPv4 address used to reach others.
      returned: always
      type: str
    network:
      description: The network of that address, such as V(10.88.0.0/24); empty where it is unknown.
      returned: always
      type: str
    user:
      description: The user that tasks run as.
      returned: always
      type: str
    container:
      description: Whether the host is a container.
      returned: always
      type: bool
    free_disk_mb:
      description: Free space below /var/lib in MiB.
      returned: always
      type: int
    memory_mb:
      description: Memory in MiB.
      returned: always
      type: int
    systemd:
      description: Whether systemd runs.
      returned: always
      type: bool
    missing_packages:
      description: Those of O(packages) that are not installed.
      returned: always
      type: list
      elements: str
    missing_programs:
      description: Those of O(programs) that are not installed.
      returned: always
      type: list
      elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import host


def main():
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(argument_spec={"packages": names, "programs": names}, supports_check_mode=True)
    found = host.describe(module.params["packages"], module.params["programs"])
    module.exit_json(changed=False, host=found)


if __name__ == "__main__":
    main()

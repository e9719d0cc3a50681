#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: marathon_app_info
short_description: Apps of Marathon, how they are, and why they wait
version_added: 0.1.0
description:
  - Reads apps with their tasks and counts, and what deployments do.
  - Says in plain words why an app is not as it shall be.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  - dodas.cluster.attributes.info
  - dodas.cluster.marathon
options:
  ids:
    description: Ids of apps, or of groups whose apps are meant. Default is all apps.
    type: list
    elements: str
    default: []
  label:
    description: A label selector of Marathon's, such as V(HAPROXY_GROUP==external).
    type: str
    default: ""
  environment:
    description: Whether the values of apps' environments are returned; otherwise only their names are.
    type: bool
    default: false
seealso:
  - module: dodas.cluster.marathon_app
  - module: dodas.cluster.marathon_group
"""

EXAMPLES = r"""
- name: Look at the cluster's apps
  dodas.cluster.marathon_app_info:
    urls: [https://marathon.service.consul:8443]
    ca_path: /etc/dodas/tls/ca.pem
    credentials_file: /etc/dodas/marathon/credentials
    ids: [/dodas]
  register: found

- name: Say which of them wait, and why
  ansible.builtin.debug:
    msg: "{{ item.id }}: {{ item.reasons | join('; ') }}"
  loop: "{{ found.apps | selectattr('reasons') }}"
  loop_control:
    label: "{{ item.id }}"
"""

RETURN = r"""
apps:
  description:
    - The apps as Marathon answers, sorted by id, with C(tasks), C(tasksRunning), C(tasksHealthy), C(deployments) and
      C(lastTaskFailure). RV(apps[].reasons) is ours.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The app's id.
      returned: always
      type: str
    instances:
      description: How many instances there shall be.
      returned: always
      type: int
    reasons:
      description: Why the app is not as it shall be, in plain words; empty when it is.
      returned: always
      type: list
      elements: str
  sample:
    - id: /dodas/worker
      instances: 2
      tasksRunning: 1
      tasksHealthy: 1
      reasons: [1 of 2 instances run, "no offer has 4 cpus: the largest has 2 (worker-1)"]
deployments:
  description: The deployments that go on.
  returned: success
  type: list
  elements: dict
leader:
  description: HOST:PORT of the leader.
  returned: success
  type: str
version:
  description: Marathon's version.
  returned: success
  type: str
"""

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, reasons
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.module import CONNECTION, run
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module


def main():
    module = Module(
        argument_spec={
            **CONNECTION,
            "ids": {"type": "list", "elements": "str", "default": []},
            "label": {"type": "str", "default": ""},
            "environment": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, look)


def look(module, marathon):
    given = module.params
    paths = [apps.parse_id({"id": one}) for one in given["ids"]]
    found = marathon.apps(embed=("tasks", "counts", "deployments", "lastTaskFailure"), label=given["label"])
    found = [one for one in found if not paths or any(apps.below(one["id"], path) for path in paths)]
    queue = {(one.get("app") or {}).get("id"): one for one in marathon.queue()}
    info = marathon.info()
    return {
        "changed": False,
        "apps": [
            {**(one if given["environment"] else apps.shown(one)), "reasons": reasons.of(one, queue.get(one["id"]))}
            for one in sorted(found, key=lambda one: one["id"])
        ],
        "deployments": marathon.deployments(),
        "leader": marathon.leader(),
        "version": info.get("version", ""),
    }


if __name__ == "__main__":
    main()

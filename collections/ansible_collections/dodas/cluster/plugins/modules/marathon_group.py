#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: marathon_group
short_description: A group of Marathon's apps
version_added: 0.1.0
description:
  - Makes a group, with all apps and groups in it, what its definition says, in one deployment in their order.
  - Apps of the group that its definition does not name are removed; a group without a list of apps keeps those it has.
  - Compares, waits, explains and rolls back as M(dodas.cluster.marathon_app) does.
author: [The dodas developers (@dodas)]
attributes:
  diff_mode:
    details: Values of environments are hidden.
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.marathon
  - dodas.cluster.marathon.changes
options:
  id:
    description: The group's id.
    type: str
    required: true
  apps:
    description:
      - The apps of the group, each as O(dodas.cluster.marathon_app#module:apps). Ids that do not begin with a slash are
        below that of the group, as are those in C(dependencies).
      - When not given, the group keeps the apps that it has.
    type: list
    elements: raw
  groups:
    description:
      - The groups in this group, as for C(/v2/groups), each with C(id), C(apps), C(groups) and C(dependencies).
      - When not given, the group keeps the groups that it has.
    type: list
    elements: dict
  dependencies:
    description: Ids of apps or groups after which the apps of this one are started.
    type: list
    elements: str
  agents:
    description:
      - The cluster's agents, each with C(hostname) and C(resources) that has C(cpus), C(mem), C(disk) and C(gpus).
      - When given, an app that asks for more than any of them has is refused.
    type: list
    elements: dict
  state:
    description: Whether the group shall be there.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: dodas.cluster.marathon_app
  - module: dodas.cluster.marathon_app_info
"""

EXAMPLES = r"""
- name: What serves data
  dodas.cluster.marathon_group:
    urls: [https://marathon.service.consul:8443]
    ca_path: /etc/dodas/tls/ca.pem
    credentials_file: /etc/dodas/marathon/credentials
    id: /data
    apps:
      - id: cache
        cmd: exec /opt/cache --port $PORT0
        healthChecks: [{protocol: MESOS_TCP}]
      - id: door
        cmd: exec /opt/door --port $PORT0
        dependencies: [cache]
"""

RETURN = r"""
changes:
  description: What became of each app that was not as it shall be; in check mode, what would.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The id of the app, or that of the group where its own settings or its groups differed.
      returned: always
      type: str
    action:
      description: V(created), V(changed), V(scaled) or V(removed).
      returned: always
      type: str
    fields:
      description: The fields of the definition that differed.
      returned: always
      type: list
      elements: str
deployments:
  description: Ids of the deployments that were made.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, deployments, groups
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.module import (
    CHANGES,
    CONNECTION,
    result,
    run,
    wait,
)
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module


def main():
    module = Module(
        argument_spec={
            **CONNECTION,
            **CHANGES,
            "id": {"type": "str", "required": True},
            "apps": {"type": "list", "elements": "raw"},
            "groups": {"type": "list", "elements": "dict"},
            "dependencies": {"type": "list", "elements": "str"},
            "agents": {"type": "list", "elements": "dict"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    given = {key: module.params[key] for key in ("id", "apps", "groups", "dependencies")}
    # The result has the parameters in it; environments may hold secrets.
    module.params["apps"] = module.params["groups"] = None
    act = {"present": present, "absent": absent}[module.params["state"]]
    run(module, lambda module, marathon: act(module, marathon, given))


def present(module, marathon, given):
    agents = module.params["agents"]
    group = groups.parse({key: value for key, value in given.items() if value is not None})
    definitions = list(groups.apps_of(group).values())
    apps.refuse(definitions, agents, known=None)  # what needs no answer of Marathon
    if module.params["force"] and not module.check_mode:
        deployments.cancel(marathon, [one["id"] for one in definitions])
    found = deployments.current(marathon)
    there = marathon.group(group["id"])
    gone = groups.removed(group, there)
    apps.refuse(definitions, agents, known=[one for one in found.values() if one["id"] not in gone])
    changes = deployments.plan(definitions, found)
    changes += [deployments.Change(one, "removed", before=apps.shown(apps.filled(found[one]))) for one in gone]
    if groups.differs(group, there):
        changes.append(deployments.Change(group["id"], "changed" if there else "created", ["groups", "dependencies"]))
    if module.check_mode:
        return result(changes, [])
    made = deployments.put_group(marathon, group, found, module.params["force"]) if changes else []
    wait(module, marathon, definitions, gone)
    return result(changes, made)


def absent(module, marathon, given):
    group_id = apps.parse_id({"id": given["id"]})
    there = marathon.group(group_id)
    gone = groups.apps_of(there)
    changes = [deployments.Change(name, "removed", before=apps.shown(apps.filled(one))) for name, one in gone.items()]
    if there is not None:
        changes.append(deployments.Change(group_id, "removed"))
    if module.check_mode or there is None:
        return result(changes, [])
    made = deployments.remove_group(marathon, group_id, module.params["force"])
    wait(module, marathon, [], gone=list(gone))
    return result(changes, made)


if __name__ == "__main__":
    main()

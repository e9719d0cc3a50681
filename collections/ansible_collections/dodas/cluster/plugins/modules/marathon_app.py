#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: marathon_app
short_description: Apps of Marathon
version_added: 0.1.0
description:
  - Makes apps what their definitions say, all in one deployment that follows their dependencies.
  - Compares after filling in what Marathon fills in itself, so that an app that is as it shall be is not restarted.
  - Refuses wrong definitions before anything changes, and says in plain words why a deployment is not done in time.
  - Goes on when Marathon's leader changes in the middle.
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
  apps:
    description:
      - The apps' definitions as for C(/v2/apps) of Marathon 1.5 and newer, each a mapping or a text in strict JSON.
      - An app whose definition does not say C(instances) keeps as many as it has; a new one gets one.
      - For other states than V(present), only C(id) is looked at.
    type: list
    elements: raw
    required: true
  agents:
    description:
      - The cluster's agents, each with C(hostname) and C(resources) that has C(cpus), C(mem), C(disk) and C(gpus).
      - When given, an app that asks for more than any of them has is refused.
    type: list
    elements: dict
  state:
    description:
      - Whether the apps shall be there. With V(restarted), all instances of apps that are there are replaced.
    type: str
    choices: [present, absent, restarted]
    default: present
seealso:
  - module: dodas.cluster.marathon_app_info
  - module: dodas.cluster.marathon_group
"""

EXAMPLES = r"""
- name: Squid, and workers that need it
  dodas.cluster.marathon_app:
    urls: [https://front-1.node.consul:8443, https://front-2.node.consul:8443]
    ca_path: /etc/dodas/tls/ca.pem
    credentials_file: /etc/dodas/marathon/credentials
    rollback_on_failure: true
    apps:
      - id: /dodas/squid
        cpus: 0.5
        mem: 512
        container:
          type: DOCKER
          docker:
            image: registry.service.consul:5000/dodas/squid:1
        networks: [{mode: host}]
        portDefinitions: [{port: 3128, name: proxy}]
        requirePorts: true
        healthChecks:
          - protocol: MESOS_TCP
            portIndex: 0
      - "{{ lookup('ansible.builtin.file', 'worker.json') }}"

- name: Replace all workers
  dodas.cluster.marathon_app:
    urls: [https://marathon.service.consul:8443]
    ca_path: /etc/dodas/tls/ca.pem
    credentials_file: /etc/dodas/marathon/credentials
    apps: [{id: /dodas/worker}]
    state: restarted
"""

RETURN = r"""
changes:
  description: What became of each app that was not as it shall be; in check mode, what would.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The app's id.
      returned: always
      type: str
    action:
      description: V(created), V(changed), V(scaled), V(restarted) or V(removed).
      returned: always
      type: str
    fields:
      description: The fields of the definition that differed.
      returned: always
      type: list
      elements: str
  sample:
    - id: /dodas/worker
      action: scaled
      fields: [instances]
deployments:
  description: Ids of the deployments that were made.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, deployments
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import DefinitionError
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
            "apps": {"type": "list", "elements": "raw", "required": True},
            "agents": {"type": "list", "elements": "dict"},
            "state": {"type": "str", "choices": ["present", "absent", "restarted"], "default": "present"},
        },
        supports_check_mode=True,
    )
    given = module.params["apps"]
    # The result has the parameters in it; environments may hold secrets.
    module.params["apps"] = [{"id": one.get("id")} if isinstance(one, dict) else apps.HIDDEN for one in given]
    act = {"present": present, "absent": absent, "restarted": restarted}[module.params["state"]]
    run(module, lambda module, marathon: act(module, marathon, given))


def present(module, marathon, given):
    agents = module.params["agents"]
    parsed = apps.refuse(given, agents, known=None)  # what needs no answer of Marathon
    if module.params["force"] and not module.check_mode:
        deployments.cancel(marathon, [one["id"] for one in parsed])
    found = deployments.current(marathon)
    definitions = apps.refuse(given, agents, known=found.values())
    changes = deployments.plan(definitions, found)
    if module.check_mode:
        return result(changes, [])
    names = {one.id for one in changes}
    made = deployments.put(marathon, [one for one in definitions if one["id"] in names], found, module.params["force"])
    wait(module, marathon, definitions)
    return result(changes, made)


def absent(module, marathon, given):
    found = deployments.current(marathon)
    there = [found[one] for one in dict.fromkeys(map(apps.parse_id, given)) if one in found]
    changes = [deployments.Change(one["id"], "removed", before=apps.shown(apps.filled(one))) for one in there]
    if module.check_mode:
        return result(changes, [])
    made = deployments.remove(marathon, there, module.params["force"])
    wait(module, marathon, [], gone=[one["id"] for one in there])
    return result(changes, made)


def restarted(module, marathon, given):
    ids = list(dict.fromkeys(map(apps.parse_id, given)))
    found = deployments.current(marathon)
    missing = [one for one in ids if one not in found]
    if missing:
        raise DefinitionError(f"cannot be restarted, since they are not there: {', '.join(missing)}")
    changes = [deployments.Change(one, "restarted") for one in ids]
    if module.check_mode:
        return result(changes, [])
    made = deployments.restart(marathon, ids, module.params["force"])
    wait(module, marathon, [{"id": one} for one in ids])
    return result(changes, made)


if __name__ == "__main__":
    main()

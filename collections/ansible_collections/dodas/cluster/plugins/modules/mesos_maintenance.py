#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: mesos_maintenance
short_description: Take hosts out of a Mesos cluster, and bring them back
version_added: 0.1.0
description:
  - Announces the maintenance of hosts, drains their agents, ends them, and brings hosts back.
  - Waits until it is so, and says which host kept it waiting when it is not.
  - The schedule of a cluster is one document. What others have in it stays.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.mesos
options:
  agents:
    description: Names with which the hosts' agents are registered.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(scheduled) tells frameworks that the hosts will go.
      - V(drained) kills the hosts' tasks, with the time that they have to end, and places no new ones. Frameworks start
        them elsewhere. Needs Mesos 1.9.
      - V(down) drains the hosts, then ends their agents and lets none register from there.
      - V(up) ends all of this. An agent that was ended must be started.
    type: str
    choices: [up, scheduled, drained, down]
    required: true
  start:
    description: When the maintenance begins, in seconds since the epoch. By default it is now for hosts that are not in
      the schedule, and those that are keep theirs.
    type: int
  duration:
    description: How long it takes, in seconds.
    type: int
    default: 3600
  grace:
    description: Seconds at most that tasks get to end. By default each gets what it asks for.
    type: int
  absent_ok:
    description: Whether a host without an agent is left alone rather than refused.
    type: bool
    default: false
  timeout:
    description: Seconds for each step, draining above all.
    type: int
    default: 600
"""

EXAMPLES = r"""
- name: Free a host of its tasks
  dodas.cluster.mesos_maintenance:
    masters: [front-1.node.consul:5050, front-2.node.consul:5050, front-3.node.consul:5050]
    principal: operator
    secret: "{{ operator_secret }}"
    agents: [worker-1.node.consul]
    state: drained

- name: Bring it back
  dodas.cluster.mesos_maintenance:
    masters: [front-1.node.consul:5050, front-2.node.consul:5050, front-3.node.consul:5050]
    principal: operator
    secret: "{{ operator_secret }}"
    agents: [worker-1.node.consul]
    state: up
"""

RETURN = r"""
before:
  description: State of each host before, V(absent) where there is no agent.
  returned: always
  type: dict
after:
  description: State of each host afterwards. In check mode, what it would be.
  returned: always
  type: dict
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.mesos.client import Masters
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.errors import MesosError
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.maintenance import STATES, Maintenance


def main():
    module = AnsibleModule(
        argument_spec={
            "masters": {"type": "list", "elements": "str", "required": True},
            "resolve": {"type": "dict", "default": {}},
            "principal": {"type": "str", "default": ""},
            "secret": {"type": "str", "default": "", "no_log": True},
            "agents": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "required": True},
            "start": {"type": "int"},
            "duration": {"type": "int", "default": 3600},
            "grace": {"type": "int"},
            "absent_ok": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    given = module.params
    wanted, names = given["state"], given["agents"]
    start = given["start"] if given["start"] is not None else int(time.time())
    window = {"start": start, "duration": given["duration"]}
    try:
        masters = Masters(given["masters"], given["principal"], given["secret"], resolve=given["resolve"])
        maintenance = Maintenance(masters, window, given["start"] is not None, given["grace"])
        hosts = maintenance.look(names)
        plan = maintenance.plan(hosts, wanted, given["absent_ok"])
        before = {name: host.state for name, host in hosts.items()}
        after = {**before, **{host.name: wanted for host in plan}}
        if plan and not module.check_mode:
            maintenance.apply(plan, wanted, given["timeout"])
            after = {name: host.state for name, host in maintenance.look(names).items()}
        module.exit_json(changed=bool(plan), before=before, after=after, diff=_diff(before, after))
    except (MesosError, ValueError) as exc:
        module.fail_json(msg=str(exc))


def _diff(before, after):
    texts = ["".join(f"{name}: {state}\n" for name, state in states.items()) for states in (before, after)]
    return {"before_header": "hosts", "after_header": "hosts", "before": texts[0], "after": texts[1]}


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: mesos_info
short_description: Masters, agents and frameworks of a Mesos cluster
version_added: 0.1.0
description:
  - Says which master leads, whether there is a majority, and what each agent has, uses and offers.
  - A cluster is ready when the leader has read its registry. A master without a majority cannot, although it says that
    it is healthy.
  - With O(timeout), waits until it is ready and O(agents) are there.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.mesos]
options:
  agents:
    description: Names with which active agents should be registered. With O(timeout) they must.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds until there must be a leader, a majority of the masters, and O(agents). V(0) looks once.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Look at the cluster
  dodas.cluster.mesos_info:
    masters: [front-1.node.consul:5050, front-2.node.consul:5050, front-3.node.consul:5050]
    principal: operator
    secret: "{{ operator_secret }}"

- name: Wait for an agent
  dodas.cluster.mesos_info:
    masters: [front-1.node.consul:5050]
    agents: [worker-1.node.consul]
    timeout: 120
"""

RETURN = r"""
ready:
  description: Whether a leader with its registry answers.
  returned: always
  type: bool
leader:
  description: Its address, empty when there is none.
  returned: always
  type: str
version:
  description: Its version.
  returned: always
  type: str
masters:
  description: Each master's address, state (V(leading), V(following), V(recovering) or V(unreachable)) and problem.
  returned: always
  type: list
  elements: dict
quorum:
  description: Numbers of masters that there are, that are C(needed), and that are C(alive), and whether this is C(ok).
  returned: always
  type: dict
agents:
  description: The registered agents.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The id that Mesos gave it.
      returned: always
      type: str
    hostname:
      description: The name with which it is registered.
      returned: always
      type: str
    ip:
      description: Its address.
      returned: always
      type: str
    port:
      description: Its port.
      returned: always
      type: int
    version:
      description: Its version.
      returned: always
      type: str
    registered:
      description: When it last came, in seconds since the epoch.
      returned: always
      type: float
    connected:
      description: Whether it is there. One that is not is waited for, and is unreachable after a while. Of one that is
        drained, Mesos does not say it.
      returned: always
      type: bool
    active:
      description: Whether it gets tasks.
      returned: always
      type: bool
    drain:
      description: V(draining), V(drained) or empty.
      returned: always
      type: str
    attributes:
      description: Its attributes.
      returned: always
      type: dict
    resources:
      description: What it has, C(cpus), C(mem) and C(disk) (MB), C(gpus), C(ports) (ranges).
      returned: always
      type: dict
    used:
      description: What of it tasks have.
      returned: always
      type: dict
    offered:
      description: What of it frameworks are thinking about.
      returned: always
      type: dict
recovering:
  description: Names of agents that have not come back to a new leader yet.
  returned: always
  type: list
  elements: str
missing:
  description: Those of O(agents) that are not registered or not active, as far as a leader says it.
  returned: always
  type: list
  elements: str
unreachable:
  description: How many agents the leader has lost.
  returned: always
  type: int
frameworks:
  description: Each framework's id, name, principal and url, and whether it is C(active) and C(connected).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import cluster
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.client import Masters
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.errors import MesosError


def main():
    module = AnsibleModule(
        argument_spec={
            "masters": {"type": "list", "elements": "str", "required": True},
            "resolve": {"type": "dict", "default": {}},
            "principal": {"type": "str", "default": ""},
            "secret": {"type": "str", "default": "", "no_log": True},
            "agents": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        masters = Masters(given["masters"], given["principal"], given["secret"], resolve=given["resolve"])
        timeout = given["timeout"]
        found = cluster.wait(masters, given["agents"], timeout) if timeout else cluster.look(masters, given["agents"])
        module.exit_json(changed=False, **found)
    except (MesosError, ValueError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: local_cluster
short_description: Hosts of a deployment on this machine
version_added: 0.1.0
description:
  - Makes hosts that run systemd and sshd in containers, on a network of the deployment, and removes them.
  - Works on machines with cgroup v2 and on those with hybrid control groups and few capabilities.
  - With O(engine=udocker), a host is a folder with an address on the loopback, and no root is needed.
  - Nothing without the label of the deployment is touched.
author: [The dodas developers (@dodas)]
requirements: [podman and root for O(engine=podman)]
extends_documentation_fragment: [dodas.cluster.attributes, dodas.cluster.attributes.diff]
options:
  name:
    description: The deployment's name.
    type: str
    required: true
  state_dir:
    description: The deployment's directory for keys and addresses. Needed for O(state=present).
    type: path
  hosts:
    description: The hosts that there shall be; others of the deployment are removed. Needed for O(state=present).
    type: list
    elements: dict
    suboptions:
      name:
        description: The host's name.
        type: str
        required: true
      cpus:
        description: CPUs that the host may use, where the machine can limit them.
        type: float
      mem_mb:
        description: Memory in MB that the host may use, where the machine can limit it.
        type: int
  engine:
    description: What runs apps on the hosts.
    type: str
    choices: [podman, udocker]
    default: podman
  image:
    description: The image of the hosts, for O(engine=podman).
    type: str
    default: localhost/dodas/host:latest
  timeout:
    description: Seconds within which every sshd must answer, for O(engine=podman).
    type: int
    default: 120
  state:
    description: Whether the hosts shall be there.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Two hosts
  dodas.cluster.local_cluster:
    name: tier3
    state_dir: /var/lib/dodas/deployments/tier3
    hosts:
      - name: front-1
      - name: worker-1
"""

RETURN = r"""
hosts:
  description: The address of each host.
  returned: when O(state=present)
  type: dict
plan:
  description: The hosts created, started and removed.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.local.cluster import LocalCluster
from ansible_collections.dodas.cluster.plugins.module_utils.local.plain import PlainCluster
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, PodmanError


def main():
    host = {
        "name": {"type": "str", "required": True},
        "cpus": {"type": "float"},
        "mem_mb": {"type": "int"},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path"},
            "hosts": {"type": "list", "elements": "dict", "options": host},
            "engine": {"type": "str", "choices": ["podman", "udocker"], "default": "podman"},
            "image": {"type": "str", "default": "localhost/dodas/host:latest"},
            "timeout": {"type": "int", "default": 120},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("state_dir", "hosts"))],
        supports_check_mode=True,
    )
    parameters = module.params
    wanted = parameters["hosts"] if parameters["state"] == "present" else []
    try:
        if parameters["engine"] == "udocker":
            state_dir = parameters["state_dir"] or deployment.deployment_dir(parameters["name"])
            cluster, more = PlainCluster(parameters["name"], state_dir), ()
        else:
            podman = Podman(deployment.home())
            podman.configure()
            cluster = LocalCluster(parameters["name"], parameters["state_dir"] or "/nonexistent", podman)
            more = (parameters["image"], parameters["timeout"])
        before = sorted(cluster.found())
        plan = cluster.plan(wanted)
        result = {
            "plan": plan,
            "changed": any(plan.values()),
            "diff": {
                "before": "\n".join(before) + "\n",
                "after": "\n".join(sorted(one["name"] for one in wanted)) + "\n",
            },
        }
        if not module.check_mode:
            if parameters["state"] == "present":
                result["hosts"] = cluster.apply(wanted, *more)
            else:
                result["changed"] = bool(cluster.remove()) or result["changed"]
        module.exit_json(**result)
    except (OSError, ValueError, PodmanError, EngineError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

# Copyright (c) the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: openstack
short_description: The hosts of a deployment, from the cloud alone
version_added: 0.1.0
author:
  - The dodas developers (@dodas)
description:
  - Finds the servers of a deployment by their tags, with one listing, whatever is recorded on this machine.
  - Each host is in the groups of its roles (C(worker)) and of its node (C(node_worker)), and has C(ansible_host),
    C(dodas_inner_address), C(dodas_server) (the server's id) and C(dodas_status).
  - A host without an address of its own outside the cloud is reached through the one that has it.
  - Where the deployment's keys are on this machine, hosts are reached with them, and their keys are checked.
  - Beside a template (C(-i templates/tier3.yaml -i inventories/openstack)), variables of roles are the template's, and
    the addresses are the cloud's.
  - The file's name has to end in C(openstack.yml) or C(openstack.yaml).
requirements:
  - openstacksdk >= 4.4
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [dodas.cluster.openstack]
  cloud:
    description: The entry of C(clouds.yaml); without one, C(OS_*) variables of the environment.
    type: str
    env:
      - name: DODAS_CLOUD
  region:
    description: The cloud's region.
    type: str
  deployment:
    description: The deployment's name or UUID. The default is the only one that the cloud has.
    type: str
    env:
      - name: DODAS_DEPLOYMENT
"""

EXAMPLES = r"""
# openstack.yml
plugin: dodas.cluster.openstack
cloud: mysite
deployment: tier3
"""

import shlex

from ansible.errors import AnsibleError
from ansible.plugins.inventory import BaseInventoryPlugin

from ansible_collections.dodas.cluster.plugins.module_utils import deployment, sshkeys

_PARSER_ERROR = 4  # what ansible-playbook returns for one


class InventoryModule(BaseInventoryPlugin):
    NAME = "dodas.cluster.openstack"

    def verify_file(self, path):
        return super().verify_file(path) and path.endswith(("openstack.yml", "openstack.yaml"))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            self._parse()
        except Exception as exc:
            # Ansible would catch it and try its yaml plugin, which takes any YAML
            expected = isinstance(exc, (ValueError, OSError, AnsibleError))
            text = f"{path}: {exc}" if expected else f"{path}: {type(exc).__name__}: {exc}"
            self.display.error(text, wrap_text=False)
            raise SystemExit(_PARSER_ERROR) from None

    def _parse(self):
        try:
            # only when it is asked: the libraries take a while to import
            from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud, cluster
            from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
        except ImportError as exc:
            raise AnsibleError(f"the library openstacksdk is needed: {exc}") from exc
        try:
            connection = cloud.connect(name=self.get_option("cloud"), region=self.get_option("region"))
            found = _chosen(cluster.deployments(connection), self.get_option("deployment"))
            hosts = cluster.OpenStackCluster(connection, found["name"], found["uuid"]).found()
        except OpenStackError as exc:
            raise AnsibleError(str(exc)) from exc
        self._populate(found, hosts)

    def _populate(self, found, hosts):
        name = found["name"]
        state = deployment.deployment_dir(name)
        record = deployment.read_json(state / "deployment.json", {})
        # Another deployment of the name may be recorded here.
        ours = deployment.uuid(state, make=False) == found["uuid"]
        common = {
            "dodas_deployment": name,
            "dodas_uuid": found["uuid"],
            "dodas_backend": "openstack",
            "dodas_engine": (record.get("engine") if ours else None) or "podman",
            "dodas_state_dir": str(state),
            "ansible_user": "root",
        }
        if ours:
            common["ansible_ssh_private_key_file"] = str(sshkeys.SshKeys(state, name).private)
        for key, value in common.items():
            self.inventory.set_variable("all", key, value)
        for host, known in hosts.items():
            self.inventory.add_host(host)
            groups = [f"node_{known['node'].replace('-', '_')}"] if known.get("node") else []
            for group in [*groups, *(known.get("roles") or ())]:
                self.inventory.add_host(host, group=self.inventory.add_group(group))
            variables = {
                "ansible_host": sshkeys.outer_address(known),
                "dodas_inner_address": known.get("address"),
                "dodas_server": known.get("id"),
                "dodas_status": known.get("status"),
                "ansible_ssh_common_args": shlex.join(sshkeys.options(state, host, hosts)) if ours else None,
            }
            for key, value in variables.items():
                if value is not None:
                    self.inventory.set_variable(host, key, value)


def _chosen(found, which):
    """The deployment with this name or UUID, or the only one. Raises ValueError, naming those that there are."""
    fits = [one for one in found if which in (None, "", one["name"], one["uuid"])]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{one['name']} ({one['uuid']})" for one in found) or "none"
    wanted = f"deployment {which!r} is not" if which else "deployment is not named, and not"
    raise ValueError(f"{wanted} exactly one of those in the cloud: {there}")

# Copyright (c) the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: tosca
short_description: A TOSCA template as an inventory
version_added: 0.1.0
author:
  - The dodas developers (@dodas)
description:
  - Reads a TOSCA template (Simple Profile in YAML 1.0 to 1.3) and gives its hosts, groups and variables.
    The template itself is the inventory; there is no other file.
  - A node template of type C(dodas.nodes.Compute) with the name C(worker) and count 2 gives the hosts
    C(worker-1) and C(worker-2), in the group C(node_worker).
  - Each service (C(dodas.nodes.Squid), ...) gives a group with the name of its role (C(squid)), which has
    the hosts of the Compute it is hosted on, and a variable for each of its properties (C(squid_port)).
  - The group C(all) has C(dodas_deployment), C(dodas_state_dir), C(dodas_template), C(dodas_backend),
    C(dodas_engine), C(dodas_site_NAME) for each input C(site_NAME), and C(cloud_NAME) for each setting of the
    cloud that hosts come from. Those are given as inputs, too, and a template need not declare them.
  - Each host has C(dodas_node), C(dodas_index), where the template asks for a size C(dodas_cpus),
    C(dodas_mem_mb) and C(dodas_disk_mb), and C(dodas_host), a mapping with C(name), C(cpus) and C(mem_mb) as
    the modules that make hosts take it.
  - Once the deployment has hosts (C(hosts.json) in its state directory), they also get what is needed to
    reach them by SSH, with host keys checked against the deployment's own list.
  - The control node is not in the inventory.
requirements:
  - tosca-parser >= 2.11
  - PyYAML
notes:
  - Enable the plugin in C(ansible.cfg), before the C(yaml) plugin. It takes only YAML files that have the key
    C(tosca_definitions_version); other inventories go on to the other plugins.
  - An error in a template or its inputs ends the run at once, with exit status 4. Otherwise Ansible would
    offer the template to its C(yaml) plugin, which takes any YAML, and go on with an inventory without hosts.
  - Nothing is downloaded. Imports that are URLs are refused; the types C(dodas.nodes.*) need no import.
options:
  deployment:
    description:
      - Name of the deployment. It must match C(^[a-z][a-z0-9-]{0,30}$).
      - The default is the template's file name without its extension.
    type: str
    env:
      - name: DODAS_DEPLOYMENT
    vars:
      - name: dodas_deployment
  inputs:
    description:
      - Values of the template's inputs, as a mapping or as the name of a JSON or YAML file with one. Strings
        are converted to the type that the input declares.
      - The default is what the deployment recorded (C(inputs.json) in its state directory), if it did.
    type: raw
    env:
      - name: DODAS_INPUTS
    vars:
      - name: dodas_inputs
  backend:
    description:
      - Where hosts come from; becomes C(dodas_backend).
      - The default is what the deployment recorded (C(deployment.json)), or else V(local).
    type: str
    env:
      - name: DODAS_BACKEND
    vars:
      - name: dodas_backend
  engine:
    description:
      - What keeps the service containers running; becomes C(dodas_engine).
      - The default is what the deployment recorded (C(deployment.json)), or else V(podman).
    type: str
    env:
      - name: DODAS_ENGINE
    vars:
      - name: dodas_engine
"""

EXAMPLES = r"""
# ansible.cfg
#   [inventory]
#   enable_plugins = dodas.cluster.tosca, host_list, script, auto, yaml, ini, toml
#
# ansible-inventory -i site.yaml --graph
# ansible-playbook -i site.yaml playbooks/up.yml -e '{"dodas_inputs": {"workers": 5}}'

# site.yaml
tosca_definitions_version: tosca_simple_yaml_1_0
description: A pool with a squid
topology_template:
  inputs:
    workers:
      type: integer
      default: 2
  node_templates:
    front:
      type: dodas.nodes.Compute
    worker:
      type: dodas.nodes.Compute
      capabilities:
        scalable:
          properties:
            count: { get_input: workers }
    squid:
      type: dodas.nodes.Squid
      properties:
        cache_mb: 4096
      requirements:
        - host: front
    startd:
      type: dodas.nodes.Worker
      requirements:
        - host: worker
"""

import math
import re
import shlex
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.template import trust_as_template

from ansible_collections.dodas.cluster.plugins.module_utils import deployment, sshkeys
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError, suggest

_IS_TOSCA = re.compile(rb"""^["']?tosca_definitions_version["']?\s*:""", re.MULTILINE)
_PLAIN = re.compile(r"""[\w ./:@,='"%+\[\]-]*""")  # text that cannot be a Jinja template
_PARSER_ERROR = 4  # what ansible-playbook returns for one
SERVER_MEM_MB = 2000
SERVER_DISK_GB = 10
_HEAD = 65536  # bytes looked at to tell a template from another inventory


class InventoryModule(BaseInventoryPlugin):
    NAME = "dodas.cluster.tosca"

    def verify_file(self, path):
        if not super().verify_file(path) or not path.endswith((".yaml", ".yml")):
            return False
        with open(path, "rb") as stream:
            return _IS_TOSCA.search(stream.read(_HEAD)) is not None

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        try:
            self.set_options(var_options=self._vars)
            self._parse(path)
        except Exception as exc:
            # Ansible would catch it and try its yaml plugin, which takes any YAML
            expected = isinstance(exc, (TemplateError, ValueError, OSError, AnsibleError))
            text = str(exc) if expected else f"{path}: {type(exc).__name__}: {exc}"
            self.display.error(text, wrap_text=False)
            raise SystemExit(_PARSER_ERROR) from None

    def _parse(self, path):
        # only when there is a template to read: tosca-parser takes a while to import
        from ansible_collections.dodas.cluster.plugins.module_utils.tosca import deps, inputs, template

        if deps.MISSING:
            raise TemplateError(f"a TOSCA template needs tosca-parser: {deps.MISSING}", path)
        name = self.get_option("deployment") or Path(path).stem
        if not deployment.valid_name(name):
            hint = "set DODAS_DEPLOYMENT or dodas_deployment"
            raise TemplateError(f'deployment name "{name}" must match {deployment.NAME}; {hint}', path)
        state = deployment.deployment_dir(name)
        given = self.get_option("inputs")
        if given is None or given == "":
            given = deployment.read_json(state / "inputs.json", {})
        elif isinstance(given, str):
            given = inputs.read(given)
        if not isinstance(given, dict):
            raise TemplateError("inputs: expected a mapping or the name of a file with one", path)
        self._populate(template.load(path, given), name, state, path)

    def _populate(self, template, name, state, path):
        record = deployment.read_json(state / "deployment.json", {})
        addresses = deployment.read_json(state / "hosts.json")
        common = {
            "dodas_deployment": name,
            "dodas_state_dir": str(state),
            "dodas_template": str(Path(path).absolute()),
            "dodas_backend": self.get_option("backend") or record.get("backend") or "local",
            "dodas_engine": self.get_option("engine") or record.get("engine") or "podman",
            **{f"dodas_{key}": value for key, value in template.values.items() if key.startswith("site_")},
            **template.settings,
        }
        if (common["dodas_backend"], common["dodas_engine"]) == ("local", "udocker"):
            common["ansible_connection"] = "local"  # hosts are folders of this machine
        elif addresses is not None:
            common.update(_connection(state))
        remote = common["dodas_backend"] == "openstack"
        if remote:
            self._check_settings(template.settings, path)
        self._set("all", common)
        for role in template.groups:
            self.inventory.add_group(role)
            self._set(role, template.group_vars[role])
        for host in template.hosts:
            groups = [f"node_{host.node.replace('-', '_')}", *host.roles]
            self.inventory.add_host(host.name)
            for group in groups:
                self.inventory.add_group(group)
                self.inventory.add_host(host.name, group=group)
            known = (addresses or {}).get(host.name) or {}
            variables = {
                "dodas_node": host.node,
                "dodas_index": host.index,
                "dodas_cpus": host.cpus,
                "dodas_mem_mb": host.mem_mb,
                "dodas_disk_mb": host.disk_mb,
                "dodas_host": _server(host) if remote else _container(host),
                "dodas_inner_address": known.get("address") if remote else None,
                "ansible_host": sshkeys.outer_address(known),
                "ansible_port": known.get("port"),
                "ansible_user": known.get("user"),
                "ansible_python_interpreter": known.get("python"),
                "ansible_ssh_common_args": _ssh_args(state, host.name, addresses) if known.get("id") else None,
            }
            self._set(host.name, {key: value for key, value in variables.items() if value is not None})

    @staticmethod
    def _check_settings(given, path):
        # only for a cloud: its library is not needed elsewhere
        from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec

        for name in given:
            known = [f"cloud_{one}" for one in spec.SETTINGS]
            if name not in known:
                raise TemplateError(f'unknown setting "{name}"{suggest(name, known)}', path)

    def _set(self, entity, variables):
        for key, value in variables.items():
            self.inventory.set_variable(entity, key, _plain(value))


def _plain(value):
    """Mark text that cannot be a template, so that --list shows it as it is; other text stays untrusted."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return trust_as_template(value) if isinstance(value, str) and _PLAIN.fullmatch(value) else value


def _container(host):
    """A host as module local_cluster takes it."""
    return {"name": host.name, "cpus": host.cpus, "mem_mb": host.mem_mb}


def _server(host):
    """A host as module openstack_cluster takes it. One that says nothing of its size shall still do what it is for."""
    return {
        "name": host.name,
        "node": host.node,
        "cpus": host.cpus or 1,
        "mem_mb": host.mem_mb or SERVER_MEM_MB,
        "disk_gb": math.ceil(host.disk_mb * 10**6 / 2**30) if host.disk_mb else SERVER_DISK_GB,
        "roles": host.roles,
    }


def _connection(state):
    """How to reach hosts by SSH, with their keys checked against the deployment's list, never the user's."""
    return {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(state / "ssh" / "id_ed25519"),
        "ansible_ssh_common_args": _ssh_args(state),
    }


def _ssh_args(state, host=None, hosts=None):
    return shlex.join(sshkeys.options(state, host, hosts))

# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.dodas.cluster.plugins.module_utils.engine import marathon
from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError

# What each engine's modules take besides, from the host's variables of that name.
ENGINES = {"podman": (), "udocker": ("root", "address"), "marathon": ()}


class ActionModule(ActionBase):
    """Runs the module of the host's engine."""

    module = "app"
    takes = ("root", "address")

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        engine = self._variable(task_vars, "engine", "podman")
        if engine not in ENGINES:
            raise AnsibleActionFail(f"dodas_engine: {engine!r} is none of {', '.join(ENGINES)}")
        if engine == "marathon":
            return self._for_marathon(task_vars)
        besides = {name: self._variable(task_vars, name) for name in ENGINES[engine] if name in self.takes}
        given = {name: value for name, value in besides.items() if value is not None}
        name = f"dodas.cluster.{engine}_{self.module}"
        return self._execute_module(name, module_args={**self._task.args, **given}, task_vars=task_vars)

    def _for_marathon(self, task_vars):
        """Write the app's files where it may run; what Marathon is to be told is in the fact dodas_marathon_apps."""
        definition, files = self._task.args["definition"], self._task.args.get("files") or []
        name = str(definition.get("id", "")).strip("/")
        placement = self._variable(task_vars, "placement", {})
        placed = placement.get(name)
        if placed is None:
            raise AnsibleActionFail(f"dodas_placement does not say which hosts may run app {name}")
        if task_vars["inventory_hostname"] not in placed["hosts"]:
            return {"changed": False, "restarted": False}
        images = self._variable(task_vars, "registry_images", {})
        try:
            app = marathon.translate(definition, placed["agents"], images, placed["instances"], placement)
        except DefinitionError as exc:
            raise AnsibleActionFail(f"app definition: {exc}") from exc
        arguments = {"files": files, "folders": marathon.folders(definition)}
        result = self._execute_module("dodas.cluster.config_files", module_args=arguments, task_vars=task_vars)
        known = task_vars.get("dodas_marathon_apps") or {}
        found = {**known, name: {"definition": app, "digest": marathon.digest(files)}}
        return {**result, "restarted": False, "ansible_facts": {"dodas_marathon_apps": found}}

    def _variable(self, task_vars, name, default=None):
        value = task_vars.get(f"dodas_{name}")
        return default if value is None else self._templar.template(value)

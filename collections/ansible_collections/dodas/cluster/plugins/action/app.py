# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# What each engine's modules take besides, from the host's variables of that name.
ENGINES = {"podman": (), "udocker": ("root", "address")}


class ActionModule(ActionBase):
    """Runs the module of the host's engine."""

    module = "app"
    takes = ("root", "address")

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        engine = self._variable(task_vars, "engine", "podman")
        if engine not in ENGINES:
            raise AnsibleActionFail(f"dodas_engine: {engine!r} is none of {', '.join(ENGINES)}")
        besides = {name: self._variable(task_vars, name) for name in ENGINES[engine] if name in self.takes}
        given = {name: value for name, value in besides.items() if value is not None}
        name = f"dodas.cluster.{engine}_{self.module}"
        return self._execute_module(name, module_args={**self._task.args, **given}, task_vars=task_vars)

    def _variable(self, task_vars, name, default=None):
        value = task_vars.get(f"dodas_{name}")
        return default if value is None else self._templar.template(value)

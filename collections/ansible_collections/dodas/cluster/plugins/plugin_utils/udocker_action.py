# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs a module of the container runtime, with the program that it needs on the managed host."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ansible_collections.dodas.cluster.plugins.plugin_utils import udocker_program

FOLDER = "~/.ansible/udocker"


class UdockerAction(ActionBase):
    """The module of the same name, once; twice where the program has to be copied there first."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        ours = not arguments.get("program")
        if ours:
            arguments["program"] = f"{FOLDER}/{udocker_program.digest()}"
        for _try in range(2):
            found = self._execute_module(module_args=arguments, task_vars=task_vars)
            if not found.pop("program_missing", False):
                break
            if not ours:
                return {**result, "failed": True, "msg": f"program: {arguments['program']} cannot be executed"}
            copied = self._copy(arguments["program"], task_vars)
            if copied.get("failed"):
                return {**result, **copied}
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return {**result, **found}

    def _copy(self, target, task_vars):
        made = self._low_level_execute_command(f"umask 077 && mkdir -p {FOLDER}")
        if made["rc"]:
            return {"failed": True, "msg": f"{FOLDER} cannot be made: {made['stderr'].strip()}"}
        task = self._task.copy()
        task.args = {"src": udocker_program.path(), "dest": target, "mode": "0755"}
        task.check_mode = task.diff = False
        action = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy", task=task, connection=self._connection, play_context=self._play_context,
            loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )  # fmt: skip
        return action.run(task_vars=task_vars)

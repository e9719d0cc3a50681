# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.dodas.cluster.plugins.action import app
from ansible_collections.dodas.cluster.plugins.module_utils.engine import marathon


class ActionModule(app.ActionModule):
    """Asks the module of the host's engine."""

    module = "app_info"
    takes = ("root",)

    def _for_marathon(self, task_vars):
        """From what Marathon was asked for all hosts at once; apps that lack instances are the first master's."""
        apps = self._variable(task_vars, "marathon_found", [])
        found = marathon.states(apps, self._variable(task_vars, "agent"))
        if task_vars["inventory_hostname"] == task_vars["groups"]["marathon"][0]:
            found = {**marathon.states(apps), **found}
        return {"changed": False, "apps": found}

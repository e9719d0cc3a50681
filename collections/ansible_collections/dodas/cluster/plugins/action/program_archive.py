# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Takes an archive of the controller to a host that lacks what is in it."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        src, dest = str(arguments.get("src") or ""), str(arguments.get("dest") or "")
        if not src or re.match("[a-z]+://", src) or self._task.check_mode or self._remote_file_exists(dest):
            return self._execute_module(module_args=arguments, task_vars=task_vars)
        try:
            found = self._find_needle("files", src)
        except AnsibleError as exc:
            raise AnsibleActionFail(f"src: there is no file {src} on the controller") from exc
        try:
            copied = self._transfer_file(found, self._connection._shell.join_path(self._make_tmp_path(), "archive"))
            result = self._execute_module(module_args={**arguments, "src": copied}, task_vars=task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if result.get("failed"):
            result["msg"] = str(result.get("msg", "")).replace(copied, src)
        return result

# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: supervisor
short_description: The supervisor of hosts without root, as an archive
version_added: 0.1.0
author: [The dodas developers (@dodas)]
description:
  - Gives the path of a zip archive on the controller with the Python package C(supervisor) that is installed there,
    without what only its own tests and its web page need. It is plain Python, and runs wherever Python 3.8 does.
  - The same package makes the same archive.
requirements: [supervisor]
"""

EXAMPLES = r"""
- name: Copy the supervisor
  ansible.builtin.copy:
    src: "{{ lookup('dodas.cluster.supervisor') }}"
    dest: ~/supervisor.zip
"""

RETURN = r"""
_raw:
  description: The path; the file goes when the playbook ends.
  type: list
  elements: path
"""

import importlib.util
import os
import zipfile
from pathlib import Path

import ansible.constants as C
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

LEFT_OUT = {"tests", "ui", "skel", "scripts", "__pycache__"}
WHEN = (1980, 1, 1, 0, 0, 0)


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        found = importlib.util.find_spec("supervisor")
        if found is None:
            raise AnsibleLookupError("the Python package supervisor is not installed on the controller")
        package = Path(found.origin).parent
        target = Path(C.DEFAULT_LOCAL_TMP, "supervisor.zip")
        partial = target.with_name(f"supervisor.{os.getpid()}")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(package.rglob("*")):
                name = path.relative_to(package.parent)
                if path.is_file() and not LEFT_OUT & set(name.parts):
                    archive.writestr(zipfile.ZipInfo(str(name), WHEN), path.read_bytes(), zipfile.ZIP_DEFLATED)
        partial.replace(target)
        return [str(target)]

# SPDX-License-Identifier: Apache-2.0
"""Roles in check mode on this machine: what their preflight refuses, and with which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ansible_runtime import PROGRAMS, PROJECT


def refusals(folder, role, cases):
    """What the role said when it refused each of the cases, {name: variables}; None where it did not.

    One play has them all, as hosts of their names. The role must refuse before it needs another host than this one.
    """
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {name: {**here, **variables} for name, variables in cases.items()}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    said = folder / "said"
    said.mkdir()
    keep = {"ansible.builtin.copy": {"dest": f"{said}/{{{{ inventory_hostname }}}}",
                                     "content": "{{ ansible_failed_result.msg }}"},
            "check_mode": False}  # fmt: skip
    tasks = [{"block": [{"ansible.builtin.include_role": {"name": role}}], "rescue": [keep]}]
    (folder / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(PROJECT / "collections"),
        "ANSIBLE_ROLES_PATH": str(PROJECT / "roles"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "HOME": str(folder),
    }
    environment.pop("ANSIBLE_CONFIG", None)
    command = [PROGRAMS / "ansible-playbook", "-i", folder / "hosts.json", "--check", folder / "play.json"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    found = {path.name: path.read_text() for path in said.iterdir()}
    assert done.returncode == 0 or set(found) != set(cases), done.stdout + done.stderr
    return {name: found.get(name) for name in cases}

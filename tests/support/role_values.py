# SPDX-License-Identifier: Apache-2.0
"""What a role makes of its variables, without a host that it is used on."""

from __future__ import annotations

import json

from ansible_runtime import PROJECT, Ansible


def evaluate(ansible: Ansible, role: str, cases: list[dict], *names: str) -> list[dict]:
    """What variables `names` of the role, private ones as well, are with each of `cases` (variables)."""
    folder = ansible.folder / "roles" / role
    if not folder.exists():
        (folder / "tasks").mkdir(parents=True)
        for one in ("defaults", "vars", "templates", "files"):
            if (PROJECT / "roles" / role / one).exists():
                (folder / one).symlink_to(PROJECT / "roles" / role / one)
    values = ", ".join(f"'{name}': {name}" for name in names)
    keep = {"shown": f"{{{{ shown | default([]) + [{{{values}}}] }}}}"}
    tasks = [{"name": "Values", "ansible.builtin.set_fact": keep, "vars": case} for case in cases]
    (folder / "tasks/values.yml").write_text(json.dumps(tasks))
    done = ansible.play(
        ("ansible.builtin.include_role", {"name": role, "tasks_from": "values"}),
        ("ansible.builtin.set_fact", {"values": "{{ shown }}"}),
    )
    return done.results[-1]["ansible_facts"]["values"]

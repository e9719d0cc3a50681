#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_host
short_description: A folder that stands for a host, where a plain user runs apps
version_added: 0.1.0
description:
  - Makes the folder, and runs a supervisor and the app agent in it. M(dodas.cluster.udocker_app) then runs apps there.
  - They are started again with the machine by the user's systemd where that runs without a login (C(loginctl
    enable-linger)), or else by cron.
  - Removing the host ends all that runs in it, and leaves nothing.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  - dodas.cluster.attributes
  - dodas.cluster.attributes.diff
  - dodas.cluster.app.place
options:
  supervisor:
    description: A zip archive, on the host, of the Python package C(supervisor).
    type: path
  agent:
    description: The text of the app agent.
    type: str
  image_store:
    description: A store of the runtime on the same machine, whose images this host has too; none when empty.
    type: path
  consul:
    description: C(HOST:PORT) of the Consul agent that apps are registered with; none when empty.
    type: str
    default: ""
  state:
    description: Whether the host shall be there.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Make a host of a folder
  dodas.cluster.udocker_host:
    root: ~/.local/share/dodas/campus
    supervisor: ~/.local/share/dodas/campus/lib/supervisor.zip
    agent: "{{ lookup('ansible.builtin.file', 'dodas_agent.py') }}"
"""

RETURN = r"""
boot:
  description: What starts it with the machine, V(systemd) or V(cron); empty when nothing does.
  returned: always
  type: str
"""

import os
import pwd
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.engine.plainhost import PlainHost

SHARED = ("blobs", "images", "layers")


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "supervisor": {"type": "path"},
            "agent": {"type": "str"},
            "image_store": {"type": "path"},
            "consul": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("supervisor", "agent"))],
        supports_check_mode=True,
    )
    try:
        host = PlainHost(module.params["root"])
        result = (_present if module.params["state"] == "present" else _absent)(module, host)
        module.exit_json(boot=host.boot(), **result)
    except (EngineError, OSError, ValueError) as exc:
        module.fail_json(msg=str(exc))


def _present(module, host):
    parameters = module.params
    mine = pwd.getpwuid(os.geteuid()).pw_name
    agent = ConfigFile(host.lib / "dodas_agent.py", parameters["agent"], 0o644, mine)
    files = [one for one in host.files(parameters["consul"]) if one.differs()]
    new_agent, up = agent.differs(), host.is_up()
    archive = Path(parameters["supervisor"])
    new_supervisor = not archive.exists() or host.supervisor_differs(archive)
    links = _links(host, parameters["image_store"])
    changed = bool(files or links or new_agent or new_supervisor or not up)
    if not module.check_mode:
        host.make_folders()
        for path, target in links.items():
            path.symlink_to(target)
        for one in [*files, *([agent] if new_agent else [])]:
            one.write()
        if new_supervisor:
            host.unpack_supervisor(archive)
        kept = host.boot()
        if host.keep() != kept:
            changed = True
        if files or new_supervisor or not up:
            host.reload()
        elif new_agent:
            host.update("dodas-agent")
    shown = [one.diff() for one in [*files, *([agent] if new_agent else [])]]
    return {"changed": changed, "diff": shown}


def _links(host, store):
    """What of the store is another's: {path: target} of those links that are missing."""
    wanted = {host.store / name: Path(store, name) for name in SHARED} if store else {}
    return {path: target for path, target in wanted.items() if not path.is_symlink()}


def _absent(module, host):
    if module.check_mode:
        return {"changed": host.root.exists() or host.boot() != ""}
    return {"changed": host.remove()}


if __name__ == "__main__":
    main()

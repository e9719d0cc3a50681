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
  images:
    description:
      - References of images that the host gets from those that M(dodas.cluster.container_image) built with udocker for
        the same user on the same machine. Their layers are shared.
    type: list
    elements: str
    default: []
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
from ansible_collections.dodas.cluster.plugins.module_utils.images import builders
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import errors


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "supervisor": {"type": "path"},
            "agent": {"type": "str"},
            "images": {"type": "list", "elements": "str", "default": []},
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
    except (EngineError, OSError, ValueError, errors.Error) as exc:
        module.fail_json(msg=str(exc))


def _present(module, host):
    parameters = module.params
    mine = pwd.getpwuid(os.geteuid()).pw_name
    agent = ConfigFile(host.lib / "dodas_agent.py", parameters["agent"], 0o644, mine)
    files = [one for one in host.files(parameters["consul"]) if one.differs()]
    new_agent, up = agent.differs(), host.is_up()
    archive = Path(parameters["supervisor"])
    new_supervisor = not archive.exists() or host.supervisor_differs(archive)
    names = _names(host, parameters["images"], module.check_mode)
    changed = bool(files or names or new_agent or new_supervisor or not up)
    if not module.check_mode:
        host.make_folders()
        builders.Udocker().provide(names, host.store)
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


def _names(host, references, check):
    """Names of the images, by their content and as the latest, that stand for another image on the host or for none.

    With `check` they may not have been built yet.
    """
    ours = builders.Udocker().store
    found = []
    for name in [name for one in references for name in (one, f"{one.rpartition(':')[0]}:latest")]:
        try:
            wanted = ours.image(name).config
        except errors.NotFound:
            if not check:
                raise
            wanted = None
        if wanted is None or host.image_id(name) != wanted:
            found.append(name)
    return found


def _absent(module, host):
    if module.check_mode:
        return {"changed": host.root.exists() or host.boot() != ""}
    return {"changed": host.remove()}


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_host_info
short_description: What a plain user's host can do, and has
version_added: 0.1.0
description:
  - Says whether containers can run here without root, and fails with what the machine would need where they cannot.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.app.place]
options:
  min_free_disk_mb:
    description: Free space (MiB) that the folder's file system must have.
    type: int
    default: 0
  images:
    description: References of images that are looked for in the host's store.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Look at the host
  dodas.cluster.udocker_host_info:
    root: ~/.local/share/dodas/campus
"""

RETURN = r"""
ids:
  description: Whether users of containers are real ones (V(subids)), or all the same (V(one)).
  returned: always
  type: str
boot:
  description: What starts the host with the machine, V(systemd) or V(cron); empty when nothing does.
  returned: always
  type: str
missing_images:
  description: Those of O(images) that are not there.
  returned: always
  type: list
  elements: str
"""

import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.engine.plainhost import PlainHost
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import errors


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "min_free_disk_mb": {"type": "int", "default": 0},
            "images": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        host = PlainHost(module.params["root"])
        ids = host.ids()
        place = next(path for path in (host.root, *host.root.parents) if path.exists())
        free, wanted = shutil.disk_usage(place).free // 2**20, module.params["min_free_disk_mb"]
        if free < wanted:
            module.fail_json(msg=f"{place}: {free} MB free, {wanted} MB needed")
        missing = [name for name in module.params["images"] if host.image_id(name) is None]
        module.exit_json(changed=False, ids=ids, boot=host.boot(), missing_images=missing)
    except (EngineError, OSError, ValueError, errors.Error) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

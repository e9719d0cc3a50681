#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Several small files in one task
version_added: 0.1.0
description:
  - Writes files with the content, mode and owner given, and makes the directories that they are in.
  - Each is replaced as a whole, or written in place where it is a mount (a container's resolv.conf).
  - One task for all the files of a service, because each task costs a round trip to every host.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.files]
attributes:
  diff_mode:
    details: Files that only their owner may read are named and not shown.
options:
  files:
    description: The files.
    required: true
  folders:
    description: Folders that have to be there; those that are missing are made with mode V(0755).
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Configure the engine
  dodas.cluster.config_files:
    files:
      - path: /etc/containers/storage.conf
        content: "{{ lookup('ansible.builtin.template', 'storage.conf.j2') }}"
"""

RETURN = r"""
paths:
  description: The files that differed and the folders that were missing.
  returned: always
  type: list
  elements: str
"""

import os

from ansible_collections.dodas.cluster.plugins.module_utils import configfiles
from ansible_collections.dodas.cluster.plugins.module_utils.module import FILES, Module


def main():
    folders = {"type": "list", "elements": "path", "default": []}
    module = Module(argument_spec={"files": {**FILES, "required": True}, "folders": folders}, supports_check_mode=True)
    given, module.params["files"] = module.params["files"], [one["path"] for one in module.params["files"]]
    try:
        files = [configfiles.ConfigFile.parse(one) for one in given]
        changed = [one for one in files if one.differs()]
        missing = [path for path in module.params["folders"] if not os.path.isdir(path)]
        diff = [one.diff() for one in changed]
        if not module.check_mode:
            for path in missing:
                os.makedirs(path)
            for one in changed:
                one.write()
        paths = [*missing, *(str(one.path) for one in changed)]
        module.exit_json(changed=bool(paths), paths=paths, diff=diff)
    except (OSError, ValueError, LookupError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

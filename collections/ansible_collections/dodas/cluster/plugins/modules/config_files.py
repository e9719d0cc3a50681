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
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Shows the files before and after; files that only their owner may read are only named.
    support: full
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path on the host.
        type: path
        required: true
      content:
        description: The file's text.
        type: str
        required: true
      mode:
        description: The file's mode.
        type: str
        default: "0644"
      owner:
        description: The file's user.
        type: str
        default: root
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
  description: The files that differed.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import configfiles


class Module(AnsibleModule):
    """Keeps its invocation out of the host's journal: it may hold secrets, and `no_log` would hide the diff as well."""

    def _log_invocation(self):
        pass


def main():
    file = {
        "path": {"type": "path", "required": True},
        # may hold a secret: kept out of the journal and of the result, and of diffs where the mode keeps others out
        "content": {"type": "str", "required": True, "no_log": False},
        "mode": {"type": "str", "default": "0644"},
        "owner": {"type": "str", "default": "root"},
    }
    module = Module(
        argument_spec={"files": {"type": "list", "elements": "dict", "options": file, "required": True}},
        supports_check_mode=True,
    )
    given, module.params["files"] = module.params["files"], [one["path"] for one in module.params["files"]]
    try:
        files = [configfiles.ConfigFile.parse(one) for one in given]
        changed = [one for one in files if one.differs()]
        diff = [one.diff() for one in changed]
        if not module.check_mode:
            for one in changed:
                one.write()
        module.exit_json(changed=bool(changed), paths=[str(one.path) for one in changed], diff=diff)
    except (OSError, ValueError, LookupError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

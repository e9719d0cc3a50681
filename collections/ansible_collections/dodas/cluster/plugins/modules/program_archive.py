#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: program_archive
short_description: A program that comes as a tar archive
version_added: 0.1.0
description:
  - Fetches an archive, compares its checksum, unpacks it, and sees that the programs are in it.
  - The folder is there when all of that went well, and not there otherwise.
  - One task, because each task costs a round trip to every host.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes]
requirements:
  - the command tar, and what it needs for the archive's compression
options:
  src:
    description: URL (http, https, file) from which the host fetches the archive, or its path on the controller.
    type: str
    required: true
  checksum:
    description: The archive's checksum, V(sha256:) and 64 hex digits.
    type: str
    required: true
  dest:
    description: The folder. One that is there already is left as it is, so its name should follow from the checksum.
    type: path
    required: true
  strip:
    description: So many leading parts of the names in the archive are left out.
    type: int
    default: 0
  programs:
    description: Files that must be in the archive and executable, below O(dest).
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds until the server of the archive must answer, and between two parts of it.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Install Mesos
  dodas.cluster.program_archive:
    src: /srv/archives/mesos.tar.xz
    checksum: "{{ mesos_archive_checksum }}"
    dest: "/opt/mesos/{{ mesos_archive_checksum[7:] }}"
    programs: [bin/mesos-master, bin/mesos-agent]
"""

RETURN = r"""
path:
  description: The folder.
  returned: always
  type: str
"""

import re
import tempfile
from pathlib import Path

from ansible.module_utils.urls import open_url

from ansible_collections.dodas.cluster.plugins.module_utils import archives
from ansible_collections.dodas.cluster.plugins.module_utils.module import Module


def main():
    module = Module(
        argument_spec={
            "src": {"type": "str", "required": True},
            "checksum": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "strip": {"type": "int", "default": 0},
            "programs": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        archives.check(given["checksum"])
        unpacked = archives.Unpacked(given["dest"])
        changed = not unpacked.is_there()
        if changed and not module.check_mode:
            _unpack(unpacked, given)
        module.exit_json(changed=changed, path=str(unpacked.path))
    except (OSError, ValueError, archives.ArchiveError) as exc:
        module.fail_json(msg=str(exc) if isinstance(exc, archives.ArchiveError) else f"{given['src']}: {exc}")


def _unpack(unpacked, given):
    # Beside the folder: /tmp may be small, and /opt has to have room anyway.
    unpacked.path.parent.mkdir(parents=True, exist_ok=True)
    name = given["src"]
    with tempfile.NamedTemporaryFile(dir=unpacked.path.parent, prefix=".archive.") as archive:
        with _open(name, given["timeout"]) as source:
            archives.copy(source, archive, given["checksum"], name)
        unpacked.unpack(Path(archive.name), given["strip"], given["programs"], name)


def _open(src, timeout):
    if re.match("(https?|file)://", src):
        return open_url(src, timeout=timeout)
    return open(src, "rb")


if __name__ == "__main__":
    main()

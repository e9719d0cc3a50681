#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Debian packages that a host must have
version_added: 0.1.0
description:
  - Installs the packages that are missing, without those that are only recommended.
  - Needs nothing on the host but apt-get, so that check mode works on a host on which nothing was installed yet, where
    M(ansible.builtin.apt) needs python3-apt, and where the source of a package is not configured yet.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes, dodas.cluster.attributes.diff]
options:
  names:
    description: The packages.
    type: list
    elements: str
    required: true
  max_age:
    description: Age in seconds from which package lists are fetched anew before something is installed.
    type: int
    default: 3600
  services:
    description: Whether services that come with the packages are started.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Install podman
  dodas.cluster.packages:
    names: [podman, crun]
"""

RETURN = r"""
installed:
  description: The packages that were missing.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import host, packages


def main():
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "max_age": {"type": "int", "default": 3600},
            "services": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    names, max_age, services = (module.params[one] for one in ("names", "max_age", "services"))
    try:
        missing = host.missing_packages(names)
        if missing and not module.check_mode:
            packages.install(missing, max_age, services)
    except (packages.PackageError, OSError) as exc:
        module.fail_json(msg=str(exc))
    after = "".join(f"{name}\n" for name in missing)
    diff = {"before_header": "packages", "after_header": "packages", "before": "", "after": after}
    module.exit_json(changed=bool(missing), installed=missing, diff=diff)


if __name__ == "__main__":
    main()

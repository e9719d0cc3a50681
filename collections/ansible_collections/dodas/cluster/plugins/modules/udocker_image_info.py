#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_image_info
short_description: Container images that are there
version_added: 0.1.0
description:
  - Reads which images of the container runtime of this collection a user has.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.udocker]
options:
  name:
    description: Name of an image. Default is all.
    type: str
"""

EXAMPLES = r"""
- name: Look at the image
  dodas.cluster.udocker_image_info:
    name: debian:12
  register: debian
"""

RETURN = r"""
images:
  description: They; none where O(name) is not there.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Its full name.
      type: str
      returned: always
      sample: registry.example.org/team/analysis:3
    digest:
      description: Digest of its manifest.
      type: str
      returned: always
    id:
      description: Digest of its configuration.
      type: str
      returned: always
    platform:
      description: System and architecture that it is for.
      type: str
      returned: always
      sample: linux/amd64
    size:
      description: Bytes of its layers as they were got.
      type: int
      returned: always
    layers:
      description: Digests of its layers, lowest first.
      type: list
      elements: str
      returned: always
    created:
      description: When it came here, in seconds since the epoch.
      type: float
      returned: always
    config:
      description: What it says of how it is run, as C(docker inspect) does.
      type: dict
      returned: always
"""

import json

from ansible_collections.dodas.cluster.plugins.module_utils import udocker_module


def main():
    module = udocker_module.UdockerModule(
        argument_spec={**udocker_module.ROOT, "name": {"type": "str"}}, supports_check_mode=True
    )
    udocker_module.run(module, look)


def look(module):
    name = module.params["name"]
    found = module.store.images() if not name else [one for one in [module.image(name)] if one]
    module.exit_json(changed=False, images=[_describe(module, one) for one in found])


def _describe(module, image):
    configuration = json.loads(module.store.read_blob(image.config))
    return {**udocker_module.describe(image), "config": configuration.get("config") or {}}


if __name__ == "__main__":
    main()

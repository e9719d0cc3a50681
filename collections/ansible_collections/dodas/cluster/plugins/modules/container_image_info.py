#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_image_info
short_description: Which container images are built
version_added: 0.1.0
description:
  - Lists the images of a folder of image folders, and whether the image store has their present content.
author: [The dodas developers (@dodas)]
requirements: [podman for O(engine=podman), PyYAML]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  folder:
    description: The folder that has one folder an image.
    type: path
    required: true
  project:
    description: The folder that C(# inputs) lines in Containerfiles are relative to.
    type: path
    required: true
  engine:
    description: Whose images, see M(dodas.cluster.container_image).
    type: str
    choices: [podman, udocker]
    default: podman
"""

EXAMPLES = r"""
- name: List the images
  dodas.cluster.container_image_info:
    folder: containers
    project: .
"""

RETURN = r"""
images:
  description: One entry an image.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The image's name.
      returned: always
      type: str
    reference:
      description: Its name in the store, with the content as the tag.
      returned: always
      type: str
    present:
      description: Whether the store has it.
      returned: always
      type: bool
    size:
      description: Size in bytes, where it is present.
      returned: always
      type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.images import build, builders, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error


def main():
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "project": {"type": "path", "required": True},
            "engine": {"type": "str", "choices": ["podman", "udocker"], "default": "podman"},
        },
        supports_check_mode=True,
    )
    try:
        builder = builders.builder(module.params["engine"])
        images = catalogue.catalogue(module.params["folder"], module.params["project"])
        module.exit_json(changed=False, images=build.listing(builder, images.values()))
    except (OSError, ValueError, catalogue.ImageError, PodmanError, Error) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

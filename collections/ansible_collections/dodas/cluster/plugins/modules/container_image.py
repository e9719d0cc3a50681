#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_image
short_description: Build container images from folders, cached by content
version_added: 0.1.0
description:
  - Builds images of a folder of image folders into the image store of this machine, several at once.
  - An image is built only when its folder, the files it copies or the image below it changed.
author: [The dodas developers (@dodas)]
requirements: [podman and mmdebstrap for O(engine=podman), PyYAML]
extends_documentation_fragment: [dodas.cluster.attributes]
options:
  names:
    description: Images to build, with those that they are built on. All when not given.
    type: list
    elements: str
  folder:
    description: The folder that has one folder an image.
    type: path
    required: true
  project:
    description: The folder that C(# inputs) lines in Containerfiles are relative to.
    type: path
    required: true
  archives:
    description:
      - Sets of images, each the list of its names, that are also saved as one archive a set, for hosts that have no
        access to the store. Archives are beside the store.
    type: list
    elements: list
    default: []
  jobs:
    description: How many to build at once.
    type: int
    default: 2
  engine:
    description:
      - Who builds the images and keeps them. V(podman) needs root; V(udocker), our own runtime, runs as any user.
      - Images of the two are in different stores. Both are below E(DODAS_IMAGES), where that is set.
    type: str
    choices: [podman, udocker]
    default: podman
"""

EXAMPLES = r"""
- name: Build the image of squid
  dodas.cluster.container_image:
    names: [squid]
    folder: containers
    project: .
"""

RETURN = r"""
images:
  description: The reference of each image by name.
  returned: always
  type: dict
built:
  description: Seconds that each image took that was built.
  returned: always
  type: dict
archives:
  description: The archive of each set, by its names joined with commas. Empty in check mode.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.images import build, builders, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error


def main():
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "folder": {"type": "path", "required": True},
            "project": {"type": "path", "required": True},
            "archives": {"type": "list", "elements": "list", "default": []},
            "jobs": {"type": "int", "default": 2},
            "engine": {"type": "str", "choices": ["podman", "udocker"], "default": "podman"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    if parameters["jobs"] < 1:
        module.fail_json(msg=f"jobs: {parameters['jobs']} must be at least 1")
    try:
        builder = builders.builder(parameters["engine"])
        images = catalogue.catalogue(parameters["folder"], parameters["project"])
        wanted = catalogue.with_parents(images, parameters["names"] or list(images))
        todo = build.missing(builder, wanted)
        references = {image.name: image.reference for image in wanted}
        result = {"images": references, "built": {}, "archives": {}, "changed": bool(todo)}
        if not module.check_mode:
            result["built"] = build.build(builder, wanted, parameters["project"], parameters["jobs"])
            for names in parameters["archives"]:
                path, made = build.archive(builder, [images[name] for name in names], builder.archives)
                result["archives"][",".join(names)] = path
                result["changed"] = result["changed"] or made
        module.exit_json(**result)
    except (OSError, ValueError, catalogue.ImageError, PodmanError, Error) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

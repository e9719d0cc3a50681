#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_image
short_description: Build disk images of hosts in a cloud and upload them, cached by content
version_added: 0.1.0
description:
  - Builds disk images (qcow2) of hosts with packages and container images in them. An image is built only when what
    is in it changed; package versions are those of the day it was built.
  - With O(cloud), images are uploaded there, once for the same content. What the cloud has is not built here.
author: [The dodas developers (@dodas)]
requirements:
  - root, podman, mmdebstrap, qemu-utils, e2fsprogs, fdisk, dosfstools, mtools, grub-common, grub-pc-bin and
    grub-efi-amd64-bin
  - PyYAML
  - openstacksdk for O(cloud)
extends_documentation_fragment: [dodas.cluster.attributes]
options:
  names:
    description: The disk images. All when not given.
    type: list
    elements: str
  folder:
    description: The folder that has one folder a disk image.
    type: path
    required: true
  project:
    description: The folder that has the roles and the container images, as C(roles) and C(containers).
    type: path
    required: true
  cloud:
    description:
      - The cloud that the images are for, an entry of C(clouds.yaml).
      - Without it the cloud is not looked at.
    type: str
  region:
    description: Its region, where it has several.
    type: str
"""

EXAMPLES = r"""
- name: Have the image of hosts in the cloud
  dodas.cluster.node_image:
    names: [debian-12]
    folder: nodes
    project: .
    cloud: mycloud
"""

RETURN = r"""
images:
  description: One entry a disk image.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The image's name.
      returned: always
      type: str
    reference:
      description: Its name in a cloud, with its content.
      returned: always
      type: str
    content:
      description: The hash of everything that goes in.
      returned: always
      type: str
    path:
      description: Its file on this machine; null where it is not built.
      returned: always
      type: str
    size:
      description: Size of the file in bytes, 0 where it is not built.
      returned: always
      type: int
    cloud_id:
      description: Its id in the cloud; null where that has none of this content, or was not asked.
      returned: always
      type: str
built:
  description: Seconds that each image took that was built.
  returned: always
  type: dict
uploaded:
  description: The names of the images that were uploaded.
  returned: always
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build, node_upload
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError


def main():
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "folder": {"type": "path", "required": True},
            "project": {"type": "path", "required": True},
            "cloud": {"type": "str"},
            "region": {"type": "str"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    result = {"images": [], "built": {}, "uploaded": [], "changed": False}
    try:
        wanted = node.named(node.catalogue(parameters["folder"], parameters["project"]), parameters["names"] or [])
        glance = node_upload.connect(parameters["cloud"], parameters["region"]) if parameters["cloud"] else None
        for one in wanted:
            image = glance.present(one) if glance else None
            there = node_build.present(one)
            missing = not image and (glance is not None or not there)
            result["changed"] = result["changed"] or missing
            if missing and not module.check_mode:
                start = time.monotonic()
                if not there:
                    there = node_build.build(one, parameters["project"])
                    result["built"][one.name] = round(time.monotonic() - start, 1)
                if glance:
                    image = glance.upload(one, there)
                    result["uploaded"].append(one.name)
            result["images"].append(node_upload.described(one, there, image))
        module.exit_json(**result)
    except (OSError, ValueError, ImageError, PodmanError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

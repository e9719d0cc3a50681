#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_image_info
short_description: Which disk images of hosts are built and in a cloud
version_added: 0.1.0
description:
  - Lists the disk images of a folder of such, whether this machine has their present content, and whether a cloud has.
author: [The dodas developers (@dodas)]
requirements: [PyYAML, openstacksdk for O(cloud)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
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
- name: Look for the image of hosts in the cloud
  dodas.cluster.node_image_info:
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
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build, node_upload
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError


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
    try:
        wanted = node.named(node.catalogue(parameters["folder"], parameters["project"]), parameters["names"] or [])
        glance = node_upload.connect(parameters["cloud"], parameters["region"]) if parameters["cloud"] else None
        found = [
            node_upload.described(one, node_build.present(one), glance.present(one) if glance else None)
            for one in wanted
        ]
        module.exit_json(changed=False, images=found)
    except (OSError, ValueError, ImageError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

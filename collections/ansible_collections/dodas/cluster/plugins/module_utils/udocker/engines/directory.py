# SPDX-License-Identifier: Apache-2.0
"""Containers whose root is a plain tree of files: the fastest for work on many files, at the price of a copy.

Copies share blocks with the layers where the file system can (XFS, Btrfs, ZFS, NFS 4.2), so that only small records
are written. With UDOCKER_LINKS=1 files are hard links to those of the image, which takes less still: what then is
written in place changes the image and all its containers, so that this is for images that are only read.
"""

import os

from .. import linux, trees
from ..errors import Error
from .namespaced import Namespaced


class Directory(Namespaced):
    name = "directory"

    def prepare(self, directory, layers, links=None):
        links = os.environ.get("UDOCKER_LINKS") == "1" if links is None else links
        trees.merge(layers, os.path.join(directory, "ROOT"), links)

    def mount_root(self, directory, layers, volatile=False):
        folder = os.path.realpath(os.path.join(directory, "ROOT"))
        try:
            linux.mount(folder, folder, None, linux.MS_BIND | linux.MS_REC)
        except OSError as exc:
            raise Error(f"{folder} cannot be the root of a container: {exc.strerror}", 125) from exc
        return folder

    def clone(self, directory, target):
        trees.copy(os.path.join(directory, "ROOT"), os.path.join(target, "ROOT"))

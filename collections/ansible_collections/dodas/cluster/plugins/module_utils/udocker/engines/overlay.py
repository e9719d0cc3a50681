# SPDX-License-Identifier: Apache-2.0
"""Containers whose root is an overlay of the image's layers, mounted in a user namespace: the engine of choice.

A new container costs three folders. Layers are named to the kernel by the numbers of open descriptors, relative to
/proc/self/fd: a mount's options must fit into a page, and names of layers would not.
"""

import os

from .. import linux, trees
from ..errors import Error
from .namespaced import Namespaced


class Overlay(Namespaced):
    name = "overlay"

    def prepare(self, directory, layers):
        for name in ("ROOT", "upper", "work"):
            os.makedirs(os.path.join(directory, name), exist_ok=True)
        # What is seen as the root folder itself is the uppermost.
        os.chmod(os.path.join(directory, "upper"), os.stat(layers[-1]).st_mode & 0o7777 if layers else 0o755)

    def mount_root(self, directory, layers, volatile=False):
        target = os.path.join(directory, "ROOT")
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            opened = [os.open(path, flags) for path in reversed(layers)]
            upper, work = (os.open(os.path.join(directory, name), flags) for name in ("upper", "work"))
        except OSError as exc:
            raise Error(f"{exc.filename}: {exc.strerror}: the container or its image is not whole here", 125) from exc
        lower = ":".join(map(str, opened)) or str(os.open(target, flags))
        options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
        os.chdir("/proc/self/fd")
        try:
            linux.mount("overlay", target, "overlay", linux.MS_NODEV, options + (",volatile" if volatile else ""))
        except OSError as exc:
            raise Error(f"an overlay cannot be mounted on {target}: {exc.strerror}", 125) from exc
        finally:
            os.chdir("/")
            for descriptor in (*opened, upper, work):
                os.close(descriptor)
        return target

    def clone(self, directory, target):
        os.mkdir(os.path.join(target, "ROOT"))
        os.mkdir(os.path.join(target, "work"))
        trees.copy(os.path.join(directory, "upper"), os.path.join(target, "upper"))

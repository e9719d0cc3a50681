# SPDX-License-Identifier: Apache-2.0
"""Containers whose root fuse-overlayfs mounts: where the kernel's overlay may not be used, and /dev/fuse may.

A program `fuse-overlayfs` is needed: on PATH, or named by UDOCKER_FUSE_OVERLAYFS. It serves the container from within
its namespaces and ends with them.
"""

import os

from .. import linux, userns
from ..errors import Error
from .overlay import Overlay


class Fuse(Overlay):
    name = "fuse"
    alone = linux.CLONE_NEWPID  # so that what serves the files ends

    def mount_root(self, directory, layers, volatile=False):
        target = os.path.join(directory, "ROOT")
        upper, work = (os.path.join(directory, name) for name in ("upper", "work"))
        lower = ":".join(_escaped(path) for path in dict.fromkeys(reversed(layers))) or _escaped(target)
        options = f"lowerdir={lower},upperdir={_escaped(upper)},workdir={_escaped(work)}"
        program = os.environ.get("UDOCKER_FUSE_OVERLAYFS") or userns.program("fuse-overlayfs")
        if not program:
            raise Error("engine fuse needs a program fuse-overlayfs: package fuse-overlayfs", 125)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise Error("engine fuse needs /dev/fuse, which this user may not open", 125)
        source, sink = os.pipe()
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, sink, 1),
                   (os.POSIX_SPAWN_DUP2, sink, 2)]  # fmt: skip
        pid = os.posix_spawn(program, [program, "-o", options, target], os.environ, file_actions=actions)
        os.close(sink)
        # It goes to the background when it serves, and closes its output then.
        status = os.waitpid(pid, 0)[1]
        with open(source, "rb") as stream:
            said = stream.read().decode("utf-8", "replace").strip() if status else ""
        if status:
            raise Error(f"fuse-overlayfs cannot mount {target}: {said or status}", 125)
        return target


def _escaped(path):
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")

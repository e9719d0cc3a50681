# SPDX-License-Identifier: Apache-2.0
"""Containers whose root is an overlay of the image's layers, mounted in a user namespace: the engine of choice.

A new container costs three folders. Layers are named to the kernel by the numbers of open descriptors, relative to
/proc/self/fd: a mount's options must fit into a page, and names of layers would not.

What costs more than on the file system below: to delete what a layer holds. For each file overlay links and renames a
whiteout (35 microseconds of CPU, whatever the options: volatile, xino and index make no difference), and for each
folder that had something in it a stand-in is made, exchanged, emptied and deleted: two folders lose their blocks.
Where the file system is mounted with `discard` and has no journal, each of these waits for the device (1.5 ms and
more), as each deletion of a real file does there without any overlay, which takes far longer: `rm -rf` of 50,000 files
in 500 folders waits 1,100 times on overlay, and 50,900 times below it. Upper folders on tmpfs (UDOCKER_SCRATCH) do
not wait. What udocker itself deletes, it deletes several files at a time where it finds itself waiting (see trees).
A layer's folder cannot be renamed (EXDEV, since redirect_dir is not for user namespaces): programs copy it then.
"""

import os
import stat

from .. import linux, trees
from ..errors import Error
from .namespaced import Namespaced


class Overlay(Namespaced):
    name = "overlay"
    scratch = None  # a folder on this machine for `upper` and `work`, where they cannot be beside the rest

    def prepare(self, directory, layers):
        os.makedirs(os.path.join(directory, "ROOT"), exist_ok=True)
        upper = os.path.join(self._place(directory), "upper")
        os.mkdir(upper)
        # What is seen as the root folder itself is the uppermost.
        os.chmod(upper, os.stat(layers[-1]).st_mode & 0o7777 if layers else 0o755)

    def clone(self, directory, target):
        os.makedirs(os.path.join(target, "ROOT"), exist_ok=True)
        trees.copy(os.path.join(directory, "upper"), os.path.join(self._place(target), "upper"))

    def remove(self, directory):
        for path in (directory, os.path.join(directory, "upper")):
            if os.path.islink(path) and os.path.basename(os.path.dirname(os.readlink(path))).startswith("container-"):
                trees.remove(os.path.dirname(os.readlink(path)))
        super().remove(directory)

    def _place(self, directory):
        """The folder where `upper` is to be made; `work` is there already. Links lead to it where it is elsewhere."""
        if not self.scratch:
            os.mkdir(os.path.join(directory, "work"))
            return directory
        folder = os.path.join(self.scratch, f"udocker-{os.geteuid()}")
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            status = os.lstat(folder)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise Error(f"{folder} is not this user's alone: remove it, or set UDOCKER_SCRATCH", 125) from None
        import tempfile

        place = tempfile.mkdtemp(prefix="container-", dir=folder)
        os.mkdir(os.path.join(place, "work"))
        for name in ("upper", "work"):
            os.symlink(os.path.join(place, name), os.path.join(directory, name))
        return place

    def mount_root(self, directory, layers, volatile=False):
        target = os.path.join(directory, "ROOT")
        flags = os.O_RDONLY | os.O_DIRECTORY
        opened = [] if layers else [os.open(target, flags)]
        try:
            # A layer may be there twice (an empty one); overlay takes each once, and the upper hides the lower.
            own = (os.path.join(directory, name) for name in ("upper", "work"))
            for path in [*dict.fromkeys(reversed(layers)), *own]:
                opened.append(os.open(path, flags))
        except OSError as exc:
            where = exc.filename
            if os.path.islink(where):
                where = f"{os.readlink(where)}, on the machine where the container was made"
            raise Error(f"{where}: {exc.strerror}: the container or its image is not whole here", 125) from exc
        *lower, upper, work = map(str, opened)
        options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},userxattr"
        options += ",volatile" if volatile else ""
        _forget_volatile(opened[-1])
        os.chdir("/proc/self/fd")
        try:
            linux.mount("overlay", target, "overlay", linux.MS_NODEV, options)
        except OSError as exc:
            raise Error(f"an overlay cannot be mounted on {target}: {exc.strerror}", 125) from exc
        finally:
            os.chdir("/")
            for descriptor in opened:
                os.close(descriptor)
        return target


def _forget_volatile(work):
    """Let an overlay be mounted again that was `volatile`: its files are whole unless the machine itself went down."""
    try:
        inner = os.open("work", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=work)
    except OSError:
        return  # never mounted
    try:
        trees.remove_at(inner, "incompat")
    except FileNotFoundError:
        pass
    finally:
        os.close(inner)

# SPDX-License-Identifier: Apache-2.0
"""File systems of a container: what is mounted below its root before the process starts.

Called in the container's own mount namespace, before the root is changed. Symbolic links in an image may point
anywhere: a target is looked for from component to component, and links are taken as the container would take them.
"""

import errno
import os
import stat

from . import linux
from .errors import Error

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = "null", "zero", "full", "random", "urandom", "tty"
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx"),
          ("core", "/proc/kcore"))  # fmt: skip
_LINK_LIMIT = 40


def resolve(root, path, make=None, follow=True):
    """Descriptor (O_PATH) of `path` below folder descriptor `root`, as the container sees it: nothing leads outside.

    make: "folder" or "file" makes what is missing, parents as folders; follow: of a link at the end, what it points to
    Raises OSError.
    """
    folders = [os.open(".", _FOLDER, dir_fd=root)]
    links = 0
    todo = [part for part in reversed(os.fsdecode(path).split("/")) if part]
    try:
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                if len(folders) > 1:
                    os.close(folders.pop())
                continue
            here, last = folders[-1], not todo
            try:
                found = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    raise
                if last and make == "file":
                    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=here))
                else:
                    os.mkdir(part, 0o755, dir_fd=here)
                found = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            mode = os.fstat(found).st_mode
            if stat.S_ISLNK(mode) and (follow or not last):
                text = os.readlink("", dir_fd=found)
                os.close(found)
                links += 1
                if links > _LINK_LIMIT:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if text.startswith("/"):
                    while len(folders) > 1:
                        os.close(folders.pop())
                todo += [one for one in reversed(text.split("/")) if one]
            elif last:
                return found
            elif stat.S_ISDIR(mode):
                folders.append(found)
            else:
                os.close(found)
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folders[-1])
    finally:
        for folder in folders:
            os.close(folder)


def system(root, subids, skip=(), terminal=None):
    """Mount /proc, /sys and /dev below folder descriptor `root`, but for targets in `skip`.

    subids: whether group 5 exists in this user namespace; terminal: a descriptor that becomes /dev/console
    """
    if "/proc" not in skip:
        with _Target(root, "/proc", "folder") as target:
            try:
                linux.mount("proc", target, "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
            except OSError:
                # Where parts of the host's /proc are hidden, as in a container, no fresh one can be had.
                linux.mount("/proc", target, None, linux.MS_BIND | linux.MS_REC)
    if "/sys" not in skip and os.path.isdir("/sys"):
        with _Target(root, "/sys", "folder") as target:
            linux.mount("/sys", target, None, linux.MS_BIND | linux.MS_REC)
        with _Target(root, "/sys") as target:
            _read_only(target)
    if "/dev" not in skip:
        _devices(root, subids, skip, terminal)


def _devices(root, subids, skip, terminal):
    with _Target(root, "/dev", "folder") as target:
        linux.mount("tmpfs", target, "tmpfs", linux.MS_NOSUID, "mode=755,size=65536k")
    folder = resolve(root, "/dev")
    here = f"/proc/self/fd/{folder}"  # nothing of the image's is in it
    try:
        for name in _NODES:
            _bind_file(f"/dev/{name}", folder, name)
        for name, text in _LINKS:
            os.symlink(text, name, dir_fd=folder)
        flags = linux.MS_NOSUID | linux.MS_NOEXEC
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=folder)
        group = ",gid=5" if subids else ""
        linux.mount("devpts", f"{here}/pts", "devpts", flags, f"newinstance,ptmxmode=0666,mode=0620{group}")
        if "/dev/shm" not in skip:
            linux.mount("tmpfs", f"{here}/shm", "tmpfs", flags | linux.MS_NODEV, "mode=1777")
            try:
                linux.mount("mqueue", f"{here}/mqueue", "mqueue", flags | linux.MS_NODEV)
            except OSError:
                pass  # a kernel without
        if terminal is not None:
            _bind_file(os.ttyname(terminal), folder, "console")
    finally:
        os.close(folder)


def _bind_file(source, folder, name):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder))
    linux.mount(source, f"/proc/self/fd/{folder}/{name}", None, linux.MS_BIND)


def grab(mount):
    """What add() is to be given for a bind mount: a copy of the source, made before the container's root is mounted.

    A folder of the host may hold the container's own files, as a home does: later it would hold its mounts, too.
    """
    if mount.kind != "bind":
        return None
    try:
        return linux.clone_mounts(mount.source)
    except OSError as exc:
        raise _failed(mount, exc) from exc


def add(root, mount, grabbed=None):
    """Mount a spec.Mount below folder descriptor `root`; raises Error, which names both ends."""
    try:
        if mount.kind == "bind":
            source = os.stat(mount.source if grabbed is None else grabbed)
            with _Target(root, mount.target, "folder" if stat.S_ISDIR(source.st_mode) else "file") as target:
                if grabbed is None:
                    linux.mount(mount.source, target, None, linux.MS_BIND | linux.MS_REC)
                else:
                    linux.place_mounts(grabbed, int(os.path.basename(target)))
        else:
            with _Target(root, mount.target, "folder") as target:
                if mount.kind == "proc":
                    linux.mount("/proc", target, None, linux.MS_BIND | linux.MS_REC)
                else:
                    flags = linux.MS_NOSUID | linux.MS_NODEV
                    linux.mount(mount.kind, target, mount.kind, flags, mount.options or None)
        if mount.read_only:
            with _Target(root, mount.target) as target:
                _read_only(target)
    except OSError as exc:
        raise _failed(mount, exc) from exc


def _failed(mount, exc):
    return Error(f"{mount.source or mount.kind} cannot be mounted on {mount.target}: {exc.strerror}", 125)


def add_device(root, path):
    """A device of the host's, or a folder of them, at the same place."""
    from .spec import Mount

    add(root, Mount("bind", path, path))


def protect(folder):
    """Let nothing be written to the root file system; what is mounted in it stays as it is."""
    flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY
    linux.mount(None, folder, None, flags | _kept(folder))


def enter(folder):
    """Make `folder`, a mount, the root of this mount namespace, and let go of the old one."""
    os.chdir(folder)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")


def _read_only(target):
    """A mount and what is below it; on old kernels the mount alone."""
    try:
        linux.make_read_only(target)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        linux.mount(None, target, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | _kept(target))


def _kept(target):
    """Flags of a mount that must stay when others change: a user namespace may take away none that the host has set."""
    no_access_times = 0xC00
    return os.statvfs(target).f_flag & (linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | no_access_times)


class _Target:
    """A path that leads to a place in the container, whatever happens there meanwhile."""

    def __init__(self, root, path, make=None):
        self.descriptor = resolve(root, path, make)

    def __enter__(self):
        return f"/proc/self/fd/{self.descriptor}"

    def __exit__(self, *_exception):
        os.close(self.descriptor)

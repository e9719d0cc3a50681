# SPDX-License-Identifier: Apache-2.0
"""Whole trees of files: deleted, copied, and made of layers, whoever they belong to. Links are never followed."""

import errno
import os
import stat

from . import linux, userns

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER = "user.containers.override_stat"  # as unpack writes it, and whoever packs reads it
_OVERLAY = ("user.overlay.", "trusted.overlay.", "user.fuseoverlayfs.")
_OPAQUE = ("user.overlay.opaque", "user.fuseoverlayfs.opaque")
_WHITEOUT = ".wh."  # where the kernel has no other kind
_IMPOSSIBLE = (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EACCES)
_PIECE = 1 << 30
_DEPTH = 200  # folders that are open at a time
_SHARED_DEPTH = 50  # how deep helpers work beside each other
_HELPERS = 8
_PATIENCE = 0.1  # seconds


# Delete


def remove(path):
    """Delete a tree or a file, in a user namespace where that is needed; nothing when it is not there.

    Raises OSError.
    """
    try:
        _remove(path)
    except PermissionError:
        userns.call(_remove, path)


def _remove(path):
    parent, name = os.path.split(os.path.abspath(path))
    try:
        folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _Deletion().run(folder, name)
    finally:
        os.close(folder)


class _Deletion:
    """Deletes a tree, with helpers where that means to wait for the disk.

    File systems that are mounted with `discard` may wait for the device at each file, for a millisecond or more, and
    devices do many such things at a time.
    """

    def __init__(self):
        self.todo = []  # folders to look at, as [above, name, descriptor, what is left to do in it, depth]
        self.opened = set()
        self.active = 0
        self.error = None
        self.changed = None  # a condition, once there are helpers

    def run(self, folder, name):
        import time

        above = [None, "", folder, 2, 0]
        self.todo.append([above, name, None, 1, 1])
        began, worked = time.monotonic(), time.thread_time()
        try:
            while self.todo and self.changed is None:
                self._empty(self.todo.pop())
                waited = time.monotonic() - began
                if waited > _PATIENCE and len(self.todo) > 1 and time.thread_time() - worked < waited / 2:
                    self._share()
            if self.error:
                raise self.error
        finally:
            for descriptor in self.opened:
                os.close(descriptor)

    def _share(self):
        import threading

        self.changed = threading.Condition()
        helpers = [threading.Thread(target=self._help, daemon=True) for _number in range(_HELPERS)]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()

    def _help(self):
        while True:
            with self.changed:
                while not self.todo and self.active:
                    self.changed.wait()
                if not self.todo:
                    return
                node = self.todo.pop()
                self.active += 1
            try:
                self._empty(node)
            except BaseException as exc:
                with self.changed:
                    self.error = self.error or exc
                    self.todo.clear()
            finally:
                with self.changed:
                    self.active -= 1
                    self.changed.notify_all()

    def _empty(self, node):
        above, name, _descriptor, _left, depth = node
        if depth > _SHARED_DEPTH:
            remove_at(above[2], name)
            self._done(above)
            return
        inner = _open_to_delete(above[2], name)
        if inner is None:
            self._done(above)
            return
        node[2] = inner
        self.opened.add(inner)
        found = []
        with os.scandir(inner) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found.append([node, entry.name, None, 1, depth + 1])
                else:
                    os.unlink(entry.name, dir_fd=inner)
        if self.changed is None:
            node[3] += len(found)
            self.todo += found
        else:
            with self.changed:
                node[3] += len(found)
                self.todo += found
                self.changed.notify_all()
        self._done(node)

    def _done(self, node):
        """One thing in a folder is done; the last one takes the folder along."""
        while node[0] is not None:
            if self.changed is None:
                node[3] -= 1
                left = node[3]
            else:
                with self.changed:
                    node[3] -= 1
                    left = node[3]
            if left:
                return
            self.opened.discard(node[2])
            os.close(node[2])
            os.rmdir(node[1], dir_fd=node[0][2])
            node = node[0]


def remove_at(folder, name):
    """Delete entry `name` of folder descriptor `folder`; as whoever runs this."""
    todo = [(folder, name, None)]  # folder, name, its descriptor once what is in it is in this list
    opened = []
    moved = 0
    try:
        while todo:
            parent, name, inner = todo.pop()
            if inner is not None:
                opened.remove(inner)
                os.close(inner)
                os.rmdir(name, dir_fd=parent)
                continue
            if len(opened) >= _DEPTH:
                # Not one descriptor more: it is moved up, and its turn comes later.
                moved += 1
                os.rename(name, f".moved-{moved}", src_dir_fd=parent, dst_dir_fd=opened[0])
                todo.insert(1, (opened[0], f".moved-{moved}", None))
                continue
            inner = _open_to_delete(parent, name)
            if inner is None:
                continue
            opened.append(inner)
            todo.append((parent, name, inner))
            with os.scandir(inner) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append((inner, entry.name, None))
                    else:
                        os.unlink(entry.name, dir_fd=inner)
    finally:
        for inner in opened:
            os.close(inner)


def _open_to_delete(parent, name):
    """A folder's descriptor; None when it was no folder, and is deleted by now."""
    try:
        inner = os.open(name, _FOLDER, dir_fd=parent)
        if os.fstat(inner).st_mode & 0o300 != 0o300:
            os.fchmod(inner, 0o700)
        return inner
    except (NotADirectoryError, FileNotFoundError) as exc:
        if isinstance(exc, NotADirectoryError):
            os.unlink(name, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        os.unlink(name, dir_fd=parent)
    return None


# Copy


def copy(source, target):
    """Copy a tree to the new folder `target` with all that it is: owners, times, attributes, hard links, whiteouts."""
    userns.call(_Copy([source], raw=True).run, target)


def merge(layers, target, links=False, owners=True):
    """Make the new folder `target` of unpacked layers (lowest first) as an overlay of them would show them.

    links: files become hard links to those of the layers. That takes neither time nor space, and a program that
    writes to a file in place changes the layer, and with it all containers of the image: for what is only read.
    owners: False leaves all to this user, and notes whose it would be
    """
    userns.call(_Copy(layers, links=links, owners=owners).run, target)


class _Copy:
    """Copies folders that lie on each other to one folder. `raw`: whiteouts and marks of overlay are copied, too."""

    def __init__(self, layers, raw=False, links=False, owners=True):
        self.layers = list(reversed(layers))
        self.raw = raw
        self.links = links
        self.owners = owners
        self.seen = {}  # where a file of several names is in the target, by device and inode
        self.share = True  # whether the file system shares blocks
        self.root = None

    def run(self, target):
        os.mkdir(target, 0o700)
        self.root = target
        folders = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in self.layers]
        here = os.open(target, _FOLDER)
        try:
            self._folder(folders, here, target)
        finally:
            for descriptor in (here, *folders):
                os.close(descriptor)

    def _folder(self, folders, here, path):
        """Fill the folder `here` from `folders`, the uppermost first, then make it what the uppermost is."""
        listed = []
        for folder in folders:
            with os.scandir(folder) as entries:
                listed.append({entry.name: entry for entry in entries})
        done = set()
        for level, entries in enumerate(listed):
            gone = []
            for name, entry in entries.items():
                if not self.raw and name.startswith(_WHITEOUT):
                    gone.append(name[len(_WHITEOUT) :])
                    continue
                if name in done:
                    continue
                done.add(name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    self._subfolder(folders, _levels(listed, level, name), name, here, f"{path}/{name}")
                elif self.raw or not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0):
                    self._file(folders[level], name, status, here, f"{path}/{name}")
            done.update(gone)
        if folders:
            self._dress(folders[0], here, os.fstat(folders[0]))

    def _subfolder(self, folders, levels, name, here, path):
        inner = []
        try:
            for level in levels:
                try:
                    inner.append(os.open(name, _FOLDER, dir_fd=folders[level]))
                except OSError:
                    break  # no folder: a whiteout, or a file that the folder above it hides with all below
                if not self.raw and is_opaque(inner[-1]):
                    break
            os.mkdir(name, 0o700, dir_fd=here)
            made = os.open(name, _FOLDER, dir_fd=here)
            try:
                self._folder(inner, made, path)
            finally:
                os.close(made)
        finally:
            for descriptor in inner:
                os.close(descriptor)

    def _file(self, folder, name, status, here, path):
        identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
        if identity in self.seen:
            os.link(self.seen[identity], name, dst_dir_fd=here, follow_symlinks=False)
            return
        if identity:
            self.seen[identity] = path
        if stat.S_ISREG(status.st_mode):
            if self.links:
                try:
                    os.link(name, name, src_dir_fd=folder, dst_dir_fd=here, follow_symlinks=False)
                    return
                except OSError as exc:
                    if exc.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                        raise
            source = os.open(name, _READ, dir_fd=folder)
            target = os.open(name, _WRITE, 0o600, dir_fd=here)
            try:
                self._content(source, target, status)
                self._dress(source, target, status)
            finally:
                os.close(source)
                os.close(target)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=folder), name, dir_fd=here)
        else:
            try:
                os.mknod(name, status.st_mode, status.st_rdev, dir_fd=here)
            except PermissionError:
                return  # a device: user namespaces have none
        if self.owners:
            _own(os.chown, name, status, dir_fd=here, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=here, follow_symlinks=False)

    def _content(self, source, target, status):
        if not status.st_size:
            return
        if self.share:
            try:
                linux.clone_file(source, target)
                return
            except OSError:
                self.share = False
        if status.st_size <= 1 << 16:
            os.write(target, os.read(source, 1 << 16))
            return
        holes = status.st_blocks * 512 < status.st_size
        if holes:
            os.ftruncate(target, status.st_size)
        position = 0
        while position < status.st_size:
            end = status.st_size
            if holes:
                try:
                    position = os.lseek(source, position, os.SEEK_DATA)
                except OSError:
                    return
                end = os.lseek(source, position, os.SEEK_HOLE)
            position = _copy_range(source, target, position, end)
            if position is None:
                return  # it became shorter meanwhile

    def _dress(self, source, target, status):
        """Give the open file `target` owner, mode, attributes and times of `source`."""
        if self.owners:
            _own(os.fchown, target, status)
        mode = stat.S_IMODE(status.st_mode)
        for name in _attributes(source):
            if self.raw or not name.startswith(_OVERLAY):
                _keep_attribute(source, target, name)
        # Without a user namespace what is the user's is root's, as it is in the layers.
        own = os.geteuid() and status.st_uid == os.geteuid()
        if not self.owners and (status.st_uid or status.st_gid) and not own and not self.raw:
            self._note(target, status)
        os.fchmod(target, mode)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    @staticmethod
    def _note(target, status):
        try:
            os.getxattr(target, _OWNER)
        except OSError:
            try:
                os.setxattr(target, _OWNER, b"%d:%d:%o" % (status.st_uid, status.st_gid, status.st_mode))
            except OSError:
                pass


def _levels(listed, level, name):
    """The levels from `level` on whose folders of that name are merged, as far as no whiteout is in between."""
    found = []
    for index in range(level, len(listed)):
        if name in listed[index]:
            found.append(index)
        if _WHITEOUT + name in listed[index]:
            break
    return found


def _own(function, target, status, **where):
    try:
        function(target, status.st_uid, status.st_gid, **where)
    except OSError as exc:
        if exc.errno not in _IMPOSSIBLE:
            raise


def is_opaque(folder):
    """Whether a folder of a layer (path or descriptor) hides what lower layers have in it."""
    for name in _OPAQUE:
        try:
            if os.getxattr(folder, name) == b"y":
                return True
        except OSError:
            pass
    inside, where = (".wh..wh..opq", folder) if isinstance(folder, int) else (f"{folder}/.wh..wh..opq", None)
    try:
        os.stat(inside, dir_fd=where, follow_symlinks=False)
        return True
    except OSError:
        return False


def visible(layers):
    """Those of the layers' folders (lowest first) that count: overlay does not look whether the top is opaque."""
    for at in range(len(layers) - 1, 0, -1):
        if is_opaque(layers[at]):
            return layers[at:]
    return layers


def _attributes(descriptor):
    try:
        return os.listxattr(descriptor)
    except OSError:
        return []


def _keep_attribute(source, target, name):
    try:
        os.setxattr(target, name, os.getxattr(source, name))
    except OSError as exc:
        if exc.errno not in (*_IMPOSSIBLE, errno.ENODATA, errno.ENOSPC, errno.ERANGE):
            raise


def _copy_range(source, target, position, end):
    """Copy from `position` on; returns where it stopped, or None at an end of file."""
    try:
        count = os.copy_file_range(source, target, min(end - position, _PIECE), position, position)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
        piece = os.pread(source, min(end - position, 1 << 20), position)
        count = os.pwrite(target, piece, position)
    return position + count if count else None

# SPDX-License-Identifier: Apache-2.0
"""What engines share whose containers are user, mount and process namespaces: they differ in where the root is from."""

import _signal as signal
import os

from .. import linux, mounts, userns, users
from ..errors import Error
from . import process


class Namespaced:
    """An engine. Each kind says by `mount_root` what the container's root file system is."""

    name = None
    alone = 0  # namespaces besides user and mount that `inside` needs

    # What a kind says of itself

    def prepare(self, directory, layers):
        """Make in a new container's folder what this engine needs."""
        raise NotImplementedError

    def mount_root(self, directory, layers, volatile=False):
        """Mount the root file system, in the container's namespaces as its root; returns the folder where it is."""
        raise NotImplementedError

    def clone(self, directory, target):
        """Copy what the container in `directory` has written to the folder `target` of a new one."""
        raise NotImplementedError

    # What is the same for all

    def start(self, spec, stdio=(0, 1, 2), ready=None, attached=True):
        """Start spec's process in new namespaces; returns Running when argv was executed.

        ready: called with Running before argv is executed; attached: the container dies with this process
        Raises Error: status 127 when the command is not found, 126 when it cannot be executed, 125 otherwise.
        """
        lock = process.lock(spec.directory)
        try:
            return self._start(spec, stdio, ready, attached)
        finally:
            os.close(lock)

    def _start(self, spec, stdio, ready, attached):
        report = process.Report()
        go, write_go = os.pipe()

        def main():
            self._container(spec, stdio, report, go, userns.maps())

        flags = linux.CLONE_NEWPID
        shared = [mount.target.rstrip("/") for mount in spec.mounts]
        if "/dev/shm" not in shared and "/dev" not in shared:
            flags |= linux.CLONE_NEWIPC  # who shares the host's shared memory shares what goes with it
        if spec.hostname:
            flags |= linux.CLONE_NEWUTS
        if spec.network == "none":
            flags |= linux.CLONE_NEWNET
        try:
            pid, shown = userns.spawn(flags, main, [report.target, go, *stdio], attached)
        except BaseException:
            report.close()
            os.close(go)
            os.close(write_go)
            raise
        os.close(go)
        try:
            running = process.Running(pid, self.name, shown)
            process.remember(spec.directory, running)
            if ready:
                ready(running)
            os.write(write_go, b"1")
        except BrokenPipeError:
            pass  # it has failed already, and says why
        finally:
            os.close(write_go)
        report.wait(pid)
        return running

    def _container(self, spec, stdio, report, go, ids):
        """Process 1 of the container, from its first instruction on."""
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_BLOCK, process.ALL_SIGNALS)
            self._mount(spec, stdio, ids)
            user = users.find(spec.user)
            if not os.read(go, 1):
                os._exit(125)
            os.close(go)
            userns.hide()  # until now nobody was here, and `ready` could look at the namespaces
            if not spec.init:
                process.execute(spec, stdio, report, ids, user)
            child = process.start(spec, stdio, report, ids, user)
        except BaseException as exc:
            report.fail(exc)
        # What it holds open would keep others from seeing an end of file.
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        linux.close_from(3)
        process.watch(child)

    def _mount(self, spec, stdio, ids):
        given = [(mount, mounts.grab(mount)) for mount in spec.mounts]
        folder = self.mount_root(spec.directory, spec.layers, spec.volatile)
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        targets = {mount.target.rstrip("/") for mount in spec.mounts}
        try:
            mounts.system(root, ids.has(0, 5), targets, stdio[0] if spec.terminal else None)
            for path in spec.devices:
                mounts.add_device(root, path)
            for mount, grabbed in given:
                mounts.add(root, mount, grabbed)
        except OSError as exc:
            raise Error(f"the container's file systems: {exc.strerror}", 125) from exc
        finally:
            os.close(root)
        if spec.read_only:
            mounts.protect(folder)
        process.forget_imports(spec, ids)
        mounts.enter(folder)
        if ids.kind == "one" and "/dev" not in targets:
            from .. import emulation

            emulation.configure()
        if spec.hostname:
            linux.sethostname(spec.hostname)
        if spec.network == "none":
            linux.bring_up_loopback()

    def enter(self, running, spec, stdio=(0, 1, 2), ready=None, attached=True):
        """Start spec's process in the container where `running` (Running.as_dict()) is; returns its Running."""
        if not process.alive(running):
            raise Error("the container is not running", 125)
        report = process.Report()

        def main():
            try:
                linux.close_from(3, [report.target, *stdio])
                process.execute(spec, stdio, report, ids, users.find(spec.user))
            except BaseException as exc:
                report.fail(exc)

        ids = userns.maps()
        try:
            pid, shown = _join(running["shown"], main, spec, attached)
        except BaseException:
            report.close()
            raise
        entered = process.Running(pid, self.name, shown)
        if ready:
            ready(entered)
        report.wait(pid)
        return entered

    def inside(self, directory, layers, function, *args):
        """What function(folder, *args) returns in a child whose root is that of the container, running or not.

        The folder is "/". The function imports nothing: whatever it needs was imported before. Raises what it raises.
        """
        lock = process.lock(directory)
        source, target = os.pipe()

        def work():
            if not running:
                os.chdir(self.mount_root(directory, layers))
                process.forget_imports()
                os.chroot(".")
            return function("/", *args)

        def answer():
            os.close(source)
            userns.tell(target, work)

        import pickle  # noqa: F401 - inside, nothing can be imported

        running = process.remembered(directory)
        try:
            pid, _shown = _join(running["shown"], answer) if running else userns.spawn(self.alone, answer)
            os.close(target)
            target = None
            return userns.result(source, pid, function)
        finally:
            if target is not None:
                os.close(target)
                os.close(source)
            os.close(lock)

    def remove(self, directory):
        """Delete a container's folder, whoever its files belong to."""
        from .. import trees

        trees.remove(directory)


def _join(shown, main, spec=None, attached=True):
    """Run main() in a child of this process, in the namespaces of process `shown`; returns as userns.spawn() does."""
    opened = _namespaces(shown)
    owner = linux.ioctl(opened[0], linux.NS_GET_USERNS)
    source, target = os.pipe()
    between = os.fork()
    if not between:
        try:
            own = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
            process.forget_imports(spec, userns.maps())
            linux.setns(owner, linux.CLONE_NEWUSER)
            for descriptor in opened:
                linux.setns(descriptor)
            userns.hide()
            child = linux.clone(linux.CLONE_PARENT)
            if child:
                os.write(target, b"pid=%d " % child)
                os._exit(0)
            os.write(target, b"shown=" + os.fsencode(os.readlink("self", dir_fd=own)) + b" ")
        except OSError as exc:
            os.write(target, b"errno=%d " % exc.errno)
            os._exit(0)
        try:
            os.close(own)
            os.close(target)
            os.chdir("/")
            userns.become(userns.maps(), 0, 0, [])
            if attached:
                linux.prctl(linux.PR_SET_PDEATHSIG, 9)
            main()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(125)
    os.close(target)
    for descriptor in (owner, *opened):
        os.close(descriptor)
    os.waitpid(between, 0)
    with open(source, "rb") as stream:
        answers = dict(word.split("=") for word in stream.read().decode().split())
    if len(answers) != 2 or "errno" in answers:
        reason = os.strerror(int(answers.get("errno", 1)))
        raise Error(f"the container of process {shown} cannot be entered: {reason}", 125)
    return int(answers["pid"]), int(answers["shown"])


def _namespaces(shown):
    """Descriptors of the namespaces of a container whose process 1 is `shown`, the mount namespace first."""
    # Process 1 is hidden (userns.hide): another of the container stands for it.
    for number in (shown, *process.children(shown)):
        opened = []
        try:
            for kind in ("mnt", "pid", "ipc", "uts", "net"):
                # One that is shared with the host cannot be entered from the container's user namespace.
                path = f"/proc/{number}/ns/{kind}"
                if kind == "mnt" or os.readlink(path) != os.readlink(f"/proc/self/ns/{kind}"):
                    opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            return opened
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
    raise Error(f"the container of process {shown} cannot be entered: it is another user's, or ends", 125)

# SPDX-License-Identifier: Apache-2.0
"""Containers under PRoot, which translates paths as processes use them: where user namespaces are denied, and for
other architectures with QEMU's user mode.

A program `proot` is needed: on PATH, or named by UDOCKER_PROOT. It hides nothing and protects nothing: processes,
network and devices are the host's. What watches over it ends with its starter, and ends all that runs in it first:
processes that PRoot leaves behind would see the host's files in place of the container's.
"""

import _signal as signal
import errno
import os
import stat

from .. import linux, mounts, records, trees, userns, users
from ..errors import Error
from ..spec import Spec
from . import process

_BASE = ("/dev", "/proc", "/sys")
# e_machine in the head of an ELF file, and how QEMU and the kernel call it.
_MACHINES = {
    3: ("i386", "i386"), 20: ("ppc", "ppc"), 21: ("ppc64le", "ppc64le"), 22: ("s390x", "s390x"), 40: ("arm", "armv7l"),
    62: ("x86_64", "x86_64"), 183: ("aarch64", "aarch64"), 243: ("riscv64", "riscv64"), 258: ("loongarch64",) * 2,
}  # fmt: skip
_NATIVE = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm"), "i686": ("i386",), "armv7l": ("arm",)}
_STARTER_DIED = signal.SIGRTMAX
_PATIENCE = 10


class Running(process.Running):
    """One that watches over PRoot: signals go through it, but for the last."""

    def kill(self, number=signal.SIGKILL):
        if self.poll() is None:
            deliver(self.pid, self.shown, number)


class Proot:
    name = "proot"
    Running = Running

    def __init__(self, seccomp=True):
        self.seccomp = seccomp

    def prepare(self, directory, layers):
        trees.merge(layers, os.path.join(directory, "ROOT"), owners=False)

    def clone(self, directory, target):
        trees.copy(os.path.join(directory, "ROOT"), os.path.join(target, "ROOT"))

    def remove(self, directory):
        trees.remove(directory)

    def inside(self, directory, layers, function, *args):
        """What function(ROOT, *args) returns: where no user namespace can be had it has to mind links by itself."""
        from .directory import Directory

        if userns.mapped() != "none":
            return Directory().inside(directory, layers, function, *args)
        return function(os.path.join(directory, "ROOT"), *args)

    def start(self, spec, stdio=(0, 1, 2), ready=None, attached=True):
        """As Namespaced.start(); what PRoot cannot do is refused."""
        for wish, name in ((spec.read_only, "a read-only root"), (spec.network == "none", "a network of its own")):
            if wish:
                raise Error(f"engine proot cannot give a container {name}: it takes user namespaces", 125)
        binds = _binds(spec)
        records.write(os.path.join(spec.directory, "binds.json"), [list(pair) for pair in binds])
        running = self._run(spec, binds, stdio, ready, attached)
        process.remember(spec.directory, running)
        return running

    def enter(self, running, spec, stdio=(0, 1, 2), ready=None, attached=True):
        if not process.alive(running):
            raise Error("the container is not running", 125)
        binds = [tuple(pair) for pair in records.read(os.path.join(spec.directory, "binds.json"))]
        return self._run(spec, binds, stdio, ready, attached)

    def signal(self, running, number):
        """Send a signal to what Running.as_dict() told of."""
        deliver(running["pid"], running["shown"], number)

    def _run(self, spec, binds, stdio, ready, attached):
        root = os.path.realpath(os.path.join(spec.directory, "ROOT"))
        user = users.find(spec.user, _Reader(root))
        report = process.Report()
        try:
            command = self._command(spec, root, binds, user)
        except BaseException:
            report.close()
            raise
        pid = os.fork()
        if not pid:
            _attend(command, stdio, report, user, attached)
        running = Running(pid, self.name)
        if ready:
            ready(running)
        report.wait(pid)
        return running

    def _command(self, spec, root, binds, user):
        """A Spec that executes PRoot."""
        env = dict(spec.env)
        env.setdefault("HOME", user.home)
        targets = [target for _source, target in binds]
        program = _find(spec, root, env, targets)
        argv = [program_path(), "-v", "-1", "-r", root, "-w", spec.cwd or "/"]
        argv += ["-0"] if not user.uid else ["-i", f"{user.uid}:{user.gid}"]
        needed = program and emulator_of(program, _place(root, "/bin/sh"))
        if needed:
            argv += ["-q", needed]
        for source, target in binds:
            argv += ["-b", f"{source}:{target}"]
        _make_folder(root, spec.cwd or "/", targets)
        # The default, /tmp, may forbid to execute, and what PRoot loads programs with is put there.
        env["PROOT_TMP_DIR"] = spec.directory
        if not self.seccomp:
            env["PROOT_NO_SECCOMP"] = "1"
        return Spec(spec.directory, [], [*argv, *spec.argv], env, terminal=spec.terminal, limits=spec.limits)


# What the container sees


class _Reader:
    """Reads files of the tree as the container sees them, but for what is mounted there."""

    def __init__(self, root):
        self.root = root

    def __call__(self, path):
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = mounts.resolve(folder, path)
        finally:
            os.close(folder)
        try:
            with open(f"/proc/self/fd/{found}", "rb") as source:
                return source.read(1 << 24)
        finally:
            os.close(found)


def _place(root, path):
    """Where on the host a file of the tree is; its name as it is when it is not there."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = mounts.resolve(folder, path)
    except OSError:
        return root + path
    finally:
        os.close(folder)
    place = os.readlink(f"/proc/self/fd/{found}")
    os.close(found)
    return place


def _binds(spec):
    """[(source, target)] for PRoot, and what has to be there for it."""
    found = {path: path for path in _BASE if os.path.exists(path)}
    for number, mount in enumerate(spec.mounts):
        target = "/" + mount.target.strip("/")
        if mount.kind == "proc":
            continue
        if mount.kind == "bind":
            source = os.path.abspath(mount.source)
            if not os.path.exists(source):
                raise Error(f"{source} cannot be mounted on {target}: no such file or directory", 125)
            if mount.read_only and not source.startswith(spec.directory) and os.access(source, os.W_OK):
                raise Error(f"engine proot cannot mount {source} read-only: it takes user namespaces", 125)
        else:
            source = os.path.join(spec.directory, "tmpfs", str(number))
            trees.remove(source)
            os.makedirs(source)
        found[target] = source
    for path in spec.devices:
        if not path.startswith("/dev/"):
            found[path] = path
    for text in (one for pair in found.items() for one in pair):
        if ":" in text:
            raise Error(f"{text} cannot be mounted by engine proot: it has a colon", 125)
    return [(source, target) for target, source in found.items()]


def _make_folder(root, path, targets):
    if any(path == target or path.startswith(target.rstrip("/") + "/") for target in targets):
        return
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(mounts.resolve(folder, path, "folder"))
    except OSError as exc:
        raise Error(f"the working directory {path} cannot be entered: {exc.strerror}", 126) from exc
    finally:
        os.close(folder)


def _find(spec, root, env, targets):
    """The program on the host, as it will be found; None when it is in a mount. Raises Error 127 or 126."""
    if not spec.argv:
        raise Error("no command was given, and the image names none", 125)
    name = spec.argv[0]
    folders = [""] if "/" in name else (env.get("PATH") or os.defpath).split(":")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    wrong = None
    try:
        for one in folders:
            path = os.path.join(spec.cwd or "/", one, name)
            if any(os.path.normpath(path).startswith(target.rstrip("/") + "/") for target in targets):
                return None
            try:
                found = mounts.resolve(folder, path)
            except OSError:
                continue
            try:
                mode = os.fstat(found).st_mode
                place = os.readlink(f"/proc/self/fd/{found}")
            finally:
                os.close(found)
            if stat.S_ISREG(mode) and mode & 0o111:
                return place
            wrong = wrong or (path, "is a directory" if stat.S_ISDIR(mode) else "permission denied")
    finally:
        os.close(folder)
    if wrong:
        raise Error(f'exec: "{name}": {wrong[0]}: {wrong[1]}', 126)
    if "/" in name:
        raise Error(f'exec: "{name}": stat {name}: no such file or directory', 127)
    raise Error(f'exec: "{name}": executable file not found in $PATH', 127)


# Programs


def program_path():
    """The path of PRoot; raises Error."""
    wanted = os.environ.get("UDOCKER_PROOT")
    found = wanted if wanted and os.access(wanted, os.X_OK) else userns.program("proot")
    if not found:
        raise Error("engine proot needs a program proot: package proot, or UDOCKER_PROOT names one", 125)
    return found


def architecture_of(path):
    """How QEMU calls what the program at `path` is made for; None for a script."""
    try:
        with open(path, "rb") as source:
            head = source.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, (None,))[0]


def native():
    """Architectures, as QEMU calls them, that this kernel runs by itself."""
    machine = os.uname().machine
    return _NATIVE.get(machine, (machine,))


def registered(architecture):
    """Whether the kernel (binfmt_misc) hands programs of that architecture to an emulator, wherever they are."""
    try:
        with open(f"/proc/sys/fs/binfmt_misc/qemu-{architecture}", encoding="utf-8") as source:
            lines = source.read().splitlines()
    except OSError:
        return False
    return lines[:1] == ["enabled"] and any(line.startswith("flags:") and "F" in line for line in lines)


def emulator(architecture):
    """The path of QEMU's user mode for an architecture, or None."""
    return userns.program(f"qemu-{architecture}-static") or userns.program(f"qemu-{architecture}")


def emulator_of(path, shell):
    """The emulator that a program needs; None when it needs none. Raises Error when there is none.

    shell: a program of the same tree, which tells what scripts are for
    """
    architecture = architecture_of(path)
    if architecture is None:
        try:
            with open(path, "rb") as source:
                if source.read(2) != b"#!":
                    return None
        except OSError:
            return None
        # A script is made for none, its tree is: its shell tells.
        architecture = architecture_of(shell)
    if architecture is None or architecture in native() or registered(architecture):
        return None
    found = emulator(architecture)
    if not found:
        raise Error(f"{path} is made for {architecture}: this host would need qemu-user-static", 126)
    return found


# Watching


def _attend(spec, stdio, report, user, attached):
    """The life of the one that watches over PRoot."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, process.ALL_SIGNALS)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        if attached:
            parent = os.getppid()
            linux.prctl(linux.PR_SET_PDEATHSIG, _STARTER_DIED)
            if os.getppid() != parent:
                os._exit(125)
        source, target = os.pipe()
        child = os.fork()
        if not child:
            os.close(target)
            os.read(source, 1)
            process.execute(spec, stdio, report, None, user)
        try:
            linux.ptrace_children(child)
            seen = True
        except OSError:
            seen = False
        os.close(target)
    except BaseException as exc:
        report.fail(exc)
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        linux.close_from(3)
        _watch(child, seen)
    finally:
        os._exit(125)


def _watch(child, seen):
    """Pass signals on to the container's process; when it ends, end all else, and exit as it did.

    seen: whether PRoot stops when it starts that process, so that it cannot end unseen
    """
    import select

    # Signals are blocked until it is there.
    guest, handle = linux.first_child(child) if seen else (_guest(child), None)
    if seen and guest is None:
        os._exit(255)  # PRoot has ended, and said why
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in process.ALL_SIGNALS:
        try:
            signal.signal(number, lambda *_what: None)
        except (OSError, ValueError):
            pass
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if handle is None and guest:
        handle = linux.pidfd_open(guest)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if handle is not None:
        poll.register(handle, select.POLLIN)
    ended = False
    while True:
        for descriptor, _event in poll.poll(50 if ended else None):
            if descriptor == handle:
                poll.unregister(handle)
                ended = True
                continue
            for number in os.read(reader, 4096):
                if number == _STARTER_DIED:
                    end_all(os.getpid())
                    os._exit(137)
                if number != signal.SIGCHLD and guest:
                    _send(guest, number)
        status = _reap(child)
        if status is not None:
            break
        if ended:
            _end_descendants(os.getpid(), child)
    end_all(os.getpid())
    exact = linux.exit_status(handle) if handle is not None else None
    os._exit(process.code_of(status if exact is None else exact))


def _reap(child):
    """The wait status of `child` when it has ended; what else has is reaped."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return None
            if pid == child:
                return status
    except ChildProcessError:
        return 125 << 8


def _guest(child):
    """The pid of the container's process, which PRoot starts; None when it has ended already."""
    import time

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        found = process.children(child)
        if found:
            return found[0]
        if process.started(child) is None:
            return None
        time.sleep(0.001)
    return None


def _end_descendants(pid, spared=None):
    """Kill all below a process but `spared`; orphans hang below the watcher, not below PRoot."""
    for one in process.children(pid):
        _end_descendants(one)
        if one != spared:
            _send(one, signal.SIGKILL)


def end_all(watcher):
    """Kill all that runs below a watcher: first what runs under PRoot, then PRoot itself."""
    import time

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        below = process.children(watcher)
        if not below:
            return
        for one in below:
            _end_descendants(one)
        for one in below:
            if not process.children(one):
                _send(one, signal.SIGKILL)
        if watcher == os.getpid():
            _reap(0)
        time.sleep(0.002)


def deliver(pid, shown, number):
    """A signal for a watcher to pass on. It cannot pass on what cannot be caught: that ends all below it at once."""
    if number == signal.SIGKILL:
        end_all(shown)
    else:
        _send(pid, number)


def _send(pid, number):
    try:
        os.kill(pid, number)
    except OSError as exc:
        if exc.errno not in (errno.ESRCH, errno.EINVAL):
            raise

# SPDX-License-Identifier: Apache-2.0
"""The process that a container is for: how it starts, what watches over it inside, what is known of it outside."""

import _signal as signal  # what `signal` is made of: that one takes longer to import than a container to start
import errno
import os
import stat

from .. import linux
from ..errors import Error

_FAILURE = "\0"  # between an exit code and a message, on the pipe that a successful exec closes
_PATIENCE = 300
# Those that a process may handle.
ALL_SIGNALS = {int(number) for number in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP}
# Sent on to the container; those that a terminal's job control uses stay with the command.
FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU", "SIGPWR", "SIGCONT")


class Running:
    """A process that was started, as the one that started it sees it.

    pid: of a child of this process; shown: its number in /proc, the same but where /proc is an outer namespace's
    start: when it began, in ticks since the machine did
    """

    def __init__(self, pid, engine, shown=None):
        self.pid = pid
        self.engine = engine
        self.shown = shown or pid
        self.start = started(self.shown)
        self.code = None

    def as_dict(self):
        """What another process needs for Engine.enter()."""
        return {"pid": self.pid, "shown": self.shown, "start": self.start, "engine": self.engine}

    def wait(self):
        """Its exit code, 128+n if signal n ended it; waits."""
        if self.code is None:
            self.code = code_of(os.waitpid(self.pid, 0)[1])
        return self.code

    def poll(self):
        """Its exit code, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = code_of(status) if pid else None
        return self.code

    def kill(self, number=signal.SIGKILL):
        """Send it a signal; nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def started(pid):
    """When process `pid` began (ticks since the machine did), or None when there is no such process, or a dead one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def alive(running):
    """Whether what Running.as_dict() told of is still the same process."""
    return bool(running) and running["start"] is not None and started(running["shown"]) == running["start"]


def code_of(status):
    """An exit code of a wait status: 128+n for signal n."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def children(shown):
    """The pids of a process's children, the oldest first."""
    try:
        with open(f"/proc/{shown}/task/{shown}/children", "rb") as source:
            return [int(word) for word in source.read().split()]
    except OSError:
        pass
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as source:
                if int(source.read().rpartition(b")")[2].split()[1]) == shown:
                    found.append(int(name))
        except OSError:
            pass
    return found


def lock(directory):
    """A descriptor that holds the lock on a container's files while they are mounted or looked at; raises Error."""
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            import time

            deadline = deadline or time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
                os.close(descriptor)
                reason = f"for {_PATIENCE} s another command has worked on its files (cp, commit, export)"
                raise Error(f"container {os.path.basename(directory)[:12]}: {reason}", 125) from None
            time.sleep(0.01)
        except OSError:
            return descriptor  # a file system without locks


def remember(directory, running):
    """Keep beside the container which process it is, so that nobody mounts its files a second time."""
    path = os.path.join(directory, "running")
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as target:
        target.write(f"{running.pid} {running.shown} {running.start} {running.engine} {_boot()}\n")
    os.replace(temporary, path)


def remembered(directory):
    """As Running.as_dict(), of the process of the container in `directory`; None when it has ended."""
    try:
        with open(os.path.join(directory, "running"), encoding="utf-8") as source:
            pid, shown, start, engine, boot = source.read().split()
        found = {"pid": int(pid), "shown": int(shown), "start": int(start), "engine": engine}
    except (OSError, ValueError):
        return None
    return found if boot == _boot() and alive(found) else None


def _boot():
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as source:
            return source.read().strip()
    except OSError:
        return "-"


class Report:
    """A pipe on which a child tells why it could not start; exec closes it without a word."""

    def __init__(self):
        self.source, self.target = os.pipe()

    def fail(self, exc):
        """In the child: tell it, and end."""
        if isinstance(exc, Error):
            code, message = exc.status, str(exc)
        else:
            code, message = 125, str(exc)
        if not isinstance(exc, (Error, OSError)):
            message = f"{type(exc).__name__}: {exc}"
        try:
            os.write(self.target, f"{code}{_FAILURE}{message}".encode("utf-8", "replace")[:4000])
        finally:
            os._exit(code)

    def wait(self, pid):
        """In the parent: return when argv was executed, or raise what kept it from that, with its status."""
        os.close(self.target)
        with open(self.source, "rb") as stream:
            text = stream.read().decode("utf-8", "replace")
        code, separator, message = text.partition(_FAILURE)
        if separator:
            os.waitpid(pid, 0)
            raise Error(message, int(code))

    def close(self):
        for descriptor in (self.source, self.target):
            os.close(descriptor)


def start(spec, stdio, report, ids, user):
    """Start the process as a child of this one, which is process 1 of the container; returns its pid.

    Raises Error, or the child tells `report`.
    """
    if ids.kind == "subids" and (user.uid, user.gid) == (0, 0) and not (spec.terminal or spec.limits):
        # Nothing has to be done between fork and exec: this process, which is large, is not copied.
        try:
            return _spawn(spec, stdio, report, ids, user)
        except NotImplementedError:  # by a C library without POSIX_SPAWN_SETSID
            stdio = (0, 1, 2)
    child = os.fork()
    if not child:
        execute(spec, stdio, report, ids, user)
    return child


def _spawn(spec, stdio, report, ids, user):
    _take_streams(stdio, report)
    _go_to(spec.cwd)
    os.setgroups(_groups(user, ids))
    os.umask(0o022)
    ignored = [number for number in ALL_SIGNALS if signal.getsignal(number) == signal.SIG_IGN]

    def spawn(path, argv, env):
        return os.posix_spawn(path, argv, env, setsid=True, setsigmask=[], setsigdef=ignored)

    return _exec(list(spec.argv), {"HOME": user.home, **spec.env}, spec.cwd, spawn)


def _take_streams(stdio, report):
    for number, descriptor in enumerate([os.dup(one) for one in stdio]):
        os.dup2(descriptor, number)
    linux.close_from(3, [report.target])
    os.set_inheritable(report.target, False)


def execute(spec, stdio, report, ids, user):
    """Become the process: session, terminal, ids, then exec. In the container, as its root; does not return."""
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        _take_streams(stdio, report)
        if spec.terminal:
            linux.ioctl(0, linux.TIOCSCTTY)
        _limit(spec.limits)
        _go_to(spec.cwd)
        env = dict(spec.env)
        env.setdefault("HOME", user.home)
        _take(user, ids, env)
        _reset_signals()
        os.umask(0o022)
        _exec(list(spec.argv), env, spec.cwd)
    except BaseException as exc:
        report.fail(exc)


def _go_to(folder):
    try:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
    except OSError as exc:
        raise Error(f"the working directory {folder} cannot be entered: {exc.strerror}", 126) from exc


def _limit(limits):
    for name, value in limits.items():
        if name == "cpuset":
            try:
                os.sched_setaffinity(0, parse_cpus(value))
            except OSError as exc:
                raise Error(f"processors {value} cannot be had: {exc.strerror}", 125) from exc
        elif value is not None:
            import resource

            kind = getattr(resource, f"RLIMIT_{name.upper()}", None)
            if kind is None:
                raise Error(f"no limit is called {name}", 125)
            try:
                resource.setrlimit(kind, tuple(value))
            except (OSError, ValueError) as exc:
                raise Error(f"the limit {name} cannot be set to {value}: {exc}", 125) from exc


def forget_imports(spec=None, ids=None):
    """Let no file of the container be taken for a module: called before its root becomes this process's.

    What execute() imports for a spec and its ids is imported before.
    """
    import sys

    if spec and spec.limits:
        import resource  # noqa: F401 - for _limit(), when nothing can be imported any more
    if ids and ids.kind == "one":
        from .. import emulation  # noqa: F401
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "__name__", "") != "PathFinder"]


def parse_cpus(text):
    """The numbers that "0-2,4" names; raises Error."""
    found = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)):
            raise Error(f"{text!r} is no list of processors: 0-2,4 is", 125)
        found.update(range(int(first), int(last if dash else first) + 1))
    return found


def _take(user, ids, env):
    """Take the user's ids; with a map of one id, in one more namespace where that id has the user's number.

    So, too, where somebody is to be in the container who they are outside (--user $(id -u)): what is theirs on the
    host is theirs in the container.
    """
    from .. import userns

    if ids is None:
        return
    outside = next(outside for inside, outside, _count in ids.uids if inside == 0)
    if ids.kind == "one" or (user.uid == outside and user.uid != 0):
        if (user.uid, user.gid) != (0, 0):
            linux.unshare(linux.CLONE_NEWUSER)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # /proc/self is somebody else's otherwise
            for name, text in (("setgroups", "deny"), ("uid_map", f"{user.uid} 0 1"), ("gid_map", f"{user.gid} 0 1")):
                userns._write("self", name, text)  # no text file: an encoding would have to be imported
            userns.become(userns.Maps("one", [], []), user.uid, user.gid, [])
        else:
            from .. import emulation

            emulation.install(env)
        return
    if not ids.has(user.uid, user.gid):
        have = sum(count for _inside, _outside, count in ids.uids)
        raise Error(
            f"user {user.uid}:{user.gid} is not among the {have} ids that this user may use: see /etc/subuid", 125
        )
    userns.become(ids, user.uid, user.gid, _groups(user, ids))


def _groups(user, ids):
    """Those of the user's groups that are among the ids; never none."""
    return [one for one in user.groups if ids.has(0, one)] or [user.gid]


def _reset_signals():
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in ALL_SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _exec(argv, env, cwd, execute=os.execve):
    """execve as a shell would find it; raises Error in the words that Docker uses.

    execute(path, argv, env): what is done instead, whose value is returned
    """
    if not argv:
        raise Error("no command was given, and the image names none", 125)
    name = argv[0]
    folders = [""] if "/" in name else (env.get("PATH") or os.defpath).split(":")
    denied = None
    for folder in folders:
        path = os.path.join(folder or (cwd if "/" not in name else ""), name)
        try:
            return execute(path, argv, env)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = denied or (path, exc)
            elif _is_file(path):
                raise Error(f'exec: "{name}": {path}: what interprets it is missing: {exc.strerror}', 127) from exc
    if denied:
        path, exc = denied
        what = "is a directory" if os.path.isdir(path) else exc.strerror.lower()
        raise Error(f'exec: "{name}": {path}: {what}', 126)
    if "/" in name:
        raise Error(f'exec: "{name}": stat {name}: no such file or directory', 127)
    raise Error(f'exec: "{name}": executable file not found in $PATH', 127)


def _is_file(path):
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def watch(child):
    """Be process 1: pass signals on to `child`, reap whatever ends, and end with its exit code."""
    while True:
        number = signal.sigwait(ALL_SIGNALS)
        if number != signal.SIGCHLD:
            try:
                os.kill(child, number)
            except OSError:
                pass
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(125)
            if not pid:
                break
            if pid == child:
                os._exit(code_of(status))

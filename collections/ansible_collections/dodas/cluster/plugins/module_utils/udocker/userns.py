# SPDX-License-Identifier: Apache-2.0
"""User namespaces: children that are root over the ids that this user has, and nothing more.

Which ids those are: as root, all that this process sees; with entries in /etc/subuid and /etc/subgid, the own ones as 0
and the further ones from 1 on (newuidmap, newgidmap); otherwise the own one alone, as 0.
"""

import os

from . import linux
from .errors import Error

_ALL = linux.CLONE_NEWUSER | linux.CLONE_NEWNS
_found = None  # Maps, once it is known
_usable = {}  # kind by pid: a fork may have other rights


class Maps:
    """kind: "subids" or "one"; uids, gids: [(inside, outside, count)]; helped: written by newuidmap and newgidmap."""

    __slots__ = ("gids", "helped", "kind", "uids")

    def __init__(self, kind, uids, gids, helped=False):
        self.kind = kind
        self.uids = uids
        self.gids = gids
        self.helped = helped

    def has(self, uid, gid):
        return all(any(first <= one < first + count for first, _outside, count in ranges)
                   for one, ranges in ((uid, self.uids), (gid, self.gids)))  # fmt: skip


class Denied(Error):
    """This process may make no user namespace; the message says why and what would help."""


def maps():
    """What this user's namespaces will hold (Maps)."""
    global _found
    if _found is None:
        _found = _look()
    return _found


def mapped():
    """"subids" (files may belong to many ids), "one" (to one), or "none" (no user namespace can be had)."""
    if os.getpid() not in _usable:
        try:
            call(os.getpid, strict=True)
            _usable[os.getpid()] = maps().kind
        except Denied:
            _usable[os.getpid()] = "none"
    return _usable[os.getpid()]


def call(function, *args, strict=False, keep=None):
    """What function(*args) returns, or raises, in a child that is root in a user and a mount namespace of its own.

    Where no user namespace can be had it runs right here (strict: raises Denied). Result and exception are pickled.
    keep: the descriptors that it needs; all for None, which threads that wait for the end of a pipe do not bear.
    """
    # What another thread is just importing, the child would wait for without end.
    import gc  # noqa: F401
    import pickle  # noqa: F401

    source, target = os.pipe()

    def child():
        if keep is None:
            os.close(source)
        tell(target, function, *args)

    try:
        pid, _shown = spawn(0, child, None if keep is None else [*keep, target])
    except Denied:
        os.close(source)
        if strict:
            raise
        return function(*args)
    finally:
        os.close(target)
    return result(source, pid, function)


def result(source, pid, function):
    """What a child wrote to pipe `source`: the value of `function`, which is returned, or its exception, raised."""
    import pickle

    # A child that another thread made may hold the pipe too, so that its end need not come: the length is told.
    with open(source, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        content = stream.read(size)
    status = os.waitpid(pid, 0)[1]
    if not content:
        name = getattr(function, "__name__", function)
        raise Error(f"{name} was ended in its user namespace (status {status:#x}): killed, or out of memory")
    succeeded, value = pickle.loads(content)
    if succeeded:
        return value
    raise value


def tell(target, function, *args):
    """In a child: write what function(*args) returns or raises to pipe `target`, for result()."""
    content = _answer(function, args)
    with open(target, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)


def _answer(function, args):
    import pickle

    try:
        return pickle.dumps((True, function(*args)), pickle.HIGHEST_PROTOCOL)
    except BaseException as exc:
        try:
            content = pickle.dumps((False, exc), pickle.HIGHEST_PROTOCOL)
            pickle.loads(content)
        except Exception:
            content = pickle.dumps((False, Error(f"{type(exc).__name__}: {exc}")))
        return content


def spawn(flags, main, keep=None, attached=True):
    """Run main() as root in a child, in new user, mount and `flags` namespaces, and end with it.

    Returns its pid, and the number under which /proc shows it: another one where /proc is that of an outer namespace.
    keep: descriptors to leave open besides 0, 1 and 2 (None: all); attached: it is killed when its parent dies.
    Raises Denied.
    """
    import sys

    global _found
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
    ids = maps()
    try:
        return _spawn(flags, ids, main, keep, attached)
    except OSError as exc:
        failure = exc
    if ids.kind == "subids":
        try:
            _found = _one()
            return _spawn(flags, _found, main, keep, attached)
        except OSError:
            _found = ids
    raise Denied(f"no user namespace can be had here ({failure.strerror}){hints()}", 125) from failure


def _spawn(flags, ids, main, keep, attached):
    mapped_, write_mapped = os.pipe()
    ready, write_ready = os.pipe()
    try:
        pid = fork(flags | _ALL)
        if not pid:
            os.close(write_mapped)
            os.close(ready)
            _child(mapped_, write_ready, ids, main, keep, attached)
        os.close(write_ready)
        write_ready = -1
        try:
            shown = int(os.read(ready, 32) or b"0")
            _write_maps(shown, ids)
            os.write(write_mapped, b"1")
            answer = os.read(ready, 32)
            if answer != b"0":
                number = int(answer or b"1")
                raise OSError(number, os.strerror(number))
        except OSError:
            os.close(write_mapped)
            write_mapped = -1
            os.waitpid(pid, 0)
            raise
        return pid, shown
    finally:
        for descriptor in (mapped_, write_mapped, ready, write_ready):
            if descriptor >= 0:
                os.close(descriptor)


def fork(flags):
    """clone(flags), also from a process with threads: 0 in the child, the pid of a child of this process."""
    import sys

    # The kernel's count: a thread that Python counts no more may still be ending, with the C library's locks held.
    if "threading" not in sys.modules or _is_alone():
        return linux.clone(flags)
    source, target = os.pipe()
    between = os.fork()
    if not between:
        try:
            os.close(source)
            pid = linux.clone(flags | linux.CLONE_PARENT)
            if not pid:
                os.close(target)
                return 0
        except OSError as exc:
            pid = -exc.errno
        try:
            os.write(target, b"%d" % pid)
        finally:
            os._exit(0)  # also when the parent was killed: this process is not to go on in its place
    os.close(target)
    pid = int(os.read(source, 32) or b"-1")
    os.close(source)
    os.waitpid(between, 0)
    if pid < 0:
        raise OSError(-pid, f"clone({flags:#x}): {os.strerror(-pid)}")
    return pid


def _is_alone():
    """Whether this process has one thread."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _child(mapped_, ready, ids, main, keep, attached):
    """The child's whole life."""
    status = 125
    try:
        os.write(ready, os.fsencode(os.readlink("/proc/self")))
        if not os.read(mapped_, 1):
            return
        try:
            become(ids, 0, 0, [])
            # What the host mounts later appears here too (automounted file systems), and nothing of ours there.
            linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
            if attached:
                linux.prctl(linux.PR_SET_PDEATHSIG, 9)
        except OSError as exc:
            os.write(ready, b"%d" % exc.errno)
            return
        os.write(ready, b"0")  # fails when the parent has died meanwhile
        if keep is None:
            os.close(mapped_)
            os.close(ready)
        else:
            import gc

            gc.freeze()  # files and sockets that are collected here would close numbers that stand for others by then
            linux.close_from(3, keep)
        main()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def hide():
    """Let nobody in the container look into this process, which still holds what its parent knew (tokens, variables).

    Ends with exec. Its memory belongs to the user namespace outside, where the container's root has no say.
    """
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def become(ids, uid, gid, groups):
    """Take ids of the namespace; with one id only, groups cannot be given up."""
    if ids.kind != "one":
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # A change of ids hides /proc/self from oneself.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


# Maps


def _look():
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        ranges = [_identity(f"/proc/self/{one}_map") for one in ("uid", "gid")]
        if all(sum(count for _in, _out, count in one) > 1 for one in ranges):
            return Maps("subids", *ranges)
    elif not linux.prctl(linux.PR_GET_NO_NEW_PRIVS):
        further = _further("/etc/subuid", "", uid), _further("/etc/subgid", "-g", uid)
        if all(further) and program("newuidmap") and program("newgidmap"):
            lines = [[(0, own, 1)] for own in (uid, gid)]
            for one, ranges in zip(lines, further):
                inside = 1
                for first, count in ranges:
                    one.append((inside, first, count))
                    inside += count
            return Maps("subids", *lines, helped=True)
    return _one()


def _one():
    return Maps("one", [(0, os.geteuid(), 1)], [(0, os.getegid(), 1)])


def _identity(path):
    with open(path, "rb") as source:
        found = [tuple(map(int, line.split())) for line in source]
    return [(inside, inside, count) for inside, _outside, count in found]


def parse_ranges(text, names):
    """[(first, count)] of the owners `names` in text of /etc/subuid."""
    found = []
    for line in text.splitlines():
        owner, _colon, rest = line.strip().partition(":")
        first, _colon, count = rest.partition(":")
        if owner in names and first.isdigit() and count.isdigit() and int(count):
            found.append((int(first), int(count)))
    return found


def _further(path, option, uid):
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            found = parse_ranges(source.read(), (name, str(uid)))
    except OSError:
        found = []
    return found or _from_service(option, name)


def _from_service(option, name):
    """Ranges that a directory service keeps, where nsswitch.conf says that one does."""
    try:
        with open("/etc/nsswitch.conf", encoding="utf-8", errors="replace") as source:
            if not any(line.startswith("subid:") for line in source):
                return []
    except OSError:
        return []
    import subprocess

    try:
        command = ["getsubids", *filter(None, [option]), name]
        lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False)
        lines = lines.stdout.decode()
        return [(int(line.split()[-2]), int(line.split()[-1])) for line in lines.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


def program(name):
    """The path of a program, also where PATH leaves out what the system's administration needs."""
    for folder in [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/sbin", "/usr/local/bin"]:
        path = os.path.join(folder, name)
        if folder and os.access(path, os.X_OK):
            return path
    return None


def _write_maps(pid, ids):
    if ids.helped:
        helpers = []
        silent = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        for name, ranges in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
            argv = [name, str(pid), *(str(number) for line in ranges for number in line)]
            helpers.append(os.posix_spawn(program(name), argv, os.environ, file_actions=silent))
        failed = [os.waitpid(helper, 0)[1] for helper in helpers]
        if any(failed):
            raise OSError(1, "newuidmap or newgidmap failed")
        return
    if ids.kind == "one":
        try:
            _write(pid, "setgroups", "deny")
        except FileNotFoundError:
            pass  # before 3.19
    for name, ranges in (("uid_map", ids.uids), ("gid_map", ids.gids)):
        _write(pid, name, "".join("{} {} {}\n".format(*line) for line in ranges))


def _write(pid, name, text):
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def hints():
    """What on this host forbids user namespaces, as far as it tells: text to go behind a message."""
    found = []
    for path, value, what in (
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces is 0: the host would need e.g. 15000"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone is 0: it would need 1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1",
         "AppArmor restricts user namespaces: the host would need"
         " sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile with `userns,` for this Python"),
    ):  # fmt: skip
        if _read(f"/proc/sys/{path}") == value:
            found.append(what)
    status = _read("/proc/self/status")
    if "\nSeccomp:\t2" in status:
        found.append("a seccomp filter is in force, as in a container of Docker's: it would need"
                     " --security-opt seccomp=unconfined")  # fmt: skip
    return "".join(f"; {one}" for one in found)


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read().strip()
    except OSError:
        return ""

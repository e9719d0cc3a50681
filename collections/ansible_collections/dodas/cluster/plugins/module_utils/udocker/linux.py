# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.8 does not offer, through the C library. Each raises OSError that says what was tried."""

import _ctypes  # ctypes itself makes dozens of classes first, at each start of a container
import os
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_PARENT, SIGCHLD = 0x8000, 17
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 1, 4, 22, 38, 39
PR_SET_CHILD_SUBREAPER = 36
TIOCSCTTY, FICLONE, NS_GET_USERNS = 0x540E, 0x40049409, 0xB701
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x1000, 0x8000, 1

# What the C library has no function for: x86_64, what younger architectures share, ppc64le, s390x.
_NUMBERS = {
    "pivot_root": (155, 41, 203, 217),
    "clone": (56, 220, 120, 120),
    "seccomp": (317, 277, 358, 348),
    "close_range": (436, 436, 436, 436),
    "mount_setattr": (442, 442, 442, 442),
    "pidfd_open": (434, 434, 434, 434),
    "open_tree": (428, 428, 428, 428),
    "move_mount": (429, 429, 429, 429),
}
_COLUMN = {"x86_64": 0, "ppc64le": 2, "s390x": 3}.get(os.uname().machine, 1)


class _Char(_ctypes._SimpleCData):
    _type_ = "c"


class _Int(_ctypes._SimpleCData):
    _type_ = "i"


class _Long(_ctypes._SimpleCData):
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    """A function of the C library that returns an int."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _LongFunction(_ctypes.CFuncPtr):
    _flags_ = _Function._flags_
    _restype_ = _Long


class _HeldFunction(_ctypes.CFuncPtr):
    """It keeps the interpreter's lock: a child that appears within the call goes on in Python at once."""

    _flags_ = _Function._flags_ | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _Long


_library = _ctypes.dlopen(None, os.RTLD_NOW)


def _function(name, kind=_Function):
    return kind(_ctypes.dlsym(_library, name))


_syscall = _function("syscall", _LongFunction)


def _check(result, what):
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _path(path):
    return None if path is None else os.fsencode(path)


def _system(name, *arguments, function=_syscall):
    values = [_Long(one) if isinstance(one, int) else one for one in arguments]
    return function(_Long(_NUMBERS[name][_COLUMN]), *values)


def unshare(flags):
    _check(_function("unshare")(flags), f"unshare({flags:#x})")


def setns(descriptor, kind=0):
    _check(_function("setns")(descriptor, kind), "setns")


def clone(flags):
    """fork() into new namespaces: 0 in the child, its pid in the parent.

    Only where the process has no other thread: what Python and the C library do around a fork is left out.
    """
    first = (0, flags | SIGCHLD) if os.uname().machine == "s390x" else (flags | SIGCHLD, 0)
    return _check(_system("clone", *first, 0, 0, 0, function=_function("syscall", _HeldFunction)), f"clone({flags:#x})")


def mount(source, target, kind=None, flags=0, data=None):
    what = f"mount({kind or source}, {os.fsdecode(target)})"
    _check(_function("mount")(_path(source), _path(target), _path(kind), _Long(flags), _path(data)), what)


def clone_mounts(path):
    """A descriptor of a copy of what is mounted at `path` and below, which is nowhere yet; None before Linux 5.2."""
    clone, close_on_exec = 1, 0o2000000
    result = _system("open_tree", AT_FDCWD, _path(path), clone | close_on_exec | AT_RECURSIVE)
    if result < 0 and _ctypes.get_errno() == 38:  # ENOSYS
        return None
    return _check(result, f"open_tree({path})")


def place_mounts(descriptor, target):
    """Put what clone_mounts() copied on the folder or file of descriptor `target`."""
    from_empty, to_empty = 4, 0x40
    _check(_system("move_mount", descriptor, b"", target, b"", from_empty | to_empty), "move_mount")


def umount(target, flags=0):
    _check(_function("umount2")(_path(target), flags), f"umount({os.fsdecode(target)})")


def pivot_root(new, old):
    _check(_system("pivot_root", _path(new), _path(old)), f"pivot_root({new})")


def make_read_only(path):
    """A mount and all below it; raises OSError where the kernel is older than 5.12."""
    attributes = b"".join(one.to_bytes(8, sys.byteorder) for one in (MOUNT_ATTR_RDONLY, 0, 0, 0))
    arguments = AT_FDCWD, _path(path), AT_RECURSIVE, attributes, len(attributes)
    _check(_system("mount_setattr", *arguments), f"mount_setattr({path})")


def prctl(option, value=0):
    return _check(_function("prctl")(option, *map(_Long, (value, 0, 0, 0))), f"prctl({option}, {value})")


def sethostname(name):
    name = os.fsencode(name)
    _check(_function("sethostname")(name, _Long(len(name))), "sethostname")


def ioctl(descriptor, request, argument=0):
    """argument: a number, or bytes that are handed over and not given back."""
    argument = _Long(argument) if isinstance(argument, int) else argument
    return _check(_function("ioctl")(descriptor, _Long(request), argument), f"ioctl({request:#x})")


def bring_up_loopback():
    """In a network namespace of its own, which begins with an interface that is down."""
    family, datagram, close_on_exec, set_flags, up_and_running = 2, 2, 0o2000000, 0x8914, 0x41
    descriptor = _check(_function("socket")(family, datagram | close_on_exec, 0), "socket")
    try:
        ioctl(descriptor, set_flags, b"lo".ljust(16, b"\0") + up_and_running.to_bytes(2, "little") + bytes(22))
    finally:
        os.close(descriptor)


def clone_file(source, target):
    """Let descriptor `target` share the blocks of `source`; raises OSError where the file system cannot."""
    ioctl(target, FICLONE, source)


def close_from(first, keep=()):
    """Close all descriptors from `first` on, but those in `keep`."""
    start = first
    for descriptor in [*sorted(one for one in set(keep) if one >= first), 0xFFFFFFFF + 1]:
        if descriptor > start and _system("close_range", start, descriptor - 1, 0) < 0:
            break
        start = descriptor + 1
    else:
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own


def pidfd_open(pid):
    """A descriptor that becomes readable when the process ends; None where the kernel is older than 5.3."""
    result = _system("pidfd_open", pid, 0)
    return result if result >= 0 else None


def exit_status(pidfd):
    """The wait status of a process that has ended, whoever waited for it; None where the kernel is older than 6.15."""
    import ctypes

    info = (ctypes.c_uint64 * 8)(8)  # PIDFD_INFO_EXIT
    if _function("ioctl")(pidfd, _Long(0xC040FF0B), info) < 0 or not info[0] & 8:
        return None
    return info[7] >> 32


def ptrace(request, pid, data=0):
    """data: a number, or what ctypes.byref() gives for what the kernel writes."""
    data = _Long(data) if isinstance(data, int) else data
    _check(_function("ptrace", _LongFunction)(*map(_Long, (request, pid, 0)), data), f"ptrace({request:#x})")


def first_child(pid):
    """Wait until `pid`, a child that ptrace_children() was called for, forks: (pid, pidfd) of the new process.

    Neither has run any further then, and both go on untraced. (None, None) when `pid` ends without.
    """
    import ctypes

    detach, go_on, event_message, all_children = 17, 7, 0x4201, 0x40000000
    while True:
        _pid, status = os.waitpid(pid, all_children)
        if not os.WIFSTOPPED(status):
            return None, None
        if status >> 16 in (1, 2, 3):
            break
        ptrace(go_on, pid, 0 if status >> 16 else os.WSTOPSIG(status))
    message = ctypes.c_ulong()
    ptrace(event_message, pid, ctypes.byref(message))
    child = message.value
    os.waitpid(child, all_children)
    handle = pidfd_open(child)
    ptrace(detach, child)
    ptrace(detach, pid)
    return child, handle


def ptrace_children(pid):
    """Stop `pid`, a child, when it forks; raises OSError where that is denied."""
    seize, fork_vfork_clone = 0x4206, 2 | 4 | 8
    ptrace(seize, pid, fork_vfork_clone)


def seccomp(program):
    """Install a filter (bytes of struct sock_filter) for this process and its children."""
    # Nothing is imported here: it is done in a container, after its root has become this process's.
    content = (_Char * len(program))()
    content.raw = program
    size = 8 if sys.maxsize > 1 << 32 else 4
    length = (len(program) // 8).to_bytes(2, sys.byteorder).ljust(size, b"\0")
    head = length + _ctypes.addressof(content).to_bytes(size, sys.byteorder)
    flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW
    if _system("seccomp", SECCOMP_SET_MODE_FILTER, flags, head) < 0:
        _check(_system("seccomp", SECCOMP_SET_MODE_FILTER, 0, head), "seccomp")

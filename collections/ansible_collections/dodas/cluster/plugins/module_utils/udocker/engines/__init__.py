# SPDX-License-Identifier: Apache-2.0
"""Engines: ways to give a process the root file system of a container, without root.

Which ones work is found out by running a program in each, and remembered beside the store: by host, kernel, user and
file system, since a home on NFS is seen from many.
"""

import os

from .. import records
from ..errors import Error

# Best first: where they live, and as what.
_ENGINES = {"overlay": "Overlay", "directory": "Directory", "fuse": "Fuse", "proot": "Proot"}
# udocker 1.3.17's names of modes, for what is closest here.
MODES = {"P1": "proot", "P2": "proot", "R1": "directory", "R2": "directory", "R3": "directory"}
_ELSEWHERE = {
    "F": "fakechroot replaces the image's C library: overlay is faster, and takes any image",
    "S": "singularity has a runtime of its own: overlay does the same",
}
_PATIENCE = 600  # seconds after which what did not work is tried again
_KEPT = 20  # hosts, kernels and so on whose answers are kept


def get(name, scratch=None):
    """The engine of a name, or of a mode of udocker's; raises Error.

    scratch: where overlay keeps what a container writes, if not in its folder
    """
    wanted = MODES.get(str(name).upper(), str(name).lower())
    if wanted not in _ENGINES:
        reason = _ELSEWHERE.get(str(name)[:1].upper()) if str(name)[1:].isdigit() else None
        known = f"engines are {', '.join(_ENGINES)}, and modes {', '.join(MODES)}"
        raise Error(f"there is no engine {name}: {reason or known}", 125)
    engine = getattr(__import__(f"{__name__}.{wanted}", fromlist=["*"]), _ENGINES[wanted])()
    if scratch:
        engine.scratch = scratch
    if str(name).upper() == "P2":
        engine.seccomp = False
    return engine


def probe(store, again=True):
    """{engine: None, or why it does not work here}, found out by doing; `again`: not what was found before."""
    found = {} if again else dict(_known(store))
    for name in _ENGINES:
        if name not in found:
            found[name], found[f"{name}.scratch"] = _try(store, name)
    _keep(store, found)
    return {name: found[name] for name in _ENGINES}


def choose(store, wanted=None, platform=None):
    """The best engine that works here, or the wanted one (name or mode); raises Error: what the host would need.

    platform: os/architecture[/variant] of the image; one that this machine cannot run itself takes QEMU
    """
    foreign = _foreign(platform)
    if foreign and not wanted:
        return _emulating(store, foreign)
    known = _known(store)
    if wanted:
        name = get(wanted).name
        if name not in known:
            known = dict(known)
            known[name], known[f"{name}.scratch"] = _try(store, name)
            _keep(store, known)
        if known[name] is not None:
            raise Error(f"engine {wanted} does not work here: {known[name]}", 125)
        return get(wanted, known.get(f"{name}.scratch"))
    for name in _ENGINES:
        if name not in known:
            known = dict(known)
            known[name], known[f"{name}.scratch"] = _try(store, name)
            _keep(store, known)
        if known[name] is None:
            return get(name, known.get(f"{name}.scratch"))
    reasons = "".join(f"\n  {name}: {known[name]}" for name in _ENGINES)
    raise Error(
        f"no engine works on this host:{reasons}\nIt would need user namespaces (and package uidmap, for more than one"
        " user in a container), or the program proot on PATH or named by UDOCKER_PROOT",
        125,
    )


def _foreign(platform):
    """The architecture (as QEMU calls it) of a platform that neither this machine nor its kernel's helpers run."""
    if not platform or platform.count("/") < 1:
        return None
    from . import proot

    name = platform.split("/")[1]
    name = {"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "loong64": "loongarch64"}.get(name, name)
    return None if name in proot.native() or proot.registered(name) else name


def _emulating(store, architecture):
    from . import proot

    if not proot.emulator(architecture):
        raise Error(
            f"this image is for {architecture}: the host would need qemu-{architecture} (package qemu-user-static), and"
            " proot or the kernel's binfmt_misc to use it",
            125,
        )
    return choose(store, "proot")


# What is remembered


def _key():
    system = os.uname()
    try:
        with open("/proc/self/status", "rb") as source:
            lines = source.read().splitlines()
        wanted = (b"Seccomp:", b"NoNewPrivs:", b"CapEff:")
        limits = [line.split()[-1].decode() for line in lines if line.startswith(wanted)]
        namespace = os.readlink("/proc/self/ns/user")
    except OSError:
        limits, namespace = [], ""
    return " ".join([system.nodename, system.release, str(os.geteuid()), namespace, *limits])


def _file_system(store):
    folder = store.root
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev


def _wishes():
    return [os.environ.get(name, "") for name in ("UDOCKER_SCRATCH", "UDOCKER_PROOT", "UDOCKER_FUSE_OVERLAYFS")]


def _known(store):
    """What was found out on this host for this store, if it may still be so."""
    import time

    try:
        entry = records.read(store.path("engines.json"))[_key()]
        if entry["file system"] != _file_system(store) or entry["wishes"] != _wishes():
            return {}
        found = entry["found"]
        scratch = found.get("overlay.scratch")
        if scratch and not os.path.isdir(scratch):
            return {}
        if not 0 <= time.time() - entry["time"] < _PATIENCE:
            found = {name: value for name, value in found.items() if found.get(name.split(".")[0]) is None}
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _keep(store, found):
    import time

    path = store.path("engines.json")
    try:
        content = records.read(path)
        content.pop(_key(), None)
    except (OSError, ValueError, AttributeError):
        content = {}
    content = dict(list(content.items())[1 - _KEPT :])
    content[_key()] = {
        "time": time.time(), "file system": _file_system(store), "wishes": _wishes(), "found": found,
    }  # fmt: skip
    try:
        records.write(path, content)
    except OSError:
        pass  # a store that others provide: found out each time


# Finding out


def _try(store, name):
    """(None or why the engine does not work, where overlay's upper folders have to be)."""
    from .. import trees

    try:
        with store.temporary() as folder:
            try:
                reason = _try_in(folder, name)
                if reason is None or name != "overlay":
                    return reason, None
                for scratch in _scratches():
                    if _try_in(folder, name, scratch) is None:
                        return None, scratch
                return reason, None
            finally:
                for one in os.listdir(folder):
                    trees.remove(os.path.join(folder, one))
    except OSError as exc:
        return f"{store.root}: {exc.strerror}", None


def _scratches():
    """Folders of this machine that may hold what a container writes."""
    wanted = os.environ.get("UDOCKER_SCRATCH")
    if wanted:
        return [wanted]
    candidates = [os.environ.get("_CONDOR_SCRATCH_DIR"), os.environ.get("TMPDIR"), "/var/tmp", "/tmp"]
    return [path for path in candidates if path and os.path.isdir(path)]


def _try_in(folder, name, scratch=None):
    """None when a program runs, and files can be changed as containers do; otherwise why not."""
    from ..spec import Spec

    engine = get(name, scratch)
    layer, directory = os.path.join(folder, "layer"), os.path.join(folder, f"{name}{'.' if scratch else ''}")
    if not os.path.isdir(layer):
        _make_layer(layer)
    try:
        os.mkdir(directory)
        engine.prepare(directory, [layer])
        argv = ["/program"] if os.path.exists(os.path.join(layer, "program")) else None
        if argv:
            code = engine.start(Spec(directory, [layer], argv, {"PATH": "/"})).wait()
            if code != _CODE:
                return f"a program that it ran ended with {code} rather than {_CODE}"
        engine.inside(directory, [layer], _change)
    except Error as exc:
        return str(exc)
    except OSError as exc:
        return exc.strerror or str(exc)
    finally:
        engine.remove(directory)
    return None


def _change(root):
    """What the kernel must be able to do in a container's root: to write, to rename, to delete what a layer holds."""
    path = os.path.join
    with open(path(root, "new"), "wb") as target:
        target.write(b"x")
    os.rename(path(root, "new"), path(root, "renamed"))
    os.unlink(path(root, "folder", "file"))
    os.rmdir(path(root, "folder"))
    os.mkdir(path(root, "folder"))
    if os.listdir(path(root, "folder")):
        raise Error("a folder that was deleted has its content again")


_CODE = 42
# Programs of a few bytes that need nothing: exit(42).
_EXIT = {
    "x86_64": (62, "b83c000000 bf2a000000 0f05"),
    "aarch64": (183, "a80b80d2 400580d2 010000d4"),
    "riscv64": (243, "9308d005 1305a002 73000000"),
}


def _make_layer(layer):
    os.makedirs(os.path.join(layer, "folder"))
    with open(os.path.join(layer, "folder", "file"), "w", encoding="utf-8") as target:
        target.write("of the layer")
    number, code = _EXIT.get(os.uname().machine, (None, None))
    if number is None:
        return
    import struct

    code = bytes.fromhex(code.replace(" ", ""))
    base, head = 0x400000, 64 + 56
    content = struct.pack("<16sHHIQQQ", b"\x7fELF\2\1\1", 2, number, 1, base + head, 64, 0)
    content += struct.pack("<IHHHHHH", 0, 64, 56, 1, 0, 0, 0)
    content += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, head + len(code), head + len(code), 0x1000) + code
    path = os.path.join(layer, "program")
    with open(path, "wb") as target:
        target.write(content)
    os.chmod(path, 0o755)

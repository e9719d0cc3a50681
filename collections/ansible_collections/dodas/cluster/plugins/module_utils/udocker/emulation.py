# SPDX-License-Identifier: Apache-2.0
"""Root over one id that behaves as if it had all: package managers want to give files away and to drop rights.

Without further ids (/etc/subuid) the kernel refuses any owner but one. A seccomp filter then answers such calls with
success and does nothing: files stay the user's, processes stay root. Calls that the kernel would grant reach it, and
so do all others, at no cost (the kernel keeps by call number what the filter always allows).

apt looks whether it has become another user when it has dropped its rights: it is told not to drop them.
"""

import os

from . import linux

# Audit architecture, and the numbers of the calls there.
ARCHITECTURES = {
    "x86_64": (0xC000003E, {
        "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "setuid": 105, "setgid": 106, "setreuid": 113,
        "setregid": 114, "setgroups": 116, "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123,
        "mknod": 133, "mknodat": 259,
    }),
    "aarch64": (0xC00000B7, {
        "fchown": 55, "fchownat": 54, "setuid": 146, "setgid": 144, "setreuid": 145, "setregid": 143,
        "setgroups": 159, "setresuid": 147, "setresgid": 149, "setfsuid": 151, "setfsgid": 152, "mknodat": 33,
    }),
    "i386": (0x40000003, {
        "chown": 212, "fchown": 207, "lchown": 198, "fchownat": 298, "setuid": 213, "setgid": 214, "setreuid": 203,
        "setregid": 204, "setgroups": 206, "setresuid": 208, "setresgid": 210, "setfsuid": 215, "setfsgid": 216,
        "mknod": 14, "mknodat": 297,
    }),
    "arm": (0x40000028, {
        "chown": 212, "fchown": 207, "lchown": 198, "fchownat": 325, "setuid": 213, "setgid": 214, "setreuid": 203,
        "setregid": 204, "setgroups": 206, "setresuid": 208, "setresgid": 210, "setfsuid": 215, "setfsgid": 216,
        "mknod": 14, "mknodat": 324,
    }),
}  # fmt: skip
# What a kernel of that machine runs.
_RUNS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}
# Which arguments are ids that must all be 0 or -1 (leave as it is) for the kernel to grant the call.
_IDS = {
    "chown": (1, 2), "fchown": (1, 2), "lchown": (1, 2), "fchownat": (2, 3), "setuid": (0,), "setgid": (0,),
    "setreuid": (0, 1), "setregid": (0, 1), "setresuid": (0, 1, 2), "setresgid": (0, 1, 2), "setfsuid": (0,),
    "setfsgid": (0,), "setgroups": (),
}  # fmt: skip
_MODES = {"mknod": (1, 2), "mknodat": (2, 3)}  # which arguments are the mode and the device

_ORDER = "little"  # of all machines in _RUNS
APT = "/dev/.apt.conf"  # beside the tree, so that no image has it
_APT = b'APT::Sandbox::User "root";\n'
LOAD, EQUAL, AND, ANSWER, JUMP = 0x20, 0x15, 0x54, 0x06, 0x05
ALLOW, SUCCEED = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # in struct seccomp_data
_TYPE, _CHARACTER, _BLOCK = 0o170000, 0o020000, 0o060000


def program(machine):
    """The filter for a machine as [(code, true, false, k)]; None where its calls are not known."""
    if machine not in _RUNS:
        return None
    lines = [(LOAD, 0, 0, _ARCHITECTURE)]
    for name in _RUNS[machine]:
        audit, numbers = ARCHITECTURES[name]
        body = [(LOAD, 0, 0, _NUMBER)]
        for call, number in numbers.items():
            part = _part(call)
            body += [(EQUAL, 0, len(part), number), *part]
        body.append((ANSWER, 0, 0, ALLOW))
        # Conditional jumps reach 255 lines, this one any number.
        lines += [(EQUAL, 1, 0, audit), (JUMP, 0, 0, len(body)), *body]
    return [*lines, (ANSWER, 0, 0, ALLOW)]


def _part(call):
    """What answers one call."""
    if call in _MODES:
        mode, device = _MODES[call]
        # A device 0:0 is a whiteout, which anyone may make.
        return [
            (LOAD, 0, 0, _ARGUMENTS + 8 * mode), (AND, 0, 0, _TYPE), (EQUAL, 1, 0, _CHARACTER), (EQUAL, 0, 2, _BLOCK),
            (LOAD, 0, 0, _ARGUMENTS + 8 * device), (EQUAL, 0, 1, 0), (ANSWER, 0, 0, ALLOW), (ANSWER, 0, 0, SUCCEED),
        ]  # fmt: skip
    lines = []
    for argument in _IDS[call]:
        lines += [(LOAD, 0, 0, _ARGUMENTS + 8 * argument), (EQUAL, 2, 0, 0), (EQUAL, 1, 0, 0xFFFFFFFF)]
        lines.append((ANSWER, 0, 0, SUCCEED))
    return [*lines, (ANSWER, 0, 0, ALLOW if lines else SUCCEED)]


def assemble(lines):
    """struct sock_filter for each line."""
    return b"".join(
        code.to_bytes(2, _ORDER) + bytes((true, false)) + k.to_bytes(4, _ORDER) for code, true, false, k in lines
    )


def configure():
    """Write beside the tree what programs must be told, where this is the container's root and /dev is its own."""
    if os.path.isdir("/etc/apt"):
        descriptor = os.open(APT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, _APT)
        os.close(descriptor)


def install(env, machine=None):
    """Let this process and its children be such a root; nothing on machines whose calls are not known.

    env: variables of what is executed, to which is added what tells programs
    """
    if os.path.exists(APT):
        env.setdefault("APT_CONFIG", APT)
    lines = program(machine or os.uname().machine)
    if lines:
        linux.seccomp(assemble(lines))

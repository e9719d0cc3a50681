# SPDX-License-Identifier: Apache-2.0
"""passwd and group for a container whose users are not the image's alone."""

import os
import stat

LIMIT = 1 << 20  # bytes of a passwd or group that is looked at


def files(container, name, host=False):
    """{"passwd": text, "group": text} to bind into it; {} where the image's own do.

    name: the user who is to run, "" or digits for none to look up; host: the host's users instead of the image's.
    Raises LookupError when neither knows the user.
    """
    import pwd

    own = pwd.getpwuid(os.getuid()) if _known(os.getuid()) else None
    known = not name or name.isdigit()
    passwd = _host("/etc/passwd") if host else peek(container, "etc/passwd")
    group = _host("/etc/group") if host else peek(container, "etc/group")
    listed = {line.split(":", 1)[0] for line in passwd.splitlines()}
    if host:
        if own and own.pw_name not in listed:  # of a directory service
            passwd, group = _with(passwd, group, own)
            listed.add(own.pw_name)
    elif known or name in listed:
        return {}
    if not known and name not in listed:
        try:
            passwd, group = _with(passwd, group, pwd.getpwnam(name))
        except KeyError:
            raise LookupError(name) from None
    return {"passwd": passwd, "group": group}


def _with(passwd, group, entry):
    """Both files with one more user and its group."""
    name, uid, gid = entry.pw_name, entry.pw_uid, entry.pw_gid
    passwd = _ended(passwd) + f"{name}:x:{uid}:{gid}:{entry.pw_gecos}:{entry.pw_dir}:/bin/sh\n"
    if not any(line.split(":")[2:3] == [str(gid)] for line in group.splitlines()):
        group = _ended(group) + f"{name}:x:{gid}:{name}\n"
    return passwd, group


def _ended(text):
    return text if not text or text.endswith("\n") else text + "\n"


def _known(uid):
    import pwd

    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _host(path):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as source:
            return source.read(LIMIT)
    except OSError:
        return ""


def peek(container, path):
    """The text of a small file as the container has it, found without mounting anything; "" without.

    path: relative; no symbolic link is followed on the way, so that nothing leads outside.
    """
    if container.record["engine"] in ("directory", "proot"):
        trees = [container.path("ROOT")]
    else:
        trees = [container.path("upper"), *reversed(container.layers)]
    for tree in trees:
        found = _look(tree, path.split("/"))
        if found is not None:
            return found
    return ""


def _look(tree, parts):
    """The text of a file in one layer; "" when this layer hides it; None when it says nothing about it."""
    try:
        here = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    hidden = None
    try:
        for index, part in enumerate(parts):
            try:
                status = os.stat(part, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                return hidden
            if stat.S_ISCHR(status.st_mode):
                return ""  # a whiteout
            last = index == len(parts) - 1
            if last and stat.S_ISREG(status.st_mode):
                file = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                with open(file, encoding="utf-8", errors="surrogateescape") as source:
                    return source.read(LIMIT)
            if last or not stat.S_ISDIR(status.st_mode):
                return ""
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
            if _opaque(here):
                hidden = ""
    except OSError:
        return ""
    finally:
        os.close(here)
    return None


def _opaque(folder):
    try:
        return os.getxattr(folder, "user.overlay.opaque") == b"y"
    except OSError:
        return False

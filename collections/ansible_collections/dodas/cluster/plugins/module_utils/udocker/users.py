# SPDX-License-Identifier: Apache-2.0
"""Users and groups of a container, out of its own /etc/passwd and /etc/group."""

from .errors import Error


class User:
    """uid, gid, groups (supplementary gids), home, name: as the container's files say, or as numbers alone."""

    __slots__ = ("gid", "groups", "home", "name", "uid")

    def __init__(self, uid, gid, groups=(), home="/", name=""):
        self.uid = uid
        self.gid = gid
        self.groups = list(groups)
        self.home = home
        self.name = name


def find(text, read=None):
    """The User of "name-or-uid[:group-or-gid]"; empty is root. Raises Error.

    read: gives the content of a path in the container as bytes, and raises OSError; by default from where this runs
    """
    read = read or _read
    wanted, _colon, group = (text or "0").partition(":")
    accounts = _table(read, "/etc/passwd", 6)
    entry = next((one for one in accounts if one[0] == wanted), None)
    if entry is None and _number(wanted) is not None:
        entry = next((one for one in accounts if _number(one[2]) == _number(wanted)), None)
        if entry is None:
            entry = ["", "", wanted, "0", "", "/"]
    if entry is None:
        raise Error(f"unable to find user {wanted}: no matching entries in the container's passwd file", 125)
    uid, gid = _number(entry[2]), _number(entry[3])
    if uid is None or gid is None:
        raise Error(f"the container's /etc/passwd has no number for user {wanted}", 125)
    groups = _table(read, "/etc/group", 3)
    if group:
        found = next((_number(one[2]) for one in groups if one[0] == group), None)
        gid = _number(group) if found is None else found
        if gid is None:
            raise Error(f"unable to find group {group}: no matching entries in the container's group file", 125)
        further = []
    else:
        members = ((one[3].split(",") if len(one) > 3 else [], _number(one[2])) for one in groups)
        further = [number for names, number in members if entry[0] and entry[0] in names and number is not None]
    return User(uid, gid, further, entry[5] or "/", entry[0])


def _table(read, path, fields):
    try:
        lines = read(path).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    rows = (line.split(":") for line in lines if not line.startswith("#"))
    return [row for row in rows if len(row) >= fields and row[0] not in ("+", "-")]


def _number(text):
    """An id, or None: what is no number, or beyond 32 bits."""
    if text.isascii() and text.isdigit() and int(text) < 0xFFFFFFFF:
        return int(text)
    return None


def _read(path):
    with open(path, "rb") as source:
        return source.read(1 << 20)

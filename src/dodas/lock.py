# SPDX-License-Identifier: Apache-2.0
"""One command at a time changes a deployment; `down` ends the one that does.

The lock is a file that the command and the playbook that it runs hold open: it is free when the last of them has ended,
however it ended.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from dodas.errors import InputError

PATIENCE = 10  # seconds until those that were killed must have let go


@contextmanager
def only_one(folder, end=False):
    """Hold the lock of a deployment's folder; yields its file descriptor, for children to inherit.

    Ends what a killed command left running and, where `end` says so, the command that runs. Raises InputError.
    """
    path = Path(folder) / "lock"
    deadline = time.monotonic() + PATIENCE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab+", buffering=0) as stream:
            if _taken(stream, path):
                stream.truncate(0)
                stream.write(b"%d" % os.getpid())
                yield stream.fileno()
                return
            stream.seek(0)
            owner = stream.read().decode("ascii", "replace")
        holders = _holders(path)
        if time.monotonic() > deadline or (not end and owner in holders):
            name = path.parent.name
            raise InputError(f"another dodas command (process {owner}) works on {name}: wait until it ended")
        _kill(holders)
        time.sleep(0.1)


def _taken(stream, path):
    """Take the lock if it is free, and the file is still the one that others would open."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _holders(path):
    """Processes that hold the file open, but not this one."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.parts[2] not in found and link.samefile(path):
                found.add(link.parts[2])
        except OSError:
            continue
    return found - {str(os.getpid())}


def _kill(processes):
    """Kill processes and their descendants: a module that goes on would make again what is removed."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[path.parts[2]] = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
    doomed, more = set(), set(processes)
    while more:
        doomed |= more
        more = {one for one, parent in parents.items() if parent in more} - doomed
    for one in doomed - {str(os.getpid())}:
        try:
            os.kill(int(one), signal.SIGKILL)
        except ProcessLookupError:
            continue

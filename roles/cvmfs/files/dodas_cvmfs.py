#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps a host's CVMFS repositories mounted and tells whether they can be read.

    dodas-cvmfs [--config FILE] probe              one line a repository; fails where one cannot be read
    dodas-cvmfs [--config FILE] mount [--dry-run]  mounts what is missing, and again what has died; where a
                                                   proxy is gone, another is looked for
    dodas-cvmfs [--config FILE] unmount [--all]    unmounts what the configuration does not name (or everything)
    dodas-cvmfs [--config FILE] remount            asks for new revisions

What was changed is printed, one line each, and what went wrong on standard error, with exit status 1. The configuration
(JSON): repositories (names), mounts ("static": in the table of file systems, "autofs": on access), files (repository:
path of a file in it that the probe reads), timeout (seconds for mounting all of them).

Standard library only, Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "/etc/dodas/cvmfs/cvmfs.json"
ROOT = "/cvmfs"
MOUNTS = "/proc/self/mountinfo"
LOCK = "/run/dodas-cvmfs.lock"
LOCK_WAIT = 120  # seconds for another process of this program
PAUSE = 2  # seconds between two tries to mount: a proxy that is down is noticed after about as long
SLOWEST = 30  # seconds for one look at a repository
DRAIN = 120  # seconds until what the kernel holds of an old revision is gone
FAILED = 32  # mount(8): the client started, and could not mount
DEAD = "Transport endpoint is not connected"  # what is read of a mount whose client is gone


class CvmfsError(Exception):
    """Why a repository cannot be used; begins with its name."""


def run(*command, timeout=SLOWEST):
    """(exit status, output, last line of the errors) of a command; a command that takes too long has failed."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env={**os.environ, "LC_ALL": "C"}, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, "", f"{command[0]}: no answer in {timeout:.0f} s"
    except FileNotFoundError:
        return -1, "", f"{command[0]} is not installed"
    errors = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    return done.returncode, done.stdout, errors.splitlines()[-1]


@contextlib.contextmanager
def alone():
    """Nobody else mounts or unmounts meanwhile. Raises CvmfsError."""
    end = time.monotonic() + LOCK_WAIT
    with open(LOCK, "w", encoding="ascii") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise CvmfsError(f"another dodas-cvmfs has held {LOCK} for {LOCK_WAIT} s") from None
                time.sleep(0.2)
        yield


def place(name):
    return f"{ROOT}/{name}"


def mounted():
    """Names of the repositories that are mounted, dead ones as well."""
    found = []
    for line in Path(MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines():
        where, _dash, what = line.partition(" - ")
        point = where.split()[4]
        if os.path.dirname(point) == ROOT and what.split()[:2] in (["fuse", "cvmfs2"], ["fuse.cvmfs2", "cvmfs2"]):
            found.append(os.path.basename(point))
    return found


def listed(name, timeout=SLOWEST):
    """Why a repository cannot be listed, or "". Listing mounts what autofs looks after."""
    status, _output, error = run("ls", place(name), timeout=timeout)
    return "" if status == 0 else error


def log_since(name, began):
    """What the client last logged of a repository since `began`, or ""."""
    command = ("journalctl", "--quiet", "--no-pager", "--output=cat", "--identifier=cvmfs2", f"--since=@{began:.0f}")
    status, output, _error = run(*command)
    lines = [line for line in output.splitlines() if f"({name})" in line] if status == 0 else []
    return lines[-1].partition(f"({name})")[2].strip() if lines else ""


def mount(name, config):
    """Try to mount a repository; returns whether another try may succeed, and why it is not mounted ("" when it is)."""
    began = time.time()
    if name in mounted():  # it has died
        try:
            unmount(name)
        except CvmfsError as exc:
            return False, str(exc)
    if config["mounts"] == "autofs":
        error = listed(name, config["timeout"])
        status = FAILED if error else 0
    else:
        os.makedirs(place(name), exist_ok=True)
        status, _output, error = run("mount", place(name), timeout=config["timeout"])
    if status == 0 and name in mounted():
        return False, ""
    reason = "; ".join(dict.fromkeys(filter(None, (error, log_since(name, began)))))
    return status == FAILED, f"{name}: not mounted: {reason}"


def unmount(name):
    """Unmount a repository; one in use goes when nobody uses it any more. Raises CvmfsError."""
    if run("umount", place(name))[0] != 0:
        status, _output, error = run("umount", "--lazy", place(name))
        if status != 0:
            raise CvmfsError(f"{name}: not unmounted: {error}")


def keep_mounted(config, dry_run):
    """Mount what is not mounted or has died; yields what is done. Raises CvmfsError for all that could not be.

    What may succeed later is tried again until the time is over, and each is tried once.
    """
    end = time.monotonic() + config["timeout"]
    missing = [name for name in config["repositories"] if name not in mounted() or DEAD in listed(name)]
    wrong = {}
    while missing and not dry_run:
        for name in list(missing):
            again, wrong[name] = mount(name, config)
            if not again:
                missing.remove(name)
            if not wrong[name]:
                yield f"{name}: mounted"
        if time.monotonic() + PAUSE > end:
            break
        if missing:
            time.sleep(PAUSE)
    if dry_run:
        yield from (f"{name}: is to be mounted" for name in missing)
    for name in mounted() if not dry_run else ():
        with contextlib.suppress(CvmfsError):
            statistics(name)
    if any(wrong.values()):
        raise CvmfsError("\n".join(filter(None, wrong.values())))


def talk(name, *words, timeout=SLOWEST):
    """What the client of a repository answers; raises CvmfsError."""
    status, output, error = run("cvmfs_talk", "-i", name, *words, timeout=timeout)
    if status != 0 or output.startswith("Failed"):  # an answer like any other to cvmfs_talk
        raise CvmfsError(f"{name}: {' '.join(words)}: {error}")
    return output.strip()


def remount(name):
    """Ask the client for a new revision; returns what changed, or "". Raises CvmfsError."""
    before = talk(name, "revision")
    talk(name, "remount", "sync", timeout=DRAIN)
    after = talk(name, "revision")
    return f"{name}: revision {before} -> {after}" if after != before else ""


def statistics(name):
    """The client's statistics by their titles; an offline one is made to look for another proxy. Raises CvmfsError."""
    found = _statistics(name)
    if found["ONLINE"] != "1":
        # While nothing is read that is not cached, a client does not notice that its proxy is gone. Root may tell it.
        with contextlib.suppress(CvmfsError):
            talk(name, "remount")
        found = _statistics(name)
    return found


def _statistics(name):
    _status, output, error = run("cvmfs_config", "stat", name)
    words = output.split()
    titles = words[: words.index("ONLINE") + 1] if "ONLINE" in words else []
    found = {title: words[len(titles) + i] for i, title in enumerate(titles) if len(titles) + i < len(words)}
    if "ONLINE" not in found:
        raise CvmfsError(f"{name}: no statistics: {error}")
    return found


def probe(name, file):
    """One line on a repository that can be read; raises CvmfsError.

    What is cached can be read without the servers: whether they answer is in the last field of the client's statistics.
    """
    reason = listed(name)
    if not reason and name not in mounted():
        reason = "not mounted"
    if not reason and file:
        status, _output, error = run("cat", f"{place(name)}/{file}")
        reason = error if status else ""
    if reason:
        raise CvmfsError(f"{name}: {reason}")
    found = statistics(name)
    where = f"{found['HOST']} through {found['PROXY']}"
    if found["ONLINE"] != "1":
        raise CvmfsError(f"{name}: offline, only what is cached can be read: no answer from {where}")
    return f"{name}: revision {found['REVISION']} from {where}"


def each(names, action):
    """Do something for all names; yields what it says. Raises CvmfsError for all that went wrong."""
    wrong = []
    for name in names:
        try:
            said = action(name)
            if said:
                yield said
        except CvmfsError as exc:
            wrong.append(str(exc))
    if wrong:
        raise CvmfsError("\n".join(wrong))


def say(lines):
    for line in lines:
        print(line, flush=True)


def gone(name):
    unmount(name)
    return f"{name}: unmounted"


def main():
    parser = argparse.ArgumentParser(prog="dodas-cvmfs", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=CONFIG)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("probe")
    commands.add_parser("mount").add_argument("--dry-run", action="store_true")
    commands.add_parser("unmount").add_argument("--all", action="store_true")
    commands.add_parser("remount")
    options = parser.parse_args()
    try:
        config = {"repositories": []}
        if options.command != "unmount" or not options.all:
            config = json.loads(Path(options.config).read_text(encoding="utf-8"))
        names = config["repositories"]
        if options.command == "probe":
            say(each(names, lambda name: probe(name, config["files"].get(name))))
        elif options.command == "remount":
            say(each(names, remount))
        else:
            with alone():
                if options.command == "mount":
                    say(keep_mounted(config, options.dry_run))
                else:
                    say(each([name for name in mounted() if name not in names], gone))
    except (CvmfsError, OSError, ValueError, KeyError) as exc:
        print(f"{type(exc).__name__}: {exc}" if isinstance(exc, (ValueError, KeyError)) else exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

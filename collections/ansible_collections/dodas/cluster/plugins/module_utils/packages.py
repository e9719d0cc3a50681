# SPDX-License-Identifier: Apache-2.0
"""Debian packages by way of apt-get. Runs on managed hosts: standard library only."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.host import missing_packages

LISTS = Path("/var/lib/apt/lists")
POLICY = Path("/usr/sbin/policy-rc.d")
LOCK_WAIT = 120  # seconds for another package manager, which a machine's first boot often starts
TIMEOUT = 900


class PackageError(Exception):
    """apt-get failed; the message has its own words."""


def install(names, max_age, services=True):
    """Install what is missing of `names`, without recommended packages; returns the names that were.

    Package lists older than `max_age` seconds are fetched first. `services=False` keeps what is installed from being
    started. Raises PackageError.
    """
    missing = missing_packages(names)
    if missing:
        if _age() >= max_age:
            _apt("update")
        with _services(services):
            _apt("install", "--yes", "--no-install-recommends", *missing)
    return missing


def _age():
    """Seconds since the package lists were fetched."""
    fetched = [path.stat().st_mtime for path in (LISTS / "partial", LISTS) if path.is_dir()]
    filled = any(path.is_file() and path.name != "lock" for path in LISTS.glob("*"))
    return time.time() - max(fetched) if filled else float("inf")


@contextmanager
def _services(started):
    """While it lasts, packages start no service unless `started`; a policy that the host has is left alone."""
    if started or POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    try:
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink()


def _apt(*arguments):
    command = ["apt-get", "--quiet=2", "--option", f"DPkg::Lock::Timeout={LOCK_WAIT}", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise PackageError(f"apt-get {arguments[0]}: not finished in {TIMEOUT} s") from exc
    errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed", "Err:"))]
    # apt-get update ends well although a source could not be reached.
    if done.returncode or (arguments[0] == "update" and any(line.startswith("E:") for line in errors)):
        raise PackageError(f"apt-get {arguments[0]}: {'; '.join(errors) or done.stderr.strip()[-500:]}")

# SPDX-License-Identifier: Apache-2.0
"""Waits until new hosts can be logged in to and have done what they were told at their first boot."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.dodas.cluster.plugins.module_utils import sshkeys

ATTEMPT = 10  # seconds for one connection
PAUSE = 0.5
# cloud-init ends with 2 where something can be lived with; what went wrong is said in its own words.
BOOTED = """\
echo in; command -v cloud-init >/dev/null || exit 0
said=$(cloud-init status --wait --long 2>&1); status=$?
[ $status -eq 1 ] || exit 0
echo "$said" | tr '\\n' ' '; exit 3"""
FAILED = 3
SILENT = "no answer"


class AccessError(Exception):
    """Hosts did not answer in time, or did not boot well; names each of them."""


def wait(state_dir, hosts, timeout=300, at_once=32):
    """Wait for all hosts {name: {"address", "public_address", "id", "jump"}}; returns {name: seconds}.

    timeout: seconds for all together. Raises AccessError.
    """
    start = time.monotonic()
    # By name where the address is the cloud's choice.
    keys = sshkeys.SshKeys(state_dir, "")
    keys.know({name: name if one.get("id") else one["address"] for name, one in hosts.items()})
    with ThreadPoolExecutor(max(1, min(at_once, len(hosts)))) as pool:
        # Those that others are reached through come first.
        order = sorted(hosts, key=lambda name: bool(hosts[name].get("jump")))
        jobs = {name: pool.submit(_wait, state_dir, name, hosts, start + timeout) for name in order}
        errors = {name: job.result() for name, job in jobs.items()}
    silent = [f"{name} ({sshkeys.outer_address(hosts[name])}): {one}" for name, (one, _at) in errors.items() if one]
    if silent:
        raise AccessError("; ".join(silent))
    return {name: round(at - start, 1) for name, (_one, at) in errors.items()}


def _wait(state_dir, name, hosts, deadline):
    """(what is wrong or None, when that was known)."""
    last = None
    while True:
        error, final = _attempt(state_dir, name, hosts, deadline)
        now = time.monotonic()
        # The last attempt may have been cut short: what the one before met says more.
        last = last if last and error == SILENT else error
        if error is None or final or now + PAUSE > deadline:
            return last, now
        time.sleep(PAUSE)


def _attempt(state_dir, name, hosts, deadline):
    """(what is wrong or None, whether another attempt would be in vain)."""
    key = str(sshkeys.SshKeys(state_dir, name).private)
    options = ["-i", key, *sshkeys.options(state_dir, name, hosts), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
               "-o", f"ConnectTimeout={ATTEMPT}", "-o", "ControlPath=none", "-o", "ServerAliveInterval=5",
               "-o", "ServerAliveCountMax=3"]  # fmt: skip
    command = ["ssh", *options, f"root@{sshkeys.outer_address(hosts[name])}", BOOTED]
    left = max(1.0, deadline - time.monotonic())
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=left, check=False)
    except subprocess.TimeoutExpired as exc:
        if exc.stdout:
            return "cloud-init has not ended: see /var/log/cloud-init-output.log there", True
        return SILENT, True
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 0:
        return None, True
    if done.returncode == FAILED:
        return f"cloud-init failed: {done.stdout.decode(errors='replace').removeprefix('in').strip()}", True
    return _reason(said), False


def _reason(lines):
    text = " ".join(lines)
    if "HOST IDENTIFICATION HAS CHANGED" in text or "Host key verification failed" in text:
        return "its SSH key is not the one that it was given: another server answers, or cloud-init did not run"
    if "Permission denied" in text:
        return "it does not let the deployment's key in as root: cloud-init did not run, or the image forbids root"
    return lines[-1] if lines else "ssh failed"

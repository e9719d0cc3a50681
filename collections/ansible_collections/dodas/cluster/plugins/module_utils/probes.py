# SPDX-License-Identifier: Apache-2.0
"""Probes: commands that must succeed, tried until they do. Runs on managed hosts: standard library only."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time

PAUSE = 0.5  # seconds between two rounds
SLOWEST = 20  # seconds for one command
SHORTEST = 1  # what a command gets even after the deadline, so that each is tried once


def run(probes, timeout):
    """Try all probes until each has held, or `timeout` seconds passed; returns one result a probe, in order."""
    start = time.monotonic()
    results = [None] * len(probes)
    while True:
        for i, probe in enumerate(probes):
            if results[i] is None or not results[i]["ok"]:
                left = start + timeout - time.monotonic()
                ok, output = attempt(probe, min(SLOWEST, max(left, SHORTEST)) if timeout else SLOWEST)
                seconds = round(time.monotonic() - start, 1)
                results[i] = {"name": probe["name"], "ok": ok, "output": output, "seconds": seconds,
                              "detail": probe.get("detail") or ""}  # fmt: skip
        if all(one["ok"] for one in results) or time.monotonic() - start >= timeout:
            return results
        time.sleep(PAUSE)


def attempt(probe, timeout=SLOWEST):
    """One try of at most `timeout` seconds: whether it held, and what it found or why not."""
    try:
        status, output, error = _run(probe["command"], timeout)
        expected = re.compile(probe.get("expect") or "", re.M)
    except subprocess.TimeoutExpired:
        return False, f"{probe['command'][0]}: no answer in {timeout:.0f} s"
    except OSError as exc:
        return False, str(exc)
    except re.error as exc:
        return False, f"expect is no regular expression: {exc}"
    if status != 0:
        return False, (error.strip() or output.strip() or f"exit status {status}").splitlines()[-1]
    found = expected.search(output)
    if not found:
        return False, f"expected {probe['expect']}, got {output.strip()[-200:] or 'nothing'}"
    shown = found.group(1) if found.groups() else None
    return True, (output.strip().splitlines() or ["ok"])[0] if shown is None else shown


def _run(command, timeout):
    """Exit status, output and errors. What the command started ends with it, or it would hold the pipes open."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, error = process.communicate(timeout=timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, error

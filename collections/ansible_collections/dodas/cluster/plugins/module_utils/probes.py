# SPDX-License-Identifier: Apache-2.0
"""Probes: commands that must succeed, tried until they do. Runs on managed hosts: standard library only."""

from __future__ import annotations

import re
import subprocess
import time

PAUSE = 0.5  # seconds between two rounds
SLOWEST = 20  # seconds for one command


def run(probes, timeout):
    """Try all probes until each has held, or `timeout` seconds passed; returns one result a probe, in order."""
    start = time.monotonic()
    results = [None] * len(probes)
    while True:
        for i, probe in enumerate(probes):
            if results[i] is None or not results[i]["ok"]:
                ok, output = attempt(probe)
                seconds = round(time.monotonic() - start, 1)
                results[i] = {"name": probe["name"], "ok": ok, "output": output, "seconds": seconds,
                              "detail": probe.get("detail") or ""}  # fmt: skip
        if all(one["ok"] for one in results) or time.monotonic() - start >= timeout:
            return results
        time.sleep(PAUSE)


def attempt(probe):
    """One try: whether it held, and what it found or why not."""
    try:
        done = subprocess.run(probe["command"], capture_output=True, text=True, timeout=SLOWEST, check=False)
    except subprocess.TimeoutExpired:
        return False, f"{probe['command'][0]}: no answer in {SLOWEST} s"
    except OSError as exc:
        return False, str(exc)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        return False, lines[-1]
    found = re.search(probe.get("expect") or "", done.stdout, re.M)
    if not found:
        return False, f"expected {probe['expect']}, got {done.stdout.strip()[-200:] or 'nothing'}"
    return True, found.group(1) if found.groups() else (done.stdout.strip().splitlines() or ["ok"])[0]

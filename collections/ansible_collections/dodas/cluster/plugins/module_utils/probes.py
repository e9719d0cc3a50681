# SPDX-License-Identifier: Apache-2.0
"""Probes: commands that must succeed and URLs that must answer, tried until they do.

Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import time
import urllib.parse

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
        for _request in range(probe.get("requests") or 1):
            status, output, error = (_fetch if probe.get("url") else _run)(probe, timeout)
        expected = re.compile(probe.get("expect") or "", re.M)
    except subprocess.TimeoutExpired:
        return False, f"{probe['command'][0]}: no answer in {timeout:.0f} s"
    except (OSError, http.client.HTTPException) as exc:
        through = probe.get("proxy") or probe.get("url")
        return False, f"cannot reach {through}: {getattr(exc, 'strerror', '') or exc}" if through else str(exc)
    except re.error as exc:
        return False, f"expect is no regular expression: {exc}"
    if status != 0:
        return False, (error.strip() or output.strip() or f"exit status {status}").splitlines()[-1]
    found = expected.search(output)
    if not found:
        return False, f"expected {probe['expect']}, got {output.strip()[-200:] or 'nothing'}"
    shown = found.group(1) if found.groups() else None
    return True, (output.strip().splitlines() or ["ok"])[0] if shown is None else shown


def _fetch(probe, timeout):
    """Exit status, headers and body of what a GET answers, and the reason why it is no answer."""
    url = urllib.parse.urlsplit(probe["url"])
    through = urllib.parse.urlsplit(probe.get("proxy") or probe["url"])
    address = (probe.get("resolve") or {}).get(through.hostname, through.hostname)
    connection = http.client.HTTPConnection(through.hostname, through.port, timeout=timeout)
    try:
        connection.sock = socket.create_connection((address, connection.port), timeout)
        if through.scheme == "https":
            context = ssl.create_default_context(cafile=os.path.expanduser(probe.get("authorities") or "") or None)
            connection.sock = context.wrap_socket(connection.sock, server_hostname=through.hostname)
        path = probe["url"] if probe.get("proxy") else urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        connection.request("GET", path, headers={"Host": url.netloc})
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        headers = "".join(f"{name}: {value}\n" for name, value in answer.getheaders())
        return int(answer.status >= 400), f"{headers}\n{body}", f"HTTP {answer.status}: {body.strip()[-200:]}"
    finally:
        connection.close()


def _run(probe, timeout):
    """Exit status, output and errors. What the command started ends with it, or it would hold the pipes open."""
    program, *words = probe["command"]
    command = [os.path.expanduser(program), *words]
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

# SPDX-License-Identifier: Apache-2.0
"""What `dodas doctor` wants to know of one host. Sent to it as text: standard library and openssl only, Python 3.8.

Nothing is judged here. Ends are seconds from now by the host's own clock, None where they cannot be told.
"""

import calendar
import glob
import json
import os
import re
import subprocess
import time

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
APPS = "/etc/dodas/apps"
STATES = "/run/dodas/apps"
WORKER = "/etc/dodas/worker/renew.json"
TLS = "/etc/dodas/*/tls.crt"
SERVICE_DIRECTORY = "/var/lib/dodas/credentials/authority/certificates"


def examine(pool):
    """Everything about this host. pool: whether the collector is here, to be asked for its startds."""
    config = _load(WORKER)
    directories = [config.get("ca_directory"), SERVICE_DIRECTORY]
    return {
        "apps": _apps(),
        "tls": {path.split("/")[-2]: _end(path) for path in sorted(glob.glob(TLS))},
        "proxy": config and {"path": config["output"], "lifetime": config.get("lifetime"),
                             "ends": proxy_ends(config["output"])},
        "directories": {path: directory(path) for path in directories if path and os.path.isdir(path)},
        "ca_directory": config.get("ca_directory"),
        "pool": _pool() if pool else None,
    }  # fmt: skip


def _load(path):
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


def _run(*command, data=None):
    """(status, output) of a command."""
    try:
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10,
                              check=False, text=True)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout


def _apps():
    """By app: whether its unit runs, and what its health check last said."""
    found = {}
    for path in sorted(glob.glob(APPS + "/*.json")):
        app = os.path.basename(path)[: -len(".json")]
        state = _load(f"{STATES}/{app}.json")
        active = _run("systemctl", "is-active", "dodas-" + app)[1].strip()
        found[app] = {"unit": active or "unknown", "health": state.get("state", "unknown"),
                      "output": state.get("output", "")}  # fmt: skip
    return found


def _seconds(text):
    """From `notAfter=Nov 23 12:39:18 2026 GMT` to seconds from now."""
    try:
        moment = time.strptime(text.partition("=")[2].strip(), "%b %d %H:%M:%S %Y %Z")
    except ValueError:
        return None
    return round(calendar.timegm(moment) - time.time())


def _end(path):
    return _seconds(_run("openssl", "x509", "-noout", "-enddate", "-in", path)[1])


def proxy_ends(path):
    """When the first certificate of a proxy and its chain ends; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            chain = PEM.findall(stream.read())
    except OSError:
        return None
    ends = [_seconds(_run("openssl", "x509", "-noout", "-enddate", data=pem)[1]) for pem in chain]
    return None if not ends or None in ends else min(ends)


def directory(path):
    """A CA directory, by the hash of each CA: what is wrong with it (texts), when certificate and list end."""
    found = {}
    stems = {re.sub(r"\.(\d+|r\d+|signing_policy)$", "", name) for name in os.listdir(path)}
    for stem in sorted(name for name in stems if re.match(r"[0-9a-f]{8}$", name)):
        base = os.path.join(path, stem)
        problems = [f"{stem}.{end} is missing" for end in ("0", "r0", "signing_policy")
                    if not os.path.exists(f"{base}.{end}")]  # fmt: skip
        ends = lists = None
        if os.path.exists(base + ".0"):
            wanted = ("-enddate", "-subject_hash", "-subject_hash_old")
            lines = _run("openssl", "x509", "-noout", *wanted, "-in", base + ".0")[1].split("\n")
            ends = _seconds(next((line for line in lines if line.startswith("notAfter")), ""))
            if ends is None:
                problems.append(f"{stem}.0 is no certificate")
            elif stem not in lines:
                problems.append(f"{stem}.0 is the certificate of another authority")
        if os.path.exists(base + ".r0"):
            wanted = ("-nextupdate", "-hash", "-hash_old")
            lines = _run("openssl", "crl", "-noout", *wanted, "-in", base + ".r0")[1].split("\n")
            lists = _seconds(next((line for line in lines if line.startswith("nextUpdate")), ""))
            if lists is None:
                problems.append(f"{stem}.r0 is no revocation list")
            elif stem not in lines:
                problems.append(f"{stem}.r0 is the list of another authority")
        found[stem] = {"problems": problems, "ends": ends, "list_ends": lists}
    return found


def _pool():
    """Machines whose startd the collector knows; None where it cannot be asked."""
    status, output = _run("podman", "exec", "dodas-htcondor", "condor_status", "-startd", "-af", "Machine")
    return None if status else sorted({line.split(".")[0] for line in output.split()})

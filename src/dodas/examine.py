# SPDX-License-Identifier: Apache-2.0
"""What `dodas doctor` wants to know of one host. Sent to it as text: standard library and openssl only, Python 3.8.

Nothing is judged here. Ends are seconds from now by the host's own clock, None where they cannot be told.
"""

import calendar
import glob
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
# On a host without root, the folder that stands for its root.
ROOT = os.environ.get("DODAS_HOST", "")
RUNTIME = "udocker" if ROOT else "podman"
APPS = ROOT + "/etc/dodas/apps"
STATES = ROOT + "/run/dodas/apps"
WORKER = ROOT + "/etc/dodas/worker/renew.json"
TLS = ROOT + "/etc/dodas/*/tls.crt"
GRID = "/etc/grid-security/certificates"
POOL = ROOT + "/var/lib/dodas/htcondor/ca.pem"


def examine(pool, authorities):
    """Everything about this host. pool: whether the collector is here, to be asked for its startds; authorities:
    {hash: fingerprint} of the online CA and those above it, None where nobody knows them."""
    config = _load(WORKER)
    wanted = ROOT + config["ca_directory"] if config.get("ca_directory") else None
    ours = GRID if any(os.path.exists(f"{GRID}/{one}.0") for one in authorities or ()) else None
    return {
        "apps": _apps(),
        "tls": {path.split("/")[-2]: _end(path) for path in sorted(glob.glob(TLS))},
        "proxy": config and {"path": config["output"], "lifetime": config.get("lifetime"),
                             "ends": proxy_ends(ROOT + config["output"])},
        "directories": {path: directory(path, authorities) for path in (wanted, ours) if path},
        "pool": _pool() if pool else None,
        "pool_trusts": fingerprints(POOL) if pool else None,
    }  # fmt: skip


def answer(question):
    """Print what examine finds, then the time, once for each line that comes."""
    print(json.dumps(examine(**question)), flush=True)
    for _line in sys.stdin:
        print(time.time(), flush=True)


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
    """By app: whether its unit runs, what its health check last said and, where that is not good, the app itself."""
    found = {}
    for path in sorted(glob.glob(APPS + "/*.json")):
        app = os.path.basename(path)[: -len(".json")]
        state = _load(f"{STATES}/{app}.json")
        active = _state("dodas-" + app)
        found[app] = {"unit": active or "unknown", "health": state.get("state", "unknown"),
                      "output": state.get("output", ""), "said": ""}  # fmt: skip
        if state.get("state") != "passing" or active != "active":
            found[app]["said"] = _said("dodas-" + app)[-200:]
    return found


def _state(program):
    """Whether it runs, in systemd's words."""
    if not ROOT:
        return _run("systemctl", "is-active", program)[1].strip()
    words = _run("supervisorctl", "status", program)[1].split()
    known = {"RUNNING": "active", "STARTING": "activating", "STOPPED": "inactive", "FATAL": "failed"}
    return known.get(words[1] if len(words) > 1 else "", "activating")


def _said(program):
    """The last line that it logged."""
    if not ROOT:
        return _run("journalctl", "--identifier", program, "--lines", "1", "--output", "cat", "--no-pager")[1].strip()
    return _run("tail", "-n", "1", ROOT + "/var/log/" + program + ".log")[1].strip()


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


def fingerprints(path):
    """Of the certificates in a file: SHA-256 in hex."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = PEM.findall(stream.read())
        return [hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() for pem in found]
    except (OSError, ValueError):
        return []


def directory(path, authorities=None):
    """A CA directory, by the hash of each CA: what is wrong with it (texts), when certificate and list end.
    authorities: those that must be there; without, those that are. None where there is no directory."""
    if not os.path.isdir(path):
        return None
    if authorities is None:
        stems = {re.sub(r"\.(\d+|r\d+|signing_policy)$", "", name) for name in os.listdir(path)}
        authorities = dict.fromkeys(sorted(stem for stem in stems if re.match(r"[0-9a-f]{8}$", stem)))
    return {stem: _authority(os.path.join(path, stem), stem, known) for stem, known in authorities.items()}


def _authority(base, stem, known):
    wanted = ("0", "r0", "signing_policy")
    problems = [f"{stem}.{end} is missing" for end in wanted if not os.path.exists(f"{base}.{end}")]
    ends = lists = None
    if os.path.exists(base + ".0"):
        ends, whose = _look("x509", "-enddate", "-subject_hash", "-subject_hash_old", "-in", base + ".0")
        if ends is None:
            problems.append(f"{stem}.0 is no certificate")
        elif stem not in whose:
            problems.append(f"{stem}.0 is the certificate of another authority")
        elif known and known not in fingerprints(base + ".0"):
            problems.append(f"{stem}.0 is not the certificate that the authority has now")
    if os.path.exists(base + ".r0"):
        lists, whose = _look("crl", "-nextupdate", "-hash", "-hash_old", "-in", base + ".r0")
        if lists is None:
            problems.append(f"{stem}.r0 is no revocation list")
        elif stem not in whose:
            problems.append(f"{stem}.r0 is the list of another authority")
    return {"problems": problems, "ends": ends, "list_ends": lists}


def _look(kind, *options):
    """When something ends, and the hashes of its name."""
    lines = _run("openssl", kind, "-noout", *options)[1].split("\n")
    ends = _seconds(next((line for line in lines if re.match("notAfter|nextUpdate", line)), ""))
    return ends, [line.split("=")[-1] for line in lines]


def _pool():
    """Machines whose startd the collector knows; None where it cannot be asked."""
    status, output = _run(RUNTIME, "exec", "dodas-htcondor", "condor_status", "-startd", "-af", "Machine")
    return None if status else sorted({line.split(".")[0] for line in output.split()})

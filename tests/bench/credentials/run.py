#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast tokens become certificates, and what the service weighs: a table, and JSON with --json FILE.

The real service over TLS on one core, the client on another, connections kept alive; tokens of the real provider and
of hosts, for keys of the client's own, as proxies and end-entity certificates. Beside that, in the same run, what it
takes where the service makes the key, as token translation did before (GET /get_proxy). A rate is of the seconds that
the service's processor worked, and so holds on a machine that has other things to do; the clock's is beside it.

tests/setup tests/bench/credentials/run.py, which brings what it imports.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, join, tokens
from forgery import Forger
from identity_runtime import Identity
from service_runtime import DEPLOYMENT, HOST, Credentials

ROOT = Path(__file__).resolve().parents[3]
CONNECTIONS = 8
TICK = os.sysconf("SC_CLK_TCK")
RATE, CLOCK = "per second and core", "per second by the clock"
TARGETS = {
    "proxy, token of the provider": (RATE, 500),
    "proxy, token of a host": (RATE, 500),
    "eec, token of the provider": (RATE, 500),
    "proxy, key made by the service": (RATE, None),
    "p50 at half load (ms)": ("ms", None),
    "p99 at half load (ms)": ("ms", 50),
    "p50 at half load, key made by the service (ms)": ("ms", None),
    "p99 at half load, key made by the service (ms)": ("ms", None),
    "token check, RS256 (ms)": ("ms", 0.2),
    "token check, ES256 (ms)": ("ms", 0.2),
    "token check, host (ms)": ("ms", 0.2),
    "import of the service (ms)": ("ms", 300),
    "start to first answer (ms)": ("ms", None),
    "resident after start (MB)": ("MB", 60),
    "resident after load (MB)": ("MB", 60),
}


class Connection:
    """One connection that is kept alive; requests as bytes."""

    def __init__(self, service):
        plain = socket.create_connection(("127.0.0.1", service.port), timeout=60)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = service.context().wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, request: bytes) -> int:
        """The status of the answer."""
        self._socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(65536)
        return int(head[9:12])

    def close(self):
        self._socket.close()


def post(token: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def pin(pid: int, core: int | None) -> None:
    """All threads of a process to one core, where there are two."""
    if core is not None:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


def worked(pid: int) -> float:
    """Seconds that the processor worked for a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> float:
    """MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def full_load(service, make_request, seconds: float) -> tuple[float, float]:
    """(per second of the service's processor, per second by the clock), with as much as it takes."""
    stop = time.monotonic() + seconds
    counts, failures = [0] * CONNECTIONS, []

    def run(number):
        connection = Connection(service)
        request = make_request()
        while time.monotonic() < stop:
            status = connection.ask(request)
            if status not in (200, 201):
                failures.append(status)
                return
            counts[number] += 1
        connection.close()

    before, started = worked(service.process.pid), time.monotonic()
    in_threads(run)
    if failures:
        sys.exit(f"the service answered {failures[0]}:\n{service.log()[-2000:]}")
    return sum(counts) / (worked(service.process.pid) - before), sum(counts) / (time.monotonic() - started)


def half_load(service, make_request, rate: float, seconds: float) -> list[float]:
    """Milliseconds from the moment when each request was due, at half the rate given."""
    took = []
    pause = CONNECTIONS / (rate / 2)

    def run(number):
        connection = Connection(service)
        request = make_request()
        connection.ask(request)
        due = time.monotonic() + pause * number / CONNECTIONS
        end = due + seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            connection.ask(request)
            took.append((time.monotonic() - due) * 1000)
            due += pause
        connection.close()

    in_threads(run)
    return sorted(took)


def in_threads(run):
    threads = [threading.Thread(target=run, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def percentile(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))]


def token_checks(service, identity, forger, request) -> dict:
    """Milliseconds of processor for one check, keys at hand."""
    section = service.settings["issuers"][0]
    verifier = tokens.Verifier([tokens.Issuer(identity.url, section["audience"], section["cafile"])])
    hosts = join.Verifier(DEPLOYMENT, service.join_secret, service.url)
    checks = {
        "token check, RS256 (ms)": (verifier, forger.token("RS256")),
        "token check, ES256 (ms)": (verifier, forger.token("ES256")),
        "token check, host (ms)": (hosts, service.join_token(request)),
    }
    found = {}
    for name, (checker, token) in checks.items():
        checker.verify(token)
        started = time.thread_time()
        for _ in range(500):
            checker.verify(token)
        found[name] = (time.thread_time() - started) * 2
    return found


def import_ms() -> float:
    """Milliseconds of processor for all that the service imports, compiled before as where it is installed."""
    script = "import time; t = time.process_time(); import dodas.credentials.__main__; print(time.process_time() - t)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as cache:
        environment["PYTHONPYCACHEPREFIX"] = cache
        command = [sys.executable, "-c", script]
        took = [float(subprocess.check_output(command, env=environment, text=True)) for _ in range(6)]
    return statistics.median(took[1:]) * 1000


def measure(scratch: Path, seconds: float, rounds: int) -> dict[str, list]:
    """Figures by name; a rate is a pair."""
    figures = {name: [] for name in TARGETS}
    cores = sorted(os.sched_getaffinity(0))
    ours, client = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    (scratch / "identity").mkdir()
    identity = Identity(scratch / "identity")
    identity.start()
    service = Credentials(scratch / "service", identity)
    try:
        pin(os.getpid(), client)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            figures["import of the service (ms)"].append(import_ms())
            started = time.monotonic()
            service.start()
            figures["start to first answer (ms)"].append((time.monotonic() - started) * 1000)
            pin(service.process.pid, ours)
            figures["resident after start (MB)"].append(resident(service.process.pid))
            for name, value in one_round(service, identity, seconds).items():
                figures[name].append(value)
            figures["resident after load (MB)"].append(resident(service.process.pid))
            service.stop()
    finally:
        service.stop()
        identity.stop()
    return figures


def one_round(service, identity, seconds: float) -> dict:
    forger = Forger(identity)
    request = csr.make(csr.make_key())
    text = request.decode()
    alice = {"sub": "alice", "client_id": "dodas", "wlcg__groups": ["/cms"]}
    pair = base64.b64encode(f"{HOST}:{base64.b64encode(service.join_key()).decode()}".encode()).decode()
    old = f"GET /get_proxy HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {pair}\r\n\r\n".encode()
    makers = {
        "proxy, token of the provider": lambda: post(forger.token(), {"csr": text, "kind": "proxy"}),
        "proxy, token of a host": lambda: post(service.join_token(request), {"csr": text, "kind": "proxy"}),
        "eec, token of the provider": lambda: post(forger.token(**alice), {"csr": text, "kind": "eec"}),
        "proxy, key made by the service": lambda: old,
    }
    found = {}
    warm = Connection(service)
    for make in makers.values():
        warm.ask(make())
    for name, make in makers.items():
        found[name] = full_load(service, make, seconds)
    for name, suffix in (
        ("proxy, token of a host", ""),
        ("proxy, key made by the service", ", key made by the service"),
    ):
        took = half_load(service, makers[name], found[name][1], seconds)
        found[f"p50 at half load{suffix} (ms)"] = percentile(took, 0.5)
        found[f"p99 at half load{suffix} (ms)"] = percentile(took, 0.99)
    return found | token_checks(service, identity, forger, request)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each load (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), options.seconds, options.rounds)
    result = {}
    print(f"{'':<50}{'median':>9}{'target':>9}   all")
    for name, values in figures.items():
        unit, target = TARGETS[name]
        if unit == RATE:
            rates, clocks = zip(*values, strict=True)
            result[name] = {"median": statistics.median(rates), "target": target, "all": rates, "by the clock": clocks}
            more = f"   ({statistics.median(clocks):.0f} {CLOCK})"
        else:
            result[name] = {"median": statistics.median(values), "target": target, "all": values}
            more = ""
        digits = 3 if "check" in name else 0 if unit == RATE else 1
        shown = " ".join(f"{value:.{digits}f}" for value in result[name]["all"])
        goal = "-" if target is None else target
        print(f"{name:<50}{result[name]['median']:>9.{digits}f}{goal:>9}   {shown}{more}")
    print(f"rates are {RATE}; load average {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

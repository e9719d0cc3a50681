#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""200 workers whose credentials last a minute, while the provider goes away and all processes are killed at random.

Two instances of the real service on one state, the real provider, real renewal daemons, and workers, half of them at
each instance without a way to the other. Workers ask for certificates of keys of their own as hosts of the deployment:
for proxies of their own names, and for proxies of what a user delegated. Ends with a table, and with 1 where a
credential was served that had ended, a worker was left without a valid one, a file was torn, the delegation was lost,
or something took longer than 10 s to come back.

tests/setup tests/bench/credentials/soak.py, which brings what it imports.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import datetime as dt
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files
from identity_runtime import Identity
from service_runtime import DEPLOYMENT, Credentials

ROOT = Path(__file__).resolve().parents[3]
LIFETIME = 60  # seconds, of tokens and of proxies: the shortest that provider and rules allow
OUTAGE_MOST = 0.4 * LIFETIME
RECOVERY_MOST = 10.0
DAEMONS = 3


class Soak:
    """Everything that runs, and what was seen of it."""

    def __init__(self, scratch: Path, seconds: float, workers: int, seed: int):
        self.scratch, self.seconds, self.workers = scratch, seconds, workers
        self.random = random.Random(seed)
        self.violations: list[str] = []
        self.count: collections.Counter = collections.Counter()
        self.recovery: dict[str, list[float]] = collections.defaultdict(list)
        self.renewed: list[float] = []
        self.outages: list[float] = []
        self.over = threading.Event()
        (scratch / "identity").mkdir()
        self.identity = Identity(scratch / "identity", token_lifetime=LIFETIME)
        self.service = Credentials(scratch / "service-0", self.identity)
        for rule in self.service.settings["rules"]:
            rule["lifetime"] = LIFETIME
            if rule["name"] == "people":
                rule.update(delegate=True, clip_to_token=False)
        shared = {name: self.service.settings[name] for name in ("state_dir", "state_key_file", "join", "rules")}
        self.services = [self.service, Credentials(scratch / "service-1", self.identity, **shared)]
        self.daemons = [Daemon(self, number) for number in range(DAEMONS)]
        self.delegation = ""
        self.lag = 0.0

    def violation(self, text: str) -> None:
        self.violations.append(f"{dt.datetime.now():%H:%M:%S} {text}")

    def run(self) -> None:
        """All of it, from start to stop."""
        self.identity.start()
        for service in self.services:
            service.start()
        try:
            with self.identity.client() as http:
                token = flows.device_tokens(http)["access_token"]
            with self.service.client() as http:
                answer = http.post("/v1/delegations", headers={"Authorization": f"Bearer {token}"}, json={})
                if answer.status_code != 201:
                    sys.exit(f"no delegation: {answer.text}")
                self.delegation = answer.json()["id"]
                self.authority = x509.load_pem_x509_certificate(http.get("/v1/authority/ca.pem").content)
            for daemon in self.daemons:
                daemon.start()
            workers = [Worker(self, number) for number in range(self.workers)]
            disturbing = threading.Thread(target=self.guarded, args=(self.disturb,))
            reading = threading.Thread(target=self.guarded, args=(self.read,))
            disturbing.start()
            reading.start()
            asyncio.run(self.work(workers))
            disturbing.join()
            reading.join()
            self.settle()
        finally:
            for one in (*self.daemons, *self.services, self.identity):
                one.stop()

    def guarded(self, function) -> None:
        try:
            function()
        except Exception as error:
            self.violation(f"{function.__name__}: {type(error).__name__}: {error}")

    async def work(self, workers) -> None:
        options = {"limits": httpx.Limits(max_connections=20), "trust_env": False, "timeout": 10}
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=service.url, verify=service.context(), **options)
                )
                for service in self.services
            ]
            watching = asyncio.create_task(self.watch())
            until = time.monotonic() + self.seconds
            await asyncio.gather(*(one.run(clients[one.number // 2 % 2], until) for one in workers))
            watching.cancel()
        self.over.set()

    async def watch(self) -> None:
        """How long this program itself did not get to run: what it measures is no better."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.1)
            self.lag = max(self.lag, time.monotonic() - before - 0.1)

    # Disturbances.

    def disturb(self) -> None:
        """One after the other, in a new order each time round; each ends before the next begins."""
        end = time.monotonic() + self.seconds
        kinds = [self.kill_service, self.kill_provider, self.kill_daemon, self.rotate, self.outage]
        time.sleep(2)  # so that most workers have their first credential
        while True:
            for disturbance in self.random.sample(kinds, len(kinds)):
                pause = self.random.uniform(0.5, 3)
                if self.over.wait(pause) or time.monotonic() + RECOVERY_MOST > end:
                    return
                disturbance(end)

    def recovered(self, name: str, started: float, condition) -> None:
        """Note how long it took until the condition came true."""
        while not condition():
            if time.monotonic() - started > 3 * RECOVERY_MOST:
                break
            time.sleep(0.05)
        took = time.monotonic() - started
        self.recovery[name].append(took)
        if took > RECOVERY_MOST:
            self.violation(f"{name} took {took:.1f} s to come back")

    def kill_service(self, _end) -> None:
        service = self.random.choice(self.services)
        started = time.monotonic()
        service.kill()
        service.start()
        self.recovered("service", started, lambda: self.serves(service))

    def serves(self, service) -> bool:
        host = "worker-0"
        request = csr.make(SOME_KEY)
        headers = {"Authorization": f"Bearer {self.service.join_token(request, host)}"}
        try:
            with service.client() as http:
                body = {"csr": request.decode(), "delegation": self.delegation}
                return http.post("/v1/credentials", headers=headers, json=body).status_code == 201
        except httpx.TransportError:
            return False

    def kill_provider(self, _end) -> None:
        started = time.monotonic()
        self.identity.kill()
        self.identity.start()
        self.recovered("provider", started, self.provides)

    def provides(self) -> bool:
        try:
            with self.identity.client() as http:
                return flows.worker(http).status_code == 200
        except httpx.TransportError:
            return False

    def kill_daemon(self, _end) -> None:
        daemon = self.random.choice(self.daemons)
        started = time.monotonic()
        daemon.kill()
        daemon.output.unlink(missing_ok=True)  # as if its disk was lost too: it must get a new one
        daemon.start()
        self.recovered("renewal daemon", started, daemon.lasts)

    def rotate(self, _end) -> None:
        self.identity.rotate()
        self.count["key rotations"] += 1

    def outage(self, end) -> None:
        """The provider is away for less than 40 % of a lifetime."""
        most = min(OUTAGE_MOST - 4, end - time.monotonic() - RECOVERY_MOST)  # it takes a while to start
        if most < 2:
            return
        started = time.monotonic()
        self.identity.kill()
        self.over.wait(self.random.uniform(most / 2, most))
        self.identity.start()
        self.outages.append(time.monotonic() - started)
        if self.outages[-1] > OUTAGE_MOST:
            self.count["outages that the machine made too long"] += 1

    # What must hold.

    def read(self) -> None:
        """Read all files, again and again, as jobs do."""
        paths = [self.scratch / f"proxy-{number}.pem" for number in range(self.workers)]
        paths += [daemon.output for daemon in self.daemons]
        while not self.over.wait(0.2):
            for path in paths:
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue
                try:
                    certificate, key, chain = files.load_credential(data)
                    if not chain or certificate.public_key() != key.public_key():
                        raise ValueError("the key is another's")
                except ValueError as error:
                    self.violation(f"{path.name} is torn: {error}")
                self.count["files read"] += 1

    def settle(self) -> None:
        """When all is quiet again: is the delegation there, is it refreshed, is the service healthy?"""
        deadline = time.monotonic() + RECOVERY_MOST
        while not all(map(self.serves, self.services)):
            if time.monotonic() > deadline:
                self.violation("the delegation gives no proxies at the end")
                break
            time.sleep(0.2)
        for daemon in self.daemons:
            if not daemon.lasts():
                self.violation(f"{daemon.host} has no valid credential at the end")
        with self.service.client() as http:
            headers = {"Authorization": f"Bearer {self.service.join_token()}"}
            found = {one["id"]: one for one in http.get("/v1/delegations", headers=headers).json()}
        kept = found.get(self.delegation)
        if kept is None:
            self.violation("the delegation is lost")
        elif "refuses" in (kept["problem"] or "") or "no longer" in (kept["problem"] or ""):
            self.violation(f"the delegation has ended: {kept['problem']}")
        grants = [json.loads(line) for line in self.identity.output if line.startswith("{")]
        refreshed = [one for one in grants if one.get("event") == "grant" and one.get("grant") == "refresh_token"]
        self.count["refresh tokens rotated"] = len(refreshed)
        refused = [one for one in grants if one.get("event") == "grant_refused" and one.get("grant") == "refresh_token"]
        self.count["refresh tokens used twice"] = len(refused)
        if self.seconds > LIFETIME and not refreshed:
            self.violation("the delegation was never refreshed")

    def table(self) -> str:
        """The figures."""

        def seconds(values):
            return (
                f"{len(values):>4}  median {statistics.median(values):.1f} s  worst {max(values):.1f} s"
                if values
                else "   0"
            )

        lines = [f"{'workers':<42}{self.workers:>4}", f"{'seconds':<42}{self.seconds:>4.0f}"]
        lines += [
            f"{f'kill -9 of a {name}, until back':<42}{seconds(values)}"
            for name, values in sorted(self.recovery.items())
        ]
        lines.append(f"{'outages of the provider':<42}{seconds(self.outages)}")
        lines += [f"{name:<42}{value:>4}" for name, value in sorted(self.count.items())]
        left = min(self.renewed, default=0)
        lines.append(f"{'part of its life left when one was renewed':<42}{left:>6.2f} at least")
        lines.append(f"{'longest pause of this program (s)':<42}{self.lag:>6.1f}")
        lines.append(f"{'violations':<42}{len(self.violations):>4}")
        return "\n".join([*lines, *self.violations[:20]])


SOME_KEY = ec.generate_private_key(ec.SECP256R1())


class Worker:
    """A worker that keeps a proxy; one in ten has an RSA key, which takes long to make, the rest have P-256."""

    def __init__(self, soak: Soak, number: int):
        self.soak, self.number, self.host = soak, number, f"worker-{number}"
        self.key = csr.make_key() if number % 10 == 0 else ec.generate_private_key(ec.SECP256R1())
        self.request = csr.make(self.key)
        self.delegation = soak.delegation if number % 2 else None
        self.output = soak.scratch / f"proxy-{number}.pem"
        self.random = random.Random(number)
        self.end, self.life = None, 0.0  # of what it holds: seconds since the epoch, and from when it came

    async def run(self, http, until: float) -> None:
        await asyncio.sleep(self.random.uniform(0, 2))
        while time.monotonic() < until:
            if not await self.renew(http):
                continue
            due = self.end - self.life * self.random.uniform(0.45, 0.55)
            while time.time() < due and time.monotonic() < until:
                await asyncio.sleep(min(0.5, max(0, due - time.time())))

    async def renew(self, http) -> bool:
        pause = 0.2
        while True:
            answer = None
            try:
                headers = {"Authorization": f"Bearer {self.soak.service.join_token(self.request, self.host)}"}
                body = {"csr": self.request.decode(), "kind": "proxy"}
                if self.delegation:
                    body["delegation"] = self.delegation
                answer = await http.post("/v1/credentials", headers=headers, json=body)
                if answer.status_code == 201:
                    await asyncio.to_thread(self.take, answer.json())
                    return True
                self.soak.count[f"answers {answer.status_code}"] += 1
                if answer.status_code not in (429, 503):
                    self.soak.violation(f"{self.host}: {answer.status_code} {answer.text[:200]}")
            except httpx.TransportError:
                self.soak.count["requests that found nobody"] += 1
            if self.end and time.time() > self.end:
                self.soak.violation(f"{self.host} has no valid credential any more")
                self.end = None
                return False
            if self.soak.over.is_set():
                return False
            await asyncio.sleep(pause * self.random.uniform(0.5, 1.5))
            pause = min(2 * pause, 2)

    def take(self, answer: dict) -> None:
        certificate, *chain = x509.load_pem_x509_certificates((answer["certificate"] + answer["chain"]).encode())
        now = time.time()
        end = certificate.not_valid_after_utc.timestamp()
        if min(one.not_valid_after_utc.timestamp() for one in (certificate, *chain)) <= now:
            self.soak.violation(f"{self.host} was given a credential that has ended")
        if certificate.public_key() != self.key.public_key():
            self.soak.violation(f"{self.host} was given the credential of another key")
        certificate.verify_directly_issued_by(chain[0])
        chain[0].verify_directly_issued_by(self.soak.authority)
        self.soak.count["credentials issued"] += 1
        if end - now < LIFETIME / 2:
            self.soak.count["credentials with less than half a lifetime"] += 1
        if self.end:
            self.soak.renewed.append((self.end - now) / self.life)
            if now > self.end:
                self.soak.violation(f"{self.host} was without a valid credential for {now - self.end:.1f} s")
        self.end, self.life = end, end - now
        files.write(self.output, files.credential_pem(certificate, self.key, chain))


class Daemon:
    """python3 -m dodas.credentials.renew."""

    def __init__(self, soak: Soak, number: int):
        self.host = f"daemon-{number}"
        folder = soak.scratch / self.host
        folder.mkdir()
        self.output, self.log, self.config = folder / "proxy.pem", folder / "log", folder / "renew.json"
        service = soak.services[number % 2]
        key = folder / "join.key"
        files.write(key, base64.b64encode(soak.service.join_key(self.host)))
        config = {"join_key_file": str(key), "deployment": DEPLOYMENT, "host": self.host, "output": str(self.output),
                  "credentials_url": service.url, "audience": soak.service.url, "cafile": service.cafile}  # fmt: skip
        self.config.write_text(json.dumps(config))
        self.process = None

    def start(self):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}"}
        command = [sys.executable, "-m", "dodas.credentials.renew", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def lasts(self) -> bool:
        """Whether what it keeps is valid now."""
        try:
            certificate = files.load_credential(self.output.read_bytes())[0]
        except FileNotFoundError:
            return False
        return certificate.not_valid_after_utc.timestamp() > time.time()

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self):
        if self.process:
            self.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the order of the disturbances")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(Path(scratch), options.minutes * 60, options.workers, seed)
        soak.run()
        print(soak.table())
        if soak.violations:
            for service in soak.services:
                print(service.log()[-3000:], file=sys.stderr)
            for daemon in soak.daemons:
                print(daemon.log.read_text()[-2000:], file=sys.stderr)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())

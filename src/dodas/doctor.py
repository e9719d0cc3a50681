# SPDX-License-Identifier: Apache-2.0
"""Finds what is wrong with a cluster, host by host, and says what to do about it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, tokens, web
from dodas import clouds, examine, login, services
from dodas.errors import DodasError

APPS = ("identity", "credentials", "squid", "conditions", "htcondor", "worker")
AT_ONCE = 32
HOUR, DAY = 3600, 86400
# The least that must be left, in seconds, and how far a clock may be off: tokens are believed for 30 s more or less.
CERTIFICATE_LEFT, CA_LEFT, LIST_LEFT, PROXY_LEFT = 7 * DAY, DAY, HOUR, 300
CLOCK_OFF = 5
TICKS = 5  # how often a host is asked for the time; the quickest answer tells most
LOADER = "import sys; exec(sys.stdin.read(int(sys.stdin.readline())))"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at. host: None for the cluster; ok: None where there is nothing to judge; value: of
    what is measured, in seconds, or None; advice: a command, where it is not well."""

    host: str | None
    name: str
    ok: bool | None
    found: str
    value: float | None = None
    advice: str = ""


def look(deployment, timeout=20):
    """All checks of a deployment, the cluster's first. timeout: seconds for each host."""
    where, groups, hosts = _services(deployment), deployment.groups(), list(deployment.addresses())
    apps = [app for app in APPS if not (app == "identity" and where.own_iam)]
    # What Marathon places is judged by `status`, which asks Marathon.
    expected = {host: [app for app in apps if host in groups.get(app, ()) and deployment.place(host).keeps_apps]
                for host in hosts}  # fmt: skip
    with ThreadPoolExecutor(AT_ONCE) as threads:
        asks = (*([_cloud] if deployment.is_remote else []), _login, _issuer, _credentials)
        cluster = [threads.submit(check, deployment, where) for check in asks]
        online = _authorities(where)
        asked = {host: threads.submit(_ask, deployment, host, timeout, "htcondor" in expected[host], online)
                 for host in hosts}  # fmt: skip
        answers = {host: one.result() for host, one in asked.items()}
        checks = [one.result() for one in cluster]
    pools = [answer["pool"] for answer in answers.values() if isinstance(answer, dict) and answer["pool"] is not None]
    pool = {machine for one in pools for machine in one} if pools else None
    for host, answer in answers.items():
        if isinstance(answer, DodasError):
            advice = f"{deployment.command('up')}  # mends what it can; see that it runs and can be reached"
            checks.append(Check(host, "connection", False, str(answer), advice=advice))
        else:
            checks += Host(deployment, host, answer, expected[host]).checks(pool, online)
    return checks


def look_at_cloud(name):
    """All checks of a cloud, before anything is deployed there."""
    path = clouds.file()
    found = [Check(None, "clouds.yaml", bool(path) or None, str(path or "none, OS_* variables are used"))]
    try:
        cloud = clouds.connect({"cloud_name": name})
        roles = f" ({', '.join(cloud.roles)})" if cloud.roles else ""
        found.append(Check(None, "login", True, f"{cloud.user_name}{roles}, project {cloud.project_id}"))
        for thing, (used, limit) in clouds.quotas(cloud).items():
            ok, most = used < limit or limit < 0, "no limit" if limit < 0 else limit
            found.append(Check(None, thing, ok, f"{used} of {most} in use", advice="ask the cloud's administrators"))
    except DodasError as error:
        found.append(Check(None, "login", False, str(error), advice="openstack --os-cloud NAME token issue"))
    return found


def _services(deployment):
    """Where they are; where there is no way to them, where they would be: what is wrong is found one by one."""
    try:
        return services.of(deployment)
    except DodasError:
        return services.of(deployment, lambda host, _ports: deployment.addresses().get(host))


def _cloud(deployment, _where):
    """The servers are what is recorded here, and run."""
    try:
        found = clouds.servers(deployment)
    except DodasError as error:
        cloud = deployment.settings.get("cloud_name")
        advice = f"./dodas doctor --cloud {cloud}" if cloud else "set OS_CLOUD, or the other OS_* variables"
        return Check(None, "cloud", False, str(error), advice=advice)
    wrong = [f"{host} has no server" for host in deployment.hosts if host not in found]
    wrong += [f"{host} is {one['status']}" for host, one in found.items() if one.get("status") not in (None, "ACTIVE")]
    wrong += [f"{host} is not of the template" for host in found if host not in deployment.addresses()]
    advice = f"{deployment.command('up --plan')}, then {deployment.command('up')}"
    return Check(None, "cloud", not wrong, "; ".join(wrong) or counted(len(found), "server"), advice=advice)


def _authorities(where):
    """{hash: fingerprint} of the online CA and those above it; None where the service does not say."""
    try:
        online = client.fetch_authority(where.credentials, timeout=login.TIMEOUT, **where.at_credentials)
    except client.ClientError:
        return None
    return {name: hashlib.sha256(ssl.PEM_cert_to_DER_cert(one["ca"])).hexdigest()
            for one in (online, *online["chain"]) for name in one["hashes"]}  # fmt: skip


def _ask(deployment, host, timeout, pool, authorities):
    """What examine answers on the host, and how far its clock is off; or the DodasError instead."""
    question = {"pool": pool, "authorities": authorities}
    script = f"{Path(examine.__file__).read_text(encoding='utf-8')}\nanswer({question!r})\n"
    try:
        # Not by a connection that is open still: whether one can be made is part of the question.
        command = deployment.ssh_as_root(host, "python3", "-u", "-c", shlex.quote(LOADER), fresh=True)
    except DodasError as error:
        return error
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        deadline = threading.Timer(timeout, process.kill)
        deadline.start()
        try:
            process.stdin.write(f"{len(script)}\n{script}")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            _took, answer["clock"] = min(_tick(process) for _ in range(TICKS))
            process.stdin.close()
            process.wait()
            return answer
        except (OSError, ValueError):
            process.kill()
            process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines()
            return DodasError(said[-1] if said else f"no answer in {timeout} s")
        finally:
            deadline.cancel()


def _tick(process):
    """(seconds that a question for the time took, how far the host's clock is ahead)."""
    start = time.time()
    process.stdin.write("\n")
    process.stdin.flush()
    theirs = float(process.stdout.readline())
    end = time.time()
    return end - start, theirs - (start + end) / 2


def _login(deployment, where):
    again = deployment.command("login")
    try:
        text = login.access_token(deployment)
        held = login.held(deployment)
        issuer = tokens.Issuer(where.issuer, where.credentials, **where.at_issuer)
        token = tokens.Verifier([issuer]).verify(text)
    except login.NoLogin:
        if (deployment.directory / "login.json").exists():
            return Check(None, "login", False, "has ended", advice=again)
        return Check(None, "login", None, "nobody is logged in", advice=again)
    except tokens.KeysUnavailable as error:
        return Check(None, "login", None, f"cannot be verified: {error}")
    except tokens.TokenError as error:
        return Check(None, "login", False, str(error), advice=again)
    except DodasError as error:
        return Check(None, "login", False, str(error), advice=again)
    left = token.expires - time.time()
    renews = ", renews itself" if held.get("refresh_token") else ""
    found = f"{token.subject}, {span(left)} left{renews}, for {where.credentials}"
    return Check(None, "login", True, found, round(left))


def _issuer(deployment, where):
    issuer = tokens.Issuer(where.issuer, where.credentials, **where.at_issuer)
    verifier = tokens.Verifier([issuer])
    verifier.refresh()
    status = verifier.status()[where.issuer]
    logs = "ask who runs it" if where.own_iam else deployment.command("logs identity")
    if status["last_error"]:
        return Check(None, "issuer", False, status["last_error"], advice=logs)
    if not status["keys"]:
        return Check(None, "issuer", False, f"{where.issuer}: publishes no key that can be used", advice=logs)
    return Check(None, "issuer", True, f"{where.issuer}, {counted(status['keys'], 'key')}")


def _credentials(deployment, where):
    """Each instance has to be well."""
    found = []
    for host, address in where.instances.items():
        options = {**where.at_credentials, "resolve": {services.CREDENTIALS: address}}
        try:
            found.append(web.fetch_json(where.credentials + "/health", timeout=login.TIMEOUT, **options))
        except web.WebError as error:
            logs = deployment.command(f"logs credentials --host {host}")
            return Check(None, "credentials", False, f"{host}: {_status(error.body) or error}", advice=logs)
    if not found:
        return Check(None, "credentials", False, "no host runs the service yet", advice=deployment.command("up"))
    ca, crl = (min(one.get(f"{what}_remaining_seconds", 0) for one in found) for what in ("ca", "crl"))
    several = f"{len(found)} instances, " if len(found) > 1 else ""
    return Check(None, "credentials", True, f"{several}CA {span(ca)}, revocation list {span(crl)}", min(ca, crl))


def _status(body):
    """What the service says is the matter with it."""
    try:
        return json.loads(body)["status"]
    except (ValueError, LookupError, TypeError):
        return None


class Host:
    """Judges what one host answered; expected: the apps that it is there for."""

    def __init__(self, deployment, name, answer, expected):
        self.deployment, self.name, self.answer, self.expected = deployment, name, answer, expected
        self.place = deployment.place(name)

    def checks(self, pool, online):
        """All checks of the host. pool: names of hosts whose startd is in it, None where nobody knows; online: as
        _authorities gives it."""
        found = [self._clock(), self._apps(), self._tls(), *self._directories(), self._trust(online)]
        if "worker" in self.expected:
            found += [self._proxy(), self._pool(pool)]
        return [one for one in found if one]

    def _check(self, name, ok, found, value=None, advice=""):
        return Check(self.name, name, ok, found, value, "" if ok else advice)

    def _ssh(self, words):
        return self.deployment.command(f"ssh {self.name} {words}")

    def _clock(self):
        off = self.answer["clock"]
        good = abs(off) <= CLOCK_OFF
        advice = f"{self._ssh('timedatectl set-ntp true')}  # sets it by the network's"
        found = f"{off * 1000:+.0f} ms" if good else f"{span(abs(off))} {'ahead' if off > 0 else 'behind'}"
        return self._check("clock", good, found, round(off, 3), advice)

    def _apps(self):
        """One app that is not well is enough to name."""
        apps, again = self.answer["apps"], self.deployment.command("up")
        for app in self.expected:
            one = apps.get(app)
            if one is None:
                return self._check("apps", False, f"{app} is not there", advice=again)
            if one["unit"] in ("inactive", "failed"):  # nobody starts it again
                start = self._ssh(self.place.start(app))
                return self._check("apps", False, f"{app} is stopped", advice=start)
        for app, one in apps.items():
            logs = self.deployment.command(f"logs {app} --host {self.name}")
            if one["unit"] != "active":
                said = f": {one['said']}" if one["said"] else ""
                return self._check("apps", False, f"{app} does not stay up{said}", advice=logs)
            if one["health"] != "passing":
                return self._check("apps", False, f"{app}: {one['output'] or one['health']}", advice=logs)
        return self._check("apps", True, counted(len(apps), "app")) if apps else None

    def _tls(self):
        ends = self.answer["tls"]
        if not ends:
            return None
        service, left = min(ends.items(), key=lambda one: -1 if one[1] is None else one[1])
        again = f"{self.deployment.command('up')}  # makes it anew"
        if left is None:
            return self._check("certificates", False, f"that of {service} cannot be read", advice=again)
        good = left >= CERTIFICATE_LEFT
        found = span(left) if good else f"that of {service} {ended(left)}"
        return self._check("certificates", good, found, left, again)

    def _directories(self):
        again = f"{self._renew()}  # fetches it again" if "worker" in self.expected else "see who installs it there"
        return [self._directory(path, authorities, again) for path, authorities in self.answer["directories"].items()]

    def _directory(self, path, authorities, again):
        if not authorities:
            problem = "is missing" if authorities is None else "is empty"
            return self._check("CA directory", False, f"{path} {problem}", advice=again)
        for one in authorities.values():
            problem = next(iter(one["problems"]), None)
            for end, least, what in ((one["ends"], CA_LEFT, "CA"), (one["list_ends"], LIST_LEFT, "revocation list")):
                if not problem and end < least:
                    problem = f"the {what} {ended(end)}"
            if problem:
                return self._check("CA directory", False, f"{path}: {problem}", advice=again)
        left = min(one["list_ends"] for one in authorities.values())
        return self._check("CA directory", True, span(left), left)

    def _renew(self):
        return self._ssh(self.place.execute("worker", "worker-renew", "--once", "--now", "--deadline", "20"))

    def _proxy(self):
        proxy = self.answer["proxy"] or {"path": "its proxy", "ends": None, "lifetime": None}
        left = proxy["ends"]
        again = f"{self._renew()}  # gets another, or says why not"
        if left is None:
            return self._check("proxy", False, f"{proxy['path']} is missing or unreadable", advice=again)
        good = left >= min(PROXY_LEFT, (proxy["lifetime"] or HOUR) / 4)
        return self._check("proxy", good, span(left) if good else ended(left), left, again)

    def _trust(self, online):
        """The collector took the online CA's certificate when it started."""
        trusted = self.answer["pool_trusts"]
        if not trusted or not online:
            return None
        again = self._ssh(self.place.restart("htcondor"))
        good = next(iter(online.values())) in trusted  # those above it are not asked for
        return self._check("pool", good, "open" if good else "the collector does not trust the online CA", advice=again)

    def _pool(self, pool):
        if pool is None or self.answer["apps"].get("worker", {}).get("unit") != "active":
            return self._check("pool", None, "unknown" if pool is None else "stopped")
        advice = self.deployment.command(f"logs worker --host {self.name}")
        found = "joined" if self.name in pool else "its startd is not in the pool"
        return self._check("pool", self.name in pool, found, advice=advice)


def span(seconds):
    """A length of time in one unit or two: ``5 h 49 min``, ``11 h``."""
    seconds = max(0, round(seconds))
    for length, unit, part, smaller in ((DAY, "d", HOUR, "h"), (HOUR, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= length:
            whole, more = seconds // length, seconds % length // part
            return f"{whole} {unit} {more} {smaller}" if more and whole < 10 else f"{whole} {unit}"
    return f"{seconds} s"


def ended(seconds):
    """When something ended or will, that should last longer."""
    return f"ended {span(-seconds)} ago" if seconds <= 0 else f"ends in {span(seconds)}"


def counted(number, noun):
    """``1 key``, ``2 keys``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")

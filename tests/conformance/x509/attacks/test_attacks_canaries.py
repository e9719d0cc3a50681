# SPDX-License-Identifier: Apache-2.0
"""Unmistakable secrets, everything at DEBUG: each secret is in the private file where it belongs, and nowhere else."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import identity_flows as flows
from agent_runtime import eventually
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, store
from identity_runtime import PASSWORD, SERVICE_SECRET, WORKER_SECRET, Identity
from service_runtime import DEPLOYMENT, HOST, ROOT, Credentials

DEBUG = (
    "import logging, sys; logging.basicConfig(level=logging.DEBUG); "
    "from dodas.credentials.renew import main; sys.exit(main(sys.argv[1:]))"
)


class Everything:
    """Provider, service and two renewal daemons, all that they said, and every secret that there was."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "identity").mkdir()
        self.identity = Identity(folder / "identity")
        self.identity.start()
        self.service = Credentials(folder / "service", self.identity, debug=True)
        for rule in self.service.settings["rules"]:
            rule["delegate"] = rule["name"] == "people"
        self.service.start()
        self.daemons = {}
        self.secrets = {
            "client secret of the worker": WORKER_SECRET,
            "client secret of the service": SERVICE_SECRET,
            "password": PASSWORD,
            "join secret": self.service.join_secret,
            "join key": self.service.join_key(),
            "state key": self.service.state_key,
        }
        self.answers = []
        self.seen = set()
        self.over = threading.Event()
        self.watching = threading.Thread(target=self.watch)
        self.watching.start()

    def watch(self):
        """What anybody on the machine sees of processes, for as long as this goes on."""
        while not self.over.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        data = (process / name).read_bytes()
                    except OSError:
                        continue
                    if str(self.folder).encode() in data:
                        self.seen.add((f"{process.name}/{name}", data))

    def daemon(self, name, **config):
        folder = self.folder / name
        folder.mkdir()
        bundle = folder / "bundle.pem"
        certificates = (self.service.cafile, self.service.settings["issuers"][0]["cafile"])
        bundle.write_text("".join(Path(one).read_text() for one in certificates))
        output = folder / "proxy.pem"
        places = {
            "ca_directory": str(folder / "certificates"),
            "ca_output": str(folder / "ca.pem"),
            "output": str(output),
        }
        config = {"credentials_url": self.service.url, "cafile": str(bundle), **places, **config}
        path = folder / "renew.json"
        path.write_text(json.dumps(config))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}"}
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-c", DEBUG, "--config", str(path)]
            self.daemons[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        eventually(output.exists, 20)
        self.secrets[f"private key of {name}"] = private(output.read_bytes())

    def ask(self, method, path, **options):
        with self.service.client() as http:
            answer = http.request(method, path, **options)
        self.answers.append(f"{answer.status_code} {dict(answer.headers)} {answer.text}")
        return answer

    def stop(self):
        self.over.set()
        self.watching.join()
        for process in self.daemons.values():
            process.terminate()
            process.wait(10)
        self.service.stop()
        self.identity.stop()


def private(pem: bytes) -> bytes:
    """The private numbers of a PEM file's key, as they stand in DER."""
    key = files.load_key(pem)
    numbers = key.private_numbers()
    return numbers.d.to_bytes(256, "big")[:64]


def jwt(text):
    """The part of a token that is secret: with the signature it is one."""
    return text.rsplit(".", 1)[-1]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All flows there are, and all ways to fail with a secret at hand."""
    run = Everything(tmp_path_factory.mktemp("canaries"))
    try:
        use(run)
        yield run
    finally:
        if not run.over.is_set():
            run.stop()


def use(run):
    secret = run.folder / "client.secret"
    files.write(secret, WORKER_SECRET.encode())
    key = run.folder / "host.key"
    files.write(key, base64.b64encode(run.service.join_key()))
    section = run.service.settings["issuers"][0]
    run.daemon("by-join", join_key_file=str(key), deployment=DEPLOYMENT, host=HOST)
    run.daemon("by-client", issuer=section["issuer"], client_id="worker", client_secret_file=str(secret),
               audience=section["audience"], scope="x509")  # fmt: skip
    with run.identity.client() as http:
        alice = flows.device_tokens(http)
        worker = flows.worker(http).json()["access_token"]
        refreshed = flows.refresh(http, alice["refresh_token"]).json()
        exchanged = flows.exchange(http, refreshed["access_token"], scope="x509 offline_access").json()
    for name, found in (("device", alice), ("refreshed", refreshed), ("exchanged", exchanged)):
        run.secrets |= {
            f"access token, {name}": jwt(found["access_token"]),
            f"refresh token, {name}": found["refresh_token"],
        }
    run.secrets["access token, worker"] = jwt(worker)
    client_key = csr.make_key()
    request = csr.make(client_key)
    run.secrets["private key of a client"] = private(files.key_pem(client_key))
    host = run.service.join_token(request)
    run.secrets["join token"] = jwt(host)
    body = {"csr": request.decode(), "kind": "proxy"}

    def bearer(token):
        return {"Authorization": f"Bearer {token}"}

    for token in (worker, host, refreshed["access_token"]):
        assert run.ask("POST", "/v1/credentials", headers=bearer(token), json=body).status_code == 201
        run.ask("GET", "/v1/explain", headers=bearer(token))
    made = run.ask("POST", "/v1/delegations", headers=bearer(refreshed["access_token"]), json={})
    assert made.status_code == 201
    body["delegation"] = made.json()["id"]
    assert (
        run.ask("POST", "/v1/credentials", headers=bearer(run.service.join_token(request)), json=body).status_code
        == 201
    )
    pair = base64.b64encode(f"{HOST}:{base64.b64encode(run.service.join_key()).decode()}".encode()).decode()
    old = run.ask("GET", "/get_proxy", headers={"Authorization": f"Basic {pair}"})
    assert old.status_code == 200
    run.answers.pop()  # this one is meant to hold a key
    run.secrets["private key that the service made"] = private(old.content)
    # Each secret where it is wrong.
    for value in [value for value in run.secrets.values() if isinstance(value, str)]:
        for headers in (bearer(value), {"Authorization": f"Basic {value}"}, {"Authorization": value}):
            run.ask("POST", "/v1/credentials", headers=headers, json=body)
        run.ask("POST", "/v1/credentials", headers=bearer(worker), json={"csr": value, "kind": value, value: value})
        run.ask("GET", f"/{value}?token={value}", headers={"Cookie": value, "X-Token": value})
        run.ask("GET", f"/api/v2/{value}/credential", headers=bearer(worker))
        run.ask("DELETE", f"/v1/delegations/{value}", headers=bearer(worker))
    for token in (worker, host, refreshed["access_token"], exchanged["access_token"]):
        head, payload, signature = token.split(".")
        run.ask("POST", "/v1/credentials", headers=bearer(f"{head}.{payload}x.{signature}"), json=body)
    pem = files.key_pem(client_key).decode()
    run.ask("POST", "/v1/credentials", headers=bearer(worker), json={"csr": pem, "kind": "proxy"})
    run.ask("POST", "/v1/revocations", headers=bearer(worker), json={"certificate": pem})
    for path in ("/health", "/metrics", "/v1/authority"):
        run.ask("GET", path)
    # A daemon that finds nobody, and a provider that fails, with secrets in hand.
    run.identity.kill()
    run.ask("POST", "/v1/delegations", headers=bearer(exchanged["access_token"]), json={})
    run.identity.start()
    run.service.restart()
    assert (
        run.ask("POST", "/v1/credentials", headers=bearer(worker), json={**body, "delegation": None}).status_code == 201
    )
    run.secrets["refresh token that the service holds"] = held(run, "refresh_token")
    run.secrets["access token that the service holds"] = jwt(held(run, "access_token"))
    run.secrets["key of the authority"] = private(sealed(run).read("ca.key")[0])
    run.stop()


def sealed(run):
    return store.Sealed(store.Directory(run.service.state), [run.service.state_key])


def held(run, name):
    kept = sealed(run)
    [delegation] = kept.names("delegations")
    return json.loads(kept.read(delegation)[0])[name]


def forms(secret) -> list[bytes]:
    """How a secret may be written."""
    data = secret.encode() if isinstance(secret, str) else secret
    found = [
        data,
        base64.b64encode(data).rstrip(b"="),
        base64.urlsafe_b64encode(data).rstrip(b"="),
        data.hex().encode(),
    ]
    # Base64 of something with it inside, at each of the three offsets.
    found += [base64.b64encode(bytes(shift) + data)[4:-4] for shift in range(3)]
    return [form for form in found if len(form) >= 12]


def holds(data: bytes, secret) -> bool:
    packed = re.sub(rb"\s|\\n", b"", data)
    return any(form in data or form in packed for form in forms(secret))


def names():
    """The secrets that there are, told before any of them exists."""
    flow = [f"{kind} token, {name}" for kind in ("access", "refresh") for name in ("device", "refreshed", "exchanged")]
    return [
        *flow, "client secret of the worker", "client secret of the service", "password", "join secret", "join key",
        "state key", "private key of by-join", "private key of by-client", "access token, worker", "join token",
        "private key of a client", "private key that the service made", "refresh token that the service holds",
        "access token that the service holds", "key of the authority",
    ]  # fmt: skip


def test_honest_search_finds_what_is_there(everything):
    """The search itself works: each private file is found to hold its secret, and no secret was left out."""
    assert set(names()) == set(everything.secrets)
    for name in ("by-join", "by-client"):
        assert holds(
            (everything.folder / name / "proxy.pem").read_bytes(), everything.secrets[f"private key of {name}"]
        )
    assert holds((everything.folder / "client.secret").read_bytes(), WORKER_SECRET)
    for secret in everything.secrets.values():
        data = secret.encode() if isinstance(secret, str) else secret
        assert holds(b"x" + base64.b64encode(b"ab" + data + b"cd"), secret)
    assert "DEBUG" in everything.service.log() and len(everything.answers) > 60
    assert len({data for name, data in everything.seen if "cmdline" in name}) >= 4


@pytest.mark.parametrize("name", names())
def test_logs(everything, name):
    """Of the service, the provider and the daemons, at DEBUG."""
    logs = {path.parent.name: path.read_bytes() for path in everything.folder.glob("*/log")}
    logs["provider"] = "".join(everything.identity.output).encode()
    logs["audit"] = (everything.service.state / "audit.log").read_bytes()
    assert len(logs) == 5 and all(logs.values())
    assert [where for where, data in logs.items() if holds(data, everything.secrets[name])] == []


@pytest.mark.parametrize("name", names())
def test_processes(everything, name):
    """What ps shows, of all processes that had to do with it."""
    found = [where for where, data in everything.seen if holds(data, everything.secrets[name])]
    assert everything.seen and found == []


@pytest.mark.parametrize("name", names())
def test_answers(everything, name):
    """Bodies and headers: of errors, health, metrics and all the rest, but for the key that an old worker asked for."""
    assert [answer for answer in everything.answers if holds(answer.encode(), everything.secrets[name])] == []


BELONGS = {
    "client secret of the worker": {"client.secret", "identity/etc/secrets.json"},
    "client secret of the service": {"service/etc/client.secret", "identity/etc/secrets.json"},
    "join secret": {"service/etc/join.key"},
    "join key": {"host.key"},
    "state key": {"service/etc/state.key"},
    "private key of by-join": {"by-join/proxy.pem"},
    "private key of by-client": {"by-client/proxy.pem"},
}


@pytest.mark.parametrize("name", names())
def test_files(everything, name):
    """Each secret is in the private files where it belongs; the state of the service is sealed."""
    found = set()
    for path in everything.folder.rglob("*"):
        if "node_modules" in path.parts or not path.is_file() or path.is_symlink():
            continue
        if holds(path.read_bytes(), everything.secrets[name]):
            where = str(path.relative_to(everything.folder))
            found.add(where)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, where
    # The provider's own database is the provider's matter: private, and not the service's.
    assert found - {one for one in found if one.startswith("identity/state/")} <= BELONGS.get(name, set())

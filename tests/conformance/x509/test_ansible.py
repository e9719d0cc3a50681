# SPDX-License-Identifier: Apache-2.0
"""Credentials through Ansible: the real provider, the real service, ansible-playbook, and openssl as the judge."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, held, proxies
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority
from ansible_runtime import Ansible
from identity_runtime import AUDIENCE, WORKER_SECRET, Identity
from ports import free_port
from service_runtime import DEPLOYMENT, HOST, Credentials

CREDENTIAL, INFO = "dodas.cluster.x509_credential", "dodas.cluster.x509_credential_info"
CHECK = {"check_mode": True}
LOG = Path("/dev/log")


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    running = Identity(tmp_path_factory.mktemp("identity"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def service(identity, tmp_path_factory):
    running = Credentials(tmp_path_factory.mktemp("service") / "service", identity)
    for rule in running.settings["rules"]:
        rule["kinds"] = ["eec", "proxy"]
        rule["delegate"] = rule["name"] == "people"
    host = {"name": "storage", "issuer": identity.url, "clients": ["worker"], "kinds": ["host"], "lifetime": 86400}
    dn = f"/DC=dodas/O={DEPLOYMENT}/OU=hosts/CN=storage {{hash}}"
    running.settings["rules"].append({**host, "dn": dn, "dns_names": ["storage.example.org"]})
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def ansible(tmp_path_factory):
    return Ansible(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="module")
def trusted(identity, service, tmp_path_factory):
    """PEM file of the authorities of both web servers."""
    path = tmp_path_factory.mktemp("trusted") / "ca.pem"
    path.write_text((identity.config / "cert.pem").read_text() + Path(service.cafile).read_text())
    return str(path)


@pytest.fixture
def place(service, trusted, tmp_path):
    """Parameters that say where."""
    return {"path": str(tmp_path / "credential.pem"), "credentials_url": service.url, "ca": trusted}


@pytest.fixture
def joined(service, place):
    """Parameters of a host of the deployment."""
    key = base64.b64encode(service.join_key()).decode()
    return {**place, "join_key": key, "deployment": DEPLOYMENT, "host": HOST}


@pytest.fixture
def client(identity, place):
    """Parameters of a client of the provider."""
    secret = {"client_id": "worker", "client_secret": WORKER_SECRET, "scope": "x509"}
    return {**place, "issuer": identity.url, "audience": AUDIENCE, **secret}


def summary(results):
    return [(one.get("failed", False), one["changed"]) for one in results]


def openssl_accepts(path, directory):
    command = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-x509_strict", "-no-CAfile", "-no-CAstore"]
    done = subprocess.run([*command, "-CApath", directory, "-untrusted", path, path], capture_output=True, check=False)
    return done.returncode == 0


# from nothing to a credential, and back


def test_a_proxy_is_made_once_kept_and_removed(ansible, joined, tmp_path):
    path, directory, online = tmp_path / "credential.pem", tmp_path / "certificates", tmp_path / "online.pem"
    given = {**joined, "ca_directory": str(directory), "ca_path": str(online)}
    planned = ansible.play((CREDENTIAL, given), options=["--check", "--diff"])
    assert summary(planned.results) == [(False, True)]
    assert planned.results[0]["reason"] == "there is none"
    assert list(tmp_path.iterdir()) == []

    run = ansible.play((CREDENTIAL, given), (CREDENTIAL, given), (CREDENTIAL, given, CHECK), options=["--diff"])
    assert summary(run.results) == [(False, True), (False, False), (False, False)]
    first, again, _checked = run.results
    assert first["credential"]["subject"].startswith(f"/DC=dodas/O={DEPLOYMENT}/OU=workers/CN={HOST} ")
    assert again["credential"]["serial"] == first["credential"]["serial"]
    assert f"+subject: {first['credential']['subject']}" in run.output
    assert f"+not_after: {first['credential']['not_after']}" in run.output
    assert "PRIVATE KEY" not in run.output + json.dumps(run.results)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().count("PRIVATE KEY") == 2
    assert openssl_accepts(path, directory)
    command = ["openssl", "verify", "-allow_proxy_certs", "-no-CApath", "-no-CAstore", "-CAfile", online]
    subprocess.run([*command, "-untrusted", path, path], check=True, capture_output=True)

    gone = {"path": str(path), "state": "absent"}
    run = ansible.play((CREDENTIAL, gone, CHECK), (INFO, {"path": str(path)}), (CREDENTIAL, gone), (CREDENTIAL, gone))
    planned, there, removed, again = run.results
    assert planned["changed"] and there["credential"]["serial"] == first["credential"]["serial"]
    assert removed["changed"] and not again["changed"]
    assert not path.exists()
    assert online.exists() and directory.exists()


def test_every_kind_and_every_token(ansible, service, identity, place, client, tmp_path):
    with identity.client() as http:
        person = flows.device_tokens(http, resource=AUDIENCE)["access_token"]
    directory = str(tmp_path / "certificates")

    def to(name, given, **more):
        return {**given, "path": str(tmp_path / name), "ca_directory": directory, **more}

    orders = {
        "limited": to("limited", client, policy="limited", lifetime="30m"),
        "eec": to("eec", client, kind="eec"),
        "host": to("host", client, kind="host", key_type="ec-p256"),
        "person": to("person", place, token="{{ lookup('dodas.cluster.oidc_token') }}", kind="eec"),
    }
    aware = Ansible(ansible.folder, BEARER_TOKEN=person)
    tasks = [(CREDENTIAL, given) for given in orders.values() for _ in range(2)]
    tasks += [(INFO, {"path": given["path"], "ca_directory": directory}) for given in orders.values()]
    results = aware.play(*tasks).results
    assert summary(results[:8]) == [(False, True), (False, False)] * 4, results
    found = dict(zip(orders, results[8:], strict=True))
    for name, one in found.items():
        assert (one["verified"], one["crl_checked"], one["problems"]) == (True, True, []), (name, one)
        assert one["credential"]["key_fits"]
        assert openssl_accepts(orders[name]["path"], directory)
    limited, eec, host, person = (found[name]["credential"] for name in ("limited", "eec", "host", "person"))
    assert (limited["kind"], limited["policy"]) == ("proxy", "limited")
    assert 1700 < limited["remaining"] <= 1800
    assert limited["identity"] == eec["subject"]
    assert (eec["kind"], eec["policy"], eec["key_type"]) == ("eec", None, "rsa-2048")
    assert (host["kind"], host["key_type"]) == ("host", "ec-p256")
    assert host["subject"].startswith(f"/DC=dodas/O={DEPLOYMENT}/OU=hosts/CN=storage ")
    assert person["subject"].startswith(f"/DC=dodas/O={DEPLOYMENT}/OU=people/CN=alice ")


def test_somebody_signs_in_for_the_play(ansible, identity, service, place, trusted, tmp_path):
    ask = (
        f"{{{{ lookup('dodas.cluster.oidc_token', method='device_code', issuer='{identity.url}', client_id='dodas', "
        f"scope='{flows.SCOPES}', cafile='{trusted}', audience='{AUDIENCE}', deadline=60) }}}}"
    )
    fact = ("ansible.builtin.set_fact", {"token": ask}, {"no_log": True, "run_once": True})
    given = {**place, "kind": "eec", "token": "{{ token }}"}
    command = ansible.command([fact, (CREDENTIAL, given)], "-vvv")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ansible.folder, env=ansible.environment, **pipes)
    output = []
    with process:
        for line in process.stdout:
            output.append(line)
            if line.startswith("To sign in, open "):
                with identity.client() as http:
                    page = flows.open_login(http, {"user_code": line.split()[-1]})
                    flows.approve(http, flows.sign_in(http, page))
    run = ansible.ended(process.returncode, "".join(output))
    assert "/CN=alice " in run.results[1]["credential"]["subject"]
    assert "eyJ" not in run.output


def test_a_proxy_of_whom_a_person_delegated(ansible, identity, service, joined):
    with identity.client() as http:
        person = flows.device_tokens(http, resource=AUDIENCE)["access_token"]
    with service.client(headers={"Authorization": f"Bearer {person}"}) as http:
        answer = http.post("/v1/delegations", json={"name": "analysis"})
        assert answer.status_code == 201, answer.text
    given = {**joined, "delegation": answer.json()["id"]}
    first, again, unknown = ansible.play(
        (CREDENTIAL, given), (CREDENTIAL, given), (CREDENTIAL, {**given, "delegation": "0" * 32, "remaining": "2d"})
    ).results
    assert first["changed"] and not again["changed"]
    assert first["credential"]["identity"] == answer.json()["subject"]
    assert "/OU=people/CN=alice " in first["credential"]["identity"]
    assert unknown["failed"] and "needs a new credential (it ends in " in unknown["msg"]
    assert "look at credentials_url and delegation" in unknown["msg"], unknown["msg"]


# when a new one is due


def test_what_makes_a_new_one_due(ansible, service, joined, client, tmp_path):
    path = Path(joined["path"])
    directory = {"ca_directory": str(tmp_path / "certificates")}
    joined = {**joined, **directory}
    first, shorter, kept, longer, kind, key = ansible.play(
        (CREDENTIAL, joined),
        (CREDENTIAL, {**joined, "remaining": "50m"}),
        (CREDENTIAL, {**joined, "remaining": "0.9"}),
        (CREDENTIAL, {**joined, "remaining": "2h"}),
        (CREDENTIAL, {**joined, "kind": "eec"}),
        (CREDENTIAL, {**joined, "kind": "eec", "key_type": "rsa-4096"}),
    ).results
    assert first["reason"] == "there is none"
    assert shorter["reason"] == kept["reason"] == ""
    assert longer["reason"].startswith("it ends in 35") and "every run will replace it" in longer["warnings"][0]
    assert kind["reason"] == "its kind is proxy, not eec"
    assert key["reason"] == "its key_type is rsa-2048, not rsa-4096"
    assert key["credential"]["key_type"] == "rsa-4096"

    eec = {**joined, "kind": "eec"}
    serial = ansible.play((CREDENTIAL, eec)).results[0]["credential"]["serial"]
    found = held.read(path)
    identity, pem = found.identity, files.certificate_pem(found.person).decode()
    with service.client(headers={"Authorization": f"Bearer {service.join_token()}"}) as http:
        assert http.post("/v1/revocations", json={"certificate": pem}).status_code == 200
    revoked, kept, another = ansible.play(
        (CREDENTIAL, {**eec, "subject": identity}), (CREDENTIAL, eec), (CREDENTIAL, {**client, "kind": "eec"})
    ).results
    assert revoked["reason"] == "it is revoked" and revoked["changed"]
    assert revoked["credential"]["serial"] != serial
    assert not kept["changed"]
    assert not another["changed"]  # nobody asked for a certain subject
    (mismatch,) = ansible.play((CREDENTIAL, {**client, "kind": "eec", "subject": identity + "x"})).results
    assert mismatch["failed"] and "gives something else, which is not kept: its subject is " in mismatch["msg"]
    assert held.read(path).identity == identity


def test_a_key_that_others_could_read_is_not_kept(ansible, joined):
    path = Path(joined["path"])
    file = {"path": str(path)}
    ours = {"path": str(path), "owner": str(os.geteuid())}
    cases = [
        (("ansible.builtin.file", {**file, "state": "absent"}), "there is none"),
        (("ansible.builtin.file", {**file, "mode": "0400"}), ""),
        (("ansible.builtin.file", {**file, "group": "nogroup"}), ""),
        (("ansible.builtin.file", {**file, "mode": "0644"}), "its mode is 0644: others can use the key"),
        (("ansible.builtin.file", {**ours, "owner": "nobody"}), "it belongs to uid 65534, not 0"),
        (("ansible.builtin.copy", {"dest": str(path), "content": "nonsense"}), "what is there is no credential"),
    ]
    if os.geteuid() != 0:
        cases = [case for case in cases if not {"owner", "group"} & case[0][1].keys()]
    tasks = [task for prepare, _reason in cases for task in (prepare, (CREDENTIAL, joined), (CREDENTIAL, joined))]
    target = path.with_name("target")
    link = ("ansible.builtin.file", {"src": str(target), "path": str(path), "state": "link", "force": True})
    last = [link, (CREDENTIAL, joined), (CREDENTIAL, {**joined, "path": "/nowhere/at/all"})]
    results = ansible.play(*tasks, *last).results
    serials = []
    for (_prepare, reason), result, again in zip(cases, results[1:-3:3], results[2:-3:3], strict=True):
        assert (result["reason"], result["changed"], again["changed"]) == (reason, True, False), result
        assert (result["mode"], result["uid"], result["gid"]) == ("0600", os.geteuid(), os.getegid())
        serials.append(result["credential"]["serial"])
    assert len(set(serials)) == len([reason for _prepare, reason in cases if reason])
    assert f"{path} is not a regular file: not replaced" in results[-2]["msg"]
    assert "/nowhere/at is no directory: make it first" in results[-1]["msg"]
    assert path.is_symlink() and not target.exists()


def test_an_authority_that_changed(ansible, identity, joined, tmp_path_factory):
    other = Credentials(tmp_path_factory.mktemp("other") / "service", identity)
    other.start()
    try:
        given = {**joined, "credentials_url": other.url, "ca": other.cafile,
                 "join_key": base64.b64encode(other.join_key()).decode()}  # fmt: skip
        results = ansible.play((CREDENTIAL, joined), (CREDENTIAL, given)).results
        assert results[1]["reason"].endswith("that is there now") and results[1]["changed"]
    finally:
        other.stop()


# what fails


def test_failures_name_the_host_the_address_and_what_to_do(ansible, service, joined, client, place, tmp_path):
    nowhere = f"https://127.0.0.1:{free_port()}"
    good = str(tmp_path / "good.pem")
    bad_key = base64.b64encode(bytes(32)).decode()
    cases = [
        ({**joined, "credentials_url": nowhere}, f"{nowhere}/v1/authority: ", "Is it reachable from this host"),
        ({**joined, "ca": service.cafile + "x"}, service.url, "the file of authorities is missing"),
        ({**joined, "ca": None}, service.url, "does ca have the authority of its web server?"),
        ({**joined, "join_key": bad_key}, f"{service.url}/v1/credentials: ", "It does not take the token"),
        ({**joined, "kind": "host"}, f"{service.url}/v1/credentials: ", "No rule of the service gives this"),
        ({**client, "client_secret": "s3cret-canary"}, f"{client['issuer']}/token: ", "invalid_client"),
        ({**place, "token": "s3cret canary"}, "", "token is empty or no token"),
        ({**place, "token": "s3cret.canary.x"}, f"{service.url}/v1/credentials: ", "It does not take the token"),
        ({**joined, "join_key": "s3cret-canary!"}, "", "join_key is not base64"),
        ({**joined, "lifetime": "a while"}, "", "lifetime: 'a while' is neither seconds"),
        ({**joined, "remaining": "0"}, "", "remaining: '0' is neither seconds"),
        ({**joined, "policy": "limited", "kind": "eec"}, "", "policy is for proxies"),
        ({**joined, "owner": "nobody-at-all"}, "", "there is no user nobody-at-all"),
        ({**joined, "path": "relative/path"}, "", "must be absolute"),
    ]
    tasks = [(CREDENTIAL, given) for given, _where, _what in cases]
    away = {**joined, "path": good, "credentials_url": nowhere}
    run = ansible.play((CREDENTIAL, {**joined, "path": good}), *tasks, (CREDENTIAL, away), options=["-vvv"])
    host = os.uname().nodename
    for (given, where, what), result in zip(cases, run.results[1:-1], strict=True):
        assert result["failed"] and not result["changed"], given
        said = result["msg"]
        assert said.startswith(f"{host}: ") and where in said and what in said, said
    assert not Path(joined["path"]).exists()
    kept = run.results[-1]
    assert not kept.get("failed") and not kept["changed"]
    assert "the credential is kept, but its authority was not compared" in kept["warnings"][0]
    assert "canary" not in run.output


def test_a_host_without_the_library_says_so(ansible, joined, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = Ansible(ansible.folder, ANSIBLE_PYTHON_INTERPRETER=str(tmp_path / "bare/bin/python"))
    modules = [(CREDENTIAL, joined), (INFO, {"path": "/x"}), ("dodas.cluster.x509_authority_info", {}),
               ("dodas.cluster.x509_authority", {"ca_directory": "/x"})]  # fmt: skip
    absent = (CREDENTIAL, {"path": joined["path"], "state": "absent"})
    *results, last = bare.play(*modules, absent).results
    for result in results:
        assert "needs the library cryptography, version 42 or newer (package python3-cryptography)" in result["msg"]
    assert not last.get("failed")


# what a credential file is


def test_proxies_of_voms(ansible, service, tmp_path):
    ca = Authority.open(tmp_path / "ca", "/DC=org/O=vo/CN=CA")
    for name in ("person", "server"):
        key = csr.make_key()
        subject = f"/DC=org/O=vo/CN={name}"
        made = ca.issue_eec(key.public_key(), subject, 3600) if name == "person" else ca.issue_host(
            key.public_key(), "vo.example.org", ["vo.example.org"])  # fmt: skip
        for end, pem in (("crt", files.certificate_pem(made)), ("key", files.key_pem(key))):
            files.write(tmp_path / f"{name}.{end}", pem)
    proxy = tmp_path / "proxy"
    command = ["voms-proxy-fake", "-q", "-rfc", "-newformat", "-voms", "cms", "-uri", "vo.example.org:15000"]
    command += ["-fqan", "/cms/Role=production/Capability=NULL", "-out", proxy]
    for option, name in (("cert", "person.crt"), ("key", "person.key")):
        command += [f"-{option}", tmp_path / name]
    for option, name in (("hostcert", "server.crt"), ("hostkey", "server.key")):
        command += [f"-{option}", tmp_path / name]
    subprocess.run([*command, "-certdir", tmp_path / "ca/certificates"], check=True, capture_output=True)
    own = tmp_path / "own"
    held_proxy = proxies.inspect(proxy.read_bytes())
    own.write_bytes(b"".join(map(files.certificate_pem, held_proxy.chain)))
    own.chmod(0o644)
    directory = str(tmp_path / "ca/certificates")
    good, bare, untrusted, damaged = ansible.play(
        (INFO, {"path": str(proxy), "ca_directory": directory}),
        (INFO, {"path": str(own)}),
        (INFO, {"path": str(proxy), "ca_directory": str(tmp_path)}),
        (INFO, {"path": str(tmp_path / "ca/ca.key")}),
    ).results
    assert good["verified"] and good["problems"] == []
    (attribute,) = good["credential"]["attributes"]
    assert (attribute["vo"], attribute["fqans"], attribute["server"]) == (
        "cms", ["/cms/Role=production/Capability=NULL"], "vo.example.org:15000",
    )  # fmt: skip
    assert good["credential"]["identity"] == "/DC=org/O=vo/CN=person"
    assert not bare["credential"]["key_fits"]
    assert bare["problems"] == ["its mode is 0644: others can use the key", "its key is missing or another's"]
    assert untrusted["verified"] is False and "unable to get" in untrusted["problems"][0]
    assert damaged["failed"] and "PRIVATE" not in damaged["msg"]


# secrets


class SystemLog:
    """What modules tell the host's log: journald where it runs, else a socket where its would be."""

    def __init__(self):
        self.began = time.time()
        self.socket = None
        self.lines = []
        if not LOG.exists():
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(str(LOG))
            LOG.chmod(0o666)
            threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65536):
                self.lines.append(data.decode(errors="replace"))

    def text(self):
        if self.socket:
            return "\n".join(self.lines)
        command = ["journalctl", "--no-pager", "-o", "cat", f"--since=@{self.began:.0f}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def close(self):
        if self.socket:
            self.socket.close()
            LOG.unlink()


class Processes:
    """All command lines and environments that there were while it ran."""

    def __init__(self):
        self.seen = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self):
        while not self._stop.wait(0.02):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self.seen.add(Path(entry.path, "cmdline").read_bytes())

    def stop(self):
        self._stop.set()
        self._thread.join()
        return b"\n".join(self.seen).decode(errors="replace")


@pytest.mark.skipif(os.geteuid() != 0, reason="the log's socket is root's to make")
def test_secrets_are_in_no_output_log_or_process_list(identity, service, joined, client, place, trusted, tmp_path):
    # Not through pipes: then a process list has the module's own process by name.
    (tmp_path / "ansible").mkdir()
    loud = Ansible(tmp_path / "ansible", ANSIBLE_PIPELINING="0", ANSIBLE_LOG_PATH=str(tmp_path / "ansible.log"))
    with identity.client() as http:
        token = flows.worker(http, resource=AUDIENCE).json()["access_token"]
    bearer = {**place, "path": str(tmp_path / "bearer.pem"), "token": token}
    ask = (
        "{{ lookup('dodas.cluster.oidc_token', method='client_credentials', client_id='worker', client_secret=secret, "
        f"issuer='{identity.url}', cafile='{trusted}', audience='{AUDIENCE}', scope='x509') }}}}"
    )
    asked = ({**place, "path": str(tmp_path / "asked.pem"), "token": ask}, {"vars": {"secret": WORKER_SECRET}})
    wrong = {**joined, "kind": "host", "path": str(tmp_path / "wrong.pem")}
    log, processes = SystemLog(), Processes()
    try:
        tasks = [("ansible.builtin.stat", {"path": "/witness"}), (CREDENTIAL, joined), (CREDENTIAL, bearer)]
        tasks += [(CREDENTIAL, {**client, "path": str(tmp_path / "client.pem")}), (CREDENTIAL, *asked)]
        run = loud.play(*tasks, (CREDENTIAL, wrong), options=["-vvv", "--diff"])
        listed = processes.stop()
        # A loaded machine may deliver late.
        deadline = time.monotonic() + 10
        while "/witness" not in log.text() and time.monotonic() < deadline:
            time.sleep(0.1)
        logged = log.text()
    finally:
        processes.stop()
        log.close()
    assert summary(run.results) == [(False, False), *[(False, True)] * 4, (True, False)], run.output
    assert "/witness" in logged, "the log does not see what modules say"
    assert "AnsiballZ_x509_credential.py" in listed, "the process list did not see the module"
    keys = [line for path in tmp_path.glob("*.pem") for line in path.read_text().split("PRIVATE KEY-----")[1].split()]
    secrets = [joined["join_key"], token, WORKER_SECRET, *(key for key in keys if len(key) == 64)]
    assert len(secrets) > 80
    places = {"output": run.output, "results": json.dumps(run.results), "log": logged, "processes": listed,
              "ansible.log": (tmp_path / "ansible.log").read_text()}  # fmt: skip
    for name, text in places.items():
        assert not [secret for secret in secrets if secret in text], name
        assert "eyJ" not in text, name
    assert CREDENTIAL not in logged and "x509_credential" not in logged

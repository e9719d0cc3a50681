# SPDX-License-Identifier: Apache-2.0
"""Log in as a person with a browser, get a proxy, and let the doctor find a worker that is sick."""

import json
import re
import stat
import subprocess

import pytest

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, client
from browser import browser

ISSUER, URL = "https://identity.service.consul:8443", "https://credentials.service.consul:8444"
NAME = ("--name", "e2e")
SICK = "worker-2"


@pytest.fixture(scope="module")
def folder(dodas, e2e):
    return dodas.home / "deployments/e2e"


@pytest.fixture(scope="module")
def login(dodas, folder):
    """What `login` says, line by line, while somebody signs in with a browser."""
    command = [dodas.root / "dodas", "login", *NAME, "--json"]
    address = json.loads((folder / "hosts.json").read_text())["front-1"]["address"]
    password = json.loads((folder / "secrets.json").read_text())["user_password"]
    with subprocess.Popen(command, env=dodas.environment(), stdout=subprocess.PIPE, text=True) as process:
        device = json.loads(process.stdout.readline())
        with browser(ISSUER, {"identity.service.consul": address}, folder / "pki/ca.pem") as http:
            page = flows.sign_in(http, flows.open_login(http, device), "physicist", password)
            assert "Signed in" in flows.approve(http, page).text
        done = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    return [device, *done]


@pytest.fixture(scope="module")
def proxy(dodas, login, tmp_path_factory):
    """The file of a proxy."""
    path = tmp_path_factory.mktemp("proxy") / "proxy.pem"
    dodas("proxy", "init", *NAME, "--out", str(path))
    return path


def test_login(folder, login):
    device, done = login
    assert device["verification_uri"] == f"{ISSUER}/device"
    assert done["subject"] == "physicist" and done["groups"] == ["/dodas"] and done["audience"] == [URL]
    held = folder / "login.json"
    assert stat.S_IMODE(held.stat().st_mode) == 0o600
    assert json.loads(held.read_text())["access_token"] not in json.dumps(login)


def test_token_for_curl(dodas, folder, login):
    address = json.loads((folder / "hosts.json").read_text())["front-1"]["address"]
    token = dodas("token", "show", *NAME, "--raw").stdout.strip()
    curl = ["curl", "-sSf", "--cacert", folder / "pki/ca.pem", "--resolve", f"{URL.removeprefix('https://')}:{address}"]
    done = subprocess.run([*curl, "--config", "-", f"{URL}/v1/explain"], text=True, capture_output=True, check=True,
                          input=f'header = "Authorization: Bearer {token}"\n')  # fmt: skip
    assert json.loads(done.stdout) == dodas.json("credentials", "explain", *NAME)


def test_proxy_is_one_that_openssl_believes(dodas, folder, proxy, tmp_path):
    address = json.loads((folder / "hosts.json").read_text())["front-1"]["address"]
    online = client.fetch_authority(
        URL, cafile=str(folder / "pki/ca.pem"), resolve={"credentials.service.consul": address}
    )
    authority.install_document(str(tmp_path / "certificates"), online)
    command = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-x509_strict", "-no-CAfile", "-no-CAstore"]
    command += ["-CApath", tmp_path / "certificates", "-untrusted", proxy, proxy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dodas.json("proxy", "info", "--file", str(proxy))
    assert found["identity"].startswith("/DC=dodas/O=e2e/OU=people/CN=physicist ")
    assert 11 * 3600 < found["timeleft"] <= 12 * 3600


def test_workers_may_act_for_who_delegated(dodas, e2e, login):
    made = dodas.json("credentials", "delegate", *NAME)
    try:
        assert [one["id"] for one in dodas.json("credentials", "list", *NAME)] == [made["id"]]
        change = "import json, sys; c = json.load(open('/etc/dodas/worker/renew.json')); "
        change += f"c.update(output='/tmp/proxy.pem', delegation='{made['id']}'); json.dump(c, sys.stdout)"
        script = f'python3 -c "{change}" > /tmp/renew.json\n'
        script += "python3 -m dodas.credentials.renew --config /tmp/renew.json --once --deadline 20\n"
        script += "openssl x509 -noout -issuer -nameopt compat -in /tmp/proxy.pem; rm /tmp/proxy.pem /tmp/renew.json\n"
        places = "--env PYTHONPATH=/opt/dodas/src:/opt/dodas/collections"
        assert made["subject"] in e2e.run("worker-1", f"podman exec -i {places} dodas-worker sh -s 2>&1", script)
    finally:
        dodas("credentials", "withdraw", made["id"], *NAME)
    assert dodas.json("credentials", "list", *NAME) == []


def healthy(dodas):
    return dodas("doctor", *NAME, status=None).returncode == 0


def test_doctor_finds_nothing(dodas, login, eventually):
    eventually(lambda: healthy(dodas), 60, "the doctor is content")
    found = dodas.json("doctor", *NAME)
    assert found["ok"] and {one["host"] for one in found["checks"]} == {None, "front-1", "worker-1", "worker-2"}
    looked = {(one["host"], one["name"]) for one in found["checks"]}
    assert looked == {
        *((None, name) for name in ("login", "issuer", "credentials")),
        *(("front-1", name) for name in ("clock", "apps", "certificates", "pool")),
        *((host, name) for host in ("worker-1", "worker-2")
          for name in ("clock", "apps", "proxy", "CA directory", "pool")),
    }  # fmt: skip


DIRECTORY = "/var/lib/dodas/worker/certificates"
PROXY = "/var/lib/dodas/worker/proxy.pem"
ENDED = "openssl x509 -in {0} -out {0}.new -days -1 -signkey {0} 2>/dev/null; mv {0}.new {0}"


@pytest.fixture
def nobody_renews(e2e):
    """Keep the worker from seeing by itself what is wrong with its files."""
    signal = "podman exec dodas-worker pkill -{} -f [d]odas.credentials.renew || true"
    e2e.run(SICK, signal.format("STOP"))
    yield
    # Where the app was started again, there is nobody to go on.
    e2e.run(SICK, signal.format("CONT"))


@pytest.mark.parametrize(
    ("spoil", "name", "found"),
    [
        (f"rm $(ls {DIRECTORY}/*.r0 | head -n 1)", "CA directory", r"[0-9a-f]{8}\.r0 is missing"),
        (f"rm {PROXY}", "proxy", "is missing or unreadable"),
        ("systemctl stop dodas-worker 2>&1", "apps", "worker is stopped"),
    ],
)
def test_doctor_names_the_sick_host_and_what_heals_it(dodas, e2e, nobody_renews, eventually, spoil, name, found):
    e2e.run(SICK, spoil)
    done = dodas("doctor", *NAME, status=1)
    sick = [line for line in done.stderr.splitlines() if line.startswith("dodas: ")]
    assert [line.split(": ")[1:3] for line in sick] == [[SICK, name]], done.stderr
    assert re.search(found, done.stderr)
    advice = re.search(r"^  \./dodas (ssh [^#\n]*)", done.stderr, re.M)[1]
    dodas(*advice.split())
    eventually(lambda: healthy(dodas), 60, "the advice healed it")


def test_doctor_names_a_proxy_that_ended(dodas, e2e, nobody_renews, eventually):
    e2e.run(SICK, ENDED.format(PROXY))
    done = dodas("doctor", *NAME, status=1)
    assert re.search(rf"^dodas: {SICK}: proxy: ended .* ago$", done.stderr, re.M), done.stderr
    e2e.run(SICK, "podman exec dodas-worker worker-renew --once --deadline 20 2>&1")
    eventually(lambda: healthy(dodas), 60, "the worker got another proxy")


def test_doctor_names_a_host_that_is_away(dodas, e2e, eventually):
    e2e.run(SICK, "systemctl stop ssh.socket ssh 2>/dev/null; systemctl stop ssh", check=False)
    try:
        done = dodas("doctor", *NAME, "--timeout", "8", status=1)
        assert re.search(rf"^dodas: {SICK}: connection: ", done.stderr, re.M)
        assert len([line for line in done.stderr.splitlines() if line.startswith("dodas: ")]) == 1
    finally:
        dodas.podman("exec", f"dodas-e2e-{SICK}", "systemctl", "start", "ssh")
    eventually(lambda: healthy(dodas), 60, "it is back")


def test_doctor_names_a_clock_that_is_off(dodas, e2e):
    """Hosts of this kind share one clock, so the host's python3 gets another: a stand-in."""
    wrapper = '#!/bin/sh\\nPYTHONPATH=/tmp/late exec /usr/bin/python3 "$@"\\n'
    late = "import time\\nreal = time.time\\ntime.time = lambda: real() - 40\\n"
    make = f"mkdir -p /tmp/late && printf '{late}' > /tmp/late/sitecustomize.py && printf '{wrapper}' "
    make += "> /usr/local/bin/python3 && chmod 755 /usr/local/bin/python3"
    e2e.run(SICK, make)
    try:
        done = dodas("doctor", *NAME, status=1)
        assert f"dodas: {SICK}: clock: 40 s behind" in done.stderr
    finally:
        e2e.run(SICK, "rm -rf /usr/local/bin/python3 /tmp/late")
    assert healthy(dodas)


def test_logout(dodas, folder, login):
    dodas("logout", *NAME)
    assert not (folder / "login.json").exists()
    assert healthy(dodas)  # nobody logged in is no illness

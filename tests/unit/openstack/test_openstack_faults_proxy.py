# SPDX-License-Identifier: Apache-2.0
"""The proxy that breaks an OpenStack's API, before a server that looks like one."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

import openstack_faults as faults
from udocker_registry import Server


class Service(http.server.BaseHTTPRequestHandler):
    """Gives tokens with a catalogue, and otherwise says what it was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def respond(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.command, self.path, body))
        answer = {"method": self.command, "path": self.path, "body": body, "me": self.server.url + "/v2.1"}
        if self.path == "/v3/auth/tokens":
            endpoints = [{"interface": "public", "url": self.server.other.url + "/v2.1"}]
            answer = {"token": {"catalog": [{"type": "compute", "endpoints": endpoints}]}}
        content = json.dumps(answer).encode()
        code = 204 if self.command == "DELETE" else 200
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Location", self.server.url + "/there")
        if code == 200:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code == 200 and self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_DELETE = respond

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def services():
    with Server(Service) as identity, Server(Service) as compute:
        identity.asked, compute.asked, identity.other, compute.other = [], [], compute, identity
        yield identity, compute


@pytest.fixture
def cloud(services):
    with faults.FaultyCloud(services[0].url + "/v3") as proxy:
        yield proxy


@pytest.fixture
def client(cloud):
    """An HTTP client that has logged in and talks to `compute`."""
    with httpx.Client(timeout=20, trust_env=False) as http_client:
        token = http_client.post(cloud.auth_url + "/auth/tokens", json={}).json()["token"]
        http_client.base_url = token["catalog"][0]["endpoints"][0]["url"]
        http_client.headers["X-Auth-Token"] = "t-1"
        cloud.calls.clear()
        yield http_client


def test_the_catalogue_leads_through_the_proxy(cloud, client, services):
    assert str(client.base_url) == f"{cloud.server.url}/compute/v2.1/"
    answer = client.post("servers?limit=1", json={"name": "a"})
    assert answer.json() == {
        "method": "POST",
        "path": "/v2.1/servers?limit=1",
        "body": '{"name":"a"}',
        "me": f"{cloud.server.url}/compute/v2.1",
    }
    assert answer.headers["Location"] == f"{cloud.server.url}/compute/there"
    assert services[1].asked == [("POST", "/v2.1/servers?limit=1", '{"name":"a"}')]
    assert [(call.text, call.done) for call in cloud.calls] == [("POST compute /v2.1/servers?limit=1", 200)]


def test_answers_without_content(client):
    assert client.delete("servers/1").status_code == 204
    head = client.head("servers/1")
    assert (head.status_code, head.content) == (200, b"")
    assert client.get("servers").status_code == 200


def test_the_first_calls_get_a_status(cloud, client, services):
    fault = cloud.fault("POST compute /servers$", faults.status(503, retry_after=2), times=2)
    assert client.get("servers").status_code == 200
    answers = [client.post("servers") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["Retry-After"] == "2"
    assert answers[0].json() == {"error": {"code": 503, "message": "a fault that was asked for"}}
    assert fault.hits == 2
    assert len(services[1].asked) == 2
    assert cloud.summary() == {"GET compute": 1, "POST compute": 3}
    assert cloud.count("* compute /servers$") == 4


def test_later_calls_and_other_services(cloud, client):
    cloud.fault("* network", faults.status(500), times=9)
    cloud.fault("*", faults.status(502, html=True), skip=1)
    answers = [client.get("a"), client.get("b"), client.get("c")]
    assert [answer.status_code for answer in answers] == [200, 502, 200]
    assert answers[1].headers["Content-Type"] == "text/html"


def test_connections_end(cloud, client, services):
    cloud.fault("POST compute", faults.reset)
    with pytest.raises(httpx.TransportError):
        client.post("never")
    assert services[1].asked == []
    cloud.fault("POST compute", faults.lost)
    with pytest.raises(httpx.TransportError):
        client.post("done")
    assert services[1].asked == [("POST", "/v2.1/done", "")]
    cloud.fault("POST compute", faults.cut)
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("half")
    assert client.post("whole").status_code == 200
    assert [call.done for call in cloud.calls] == ["reset", "lost", 200, 200]


def test_slow(cloud, client):
    cloud.fault("GET", faults.slow(0.3))
    start = time.monotonic()
    assert client.get("servers").status_code == 200
    assert time.monotonic() - start >= 0.3


def test_tokens_expire(cloud, client):
    assert client.get("servers").status_code == 200
    cloud.expire()
    assert client.get("servers").status_code == 401
    client.headers["X-Auth-Token"] = "t-2"
    assert client.get("servers").status_code == 200


def test_a_service_that_is_gone(cloud, client, services):
    services[1].__exit__()
    with pytest.raises(httpx.TransportError):
        client.get("servers")
    assert cloud.calls[-1].done == "ConnectionRefusedError"


@pytest.mark.parametrize("done", [False, True])
def test_kill(cloud, client, services, done):
    program = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1]); urllib.request.urlopen(sys.argv[1])"
    started = []
    cloud.fault("GET compute /servers", faults.kill(lambda: started[0], done), skip=1)
    url = f"{client.base_url}servers"
    started.append(subprocess.Popen([sys.executable, "-c", program, url], env={"no_proxy": "*"}))
    assert started[0].wait(20) == -signal.SIGKILL
    assert cloud.count("GET compute /servers") == 2
    assert len(services[1].asked) == (2 if done else 1)


def test_hook(cloud, client):
    seen = []
    cloud.fault("GET", faults.hook(lambda: seen.append(1), then=faults.status(409)))
    assert client.get("servers").status_code == 409
    assert seen == [1]


def test_clouds_file(cloud, tmp_path):
    original = Path(tmp_path, "clouds.yaml")
    original.write_text(yaml.safe_dump({"clouds": {"demo": {"auth": {"auth_url": "http://x/v3", "password": "p"}}}}))
    target = cloud.clouds_file(original, tmp_path / "faulty.yaml")
    assert target.stat().st_mode & 0o777 == 0o600
    written = yaml.safe_load(target.read_text())["clouds"]["demo"]["auth"]
    assert written == {"auth_url": cloud.auth_url, "password": "p"}

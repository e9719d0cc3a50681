# SPDX-License-Identifier: Apache-2.0
"""The client of the credentials service, which stands in here with a real authority; and what all modules share."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import x509 as library
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, csr, files, join, proxies, web

EEC = "/DC=dodas/O=tier3/OU=people/CN=alice"


@pytest.fixture
def service(ca, keys, monkeypatch):
    """Answers as the service does. Its attribute ``spoil`` may change the answer."""

    class Service:
        spoil = staticmethod(lambda answer: answer)

        def __init__(self):
            self.asked = []
            self.eec = ca.issue_eec(keys[0].public_key(), EEC, 3600)

        def call(self, url, data, headers, **options):
            body = json.loads(data)
            self.asked.append((url, body, headers, options))
            key = csr.public_key(body["csr"].encode())
            proxy = proxies.sign(self.eec, keys[0], key, 600, body.get("policy", "inherit-all"))
            pem = [files.certificate_pem(one).decode() for one in (proxy, self.eec)]
            return self.spoil({"certificate": pem[0], "chain": pem[1]})

    made = Service()
    monkeypatch.setattr(client, "call", made.call)
    return made


def test_what_the_service_is_asked(service, keys):
    options = {"cafile": "/ca", "timeout": 3, "resolve": {"a": "b"}}
    held = client.request_credential(
        "https://credentials.test/", "TOKEN", lifetime=60, policy="limited", delegation="d1", key=keys[2], **options
    )
    url, body, headers, passed = service.asked[0]
    assert url == "https://credentials.test/v1/credentials"
    assert headers["Authorization"] == "Bearer TOKEN"
    assert passed == options
    assert csr.public_key(body.pop("csr").encode()) == keys[2].public_key()
    assert body == {"kind": "proxy", "lifetime": 60, "policy": "limited", "delegation": "d1"}
    assert held.key is keys[2] and held.chain == (service.eec,)
    assert proxies.inspect(held.pem()).policy == "limited"
    client.request_credential("https://credentials.test", "TOKEN")
    assert set(service.asked[1][1]) == {"csr", "kind"}


def test_join_token_is_for_this_request(service):
    key = join.derive(b"s" * 32, "worker-1")
    client.request_credential(
        "https://credentials.test", make_token=lambda pem: join.make(key, "tier3", "worker-1", "https://aud", pem)
    )
    _url, body, headers, _options = service.asked[0]
    token = join.Verifier("tier3", b"s" * 32, "https://aud").verify(headers["Authorization"].removeprefix("Bearer "))
    assert token.claims["csr"] == join.digest(body["csr"].encode())


def test_answers_that_are_not_taken(service, ca, keys):
    other = ca.issue_eec(keys[1].public_key(), EEC, 60)
    for spoil, reason in (
        (lambda answer: {}, "no certificate"),
        (lambda answer: {**answer, "certificate": 7}, "no certificate"),
        (lambda answer: {**answer, "certificate": "PEM"}, "no certificate"),
        (lambda answer: {**answer, "chain": files.certificate_pem(other).decode()}, "chain is broken"),
        (lambda answer: {**answer, "certificate": answer["chain"], "chain": ""}, "for another key"),
    ):
        service.spoil = spoil
        with pytest.raises(client.ClientError, match=reason):
            client.request_credential("https://credentials.test", "SECRET-TOKEN")


# What all share


@pytest.fixture
def greedy(monkeypatch):
    """A web server on loopback that is also the proxy that the environment names; what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_CONNECT = do_GET

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server.server_port, asked
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_proxies_of_the_environment_are_for_the_world(greedy):
    port, asked = greedy
    assert web.fetch(f"http://127.0.0.1:{port}/path") == b"{}"
    assert asked == ["/path"]  # not by way of itself
    with pytest.raises(web.WebError):
        web.fetch("https://identity.test:1/", resolve={"identity.test": "127.0.0.1"}, timeout=5)
    assert asked == ["/path"]
    with pytest.raises(web.WebError):
        web.fetch("https://elsewhere.test:1/", timeout=5)
    assert asked == ["/path", "elsewhere.test:1"]


def test_every_module_imports_without_its_libraries():
    folder = Path(library.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    code = f"""
import sys, importlib
for name in ("cryptography", "joserfc"):
    sys.modules[name] = None
for name in {names!r}:
    importlib.import_module({library.__name__!r} + "." + name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(names) > 20

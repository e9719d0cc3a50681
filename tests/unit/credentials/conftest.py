# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the identity provider, and the real service behind TLS, both on loopback."""

import base64
import dataclasses
import http.server
import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from joserfc import jws
from joserfc.jwk import RSAKey

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files, tokens
from dodas.credentials import config as configuration
from dodas.credentials import server as servers
from dodas.credentials import service as services
from ports import free_port

SECRET = "s3cret+of/the:worker"


class StandIn:
    """An OpenID provider of sorts: discovery, keys, and client_credentials for the client ``worker``."""

    def __init__(self, credential):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(credential)
        self.port = free_port()
        self.issuer = f"https://localhost:{self.port}"
        self.fetches = 0
        self.generation = 0
        self.rotate()
        self._server = None
        self.start()

    def rotate(self):
        """New keys, and none of the old."""
        self.generation += 1
        self._kid = f"k{self.generation}"
        self._key = RSAKey.import_key(files.key_pem(csr.make_key()))

    def token(self, **changes):
        """A token for the service, signed with joserfc."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": "worker",
            "client_id": "worker",
            "aud": "https://credentials",
            "iat": now,
            "exp": now + 600,
            "scope": "x509",
        }
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return jws.serialize_compact(
            {"alg": "RS256", "kid": self._kid}, json.dumps(claims), self._key, ["RS256"]
        )

    def answer(self, path, headers, form):
        """(status, object) for one request."""
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.issuer,
                "jwks_uri": f"{self.issuer}/jwks",
                "token_endpoint": f"{self.issuer}/token",
            }
        if path == "/jwks":
            self.fetches += 1
            return 200, {"keys": [{**self._key.as_dict(private=False), "kid": self._kid, "use": "sig"}]}
        if path == "/redirect":
            return 302, {}
        if path == "/token":
            expected = base64.b64encode(f"worker:{urllib.parse.quote(SECRET, safe='')}".encode()).decode()
            said = headers.get("Authorization")
            if said != f"Basic {expected}" or form.get("grant_type") != "client_credentials":
                return 401, {"error": "invalid_client", "error_description": f"not {said}"}
            return 200, {"access_token": self.token(aud=form["audience"]), "token_type": "Bearer"}
        return 404, {}

    def start(self):
        """Listen."""
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length", 0))
                form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
                status, document = provider.answer(self.path, self.headers, form)
                body = json.dumps(document).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/jwks")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self):
                connection, address = super().get_request()
                wrapped = provider._context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                return wrapped, address

            def handle_error(self, *_args):
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """An outage."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@dataclasses.dataclass
class Running:
    """A service that runs in a thread, and how to talk to it."""

    service: services.Service
    server: object
    thread: threading.Thread
    url: str
    cafile: str

    def call(self, path, data=None, headers=None):
        """(status, headers, body) of one request."""
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        context = ssl.create_default_context(cafile=self.cafile)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def post(self, token, request, kind="proxy", **more):
        """(status, headers, JSON) of an order."""
        body = json.dumps({"csr": request.decode("latin-1"), "kind": kind, **more}).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        status, headers, body = self.call("/v1/credentials", body, headers)
        return status, headers, json.loads(body)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """The hosts' CA: its certificate, and a credential for localhost."""
    folder = tmp_path_factory.mktemp("pki")
    ca = authority.Authority.open(folder / "ca", "/DC=dodas/O=test/CN=hosts CA")
    key = csr.make_key()
    certificate = ca.issue_host(key.public_key(), "localhost", ["localhost"], ["127.0.0.1"])
    files.write(folder / "host.pem", files.credential_pem(certificate, key))
    return folder


@pytest.fixture
def provider(pki):
    standin = StandIn(pki / "host.pem")
    yield standin
    standin.stop()


@pytest.fixture
def configured(pki, provider, tmp_path):
    """The configuration as a mapping."""
    rule = {"issuer": provider.issuer, "lifetime": 3600}
    files.write(tmp_path / "state.key", base64.b64encode(bytes(32)))
    return {
        "deployment": "tier3",
        "listen": {
            "address": "127.0.0.1",
            "port": free_port(),
            "certfile": str(pki / "host.pem"),
            "keyfile": str(pki / "host.pem"),
        },
        "state_dir": str(tmp_path / "state"),
        "state_key_file": str(tmp_path / "state.key"),
        "issuers": [
            {
                "issuer": provider.issuer,
                "audience": "https://credentials",
                "cafile": str(pki / "ca" / "ca.pem"),
            }
        ],
        "rules": [
            {
                **rule,
                "name": "workers",
                "clients": ["worker"],
                "dn": "/DC=dodas/O=tier3/OU=workers/CN=worker-{hash}",
                "kinds": ["proxy"],
            },
            {
                **rule,
                "name": "people",
                "groups": ["/cms"],
                "dn": "/DC=dodas/O=tier3/OU=people/CN={sub} {hash}",
                "kinds": ["eec", "proxy"],
                "clip_to_token": True,
            },
            {
                **rule,
                "name": "hosts",
                "subjects": ["xrootd"],
                "dn": "/DC=dodas/O=tier3/OU=hosts/CN={sub} {hash}",
                "kinds": ["host"],
                "dns_names": ["xrootd.node.consul"],
            },
        ],
    }


@pytest.fixture
def start(pki, configured, tmp_path):
    """Start the service; again after stop() it is a restart."""
    started = []

    def run():
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(configured))
        config = configuration.load(path)
        service = services.Service(config)
        server = servers.server(config, service)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not start in 20 s"
            time.sleep(0.01)
        url = f"https://localhost:{config.listen.port}"
        started.append(Running(service, server, thread, url, str(pki / "ca" / "ca.pem")))
        return started[-1]

    yield run
    for running in started:
        running.stop()


@pytest.fixture
def running(start):
    return start()


@pytest.fixture(scope="session")
def request_key():
    return csr.make_key()


@pytest.fixture(scope="session")
def request_pem(request_key):
    return csr.make(request_key)


@pytest.fixture
def no_cooldown(monkeypatch):
    monkeypatch.setattr(tokens, "KEYS_COOLDOWN", 0)


@pytest.fixture
def openssl_accepts(tmp_path):
    """(certificates PEM text, CA directory) -> whether OpenSSL accepts the first."""

    def verify(pem, directory):
        path = tmp_path / "verify.pem"
        path.write_text(pem)
        command = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-x509_strict", "-no-CAfile"]
        command += ["-no-CAstore", "-CApath", str(directory), "-untrusted", str(path), str(path)]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    return verify

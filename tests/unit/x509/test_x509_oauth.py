# SPDX-License-Identifier: Apache-2.0
"""The client against the real provider and the real oidc-agent."""

import json
import socket
import ssl
import threading

import httpx
import pytest

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import agent, authority, client, csr, files, oauth, web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.tokens import parse
from identity_runtime import AUDIENCE, OPAQUE_AUDIENCE, SERVICE_SECRET, WORKER_SECRET, Identity
from oidc_agent_runtime import OidcAgent

NAME = "identity.test"
SCOPE = "openid offline_access x509 wlcg.groups"


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """The provider under a name that only ``resolve`` knows."""
    folder = tmp_path_factory.mktemp("provider")
    service = Identity(folder)
    ca = authority.Authority.open(folder / "ca", "/DC=test/CN=CA")
    key = csr.make_key()
    certificate = ca.issue_host(key.public_key(), NAME, [NAME], ["127.0.0.1"])
    files.write(service.config / "cert.pem", files.certificate_pem(certificate) + ca.ca_pem)
    files.write(service.config / "key.pem", files.key_pem(key))
    service.settings["issuer"] = f"https://{NAME}:{service.port}"
    service.cafile = str(folder / "ca" / "ca.pem")
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def options(provider):
    return {"cafile": provider.cafile, "resolve": {NAME: "127.0.0.1"}}


@pytest.fixture(scope="module")
def found(provider, options):
    return client.discover(provider.settings["issuer"], **options)


class Resolver(httpx.HTTPTransport):
    """A browser's resolver that knows the provider's name."""

    def handle_request(self, request):
        url = request.url
        request.url, request.extensions = url.copy_with(host="127.0.0.1"), {"sni_hostname": NAME, **request.extensions}
        try:
            return super().handle_request(request)
        finally:
            request.url = url


@pytest.fixture
def person(provider):
    transport = Resolver(verify=ssl.create_default_context(cafile=provider.cafile))
    with httpx.Client(base_url=provider.settings["issuer"], transport=transport, timeout=20) as browser:
        yield browser


def _signed_in(found, options, person, scope=SCOPE, **more):
    device = client.start_device(found["device_authorization_endpoint"], "dodas", scope, **more, **options)
    asked = []

    def approve(seconds):
        asked.append(seconds)
        if len(asked) == 1:
            _approve(person, device)

    answer = client.poll_device(found["token_endpoint"], "dodas", {**device, "interval": 1}, sleep=approve, **options)
    return answer, asked


def _approve(person, device):
    flows.approve(person, flows.sign_in(person, flows.open_login(person, device)))
    person.cookies.clear()


def test_discovery(provider, options, found):
    assert found["issuer"] == provider.settings["issuer"]
    assert client.token_endpoint(found["issuer"], **options) == found["token_endpoint"]
    with pytest.raises(client.ClientError, match="not the discovery document"):
        client.discover(found["issuer"] + "/", **options)
    with pytest.raises(client.ClientError, match="no nothing_endpoint"):
        client.endpoint(found, "nothing_endpoint")
    with pytest.raises(client.ClientError) as caught:
        client.discover(found["issuer"], cafile=provider.cafile, timeout=5)
    assert caught.value.status is None and caught.value.code is None


def test_client_credentials(found, options, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(WORKER_SECRET + "\n")
    assert client.fetch_token(found["token_endpoint"], "worker", secret, AUDIENCE, "x509", **options).count(".") == 2
    assert client.fetch_token(found["token_endpoint"], "worker", client_secret=WORKER_SECRET, scope="x509", **options)
    with pytest.raises(client.ClientError, match="invalid_client") as caught:
        client.fetch_token(found["token_endpoint"], "worker", client_secret="guess-guess", **options)
    assert (caught.value.code, caught.value.status) == ("invalid_client", 401)
    assert "guess" not in str(caught.value)
    with pytest.raises(client.ClientError, match="FileNotFoundError"):
        client.fetch_token(found["token_endpoint"], "worker", tmp_path / "none", **options)


def test_device_login_refresh_and_revocation(found, options, person):
    answer, asked = _signed_in(found, options, person)
    assert asked == [1.0]
    url = found["token_endpoint"]
    again = client.refresh_token(url, "dodas", answer["refresh_token"], **options)
    assert again["refresh_token"] != answer["refresh_token"]
    with pytest.raises(client.ClientError) as caught:  # a token that was rotated away is a theft
        client.refresh_token(url, "dodas", answer["refresh_token"], **options)
    assert caught.value.code == "invalid_grant"
    answer, _ = _signed_in(found, options, person)
    client.revoke_token(found["revocation_endpoint"], "dodas", answer["refresh_token"], **options)
    with pytest.raises(client.ClientError, match="invalid_grant"):
        client.refresh_token(url, "dodas", answer["refresh_token"], **options)


def test_device_of_somebody_who_says_no(found, options, person):
    device = client.start_device(found["device_authorization_endpoint"], "dodas", SCOPE, **options)

    def refuse(_seconds):
        action, fields = flows.form(person.get("/device"))
        answer = person.post(action, data={**fields, "user_code": device["user_code"]})
        action, fields = flows.form(answer)
        person.post(action, data={**fields, "abort": "yes"})

    with pytest.raises(client.ClientError) as caught:
        client.poll_device(found["token_endpoint"], "dodas", device, sleep=refuse, **options)
    assert caught.value.code == "access_denied"
    assert device["device_code"] not in str(caught.value)


def test_device_of_nobody(found, options):
    device = client.start_device(found["device_authorization_endpoint"], "dodas", SCOPE, **options)
    with pytest.raises(client.ClientError) as caught:
        client.poll_device(found["token_endpoint"], "dodas", {**device, "expires_in": 0.2, "interval": 1}, **options)
    assert caught.value.code == "expired_token"


def test_polling_slows_down_and_outlives_an_outage(monkeypatch):
    said = iter([("authorization_pending", 400), ("slow_down", 400), (None, None), (None, 503), (None, None)])
    slept = []

    def ask(url, **_options):
        code, status = next(said)
        if code is None and len(slept) == 4:
            return {"access_token": "t"}
        raise web.WebError(url, "no", status, json.dumps({"error": code}).encode() if code else b"")

    monkeypatch.setattr(web, "fetch_json", ask)
    device = {"device_code": "d", "expires_in": 600}
    assert client.poll_device("https://x/token", "c", device, sleep=slept.append) == {"access_token": "t"}
    assert slept == [5, 10, 20, 40]


def test_exchange_and_refresh_of_a_confidential_client(found, options, person):
    answer, _ = _signed_in(found, options, person)
    url = found["token_endpoint"]
    mine = client.exchange_token(
        url, "service", SERVICE_SECRET, answer["access_token"], AUDIENCE, "offline_access x509", **options
    )
    again = client.refresh_token(url, "service", mine["refresh_token"], SERVICE_SECRET, audience=AUDIENCE, **options)
    assert again["refresh_token"] != mine["refresh_token"]
    assert again["access_token"] != mine["access_token"]
    with pytest.raises(client.ClientError) as caught:
        client.exchange_token(url, "service", SERVICE_SECRET, "stolen.token.here", AUDIENCE, **options)
    assert caught.value.code == "invalid_grant"
    assert "stolen" not in str(caught.value)


def test_introspection(found, options):
    order = {"client_secret": WORKER_SECRET, "audience": OPAQUE_AUDIENCE, "scope": "x509"}
    token = client.fetch_token(found["token_endpoint"], "worker", **order, **options)
    assert "." not in token
    url = found["introspection_endpoint"]
    said = client.introspect_token(url, "worker", WORKER_SECRET, token, **options)
    assert said["active"] and said["client_id"] == "worker" and said["scope"] == "x509"
    client.revoke_token(found["revocation_endpoint"], "worker", token, WORKER_SECRET, "access_token", **options)
    assert client.introspect_token(url, "worker", WORKER_SECRET, token, **options) == {"active": False}
    assert client.introspect_token(url, "worker", WORKER_SECRET, "nonsense", **options) == {"active": False}


def test_secrets_of_all_characters(tmp_path):
    """The provider decodes what RFC 6749, 2.3.1 says to encode."""
    service = Identity(tmp_path)
    service.secrets["worker"] = secret = "".join(map(chr, range(0x20, 0x7F)))
    service.start()
    try:
        url, cafile = f"{service.url}/token", service.config / "cert.pem"
        assert client.fetch_token(url, "worker", client_secret=secret, scope="x509", cafile=cafile)
    finally:
        service.stop()


def test_answers_that_are_no_tokens(monkeypatch):
    for token in (None, "", "a b", ["x"], "a\r\nb"):
        body = {"access_token": token}
        monkeypatch.setattr(web, "fetch_json", lambda *_a, body=body, **_o: body)
        with pytest.raises(client.ClientError, match="no access token"):
            client.fetch_token("https://x/token", "c", client_secret="s")
    monkeypatch.setattr(web, "fetch_json", lambda *_a, **_o: {"access_token": "a", "refresh_token": 7})
    with pytest.raises(client.ClientError, match="no refresh token"):
        client.refresh_token("https://x/token", "c", "r")
    assert not oauth.is_token(None)


# oidc-agent


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory):
    """A real agent with the account ``iam``, and the provider's URL."""
    folder = tmp_path_factory.mktemp("a")
    service, secret = Identity(folder), "agent-secret-0123456789"
    service.settings["clients"].append(
        {"id": "agent", "grants": ["device_code", "refresh_token"], "scopes": SCOPE.split()}
    )
    service.secrets["agent"] = secret
    service.start()
    real = OidcAgent(folder / "a")
    try:
        more = {"client_secret": secret, "cafile": service.config / "cert.pem"}
        device = client.start_device(f"{service.url}/device/auth", "agent", SCOPE, **more)
        with service.client() as browser:
            _approve(browser, device)
        tokens = client.poll_device(f"{service.url}/token", "agent", device, **more)
        real.add("iam", service.url, "agent", secret, tokens["refresh_token"], service.config / "cert.pem", SCOPE)
        yield real, service.url
    finally:
        real.stop()
        service.stop()


def test_agent_gives_tokens(running_agent, monkeypatch):
    real, issuer = running_agent
    token = client.agent_token("iam", real.socket)
    assert parse(token)[1]["iss"] == issuer
    monkeypatch.setenv("OIDC_SOCK", real.socket)
    assert parse(client.agent_token(issuer))[1]["sub"] == "alice"
    assert parse(client.agent_token("iam", scope="openid x509"))[1]["scope"] == "x509"
    with pytest.raises(client.ClientError, match="nobody: No account"):
        client.agent_token("nobody")


def _answering(path, answer):
    """A stand-in for an agent that answers what no real one does; returns what it was asked."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    asked = []

    def serve():
        connection, _ = server.accept()
        with connection:
            asked.append(json.loads(connection.recv(4096)))
            connection.sendall(answer)
        server.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return asked


def test_agent_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("OIDC_SOCK", raising=False)
    with pytest.raises(client.ClientError, match="OIDC_SOCK is not set"):
        client.agent_token("iam")
    with pytest.raises(client.ClientError, match="No such file"):
        client.agent_token("iam", tmp_path / "none")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"status": "success"}', b"x" * 100_000])
def test_agent_that_answers_nonsense(tmp_path, answer):
    _answering(tmp_path / "s", answer)
    with pytest.raises(client.ClientError, match=f"oidc-agent at {tmp_path}"):
        client.agent_token("iam", str(tmp_path / "s"))


@pytest.mark.parametrize(("name", "key"), [("iam", "account"), ("https://iam.example/", "issuer")])
def test_agent_is_asked_as_its_protocol_says(tmp_path, name, key):
    answer = json.dumps({"status": "success", "access_token": "abc", "issuer": "https://x", "expires_at": 1})
    asked = _answering(tmp_path / "s", answer.encode())
    assert agent.agent_token(name, str(tmp_path / "s"), audience="a b", scope="s") == "abc"
    assert asked == [{"request": "access_token", key: name, "min_valid_period": 60, "application_hint": "dodas",
                      "audience": "a b", "scope": "s"}]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Lookup oidc_token against the real provider and the real oidc-agent."""

import functools
import json
import os
import stat
import threading
import time

import pytest
import yaml
from ansible import constants
from ansible.errors import AnsibleError

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.lookup import oidc_token
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import bearer
from ansible_collections.dodas.cluster.plugins.module_utils.x509.client import ClientError
from identity_runtime import AUDIENCE, WORKER_SECRET
from oidc_agent_runtime import OidcAgent

SCOPES = flows.SCOPES
OPTIONS = yaml.safe_load(oidc_token.DOCUMENTATION)["options"]
constants.config.initialize_plugin_configuration_definitions("lookup", "oidc_token", OPTIONS)
VARIABLES = ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "OIDC_SOCK")
UID = os.geteuid()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def lookup(**options):
    """The token that the lookup gives."""
    plugin = oidc_token.LookupModule()
    plugin._load_name = "oidc_token"
    (token,) = plugin.run([], {}, **options)
    return token


@pytest.fixture
def provider(identity):
    """The options that all who ask the provider need."""
    return {"issuer": identity.url, "cafile": str(identity.config / "cert.pem")}


def token_file(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


# what the machine has


def test_the_order_of_wlcg(monkeypatch, tmp_path):
    named = token_file(tmp_path / "named", " named.token\n")
    own = token_file(tmp_path / f"bt_u{UID}", "own.token\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert lookup() == "own.token"
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(named))
    assert lookup() == lookup(method="file") == "named.token"
    assert lookup(method="file", token_file=str(own)) == "own.token"
    monkeypatch.setenv("BEARER_TOKEN", "\tvariable.token \n")
    assert lookup() == lookup(method="environment") == "variable.token"
    monkeypatch.setenv("BEARER_TOKEN", "  ")
    assert lookup() == "named.token"


def test_the_last_place_is_tmp():
    # of a user that there is not, so that nobody's file is met
    with pytest.raises(ClientError, match=r"there is no /run/x/bt_u4000000 or /tmp/bt_u4000000$"):
        bearer.from_files({"XDG_RUNTIME_DIR": "/run/x"}, 4000000)
    with pytest.raises(ClientError, match=r"there is no /tmp/bt_u4000000$"):
        bearer.find({}, 4000000)


def test_a_place_that_is_named_must_hold_a_token(monkeypatch, tmp_path):
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "none"))
    token_file(tmp_path / f"bt_u{UID}", "own.token")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(AnsibleError, match=r"the token cannot be read: .*/none: No such file"):
        lookup()
    for text in ("", "two words", "s3cret\u00e9"):
        token_file(tmp_path / "none", text)
        with pytest.raises(AnsibleError, match=r"/none holds no token$"):
            lookup()
    monkeypatch.setenv("BEARER_TOKEN", "two s3cret-words")
    with pytest.raises(AnsibleError, match=r"BEARER_TOKEN holds no token$"):
        lookup()


def test_a_token_that_somebody_else_put_there_is_not_taken(tmp_path):
    path = token_file(tmp_path / "bt", "planted.token")
    assert bearer.read(path) == "planted.token"
    if UID == 0:
        os.chown(path, 4000000, 0)
        with pytest.raises(ClientError, match="belongs to another user"):
            bearer.read(path)
        assert bearer.read(path, 4000000) == "planted.token"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClientError, match="holds no token"):
        bearer.read(tmp_path / "pipe")


def test_a_token_that_ends_soon_is_said(monkeypatch, identity):
    with identity.client() as http:
        token = flows.worker(http).json()["access_token"]
    monkeypatch.setenv("BEARER_TOKEN", token)
    assert lookup() == token
    with pytest.raises(AnsibleError, match=r"the token ends in \d+ s: get a new one") as caught:
        lookup(min_lifetime=3600)
    assert token not in str(caught.value)
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(AnsibleError, match=r"the token ended \d+ s ago"):
        lookup()


# what the provider gives


def test_client_credentials(identity, provider, tmp_path):
    options = {**provider, "method": "client_credentials", "client_id": "worker", "scope": "x509"}
    secret = token_file(tmp_path / "secret", WORKER_SECRET + "\n")
    for given in ({"client_secret": WORKER_SECRET}, {"client_secret_file": str(secret)}):
        with identity.client() as http:
            claims = flows.claims(http, lookup(**options, **given, audience=AUDIENCE))
        assert (claims["client_id"], claims["aud"], claims["scope"]) == ("worker", AUDIENCE, "x509")
    unknown = provider["issuer"].replace("127.0.0.1", "identity.test")
    with pytest.raises(AnsibleError, match="certificate verify failed"):  # it was reached, and is not of that name
        lookup(**{**options, "issuer": unknown}, client_secret="x", resolve={"identity.test": "127.0.0.1"})
    with pytest.raises(AnsibleError, match="invalid_client") as caught:
        lookup(**options, client_secret="s3cret-canary")
    assert "canary" not in str(caught.value)
    with pytest.raises(AnsibleError, match="client_secret or client_secret_file is needed"):
        lookup(**options)


def refreshable(identity, path):
    with identity.client() as http:
        token_file(path, flows.device_tokens(http)["refresh_token"])
    return path


def test_a_refresh_token_that_is_replaced_is_kept(identity, provider, tmp_path):
    path = refreshable(identity, tmp_path / "refresh")
    options = {**provider, "method": "refresh_token", "client_id": "dodas", "refresh_token_file": str(path)}
    held = [path.read_text().strip()]
    for _ in range(3):
        with identity.client() as http:
            assert flows.claims(http, lookup(**options))["sub"]
        held.append(path.read_text().strip())
    assert len(set(held)) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(AnsibleError, match="it must be 0600") as caught:
        lookup(**options)
    assert held[-1] not in str(caught.value)
    token_file(path, "s3cret.canary")
    with pytest.raises(AnsibleError, match="invalid_grant") as caught:
        lookup(**options)
    assert "canary" not in str(caught.value)
    assert path.read_text() == "s3cret.canary"


def test_several_that_refresh_at_once_spend_each_token_once(identity, provider, tmp_path):
    path = refreshable(identity, tmp_path / "refresh")
    url = f"{identity.url}/token"
    got, failed = [], []

    def refresh():
        try:
            got.append(bearer.refresh(str(path), url, "dodas", cafile=provider["cafile"], timeout=20))
        except ClientError as error:
            failed.append(error)

    threads = [threading.Thread(target=refresh) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert len(got) == 6


class Shown:
    """What the lookup displays; `then` is called with it."""

    def __init__(self, then=lambda text: None):
        self.texts, self.then = [], then

    def display(self, text, **_options):
        self.texts.append(text)
        self.then(text)

    def vvv(self, text):
        self.texts.append(text)


@pytest.fixture
def shown(monkeypatch):
    """Replaces what shows; returns where that is put."""

    def use(stub):
        monkeypatch.setattr(oidc_token, "display", stub)
        return stub

    return use


def sign_in(identity, text):
    """What a person does who reads the text."""
    with identity.client() as http:
        flows.approve(http, flows.sign_in(http, flows.open_login(http, {"user_code": text.rpartition(" ")[2]})))


def test_device_code(identity, provider, shown, tmp_path):
    stub = shown(Shown(functools.partial(sign_in, identity)))
    path = tmp_path / "refresh"
    token = lookup(
        **provider, method="device_code", client_id="dodas", scope=SCOPES, refresh_token_file=str(path)
    )
    with identity.client() as http:
        claims = flows.claims(http, token)
    assert claims["wlcg.groups"] == ["/cms", "/cms/uscms"]
    assert stub.texts[0].startswith(f"To sign in, open {identity.url}/device in a browser and enter the code ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lookup(**provider, method="refresh_token", client_id="dodas", refresh_token_file=str(path))
    assert not any(token in text for text in stub.texts)


def test_nobody_who_signs_in_is_waited_for_until_the_deadline(provider, shown):
    shown(Shown())
    began = time.monotonic()
    with pytest.raises(AnsibleError, match="nobody signed in while the code was valid"):
        lookup(**provider, method="device_code", client_id="dodas", scope="openid", deadline=2)
    assert time.monotonic() - began < 15


def test_oidc_agent(identity, provider, shown, monkeypatch, tmp_path_factory):
    agent = OidcAgent(tmp_path_factory.mktemp("a"))
    try:
        shown(Shown(functools.partial(sign_in, identity)))
        secret, path = identity.secrets["agent"], tmp_path_factory.mktemp("r") / "refresh"
        given = {"client_id": "agent", "client_secret": secret, "scope": SCOPES, "refresh_token_file": str(path)}
        lookup(**provider, **given, method="device_code")
        agent.add("iam", identity.url, "agent", secret, path.read_text().strip(), provider["cafile"], SCOPES)
        with identity.client() as http:
            claims = flows.claims(http, lookup(method="oidc_agent", account="iam", socket=agent.socket))
            assert claims["wlcg.groups"] == ["/cms", "/cms/uscms"]
            monkeypatch.setenv("OIDC_SOCK", agent.socket)
            assert flows.claims(http, lookup(method="oidc_agent", issuer=identity.url, scope="x509"))["scope"] == "x509"
        with pytest.raises(AnsibleError, match="nobody"):
            lookup(method="oidc_agent", account="nobody")
    finally:
        agent.stop()
    with pytest.raises(AnsibleError, match=f"oidc-agent at {agent.socket}: "):
        lookup(method="oidc_agent", account="iam")


# through Ansible


def test_options_that_are_missing_are_named():
    for options, said in [
        ({"method": "client_credentials", "client_secret": "x"}, "issuer is needed"),
        ({"method": "refresh_token", "issuer": "https://x"}, "refresh_token_file is needed"),
        ({"method": "device_code", "issuer": "https://x"}, "client_id is needed"),
        ({"method": "oidc_agent"}, "issuer is needed"),
        ({"method": "environment"}, "BEARER_TOKEN is not set"),
        ({"method": "password"}, "password"),
    ]:
        with pytest.raises(AnsibleError, match=said):
            lookup(**options)


def test_in_a_play_the_token_is_in_no_output(ansible, provider):
    secret = {"x": WORKER_SECRET}
    expression = (
        "{{ lookup('dodas.cluster.oidc_token', method='client_credentials', client_id='worker', client_secret=x, "
        f"issuer='{provider['issuer']}', cafile='{provider['cafile']}') }}}}"
    )
    fact = ("ansible.builtin.set_fact", {"token": expression}, {"no_log": True, "vars": secret})
    use = ("ansible.builtin.assert", {"that": "token.split('.') | length == 3", "quiet": True})
    wrong = ("ansible.builtin.set_fact", {"token": expression}, {"vars": {"x": "s3cret-canary"}})
    run = ansible.play(fact, use, wrong, options=["-vvv"])
    assert not run.results[1]["failed"]
    assert "invalid_client" in run.results[2]["msg"]
    assert "eyJ" not in run.output and WORKER_SECRET not in run.output and "canary" not in json.dumps(run.results)

# SPDX-License-Identifier: Apache-2.0
"""Opaque tokens of the real provider, replays, and the profile of WLCG."""

import base64
import dataclasses
import threading
import time
from unittest import mock

import pytest

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    claims,
    client,
    introspection,
    oauth,
    tokens,
    web,
)
from identity_runtime import AUDIENCE, OPAQUE_AUDIENCE, OTHER_AUDIENCE, SERVICE_SECRET, WORKER_SECRET, Identity

ORDER = {"client_id": "worker", "client_secret": WORKER_SECRET, "scope": "x509 wlcg.groups"}


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    service = Identity(tmp_path_factory.mktemp("opaque"))
    service.cafile = str(service.config / "cert.pem")
    service.start()
    (service.config / "secret").write_text(SERVICE_SECRET)
    yield service
    service.stop()


@pytest.fixture
def issuer(provider):
    return tokens.Issuer(
        provider.url, OPAQUE_AUDIENCE, provider.cafile, client_id="service",
        client_secret_file=str(provider.config / "secret"),
    )  # fmt: skip


@pytest.fixture
def fetch(provider):
    """A new token of the worker's."""

    def fetch(audience=OPAQUE_AUDIENCE):
        return client.fetch_token(provider.url + "/token", audience=audience, cafile=provider.cafile, **ORDER)

    return fetch


@pytest.fixture
def asked(monkeypatch):
    """The addresses that the introspector asks."""
    seen = []
    real = oauth.introspect_token

    def introspect(url, *arguments, **options):
        seen.append(url)
        return real(url, *arguments, **options)

    monkeypatch.setattr(introspection.oauth, "introspect_token", introspect)
    return seen


def reason(verifier, text):
    with pytest.raises(tokens.TokenError) as caught:
        verifier.verify(text)
    assert not text or text not in str(caught.value)
    return caught.value.reason


def test_opaque_token_until_it_is_revoked(provider, issuer, fetch, asked, monkeypatch):
    verifier, text = tokens.Verifier([issuer]), fetch()
    token = verifier.verify(text)
    assert (token.issuer, token.subject, token.client) == (provider.url, "worker", "worker")
    assert (token.scopes, token.groups) == (("x509", "wlcg.groups"), ("/w",))
    assert time.time() < token.expires <= time.time() + 600
    assert verifier.verify(text) == token
    assert len(asked) == 1
    endpoint = client.discover(provider.url, cafile=provider.cafile)["revocation_endpoint"]
    client.revoke_token(endpoint, "worker", text, WORKER_SECRET, cafile=provider.cafile)
    assert verifier.verify(text)  # for a minute
    later = time.time() + 61
    monkeypatch.setattr(introspection.time, "time", lambda: later)
    assert reason(verifier, text) == "inactive"
    assert len(asked) == 2
    assert reason(verifier, text) == "inactive"
    assert len(asked) == 2


def test_audience_and_scope_of_opaque_tokens(issuer, fetch):
    assert reason(tokens.Verifier([dataclasses.replace(issuer, audience=AUDIENCE)]), fetch()) == "audience"
    strict = dataclasses.replace(issuer, required_scope="tts:x509")
    assert reason(tokens.Verifier([strict]), fetch()) == "insufficient_scope"


def test_refresh_tokens_are_no_access_tokens(provider, issuer, asked):
    with provider.client() as browser:
        held = flows.device_tokens(browser)
    assert introspection.is_opaque(held["refresh_token"])
    assert reason(tokens.Verifier([issuer]), held["refresh_token"]) in ("type", "inactive")
    assert len(asked) == 1


def test_what_looks_like_a_jwt_is_shown_to_nobody(issuer, fetch, asked):
    verifier = tokens.Verifier([issuer])
    jwt = fetch(AUDIENCE)
    header, _payload, signature = jwt.split(".")
    payload = base64.urlsafe_b64encode(b'{"iss": "https://evil.example"}').decode().rstrip("=")
    hostile = (f"{header}.{payload}.{signature}", jwt + ".x.y", jwt.rpartition(".")[0], header, "a.b.c")
    for text in (jwt, *hostile, "short", "white space", "", "\N{LATIN SMALL LETTER E WITH ACUTE}" * 20):
        assert reason(verifier, text)
    assert asked == []


def test_issuers_are_asked_in_order(provider, issuer, fetch, asked, tmp_path):
    """First one that has no client of ours, then one that is down, then the one that knows it."""
    dead = dataclasses.replace(issuer, issuer="https://127.0.0.1:1")
    other = tokens.Issuer("https://127.0.0.1:2", OPAQUE_AUDIENCE, provider.cafile)
    verifier = tokens.Verifier([other, dead, issuer])
    assert verifier.verify(fetch()).issuer == provider.url
    with pytest.raises(tokens.KeysUnavailable):  # the one that is down could know it
        verifier.verify("unknown-to-everybody")
    assert reason(tokens.Verifier([issuer]), "unknown-to-everybody") == "inactive"
    assert reason(tokens.Verifier([other]), fetch()) == "malformed"
    unread = dataclasses.replace(issuer, client_secret_file=str(tmp_path / "none"))
    assert reason(tokens.Verifier([unread]), fetch()) == "introspection_unavailable"


def test_silent_issuer_is_left_alone(issuer, monkeypatch):
    tried = []

    def fail(url, **_options):
        tried.append(url)
        raise web.WebError(url, "timed out")

    monkeypatch.setattr(web, "fetch_json", fail)
    verifier = tokens.Verifier([issuer])
    for number in range(20):
        assert reason(verifier, f"stranger-{number}") == "introspection_unavailable"
    assert len(tried) == 1


def test_introspection_elsewhere(issuer, monkeypatch):
    """A discovery document that leads to another host gets neither the token nor our secret."""
    for address in ("https://evil.example/introspect", "http://169.254.169.254/", ["x"]):
        document = {"issuer": issuer.issuer, "introspection_endpoint": address}
        fetch = mock.Mock(return_value=document)
        monkeypatch.setattr(web, "fetch_json", fetch)
        assert reason(tokens.Verifier([issuer]), "opaque-token") == "introspection_unavailable"
        assert fetch.call_count == 1


def test_issuer_without_introspection(issuer, monkeypatch):
    monkeypatch.setattr(web, "fetch_json", lambda _url, **_options: {"issuer": issuer.issuer})
    assert reason(tokens.Verifier([issuer]), "opaque-token") == "inactive"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"iss": "https://evil.example"}, "unknown_issuer"),
        ({"exp": ...}, "missing_claim"),
        ({"exp": 1}, "expired"),
        ({"aud": ...}, "audience"),
        ({"sub": ...}, "missing_claim"),
        ({"scope": ...}, "missing_claim"),
        ({"token_type": ...}, "type"),
        ({"token_type": "refresh_token"}, "type"),
        ({"nbf": 2**33}, "not_yet_valid"),
        ({"active": "true"}, "introspection_unavailable"),
        ({"active": ...}, "introspection_unavailable"),
    ],
)
def test_answers_about_tokens_are_checked(issuer, monkeypatch, change, expected):
    answer = {"active": True, "exp": int(time.time()) + 60, "aud": OPAQUE_AUDIENCE, "sub": "s", "scope": "x",
              "token_type": "Bearer"}  # fmt: skip
    said = {name: value for name, value in {**answer, **change}.items() if value is not ...}
    document = {"issuer": issuer.issuer, "introspection_endpoint": issuer.issuer + "/i"}
    monkeypatch.setattr(web, "fetch_json", lambda url, **_o: said if url.endswith("/i") else document)
    assert reason(tokens.Verifier([issuer]), "opaque-token") == expected
    said = answer
    assert tokens.Verifier([issuer]).verify("opaque-token").subject == "s"


def test_memory_of_opaque_tokens_is_bounded(issuer, monkeypatch):
    monkeypatch.setattr(introspection, "CACHE_ENTRIES", 5)
    document = {"issuer": issuer.issuer, "introspection_endpoint": issuer.issuer + "/i"}
    monkeypatch.setattr(web, "fetch_json", lambda url, **_o: {"active": False} if url.endswith("/i") else document)
    verifier = tokens.Verifier([issuer])
    for number in range(20):
        assert reason(verifier, f"stranger-{number}") == "inactive"
    assert len(verifier._introspector._answers) == 5


# Replays


@pytest.fixture
def jwt_issuer(provider):
    return tokens.Issuer(provider.url, AUDIENCE, provider.cafile)


def test_a_token_is_taken_once(jwt_issuer, fetch):
    verifier, text = tokens.Verifier([jwt_issuer], replay=True), fetch(AUDIENCE)
    taken, lock = [], threading.Lock()

    def take():
        try:
            verifier.verify(text)
            outcome = "taken"
        except tokens.TokenError as error:
            outcome = error.reason
        with lock:
            taken.append(outcome)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == ["replayed"] * 7 + ["taken"]
    assert verifier.verify(fetch(AUDIENCE))
    assert tokens.Verifier([jwt_issuer]).verify(text)


def _token():
    return tokens.Token("i", "s", None, (), (), 0, time.time() + 60, {})


def test_an_opaque_token_is_taken_once(issuer, fetch):
    verifier, text = tokens.Verifier([issuer], replay=True), fetch()
    assert verifier.verify(text)
    assert reason(verifier, text) == "replayed"
    assert verifier.verify(fetch())


def test_memory_of_replays_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens, "MAX_REPLAYS", 3)
    seen = tokens.Seen()
    for number in "abc":
        seen.add(_token(), number)
    with pytest.raises(tokens.KeysUnavailable):  # rather than forget one
        seen.add(_token(), "d")
    with pytest.raises(tokens.TokenError, match="used before"):
        seen.add(_token(), "a")
    later = time.time() + 60 + tokens.LEEWAY + 1
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    seen.add(_token(), "a")
    assert len(seen._until) == 1


@pytest.mark.parametrize("number", [None, "", 7, ["x"]])
def test_replays_need_a_number(number):
    with pytest.raises(tokens.TokenError, match="no jti"):
        tokens.Seen().add(_token(), number)


# The profile of WLCG


def _claims(**changes):
    now = int(time.time())
    return {"iss": "https://i", "sub": "s", "aud": AUDIENCE, "iat": now, "exp": now + 60, "scope": "x", **changes}


def _check(issuer_changes=None, **changes):
    return claims.check(_claims(**changes), tokens.Issuer("https://i", AUDIENCE, **(issuer_changes or {})), time.time())


def test_versions_of_the_profile():
    for version in ("1.0", "1.2", "1.999"):
        assert _check(**{"wlcg.ver": version})
    for version in ("2.0", "1", "1.", "1.0.0", "1.x", "", " 1.0", 1.0, ["1.0"], "1.0\n"):
        with pytest.raises(tokens.TokenError) as caught:
            _check(**{"wlcg.ver": version})
        assert caught.value.reason == "profile"


def test_any_audience_only_where_it_is_configured():
    anybody = {"aud": [OTHER_AUDIENCE, "x"]}
    with pytest.raises(tokens.TokenError, match="not for"):
        _check(**anybody)
    assert _check({"accept_any_audience": True}, **anybody)
    with pytest.raises(tokens.TokenError, match="not for"):
        _check({"accept_any_audience": True}, aud=["x"])


def test_groups_of_another_claim_only_where_it_is_configured():
    held = {"wlcg.groups": ["/cms"], "groups": ["/cms", "admins"]}
    assert _check(**held).groups == ("/cms",)
    assert _check({"groups_claim": "groups"}, **held).groups == ("/cms", "admins")
    assert _check({"groups_claim": "entitlements"}, **held).groups == ("/cms",)
    for wrong in ("admins", {"a": 1}, [7], None):
        with pytest.raises(tokens.TokenError, match="groups is not a list"):
            _check({"groups_claim": "groups"}, groups=wrong)

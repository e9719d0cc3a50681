# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import re
import stat
import subprocess
import time
from urllib.parse import parse_qs, urlsplit

import pytest

import identity_flows as flows
from identity_runtime import (
    AUDIENCE,
    OPAQUE_AUDIENCE,
    OTHER_AUDIENCE,
    PASSWORD,
    SERVICE_SECRET,
    WORKER_SECRET,
    make_certificate,
    scrypt,
)


def test_discovery_names_the_issuer_whatever_the_host_header_says(identity, http):
    answer = http.get(
        "/.well-known/openid-configuration",
        headers={"host": "evil.example", "x-forwarded-host": "evil.example", "x-forwarded-proto": "http"},
    ).json()
    assert answer["issuer"] == identity.url
    assert answer["token_endpoint"] == f"{identity.url}/token"
    assert answer["device_authorization_endpoint"] == f"{identity.url}/device/auth"
    assert flows.EXCHANGE in answer["grant_types_supported"]
    assert "end_session_endpoint" not in answer and "userinfo_endpoint" not in answer


def test_health(http):
    answer = http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_published_keys_are_public(http):
    keys = http.get("/jwks").json()["keys"]
    assert [key["alg"] for key in keys] == ["RS256", "ES256"]
    assert not any("d" in key for key in keys)


# --- services


def test_client_credentials_follow_rfc_9068_and_wlcg(identity, http):
    answer = flows.worker(http)
    assert answer.status_code == 200
    token = answer.json()["access_token"]
    first = token.split(".")[0]
    assert json.loads(base64.urlsafe_b64decode(first + "=="))["typ"] == "at+jwt"
    claims = flows.claims(http, token)
    assert claims["iss"] == identity.url
    assert claims["aud"] == AUDIENCE
    assert claims["sub"] == claims["client_id"] == "worker"
    assert claims["scope"] == "x509 wlcg.groups"
    assert claims["wlcg.ver"] == "1.0"
    assert claims["wlcg.groups"] == ["/w"]
    assert claims["exp"] - claims["iat"] == 600 == answer.json()["expires_in"]
    assert claims["nbf"] <= time.time() and claims["jti"]


def test_groups_only_on_request(http):
    assert "wlcg.groups" not in flows.claims(http, flows.worker(http, scope="x509").json()["access_token"])


def test_another_audience(http):
    token = flows.worker(http, resource=OTHER_AUDIENCE).json()["access_token"]
    assert flows.claims(http, token)["aud"] == OTHER_AUDIENCE


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"secret": "wrong"}, 401, "invalid_client"),
        ({"secret": ""}, 400, "invalid_request"),
        ({"resource": "https://elsewhere.test"}, 400, "invalid_target"),
        ({"scope": "openid offline_access"}, 400, "invalid_scope"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
    ],
)
def test_client_credentials_refused(http, change, status, error):
    answer = flows.worker(http, **change)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


# --- people


def test_device_flow(http):
    device = flows.start_device(http)
    assert flows.poll(http, device).json()["error"] == "authorization_pending"
    page = flows.open_login(http, device)
    assert "&lt;dodas&gt;" in page.text and "<dodas>" not in page.text

    wrong = flows.sign_in(http, page, password="wrong", name="<b>")
    assert wrong.status_code == 401
    assert "is wrong" in wrong.text and "&lt;b&gt;" in wrong.text and "<b>" not in wrong.text

    consent = flows.sign_in(http, wrong)
    assert "Allow access?" in consent.text and "alice" in consent.text and AUDIENCE in consent.text
    assert flows.poll(http, device).json()["error"] == "authorization_pending"
    assert "Signed in" in flows.approve(http, consent).text

    answer = flows.poll(http, device).json()
    claims = flows.claims(http, answer["access_token"])
    assert (claims["sub"], claims["client_id"], claims["aud"]) == ("alice", "dodas", AUDIENCE)
    assert claims["scope"] == "x509 wlcg.groups"
    assert claims["wlcg.groups"] == ["/cms", "/cms/uscms"]
    assert flows.claims(http, answer["id_token"])["sub"] == "alice"
    assert flows.poll(http, device).json()["error"] == "invalid_grant"


def test_pages_are_self_contained(http):
    page = flows.open_login(http, flows.start_device(http))
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "form-action 'self' http://127.0.0.1:*" in policy
    style = re.search(r"<style>(.*?)</style>", page.text, re.S)[1]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"(src|href)=|@import|https?://(?!127)", page.text)
    assert all("httponly" in line.lower() and "secure" in line.lower() for line in cookies(http))


def cookies(http):
    answer = http.get("/device")
    return [value for name, value in answer.headers.multi_items() if name == "set-cookie" and "expires" not in value]


def test_a_user_who_cancels(http):
    device = flows.start_device(http)
    page = flows.open_login(http, device)
    flows.follow(http, http.post(flows.form(page)[0].replace("/login", "/cancel")))
    assert flows.poll(http, device).json()["error"] == "access_denied"


def test_forms_of_other_sites_are_refused(identity, http):
    page = flows.open_login(http, flows.start_device(http))
    assert flows.sign_in(http, page, headers={"origin": "https://evil.example"}).status_code == 400
    assert flows.sign_in(http, page, headers={"origin": identity.url}).status_code == 200
    with identity.client() as stranger:
        assert flows.sign_in(stranger, page).status_code == 400


def test_consent_cannot_be_given_before_signing_in(http):
    device = flows.start_device(http)
    action = flows.form(flows.open_login(http, device))[0]
    assert http.post(action.replace("/login", "/consent")).status_code == 400
    assert flows.poll(http, device).json()["error"] == "authorization_pending"


def test_an_oversized_form(http):
    page = flows.open_login(http, flows.start_device(http))
    assert flows.sign_in(http, page, password="x" * 10_000).status_code == 400


def authorize(http, **changes):
    verifier = "v" * 50
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": "dodas",
        "response_type": "code",
        "redirect_uri": "http://127.0.0.1:4711/callback",
        "scope": flows.SCOPES,
        "prompt": "consent",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        **changes,
    }
    query = {name: value for name, value in query.items() if value}
    return flows.follow(http, http.get("/auth", params=query)), query["redirect_uri"], verifier


def test_authorization_code(http):
    page, redirect_uri, _ = authorize(http)
    answer = flows.approve(http, flows.sign_in(http, page))
    assert answer.headers["location"].startswith(redirect_uri)
    code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
    data = {"grant_type": "authorization_code", "client_id": "dodas", "code": code, "redirect_uri": redirect_uri}
    assert http.post("/token", data={**data, "code_verifier": "w" * 50}).status_code == 400

    page, redirect_uri, verifier = authorize(http)  # a session exists: only consent is asked
    answer = flows.approve(http, page)
    data["code"] = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
    tokens = http.post("/token", data={**data, "code_verifier": verifier}).json()
    assert flows.claims(http, tokens["access_token"])["sub"] == "alice"
    assert tokens["refresh_token"]


def test_public_clients_need_pkce(http):
    answer, _, _ = authorize(http, code_challenge=None, code_challenge_method=None)
    assert "error=invalid_request" in answer.headers["location"]


def test_redirects_only_to_registered_addresses(http):
    answer, _, _ = authorize(http, redirect_uri="http://evil.example/callback")
    assert answer.status_code == 400


# --- refresh


def test_refresh_rotates_and_reuse_revokes_the_grant(http):
    first = flows.device_tokens(http)
    second = flows.refresh(http, first["refresh_token"])
    assert second.status_code == 200
    assert second.json()["refresh_token"] != first["refresh_token"]
    claims = flows.claims(http, second.json()["access_token"])
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("alice", AUDIENCE, "x509 wlcg.groups")

    assert flows.refresh(http, first["refresh_token"]).json()["error"] == "invalid_grant"
    # Whoever used it a second time may be a thief: the whole chain is gone.
    assert flows.refresh(http, second.json()["refresh_token"]).json()["error"] == "invalid_grant"


def test_refresh_with_less_scope(http):
    token = flows.device_tokens(http)["refresh_token"]
    answer = flows.refresh(http, token, scope="x509")
    assert flows.claims(http, answer.json()["access_token"])["scope"] == "x509"


def test_two_refreshes_at_once_make_one_token(http):
    token = flows.device_tokens(http)["refresh_token"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: flows.refresh(http, token), range(8)))
    assert sum(answer.status_code == 200 for answer in answers) <= 1


def test_revocation(http):
    token = flows.device_tokens(http)["refresh_token"]
    assert http.post("/token/revocation", data={"client_id": "dodas", "token": token}).status_code == 200
    assert flows.refresh(http, token).json()["error"] == "invalid_grant"


def test_no_refresh_token_without_offline_access(http):
    assert "refresh_token" not in flows.device_tokens(http, scope="openid x509")


# --- token exchange


def test_exchange_for_a_refresh_token(identity, http):
    subject = flows.device_tokens(http)["access_token"]
    answer = flows.exchange(http, subject, scope="x509 wlcg.groups offline_access")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["issued_token_type"] == flows.ACCESS_TOKEN
    claims = flows.claims(http, body["access_token"])
    assert (claims["sub"], claims["client_id"], claims["wlcg.groups"]) == ("alice", "service", ["/cms", "/cms/uscms"])
    assert claims["exp"] <= flows.claims(http, subject)["exp"] + 1

    auth = ("service", flows.SERVICE_SECRET)
    data = {"grant_type": "refresh_token", "refresh_token": body["refresh_token"]}
    assert http.post("/token", data={**data, "client_id": "dodas"}).json()["error"] == "invalid_grant"
    again = http.post("/token", auth=auth, data=data)
    assert again.status_code == 200, again.text
    claims = flows.claims(http, again.json()["access_token"])
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("alice", AUDIENCE, "x509 wlcg.groups")


def test_exchange_takes_an_audience(http):
    subject = flows.device_tokens(http)["access_token"]
    body = flows.exchange(http, subject, audience=OTHER_AUDIENCE).json()
    assert flows.claims(http, body["access_token"])["aud"] == OTHER_AUDIENCE
    assert "refresh_token" not in body
    assert flows.exchange(http, subject, audience="https://elsewhere.test").json()["error"] == "invalid_target"


def test_exchange_gives_no_more_than_the_subject_token(http):
    subject = flows.device_tokens(http, scope="openid x509")["access_token"]
    assert flows.exchange(http, subject, scope="x509 wlcg.groups").json()["error"] == "invalid_scope"
    assert flows.exchange(http, subject).json()["scope"] == "x509"


def test_exchange_refuses_other_tokens(http):
    tokens = flows.device_tokens(http)
    head, body, signature = tokens["access_token"].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode()
    refused = [
        tokens["id_token"],
        tokens["refresh_token"],
        flows.worker(http).json()["access_token"],
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        f"{none}.{body}.",
        "x" * 20_000,
    ]
    for token in refused:
        assert flows.exchange(http, token).status_code == 400
    wrong_type = flows.exchange(http, tokens["access_token"], subject_token_type="urn:x")
    assert wrong_type.json()["error"] == "invalid_request"
    public = {"grant_type": flows.EXCHANGE, "client_id": "dodas", "subject_token": tokens["access_token"]}
    assert http.post("/token", data=public).status_code == 400


# --- opaque tokens: introspection and revocation


def introspect(http, token, auth=("service", SERVICE_SECRET), **data):
    return http.post("/token/introspection", auth=auth, data={"token": token, **data})


def test_opaque_tokens_are_introspected(identity, http):
    token = flows.worker(http, resource=OPAQUE_AUDIENCE).json()["access_token"]
    assert "." not in token
    answer = introspect(http, token).json()
    assert answer["active"] is True
    assert (answer["iss"], answer["aud"], answer["scope"]) == (identity.url, OPAQUE_AUDIENCE, "x509 wlcg.groups")
    assert (answer["sub"], answer["client_id"], answer["wlcg.groups"]) == ("worker", "worker", ["/w"])
    assert answer["exp"] - answer["iat"] == 600
    user = flows.device_tokens(http, resource=OPAQUE_AUDIENCE)["access_token"]
    answer = introspect(http, user).json()
    assert (answer["sub"], answer["client_id"], answer["wlcg.groups"]) == ("alice", "dodas", ["/cms", "/cms/uscms"])


def test_introspection_says_nothing_of_tokens_that_are_none(http):
    for token in ("guessed", "x" * 5000):
        assert introspect(http, token).json() == {"active": False}
    token = flows.worker(http).json()["access_token"]
    assert introspect(http, token).json()["error"] == "unsupported_token_type"  # JWTs speak for themselves


def test_introspection_is_for_clients_with_a_secret(http):
    token = flows.worker(http, resource=OPAQUE_AUDIENCE).json()["access_token"]
    assert introspect(http, token, auth=("service", "wrong-secret-0123456789")).status_code == 401
    assert introspect(http, token, auth=None).status_code == 400
    assert introspect(http, token, auth=None, client_id="dodas").json() == {"active": False}
    own = flows.device_tokens(http, resource=OPAQUE_AUDIENCE)["access_token"]
    assert introspect(http, own, auth=None, client_id="dodas").json()["active"] is True


def test_a_revoked_opaque_token_is_inactive(http):
    worker = ("worker", WORKER_SECRET)
    token = flows.worker(http, resource=OPAQUE_AUDIENCE).json()["access_token"]
    refused = http.post("/token/revocation", auth=("service", SERVICE_SECRET), data={"token": token})
    assert (refused.status_code, introspect(http, token).json()["active"]) == (400, True)
    assert http.post("/token/revocation", auth=worker, data={"token": token}).status_code == 200
    assert introspect(http, token).json() == {"active": False}


# --- keys


def key_ids(http):
    return [key["kid"] for key in http.get("/jwks").json()["keys"]]


def signed_by(token):
    return json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"]


def test_new_keys_sign_while_the_old_stay_published(fresh):
    fresh.start()
    with fresh.client() as http:
        before, old = key_ids(http), flows.worker(http).json()["access_token"]
        refresh_token = flows.device_tokens(http)["refresh_token"]
        fresh.rotate()
        after, new = key_ids(http), flows.worker(http).json()["access_token"]
        assert after[2:] == before and len(set(after)) == 4
        assert (signed_by(old), signed_by(new)) == (before[0], after[0])
        assert flows.claims(http, old)["sub"] == flows.claims(http, new)["sub"] == "worker"
        answer = flows.refresh(http, refresh_token)
        assert answer.status_code == 200
        assert flows.exchange(http, answer.json()["access_token"]).status_code == 200
        assert not any("d" in key for key in http.get("/jwks").json()["keys"])
    fresh.restart()
    with fresh.client() as http:
        assert key_ids(http) == after


def test_keys_go_when_what_they_signed_has_expired(fresh):
    fresh.start()
    fresh.rotate()
    path = fresh.state / "jwks.json"

    def age(**seconds):
        keys = json.loads(path.read_text())["keys"]
        for key in keys:
            key.update({name: key[name] - past for name, past in seconds.items() if name in key})
        path.write_text(json.dumps({"keys": keys}))
        fresh.restart()
        with fresh.client() as http:
            return key_ids(http)

    with fresh.client() as http:
        four = key_ids(http)
    assert age(retired=600) == four  # of tokens that live for 600 s; clocks may differ
    assert age(retired=600) == four[:2]
    assert age(made=89 * 86400) == four[:2]
    six = age(made=2 * 86400)  # 90 days are the default
    assert six[2:] == four[:2] and len(six) == 4


# --- passwords


def test_login_back_off(fresh):
    fresh.start()
    with fresh.client() as http:
        page = flows.open_login(http, flows.start_device(http))
        for _ in range(5):
            assert flows.sign_in(http, page, password="wrong").status_code == 401
        paused = flows.sign_in(http, page)
        assert paused.status_code == 429 and int(paused.headers["retry-after"]) <= 2
        time.sleep(int(paused.headers["retry-after"]) + 0.1)
        assert flows.sign_in(http, page, password="wrong").status_code == 401
        paused = flows.sign_in(http, page)
        assert paused.status_code == 429 and 2 < int(paused.headers["retry-after"]) <= 4
        time.sleep(int(paused.headers["retry-after"]) + 0.1)
        assert "Allow access?" in flows.sign_in(http, page).text


def test_parallel_guesses_gain_nothing(fresh):
    fresh.start()
    with fresh.client() as http:
        page = flows.open_login(http, flows.start_device(http))
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda n: flows.sign_in(http, page, password=f"guess {n}"), range(12)))
    assert sum(answer.status_code == 401 for answer in answers) == 5


# --- state and files


def test_restart_keeps_keys_and_refresh_tokens(fresh):
    fresh.start()
    with fresh.client() as http:
        keys = http.get("/jwks").json()
        token = flows.device_tokens(http)["refresh_token"]
        device = flows.start_device(http)
    fresh.restart()
    with fresh.client() as http:
        assert http.get("/jwks").json() == keys
        renewed = flows.refresh(http, token)
        assert renewed.status_code == 200
        assert flows.poll(http, device).json()["error"] == "authorization_pending"
    fresh.restart()
    with fresh.client() as http:
        assert flows.refresh(http, token).json()["error"] == "invalid_grant"


def test_a_user_who_is_removed_cannot_refresh(fresh):
    fresh.start()
    with fresh.client() as http:
        token = flows.device_tokens(http)["refresh_token"]
    fresh.settings["users"] = []
    fresh.restart()
    with fresh.client() as http:
        assert flows.refresh(http, token).json()["error"] == "invalid_grant"


def test_state_is_private_and_the_log_has_no_secrets(fresh):
    fresh.start()
    with fresh.client() as http:
        tokens = flows.device_tokens(http)
        worker = flows.worker(http).json()["access_token"]
        flows.worker(http, secret="guessed-secret-9876")
        flows.exchange(http, tokens["access_token"])
        flows.refresh(http, "guessed-refresh-token")
        page = flows.open_login(http, flows.start_device(http))
        flows.sign_in(http, page, name="password-in-wrong-field", password="wrong-password")
    for path in fresh.state.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    log = fresh.log()
    lines = [json.loads(line) for line in log.splitlines()]
    granted = [(line["grant"], line["client"], line["sub"]) for line in lines if line["event"] == "grant"]
    assert granted == [
        ("device_code", "dodas", "alice"),
        ("client_credentials", "worker", "worker"),
        ("token-exchange", "service", "alice"),
    ]
    secrets = [worker, *tokens.values(), WORKER_SECRET, PASSWORD, "password-in-wrong-field", "wrong-password"]
    for secret in [*secrets, "guessed-secret-9876", "guessed-refresh-token"]:
        assert str(secret) in ("600", "Bearer", "x509 wlcg.groups") or str(secret) not in log


def test_the_store_forgets_what_expired_and_what_is_too_much(fresh):
    script = """
      import { Store } from './store.mjs';
      const store = new Store(process.env.STATE, 10);
      const codes = store.adapter('DeviceCode'), tokens = store.adapter('RefreshToken');
      await tokens.upsert('kept', { grantId: 'g' }, 60);
      await tokens.upsert('expired', {}, -1);
      for (let n = 0; n < 600; n += 1) await codes.upsert(`code ${n}`, { userCode: `${n}` }, 60);
      const found = [await tokens.find('kept'), await tokens.find('expired'), await codes.findByUserCode('599')];
      store.sweep();
      await tokens.revokeByGrantId('g');
      const left = store.db.prepare('SELECT kind, count(*) AS n FROM record GROUP BY kind').all();
      const edge = [await codes.find('code 590'), await codes.find('code 589')];
      console.log(JSON.stringify([found.map(Boolean), left, edge.map(Boolean)]));
    """
    command, environment = fresh.command()
    environment["STATE"] = str(fresh.state / "test.db")
    done = subprocess.run(
        [command[0], "--input-type=module", "-e", script],
        cwd=fresh.state.parent / "app",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[True, False, True], [{"kind": "DeviceCode", "n": 10}], [True, False]]


def test_certificate_is_reloaded(fresh):
    fresh.start()
    with fresh.client() as http:
        assert http.get("/health").status_code == 200
    (fresh.config / "cert.pem").write_text("broken")
    fresh.process.send_signal(1)
    time.sleep(0.3)
    assert "certificate_refused" in fresh.log()
    make_certificate(fresh.config)
    fresh.process.send_signal(1)
    time.sleep(0.3)
    with fresh.client() as http:  # trusts only the new one
        assert http.get("/health").status_code == 200


def test_secrets_must_be_private(fresh):
    fresh.write()
    command = fresh.write
    fresh.write = lambda: (command(), (fresh.config / "secrets.json").chmod(0o640))
    assert "mode 0600" in fresh.refuse()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"issuer": "http://127.0.0.1:1"}, "issuer"),
        ({"port": 0}, "port"),
        ({"audiences": []}, "audiences"),
        ({"audiences": ["credentials"]}, "audiences"),
        ({"token_lifetime": 10}, "token_lifetime"),
        ({"key_days": 0}, "key_days"),
        ({"opaque_audiences": ["https://elsewhere.test"]}, "opaque_audiences"),
        ({"users": [{"name": "worker", "scrypt": scrypt("x")}]}, "also the id of a client"),
        ({"users": [{"name": "bob", "scrypt": {"salt": "AA==", "hash": ""}}]}, "users: bob"),
        ({"clients": [{"id": "worker", "grants": ["password"], "scopes": ["x"]}]}, "unknown grant password"),
        (
            {"clients": [{"id": "new", "grants": ["client_credentials"], "scopes": ["x"]}]},
            "clients: new: needs a secret",
        ),
        ({"clients": [{"id": "p", "public": True, "grants": ["client_credentials"], "scopes": ["x"]}]}, "clients: p"),
    ],
)
def test_a_wrong_configuration_is_named(fresh, change, message):
    fresh.settings.update(change)
    said = fresh.refuse()
    assert message in said and WORKER_SECRET not in said
    assert len(said.splitlines()) == 1


def test_a_short_secret_is_refused_without_being_shown(fresh):
    fresh.secrets["worker"] = "changeme"
    said = fresh.refuse()
    assert "clients: worker: needs a secret of 16" in said and "changeme" not in said


def test_secrets_that_are_not_json_are_not_shown(fresh):
    command = fresh.write
    fresh.write = lambda: (command(), (fresh.config / "secrets.json").write_text('{"worker": hidden-secret}'))
    said = fresh.refuse()
    assert "not JSON" in said and "hidden-secret" not in said

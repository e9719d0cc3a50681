# SPDX-License-Identifier: Apache-2.0
"""Hosts that pass for others, delegations and certificates of somebody else, and tokens that were good once."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import hmac
import json
import time

import pytest
from cryptography import x509

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, join
from forgery import ABSENT, b64
from identity_runtime import OPAQUE_AUDIENCE, SERVICE_SECRET, WORKER_SECRET
from service_runtime import DEPLOYMENT, HOST, Credentials

OTHER = "worker-2"


def cases(**named):
    return [pytest.param(case, id=name) for name, case in named.items()]


@pytest.fixture(scope="module")
def other_request():
    return csr.make(csr.make_key())


def forged(service, request, key=None, header=None, **changes):
    """A join token of any shape; without a key, that of the host."""
    now = int(time.time())
    claims = {"iss": join.issuer(DEPLOYMENT), "sub": HOST, "aud": service.url, "iat": now, "exp": now + 60,
              "jti": "0123456789abcdef", "csr": join.digest(request), **changes}  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not ABSENT}
    header = {"alg": "HS256", "typ": join.TYPE} if header is None else header
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    key = service.join_key() if key is None else key
    return f"{signed}.{b64(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def test_honest_hosts_pass(service, order, request_pem):
    for token in (service.join_token(request_pem), forged(service, request_pem)):
        answer = order(token)
        assert answer.status_code == 201, answer.text
        assert "/OU=workers/CN=worker-1 " in answer.json()["subject"]


KEYS = cases(
    other_host=lambda s, f: s.join_key(OTHER),
    other_deployment=lambda s, f: join.derive(bytes(32), HOST),
    secret_itself=lambda s, f: s.join_secret,
    text_of_the_key=lambda s, f: base64.b64encode(s.join_key()),
    empty=lambda s, f: b"",
    zeros=lambda s, f: bytes(32),
    state_key=lambda s, f: s.state_key,
    issuer_kid=lambda s, f: f.jwks["RS256"]["kid"].encode(),
)


@pytest.mark.parametrize("signer", KEYS)
def test_hosts_with_another_key(service, order, refused, forger, request_pem, signer):
    assert refused(order(forged(service, request_pem, signer(service, forger))))


def now(offset):
    return lambda: int(time.time()) + offset


CLAIMS = cases(
    other_host={"sub": OTHER},
    other_deployment={"iss": join.issuer("other")},
    deployment_prefix={"iss": join.issuer(DEPLOYMENT + "x")},
    deployment_case={"iss": join.issuer(DEPLOYMENT).upper()},
    oidc_issuer={"iss": "https://127.0.0.1"},
    no_issuer={"iss": ABSENT},
    host_upper={"sub": HOST.upper()},
    host_path={"sub": f"../{HOST}"},
    host_slash={"sub": f"{HOST}/CN=admin"},
    host_empty={"sub": ""},
    host_newline={"sub": HOST + "\n"},
    host_nul={"sub": HOST + "\0"},
    host_number={"sub": 1},
    host_list={"sub": [HOST]},
    no_host={"sub": ABSENT},
    other_audience={"aud": "https://other.example"},
    audience_slash={"aud": ABSENT},
    audience_list={"aud": ["x"]},
    other_request={"csr": "0" * 64},
    no_request={"csr": ""},
    request_upper={"csr": None},
    request_absent={"csr": ABSENT},
    request_list={"csr": []},
    expired={"iat": now(-3600), "exp": now(-3000)},
    future={"iat": now(3600), "exp": now(3660)},
    hour={"exp": now(3600)},
    year={"exp": now(365 * 86400)},
    no_exp={"exp": ABSENT},
    no_iat={"iat": ABSENT},
    backwards={"exp": now(-1), "iat": now(10)},
    text_exp={"exp": "9999999999"},
    float_exp={"exp": 1e300},
    true_exp={"exp": True},
    negative={"iat": -10, "exp": -1},
    old_and_long={"iat": 0, "exp": now(60)},
)


@pytest.mark.parametrize("changes", CLAIMS)
def test_tokens_of_hosts_that_are_wrong(service, order, refused, request_pem, changes):
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    assert refused(order(forged(service, request_pem, **changes)))


@pytest.mark.parametrize(
    "header",
    cases(
        none={"alg": "none", "typ": join.TYPE},
        rs256={"alg": "RS256", "typ": join.TYPE},
        hs512={"alg": "HS512", "typ": join.TYPE},
        plain={"alg": "HS256", "typ": "JWT"},
        at={"alg": "HS256", "typ": "at+jwt"},
        kid={"alg": "HS256", "typ": join.TYPE, "kid": "x"},
        jwk={"alg": "HS256", "typ": join.TYPE, "jwk": {"kty": "oct", "k": "AAAA"}},
        crit={"alg": "HS256", "typ": join.TYPE, "crit": ["exp"]},
        case={"alg": "HS256", "typ": join.TYPE.upper()},
        empty={},
    ),
)
def test_headers_of_hosts_that_are_wrong(service, order, refused, request_pem, header):
    assert refused(order(forged(service, request_pem, header=header)))


@pytest.mark.parametrize("signature", ["", "AA", "A" * 43, "A" * 100])
def test_hosts_without_a_signature(service, order, refused, request_pem, signature):
    token = service.join_token(request_pem).rpartition(".")[0] + "." + signature
    assert refused(order(token))


def test_a_host_token_with_the_issuer_of_people(service, order, refused, forger, request_pem):
    """HS256 is for hosts only: with an OIDC issuer's name it is nothing, whoever's key it is signed with."""
    for typ in (join.TYPE, "at+jwt"):
        for key in (service.join_key(), service.join_secret, forger.jwks["RS256"]["n"].encode()):
            header = {"alg": "HS256", "typ": typ, "kid": forger.jwks["RS256"]["kid"]}
            token = forger.sign(header, forger.claims(csr=join.digest(request_pem)), "HS256", key)
            assert refused(order(token))


def test_a_token_that_was_seen_gives_no_certificate_for_another_key(
    service, order, refused, request_pem, other_request
):
    token = service.join_token(request_pem)
    assert order(token).status_code == 201
    response = order(token, body={"csr": other_request.decode(), "kind": "proxy"})
    assert refused(response) and response.json()["reason"] == "other_request"
    # With more than the request around it, it is another request.
    for body in (request_pem + other_request, other_request + request_pem, request_pem + b"#"):
        assert refused(order(token, body={"csr": body.decode(), "kind": "proxy"}))


@pytest.mark.parametrize("kind", ["eec", "host"])
def test_hosts_get_what_their_rule_allows(service, order, refused, request_pem, kind):
    assert refused(order(service.join_token(request_pem), kind=kind))


def test_hosts_are_told_apart(service, order, request_pem):
    subjects = {order(service.join_token(request_pem, host)).json()["subject"].rpartition("/CN=")[0]
                for host in (HOST, OTHER, "worker-11", "worker.1", "worker1")}  # fmt: skip
    assert len(subjects) == 5


# --- /get_proxy: for workers that cannot make a request


def basic(host, key):
    pair = f"{host}:{base64.b64encode(key).decode() if isinstance(key, bytes) else key}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def test_honest_old_workers_pass(service, http):
    for headers in (basic(HOST, service.join_key()), {"Authorization": f"Bearer {service.join_token()}"}):
        answer = http.get("/get_proxy", headers=headers)
        assert answer.status_code == 200, answer.text
        certificate, key, chain = files.load_credential(answer.content)
        assert certificate.public_key() == key.public_key() and chain


@pytest.mark.parametrize(
    "headers",
    cases(
        nothing=lambda s, t: {},
        empty=lambda s, t: basic("", ""),
        no_key=lambda s, t: basic(HOST, ""),
        other_hosts_key=lambda s, t: basic(HOST, s.join_key(OTHER)),
        as_another_host=lambda s, t: basic(OTHER, s.join_key(HOST)),
        secret=lambda s, t: basic(HOST, s.join_secret),
        raw_key=lambda s, t: basic(HOST, s.join_key().hex()),
        hash_of_the_key=lambda s, t: basic(HOST, hashlib.sha256(s.join_key()).hexdigest()),
        upper_host=lambda s, t: basic(HOST.upper(), s.join_key()),
        path_host=lambda s, t: basic("../" + HOST, s.join_key()),
        colon_host=lambda s, t: basic(HOST + ":x", s.join_key()),
        nul_host=lambda s, t: basic(HOST + "\0", s.join_key()),
        client=lambda s, t: basic("worker", WORKER_SECRET),
        garbage=lambda s, t: {"Authorization": "Basic ////"},
        not_base64=lambda s, t: {"Authorization": "Basic {}"},
        not_utf8=lambda s, t: {"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
        token_of_a_person=lambda s, t: {"Authorization": f"Bearer {t}"},
        token_for_a_request=lambda s, t: {"Authorization": f"Bearer {s.join_token(b'x')}"},
        other_audience=lambda s, t: {"Authorization": f"Bearer {s.join_token(audience='https://x')}"},
        query=lambda s, t: {"X-Token": s.join_token()},
    ),
)
def test_get_proxy_is_for_hosts(service, http, refused, honest_token, headers):
    response = http.get("/get_proxy", headers=headers(service, honest_token))
    assert refused(response, base64.b64encode(service.join_key()).decode())
    assert "PRIVATE" not in response.text


@pytest.mark.parametrize(
    "delegation", ["0" * 20, "../robots/x", "..%2f..%2fca.key", "", "*", "a" * 1000, "%00", "x%0ay", "ca.key"]
)
def test_get_proxy_of_delegations_that_are_none(service, http, refused, delegation):
    response = http.get(f"/get_proxy?delegation={delegation}", headers=basic(HOST, service.join_key()))
    assert refused(response) and "PRIVATE" not in response.text


def test_a_password_is_not_a_way_into_the_rest(service, order, refused, http):
    """A host's key as a password gets a key made by the service; certificates for other keys need a signed token."""
    headers = basic(HOST, service.join_key())
    assert refused(order(headers=headers))
    assert refused(http.post("/v1/delegations", headers=headers, json={}))


# --- delegations and revocations: mine, and somebody else's


@pytest.fixture(scope="module")
def people(identity, tmp_path_factory):
    """A service with delegation, replay protection off, administrators; tokens of users by the device flow."""
    service = Credentials(tmp_path_factory.mktemp("people"), identity)
    for rule in service.settings["rules"]:
        if rule["name"] == "people":
            rule["delegate"] = True
    service.settings["admins"] = [{"issuer": identity.url, "groups": ["/admins"]}]
    service.start()
    with identity.client() as client:
        service.alice = flows.device_tokens(client)["access_token"]
    yield service
    service.stop()


@pytest.fixture(scope="module")
def web(people):
    with people.client() as client:
        yield client


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def delegation(web, people):
    """Alice's, by her own token; its id."""
    answer = web.post("/v1/delegations", headers=bearer(people.alice), json={})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def mallory(forger, **more):
    return forger.token(**{"sub": "mallory", "client_id": "dodas", "wlcg__groups": ["/cms"], **more})


def test_honest_delegation(people, web, delegation, request_pem):
    mine = web.get("/v1/delegations", headers=bearer(people.alice)).json()
    assert [one["id"] for one in mine] == [delegation]
    body = {"csr": request_pem.decode(), "delegation": delegation}
    answer = web.post("/v1/credentials", headers=bearer(people.join_token(request_pem)), json=body)
    assert answer.status_code == 201 and "CN=alice" in answer.json()["subject"]


def test_delegations_of_somebody_else_are_not_shown(web, forger, delegation):
    assert delegation not in web.get("/v1/delegations", headers=bearer(mallory(forger))).text


@pytest.mark.parametrize("subject", ["mallory", "Alice", "alice ", "alice/CN=x", "al", "alice2"])
def test_nobody_ends_the_delegation_of_somebody_else(people, web, forger, refused, delegation, subject):
    token = mallory(forger, sub=subject)
    assert refused(web.delete(f"/v1/delegations/{delegation}", headers=bearer(token)))
    assert delegation in web.get("/v1/delegations", headers=bearer(people.alice)).text


@pytest.mark.parametrize(
    "number", ["..%2fca.key", "%2e%2e", "*", "x" * 500, "%00", "a b", "-", "a%0ab", "\u00e4", "none"]
)
def test_delegations_that_are_none(people, web, refused, number):
    assert refused(web.delete(f"/v1/delegations/{number}", headers=bearer(people.alice)))


def test_people_get_no_proxies_of_delegations(people, web, forger, refused, delegation, request_pem):
    """Not even one's own: they are for hosts of the deployment."""
    body = {"csr": request_pem.decode(), "delegation": delegation}
    for token in (mallory(forger), people.alice):
        assert refused(web.post("/v1/credentials", headers=bearer(token), json=body))


@pytest.mark.parametrize("kind", ["eec", "host"])
def test_hosts_get_only_proxies_of_delegations(people, web, refused, delegation, request_pem, kind):
    body = {"csr": request_pem.decode(), "delegation": delegation, "kind": kind}
    assert refused(web.post("/v1/credentials", headers=bearer(people.join_token(request_pem)), json=body))


def test_a_proxy_of_a_delegation_does_not_outlive_it(people, web, delegation, request_pem):
    body = {"csr": request_pem.decode(), "delegation": delegation, "lifetime": 10**9}
    answer = web.post("/v1/credentials", headers=bearer(people.join_token(request_pem)), json=body).json()
    chain = x509.load_pem_x509_certificates((answer["certificate"] + answer["chain"]).encode())
    assert chain[0].not_valid_after_utc <= chain[1].not_valid_after_utc


@pytest.mark.parametrize(
    "who", ["nobody", "worker", "host", "other-group", "no-refresh", "other-audience", "exchanged"]
)
def test_who_may_not_delegate(identity, people, web, forger, refused, who):
    token = {
        "nobody": lambda: "x.y.z",
        "worker": lambda: forger.token(),
        "host": lambda: people.join_token(),
        "other-group": lambda: forger.token(sub="alice", client_id="dodas", wlcg__groups=["/atlas"]),
        "no-refresh": lambda: mallory(forger),  # the provider knows no such user
        "other-audience": lambda: forger.token(sub="alice", aud="https://other", wlcg__groups=["/cms"]),
        "exchanged": lambda: forger.token(sub="worker", client_id="dodas", wlcg__groups=["/cms"]),
    }[who]()
    before = web.get("/v1/delegations", headers=bearer(people.join_token())).json()
    assert refused(web.post("/v1/delegations", headers=bearer(token), json={}), token)
    assert web.get("/v1/delegations", headers=bearer(people.join_token())).json() == before


@pytest.fixture(scope="module")
def alices(people, web, request_pem):
    answer = web.post(
        "/v1/credentials", headers=bearer(people.alice), json={"csr": request_pem.decode(), "kind": "eec"}
    )
    assert answer.status_code == 201
    return answer.json()


def revoked(web, serial):
    crl = x509.load_pem_x509_crl(web.get("/v1/authority/crl.pem").content)
    return crl.get_revoked_certificate_by_serial_number(int(serial)) is not None


@pytest.mark.parametrize("by", ["certificate", "serial"])
@pytest.mark.parametrize(
    "who", ["mallory", "worker", "host", "look-alike", "admin-elsewhere", "admin-prefix", "nobody"]
)
def test_nobody_revokes_what_is_not_theirs(people, web, forger, refused, alices, who, by):
    token = {
        "mallory": lambda: mallory(forger),
        "worker": lambda: forger.token(),
        "host": lambda: people.join_token(),
        "look-alike": lambda: mallory(forger, sub="ALICE"),
        "admin-elsewhere": lambda: mallory(forger, wlcg__groups=["/cms", "/admins/x"]),
        "admin-prefix": lambda: mallory(forger, wlcg__groups=["/cms", "/ADMINS", "admins"]),
        "nobody": lambda: "x.y.z",
    }[who]()
    response = web.post("/v1/revocations", headers=bearer(token), json={by: alices[by]})
    assert refused(response)
    assert not revoked(web, alices["serial"])


def test_not_even_ones_own_by_its_number(people, web, refused, alices):
    """A number proves nothing: who knows it need not be who owns it."""
    assert refused(web.post("/v1/revocations", headers=bearer(people.alice), json={"serial": alices["serial"]}))


@pytest.mark.parametrize(
    "body",
    cases(
        nothing={},
        both={"serial": "1", "certificate": "x"},
        negative={"serial": "-1"},
        number={"serial": 1},
        hexadecimal={"serial": "0x1"},
        wide={"serial": "\uff11"},
        huge={"serial": "9" * 5000},
        list={"serial": ["1"]},
        garbage={"certificate": "x"},
        empty={"certificate": ""},
        null={"certificate": None},
        unknown={"serial": "1", "reason": "x"},
    ),
)
def test_revocations_that_are_none(people, web, forger, refused, body):
    for token in (people.alice, mallory(forger, wlcg__groups=["/admins"])):
        assert refused(web.post("/v1/revocations", headers=bearer(token), json=body))


def test_a_certificate_of_another_authority_is_not_revoked_here(people, web, refused, service, order, forger, alices):
    """Same name, another deployment's CA: its serial number is none of ours."""
    token = forger.token(sub="alice", client_id="dodas", wlcg__groups=["/cms"])
    foreign = order(token, kind="eec").json()
    assert foreign["subject"] == alices["subject"]
    assert refused(
        web.post("/v1/revocations", headers=bearer(people.alice), json={"certificate": foreign["certificate"]})
    )
    assert not revoked(web, foreign["serial"])


def test_the_authority_itself_is_not_revoked(people, web, forger, refused):
    ca = web.get("/v1/authority/ca.pem").text
    for token in (people.alice, mallory(forger, wlcg__groups=["/admins"])):
        serial = x509.load_pem_x509_certificate(ca.encode()).serial_number
        for body in ({"certificate": ca}, {"serial": str(serial)}):
            assert refused(web.post("/v1/revocations", headers=bearer(token), json=body))
            assert not revoked(web, serial)


def test_honest_revocation(people, web, alices):
    answer = web.post("/v1/revocations", headers=bearer(people.alice), json={"certificate": alices["certificate"]})
    assert answer.status_code == 200 and revoked(web, alices["serial"])


@pytest.mark.parametrize("path", ["/v1/explain", "/v1/delegations", "/get_proxy"])
@pytest.mark.parametrize("token", [None, "x.y.z", "expired", "other-host"])
def test_nothing_is_told_to_strangers(people, web, forger, refused, path, token):
    token = {
        "expired": lambda: forger.token(exp=1),
        "other-host": lambda: forged(people, b"", key=people.join_key(OTHER)),
    }.get(token, lambda: token)()
    response = web.get(path, headers=bearer(token) if token else {})
    assert refused(response) and response.status_code == 401


# --- tokens that were good once


@pytest.fixture(scope="module")
def strict(identity, tmp_path_factory):
    """Takes each token once, and opaque ones, which it asks the provider about."""
    service = Credentials(tmp_path_factory.mktemp("strict"), identity, replay_protection=True)
    service.settings["issuers"][0]["audience"] = OPAQUE_AUDIENCE
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def strictly(strict, request_pem):
    with strict.client() as client:

        def post(token):
            return client.post("/v1/credentials", headers=bearer(token), json={"csr": request_pem.decode()})

        yield post


def test_replayed_tokens(strictly, refused, forger):
    token = forger.token(aud=OPAQUE_AUDIENCE)
    assert strictly(token).status_code == 201
    for _ in range(3):
        assert refused(strictly(token))
    # The same claims, signed again, are the same token.
    claims = forger.claims(aud=OPAQUE_AUDIENCE)
    assert strictly(forger.sign(forger.header(), claims)).status_code == 201
    assert refused(strictly(forger.sign(forger.header("ES256"), claims, "ES256")))


def test_a_token_taken_by_many_at_once(strictly, forger):
    token = forger.token(aud=OPAQUE_AUDIENCE)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: strictly(token).status_code, range(16)))
    assert answers.count(201) == 1


@pytest.mark.parametrize("jti", [ABSENT, "", None, 1, ["x"]], ids=repr)
def test_tokens_that_cannot_be_told_apart(strictly, refused, forger, jti):
    assert refused(strictly(forger.token(aud=OPAQUE_AUDIENCE, jti=jti)))


@pytest.fixture(scope="module")
def provider(identity):
    with identity.client() as client:
        yield client


def opaque(provider):
    return flows.worker(provider, resource=OPAQUE_AUDIENCE).json()["access_token"]


def test_honest_opaque_tokens_pass(strictly, provider):
    assert strictly(opaque(provider)).status_code == 201


def test_revoked_opaque_tokens(strictly, provider, refused):
    token = opaque(provider)
    done = provider.post("/token/revocation", auth=("worker", WORKER_SECRET), data={"token": token})
    assert done.status_code == 200
    assert refused(strictly(token), token)


def test_opaque_tokens_are_not_replayed(strictly, provider, refused):
    token = opaque(provider)
    assert strictly(token).status_code == 201
    assert refused(strictly(token), token)


@pytest.mark.parametrize(
    "change",
    cases(
        other=lambda t: "A" * len(t),
        truncated=lambda t: t[:-1],
        longer=lambda t: t + "A",
        case=lambda t: t.swapcase(),
        space=lambda t: f"{t} x",
        parameter=lambda t: f"{t}&token_type_hint=x",
        percent=lambda t: f"%{ord(t[0]):x}{t[1:]}",
        newline=lambda t: f"{t}%0a",
        path=lambda t: "../../etc/passwd",
        huge=lambda t: "A" * 15000,
        secret=lambda t: SERVICE_SECRET,
    ),
)
def test_opaque_tokens_that_are_none(strictly, provider, refused, change):
    assert refused(strictly(change(opaque(provider))))


def test_refresh_tokens_are_no_access_tokens(strictly, provider, refused):
    """The provider says that it is active; it is no access token for us all the same."""
    tokens = flows.device_tokens(provider, resource=OPAQUE_AUDIENCE)
    assert refused(strictly(tokens["refresh_token"]), tokens["refresh_token"])

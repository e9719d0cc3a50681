# SPDX-License-Identifier: Apache-2.0
"""Tokens good and hostile. The issuer is a stand-in: keys in memory, its two documents without a network."""

import base64
import hashlib
import hmac
import json
import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import tokens, web

ISSUER = "https://identity.example:8443"
AUDIENCE = "https://credentials.example:8444"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def jwk(key, kid, **more):
    kind = RSAKey if isinstance(key, rsa.RSAPrivateKey) else ECKey
    return {**kind.import_key(pem(key)).as_dict(private=False), "kid": kid, **more}


def claims(**changes):
    now = int(time.time())
    values = {
        "iss": ISSUER,
        "sub": "worker",
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 600,
        "scope": "openid x",
        "client_id": "worker",
    }
    values.update(changes)
    return {name: value for name, value in values.items() if value is not ...}


def sign(header, payload, key=RSA):
    """A JWT whatever its parts say: header and payload are objects, or text as it shall stand."""
    parts = [
        b64((part if isinstance(part, str) else json.dumps(part)).encode()) for part in (header, payload)
    ]
    message = ".".join(parts).encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    else:
        signature = key
    return ".".join([*parts, b64(signature)])


def good(**changes):
    """As providers sign: with joserfc."""
    return jws.serialize_compact(
        {"alg": "RS256", "kid": "rsa1"}, json.dumps(claims(**changes)), RSAKey.import_key(pem(RSA)), ["RS256"]
    )


class StandIn:
    """Serves the two documents in place of web.fetch_json."""

    def __init__(self):
        self.keys = [jwk(RSA, "rsa1", use="sig", alg="RS256"), jwk(EC, "ec1")]
        self.discovery = {"issuer": ISSUER, "jwks_uri": ISSUER + "/jwks"}
        self.down = False
        self.fetched = []

    def fetch(self, url, **_options):
        self.fetched.append(url)
        if self.down:
            raise web.WebError(url, "connection refused")
        return self.discovery if url.endswith("/openid-configuration") else {"keys": self.keys}


class Clock:
    """Time that the test moves."""

    def __init__(self):
        self.ahead = 0.0
        self._monotonic, self._time = time.monotonic, time.time

    def monotonic(self):
        return self._monotonic() + self.ahead

    def time(self):
        return self._time() + self.ahead


@pytest.fixture
def standin(monkeypatch):
    provider = StandIn()
    monkeypatch.setattr(tokens.web, "fetch_json", provider.fetch)
    return provider


@pytest.fixture
def clock(monkeypatch):
    moved = Clock()
    monkeypatch.setattr(tokens, "time", moved)
    return moved


@pytest.fixture
def verifier(standin):
    return tokens.Verifier([tokens.Issuer(ISSUER, AUDIENCE)])


def reason(verifier, text):
    with pytest.raises(tokens.TokenError) as caught:
        verifier.verify(text)
    for part in text.split("."):
        assert len(part) < 8 or part not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.reason


def test_good_tokens(verifier):
    groups = ["/cms", "/cms/uscms"]
    token = verifier.verify(good(**{"wlcg.groups": groups}))
    assert (token.issuer, token.subject, token.client) == (ISSUER, "worker", "worker")
    assert (token.scopes, token.groups) == (("openid", "x"), tuple(groups))
    assert (
        verifier.verify(sign({"alg": "ES256", "kid": "ec1", "typ": "at+jwt"}, claims(), EC)).subject
        == "worker"
    )
    assert (
        verifier.verify(sign({"alg": "RS256"}, claims(aud=["x", AUDIENCE], client_id=..., azp="p"))).client
        == "p"
    )
    assert verifier.verify(good(padding="x" * 8000)).subject == "worker"


HEADER = {"alg": "RS256", "kid": "rsa1"}
PUBLIC = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def hs256():
    parts = [b64(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "rsa1"}, claims())]
    return ".".join([*parts, b64(hmac.digest(PUBLIC, ".".join(parts).encode(), hashlib.sha256))])


def duplicate():
    text = json.dumps(claims())
    return sign(HEADER, text[:-1] + ', "sub": "admin"}')


ATTACKS = {
    "alg none": (lambda: sign({"alg": "none"}, claims(), b""), "malformed"),
    "alg none with a signature": (lambda: sign({"alg": "none"}, claims(), b"x"), "algorithm"),
    "alg missing": (lambda: sign({"kid": "rsa1"}, claims()), "algorithm"),
    "alg is a list": (lambda: sign({"alg": ["RS256"]}, claims()), "algorithm"),
    "HS256 with the public key": (hs256, "algorithm"),
    "RS512": (lambda: sign({"alg": "RS512", "kid": "rsa1"}, claims()), "algorithm"),
    "kid path": (lambda: sign({"alg": "RS256", "kid": "../../etc/passwd"}, claims()), "unknown_key"),
    "kid injection": (lambda: sign({"alg": "RS256", "kid": "x' OR 1=1"}, claims()), "unknown_key"),
    "kid number": (lambda: sign({"alg": "RS256", "kid": 1}, claims()), "header"),
    "kid of the other algorithm": (
        lambda: sign({"alg": "ES256", "kid": "rsa1"}, claims(), EC),
        "unknown_key",
    ),
    "jwk": (lambda: sign({**HEADER, "jwk": jwk(OTHER, "rsa1")}, claims(), OTHER), "header"),
    "jku": (lambda: sign({**HEADER, "jku": "https://evil.example"}, claims(), OTHER), "header"),
    "x5u": (lambda: sign({**HEADER, "x5u": "https://evil.example"}, claims(), OTHER), "header"),
    "x5c": (lambda: sign({**HEADER, "x5c": []}, claims(), OTHER), "header"),
    "crit": (lambda: sign({**HEADER, "crit": ["exp"], "exp": 1}, claims()), "header"),
    "b64": (lambda: sign({**HEADER, "b64": False}, claims()), "header"),
    "logout token": (lambda: sign({**HEADER, "typ": "logout+jwt"}, claims()), "header"),
    "signed by another": (lambda: sign(HEADER, claims(), OTHER), "signature"),
    "zero ES256 signature": (lambda: sign({"alg": "ES256", "kid": "ec1"}, claims(), b"\0" * 64), "signature"),
    "empty DER signature": (
        lambda: sign({"alg": "ES256", "kid": "ec1"}, claims(), b"0\6\2\1\0\2\1\0"),
        "signature",
    ),
    "changed payload": (
        lambda: ".".join([*sign(HEADER, claims(sub="x")).split(".")[:2], good().split(".")[2]]),
        "signature",
    ),
    "issuer with a slash": (lambda: good(iss=ISSUER + "/"), "unknown_issuer"),
    "foreign issuer": (lambda: good(iss="https://evil.example"), "unknown_issuer"),
    "issuer on this machine": (lambda: good(iss="http://169.254.169.254/"), "unknown_issuer"),
    "no issuer": (lambda: good(iss=...), "missing_claim"),
    "issuer is a list": (lambda: good(iss=[ISSUER]), "missing_claim"),
    "wrong audience": (lambda: good(aud="https://other.example"), "audience"),
    "audience prefix": (lambda: good(aud=AUDIENCE + "/"), "audience"),
    "no audience": (lambda: good(aud=...), "audience"),
    "audience object": (lambda: good(aud={AUDIENCE: 1}), "audience"),
    "expired": (lambda: good(exp=int(time.time()) - 31), "expired"),
    "string exp": (lambda: good(exp=str(int(time.time()) + 60)), "malformed"),
    "boolean exp": (lambda: good(exp=True), "malformed"),
    "huge exp": (lambda: good(exp=10**400), "malformed"),
    "infinite exp": (lambda: sign(HEADER, json.dumps(claims(exp=float("inf")))), "malformed"),
    "no exp": (lambda: good(exp=...), "missing_claim"),
    "no iat": (lambda: good(iat=...), "missing_claim"),
    "iat in the future": (lambda: good(iat=int(time.time()) + 60), "not_yet_valid"),
    "nbf in the future": (lambda: good(nbf=int(time.time()) + 60), "not_yet_valid"),
    "string nbf": (lambda: good(nbf="0"), "malformed"),
    "no scope": (lambda: good(scope=...), "missing_claim"),
    "blank scope": (lambda: good(scope=" "), "missing_claim"),
    "scope list": (lambda: good(scope=["openid"]), "missing_claim"),
    "no sub": (lambda: good(sub=...), "missing_claim"),
    "number sub": (lambda: good(sub=7), "missing_claim"),
    "long sub": (lambda: good(sub="x" * 1000), "subject"),
    "emoji sub": (lambda: good(sub="😀"), "subject"),
    "surrogate sub": (lambda: good(sub="\ud800"), "subject"),
    "newline sub": (lambda: good(sub="a\nb"), "subject"),
    "NUL sub": (lambda: good(sub="a\0b"), "subject"),
    "groups text": (lambda: good(**{"wlcg.groups": "/cms"}), "malformed"),
    "duplicate claim": (duplicate, "malformed"),
    "duplicate header": (lambda: sign('{"alg":"none","alg":"RS256","kid":"rsa1"}', claims()), "malformed"),
    "payload list": (lambda: sign(HEADER, "[]"), "malformed"),
    "payload NaN": (lambda: sign(HEADER, '{"iss": NaN}'), "malformed"),
    "deep payload": (lambda: sign(HEADER, "[" * 6000), "malformed"),
    "huge": (lambda: good(padding="x" * 2_000_000), "too_large"),
    "opaque": (lambda: "3cc8f6b7e2c94f53a1", "malformed"),
    "empty": (lambda: "", "malformed"),
    "five parts": (lambda: good() + ".a.b", "malformed"),
    "trailing newline": (lambda: good() + "\n", "malformed"),
    "not ASCII": (lambda: good() + "é", "malformed"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(verifier, name):
    make, expected = ATTACKS[name]
    assert reason(verifier, make()) == expected


def test_leeway(verifier):
    assert verifier.verify(good(exp=int(time.time()) - 20))
    assert verifier.verify(good(iat=int(time.time()) + 20))


def test_no_fetch_for_an_issuer_that_is_not_listed(verifier, standin):
    reason(verifier, good(iss="https://evil.example"))
    assert standin.fetched == []


def test_required_scope(standin):
    verifier = tokens.Verifier([tokens.Issuer(ISSUER, AUDIENCE, required_scope="tts:x509")])
    assert reason(verifier, good()) == "insufficient_scope"
    assert verifier.verify(good(scope="openid tts:x509"))


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": ISSUER + "/", "jwks_uri": ISSUER + "/jwks"},
        {"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/"},
        {"issuer": ISSUER, "jwks_uri": "https://evil.example/jwks"},
        {"issuer": ISSUER, "jwks_uri": ["x"]},
        {"issuer": ISSUER},
    ],
)
def test_hostile_discovery(verifier, standin, discovery):
    standin.discovery = discovery
    assert reason(verifier, good()) == "keys_unavailable"
    assert len(standin.fetched) == 1
    assert verifier.status()[ISSUER]["last_error"]


def test_jwks_uri_that_is_configured(standin):
    verifier = tokens.Verifier([tokens.Issuer(ISSUER, AUDIENCE, jwks_uri="https://keys.example/jwks")])
    assert verifier.verify(good())
    assert standin.fetched == ["https://keys.example/jwks"]


def test_unusable_keys_are_left_out(verifier, standin):
    weak = rsa.generate_private_key(65537, 1024)
    standin.keys = [
        jwk(weak, "weak"),
        jwk(RSA, "enc", use="enc"),
        jwk(RSA, "ps", alg="PS256"),
        jwk(ec.generate_private_key(ec.SECP384R1()), "p384"),
        {"kty": "oct", "k": "AAAA", "kid": "oct"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "bad"},
        "text",
        jwk(RSA, "rsa1"),
    ]
    assert verifier.verify(good())
    assert verifier.status()[ISSUER]["keys"] == 1
    assert reason(verifier, sign({"alg": "RS256", "kid": "weak"}, claims(), weak)) == "unknown_key"


def test_key_rotation(verifier, standin, clock):
    verifier.verify(good())
    standin.keys = [jwk(OTHER, "rsa2")]
    clock.ahead = 11
    rotated = sign({"alg": "RS256", "kid": "rsa2"}, claims(), OTHER)
    assert verifier.verify(rotated)
    assert reason(verifier, good()) == "unknown_key"


def test_unknown_kids_do_not_cause_a_storm(verifier, standin, clock):
    verifier.verify(good())
    before = len(standin.fetched)
    for number in range(100):
        reason(verifier, sign({"alg": "RS256", "kid": f"k{number}"}, claims()))
    assert len(standin.fetched) == before
    clock.ahead = 11
    for number in range(100):
        reason(verifier, sign({"alg": "RS256", "kid": f"k{number}"}, claims()))
    assert len(standin.fetched) == before + 2


def test_stale_keys_serve_for_a_day(verifier, standin, clock):
    verifier.verify(good())
    standin.down = True
    clock.ahead = 23 * 3600
    lasting = good(exp=int(clock.time()) + 3 * 24 * 3600)
    assert verifier.verify(lasting)
    assert "refused" in verifier.status()[ISSUER]["last_error"]
    clock.ahead = 25 * 3600
    with pytest.raises(tokens.KeysUnavailable):
        verifier.verify(lasting)
    standin.down = False
    clock.ahead += 11
    assert verifier.verify(lasting)
    assert verifier.status()[ISSUER]["last_error"] is None


def test_many_threads_fetch_once(verifier, standin, monkeypatch):
    def slow(url, **options):
        time.sleep(0.1)
        return standin.fetch(url, **options)

    monkeypatch.setattr(tokens.web, "fetch_json", slow)
    done = []
    threads = [threading.Thread(target=lambda: done.append(verifier.verify(good()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(done) == 8
    assert len(standin.fetched) == 2

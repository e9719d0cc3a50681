# SPDX-License-Identifier: Apache-2.0
import base64
import json
import time

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join, tokens

SECRET = bytes(range(32))
AUDIENCE = "https://credentials.test:8444"
CSR = b"-----BEGIN CERTIFICATE REQUEST-----\nx\n-----END CERTIFICATE REQUEST-----\n"


@pytest.fixture
def verifier():
    return join.Verifier("tier3", SECRET, AUDIENCE)


def make(host="worker-1", secret=SECRET, deployment="tier3", audience=AUDIENCE, **options):
    return join.make(join.derive(secret, host), deployment, host, audience, CSR, **options)


def forged(key=None, header=None, **changes):
    """A token that joserfc signed."""
    now = int(time.time())
    claims = {"iss": "urn:dodas:tier3", "sub": "worker-1", "aud": AUDIENCE, "iat": now, "exp": now + 60, "jti": "x",
              "csr": join.digest(CSR)}  # fmt: skip
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    key = OctKey.import_key(join.derive(SECRET, "worker-1") if key is None else key)
    return jwt.encode({"alg": "HS256", "typ": join.TYPE, **(header or {})}, claims, key)


def test_a_host_is_known_by_its_name(verifier):
    token = verifier.verify(make())
    assert (token.issuer, token.subject, token.scopes) == ("urn:dodas:tier3", "worker-1", ("join",))
    assert token.claims["csr"] == join.digest(CSR)
    assert verifier.claims(make()) and not verifier.claims("a.b.c") and not verifier.claims("")


def test_joserfc_reads_and_writes_the_same_tokens(verifier):
    key = OctKey.import_key(join.derive(SECRET, "worker-1"))
    assert jwt.decode(make(), key, algorithms=["HS256"]).claims["sub"] == "worker-1"
    assert verifier.verify(forged()).subject == "worker-1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lambda: make(deployment="tier2"), "unknown_issuer"),
        (lambda: make(secret=bytes(32)), "signature"),
        (lambda: make(audience="https://elsewhere"), "audience"),
        (lambda: make(lifetime=-40), "malformed"),
        (lambda: make(lifetime=86400), "malformed"),
        (lambda: forged(sub="worker-2"), "signature"),
        (lambda: forged(key=SECRET), "signature"),
        (lambda: forged(sub="../worker"), "subject"),
        (lambda: forged(sub=None), "subject"),
        (lambda: forged(sub=["worker-1"]), "subject"),
        (lambda: forged(csr=None), "malformed"),
        (lambda: forged(csr=1), "malformed"),
        (lambda: forged(exp="9999999999"), "malformed"),
        (lambda: forged(iat=True), "malformed"),
        (lambda: forged(iat=int(time.time()) - 200, exp=int(time.time()) - 100), "expired"),
        (lambda: forged(iat=int(time.time()) + 100, exp=int(time.time()) + 150), "not_yet_valid"),
        (lambda: forged(header={"kid": "x"}), "unknown_issuer"),
        (lambda: forged(header={"typ": "JWT"}), "unknown_issuer"),
        (lambda: make()[:-2], "signature"),
        (lambda: make() + "A", "signature"),
        (lambda: make().rpartition(".")[0] + ".", "malformed"),
        (lambda: ".".join(reversed(make().split("."))), "malformed"),
        (lambda: "x" * 20000, "too_large"),
    ],
)
def test_what_is_no_token_of_a_host(verifier, text, reason):
    with pytest.raises(tokens.TokenError) as caught:
        verifier.verify(text())
    assert caught.value.reason == reason


def test_alg_none_is_refused(verifier):
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": join.TYPE}).encode()).rstrip(b"=").decode()
    with pytest.raises(tokens.TokenError):
        verifier.verify(".".join([header, *make().split(".")[1:]]))


def test_keys_differ_by_host_and_deployment():
    keys = {join.derive(secret, host) for secret in (SECRET, bytes(32)) for host in ("worker-1", "worker-11", "w")}
    assert len(keys) == 6
    for bad in ("", "Worker", "a/b", "a\n", "a" * 64, "-a"):
        with pytest.raises(ValueError):
            join.derive(SECRET, bad)

# SPDX-License-Identifier: Apache-2.0
"""How a host of a deployment proves that it is one, without any provider: a token that it signs itself.

Each host holds a key that is derived from the deployment's and its own name, so that no host passes for another. With
it the host signs a token for one request: HS256, a minute long, for one audience and one certificate request, so that
whoever sees the token gets no certificate with it but one for the host's own key. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509.tokens import Token, TokenError, parse

TYPE = "dodas-join+jwt"
LIFETIME = 60
LEEWAY = 30
SCOPE = "join"
HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


def issuer(deployment):
    """What stands for the deployment where rules name an issuer."""
    return f"urn:dodas:{deployment}"


def derive(secret, host):
    """The key (bytes) of a host, from the deployment's join secret (bytes). Raises ValueError for the name."""
    if not HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host name in lower case")
    return hmac.new(secret, b"dodas join\0" + host.encode(), hashlib.sha256).digest()


def make(key, deployment, host, audience, request=b"", lifetime=LIFETIME):
    """A token (str). request: the bytes of the certificate request it is for; without, it gets no certificate for
    a key of the bearer's own."""
    now = int(time.time())
    header = {"alg": "HS256", "typ": TYPE}
    claims = {"iss": issuer(deployment), "sub": host, "aud": audience, "iat": now, "exp": now + lifetime,
              "jti": secrets.token_hex(8), "csr": digest(request)}  # fmt: skip
    signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{_encode(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def digest(request):
    """What the claim ``csr`` holds for a request; empty for none."""
    return hashlib.sha256(request.strip()).hexdigest() if request else ""


class Verifier:
    """Verifies tokens of one deployment's hosts. secret: bytes; audience: what they are for."""

    def __init__(self, deployment, secret, audience):
        self.issuer = issuer(deployment)
        self._secret = secret
        self._audience = audience

    def claims(self, text):
        """Whether a token says that it is of this kind; nothing is verified."""
        try:
            return json.loads(_decode(text.partition(".")[0])).get("typ") == TYPE
        except (ValueError, AttributeError, RecursionError):
            return False

    def verify(self, text):
        """The Token; its claims hold ``csr``. Raises TokenError."""
        header, claims = parse(text)
        if header != {"alg": "HS256", "typ": TYPE} or claims.get("iss") != self.issuer:
            raise TokenError("unknown_issuer", "the token is not of a host of this deployment")
        host = claims.get("sub")
        if not isinstance(host, str) or not HOST.fullmatch(host):
            raise TokenError("subject", "sub is no host name")
        signed, _dot, signature = text.rpartition(".")
        expected = hmac.new(derive(self._secret, host), signed.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(_encode(expected), signature):
            raise TokenError("signature", "the token's signature is not valid")
        times = [claims.get(name) for name in ("iat", "exp")]
        numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in times)
        if not numbers or not isinstance(claims.get("csr"), str):
            raise TokenError("malformed", "the token lacks iat, exp or csr")
        issued, expires = times
        now = time.time()
        if not issued < expires <= issued + 15 * LIFETIME:
            raise TokenError("malformed", "the token is not short-lived")
        if expires <= now - LEEWAY:
            raise TokenError("expired", "the token has expired: compare the clocks")
        if issued > now + LEEWAY:
            raise TokenError("not_yet_valid", "the token is not valid yet: compare the clocks")
        if claims.get("aud") != self._audience:
            raise TokenError("audience", f"the token is not for {self._audience}")
        return Token(issuer=self.issuer, subject=host, client=None, scopes=(SCOPE,), groups=(), issued=issued,
                     expires=expires, claims=claims)  # fmt: skip


def _encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

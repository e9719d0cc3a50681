# SPDX-License-Identifier: Apache-2.0
"""Opaque access tokens: their issuer is asked what they are worth (RFC 7662).

Only issuers with a client of ours are asked, in their order, and never about what looks like a JWT: that says itself
whose it is, and nobody else need see it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import oauth, web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.claims import KeysUnavailable, TokenError, check

OPAQUE = re.compile(r"[A-Za-z0-9._~+/-]{8,2048}=*")
CACHE_SECONDS = 60
REFUSED_SECONDS = 10
CACHE_ENTRIES = 10_000
ENDPOINT_SECONDS = 3600
TIMEOUT = 5.0
COOLDOWN = 10
AT_ONCE = 8
AT_ONCE_WAIT = 1.0

log = logging.getLogger("dodas.tokens")


def is_opaque(text):
    """Whether this may be an opaque token: it does not look like a JWT of any kind."""
    return text.count(".") < 2 and not text.startswith("ey") and OPAQUE.fullmatch(text) is not None


class Introspector:
    """Asks the issuers (claims.Issuer) that have client_id and client_secret_file. May be used from many threads.

    What they say is kept for CACHE_SECONDS at most, and never longer than the token lasts.
    """

    def __init__(self, issuers):
        self._issuers = [issuer for issuer in issuers if issuer.client_id and issuer.client_secret_file]
        self._endpoints = {}
        self._silent = {}
        self._answers = {}
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def verify(self, text):
        """The Token. Raises TokenError; KeysUnavailable where an issuer that could know it does not answer."""
        if not self._issuers:
            raise TokenError("malformed", "the token is not a signed JWT, and others are not taken")
        name = hashlib.sha256(text.encode()).digest()
        now = time.time()
        answer, until = self._answers.get(name, (None, 0))
        if until <= now:
            # Strangers must not keep all threads waiting for an issuer, nor the issuer busy.
            if not self._turns.acquire(timeout=AT_ONCE_WAIT):
                raise KeysUnavailable("introspection_unavailable", "too many tokens are being asked about")
            try:
                answer = self._ask(text)
            finally:
                self._turns.release()
            self._keep(name, answer, now)
        if answer is None:
            raise TokenError("inactive", "no issuer knows the token, or it has ended")
        issuer, claims = answer
        return check(claims, issuer, now)

    def _ask(self, text):
        """(issuer, claims) of the first issuer to which it is active, or None."""
        silent = None
        for issuer in self._issuers:
            said = None
            if self._silent.get(issuer.issuer, 0) <= time.monotonic():
                said = self._say(issuer, text)
            if said is None:
                silent = issuer
            elif said["active"]:
                return issuer, _claims(said, issuer)
        if silent is not None:
            raise KeysUnavailable("introspection_unavailable", f"{silent.issuer} cannot be asked about the token")
        return None

    def _say(self, issuer, text):
        """The issuer's answer, or None; one that gives none is left alone for COOLDOWN seconds."""
        options = {"cafile": issuer.cafile, "resolve": issuer.resolve, "timeout": TIMEOUT}
        try:
            secret = oauth.read_secret(issuer.client_secret_file)
            url = self._endpoint(issuer, options)
            if url is None:
                return {"active": False}  # all its tokens are JWTs
            return oauth.introspect_token(url, issuer.client_id, secret, text, "access_token", **options)
        except (oauth.ClientError, web.WebError) as error:
            log.warning("a token could not be asked about: %s", error)
            self._silent[issuer.issuer] = time.monotonic() + COOLDOWN
            return None

    def _endpoint(self, issuer, options):
        url, until = self._endpoints.get(issuer.issuer, (None, 0))
        if until <= time.monotonic():
            url = web.discovered(issuer.issuer, "introspection_endpoint", optional=True, **options)
            self._endpoints[issuer.issuer] = url, time.monotonic() + ENDPOINT_SECONDS
        return url

    def _keep(self, name, answer, now):
        until = now + REFUSED_SECONDS
        if answer is not None:
            end = answer[1].get("exp")
            until = min(now + CACHE_SECONDS, end if isinstance(end, (int, float)) else 0)
        with self._lock:
            self._answers.pop(name, None)
            while len(self._answers) >= CACHE_ENTRIES:
                self._answers.pop(next(iter(self._answers)))
            self._answers[name] = answer, until


def _claims(said, issuer):
    """The claims of an active access token, as a JWT would hold them. Raises TokenError."""
    kind = said.get("token_type", said.get("typ"))
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenError("type", "the issuer does not say that this is an access token")  # but, say, a refresh token
    if said.get("iss", issuer.issuer) != issuer.issuer:
        raise TokenError("unknown_issuer", "the token is of another issuer than the one that knows it")
    return {"iat": int(time.time()), **said, "iss": issuer.issuer}

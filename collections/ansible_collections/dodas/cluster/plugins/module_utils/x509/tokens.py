# SPDX-License-Identifier: Apache-2.0
"""Access tokens: JWTs, verified against the keys of issuers on an exact list (RFC 7519, 8725, 9068), and opaque ones,
of which these issuers are asked.

joserfc checks signatures. The rest is stricter than libraries are, and stands here and in claims.
"""

from __future__ import annotations

import hashlib
import threading
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.claims import (
    LEEWAY,
    MAX_BYTES,
    Issuer,
    KeysUnavailable,
    Token,
    TokenError,
    check,
    parse,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.introspection import Introspector, is_opaque

try:
    from joserfc import jws
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    MISSING = None
except ImportError as error:
    jws = ECKey = RSAKey = None
    JoseError = ValueError
    MISSING = str(error)

__all__ = ["LEEWAY", "MAX_BYTES", "Issuer", "KeyCache", "KeysUnavailable", "Token", "TokenError", "Verifier", "parse"]

KEYS_FRESH = 300
KEYS_COOLDOWN = 10
KEYS_STALE = 24 * 3600
FETCH_TIMEOUT = 5.0
MAX_REPLAYS = 100_000
KEY_TYPES = {"RS256": "RSA", "ES256": "EC"}
# Headers that name or carry keys of the sender's choice, or that change what is signed.
REFUSED_HEADERS = ("jku", "x5u", "jwk", "x5c", "crit", "b64", "zip")
TOKEN_TYPES = ("jwt", "at+jwt", "application/at+jwt")


class Verifier:
    """Verifies tokens of the issuers given; holds their keys. May be used from many threads.

    replay: take each token once: by its jti, or where it is opaque by itself.
    """

    def __init__(self, issuers, replay=False):
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._keys = {issuer.issuer: KeyCache(issuer) for issuer in issuers}
        self._introspector = Introspector(issuers)
        self._seen = Seen() if replay else None

    def verify(self, text):
        """The Token of what a client sent (str). Raises TokenError."""
        opaque = is_opaque(text)
        token = self._introspector.verify(text) if opaque else self._verify_jwt(text)
        if self._seen:
            self._seen.add(token, text if opaque else token.claims.get("jti"))
        return token

    def _verify_jwt(self, text):
        header, claims = parse(text)
        _check_header(header)
        if not isinstance(claims.get("iss"), str):
            raise TokenError("missing_claim", "the token has no iss")
        issuer = self._issuers.get(claims.get("iss"))
        if issuer is None:
            raise TokenError("unknown_issuer", "the issuer is not one that is trusted here")
        key = self._keys[issuer.issuer].find(header.get("kid"), header["alg"])
        _check_signature(text, header["alg"], key)
        return check(claims, issuer, time.time())

    def refresh(self):
        """Fetch the keys of all issuers that are due, and keep what fails for status()."""
        for keys in self._keys.values():
            keys.refresh()

    def status(self):
        """By issuer: jwks_age (seconds or None), keys, last_error (str or None)."""
        return {issuer: keys.status() for issuer, keys in self._keys.items()}


class Seen:
    """The tokens that were taken, until they have ended. They are not shared between processes."""

    def __init__(self):
        self._lock = threading.Lock()
        self._until = {}

    def add(self, token, number):
        """Raises TokenError for a token that was added before. number: what tells it from others of its issuer."""
        if not isinstance(number, str) or not number:
            raise TokenError("missing_claim", "the token has no jti, without which it could be replayed")
        # By digest: it may be long, and secret.
        name = hashlib.sha256(f"{token.issuer}\0{number}".encode("utf-8", "surrogatepass")).digest()
        now = time.time()
        with self._lock:
            if self._until.get(name, 0) > now:
                raise TokenError("replayed", "the token was used before")
            if len(self._until) >= MAX_REPLAYS:
                self._until = {one: until for one, until in self._until.items() if until > now}
                if len(self._until) >= MAX_REPLAYS:
                    raise KeysUnavailable("busy", "too many tokens are remembered now")
            self._until[name] = token.expires + LEEWAY


class KeyCache:
    """The public keys of one issuer. They outlive an outage of the issuer by a day."""

    def __init__(self, issuer):
        self._issuer = issuer
        self._lock = threading.Lock()
        self._keys = []
        self._fetched = None
        self._tried = None
        self._error = None

    def find(self, kid, alg):
        """The key for a token's header. Raises TokenError unknown_key, KeysUnavailable."""
        key = self._lookup(kid, alg)
        if self._age(self._fetched) > KEYS_FRESH or key is None:
            # While one thread fetches, the others go on with keys that they know.
            wait = 0 if key else 1 if self._keys else 2 * FETCH_TIMEOUT
            self.refresh(unknown=key is None, wait=wait)
            key = self._lookup(kid, alg)
        if self._age(self._fetched) > KEYS_STALE:
            raise KeysUnavailable("keys_unavailable", f"the keys of {self._issuer.issuer} cannot be fetched")
        if key is None:
            raise TokenError("unknown_key", "the token is signed with a key that the issuer does not publish")
        return key

    def refresh(self, unknown=False, wait=0):
        """Fetch the keys where they are due or one is unknown, no more often than the cool-down allows.

        wait: seconds to wait for another thread that fetches.
        """
        if not self._lock.acquire(timeout=wait):
            return
        try:
            due = unknown or self._age(self._fetched) > KEYS_FRESH
            if due and self._age(self._tried) > KEYS_COOLDOWN:
                self._fetch()
        finally:
            self._lock.release()

    def status(self):
        """See Verifier.status."""
        age = None if self._fetched is None else round(self._age(self._fetched))
        return {"jwks_age": age, "keys": len(self._keys), "last_error": self._error}

    def _fetch(self):
        self._tried = time.monotonic()
        try:
            options = {"cafile": self._issuer.cafile, "resolve": self._issuer.resolve, "timeout": FETCH_TIMEOUT}
            document = web.fetch_json(self._jwks_uri(options), **options)
            keys = _usable_keys(document)
        except web.WebError as error:
            self._error = str(error)
            return
        self._keys, self._fetched, self._error = keys, time.monotonic(), None

    def _jwks_uri(self, options):
        return self._issuer.jwks_uri or web.discovered(self._issuer.issuer, "jwks_uri", **options)

    def _lookup(self, kid, alg):
        fit = [(key_id, key) for key_id, key_alg, key in self._keys if key_alg == alg]
        if kid is not None:
            return next((key for key_id, key in fit if key_id == kid), None)
        return fit[0][1] if len(fit) == 1 else None  # without a name only where there is no choice

    @staticmethod
    def _age(moment):
        return float("inf") if moment is None else time.monotonic() - moment


def _usable_keys(document):
    """[(kid, algorithm, key)] of a key set: RSA from 2048 bits and P-256, for signatures; no others."""
    listed = document.get("keys")
    usable = []
    for jwk in listed[:100] if isinstance(listed, list) else []:
        if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
            continue
        alg = {"RSA": "RS256", "EC": "ES256"}.get(jwk.get("kty"))
        if alg is None or jwk.get("alg", alg) != alg or (alg == "ES256" and jwk.get("crv") != "P-256"):
            continue
        names = ("kty", "n", "e") if alg == "RS256" else ("kty", "crv", "x", "y")
        try:
            public = {name: jwk[name] for name in names}
            key = (RSAKey if alg == "RS256" else ECKey).import_key(public)
            if alg == "RS256" and key.public_key.key_size < 2048:
                continue
        except (JoseError, KeyError, TypeError, ValueError):
            continue
        usable.append((jwk.get("kid"), alg, key))
    return usable


def _check_header(header):
    if not isinstance(header.get("alg"), str) or header["alg"] not in KEY_TYPES:
        raise TokenError("algorithm", "tokens must be signed with RS256 or ES256")
    if any(name in header for name in REFUSED_HEADERS):
        raise TokenError("header", f"the token's header holds one of {', '.join(REFUSED_HEADERS)}")
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= 256):
        raise TokenError("header", "the token's kid is not a short string")
    if str(header.get("typ", "JWT")).lower() not in TOKEN_TYPES:
        raise TokenError("header", "the token's type is not that of an access token")


def _check_signature(text, alg, key):
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = registry.max_payload_length = MAX_BYTES
    try:
        jws.deserialize_compact(text, key, algorithms=[alg], registry=registry)
    except (JoseError, ValueError, TypeError):
        raise TokenError("signature", "the token's signature is not valid") from None

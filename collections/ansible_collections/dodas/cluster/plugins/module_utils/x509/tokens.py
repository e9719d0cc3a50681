# SPDX-License-Identifier: Apache-2.0
"""Access tokens that are JWTs: verified against the keys of issuers on an exact list (RFC 7519, 8725, 9068,
WLCG).

joserfc checks signatures. The rest is stricter than libraries are, and stands here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import threading
import time
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import web

try:
    from joserfc import jws
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    MISSING = None
except ImportError as error:
    jws = ECKey = RSAKey = None
    JoseError = ValueError
    MISSING = str(error)

MAX_BYTES = 16 * 1024
LEEWAY = 30
KEYS_FRESH = 300
KEYS_COOLDOWN = 10
KEYS_STALE = 24 * 3600
FETCH_TIMEOUT = 5.0
END_OF_TIME = 253_402_300_800  # the year 10000, which neither datetime nor a certificate can hold
THREE_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
KEY_TYPES = {"RS256": "RSA", "ES256": "EC"}
# Headers that name or carry keys of the sender's choice, or that change what is signed.
REFUSED_HEADERS = ("jku", "x5u", "jwk", "x5c", "crit", "b64", "zip")
TOKEN_TYPES = ("jwt", "at+jwt", "application/at+jwt")


class TokenError(Exception):
    """A token that is not accepted. reason: a short code; str() never holds any of the token."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason


class KeysUnavailable(TokenError):
    """The issuer's keys cannot be had now: not the token's fault, and worth another try."""


@dataclasses.dataclass(frozen=True)
class Issuer:
    """An issuer to trust. audience: what tokens for us name; required_scope: one that each must hold.

    cafile: PEM file of the authorities of its web server. jwks_uri: where its keys are; without it discovery
    says where, and they must be on the issuer's own host.
    """

    issuer: str
    audience: str
    cafile: str | None = None
    required_scope: str | None = None
    jwks_uri: str | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    """A verified token; times in seconds since the epoch. claims: all of them, as they were signed."""

    issuer: str
    subject: str
    client: str | None
    scopes: tuple
    groups: tuple
    issued: float
    expires: float
    claims: dict = dataclasses.field(default_factory=dict)


class Verifier:
    """Verifies tokens of the issuers given; holds their keys. May be used from many threads."""

    def __init__(self, issuers):
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._keys = {issuer.issuer: KeyCache(issuer) for issuer in issuers}

    def verify(self, text):
        """The Token of a JWT (str). Raises TokenError."""
        header, claims = parse(text)
        _check_header(header)
        if not isinstance(claims.get("iss"), str):
            raise TokenError("missing_claim", "the token has no iss")
        issuer = self._issuers.get(claims.get("iss"))
        if issuer is None:
            raise TokenError("unknown_issuer", "the issuer is not one that is trusted here")
        key = self._keys[issuer.issuer].find(header.get("kid"), header["alg"])
        _check_signature(text, header["alg"], key)
        return _check_claims(claims, issuer, time.time())

    def refresh(self):
        """Fetch the keys of all issuers that are due, and keep what fails for status()."""
        for keys in self._keys.values():
            keys.refresh()

    def status(self):
        """By issuer: jwks_age (seconds or None), keys, last_error (str or None)."""
        return {issuer: keys.status() for issuer, keys in self._keys.items()}


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
            options = {"cafile": self._issuer.cafile, "timeout": FETCH_TIMEOUT}
            document = web.fetch_json(self._jwks_uri(options), **options)
            keys = _usable_keys(document)
        except web.WebError as error:
            self._error = str(error)
            return
        self._keys, self._fetched, self._error = keys, time.monotonic(), None

    def _jwks_uri(self, options):
        if self._issuer.jwks_uri:
            return self._issuer.jwks_uri
        issuer = self._issuer.issuer
        url = issuer.rstrip("/") + "/.well-known/openid-configuration"
        document = web.fetch_json(url, **options)
        uri = document.get("jwks_uri")
        if document.get("issuer") != issuer:
            raise web.WebError(url, "the document is of another issuer")
        if not isinstance(uri, str) or _origin(uri) != _origin(issuer):
            raise web.WebError(url, "jwks_uri is on another host: set the issuer's jwks_uri if it is meant")
        return uri

    def _lookup(self, kid, alg):
        fit = [(key_id, key) for key_id, key_alg, key in self._keys if key_alg == alg]
        if kid is not None:
            return next((key for key_id, key in fit if key_id == kid), None)
        return fit[0][1] if len(fit) == 1 else None  # without a name only where there is no choice

    @staticmethod
    def _age(moment):
        return float("inf") if moment is None else time.monotonic() - moment


def _origin(url):
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


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


def parse(text):
    """(header, claims) of a compact JWT: JSON objects of bounded size with unique keys. Nothing is verified.

    Raises TokenError.
    """
    if len(text) > MAX_BYTES:
        raise TokenError("too_large", "the token is larger than 16 KiB")
    if not THREE_PARTS.fullmatch(text):
        raise TokenError("malformed", "the token is not a signed JWT")
    header, claims = (_json_object(part) for part in text.split(".")[:2])
    return header, claims


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


def _json_object(part):
    def unique(pairs):
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a key occurs twice")
        return result

    def number(_text):
        raise ValueError("not a JSON number")

    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=number)
    except (ValueError, RecursionError):
        # Not chained: the cause would quote the token.
        raise TokenError("malformed", "the token's parts are not JSON objects with unique keys") from None
    if not isinstance(document, dict):
        raise TokenError("malformed", "the token's parts are not JSON objects")
    return document


def _check_signature(text, alg, key):
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = registry.max_payload_length = MAX_BYTES
    try:
        jws.deserialize_compact(text, key, algorithms=[alg], registry=registry)
    except (JoseError, ValueError, TypeError):
        raise TokenError("signature", "the token's signature is not valid") from None


def _check_claims(claims, issuer, now):
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    if expires <= now - LEEWAY:
        raise TokenError("expired", "the token has expired")
    if issued > now + LEEWAY or ("nbf" in claims and _time(claims, "nbf") > now + LEEWAY):
        raise TokenError("not_yet_valid", "the token is not valid yet")
    audience = claims.get("aud")
    if issuer.audience not in (audience if isinstance(audience, list) else [audience]):
        raise TokenError("audience", f"the token is not for {issuer.audience}")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise TokenError("missing_claim", "the token has no sub")
    if len(subject) > 255 or not subject.isascii() or not subject.isprintable():
        raise TokenError("subject", "sub must be at most 255 printable ASCII characters")
    scope = claims.get("scope")
    # Only spaces separate (RFC 6749): other white space would make two scopes of what the issuer meant as one.
    scopes = tuple(filter(None, scope.split(" "))) if isinstance(scope, str) else ()
    if not scopes:
        raise TokenError("missing_claim", "the token has no scope")
    if issuer.required_scope and issuer.required_scope not in scopes:
        raise TokenError("insufficient_scope", f"the token lacks the scope {issuer.required_scope}")
    groups = claims.get("wlcg.groups", [])
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise TokenError("malformed", "wlcg.groups is not a list of strings")
    client = claims.get("client_id", claims.get("azp"))
    return Token(
        issuer=issuer.issuer,
        subject=subject,
        client=client if isinstance(client, str) else None,
        scopes=scopes,
        groups=tuple(groups),
        issued=issued,
        expires=expires,
        claims=claims,
    )


def _time(claims, name):
    value = claims.get(name)
    if value is None:
        raise TokenError("missing_claim", f"the token has no {name}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < END_OF_TIME:
        raise TokenError("malformed", f"the token's {name} is not a time in seconds")
    return value

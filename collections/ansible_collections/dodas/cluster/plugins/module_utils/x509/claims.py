# SPDX-License-Identifier: Apache-2.0
"""What a token says, and whether that will do (RFC 7519, 9068, WLCG profile 1.x). Nothing here is about signatures."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

MAX_BYTES = 16 * 1024
LEEWAY = 30
MAX_CONTAINERS = 500  # lists and objects in one part: how deep JSON may be differs from Python to Python
END_OF_TIME = 253_402_300_800  # the year 10000, which neither datetime nor a certificate can hold
THREE_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
WLCG_VERSION = re.compile(r"1\.[0-9]{1,3}")
ANY_AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"


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

    cafile: PEM file of the authorities of its web server; resolve: as web.fetch. jwks_uri: where its keys are; without
    it discovery says where, and they must be on the issuer's own host. client_id, client_secret_file: our client
    there, to ask what opaque tokens are worth; without them none is taken. groups_claim: another claim, such as
    ``groups`` or ``entitlements``, that lists groups as wlcg.groups does. accept_any_audience: take tokens for
    whatever service of WLCG.
    """

    issuer: str
    audience: str
    cafile: str | None = None
    required_scope: str | None = None
    jwks_uri: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    groups_claim: str | None = None
    accept_any_audience: bool = False
    resolve: dict | None = None


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


def check(claims, issuer, now):
    """The Token of claims that the issuer vouches for. now: seconds since the epoch. Raises TokenError."""
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    if expires <= now - LEEWAY:
        raise TokenError("expired", "the token has expired")
    if issued > now + LEEWAY or ("nbf" in claims and _time(claims, "nbf") > now + LEEWAY):
        raise TokenError("not_yet_valid", "the token is not valid yet")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if issuer.audience not in audiences and not (issuer.accept_any_audience and ANY_AUDIENCE in audiences):
        raise TokenError("audience", f"the token is not for {issuer.audience}")
    version = claims.get("wlcg.ver")
    if version is not None and not (isinstance(version, str) and WLCG_VERSION.fullmatch(version)):
        raise TokenError("profile", "the token is of a WLCG profile that is not known here: wlcg.ver is not 1.x")
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
    groups = _groups(claims, "wlcg.groups")
    if issuer.groups_claim:
        groups += [group for group in _groups(claims, issuer.groups_claim) if group not in groups]
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


def _groups(claims, name):
    groups = claims.get(name, [])
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise TokenError("malformed", f"{name} is not a list of strings")
    return list(groups)


def _time(claims, name):
    value = claims.get(name)
    if value is None:
        raise TokenError("missing_claim", f"the token has no {name}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < END_OF_TIME:
        raise TokenError("malformed", f"the token's {name} is not a time in seconds")
    return value


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
        if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
            raise ValueError("nested too deeply, maybe")
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=number)
    except (ValueError, RecursionError):
        # Not chained: the cause would quote the token.
        raise TokenError("malformed", "the token's parts are not JSON objects with unique keys") from None
    if not isinstance(document, dict):
        raise TokenError("malformed", "the token's parts are not JSON objects")
    return document

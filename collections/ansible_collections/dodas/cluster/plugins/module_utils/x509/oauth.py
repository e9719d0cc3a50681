# SPDX-License-Identifier: Apache-2.0
"""What a client asks of an OpenID provider: discovery, tokens by each grant, revocation, introspection.

Functions that ask the provider take ``cafile``, ``timeout`` (seconds) and ``resolve`` as web.fetch does, and raise
ClientError. A client with a secret authenticates by HTTP Basic; one without is public and only names itself.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import web

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
MAX_ANSWER = 256 * 1024
DEVICE_INTERVAL = 5.0
CODE = re.compile(r"[a-z_]{1,40}")
TOKEN = re.compile(r"[!-~]+")


class ClientError(RuntimeError):
    """A step that failed; the message names the URL or file and holds no secret.

    code: the error code of RFC 6749 and its extensions, such as ``invalid_grant``, or the service's own; None
    where there is none. status: of HTTP; None where nothing answered.
    """

    def __init__(self, message, code=None, status=None):
        super().__init__(message)
        self.code = code
        self.status = status


def discover(issuer, **options):
    """The discovery document (dict) of an issuer."""
    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
    document = call(url, **options)
    if document.get("issuer") != issuer:
        raise ClientError(f"{url}: not the discovery document of {issuer}")
    return document


def endpoint(document, name):
    """An endpoint (URL) that a discovery document names, such as ``token_endpoint``."""
    url = document.get(name)
    if not isinstance(url, str):
        raise ClientError(f"{document.get('issuer')}: the provider has no {name}")
    return url


def token_endpoint(issuer, **options):
    """The token endpoint (URL) that the issuer's discovery document names."""
    return endpoint(discover(issuer, **options), "token_endpoint")


def fetch_token(
    token_url, client_id, client_secret_file=None, audience=None, scope=None, client_secret=None, **options
):
    """An access token (str) by client_credentials (RFC 6749, 4.4); the secret itself or the file that holds it."""
    secret = client_secret if client_secret_file is None else read_secret(client_secret_file)
    form = {"grant_type": "client_credentials", "scope": scope, **_target(audience)}
    return ask_token(token_url, form, client_id, secret, **options)["access_token"]


def refresh_token(
    token_url, client_id, refresh_token, client_secret=None, scope=None, audience=None, **options
):
    """The answer (dict) to a refresh token (RFC 6749, 6). Its ``refresh_token`` is the one for next time: the new
    one where the provider rotates them, else the one given."""
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "scope": scope, **_target(audience)}
    answer = ask_token(token_url, form, client_id, client_secret, **options)
    return {"refresh_token": refresh_token, **answer}


def exchange_token(token_url, client_id, client_secret, subject_token, audience=None, scope=None, **options):
    """The answer (dict) to another's access token (RFC 8693); with ``offline_access`` in scope there may be a
    ``refresh_token`` in it."""
    form = {"grant_type": EXCHANGE_GRANT, "subject_token": subject_token, "subject_token_type": ACCESS_TOKEN,
            "scope": scope, **_target(audience)}  # fmt: skip
    return ask_token(token_url, form, client_id, client_secret, **options)


def start_device(url, client_id, scope=None, audience=None, client_secret=None, **options):
    """Begin a login on another device (RFC 8628): device_code, user_code, verification_uri, perhaps
    verification_uri_complete, expires_in, interval. url: the ``device_authorization_endpoint``."""
    answer = ask(url, {"scope": scope, **_target(audience)}, client_id, client_secret, **options)
    for name in ("device_code", "user_code", "verification_uri"):
        if not isinstance(answer.get(name), str):
            raise ClientError(f"{url}: the answer holds no {name}")
    return answer


def poll_device(token_url, client_id, device, client_secret=None, sleep=time.sleep, **options):
    """Wait until the person has decided; device: what start_device gave. The answer (dict) with the tokens.

    Raises ClientError with code ``access_denied`` or ``expired_token``, among others. sleep: called with seconds.
    """
    interval = max(1.0, _seconds(device.get("interval"), DEVICE_INTERVAL))
    end = time.monotonic() + _seconds(device.get("expires_in"), 600.0)
    form = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    while time.monotonic() < end:
        try:
            return ask_token(token_url, form, client_id, client_secret, **options)
        except ClientError as error:
            if error.code == "slow_down":
                interval += 5
            elif error.status is None or error.status >= 500:
                interval = min(2 * interval, 60.0)  # the provider may come back before the code ends
            elif error.code != "authorization_pending":
                raise
        sleep(interval)
    raise ClientError(f"{token_url}: nobody signed in while the code was valid", "expired_token")


def revoke_token(url, client_id, token, client_secret=None, hint=None, **options):
    """Tell the provider to forget a token (RFC 7009). url: the ``revocation_endpoint``; hint: ``refresh_token`` or
    ``access_token``."""
    form = {"token": token, "token_type_hint": hint}
    _post(url, form, client_id, client_secret, web.fetch, **options)


def introspect_token(url, client_id, client_secret, token, hint=None, **options):
    """What the provider says of a token (RFC 7662): ``{"active": False}``, or its claims with ``active`` True.
    url: the ``introspection_endpoint``."""
    answer = ask(url, {"token": token, "token_type_hint": hint}, client_id, client_secret, **options)
    if not isinstance(answer.get("active"), bool):
        raise ClientError(f"{url}: the answer does not say whether the token is active")
    return answer if answer["active"] else {"active": False}


def read_secret(path):
    """A client's secret from its file."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"the client secret cannot be read: {path}: {type(error).__name__}") from None


def ask_token(url, form, client_id, client_secret=None, **options):
    """As ask; the answer holds an access token."""
    answer = ask(url, form, client_id, client_secret, **options)
    for name in ("access_token", "refresh_token"):
        token = answer.get(name)
        if (token is not None or name == "access_token") and not is_token(token):
            raise ClientError(f"{url}: the answer holds no {name.replace('_', ' ')}")
    return answer


def ask(url, form, client_id, client_secret=None, **options):
    """The answer (dict) to a form; fields that are None are left out."""
    return _post(url, form, client_id, client_secret, web.fetch_json, **options)


def is_token(text):
    """Whether this can stand in an Authorization header."""
    return isinstance(text, str) and TOKEN.fullmatch(text) is not None


def call(url, **options):
    """The answer (dict) of a URL; options as web.fetch."""
    return _call(web.fetch_json, url, **options)


def _post(url, form, client_id, client_secret, fetch, **options):
    form = {name: value for name, value in form.items() if value}
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    if client_secret:
        # Each part is encoded before they are joined (RFC 6749, 2.3.1).
        user = ":".join(urllib.parse.quote(part, safe="") for part in (client_id, client_secret))
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    else:
        form["client_id"] = client_id
    return _call(fetch, url, data=urllib.parse.urlencode(form).encode(), headers=headers, **options)


def _call(fetch, url, **options):
    try:
        return fetch(url, **{"limit": MAX_ANSWER, **options})
    except web.WebError as error:
        codes = _codes(error.body)
        text = ", ".join([str(error), *codes]).replace(", ", ": ", 1) if codes else str(error)
        raise ClientError(text, codes[0] if codes else None, error.status) from None


def _codes(body):
    """The error codes in a body, and only those: the rest could quote what was sent."""
    try:
        document = json.loads(body)
        values = [document.get("error"), document.get("reason")]
    except (ValueError, AttributeError, RecursionError):
        return []
    return [value for value in values if isinstance(value, str) and CODE.fullmatch(value)]


def _target(audience):
    """For whom a token is: as most providers take it, and as RFC 8707 says, which takes URIs only."""
    return {"audience": audience, "resource": audience if audience and "://" in audience else None}


def _seconds(value, default):
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return float(value) if good else default

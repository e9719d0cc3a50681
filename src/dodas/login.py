# SPDX-License-Identifier: Apache-2.0
"""The login that a deployment holds: made by the device flow (RFC 8628), kept fresh, given up.

`login.json` in the deployment's directory (mode 0600) holds issuer, client_id, audience, access_token, issued, expires
(seconds since the epoch) and, where the provider gave one, refresh_token.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, files, tokens
from dodas import services
from dodas.errors import DodasError

CLIENT = "dodas"
SCOPE = "openid offline_access wlcg wlcg.groups"
LEAST = 60  # seconds that a token that is handed out still lasts; a tenth of its life where that is more
TIMEOUT = 15


class NoLogin(DodasError):
    """Nobody is logged in, or no longer."""


def start(deployment, client_id=CLIENT, scope=SCOPE):
    """Ask the provider for a code; (discovery document, its answer as client.start_device gives it)."""
    where = services.of(deployment)
    with _explained(deployment, client_id):
        document = client.discover(where.issuer, timeout=TIMEOUT, **where.at_issuer)
        url = client.endpoint(document, "device_authorization_endpoint")
        device = client.start_device(url, client_id, scope, where.credentials, timeout=TIMEOUT, **where.at_issuer)
    return document, device


def finish(deployment, document, device, client_id=CLIENT, sleep=time.sleep):
    """Wait until somebody signed in with the code, keep the tokens, and give up those held before; what is held.

    sleep: called with seconds between two questions.
    """
    where = services.of(deployment)
    options = {"timeout": TIMEOUT, **where.at_issuer}
    with _explained(deployment, client_id):
        url = client.endpoint(document, "token_endpoint")
        answer = client.poll_device(url, client_id, device, sleep=sleep, **options)
    held = {"issuer": where.issuer, "client_id": client_id, "audience": where.credentials}
    with _locked(deployment):
        before = None
        with contextlib.suppress(DodasError):  # what is damaged is replaced
            before = _read(deployment)
        held = _keep(deployment, held, answer)
    if before:
        with contextlib.suppress(client.ClientError):  # it ends by itself
            _revoke(document, before, options)
    return held


def access_token(deployment):
    """An access token that still lasts a while, refreshed where that is due. Raises DodasError, NoLogin."""
    # Under a lock: a refresh token that two processes spend is taken for stolen.
    with _locked(deployment):
        held = _held(deployment)
        left = held["expires"] - time.time()
        if left >= max(LEAST, (held["expires"] - held["issued"]) / 10):
            return held["access_token"]
        if not held.get("refresh_token"):
            if left > 0:
                return held["access_token"]
            raise NoLogin(f"the login to {deployment.name} has ended: {deployment.command('login')}")
        where = services.of(deployment)
        if held["issuer"] != where.issuer:
            raise NoLogin(f"the login is at {held['issuer']}, no longer the issuer: {deployment.command('login')}")
        options = {"timeout": TIMEOUT, **where.at_issuer}
        try:
            url = client.token_endpoint(held["issuer"], **options)
            answer = client.refresh_token(
                url, held["client_id"], held["refresh_token"], audience=held["audience"], **options
            )
        except client.ClientError as error:
            if error.code == "invalid_grant":
                raise NoLogin(
                    f"the login to {deployment.name} has ended at the provider: {deployment.command('login')}"
                ) from None
            if left > 0 and error.code is None:  # the provider is away, and the token still good
                return held["access_token"]
            raise DodasError(f"the login could not be refreshed: {error}") from None
        return _keep(deployment, held, answer)["access_token"]


def held(deployment):
    """What is held, with its tokens, as it is. Raises NoLogin."""
    with _locked(deployment):
        return _held(deployment)


def claims(token):
    """The claims of an access token, unverified; none where it is opaque."""
    try:
        return tokens.parse(token)[1]
    except tokens.TokenError:
        return {}


def end(deployment):
    """Give the login up, here and at the provider. Raises NoLogin; ClientError where the provider was not told."""
    with _locked(deployment):
        held = _held(deployment)
        _path(deployment).unlink()
    options = {"timeout": TIMEOUT, **services.of(deployment).at_issuer}
    _revoke(client.discover(held["issuer"], **options), held, options)


def _revoke(document, held, options):
    url = client.endpoint(document, "revocation_endpoint")
    for name in ("refresh_token", "access_token"):
        if held.get(name):
            try:
                client.revoke_token(url, held["client_id"], held[name], hint=name, **options)
            except client.ClientError as error:
                if error.code != "unsupported_token_type":  # of access tokens that nobody can take back
                    raise


def _keep(deployment, held, answer):
    """Write the tokens of an answer down before anybody uses them."""
    now = time.time()
    token = answer["access_token"]
    expires = claims(token).get("exp")
    if isinstance(answer.get("expires_in"), (int, float)):
        expires = now + answer["expires_in"]
    refresh = answer.get("refresh_token", held.get("refresh_token"))
    held = {**held, "access_token": token, "issued": now, "expires": expires or now, "refresh_token": refresh}
    files.write(_path(deployment), json.dumps(held).encode())
    return held


def _held(deployment):
    held = _read(deployment)
    if held is None:
        raise NoLogin(f"nobody is logged in to {deployment.name}: {deployment.command('login')}")
    return held


def _read(deployment):
    path = _path(deployment)
    try:
        return json.loads(files.read_private(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "it is damaged"
        raise DodasError(f"{path}: {reason}; {deployment.command('login')} makes it anew") from None


def _path(deployment):
    return deployment.directory / "login.json"


@contextlib.contextmanager
def _locked(deployment):
    path = deployment.directory / "login.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


ENDS = {
    "access_denied": "denied: somebody chose Cancel on the page",
    "expired_token": "the code has expired; {again} gives another",
    "invalid_client": "the provider does not know the client {client}: --client-id names one that it does",
    "unauthorized_client": "the provider does not let {client} log in this way: the client needs the grant device_code",
    "invalid_scope": "the provider does not give {client} these scopes: choose others with --scope",
    "invalid_target": "the provider gives no tokens for the credentials service: its audience must be allowed there",
}


@contextlib.contextmanager
def _explained(deployment, client_id):
    try:
        yield
    except client.ClientError as error:
        words = {"client": client_id, "again": deployment.command("login")}
        text = ENDS[error.code].format(**words) if error.code in ENDS else str(error)
        raise LoginError(text, error.code) from None


class LoginError(DodasError):
    """A login that did not come about. code: of the provider's answer, or None."""

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code

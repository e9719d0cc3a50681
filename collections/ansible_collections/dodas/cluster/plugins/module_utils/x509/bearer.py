# SPDX-License-Identifier: Apache-2.0
"""Tokens that are on this machine already: WLCG's bearer token discovery, and refresh tokens in files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, oauth
from ansible_collections.dodas.cluster.plugins.module_utils.x509.oauth import ClientError
from ansible_collections.dodas.cluster.plugins.module_utils.x509.tokens import TokenError, parse

MAX_BYTES = 64 * 1024


def find(environment=None, uid=None):
    """(token, where it was) by WLCG's bearer token discovery (10.5281/zenodo.3937438).

    environment: a mapping, default this process's; uid: of the user, default this process's.
    Raises ClientError, with all the places where there was none, or with the one that holds no token.
    """
    token = from_environment(environment)
    return (token, "BEARER_TOKEN") if token else from_files(environment, uid)


def from_environment(environment=None):
    """The token in BEARER_TOKEN; None where that is not set. Raises ClientError for what is no token."""
    value = _surroundings(environment).get("BEARER_TOKEN", "").strip()
    return _checked(value, "BEARER_TOKEN") if value else None


def from_files(environment=None, uid=None):
    """(token, path): of the file that BEARER_TOKEN_FILE names, else of the user's own. Raises ClientError."""
    environment = _surroundings(environment)
    named = environment.get("BEARER_TOKEN_FILE")
    if named:
        return read(named, uid), named
    places = [folder for folder in (environment.get("XDG_RUNTIME_DIR"), "/tmp") if folder]
    paths = [os.path.join(folder, f"bt_u{os.geteuid() if uid is None else uid}") for folder in places]
    for path in paths:
        if os.path.lexists(path):
            return read(path, uid), path
    raise ClientError(f"no token: BEARER_TOKEN and BEARER_TOKEN_FILE are not set, and there is no {' or '.join(paths)}")


def read(path, uid=None):
    """The token in a file. Raises ClientError, also where somebody else than the user or root could put it there."""
    try:
        # A pipe would wait for somebody who writes.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            text = stream.read(MAX_BYTES).decode("ascii", "replace").strip() if stat.S_ISREG(found.st_mode) else ""
    except OSError as error:
        raise ClientError(f"the token cannot be read: {path}: {error.strerror}") from None
    if found.st_uid not in (0, os.geteuid() if uid is None else uid):
        raise ClientError(f"{path} belongs to another user: its token is not taken")
    return _checked(text, path)


def remaining(token):
    """Seconds that a token says it lasts; None where it does not say. It is not verified."""
    try:
        end = parse(token)[1].get("exp")
    except TokenError:
        return None
    return end - time.time() if isinstance(end, (int, float)) else None


def refresh(path, token_url, client_id, client_secret=None, **options):
    """An access token (str) by the refresh token in a private file; one that replaces it is kept there.

    Of those who want one at the same time each waits for the other: a provider that rotates refresh tokens takes each
    once. options: as oauth.refresh_token. Raises ClientError.
    """
    try:
        with _locked(path):
            old = _checked(files.read_private(path).decode("ascii", "replace").strip(), path)
            answer = oauth.refresh_token(token_url, client_id, old, client_secret, **options)
            if answer["refresh_token"] != old:
                keep(path, answer["refresh_token"])
    except OSError as error:
        raise ClientError(f"the refresh token cannot be used: {path}: {error.strerror or error}") from None
    return answer["access_token"]


def keep(path, token):
    """Write a token into a file of mode 0600, all or nothing. Raises OSError."""
    files.write(path, token.encode() + b"\n")


@contextlib.contextmanager
def _locked(path):
    folder, name = os.path.split(os.path.realpath(path))
    descriptor = os.open(os.path.join(folder, f".{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _surroundings(environment):
    return os.environ if environment is None else environment


def _checked(text, where):
    if not oauth.is_token(text):
        raise ClientError(f"{where} holds no token")
    return text

# SPDX-License-Identifier: Apache-2.0
"""Tokens from a running oidc-agent: JSON over the Unix socket that OIDC_SOCK names."""

from __future__ import annotations

import json
import os
import socket

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import oauth
from ansible_collections.dodas.cluster.plugins.module_utils.x509.oauth import ClientError

MAX_ANSWER = 64 * 1024


def agent_token(name, path=None, audience=None, scope=None, lifetime=60, timeout=30.0):
    """An access token (str) that lasts at least lifetime seconds.

    name: an issuer's URL or the short name of an account of the agent; path: its socket, default OIDC_SOCK; scope
    and audience: other than the account's own. Raises ClientError.
    """
    path = os.fspath(path or os.environ.get("OIDC_SOCK", ""))
    if not path:
        raise ClientError("no oidc-agent is known: OIDC_SOCK is not set")
    question = {
        "request": "access_token",
        "issuer" if "://" in name else "account": name,
        "min_valid_period": lifetime,
        "application_hint": "dodas",
        **({"audience": audience} if audience else {}),
        **({"scope": scope} if scope else {}),
    }
    try:
        answer = json.loads(_talk(path, json.dumps(question).encode(), timeout))
        token = answer.get("access_token")
    except OSError as error:
        raise ClientError(f"oidc-agent at {path}: {error.strerror or error}") from None
    except (ValueError, AttributeError, RecursionError):
        raise ClientError(f"oidc-agent at {path}: the answer is not a JSON object") from None
    if answer.get("status") != "success" or not oauth.is_token(token):
        said = str(answer.get("error") or "no token")[:200]
        raise ClientError(f"oidc-agent at {path}: {name}: {said if said.isprintable() else 'failure'}")
    return token


def _talk(path, question, timeout):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(question)
        answer = bytearray()
        while chunk := connection.recv(4096):
            answer += chunk
            if len(answer) > MAX_ANSWER:
                raise ValueError("too much")
    return bytes(answer)

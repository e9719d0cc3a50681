# SPDX-License-Identifier: Apache-2.0
"""This service's certificates as a plugin of a WaTTS that runs elsewhere.

WaTTS starts ``python3 -m dodas.credentials.plugin`` with one JSON object in base64url, as an argument or on standard
input, and reads one JSON object. Its conf_params, or a YAML file given with --config, name the service:

    url: https://...        # of the credentials service
    cafile: /path           # PEM of the authorities of its web server; default: the system's
    lifetime: "950400"      # seconds; default: as long as the service's rules allow

The user's access token comes with the request: WaTTS must be told to pass it to the plugin.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import secrets
import sys
from pathlib import Path

import yaml

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, files
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import serialization, x509

VERSION = "1.0.0"
KIND = "eec"
REQUEST_BYTES = 1024 * 1024
PARAMETERS = ("url", "cafile", "lifetime")


class PluginFailure(Exception):
    """user: what the user may read; log: what the administrator of WaTTS may."""

    def __init__(self, user: str, log: str):
        super().__init__(log)
        self.user, self.log = user, log


def entries(credential: client.Credential, authorities: bytes) -> list[dict]:
    """A credential with an encrypted key, as WaTTS shows it, in the order on which its clients rely."""
    passphrase = secrets.token_urlsafe(24)
    key = credential.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
    certificates = b"".join(map(files.certificate_pem, (credential.certificate, *credential.chain)))
    return [
        _file("Certificate", certificates, "usercert.pem"),
        _file("Private Key", key, "userkey.pem"),
        {"name": "Passphrase (for Private Key)", "type": "text", "value": passphrase},
        _file("CA Certificate", authorities, "ca.pem"),
    ]


def _file(name: str, pem: bytes, save_as: str) -> dict:
    text = pem.decode()
    return {"name": name, "type": "textfile", "value": text, "rows": text.count("\n"), "cols": 64, "save_as": save_as}


def answer(request: dict, settings: dict) -> dict:
    """The answer to WaTTS. Raises PluginFailure."""
    action = request.get("action")
    if action == "parameter":
        return {
            "result": "ok",
            "conf_params": [{"name": name, "type": "string", "default": ""} for name in PARAMETERS],
            "request_params": [[]],
            "version": VERSION,
            "developer_email": "",
            "features": {"stdin": True},
        }
    if action not in ("request", "revoke"):
        raise PluginFailure("this is not supported", "unknown action")
    given = request.get("conf_params")
    settings = settings | {name: value for name, value in (given if isinstance(given, dict) else {}).items() if value}
    token, url = request.get("access_token"), settings.get("url")
    if not isinstance(token, str) or not token:
        raise PluginFailure("this service is not set up", "no access token: tell WaTTS to pass it to the plugin")
    if not isinstance(url, str):
        raise PluginFailure("this service is not set up", "conf_params lacks url")
    options = {"cafile": settings.get("cafile") or None}
    try:
        if action == "revoke":
            return _revoke(url, token, request.get("cred_state"), options)
        lifetime = settings.get("lifetime")
        made = client.request_credential(url, token, KIND, int(lifetime) if lifetime else None, **options)
        authority = client.fetch_authority(url, **options)
    except client.ClientError as error:
        raise PluginFailure(f"the credentials service gives nothing: {error.code or 'it failed'}", str(error)) from None
    except ValueError:
        raise PluginFailure("this service is not set up", "lifetime must be seconds") from None
    authorities = "".join(one["ca"] for one in (authority, *authority["chain"]))
    # The owner of a certificate shows it to have it revoked; a serial number alone would be anybody's.
    state = base64.b64encode(made.certificate.public_bytes(serialization.Encoding.DER)).decode()
    return {"result": "ok", "credential": entries(made, authorities.encode()), "state": state}


def _revoke(url: str, token: str, state, options: dict) -> dict:
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(state, validate=True))
    except (TypeError, ValueError):
        raise PluginFailure("there is no such credential", "cred_state is no certificate") from None
    client.revoke_credential(url, token, files.certificate_pem(certificate), **options)
    return {"result": "ok"}


def read_request(argument: str | None) -> dict:
    """The JSON object from the argument, or where there is none from standard input. Raises PluginFailure."""
    try:
        text = sys.stdin.buffer.read(REQUEST_BYTES) if argument is None else argument.encode()
        text = text.strip().rstrip(b"=")
        request = json.loads(base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise PluginFailure("this is not supported", "the request is no JSON object in base64url")
    return request


def main(arguments: list[str] | None = None) -> int:
    """Always 0: what is wrong is in the answer."""
    parser = argparse.ArgumentParser(prog="python3 -m dodas.credentials.plugin", description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="YAML, for what conf_params leave out")
    parser.add_argument("request", nargs="?", help="JSON in base64url; default: from standard input")
    options = parser.parse_args(arguments)
    try:
        settings = yaml.safe_load(Path(options.config).read_text(encoding="utf-8")) if options.config else {}
        if not isinstance(settings, dict):
            raise PluginFailure("this service is not set up", f"{options.config} is no mapping")
        result = answer(read_request(options.request), settings)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        result = _failed("this service is not set up", f"{options.config}: {type(error).__name__}")
    except PluginFailure as failure:
        result = _failed(failure.user, failure.log)
    except Exception as error:  # the protocol knows no other way to say so; its text could hold anything
        result = _failed("the plugin failed", type(error).__name__)
    print(json.dumps(result))
    return 0


def _failed(user: str, log: str) -> dict:
    return {"result": "error", "user_msg": user, "log_msg": log}


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""What a worker or a person needs: a token, then a credential for a key that never leaves this machine."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import utcnow, x509

CODE = re.compile(r"[a-z_]{1,40}")


class ClientError(RuntimeError):
    """A step that failed; the message names the URL or file and holds no secret."""


@dataclasses.dataclass(frozen=True)
class Credential:
    """A certificate (x509.Certificate), its private key, and the certificates between it and the CA."""

    certificate: object
    key: object
    chain: tuple

    def pem(self):
        """PEM bytes: certificate, key, chain."""
        return files.credential_pem(self.certificate, self.key, self.chain)


def token_endpoint(issuer, cafile=None, timeout=10.0):
    """The token endpoint (URL) that the issuer's discovery document names. Raises ClientError."""
    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
    document = _call(url, cafile=cafile, timeout=timeout)
    endpoint = document.get("token_endpoint")
    if document.get("issuer") != issuer or not isinstance(endpoint, str):
        raise ClientError(f"{url}: not the discovery document of {issuer}")
    return endpoint


def fetch_token(
    token_url, client_id, client_secret_file, audience=None, scope=None, cafile=None, timeout=10.0
):
    """An access token (str) by client_credentials (RFC 6749, 4.4). Raises ClientError."""
    try:
        with open(client_secret_file, encoding="utf-8") as stream:
            secret = stream.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the client secret cannot be read: {client_secret_file}: {type(error).__name__}"
        raise ClientError(problem) from None
    form = {"grant_type": "client_credentials"}
    if scope:
        form["scope"] = scope
    if audience:
        form["audience"] = audience
        if "://" in audience:  # RFC 8707, which takes URIs only
            form["resource"] = audience
    user = ":".join(urllib.parse.quote(part, safe="") for part in (client_id, secret))
    headers = {
        "Authorization": "Basic " + base64.b64encode(user.encode()).decode(),
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
    }
    data = urllib.parse.urlencode(form).encode()
    answer = _call(token_url, data=data, headers=headers, cafile=cafile, timeout=timeout)
    token = answer.get("access_token")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise ClientError(f"{token_url}: the answer holds no access token")
    return token


def request_credential(credentials_url, token, kind="proxy", lifetime=None, cafile=None, timeout=10.0):
    """A Credential of the kind (eec, proxy or host) for a new key. lifetime: seconds. Raises ClientError."""
    key = csr.make_key()
    body = {"csr": csr.make(key).decode(), "kind": kind}
    if lifetime:
        body["lifetime"] = lifetime
    url = credentials_url.rstrip("/") + "/v1/credentials"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = _call(url, data=json.dumps(body).encode(), headers=headers, cafile=cafile, timeout=timeout)
    try:
        certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
        chain = x509.load_pem_x509_certificates(answer["chain"].encode()) if answer["chain"] else []
    except (KeyError, AttributeError, ValueError):
        raise ClientError(f"{url}: the answer holds no certificate") from None
    if certificate.public_key().public_numbers() != key.public_key().public_numbers():
        raise ClientError(f"{url}: the certificate is for another key")
    if certificate.not_valid_after_utc <= utcnow():
        raise ClientError(f"{url}: the certificate has already ended: compare the clocks")
    return Credential(certificate, key, tuple(chain))


def fetch_authority(credentials_url, cafile=None, timeout=10.0):
    """The online CA: {"ca": PEM, "crl": PEM, "signing_policy": str, "hashes": [str]}. Raises ClientError."""
    url = credentials_url.rstrip("/") + "/v1/authority"
    answer = _call(url, cafile=cafile, timeout=timeout)
    texts = [answer.get(name) for name in ("ca", "crl", "signing_policy")]
    hashes = answer.get("hashes")
    if not all(isinstance(text, str) for text in texts) or not isinstance(hashes, list):
        raise ClientError(f"{url}: the answer is incomplete")
    if not all(isinstance(name, str) and re.fullmatch(r"[0-9a-f]{8}", name) for name in hashes):
        raise ClientError(f"{url}: the hashes are not eight hex digits")
    return answer


def _call(url, **options):
    try:
        return web.fetch_json(url, limit=64 * 1024, **options)
    except web.WebError as error:
        codes = _codes(error.body)
        raise ClientError(f"{error}: {codes}" if codes else str(error)) from None


def _codes(body):
    """The error codes in a body, and only those: the rest could quote what was sent."""
    try:
        document = json.loads(body)
        values = [document.get("error"), document.get("reason")]
    except (ValueError, AttributeError, RecursionError):
        return ""
    return ", ".join(value for value in values if isinstance(value, str) and CODE.fullmatch(value))

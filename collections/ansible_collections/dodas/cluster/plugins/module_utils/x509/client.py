# SPDX-License-Identifier: Apache-2.0
"""What a worker or a person needs: a token, then a credential for a key that never leaves this machine.

The tokens' half stands in oauth and agent, and is to be had from here. Options of all functions: ``cafile``,
``timeout`` (seconds), ``resolve``, as web.fetch.
"""

from __future__ import annotations

import dataclasses
import json
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files
from ansible_collections.dodas.cluster.plugins.module_utils.x509.agent import agent_token
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import InvalidSignature, utcnow, x509
from ansible_collections.dodas.cluster.plugins.module_utils.x509.oauth import (
    ClientError,
    call,
    discover,
    endpoint,
    exchange_token,
    fetch_token,
    introspect_token,
    poll_device,
    read_secret,
    refresh_token,
    revoke_token,
    start_device,
    token_endpoint,
)

__all__ = [
    "ClientError",
    "Credential",
    "agent_token",
    "call",
    "discover",
    "endpoint",
    "exchange_token",
    "fetch_authority",
    "fetch_token",
    "introspect_token",
    "poll_device",
    "read_secret",
    "refresh_token",
    "request_credential",
    "revoke_token",
    "start_device",
    "token_endpoint",
]


@dataclasses.dataclass(frozen=True)
class Credential:
    """A certificate (x509.Certificate), its private key, and the certificates between it and the CA."""

    certificate: object
    key: object
    chain: tuple

    def pem(self):
        """PEM bytes: certificate, key, chain."""
        return files.credential_pem(self.certificate, self.key, self.chain)


def request_credential(
    credentials_url,
    token=None,
    kind="proxy",
    lifetime=None,
    policy=None,
    delegation=None,
    key=None,
    make_token=None,
    **options,
):
    """A Credential of the kind (eec, proxy or host) from the service. lifetime: seconds. Raises ClientError.

    token: an access token; or make_token, which makes one for a CSR (PEM bytes). policy: of a proxy; delegation: id
    of the one that is to sign it. key: a private key; default: a new one.
    """
    key = key or csr.make_key()
    request = csr.make(key)
    body = {"csr": request.decode(), "kind": kind, "lifetime": lifetime, "policy": policy, "delegation": delegation}
    body = {name: value for name, value in body.items() if value is not None}
    url = credentials_url.rstrip("/") + "/v1/credentials"
    token = make_token(request) if make_token else token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = call(url, data=json.dumps(body).encode(), headers=headers, **options)
    try:
        certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
        chain = x509.load_pem_x509_certificates(answer["chain"].encode()) if answer["chain"] else []
        for below, above in zip([certificate, *chain], chain, strict=False):
            below.verify_directly_issued_by(above)
    except (KeyError, AttributeError, ValueError, TypeError, InvalidSignature):
        raise ClientError(f"{url}: the answer holds no certificate, or its chain is broken") from None
    if certificate.public_key().public_numbers() != key.public_key().public_numbers():
        raise ClientError(f"{url}: the certificate is for another key")
    if certificate.not_valid_after_utc <= utcnow():
        raise ClientError(f"{url}: the certificate has already ended: compare the clocks")
    return Credential(certificate, key, tuple(chain))


def revoke_credential(credentials_url, token, certificate=None, serial=None, **options):
    """Have a certificate revoked: one's own by its PEM (bytes), any by its serial number for administrators.

    Returns ``{"serial": str, "subject": DN or None}``. Raises ClientError.
    """
    url = credentials_url.rstrip("/") + "/v1/revocations"
    body = {"certificate": certificate.decode()} if certificate else {"serial": str(serial)}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return call(url, data=json.dumps(body).encode(), headers=headers, **options)


def fetch_authority(credentials_url, **options):
    """The online CA: ``{"ca": PEM, "crl": PEM, "signing_policy": str, "hashes": [str], "chain": [..]}``, where chain
    holds the same of each CA above it, without ``crl`` where none is known. Raises ClientError."""
    url = credentials_url.rstrip("/") + "/v1/authority"
    answer = call(url, **options)
    answer.setdefault("chain", [])
    if not isinstance(answer["chain"], list) or not _is_authority(answer, ("ca", "crl", "signing_policy")):
        raise ClientError(f"{url}: the answer is incomplete")
    if not all(isinstance(one, dict) and _is_authority(one, ("ca", "signing_policy")) for one in answer["chain"]):
        raise ClientError(f"{url}: the chain in the answer is incomplete")
    return answer


def _is_authority(answer, texts):
    hashes = answer.get("hashes")
    return (
        all(isinstance(answer.get(name), str) for name in texts)
        and isinstance(answer.get("crl"), (str, type(None)))
        and isinstance(hashes, list)
        and all(isinstance(name, str) and re.fullmatch(r"[0-9a-f]{8}", name) for name in hashes)
    )

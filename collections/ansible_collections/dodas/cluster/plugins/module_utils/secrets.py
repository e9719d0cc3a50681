# SPDX-License-Identifier: Apache-2.0
"""Secrets of one deployment: random values, and certificates of its servers from an authority of its own."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import InvalidSignature, rsa, utcnow, x509


def _scrypt(password):
    """The hash that the evaluation provider compares with: scrypt, N=16384, r=8, p=5 (OWASP's figures for 16 MiB)."""
    salt = os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=16384, r=8, p=5, maxmem=2**26, dklen=32)
    return {"salt": base64.b64encode(salt).decode(), "hash": base64.b64encode(digest).decode()}


class Secrets:
    """`state_dir`/secrets.json and `state_dir`/pki of deployment `name`."""

    def __init__(self, name, state_dir):
        self.name = name
        self.path = Path(state_dir) / "secrets.json"
        self.pki = Path(state_dir) / "pki"

    def missing(self, names, certificates):
        """Names of secrets that are not there, and of certificates that are not or must be made anew."""
        have = deployment.read_json(self.path, {})
        return [name for name in names if name not in have] + [
            name for name, hosts in certificates.items() if not self._good(name, hosts)
        ]

    def make(self, names, certificates, days):
        """Make the secrets and certificates in `names`; the authority with the first certificate."""
        for folder in (self.pki.parent, self.pki):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        have = deployment.read_json(self.path, {})
        new = {name: base64.b64encode(os.urandom(32)).decode() for name in names if name not in certificates}
        for name in [name for name in new if name.endswith("_password")]:
            new[f"{name}_scrypt"] = _scrypt(new[name])
        if new:
            deployment.write_json(self.path, {**have, **new})
        wanted = [name for name in names if name in certificates]
        if wanted:
            authority = Authority.open(str(self.pki / "authority"), f"/DC=dodas/O={self.name}/CN=Hosts CA", days=3650)
            files.write(str(self.pki / "ca.pem"), authority.ca_pem)
            for name in wanted:
                key = rsa.generate_private_key(65537, 2048)
                certificate = authority.issue_host(key.public_key(), name, certificates[name], days=days)
                files.write(str(self.pki / f"{name}.key"), files.key_pem(key))
                files.write(str(self.pki / f"{name}.crt"), files.certificate_pem(certificate))

    def _good(self, name, hosts):
        """Whether a certificate of our authority is there with its key, for these names, in its first two thirds."""
        try:
            certificate = x509.load_pem_x509_certificate((self.pki / f"{name}.crt").read_bytes())
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((self.pki / "ca.pem").read_bytes()))
            key = files.load_key(files.read_private(str(self.pki / f"{name}.key")))
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        if certificate.public_key().public_numbers() != key.public_key().public_numbers():
            return False  # a run that was killed between the two
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        fresh = certificate.not_valid_after_utc - utcnow() > life / 3
        return fresh and found.get_values_for_type(x509.DNSName) == list(hosts)

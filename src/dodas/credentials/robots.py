# SPDX-License-Identifier: Apache-2.0
"""The end-entity certificates behind proxies: one a name, with a key that never leaves the service."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import InvalidSignature, utcnow


class Robots:
    """Keeps them in a directory (mode 0700). May be used from many threads."""

    def __init__(self, directory: Path, ca: authority.Authority):
        self._directory = directory
        self._ca = ca
        self._held: dict[str, tuple] = {}
        self._locks: dict[str, threading.Lock] = {}
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def get(self, dn: str, lifetime: int) -> tuple:
        """(certificate, key) for a DN, to sign proxies of the lifetime (seconds)."""
        with self._locks.setdefault(dn, threading.Lock()):
            held = self._held.get(dn) or self._load(dn)
            if held is None or not self._lasts(held[0], lifetime):
                held = self._renew(dn, lifetime)
            self._held[dn] = held
            return held

    def _lasts(self, certificate, lifetime: int) -> bool:
        whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        left = certificate.not_valid_after_utc - utcnow()
        capped = certificate.not_valid_after_utc == self._ca.certificate.not_valid_after_utc
        enough = left >= whole / 2 and left.total_seconds() >= lifetime
        return (enough or (capped and left.total_seconds() > 0)) and not self._ca.is_revoked(
            certificate.serial_number
        )

    def _renew(self, dn: str, lifetime: int) -> tuple:
        key = csr.make_key()
        certificate = self._ca.issue_eec(key.public_key(), dn, 2 * lifetime)
        files.write(self._path(dn), files.credential_pem(certificate, key))
        return certificate, key

    def _load(self, dn: str) -> tuple | None:
        try:
            certificate, key, _chain = files.load_credential(files.read_private(self._path(dn)))
            certificate.verify_directly_issued_by(self._ca.certificate)
        except (FileNotFoundError, ValueError, InvalidSignature):
            return None
        return certificate, key

    def _path(self, dn: str) -> Path:
        return self._directory / f"{hashlib.sha256(dn.encode()).hexdigest()[:32]}.pem"

# SPDX-License-Identifier: Apache-2.0
"""The end-entity certificates behind proxies: one a name, with a key that never leaves the service."""

from __future__ import annotations

import hashlib
import threading

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files, store
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import InvalidSignature, utcnow


class Robots:
    """Keeps them in a store, under ``robots/``. May be used from many threads, and by several instances."""

    def __init__(self, kept: store.Sealed, ca: authority.Authority):
        self._store = kept
        self._ca = ca
        self._held: dict[str, tuple] = {}
        self._locks: dict[str, threading.Lock] = {}

    def get(self, dn: str, lifetime: int) -> tuple:
        """(certificate, key) for a DN, to sign proxies of the lifetime (seconds). Raises StoreError."""
        held = self._held.get(dn)
        if held and self._lasts(held[0], lifetime):
            return held
        with self._locks.setdefault(dn, threading.Lock()):
            held = self._held.get(dn)
            if not (held and self._lasts(held[0], lifetime)):
                held = self._held[dn] = self._load(dn, lifetime)
            return held

    def _load(self, dn: str, lifetime: int) -> tuple:
        def renew(kept: bytes | None) -> bytes | None:
            held = kept and self._parse(kept)
            if held and self._lasts(held[0], lifetime):
                return None
            key = csr.make_key()
            certificate = self._ca.issue_eec(key.public_key(), dn, 2 * lifetime)
            return files.credential_pem(certificate, key)

        name = f"robots/{hashlib.sha256(dn.encode()).hexdigest()[:32]}"
        return self._parse(store.update(self._store, name, renew))

    def _lasts(self, certificate, lifetime: int) -> bool:
        whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        left = certificate.not_valid_after_utc - utcnow()
        capped = certificate.not_valid_after_utc == self._ca.not_after
        enough = left >= whole / 2 and left.total_seconds() >= lifetime
        return (enough or (capped and left.total_seconds() > 0)) and not self._ca.is_revoked(certificate.serial_number)

    def _parse(self, data: bytes) -> tuple | None:
        try:
            certificate, key, _chain = files.load_credential(data)
            certificate.verify_directly_issued_by(self._ca.certificate)
        except (ValueError, InvalidSignature):
            return None  # of an authority before
        return certificate, key

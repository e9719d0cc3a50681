# SPDX-License-Identifier: Apache-2.0
"""The revocation list of a CA, kept in a store that several instances may share.

revoked.json   {serial: time of revocation}; grows only
crl.pem        the list that was last signed, by whichever instance
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, store
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import hashes, utcnow, x509
from ansible_collections.dodas.cluster.plugins.module_utils.x509.proxies import BACKDATE


class Revocations:
    """The list of the CA with this certificate and key; hours: how long each list is valid. Thread-safe.

    Call refresh before anything else. All that reads or writes raises StoreError.
    """

    def __init__(self, kept, certificate, key, hours):
        self.crl = None
        self._store = kept
        self._certificate = certificate
        self._key = key
        self._hours = hours
        self._lock = threading.Lock()

    def refresh(self):
        """Take up what other instances did, and sign a new list where the last lacks something or is half over.

        Returns whether it signed one.
        """
        made = False

        def change(stored):
            nonlocal made
            # In this order: whoever writes the list after us reads our revocation first.
            last, revoked = self._parse(stored), self._revoked()
            made = not self._is_good(last, revoked)
            return files.certificate_pem(self._sign(last, revoked)) if made else None

        with self._lock:
            self.crl = self._parse(store.update(self._store, "crl.pem", change))
        return made

    def add(self, revoked):
        """Revoke serial numbers: {serial: datetime}; those that are revoked already stay as they are."""
        new = {str(serial): moment.isoformat() for serial, moment in revoked.items()}
        store.update(self._store, "revoked.json", lambda old: json.dumps({**new, **_load(old)}).encode())
        self.refresh()

    def holds(self, serial):
        """Whether the list, as of the last refresh, holds a serial number."""
        return self.crl.get_revoked_certificate_by_serial_number(serial) is not None

    def remaining(self):
        """Seconds until the list ends."""
        return (self.crl.next_update_utc - utcnow()).total_seconds()

    def _is_good(self, crl, revoked):
        if crl is None or (crl.next_update_utc - utcnow()).total_seconds() <= self._hours * 1800:
            return False
        return all(crl.get_revoked_certificate_by_serial_number(int(serial)) for serial in revoked)

    def _revoked(self):
        return _load(self._store.read("revoked.json")[0])

    def _parse(self, pem):
        with contextlib.suppress(ValueError):
            crl = x509.load_pem_x509_crl(pem or b"")
            if crl.issuer == self._certificate.subject and crl.is_signature_valid(self._certificate.public_key()):
                return crl
        return None

    def _sign(self, last, revoked):
        now = utcnow()
        number = int(time.time() * 1000)  # larger than any before even where the last list was lost
        if last is not None:
            number = max(number, last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - BACKDATE)
            .next_update(now + dt.timedelta(hours=self._hours))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(key_identifier(self._certificate), critical=False)
        )
        for serial, moment in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial))
            builder = builder.add_revoked_certificate(
                entry.revocation_date(dt.datetime.fromisoformat(moment) - BACKDATE).build()
            )
        return builder.sign(self._key, hashes.SHA256())


def key_identifier(issuer):
    """The AuthorityKeyIdentifier in what a CA with this certificate signs."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _load(data):
    try:
        return json.loads(data or b"{}")
    except ValueError:
        raise store.StoreError("revoked.json is damaged") from None

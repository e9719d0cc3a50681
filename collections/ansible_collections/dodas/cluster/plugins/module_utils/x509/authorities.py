# SPDX-License-Identifier: Apache-2.0
"""Certificates of authorities: those that somebody gives as text, and those that a CA directory has."""

from __future__ import annotations

import dataclasses
import os
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import cadirectory, files, names
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    InvalidSignature,
    UnsupportedAlgorithm,
    utcnow,
    x509,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.held import time_text

SUBJECT = re.compile(r"^\s*access_id_CA\s+X509\s+'([^']+)'", re.MULTILINE)
CERTIFICATE = re.compile(r"([0-9a-f]{8})\.[0-9]")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One CA: its certificate, its revocation list or None, and its signing policy (text) or None.

    Without a list or policy those that are in a directory stay; without a policy there the CA may sign what is below
    its own name.
    """

    certificate: object
    crl: object = None
    policy: str | None = None

    @classmethod
    def parse(cls, certificate, crl=None, signing_policy=None):
        """From PEM text, PEM text and text. Raises ValueError where they do not fit together."""
        try:
            loaded = x509.load_pem_x509_certificates(certificate.encode())
        except ValueError:
            loaded = []
        if len(loaded) != 1:
            raise ValueError("certificate: not one certificate in PEM")
        subject = names.slash(loaded[0].subject)
        if not _is_authority(loaded[0]):
            raise ValueError(f"{subject}: the certificate is not that of an authority")
        listed = None
        if crl:
            try:
                listed = x509.load_pem_x509_crl(crl.encode())
                good = listed.issuer == loaded[0].subject and listed.is_signature_valid(loaded[0].public_key())
            except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                good = False
            if not good:
                raise ValueError(f"{subject}: the revocation list is not of this authority")
        if signing_policy and subject not in SUBJECT.findall(signing_policy):
            raise ValueError(f"{subject}: the signing policy has no access_id_CA for it")
        return cls(loaded[0], listed, signing_policy or None)

    @property
    def subject(self):
        """Its DN in slash form."""
        return names.slash(self.certificate.subject)

    @property
    def signing_policy(self):
        """Its policy; without one, for what is below its own name."""
        below = [f"{names.namespace(self.certificate.subject)}/*"]
        return self.policy or cadirectory.signing_policy(self.subject, below)

    def changes(self, directory):
        """As cadirectory.changes. Raises ValueError where another CA has the same hash, OSError."""
        links = names.openssl_hashes(self.certificate.subject)
        for link in links:
            other = load(os.path.join(directory, f"{link}.0"))
            if other is not None and other.subject != self.certificate.subject:
                raise ValueError(f"{directory}/{link}.0 is of {names.slash(other.subject)}, not of {self.subject}")
        crl = files.certificate_pem(self.crl) if self.crl is not None else None
        pem = files.certificate_pem(self.certificate)
        found = cadirectory.changes(directory, pem, crl, self.signing_policy, links)
        there = [path for path, (old, _new) in found.items() if old is not None and path.endswith(".signing_policy")]
        return found if self.policy else {path: pair for path, pair in found.items() if path not in there}

    def describe(self):
        """For people and for JSON; times are in UTC."""
        certificate, crl = self.certificate, self.crl
        update = crl.next_update_utc if crl is not None else None
        return {
            "subject": self.subject,
            "hashes": names.openssl_hashes(certificate.subject),
            "not_after": time_text(certificate.not_valid_after_utc),
            "remaining": int((certificate.not_valid_after_utc - utcnow()).total_seconds()),
            "crl_next_update": update and time_text(update),
            "crl_remaining": update and int((update - utcnow()).total_seconds()),
            "revoked": len(crl) if crl is not None else None,
        }


def files_of(directory, certificate):
    """Paths of what a directory has of a CA with the name of this certificate."""
    found = []
    for name in names.openssl_hashes(certificate.subject):
        base = os.path.join(directory, name)
        held = load(f"{base}.0")
        if held is not None and held.subject == certificate.subject:
            found += [path for path in (f"{base}.0", f"{base}.r0", f"{base}.signing_policy") if os.path.lexists(path)]
    return found


def read(directory):
    """[(file, Entry or None, problems [str])] of each certificate in a directory, sorted. Raises OSError."""
    found = []
    for name in sorted(os.listdir(directory)):
        match = CERTIFICATE.fullmatch(name)
        if match:
            found.append((name, *_read_one(directory, name, match[1])))
    return found


def _read_one(directory, name, digest):
    certificate = load(os.path.join(directory, name))
    if certificate is None:
        return None, [f"{name} is no certificate"]
    problems = []
    if digest not in names.openssl_hashes(certificate.subject):
        problems.append(f"{name} is the certificate of another authority")
    if certificate.not_valid_after_utc <= utcnow():
        problems.append(f"{name} has ended")
    base = os.path.join(directory, digest)
    crl = policy = None
    try:
        with open(f"{base}.r{name[-1]}", "rb") as stream:
            crl = x509.load_pem_x509_crl(stream.read())
        if crl.issuer != certificate.subject or not crl.is_signature_valid(certificate.public_key()):
            problems.append(f"{digest}.r{name[-1]} is the revocation list of another authority")
        elif crl.next_update_utc is not None and crl.next_update_utc <= utcnow():
            problems.append(f"{digest}.r{name[-1]} has ended")
    except FileNotFoundError:
        problems.append(f"{digest}.r{name[-1]} is missing")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problems.append(f"{digest}.r{name[-1]} is no revocation list")
    try:
        with open(f"{base}.signing_policy", encoding="utf-8", errors="replace") as stream:
            policy = stream.read()
        if names.slash(certificate.subject) not in SUBJECT.findall(policy):
            problems.append(f"{digest}.signing_policy is not for {names.slash(certificate.subject)}")
    except FileNotFoundError:
        problems.append(f"{digest}.signing_policy is missing")
    return Entry(certificate, crl, policy), problems


def load(path):
    """The certificate in a file; None where there is none."""
    try:
        with open(path, "rb") as stream:
            return x509.load_pem_x509_certificate(stream.read())
    except (OSError, ValueError):
        return None


def _is_authority(certificate):
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def summary(data):
    """A file of a CA directory in a few lines, for a diff."""
    if data is None:
        return ""
    try:
        if b"BEGIN X509 CRL" in data:
            crl = x509.load_pem_x509_crl(data)
            end = crl.next_update_utc and time_text(crl.next_update_utc)
            return f"next_update: {end}\nrevoked: {len(crl)}\n"
        if b"BEGIN CERTIFICATE" in data:
            loaded = x509.load_pem_x509_certificates(data)
            ends = ((names.slash(one.subject), time_text(one.not_valid_after_utc)) for one in loaded)
            return "".join(f"subject: {subject}\nnot_after: {end}\n" for subject, end in ends)
    except ValueError:
        pass
    return "(something else)\n" if b"PRIVATE KEY" in data else data.decode("utf-8", "replace")

# SPDX-License-Identifier: Apache-2.0
"""A certificate authority in a directory, for the certificates of hosts or for those of people and workers.

ca.key (0600)  ca.pem  crl.pem  revoked.json  certificates/ (what relying parties read: X509_CERT_DIR)
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import ipaddress
import json
import os

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, names
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    ExtendedKeyUsageOID,
    NameOID,
    hashes,
    utcnow,
    x509,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.proxies import BACKDATE, key_usage


class AuthorityError(RuntimeError):
    """The authority's files cannot be used, or it may not sign what it was asked to."""


class Authority:
    """Create with Authority.open. Signing may be done from many threads."""

    def __init__(self, directory, key, certificate, crl_hours):
        self.directory = directory
        self.certificate = certificate
        self.namespace = names.namespace(certificate.subject)
        self.crl = None
        self._key = key
        self._crl_hours = crl_hours

    @classmethod
    def open(cls, directory, subject, days=365, crl_hours=168):
        """Load the authority of a directory, or make it there: subject is its DN in slash form, ending in a
        CN.

        One of many processes that start at once makes it; the others load it. Raises AuthorityError where the
        files are damaged, readable by others or of another subject, OSError, ValueError for the subject.
        """
        name = names.parse(subject)
        if next(iter(name.rdns[-1])).oid != NameOID.COMMON_NAME or len(name.rdns) < 2:
            raise ValueError(f"the subject of an authority ends in a CN below something else: {subject}")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _locked(directory):
            key = _load_or_make_key(os.path.join(directory, "ca.key"))
            certificate = _load_or_make_certificate(os.path.join(directory, "ca.pem"), key, name, days)
            authority = cls(directory, key, certificate, crl_hours)
            authority._load_crl()
        return authority

    @property
    def ca_pem(self):
        """The certificate, PEM bytes."""
        return files.certificate_pem(self.certificate)

    @property
    def crl_pem(self):
        """The revocation list, PEM bytes."""
        return files.certificate_pem(self.crl)

    @property
    def subject(self):
        """Its DN in slash form."""
        return names.slash(self.certificate.subject)

    @property
    def signing_policy(self):
        """What Globus wants to read of the names this authority signs."""
        return (
            f"access_id_CA   X509    '{self.subject}'\n"
            "pos_rights     globus  CA:sign\n"
            f"cond_subjects  globus  '\"{self.namespace}/*\"'\n"
        )

    @property
    def hashes(self):
        """[hash, old hash] under which OpenSSL looks for it."""
        return names.openssl_hashes(self.certificate.subject)

    def remaining(self):
        """Seconds until the certificate of the authority ends."""
        return (self.certificate.not_valid_after_utc - utcnow()).total_seconds()

    def crl_remaining(self):
        """Seconds until the revocation list ends."""
        return (self.crl.next_update_utc - utcnow()).total_seconds()

    def issue_eec(self, public_key, subject, lifetime, not_after=None):
        """An end-entity certificate for a person or a robot; subject: DN in slash form, lifetime: seconds.

        Raises csr.RequestError for the key, AuthorityError for a name outside the namespace.
        """
        return self._issue(
            public_key, names.parse(subject), lifetime, not_after, [ExtendedKeyUsageOID.CLIENT_AUTH]
        )

    def issue_host(
        self, public_key, common_name, dns_names=(), ip_addresses=(), days=30, subject=None, not_after=None
    ):
        """A certificate for a server (and the client that it also is). Raises as issue_eec.

        Its subject is the namespace with OU=hosts and the common name, unless subject (slash form) is given.
        """
        alternatives = [x509.DNSName(host) for host in dns_names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses]
        if not alternatives:
            raise AuthorityError(f"the certificate of {common_name} needs a DNS name or an IP address")
        return self._issue(
            public_key,
            names.parse(subject or f"{self.namespace}/OU=hosts/CN={common_name}"),
            days * 86400,
            not_after,
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            alternatives,
        )

    def _issue(self, public_key, subject, lifetime, not_after, purposes, alternatives=()):
        csr.check_public_key(public_key)
        base = self.certificate.subject.rdns[:-1]
        if list(subject.rdns[: len(base)]) != list(base) or len(subject.rdns) <= len(base):
            raise AuthorityError(f"{names.slash(subject)} is not below {self.namespace}")
        if subject == self.certificate.subject:
            raise AuthorityError(f"{self.subject} is the authority itself")
        now = utcnow()
        ends = [now + dt.timedelta(seconds=lifetime), self.certificate.not_valid_after_utc]
        end = min(ends if not_after is None else [*ends, not_after])
        if end <= now:
            raise AuthorityError("the authority, the token or the lifetime asked for has ended")
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATE, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(public_key), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _key_identifier(self):
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def revoke(self, serial):
        """Put a serial number on the revocation list, and publish it."""
        with _locked(self.directory):
            revoked = self._revoked()
            revoked.setdefault(str(serial), utcnow().isoformat())
            files.write(self._path("revoked.json"), json.dumps(revoked).encode())
            self._make_crl(revoked)

    def is_revoked(self, serial):
        """Whether the list now published holds the serial number."""
        return self.crl.get_revoked_certificate_by_serial_number(serial) is not None

    def refresh_crl(self):
        """Publish a new list where half the life of the present one is over. Returns whether it did."""
        if self.crl_remaining() > self._crl_hours * 1800:
            return False
        with _locked(self.directory):
            self._make_crl(self._revoked())
        return True

    def _revoked(self):
        try:
            with open(self._path("revoked.json"), encoding="utf-8") as stream:
                return json.load(stream)
        except FileNotFoundError:
            return {}

    def _make_crl(self, revoked):
        now = utcnow()
        number = 1
        if self.crl is not None:
            number += self.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATE)
            .next_update(now + dt.timedelta(hours=self._crl_hours))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for serial, date in revoked.items():
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial))
                .revocation_date(dt.datetime.fromisoformat(date) - BACKDATE)
                .build()
            )
        self.crl = builder.sign(self._key, hashes.SHA256())
        files.write(self._path("crl.pem"), self.crl_pem, files.PUBLIC)
        install(self._path("certificates"), self.ca_pem, self.crl_pem, self.signing_policy, self.hashes)

    def _load_crl(self):
        with contextlib.suppress(FileNotFoundError, ValueError), open(self._path("crl.pem"), "rb") as stream:
            self.crl = x509.load_pem_x509_crl(stream.read())
            if not self.crl.is_signature_valid(self.certificate.public_key()):
                self.crl = None
        if self.crl is None or self.crl_remaining() <= self._crl_hours * 1800:
            self._make_crl(self._revoked())

    def _path(self, name):
        return os.path.join(self.directory, name)


def install(directory, ca_pem, crl_pem, signing_policy, link_names):
    """Make or refresh one CA in a directory as grid software reads it: ``<hash>.0``, ``.r0``,
    ``.signing_policy``.

    Contents: bytes, bytes, str; link_names: the hashes. Raises OSError.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    contents = {"0": ca_pem, "r0": crl_pem, "signing_policy": signing_policy.encode()}
    for name in link_names:
        for suffix, content in contents.items():
            files.write(os.path.join(directory, f"{name}.{suffix}"), content, files.PUBLIC)


@contextlib.contextmanager
def _locked(directory):
    descriptor = os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _load_or_make_key(path):
    try:
        return files.load_key(files.read_private(path))
    except FileNotFoundError:
        key = csr.make_key()
        files.write(path, files.key_pem(key))
        return key
    except (PermissionError, ValueError) as error:
        raise AuthorityError(f"the key of the authority cannot be used: {path}: {error}") from error


def _load_or_make_certificate(path, key, name, days):
    try:
        with open(path, "rb") as stream:
            certificate = x509.load_pem_x509_certificate(stream.read())
    except FileNotFoundError:
        certificate = _self_signed(key, name, days)
        files.write(path, files.certificate_pem(certificate), files.PUBLIC)
    except ValueError as error:
        raise AuthorityError(f"{path} is no certificate: {error}") from error
    if certificate.public_key().public_numbers() != key.public_key().public_numbers():
        raise AuthorityError(f"{path} does not belong to the key beside it")
    if certificate.subject != name:
        raise AuthorityError(f"{path} is of {names.slash(certificate.subject)}, not of {names.slash(name)}")
    return certificate


def _self_signed(key, name, days):
    now = utcnow()
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )

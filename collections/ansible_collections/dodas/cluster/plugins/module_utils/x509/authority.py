# SPDX-License-Identifier: Apache-2.0
"""A certificate authority whose state is in a store, for the certificates of hosts or for those of people and workers.

ca.key  ca.pem  crl.pem  revoked.json

In a directory that is given by its path the certificate and the list may be read by everybody, and ``certificates``
beside them is a CA directory for relying parties (X509_CERT_DIR).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    cadirectory,
    csr,
    files,
    given,
    names,
    revocations,
    store,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.cadirectory import install, install_document
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    ExtendedKeyUsageOID,
    NameOID,
    ec,
    hashes,
    utcnow,
    x509,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.given import AuthorityError
from ansible_collections.dodas.cluster.plugins.module_utils.x509.proxies import BACKDATE, key_usage

__all__ = ["Authority", "AuthorityError", "install", "install_document"]

KEY_TYPES = {"rsa-2048": csr.make_key, "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1())}


class Authority:
    """Create with Authority.open or Authority.given. Signing may be done from many threads.

    certificate, chain: its own, and those above it with the self-signed root last; namespace: the DN (slash form) below
    which it signs; signing_policy: what Globus wants to read of that.
    """

    def __init__(self, kept, certificate, key, chain=(), crls=None, crl_hours=168, namespace=None, directory=None):
        self.certificate = certificate
        self.chain = tuple(chain)
        self.namespace = namespace or names.namespace(certificate.subject)
        self._base = list(names.parse(self.namespace).rdns)
        self._key = key
        self._crls = crls or {}
        self._directory = directory
        self.signing_policy = cadirectory.signing_policy(self.subject, [f"{self.namespace}/*"])
        self._names = {names.canonical(one.subject) for one in (certificate, *chain)}
        self._identifier = revocations.key_identifier(certificate)
        self._revocations = revocations.Revocations(kept, certificate, key, crl_hours)

    @classmethod
    def open(cls, kept, subject, days=365, crl_hours=168, key_type="rsa-2048"):
        """Load the authority of a store or directory, or make it there.

        subject: its DN in slash form, ending in a CN; days, key_type (rsa-2048 or ec-p256): of one that is made.
        One of many processes that start at once makes it; the others load it. Raises AuthorityError where what
        is there is damaged, readable by others or of another subject, StoreError, ValueError for the subject.
        """
        name = names.parse(subject)
        if next(iter(name.rdns[-1])).oid != NameOID.COMMON_NAME or len(name.rdns) < 2:
            raise ValueError(f"the subject of an authority ends in a CN below something else: {subject}")
        make = KEY_TYPES[key_type]
        kept, directory = _store(kept)
        try:
            key = files.load_key(store.update(kept, "ca.key", lambda pem: pem or files.key_pem(make())))
            pem = store.update(
                kept, "ca.pem", lambda pem: pem or files.certificate_pem(_self_signed(key, name, days))
            )
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, store.StoreError) as error:
            raise AuthorityError(f"the authority {subject} cannot be used: {error}") from error
        if certificate.public_key() != key.public_key():
            raise AuthorityError(f"the certificate of {subject} does not belong to the key beside it")
        if certificate.subject != name:
            raise AuthorityError(f"the authority here is {names.slash(certificate.subject)}, not {subject}")
        authority = cls(kept, certificate, key, crl_hours=crl_hours, directory=directory)
        authority.refresh_crl(publish=True)
        return authority

    @classmethod
    def given(cls, kept, certificate_pem, key_pem, chain_pem=b"", crl_hours=168, namespace=None):
        """An authority that somebody brings, self-signed or below others; only its revocations are in the store.

        chain_pem: the certificates up to the root, and revocation lists of these CAs: what is on one of its own stays
        revoked. namespace: DN (slash form) below which it signs; default: its subject without the last CN. Raises
        AuthorityError where it cannot be used, StoreError.
        """
        certificate, key, chain, crls = given.load(certificate_pem, key_pem, chain_pem)
        kept, directory = _store(kept)
        try:
            authority = cls(kept, certificate, key, chain, crls, crl_hours, namespace, directory)
        except ValueError as error:
            problem = f"give {names.slash(certificate.subject)} a namespace to sign in: {error}"
            raise AuthorityError(problem) from error
        if certificate.subject in crls:
            authority._revocations.add(
                {one.serial_number: one.revocation_date_utc for one in crls[certificate.subject]}
            )
        authority.refresh_crl(publish=True)
        return authority

    @property
    def ca_pem(self):
        """The certificate, PEM bytes."""
        return files.certificate_pem(self.certificate)

    @property
    def chain_pem(self):
        """The certificates above it, PEM bytes; empty for a self-signed one."""
        return b"".join(map(files.certificate_pem, self.chain))

    @property
    def between(self):
        """The certificates between what it signs and the root, which relying parties have: to go with a leaf."""
        return (self.certificate, *self.chain[:-1]) if self.chain else ()

    @property
    def crl(self):
        """The revocation list (x509.CertificateRevocationList)."""
        return self._revocations.crl

    @property
    def crl_pem(self):
        """The revocation list, PEM bytes."""
        return files.certificate_pem(self.crl)

    @property
    def subject(self):
        """Its DN in slash form."""
        return names.slash(self.certificate.subject)

    @property
    def hashes(self):
        """[hash, old hash] under which OpenSSL looks for it."""
        return names.openssl_hashes(self.certificate.subject)

    @property
    def not_after(self):
        """When it ends, or what is above it (datetime)."""
        return min(one.not_valid_after_utc for one in (self.certificate, *self.chain))

    def document(self):
        """All that relying parties need, as client.fetch_authority describes it: JSON types only."""
        chain = [{"ca": pem.decode(), "crl": crl and crl.decode(), "signing_policy": policy, "hashes": links}
                 for pem, crl, policy, links in self._above()]  # fmt: skip
        return {"ca": self.ca_pem.decode(), "crl": self.crl_pem.decode(), "signing_policy": self.signing_policy,
                "hashes": self.hashes, "chain": chain}  # fmt: skip

    def install(self, directory):
        """Make or refresh a CA directory of it and those above it. Returns whether anything changed."""
        return install(directory, self.ca_pem, self.crl_pem, self.signing_policy, self.hashes, self._above())

    def _above(self):
        """For each CA of the chain: PEM, PEM of its revocation list or None, signing policy, hashes."""
        for below, one in zip((self.certificate, *self.chain), self.chain, strict=False):
            crl = self._crls.get(one.subject)
            policy = cadirectory.signing_policy(names.slash(one.subject), [names.slash(below.subject)])
            crl_pem = None if crl is None else files.certificate_pem(crl)  # an empty list is false
            yield files.certificate_pem(one), crl_pem, policy, names.openssl_hashes(one.subject)

    def remaining(self):
        """Seconds until the authority ends."""
        return (self.not_after - utcnow()).total_seconds()

    def crl_remaining(self):
        """Seconds until the revocation list ends."""
        return self._revocations.remaining()

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
        if list(subject.rdns[: len(self._base)]) != self._base or len(subject.rdns) <= len(self._base):
            raise AuthorityError(f"{names.slash(subject)} is not below {self.namespace}")
        # Compared as relying parties compare, who take no notice of case and spaces.
        if names.canonical(subject) in self._names:
            raise AuthorityError(f"{names.slash(subject)} is the name of the authority or of one above it")
        now = utcnow()
        ends = [now + dt.timedelta(seconds=lifetime), self.not_after]
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
            .add_extension(self._identifier, critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def revoke(self, serial):
        """Put a serial number on the revocation list, and publish it. Raises StoreError."""
        self._revocations.add({serial: utcnow()})
        self._publish()

    def is_revoked(self, serial):
        """Whether the list, as of the last refresh_crl, holds the serial number."""
        return self._revocations.holds(serial)

    def refresh_crl(self, publish=False):
        """Take up what other instances revoked, and sign a new list where half the life of the last is over.

        Returns whether it signed one. To be called once a minute. Raises StoreError.
        """
        before = self.crl
        made = self._revocations.refresh()
        if publish or before != self.crl:
            self._publish()
        return made

    def _publish(self):
        if self._directory:
            self.install(os.path.join(self._directory, "certificates"))


def _store(kept):
    """(store, directory or None) of a store or a path."""
    if isinstance(kept, (str, os.PathLike)):
        return store.Directory(kept, public=("ca.pem", "crl.pem")), os.fspath(kept)
    return kept, None


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

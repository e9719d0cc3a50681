# SPDX-License-Identifier: Apache-2.0
"""The credential in a file of this host: what it is, and whether it is still what it should be."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import re
import stat
import tempfile

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, names, programs, proxies, voms
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import (
    ExtendedKeyUsageOID,
    InvalidSignature,
    UnsupportedAlgorithm,
    ec,
    rsa,
    x509,
)

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
KEY_TYPES = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
}
NO_CRL = "unable to get certificate CRL"


@dataclasses.dataclass(frozen=True)
class Held:
    """What is in a file. kind: eec, proxy or host; subject, identity (who is behind a proxy), issuer and authority
    (who signed the identity's certificate): DNs in slash form; not_after: of what ends first; remaining: seconds;
    policy, path_length: of a proxy, else None; key_fits: whether the key in the file is the certificate's;
    attributes: of VOs."""

    kind: str
    subject: str
    identity: str
    issuer: str
    authority: str
    serial: int
    not_before: dt.datetime
    not_after: dt.datetime
    remaining: float
    policy: str | None
    path_length: int | None
    key_type: str
    key_fits: bool
    attributes: tuple
    chain: tuple

    @property
    def person(self):
        """The certificate (x509.Certificate) of the identity."""
        return next(one for one in self.chain if names.slash(one.subject) == self.identity)

    def life(self):
        """Seconds from when it was made to its end."""
        seconds = (self.not_after - self.not_before).total_seconds()
        made = seconds - proxies.BACKDATE.total_seconds()
        return made if made > 0 else seconds

    def describe(self):
        """For people and for JSON; times are in UTC. Nothing in it is secret."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "identity": self.identity,
            "issuer": self.issuer,
            "authority": self.authority,
            "serial": str(self.serial),
            "not_before": time_text(self.not_before),
            "not_after": time_text(self.not_after),
            "remaining": int(self.remaining),
            "policy": self.policy,
            "path_length": self.path_length,
            "key_type": self.key_type,
            "key_fits": self.key_fits,
            "attributes": [
                {"vo": one.vo, "fqans": list(one.fqans), "server": one.uri, "not_after": time_text(one.not_after)}
                for one in self.attributes
            ],
        }

    def summary(self):
        """Lines for a person to compare."""
        lines = {"kind": self.kind, "subject": self.subject, "authority": self.authority, "key": self.key_type,
                 "policy": self.policy, "not_after": time_text(self.not_after)}  # fmt: skip
        return "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)


def read(path):
    """The Held of a file; None where there is no file. Raises OSError, ValueError for what is no credential."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(1024 * 1024)
    except FileNotFoundError:
        return None
    return parse(data)


def parse(data):
    """The Held in PEM bytes. Raises ValueError."""
    found = proxies.inspect(data)
    chain = found.chain
    public_key = chain[0].public_key()
    held = Held(
        kind="host" if found.kind == "eec" and _serves(chain[0]) else found.kind,
        subject=found.subject,
        identity=found.identity,
        issuer=names.slash(chain[0].issuer),
        authority="",
        serial=chain[0].serial_number,
        not_before=found.not_before,
        not_after=found.not_after,
        remaining=found.remaining,
        policy=found.policy,
        path_length=found.path_length,
        key_type=key_type(public_key),
        key_fits=_has_key(data, public_key),
        attributes=tuple(attribute for certificate in chain for attribute in voms.of(certificate)),
        chain=chain,
    )
    return dataclasses.replace(held, authority=names.slash(held.person.issuer))


def key_type(public_key):
    """``rsa-2048``, ``ec-p256``: the name of a key's kind."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return f"rsa-{public_key.key_size}"
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return f"ec-p{public_key.key_size}"
    return type(public_key).__name__


def _serves(certificate):
    """Whether it is for a web server."""
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in purposes


def _has_key(data, public_key):
    try:
        return files.load_key(data).public_key() == public_key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a credential shall be; None: any. subject: of the identity; remaining: the least seconds left, or a
    fraction of its life below 1."""

    kind: str
    subject: str | None = None
    policy: str | None = None
    key_type: str | None = None
    remaining: float = 0.5

    def differs(self, held):
        """Why a Held is not it, in a few words; None where it is."""
        for name, is_ in (("kind", held.kind), ("subject", held.identity), ("policy", held.policy),
                          ("key_type", held.key_type)):  # fmt: skip
            wanted = getattr(self, name)
            if wanted is not None and wanted != is_:
                return f"its {name} is {is_}, not {wanted}"
        if not held.key_fits:
            return "its key is missing or another's"
        if held.remaining < self.least(held):
            return "it has ended" if held.remaining <= 0 else f"it ends in {held.remaining:.0f} s"
        return None

    def least(self, held):
        """Seconds that must be left of a Held."""
        return self.remaining * held.life() if self.remaining < 1 else self.remaining


def of_authority(held, certificate, crl=None):
    """Why a Held is not of the CA with this certificate, or no longer; None where it is."""
    try:
        held.person.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return f"it is not of the authority {names.slash(certificate.subject)} that is there now"
    if crl is not None and crl.get_revoked_certificate_by_serial_number(held.person.serial_number) is not None:
        return "it is revoked"
    return None


def problems(path, owner=None):
    """Why others may have the key in a file: [str]. owner: the uid that it must have."""
    found = os.lstat(path)
    said = [] if stat.S_ISREG(found.st_mode) else ["it is not a regular file"]
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
        said.append(f"its mode is {stat.S_IMODE(found.st_mode):04o}: others can use the key")
    if owner is not None and found.st_uid != owner:
        said.append(f"it belongs to uid {found.st_uid}, not {owner}")
    return said


class File:
    """A file that is to hold a credential. owner: (uid, gid)."""

    def __init__(self, path, mode, owner):
        self.path = path
        self._mode = mode
        self._owner = owner

    def look(self, wanted):
        """(the Held that is there or None, why it is not the one that is Wanted or None). Raises OSError, also where
        something else than a file is there."""
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise FileExistsError(f"{self.path} is not a regular file: not replaced")
        try:
            held = read(self.path)
        except ValueError:
            return None, "what is there is no credential"
        if held is None:
            return None, "there is none"
        reasons = problems(self.path, self._owner[0])
        return held, reasons[0] if reasons else wanted.differs(held)

    def differs(self):
        """Whether its mode or group is another, in a way that gives nobody the key."""
        found = os.stat(self.path)
        return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != (self._mode, *self._owner)

    def write(self, data):
        """Replace it by PEM bytes. Raises OSError."""
        files.write(self.path, data, self._mode, self._owner)

    def adjust(self):
        """Give it its mode and group. Raises OSError."""
        with open(self.path, "rb") as stream:
            self.write(stream.read())


def verify(held, directory):
    """(whether OpenSSL accepts it by a CA directory, why not, whether revocation lists were looked at).

    The first is None where there is no openssl.
    """
    with tempfile.NamedTemporaryFile(suffix=".pem") as stream:
        stream.write(b"".join(map(files.certificate_pem, held.chain)))
        stream.flush()
        command = ["openssl", "verify", "-allow_proxy_certs", "-x509_strict", "-no-CAfile", "-no-CAstore"]
        command += ["-CApath", os.path.abspath(directory), "-untrusted", stream.name]
        for lists in (["-crl_check_all"], []):
            try:
                done = programs.run([*command, *lists, stream.name])
            except programs.RunError as error:
                return None, str(error), False
            said = (done.stderr + done.stdout).decode("utf-8", "replace")
            if done.status == 0 or NO_CRL not in said:
                break
    reason = re.search(r"error \d+ at \d+ depth lookup: ?(.*)", said)
    return done.status == 0, None if done.status == 0 else (reason[1] if reason else said.strip()[-200:]), bool(lists)


def seconds(text):
    """Seconds from ``43200``, ``12h``, ``90m``, ``7d``; a fraction such as ``0.5`` stays one. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)|0?\.([0-9]{1,6})", text.strip())
    if not found or float(text.strip().rstrip("smhd")) == 0:
        raise ValueError(f"{text!r} is neither seconds, such as 43200 or 12h, nor a fraction, such as 0.5")
    return float(text) if found[3] else int(found[1]) * UNITS[found[2]]


def time_text(moment):
    """A time as ``2026-11-23T01:02:03Z``."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

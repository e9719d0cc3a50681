# SPDX-License-Identifier: Apache-2.0
"""Attribute certificates of VOMS: a virtual organization's word that the holder of a certificate is a member.

A VOMS server gives them to whoever shows a certificate and its key; Debian's ``voms-proxy-init`` knows how to ask. It
puts them into a proxy, of which only that extension is kept: ``proxies.sign(..., extensions=[...])`` puts it into the
proxy of a worker, signed by the same certificate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
import os
import re
import shutil
import tempfile
import threading

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import der, files, names, programs
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import hashes, x509

OID = "1.3.6.1.4.1.8005.100.100.5"
FQANS = "1.3.6.1.4.1.8005.100.100.4"
VO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")
FQAN = re.compile(r"/(?P<vo>[A-Za-z0-9_.-]+)(/[A-Za-z0-9_.-]+)*(/Role=(?!NULL\b)[A-Za-z0-9_.-]+)?")
PROXY = "0:10"  # hours and minutes; the proxy itself is thrown away

log = logging.getLogger("dodas.voms")

# What voms-proxy-init says, most telling first; not all of its failures have words.
PROBLEMS = (
    ("User unknown to this VO", "not_a_member", "{dn} is no member of VO {vo}"),
    ("Unable to satisfy", "refused", "the VOMS server does not grant {dn} what was asked for in VO {vo}"),
    ("not known!", "unknown_vo", "VO {vo} is not in {vomses}"),
    ("Cannot verify AC", "untrusted", "{vomsdir} and {certdir} do not trust the VOMS server of {vo}"),
    ("unable to access trusted certificates", "no_authorities", "{certdir} is no directory of authorities"),
    ("Certificate verification failed", "no_authorities",
     "{certdir} lacks the authorities of {dn}, or it is not valid"),
    ("None of the contacted servers", "unavailable", "the VOMS server of VO {vo} cannot be reached or hung up"),
)


class VomsError(RuntimeError):
    """No attribute certificate. reason: bad_request, not_a_member, refused, unknown_vo, untrusted, no_authorities,
    unavailable, timeout, missing (the program) or failed. The message is safe to show."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute certificate. not_before, not_after: UTC; serial: of the certificate that it is for."""

    vo: str
    uri: str
    fqans: tuple
    not_before: dt.datetime
    not_after: dt.datetime
    serial: int


def fetch(vo, certificate, key, chain=(), fqans=(), lifetime=43200, vomses=None, vomsdir=None, certdir=None,
          timeout=30.0, program="voms-proxy-init", authority=None):  # fmt: skip
    """(OID, DER, critical) of the extension that says that the certificate's subject is in the VO.

    fqans: groups and roles to ask for, most wanted first, such as ``/cms/Role=production``; none: what the server
    gives everybody. lifetime: seconds, which the server may cut. vomses, vomsdir, certdir: where VOMS servers are,
    which are trusted, and by which authorities; None: where VOMS' own software looks. authority: an Authority that
    signed the certificate and is not in certdir. timeout: seconds. Raises VomsError.
    """
    if not VO.fullmatch(vo):
        raise VomsError("bad_request", f"no name for a VO: {vo!r}")
    for fqan in fqans:
        match = FQAN.fullmatch(fqan)
        if not match or match["vo"] != vo:
            raise VomsError("bad_request", f"no group or role of VO {vo}: {fqan!r}")
    # Only its owner may look into a directory that mkdtemp makes.
    scratch = tempfile.mkdtemp(prefix="dodas-voms-")
    try:
        holder, proxy = os.path.join(scratch, "holder.pem"), os.path.join(scratch, "proxy.pem")
        files.write(holder, files.credential_pem(certificate, key, chain))
        hours, minutes = divmod(-(-lifetime // 60), 60)
        command = [program, "-q", "-rfc", "-cert", holder, "-key", holder, "-out", proxy, "-valid", PROXY]
        command += ["-vomslife", f"{hours}:{minutes:02}", "-timeout", str(max(1, int(timeout / 2)))]
        for wanted in [f"{vo}:{fqan}" for fqan in fqans] or [vo]:
            command += ["-voms", wanted]
        environment = {"HOME": scratch, "X509_USER_PROXY": proxy}
        places = {"vomses": vomses, "vomsdir": vomsdir, "certdir": certdir}
        if vomses is not None:
            command += ["-vomses", os.fspath(vomses)]
        if vomsdir is not None:
            environment["X509_VOMS_DIR"] = os.fspath(vomsdir)
        if certdir is not None:
            trusted = _with_authority(certdir, authority, os.path.join(scratch, "certificates"))
            environment["X509_CERT_DIR"] = os.fspath(trusted)
        try:
            result = programs.run(command, timeout=timeout, environment=environment)
        except programs.RunError as error:
            if error.pid:  # killed, it leaves the proxy that it shows to the server, with its key
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"/tmp/tmp_x509up_u{os.getuid()}_{error.pid}")
            reason = error.reason if error.reason in ("timeout", "missing") else "failed"
            raise VomsError(reason, f"VO {vo}: {error}") from None
        if result.status:
            said = (result.stderr + result.stdout).decode("utf-8", "replace")
            raise _problem(said, result.status, dn=names.slash(certificate.subject), vo=vo, **places)
        with open(proxy, "rb") as stream:
            extension = _extension(stream.read(1024 * 1024))
        if [a.vo for a in read(extension)] != [vo] or read(extension)[0].serial != certificate.serial_number:
            raise VomsError("failed", f"the VOMS server of {vo} answered for another VO or another certificate")
        return OID, extension, False
    except (OSError, ValueError) as error:
        raise VomsError("failed", f"VO {vo}: {type(error).__name__}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _with_authority(certdir, authority, directory):
    """A directory of all authorities in certdir and of one more: voms-proxy-init takes no second directory."""
    if authority is None or not os.path.isdir(certdir):
        return certdir
    authority.install(directory)
    for name in os.listdir(certdir):
        if name.partition(".")[0] not in authority.hashes:
            link = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            os.symlink(os.path.abspath(os.path.join(certdir, name)), link)
    return directory


def read(extension):
    """[Attribute] of an extension's DER; verifies no signature. Raises ValueError."""
    ((_tag, certificates),) = der.elements(der.read(extension, der.SEQUENCE)[0])
    return [_attribute(body) for _tag, body in der.elements(certificates)]


def of(certificate):
    """[Attribute] that a certificate (x509.Certificate) holds. Raises ValueError."""
    for extension in certificate.extensions:
        if extension.oid.dotted_string == OID:
            return read(extension.value.value)
    return []


class Attributes:
    """Keeps what VOMS servers answer: asks again when half its life is over, serves it to its end where that fails.

    VOMS revokes nothing, and its server says "unknown user" also when its database is away: so what was granted holds
    until it ends. settings: has vomses, vomsdir, certdir; authority: that of the certificates, as fetch takes it;
    timeout: seconds of one request; retry: seconds between two that fail. Thread-safe.
    """

    def __init__(self, settings, authority=None, timeout=30.0, retry=10.0, fetch=fetch):
        self._options = {name: getattr(settings, name) for name in ("vomses", "vomsdir", "certdir")}
        self._options |= {"authority": authority, "timeout": timeout}
        self._retry = dt.timedelta(seconds=retry)
        self._fetch = fetch
        self._lock = threading.Lock()
        self._held = {}

    def get(self, certificate, key, vo, fqans=(), lifetime=43200, chain=()):
        """As fetch. Raises VomsError where nothing is held, the same one until the next request."""
        # By the certificate, not its name: the attributes are bound to its serial number.
        name = certificate.fingerprint(hashes.SHA256()), vo, tuple(fqans), lifetime
        with self._lock:
            now = _now()
            self._held = {name: held for name, held in self._held.items() if not held.over(now)}
            held = self._held.setdefault(name, _Held(now))
        # While one asks, the others need not wait for it if they have what still holds.
        if held.lock.acquire(blocking=held.end <= now):
            try:
                if _now() >= held.due:
                    self._renew(held, vo, certificate, key, chain, fqans, lifetime)
            finally:
                held.lock.release()
        if held.end <= _now():
            raise VomsError(*(held.failure or ("unavailable", f"the attributes of VO {vo} have just ended")))
        return held.extension

    def _renew(self, held, vo, *request):
        try:
            extension = self._fetch(vo, *request, **self._options)
            (attribute,) = read(extension[1])
            now = _now()
            held.extension, held.end, held.due = extension, attribute.not_after, now + (attribute.not_after - now) / 2
        except VomsError as error:
            held.failure = error.reason, str(error)
            held.due = _now() + self._retry
            if held.extension:
                log.warning("attributes of VO %s are served until %s: %s", vo, held.end, error)


class _Held:
    """What one certificate has of one VO: due is when to ask again, end when the extension ends."""

    def __init__(self, now):
        self.lock = threading.Lock()
        self.extension = self.failure = None
        self.end = self.due = now

    def over(self, now):
        return (self.extension or self.failure) and max(self.end, self.due) <= now


def _now():
    return dt.datetime.now(dt.UTC)


def _problem(said, status, **what):
    for words, reason, message in PROBLEMS:
        if words in said:
            return VomsError(reason, message.format(**what))
    return VomsError("failed", f"VO {what['vo']}: voms-proxy-init failed with status {status}")


def _extension(pem):
    for extension in x509.load_pem_x509_certificates(pem)[0].extensions:
        if extension.oid.dotted_string == OID:
            return extension.value.value
    raise ValueError("no attribute certificate")


def _attribute(body):
    """RFC 5755: info {version, holder, issuer, signature, serial, validity, attributes}."""
    info = der.elements(der.read(body, der.SEQUENCE)[0])
    _version, (_t, holder), _issuer, _algorithm, _serial, (_t, validity), (_t, attributes) = info[:7]
    (_t, entity), *_serial = der.elements(holder)  # baseCertificateID: issuer, serial
    serial = int.from_bytes(der.elements(entity)[1][1], "big", signed=True)
    not_before, not_after = (_time(tag, text) for tag, text in der.elements(validity))
    for _t, attribute in der.elements(attributes):
        if not attribute.startswith(der.oid(FQANS)):
            continue
        _oid, (_t, values) = der.elements(attribute)
        (_t, authority), (_t, granted) = der.elements(der.read(values, der.SEQUENCE)[0])
        ((_t, uri),) = der.elements(authority)
        vo, _separator, address = uri.decode("ascii").partition("://")
        fqans = tuple(text.decode("ascii") for _t, text in der.elements(granted))
        return Attribute(vo, address, fqans, not_before, not_after, serial)
    raise ValueError("an attribute certificate without attributes")


def _time(tag, text):
    if tag != der.TIME:
        raise ValueError("not a GeneralizedTime")
    return dt.datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)

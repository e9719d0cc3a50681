# SPDX-License-Identifier: Apache-2.0
"""Proxy files of a person: where they are, what they hold, how one is signed by a certificate of one's own."""

from __future__ import annotations

import datetime as dt
import os
import re
import stat
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, csr, files, names, proxies, voms
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import serialization, utcnow, x509
from dodas.errors import DodasError, InputError

KINDS = {None: "", "inherit-all": "RFC compliant proxy", "limited": "RFC compliant limited proxy",
         "independent": "RFC compliant independent proxy"}  # fmt: skip


def default_path():
    """Where grid software looks for a proxy."""
    return Path(os.environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.getuid()}")


def seconds(text):
    """The seconds of hours and minutes: ``12:00``. Raises InputError."""
    found = re.fullmatch(r"(\d{1,5}):([0-5]?\d)", text)
    if not found:
        raise InputError(f"{text!r} is not of the form H:M, such as 12:00")
    return int(found[1]) * 3600 + int(found[2]) * 60


def clock(left):
    """Seconds as ``11:59:59``."""
    left = max(0, int(left))
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


def read(path):
    """What a file holds, for people and for JSON. Raises DodasError."""
    try:
        data = Path(path).read_bytes()
        chain = x509.load_pem_x509_certificates(data)
        found = proxies.inspect(data)
        vo = attributes(chain)
    except FileNotFoundError:
        raise DodasError(f"{path}: there is no proxy; ./dodas proxy init makes one") from None
    except OSError as error:
        raise DodasError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DodasError(f"{path}: this is no proxy: {error}") from None
    policy = found.info and found.info.policy
    return {
        "subject": found.subject,
        "issuer": names.slash(chain[0].issuer),
        "identity": found.identity,
        "kind": found.kind,
        "type": KINDS[policy] or "end-entity certificate",
        "policy": policy,
        "path_length": found.info and found.info.path_length,
        "strength": chain[0].public_key().key_size,
        "path": str(path),
        "serial": str(chain[0].serial_number),
        "not_after": found.not_after.isoformat(),
        "timeleft": max(0, int(found.remaining)),
        "vo": vo,
    }


def attributes(chain):
    """What VOs say in a chain of certificates (x509.Certificate). Raises ValueError."""
    now = dt.datetime.now(dt.UTC)
    return [
        {"vo": one.vo, "uri": one.uri, "fqans": list(one.fqans), "not_after": one.not_after.isoformat(),
         "timeleft": max(0, int((one.not_after - now).total_seconds()))}
        for certificate in chain for one in voms.of(certificate)
    ]  # fmt: skip


def write(path, credential):
    """Write a client.Credential where grid software finds it, mode 0600. Raises DodasError."""
    try:
        files.write(path, credential.pem())
    except OSError as error:
        raise DodasError(f"{path} was not written: {error.strerror or error}") from None


def sign(certificate_path, key_path, lifetime, policy, ask, vo=None, fqans=()):
    """A client.Credential: a proxy below a certificate of one's own, for a new key.

    lifetime: seconds. ask: called for the passphrase of the key, where it has one. vo, fqans: attributes to ask the
    VO's server for. Raises DodasError.
    """
    try:
        certificate, *chain = x509.load_pem_x509_certificates(Path(certificate_path).read_bytes())
        key = _load_key(key_path, ask)
        if key.public_key() != certificate.public_key():
            raise InputError(f"{key_path} is not the key of {certificate_path}")
        if certificate.not_valid_after_utc <= utcnow():
            raise InputError(f"{certificate_path} ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        extensions = [voms.fetch(vo, certificate, key, chain, fqans, lifetime)] if vo else []
        own = csr.make_key()
        proxy = proxies.sign(certificate, key, own.public_key(), lifetime, policy, extensions=extensions)
    except OSError as error:
        raise InputError(f"{error.filename or key_path}: {error.strerror or error}") from None
    except voms.VomsError as error:
        raise DodasError(str(error)) from None
    except proxies.ProxyError as error:
        raise DodasError(f"{certificate_path}: {error}") from None
    except ValueError as error:
        raise InputError(f"{certificate_path}: {error}") from None
    return client.Credential(proxy, own, (certificate, *chain))


def _load_key(path, ask):
    data = files.read_private(path)
    try:
        return serialization.load_pem_private_key(data, None)
    except TypeError:  # it has a passphrase
        pass
    except ValueError:
        raise InputError(f"{path} holds no private key in PEM") from None
    try:
        return serialization.load_pem_private_key(data, ask().encode())
    except ValueError:
        raise InputError(f"{path}: the passphrase is wrong") from None


def destroy(path):
    """Overwrite a proxy and remove it. Raises DodasError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as stream:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DodasError(f"{path} is not a regular file: not removed")
            stream.write(bytes(found.st_size))
            os.fsync(descriptor)
        os.unlink(path)
    except FileNotFoundError:
        raise DodasError(f"{path}: there is no proxy to destroy") from None
    except OSError as error:
        raise DodasError(f"{path} was not removed: {error.strerror}") from None

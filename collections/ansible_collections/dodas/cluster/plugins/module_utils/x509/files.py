# SPDX-License-Identifier: Apache-2.0
"""Credentials on disk: written whole or not at all, never through a symbolic link."""

from __future__ import annotations

import os
import secrets
import stat

from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import serialization, x509

PRIVATE = 0o600
PUBLIC = 0o644


def write(path, data, mode=PRIVATE, owner=None):
    """Replace the file at path by data (bytes) in one step, whatever the umask.

    owner: (uid, gid) or None. Raises OSError; what is not a regular file at path, such as a symbolic link, is
    refused.
    """
    path = os.fspath(path)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} is not a regular file: not replaced")
    except FileNotFoundError:
        pass
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE)
    try:
        with open(descriptor, "wb") as stream:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(folder or ".")


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path):
    """The bytes of a file. Raises OSError, also for what is no regular file: a FIFO would keep us waiting."""
    with open(path, "rb", opener=_regular) as stream:
        return stream.read()


def _regular(path, flags):
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(f"{path} is not a regular file")


def read_private(path):
    """The bytes of a secret file. Raises PermissionError when others than its owner can read or write it."""
    with open(path, "rb", opener=_regular) as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        if mode & 0o077:
            raise PermissionError(f"{path} has mode {mode:04o}: it must be 0600")
        return stream.read()


def certificate_pem(certificate):
    """PEM (bytes) of a certificate, a CRL or a CSR."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key):
    """PKCS#8 PEM (bytes): Globus cannot read the traditional form of EC keys."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(data):
    """The private key in PEM bytes. Raises ValueError."""
    return serialization.load_pem_private_key(data, None)


def credential_pem(certificate, key, chain=()):
    """PEM (bytes) in the order grid software expects: certificate, key, then the chain without the CA."""
    return certificate_pem(certificate) + key_pem(key) + b"".join(map(certificate_pem, chain))


def load_credential(data):
    """(certificate, key, chain) from what credential_pem made. Raises ValueError."""
    certificate, *chain = x509.load_pem_x509_certificates(data)
    return certificate, load_key(data), chain

# SPDX-License-Identifier: Apache-2.0
"""Named secrets of a service: where they are kept, and how they are sealed on the way there.

A store holds bytes by name; a name is words of letters, digits and ``_.-`` with slashes between. Each value has a
version, so that of two writers who read the same value only one succeeds: that is all that two instances of a
service need to share a state.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import AESGCM, InvalidTag

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}){0,4}")
MAGIC = b"dodas1"
NONCE_BYTES = 12
KEY_BYTES = 32


class StoreError(RuntimeError):
    """A store that cannot be read or written; names the file or address, never what it holds."""


class Conflict(StoreError):
    """Somebody else wrote the value since it was read: read it again."""


class Directory:
    """Values as files of mode 0600 below a directory (mode 0700), each written whole or not at all.

    public: names of values that everybody may read.
    """

    def __init__(self, path, public=()):
        self.path = os.fspath(path)
        self._public = frozenset(public)
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(str(error)) from error

    def read(self, name):
        """(value, version); (None, None) where there is none. Raises StoreError."""
        try:
            data = files.read(self._file(name)) if name in self._public else files.read_private(self._file(name))
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise StoreError(str(error)) from error
        return data, hashlib.sha256(data).hexdigest()

    def write(self, name, value, version):
        """Replace the value whose version was read; None: make it. Raises Conflict, StoreError."""
        path = self._file(name)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with self._locked(name):
                if self.read(name)[1] != version:
                    raise Conflict(f"{path} was changed by another process")
                files.write(path, value, files.PUBLIC if name in self._public else files.PRIVATE)
        except OSError as error:
            raise StoreError(str(error)) from error

    def remove(self, name):
        """Forget a value; it may be gone already. Raises StoreError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(name))
        except OSError as error:
            raise StoreError(str(error)) from error

    def names(self, prefix):
        """Names below ``prefix/``, sorted. Raises StoreError."""
        try:
            with os.scandir(self._file(prefix)) as entries:
                return sorted(f"{prefix}/{e.name}" for e in entries if e.is_file() and NAME.fullmatch(e.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(str(error)) from error

    def _file(self, name):
        return os.path.join(self.path, *_checked(name).split("/"))

    @contextlib.contextmanager
    def _locked(self, name):
        # One of 64 locks that are never removed: a lock that is unlinked is no lock.
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 64
        path = os.path.join(self.path, f".lock-{number}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Consul:
    """Values in Consul's key-value store, which instances on several hosts reach; seal them.

    url: the agent's HTTP address; prefix: folder of the keys; token: of an ACL that may write there.
    """

    def __init__(self, url, prefix, token=None, cafile=None, timeout=5.0):
        self._base = f"{url.rstrip('/')}/v1/kv/"
        self._prefix = prefix.strip("/")
        self._headers = {"X-Consul-Token": token} if token else {}
        self._options = {"cafile": cafile, "timeout": timeout, "limit": 1024 * 1024}

    def read(self, name):
        """As Directory.read."""
        try:
            # Not from whichever server answers first, which may not have the last write yet.
            found = json.loads(self._call(self._key(name), query={"consistent": ""}))
            return base64.b64decode(found[0]["Value"] or ""), str(found[0]["ModifyIndex"])
        except web.WebError as error:
            if error.status == 404:
                return None, None
            raise StoreError(str(error)) from error
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{self._base}: the answer is not that of a Consul agent") from error

    def write(self, name, value, version):
        """As Directory.write."""
        try:
            answer = self._call(self._key(name), "PUT", value, {"cas": version or "0"})
        except web.WebError as error:
            raise StoreError(str(error)) from error
        if answer.strip() != b"true":
            raise Conflict(f"{name} was changed by another instance")

    def remove(self, name):
        """As Directory.remove."""
        try:
            self._call(self._key(name), "DELETE")
        except web.WebError as error:
            raise StoreError(str(error)) from error

    def names(self, prefix):
        """As Directory.names."""
        try:
            keys = json.loads(self._call(self._key(prefix) + "/", query={"keys": "", "separator": "/"}))
            return sorted(key.removeprefix(f"{self._prefix}/") for key in keys)
        except web.WebError as error:
            if error.status == 404:
                return []
            raise StoreError(str(error)) from error

    def _key(self, name):
        return f"{self._prefix}/{_checked(name)}"

    def _call(self, key, method="GET", data=None, query=None):
        url = f"{self._base}{key}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        return web.fetch(url, data=data, method=method, headers=self._headers, **self._options)


class Sealed:
    """Another store, whose values are encrypted and bound to their names (AES-256-GCM).

    keys: of 32 bytes each; the first seals, any opens, so that keys can be changed one after the other.
    """

    def __init__(self, store, keys):
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"keys of {KEY_BYTES} bytes are needed")
        self._store = store
        self._ciphers = [AESGCM(key) for key in keys]

    def read(self, name):
        """As Directory.read. Raises StoreError for what was not sealed under this name with one of the keys."""
        data, version = self._store.read(name)
        if data is None:
            return None, None
        return self._open(name, data), version

    def _open(self, name, data):
        body = data.removeprefix(MAGIC)
        if len(body) < len(data):
            for cipher in self._ciphers:
                with contextlib.suppress(InvalidTag, ValueError):
                    return cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], name.encode())
        raise StoreError(f"{name} was not sealed with this key: is it the state of another deployment, or damaged?")

    def write(self, name, value, version):
        """As Directory.write."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._store.write(name, MAGIC + nonce + self._ciphers[0].encrypt(nonce, value, name.encode()), version)

    def remove(self, name):
        """As Directory.remove."""
        self._store.remove(name)

    def names(self, prefix):
        """As Directory.names."""
        return self._store.names(prefix)


def update(store, name, change, tries=20):
    """Write what change(value or None) returns; None: leave it. Tries again after a Conflict. Returns the value.

    Raises StoreError.
    """
    for attempt in range(tries):
        value, version = store.read(name)
        new = change(value)
        if new is None or new == value:
            return value
        try:
            store.write(name, new, version)
            return new
        except Conflict:
            if attempt == tries - 1:
                raise
    return None


def read_keys(path):
    """The keys (32 bytes each) in a private file that holds one a line, in base64. Raises StoreError."""
    try:
        keys = [base64.b64decode(line, validate=True) for line in files.read_private(path).split()]
    except PermissionError as error:
        raise StoreError(str(error)) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as keys in base64: {type(error).__name__}") from None
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise StoreError(f"{path}: keys of {KEY_BYTES} bytes in base64 are needed, one a line")
    return keys


def _checked(name):
    if not NAME.fullmatch(name) or ".." in name:
        raise StoreError(f"no name for a stored value: {name!r}")
    return name

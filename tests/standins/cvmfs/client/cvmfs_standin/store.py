# SPDX-License-Identifier: Apache-2.0
"""A repository as the client has it: fetched through proxies, proved by signatures, cached by content."""

from __future__ import annotations

import calendar
import hashlib
import http.client
import os
import random
import re
import sqlite3
import subprocess
import tempfile
import time
import urllib.parse
import zlib
from pathlib import Path

from cvmfs_standin import options


class Failure(Exception):
    """The repository cannot be used; the message is what goes to the log."""


class Unreachable(Failure):
    """No server answered through any proxy."""


class Network:
    """Servers and groups of proxies: one that does not answer is passed over, and so is a whole group."""

    def __init__(self, parameters):
        self.servers = [one for one in re.split("[;,]", parameters.get("CVMFS_SERVER_URL", "")) if one]
        groups = [group.split("|") for group in parameters.get("CVMFS_HTTP_PROXY", "").split(";") if group]
        self.proxies = [proxy for group in groups for proxy in random.sample(group, len(group))]
        names = {False: "CVMFS_TIMEOUT", True: "CVMFS_TIMEOUT_DIRECT"}
        self.timeout = {direct: int(parameters.get(name, 5)) for direct, name in names.items()}  # by being direct
        self.received = self.fetched = 0

    @property
    def server(self):
        return self.servers[0] if self.servers else ""

    @property
    def proxy(self):
        return self.proxies[0]

    def get(self, path):
        """What a server has at `path`; raises Unreachable with the last reason."""
        reason = "no server is configured"
        for _ in self.proxies:
            for _ in self.servers:
                try:
                    content = self._get(path)
                    self.received += len(content)
                    self.fetched += 1
                    return content
                except (OSError, http.client.HTTPException) as exc:
                    reason = str(exc)
                self.servers.append(self.servers.pop(0))
            self.proxies.append(self.proxies.pop(0))
        raise Unreachable(f"failed to download {path}: {reason}")

    def _get(self, path):
        url = urllib.parse.urlsplit(f"{self.server}/{path}")
        direct = self.proxy == "DIRECT"
        at = url if direct else urllib.parse.urlsplit(self.proxy)
        connection = http.client.HTTPConnection(at.hostname, at.port or 80, timeout=self.timeout[direct])
        try:
            connection.request("GET", url.path if direct else url.geturl(), headers={"Host": url.netloc})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"{'host' if direct else 'proxy'} returned HTTP error {answer.status} ({self.proxy})")
        return content


def openssl(*words, data):
    return subprocess.run(["openssl", *words], input=data, capture_output=True, check=False)


class Letter:
    """A signed text: fields by their first letter, what was signed, and the signature."""

    def __init__(self, content):
        text, dashes, rest = content.partition(b"--\n")
        self.digest, _newline, self.signature = rest.partition(b"\n")
        if not dashes or hashlib.sha1(text).hexdigest().encode() != self.digest:
            raise Failure("malformed letter")
        self.lines = text.decode().splitlines()
        # a fingerprint may begin with the letter of a field before it
        self.fields = {line[0]: line[1:] for line in reversed(self.lines) if line}


def verify_whitelist(content, name, keys):
    """The fingerprints that a list of certificates allows; raises Failure."""
    letter = Letter(content)
    with tempfile.NamedTemporaryFile() as signature:
        signature.write(letter.signature)
        signature.flush()
        words = ("pkeyutl", "-verifyrecover", "-pubin", "-pkeyopt", "rsa_padding_mode:pkcs1", "-in", signature.name)
        recovered = [openssl(*words, "-inkey", key, data=b"").stdout for key in keys]
    if letter.digest not in recovered:
        raise Failure("invalid whitelist signature")
    if letter.fields.get("N") != name:
        raise Failure("whitelist is for another repository")
    if calendar.timegm(time.strptime(letter.fields["E"], "%Y%m%d%H%M%S")) < time.time():
        raise Failure("expired whitelist")
    return [line for line in letter.lines if re.fullmatch("([0-9A-F]{2}:){19}[0-9A-F]{2}", line)]


def verify_manifest(content, name, certificate, fingerprints):
    """The fields of a manifest; raises Failure."""
    letter = Letter(content)
    shown = openssl("x509", "-noout", "-fingerprint", "-sha1", "-pubkey", data=certificate).stdout.decode()
    if not any(f"={one}" in shown for one in fingerprints):
        raise Failure("certificate is not in the whitelist")
    public = shown[shown.index("-----BEGIN") :] if "-----BEGIN" in shown else ""
    with tempfile.NamedTemporaryFile("w") as key, tempfile.NamedTemporaryFile() as signature:
        key.write(public)
        key.flush()
        signature.write(letter.signature)
        signature.flush()
        words = ("dgst", "-sha1", "-verify", key.name, "-signature", signature.name)
        if openssl(*words, data=letter.digest).returncode != 0:
            raise Failure("invalid manifest signature")
    if letter.fields.get("N") != name:
        raise Failure("manifest is for another repository")
    return letter.fields


class Store:
    """Repository `name` with its cache; `parameters` are the client's."""

    def __init__(self, name, parameters):
        self.name, self.parameters = name, parameters
        self.folder = options.cache(name, parameters)
        self.network = Network(parameters)
        self.fields, self.catalog, self.errors, self.opened, self.hits = {}, None, 0, 0, 0

    def configure(self, parameters):
        """Use other parameters from now on."""
        self.parameters, self.network = parameters, Network(parameters)

    def keys(self):
        folder = self.parameters.get("CVMFS_KEYS_DIR")
        if folder:
            return sorted(map(str, Path(folder).glob("*.pub")))
        return [one for one in self.parameters.get("CVMFS_PUBLIC_KEY", "").split(":") if one]

    def load(self):
        """Take the newest revision; returns whether it is another one. Raises Failure.

        Where no server answers at first, what the cache has is taken.
        """
        kept = self.folder / f"cvmfspublished.{self.name}"
        try:
            content = self.network.get(".cvmfspublished")
            whitelist = self.network.get(".cvmfswhitelist")
        except Unreachable:
            if self.fields or not kept.exists():
                raise
            content, whitelist = kept.read_bytes(), (self.folder / f"cvmfswhitelist.{self.name}").read_bytes()
        fingerprints = verify_whitelist(whitelist, self.name, self.keys())
        certificate = self.read(Letter(content).fields["X"], "X")
        fields = verify_manifest(content, self.name, certificate, fingerprints)
        if int(fields["S"]) <= int(self.fields.get("S", -1)):
            return False
        self.read(fields["C"], "C")
        kept.write_bytes(content)
        (self.folder / f"cvmfswhitelist.{self.name}").write_bytes(whitelist)
        self.fields = fields
        self.open_catalog()
        return True

    def open_catalog(self):
        """Open the catalog; a process that was forked opens it anew."""
        path = self._path(self.fields["C"], "C")
        self.catalog = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def read(self, digest, suffix=""):
        """An object by its digest, from the cache or a server. Raises Failure."""
        path = self._path(digest, suffix)
        try:
            content = path.read_bytes()
            self.hits += 1
            return content
        except FileNotFoundError:
            pass
        packed = self.network.get(f"data/{digest[:2]}/{digest[2:]}{suffix}")
        if hashlib.sha1(packed).hexdigest() != digest:
            raise Failure(f"{digest} is damaged")
        content = zlib.decompress(packed)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)
        return content

    def cached(self):
        """Bytes in the cache."""
        return sum(path.stat().st_size for path in self.folder.glob("??/*"))

    def entry(self, path):
        """(digest or None, size, mode, time, link's target) of a path, or None."""
        row = self._rows("md5path", path)
        return row[0][1:] if row else None

    def children(self, path):
        """[(name, entry)] of a folder."""
        return [(row[0], row[1:]) for row in self._rows("parent", path) if row[0]]

    def _rows(self, column, path):
        digest = hashlib.md5(path.encode()).digest()
        halves = [int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8)]
        query = f"SELECT name, hash, size, mode, mtime, symlink FROM catalog WHERE {column}_1 = ? AND {column}_2 = ?"
        return [(name, digest.hex() if digest else None, size, mode, time, self._expanded(link))
                for name, digest, size, mode, time, link in self.catalog.execute(query, halves)]  # fmt: skip

    def _expanded(self, link):
        return re.sub(r"\$\(([A-Za-z0-9_]+)\)", lambda found: self.parameters.get(found[1], ""), link)

    def _path(self, digest, suffix):
        return self.folder / digest[:2] / f"{digest[2:]}{suffix}"

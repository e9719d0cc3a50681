#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""repository.py FOLDER NAME SOURCE: a CVMFS repository below FOLDER/cvmfs/NAME with what is in SOURCE.

Any web server can serve FOLDER. The repository is in CVMFS's own format (signed whitelist and manifest, catalog in
SQLite, objects named by their content), with one catalog and no chunks, so that the real client can read it as well as
the stand-in. The public key is FOLDER/NAME.pub; further calls make further revisions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import stat
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

SCHEMA = """
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER,
  hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER,
  gid INTEGER, xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
  FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog (md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
  CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
"""
COUNTERS = ("regular", "symlink", "special", "dir", "nested", "chunked", "chunks", "file_size", "chunked_size", "xattr",
            "external", "external_file_size")  # fmt: skip
DIRECTORY, FILE, LINK = 1, 4, 8  # flags of an entry
EMPTY = hashlib.md5(b"").hexdigest()


def openssl(*words, data=None):
    return subprocess.run(["openssl", *words], input=data, check=True, capture_output=True).stdout


def halves(path):
    """The two integers that stand for a path."""
    digest = hashlib.md5(path.encode()).digest()
    return [int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8)]


class Repository:
    """The repository `name` below `folder`; made with new keys where it is not there yet."""

    def __init__(self, folder, name):
        self.name, self.folder = name, Path(folder, "cvmfs", name)
        self.key = Path(folder, f"{name}.pub")
        self.secrets = Path(folder, f".{name}")
        if not self.key.exists():
            self._make_keys()

    def publish(self, source):
        """A new revision with what is in the folder `source`; returns its number."""
        revision = self.revision() + 1
        catalog = self._catalog(Path(source), revision)
        certificate = self._store((self.secrets / "certificate.pem").read_bytes(), "X")
        now = int(time.time())
        size = len(catalog)
        lines = [f"C{self._store(catalog, 'C')}", f"B{size}", f"R{EMPTY}", "D240", f"S{revision}", "Gno", "Ano",
                 f"N{self.name}", f"X{certificate}", f"T{now}"]  # fmt: skip
        text = "".join(f"{line}\n" for line in lines).encode()
        digest = hashlib.sha1(text).hexdigest().encode()
        signature = openssl("dgst", "-sha1", "-sign", self.secrets / "repository.key", data=digest)
        self._write(".cvmfspublished", text + b"--\n" + digest + b"\n" + signature)
        self.whitelist()
        return revision

    def revision(self):
        """The revision that is published; 0 before the first."""
        try:
            lines = (self.folder / ".cvmfspublished").read_bytes().partition(b"--\n")[0].decode().splitlines()
        except FileNotFoundError:
            return 0
        return int(next(line for line in lines if line.startswith("S"))[1:])

    def whitelist(self, days=30):
        """Write the list of certificates that may sign, valid for so many days."""
        stamps = [time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() + 86400 * one)) for one in (0, days)]
        shown = openssl("x509", "-noout", "-fingerprint", "-sha1", "-in", self.secrets / "certificate.pem")
        text = f"{stamps[0]}\nE{stamps[1]}\nN{self.name}\n{shown.decode().strip().partition('=')[2]}\n".encode()
        digest = hashlib.sha1(text).hexdigest().encode()
        # the digest as it is, without saying how it was made
        words = ("pkeyutl", "-sign", "-inkey", self.secrets / "master.key", "-pkeyopt", "rsa_padding_mode:pkcs1")
        self._write(".cvmfswhitelist", text + b"--\n" + digest + b"\n" + openssl(*words, data=digest))

    def _make_keys(self):
        self.secrets.mkdir(mode=0o700, parents=True)
        for one in ("master", "repository"):
            openssl("genrsa", "-out", self.secrets / f"{one}.key", "2048")
        openssl("req", "-x509", "-new", "-sha256", "-days", "365", "-subj", f"/CN={self.name} stand-in",
                "-key", self.secrets / "repository.key", "-out", self.secrets / "certificate.pem")  # fmt: skip
        openssl("rsa", "-in", self.secrets / "master.key", "-pubout", "-out", self.key)

    def _store(self, content, suffix=""):
        """Store an object; returns the digest of what is stored, by which it is named."""
        packed = zlib.compress(content)
        digest = hashlib.sha1(packed).hexdigest()
        self._write(f"data/{digest[:2]}/{digest[2:]}{suffix}", packed)
        return digest

    def _write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.new")
        temporary.write_bytes(content)
        temporary.replace(path)

    def _catalog(self, source, revision):
        counts = dict.fromkeys(COUNTERS, 0)
        rows = []

        def add(path, name, about, parent):
            flags, digest, target, size = DIRECTORY, None, "", 4096
            where = source / path.lstrip("/")
            if stat.S_ISLNK(about.st_mode):
                flags, target = FILE | LINK, os.readlink(where)
                size = len(target)
            elif stat.S_ISREG(about.st_mode):
                flags, content = FILE, where.read_bytes()
                digest, size = bytes.fromhex(self._store(content)), len(content)
                counts["file_size"] += size
            counts["symlink" if target else "regular" if digest else "dir"] += 1
            rows.append([*halves(path), *parent, 1, digest, size, about.st_mode, int(about.st_mtime), flags, name,
                         target, 0, 0, None])  # fmt: skip

        add("", "", source.stat(), [0, 0])
        for folder, folders, files in os.walk(source):
            inside = "" if Path(folder) == source else f"/{Path(folder).relative_to(source)}"
            for name in sorted(folders + files):
                add(f"{inside}/{name}", name, os.lstat(os.path.join(folder, name)), halves(inside))
        properties = {"revision": revision, "schema": "2.5", "schema_revision": 6, "last_modified": int(time.time())}
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "catalog")
            database = sqlite3.connect(path)
            database.executescript(SCHEMA)
            database.executemany(f"INSERT INTO catalog VALUES ({', '.join('?' * 15)})", rows)
            statistics = [(f"self_{one}", value) for one, value in counts.items()]
            statistics += [(f"subtree_{one}", 0) for one in counts]
            database.executemany("INSERT INTO statistics VALUES (?, ?)", statistics)
            database.executemany("INSERT INTO properties VALUES (?, ?)", properties.items())
            database.commit()
            database.close()
            return path.read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("folder", "name", "source"):
        parser.add_argument(name)
    options = parser.parse_args()
    print(Repository(options.folder, options.name).publish(options.source))


if __name__ == "__main__":
    main()

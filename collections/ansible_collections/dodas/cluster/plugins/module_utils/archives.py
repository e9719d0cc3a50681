# SPDX-License-Identifier: Apache-2.0
"""Archives with a program, unpacked: whole, or not there. Runs on managed hosts: standard library only."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHUNK = 2**20


class ArchiveError(Exception):
    """What is wrong with an archive, for its user."""


def check(checksum):
    """Raise ArchiveError unless it is the word sha256, a colon and 64 hex digits."""
    if not re.fullmatch("sha256:[0-9a-f]{64}", checksum):
        raise ArchiveError(f"checksum: {checksum!r} must be sha256: and 64 hex digits in lower case")


def copy(source, target, checksum, name):
    """Write the bytes of a stream into another; ArchiveError, naming the archive `name`, when they are other ones."""
    digest = hashlib.sha256()
    for chunk in iter(lambda: source.read(CHUNK), b""):
        digest.update(chunk)
        target.write(chunk)
    target.flush()
    if f"sha256:{digest.hexdigest()}" != checksum:
        raise ArchiveError(f"{name}: its checksum is sha256:{digest.hexdigest()}, and not {checksum}")


class Unpacked:
    """The folder `path`, which holds all of the archive when it is there."""

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.is_absolute():
            raise ArchiveError(f"dest: {path} must be an absolute path")

    def is_there(self):
        """Whether it was unpacked before."""
        return self.path.is_dir()

    def unpack(self, archive, strip, programs, name):
        """Unpack a tar archive without the first `strip` parts of names; `programs` must be in it, and executable."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.*"):  # by who was interrupted
            shutil.rmtree(left)
        new = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}."))
        try:
            options = ["--no-same-owner", f"--strip-components={strip}"]
            command = ["tar", "--extract", "--file", archive, "--directory", new, *options]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ArchiveError(f"{name}: tar cannot unpack it: {done.stderr.strip()[-500:]}")
            missing = [one for one in programs if not os.access(new / one, os.X_OK)]
            if missing:
                raise ArchiveError(f"{name}: has no {' and no '.join(missing)} that can be executed")
            new.chmod(0o755)
            new.rename(self.path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

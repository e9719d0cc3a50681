# SPDX-License-Identifier: Apache-2.0
"""Small configuration files, written when they differ. Runs on managed hosts: standard library only."""

from __future__ import annotations

import errno
import os
import pwd
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class ConfigFile:
    """A file as it shall be; `owner` is a user's name, its group is the user's own."""

    path: Path
    content: str
    mode: int = 0o644
    owner: str = "root"

    @classmethod
    def parse(cls, given):
        """From {path, content, mode as octal text, owner}. Raises ValueError that names the path."""
        path = Path(given["path"])
        if not path.is_absolute():
            raise ValueError(f"{path}: the path must be absolute")
        try:
            mode = int(given.get("mode") or "0644", 8)
        except ValueError:
            raise ValueError(f"{path}: mode {given['mode']!r} is not octal") from None
        return cls(path, given["content"], mode, given.get("owner") or "root")

    def differs(self):
        """Whether the file on disk is another."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return True
        same = (found.st_mode & 0o7777, self._user(found.st_uid)) == (self.mode, self.owner)
        return not same or self.read() != self.content

    def read(self):
        """What is on disk; None where there is no file."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def diff(self):
        """Before and after, as Ansible shows them. A file that only its owner may read is named and not shown."""
        secret = self.mode & 0o077 == 0
        before, after = ("(secret)", "(secret, changed)") if secret else (self.read() or "", self.content)
        return {"before_header": str(self.path), "after_header": str(self.path), "before": before, "after": after}

    def write(self):
        """Write the file, all or nothing; raises LookupError for an owner that does not exist."""
        try:
            user = pwd.getpwnam(self.owner)
        except KeyError:
            raise LookupError(f"{self.path}: there is no user {self.owner}") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), self.mode)
            os.fchown(stream.fileno(), user.pw_uid, user.pw_gid)
            stream.write(self.content)
        try:
            os.replace(temporary, self.path)
        except OSError as exc:
            os.unlink(temporary)
            if exc.errno != errno.EBUSY:
                raise
            self.path.write_text(self.content, encoding="utf-8")  # a mount: it can be written, not replaced

    @staticmethod
    def _user(uid):
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

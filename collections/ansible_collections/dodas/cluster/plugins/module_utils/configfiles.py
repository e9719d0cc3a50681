# SPDX-License-Identifier: Apache-2.0
"""Small configuration files, written when they differ. Runs on managed hosts: standard library only."""

from __future__ import annotations

import errno
import os
import pwd
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class ConfigFile:
    """A file as it shall be; `owner` is a user's name, its group is the user's own; empty: whoever runs this.

    `in_place`: written without being replaced, as a file must be that is mounted somewhere by itself.
    """

    path: Path
    content: str
    mode: int = 0o644
    owner: str = "root"
    in_place: bool = False

    @classmethod
    def parse(cls, given):
        """From {path, content, mode as octal text, owner, in_place}. Raises ValueError that names the path."""
        path = Path(given["path"])
        if not path.is_absolute():
            raise ValueError(f"{path}: the path must be absolute")
        mode = given.get("mode") or "0644"
        # Without its zero it may be a decimal number that YAML made of an octal one.
        if not re.fullmatch("0[0-7]{3,4}", mode):
            raise ValueError(f"{path}: mode {mode!r} is not octal text such as '0644'")
        owner = given.get("owner", "root")
        in_place = bool(given.get("in_place"))
        return cls(path, given["content"], int(mode, 8), "root" if owner is None else owner, in_place)

    def differs(self):
        """Whether the file on disk is another."""
        try:
            found = self.path.stat()
            user = self._user()
        except (FileNotFoundError, KeyError):
            return True
        same = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (self.mode, user.pw_uid, user.pw_gid)
        return not same or self.path.read_bytes() != self.content.encode()

    def read(self):
        """What is on disk, as far as it is text; None where there is no file."""
        try:
            return self.path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None

    def diff(self):
        """Before and after, as Ansible shows them. A file that only its owner may read is named and not shown."""
        modes = [self.mode, *([self.path.stat().st_mode] if self.path.exists() else [])]
        secret = any(mode & 0o077 == 0 for mode in modes)
        before, after = ("(secret)", "(secret, changed)") if secret else (self.read() or "", self.content)
        return {"before_header": str(self.path), "after_header": str(self.path), "before": before, "after": after}

    def write(self):
        """Write the file, all or nothing; raises LookupError for an owner that does not exist."""
        try:
            user = self._user()
        except KeyError:
            raise LookupError(f"{self.path}: there is no user {self.owner}") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.in_place:
            self._overwrite(user)
            return
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(stream.fileno(), self.mode)
                os.fchown(stream.fileno(), user.pw_uid, user.pw_gid)
                stream.write(self.content.encode())
            os.replace(temporary, self.path)
        except OSError as exc:
            os.unlink(temporary)
            if exc.errno != errno.EBUSY:
                raise
            self._overwrite(user)  # a mount: it can be written, not replaced

    def _overwrite(self, user):
        self.path.write_bytes(self.content.encode())
        os.chown(self.path, user.pw_uid, user.pw_gid)
        self.path.chmod(self.mode)

    def _user(self):
        return pwd.getpwnam(self.owner) if self.owner else pwd.getpwuid(os.geteuid())

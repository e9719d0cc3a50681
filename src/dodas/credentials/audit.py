# SPDX-License-Identifier: Apache-2.0
"""Who got what, as JSON lines. Holds names and serial numbers, never a token or a key.

The file is moved to ``audit.log.1`` and so on when it is full; so much is kept, and no more.
"""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

FULL_BYTES = 32 * 1024 * 1024
KEPT = 4


class Audit:
    """Appends to a file of mode 0600. May be used from many threads."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._open()
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def write(self, decision: str, **what) -> None:
        """One line, in one write. Raises OSError: what cannot be recorded must not be given out."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "decision": decision, **what}
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            self._size += os.write(self._descriptor, data)
            if self._size >= FULL_BYTES:
                self._rotate()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, KEPT + 1))]
        for old, new in reversed(list(pairwise(names))):
            if old.exists():
                old.replace(new)
        os.close(self._descriptor)
        self._open()

    def write_unverified(self, reason: str, **what) -> None:
        """A refusal of a stranger: one line a second and reason, so that strangers cannot fill the disk."""
        with self._lock:
            if time.monotonic() - self._last.get(reason, float("-inf")) < 1:
                self._left_out[reason] = self._left_out.get(reason, 0) + 1
                return
            self._last[reason] = time.monotonic()
            left_out = self._left_out.pop(reason, 0)
        self.write("refused", reason=reason, left_out=left_out, **what)

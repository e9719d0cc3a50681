# SPDX-License-Identifier: Apache-2.0
"""Who got what, as JSON lines. Holds names and serial numbers, never a token or a key."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path


class Audit:
    """Appends to a file of mode 0600. May be used from many threads."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def write(self, decision: str, **what) -> None:
        """One line, in one write. Raises OSError: what cannot be recorded must not be given out."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "decision": decision, **what}
        os.write(self._descriptor, (json.dumps(line) + "\n").encode())

    def write_unverified(self, reason: str, **what) -> None:
        """A refusal of a stranger: one line a second and reason, so that strangers cannot fill the disk."""
        with self._lock:
            if time.monotonic() - self._last.get(reason, float("-inf")) < 1:
                self._left_out[reason] = self._left_out.get(reason, 0) + 1
                return
            self._last[reason] = time.monotonic()
            left_out = self._left_out.pop(reason, 0)
        self.write("refused", reason=reason, left_out=left_out, **what)

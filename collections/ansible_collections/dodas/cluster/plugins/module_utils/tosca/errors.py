# SPDX-License-Identifier: Apache-2.0
"""The one error that reading a TOSCA template raises."""

from __future__ import annotations

import difflib


class TemplateError(Exception):
    """What is wrong with a template or its inputs, in one line.

    `message` says what; `file` and `line` (from 1, None if unknown) say where; `str()` gives
    "file:line: message".
    """

    def __init__(self, message, file=None, line=None):
        self.message = " ".join(str(message).split())
        self.file = None if file is None else str(file)
        self.line = line
        place = ":".join(str(part) for part in (self.file, line) if part is not None)
        super().__init__(f"{place}: {self.message}" if place else self.message)


def suggest(name, known):
    """The end of an error about an unknown name: the closest known one, or all of them when they are few."""
    known = sorted(str(one) for one in known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if not close:  # "Worker" for "dodas.nodes.Worker"
        tails = {one.rpartition(".")[2].lower(): one for one in known}
        close = [
            tails[tail]
            for tail in difflib.get_close_matches(str(name).rpartition(".")[2].lower(), tails, n=1)
        ]
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""

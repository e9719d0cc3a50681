# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a cloud. Messages name the field, host or thing, and say what to do."""

from __future__ import annotations

import difflib


class OpenStackError(Exception):
    """The cloud refused, the wish cannot be met, or the time is over; the message says which and why."""


class ApiError(OpenStackError):
    """A request failed.

    `status` is HTTP's, 0 when there was no answer; `retry_after` the seconds that the cloud asks to wait, or None.
    """

    def __init__(self, message, service="", status=0, retry_after=None):
        super().__init__(message)
        self.service = service
        self.status = status
        self.retry_after = retry_after


class Quota(ApiError):
    """The project may not have more of something."""


class Busy(OpenStackError):
    """Another run changes the same deployment."""


def nearest(word, words):
    """The end of a message that helps who mistyped `word`: the nearest of `words`, or all when they are few."""
    words = sorted({one for one in words if one})
    lower = {one.lower(): one for one in words}
    near = [lower[one] for one in difflib.get_close_matches(str(word).lower(), lower, n=3, cutoff=0.5)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    if not words:
        return "; there is none"
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return f"; there is {', '.join(words[:8])}{more}"

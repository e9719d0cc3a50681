# SPDX-License-Identifier: Apache-2.0
"""What the service answers when it gives nothing."""

from __future__ import annotations

from starlette.responses import JSONResponse

RETRY_SECONDS = 10


class Refusal(Exception):
    """An answer that is not 2xx. error: a code of RFC 6750 or of ours; reason: the finer code; more: fields besides.

    The message is for the client, and holds nothing that it did not know.
    """

    def __init__(self, status: int, error: str, reason: str, message: str, **more):
        super().__init__(message)
        self.status, self.error, self.reason, self.more = status, error, reason, more

    def response(self) -> JSONResponse:
        """The JSON answer, with the challenge where RFC 6750 wants one."""
        headers = {}
        if self.status == 401 or self.error == "insufficient_scope":
            challenge = 'Bearer realm="dodas"'
            if self.reason != "no_token":
                challenge += f', error="{self.error}", error_description="{self.reason}"'
            headers["WWW-Authenticate"] = challenge
        if self.status in (408, 413) or self.reason == "two_lengths":
            headers["Connection"] = "close"  # nobody waits for the rest of the body
        if self.status == 503:
            headers["Retry-After"] = str(RETRY_SECONDS)
        body = {"error": self.error, "reason": self.reason, "message": str(self), **self.more}
        return JSONResponse(body, self.status, headers)

# SPDX-License-Identifier: Apache-2.0
"""What clients send, within bounds."""

from __future__ import annotations

import asyncio
import json

from starlette.requests import Request

from dodas.credentials.refusal import Refusal

MAX_BODY = 32 * 1024
BODY_SECONDS = 10


async def read_body(request: Request) -> bytes:
    """The body, bounded in size and time. Raises Refusal."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Refusal(413, "invalid_request", "too_large", "the body is larger than 32 KiB")
    except TimeoutError:
        raise Refusal(408, "invalid_request", "too_slow", "the body took too long") from None
    return bytes(body)


def bad(message: str) -> Refusal:
    """For what the client sent wrongly."""
    return Refusal(400, "invalid_request", "bad_request", message)


def read_object(request: Request, body: bytes, keys: set[str]) -> dict:
    """The JSON object of a body, with no other keys than these. Raises Refusal."""
    if media_type(request) != "application/json":
        raise Refusal(415, "invalid_request", "media_type", "send application/json")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise bad("the body is not JSON") from None
    if not isinstance(fields, dict) or set(fields) - keys:
        raise bad(f"the body must be an object of {', '.join(sorted(keys))}")
    return fields


def media_type(request: Request) -> str:
    """Of the body, in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def peer(request: Request) -> str:
    """The address of who asks."""
    return request.client.host if request.client else "unknown"

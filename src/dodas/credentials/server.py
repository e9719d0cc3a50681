# SPDX-License-Identifier: Apache-2.0
"""The web server: TLS, and connections that do not wait for ever."""

from __future__ import annotations

import asyncio

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dodas.credentials.app import application
from dodas.credentials.config import Config
from dodas.credentials.refusal import Refusal
from dodas.credentials.service import Service

IDLE_SECONDS = 10
MAX_CONNECTIONS = 512


class Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on a connection which starts no request in time; uvicorn waits for ever."""

    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._watch()

    def on_response_complete(self):
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        if self._idle:
            self._idle.cancel()

    def _watch(self):
        if self._idle:
            self._idle.cancel()
        self._idle = self.loop.call_later(IDLE_SECONDS, self._hang_up)

    def _hang_up(self):
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def one_length(application):
    """Refuse a request that tells its length in two ways: a proxy before us may have believed the other, and what it
    took for a body would be a request here (RFC 9112, 6.1).
    """

    async def checked(scope, receive, send):
        names = {name for name, _value in scope.get("headers", ())}
        if names >= {b"content-length", b"transfer-encoding"}:
            refusal = Refusal(400, "invalid_request", "two_lengths", "Content-Length or Transfer-Encoding, not both")
            await refusal.response()(scope, receive, send)
        else:
            await application(scope, receive, send)

    return checked


def server(config: Config, service: Service) -> uvicorn.Server:
    """The web server, ready to run. Raises OSError for its certificate."""
    listen = config.listen
    settings = uvicorn.Config(
        one_length(application(service)),
        host=listen.address,
        port=listen.port,
        ssl_certfile=str(listen.certfile),
        ssl_keyfile=str(listen.keyfile),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    try:
        settings.load()
    except OSError as error:
        raise OSError(f"TLS with {listen.certfile} and {listen.keyfile}: {error}") from error
    return uvicorn.Server(settings)

# SPDX-License-Identifier: Apache-2.0
"""The service over HTTP: addresses, bodies in, answers out. WaTTS' addresses are in watts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable

from prometheus_client import exposition
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import mapping, proxies, store
from dodas.credentials import watts
from dodas.credentials.refusal import Refusal
from dodas.credentials.requests import bad, media_type, peer, read_body, read_object
from dodas.credentials.service import NO_REQUEST, Order, Service

HOUSEKEEPING_SECONDS = 30
PEM = "application/x-pem-file"

log = logging.getLogger("dodas.credentials")


def read_order(request: Request, body: bytes) -> Order:
    """What a request for a credential asks for. Raises Refusal."""
    sent = media_type(request)
    if sent == "application/pkcs10":
        fields = {"csr": body.decode("latin-1"), **{key: request.query_params[key] for key in request.query_params}}
        if "lifetime" in fields:
            if not fields["lifetime"].isascii() or not fields["lifetime"].isdigit():
                raise bad("lifetime must be whole seconds")
            fields["lifetime"] = int(fields["lifetime"][:12])
        if set(fields) - {"csr", "kind", "lifetime", "policy", "delegation"}:
            raise bad("the query may hold kind, lifetime, policy and delegation")
    elif sent == "application/json":
        fields = read_object(request, body, {"csr", "kind", "lifetime", "policy", "delegation"})
    else:
        raise Refusal(415, "invalid_request", "media_type", "send application/json or application/pkcs10")
    kind, lifetime, policy = fields.get("kind", "proxy"), fields.get("lifetime"), fields.get("policy")
    text, delegation = fields.get("csr"), fields.get("delegation")
    if not isinstance(text, str):
        raise bad("csr must be text in PEM")
    if kind not in mapping.KINDS:
        raise bad(f"kind must be one of {', '.join(mapping.KINDS)}")
    if lifetime is not None and (type(lifetime) is not int or not 0 < lifetime < 10**12):
        raise bad("lifetime must be whole seconds, more than 0")
    if policy is not None and policy not in proxies.POLICIES:
        raise bad(f"policy must be one of {', '.join(proxies.POLICIES)}")
    if delegation is not None and not isinstance(delegation, str):
        raise bad("delegation must be the id of one")
    return Order(text.encode("latin-1", "replace"), kind, lifetime, policy, delegation)


def _answered(handler: Callable) -> Callable:
    """Turn refusals into answers, for an async handler(request)."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            return refusal.response()
        except store.StoreError as error:
            log.error("the state cannot be used: %s", error)
            return Refusal(503, "temporarily_unavailable", "state", "the service's state cannot be used").response()
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            return Refusal(500, "server_error", "internal", "the service failed: its log says why").response()

    return answer


class _Api:
    """The handlers of /v1."""

    def __init__(self, service: Service):
        self._service = service

    async def _token(self, request: Request):
        # First of all the token, so that strangers cannot make us read bodies.
        headers = request.headers.getlist("authorization")
        return await run_in_threadpool(self._service.authenticate, headers, peer(request))

    async def credentials(self, request: Request) -> Response:
        started, kind, outcome = time.perf_counter(), "unknown", "error"
        metrics = self._service.metrics
        try:
            token = await self._token(request)
            order = read_order(request, await read_body(request))
            kind = order.kind
            answer = await run_in_threadpool(self._service.issue, token, order, peer(request))
            outcome = "issued"
            return JSONResponse(answer, 201, {"Cache-Control": "no-store"})
        except Refusal as refusal:
            outcome = refusal.reason
            raise
        except ClientDisconnect:
            outcome = "disconnected"
            raise
        finally:
            metrics.requests.labels(kind, outcome).inc()
            metrics.seconds.observe(time.perf_counter() - started)

    async def explain(self, request: Request) -> Response:
        return JSONResponse(self._service.explain(await self._token(request)))

    async def revocations(self, request: Request) -> Response:
        token = await self._token(request)
        fields = read_object(request, await read_body(request), {"certificate", "serial"})
        pem, serial = fields.get("certificate"), fields.get("serial")
        if (pem is None) == (serial is None) or not isinstance(pem or serial, str):
            raise bad("give the PEM of a certificate, or a serial number as text")
        if serial is not None and not (serial.isascii() and serial.isdigit() and len(serial) <= 49):
            raise bad("serial must be a decimal number")
        number = None if serial is None else int(serial)
        data = None if pem is None else pem.encode("latin-1", "replace")
        return JSONResponse(await run_in_threadpool(self._service.revoke, token, number, data, peer(request)))

    async def delegate(self, request: Request) -> Response:
        token = await self._token(request)
        text = request.headers["authorization"].partition(" ")[2].strip(" ")
        await read_body(request)
        made = await run_in_threadpool(self._service.delegate, token, text, peer(request))
        return JSONResponse(made, 201, {"Cache-Control": "no-store"})

    async def delegations(self, request: Request) -> Response:
        token = await self._token(request)
        return JSONResponse(await run_in_threadpool(self._service.delegations_of, token))

    async def undelegate(self, request: Request) -> Response:
        token = await self._token(request)
        await run_in_threadpool(self._service.undelegate, token, request.path_params["number"], peer(request))
        return Response(status_code=204)

    async def get_proxy(self, request: Request) -> Response:
        """For workers of the old kind, which cannot make a certificate request: the key is made here."""
        token = await self._token(request)
        if not self._service.is_host(token) or token.claims.get("csr") != NO_REQUEST:
            raise Refusal(403, "access_denied", "no_host", "for hosts of the deployment, without certificate request")
        delegation = request.query_params.get("delegation")
        made = await run_in_threadpool(self._service.make, token, "proxy", None, peer(request), delegation)
        return Response(made.pem(), headers={"Cache-Control": "no-store"}, media_type="application/octet-stream")

    async def authority(self, _request: Request) -> Response:
        return JSONResponse(self._service.authority.document())

    async def ca_pem(self, _request: Request) -> Response:
        return Response(self._service.authority.ca_pem, media_type=PEM)

    async def chain_pem(self, _request: Request) -> Response:
        ca = self._service.authority
        return Response(ca.ca_pem + ca.chain_pem, media_type=PEM)

    async def crl_pem(self, _request: Request) -> Response:
        return Response(self._service.authority.crl_pem, media_type=PEM)

    async def health(self, _request: Request) -> Response:
        good, figures = self._service.health()
        return JSONResponse(figures, 200 if good else 503)

    async def metrics(self, _request: Request) -> Response:
        text = exposition.generate_latest(self._service.metrics.registry)
        return PlainTextResponse(text, media_type=exposition.CONTENT_TYPE_LATEST)


def application(service: Service) -> Starlette:
    """The ASGI application; while it runs, delegations are renewed and lists kept fresh."""
    api = _Api(service)

    async def housekeep() -> None:
        while True:
            try:
                await run_in_threadpool(service.housekeep)
            except Exception:
                log.exception("housekeeping failed, next try in %s s", HOUSEKEEPING_SECONDS)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        housekeeping = asyncio.create_task(housekeep())
        renewing = threading.Thread(target=service.delegations.run, name="delegations", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            service.delegations.stop()
            housekeeping.cancel()

    routes = [
        Route("/v1/credentials", _answered(api.credentials), methods=["POST"]),
        Route("/v1/explain", _answered(api.explain)),
        Route("/v1/revocations", _answered(api.revocations), methods=["POST"]),
        Route("/v1/delegations", _answered(api.delegate), methods=["POST"]),
        Route("/v1/delegations", _answered(api.delegations)),
        Route("/v1/delegations/{number}", _answered(api.undelegate), methods=["DELETE"]),
        Route("/get_proxy", _answered(api.get_proxy)),
        Route("/v1/authority", api.authority),
        Route("/v1/authority/ca.pem", api.ca_pem),
        Route("/v1/authority/chain.pem", api.chain_pem),
        Route("/v1/authority/crl.pem", api.crl_pem),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        *watts.routes(service),
    ]
    return Starlette(routes=routes, lifespan=lifespan)

# SPDX-License-Identifier: Apache-2.0
"""The credentials service: a verified token and a CSR in, an X.509 certificate or proxy out.

POST /v1/credentials   GET /v1/authority   GET /v1/authority/ca.pem   GET /health   GET /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import time
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    authority,
    csr,
    files,
    mapping,
    names,
    proxies,
    tokens,
)
from dodas.credentials.audit import Audit
from dodas.credentials.config import Config
from dodas.credentials.robots import Robots

MAX_BODY = 32 * 1024
BODY_SECONDS = 10
IDLE_SECONDS = 10
HOUSEKEEPING_SECONDS = 60
MAX_CONNECTIONS = 512

log = logging.getLogger("dodas.credentials")


class Refusal(Exception):
    """An answer that is not 201. error: a code of RFC 6750 or of ours; reason: the finer code."""

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
        if self.status == 503:
            headers["Retry-After"] = str(tokens.KEYS_COOLDOWN)
        body = {"error": self.error, "reason": self.reason, "message": str(self), **self.more}
        return JSONResponse(body, self.status, headers)


@dataclasses.dataclass(frozen=True)
class Order:
    """What a client asks for. lifetime: seconds, or None for as long as the rule allows."""

    csr: bytes
    kind: str
    lifetime: int | None


class Service:
    """The service without its web server. Raises AuthorityError, OSError where its state cannot be used."""

    def __init__(self, config: Config):
        state = Path(config.state_dir)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config = config
        self.rules = config.parsed_rules()
        self.verifier = tokens.Verifier(config.token_issuers())
        self.authority = authority.Authority.open(
            state / "authority", config.ca_subject, config.authority.lifetime_days, config.crl_hours
        )
        self.robots = Robots(state / "robots", self.authority)
        self.audit = Audit(state / "audit.log")
        self.metrics = Metrics(self)

    def authenticate(self, headers: list[str], client: str) -> tokens.Token:
        """The token of a request's Authorization headers. Raises Refusal."""
        try:
            if not headers:
                raise Refusal(401, "invalid_token", "no_token", "an access token is needed")
            scheme, _, text = headers[0].partition(" ")
            if len(headers) > 1 or scheme.lower() != "bearer":
                raise Refusal(401, "invalid_token", "scheme", "one Authorization: Bearer is needed")
            try:
                return self.verifier.verify(text.strip())
            except tokens.KeysUnavailable as error:
                raise Refusal(503, "temporarily_unavailable", error.reason, str(error)) from None
            except tokens.TokenError as error:
                lacks_scope = error.reason == "insufficient_scope"
                status, code = (403, error.reason) if lacks_scope else (401, "invalid_token")
                raise Refusal(status, code, error.reason, str(error)) from None
        except Refusal as refusal:
            self.audit.write_unverified(refusal.reason, client=client)
            raise

    def issue(self, token: tokens.Token, order: Order, client: str) -> dict:
        """Decide, sign and record; the fields of the answer. Raises Refusal."""
        record = {
            "client": client,
            "iss": token.issuer,
            "sub": token.subject,
            "client_id": token.client,
            "kind": order.kind,
        }
        try:
            key = csr.public_key(order.csr)
            decision = mapping.decide(self.rules, token, order.kind)
            if decision.rule is None:
                raise Refusal(403, "access_denied", "no_rule", "no rule allows this", rules=decision.why)
            rule = decision.rule
            lifetime = min(order.lifetime or rule.lifetime, rule.lifetime)
            token_end = dt.datetime.fromtimestamp(int(token.expires), dt.UTC) if rule.clip_to_token else None
            certificate, chain = self._sign(order.kind, key, rule, decision.dn, lifetime, token_end)
        except csr.RequestError as error:
            self.audit.write("refused", reason="bad_csr", **record)
            raise Refusal(400, "invalid_request", "bad_csr", str(error)) from None
        except (authority.AuthorityError, proxies.ProxyError) as error:
            self.audit.write("refused", reason="cannot_sign", **record)
            raise Refusal(403, "access_denied", "cannot_sign", str(error)) from None
        except Refusal as refusal:
            self.audit.write("refused", reason=refusal.reason, **refusal.more, **record)
            raise
        issued = {
            "subject": names.slash(certificate.subject),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            "serial": str(certificate.serial_number),
        }
        self.audit.write("issued", rule=rule.name, dn=decision.dn, **record, **issued)
        return {
            "certificate": files.certificate_pem(certificate).decode(),
            "chain": b"".join(map(files.certificate_pem, chain)).decode(),
            "kind": order.kind,
            **issued,
        }

    def _sign(self, kind, key, rule, dn, lifetime, not_after):
        if kind == "proxy":
            robot, robot_key = self.robots.get(dn, rule.lifetime)
            return proxies.sign(robot, robot_key, key, lifetime, path_length=0, not_after=not_after), [robot]
        if kind == "host":
            certificate = self.authority.issue_host(
                key, dn, rule.dns_names, days=lifetime / 86400, subject=dn, not_after=not_after
            )
            return certificate, []
        return self.authority.issue_eec(key, dn, lifetime, not_after), []

    def health(self) -> tuple[bool, dict]:
        """(whether what is served lasts, the figures): the CA must outlive the longest certificate."""
        ca, crl = self.authority.remaining(), self.authority.crl_remaining()
        problems = []
        if ca < max(rule.lifetime for rule in self.rules):
            problems.append("the CA ends before the certificates that it would sign")
        if crl < self.config.crl_hours * 3600 / 4:
            problems.append("the revocation list is about to end")
        return not problems, {
            "status": "; ".join(problems) or "ok",
            "ca_remaining_seconds": round(ca),
            "crl_remaining_seconds": round(crl),
            "issuers": self.verifier.status(),
        }

    async def housekeep(self) -> None:
        """Keep the revocation list and the issuers' keys fresh, until cancelled."""
        while True:
            for task in (self.authority.refresh_crl, self.verifier.refresh):
                try:
                    await run_in_threadpool(task)
                except Exception:
                    log.exception("housekeeping failed, next try in %s s", HOUSEKEEPING_SECONDS)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)


class Metrics:
    """What /metrics shows."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dodas_credentials_requests_total",
            "Requests for credentials by kind and outcome",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "dodas_credentials_request_seconds",
            "Time to answer a request for a credential",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
            registry=self.registry,
        )
        gauges = {
            "dodas_credentials_ca_remaining_seconds": ("Until the CA ends", service.authority.remaining),
            "dodas_credentials_crl_remaining_seconds": (
                "Until the revocation list ends",
                service.authority.crl_remaining,
            ),
        }
        for name, (text, function) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(function)
        age = Gauge(
            "dodas_credentials_jwks_age_seconds",
            "Since the keys of an issuer were fetched; NaN: never",
            ("issuer",),
            registry=self.registry,
        )
        for issuer in service.verifier.status():
            age.labels(issuer).set_function(lambda issuer=issuer: _age(service.verifier.status()[issuer]))


def _age(status: dict) -> float:
    return float("nan") if status["jwks_age"] is None else status["jwks_age"]


async def _body(request: Request) -> bytes:
    """The body, bounded in size and time."""
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


def _order(media_type: str, query, body: bytes) -> Order:
    """What the body asks for. Raises Refusal."""

    def refuse(message: str) -> Refusal:
        return Refusal(400, "invalid_request", "bad_request", message)

    media_type = media_type.partition(";")[0].strip().lower()
    if media_type == "application/pkcs10":
        fields = {"csr": body.decode("latin-1"), "kind": query.get("kind", "proxy")}
        if "lifetime" in query:
            if not query["lifetime"].isascii() or not query["lifetime"].isdigit():
                raise refuse("lifetime must be whole seconds")
            fields["lifetime"] = int(query["lifetime"][:12])
    elif media_type == "application/json":
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise refuse("the body is not JSON") from None
    else:
        raise Refusal(415, "invalid_request", "media_type", "send application/json or application/pkcs10")
    if not isinstance(fields, dict) or set(fields) - {"csr", "kind", "lifetime"}:
        raise refuse("the body must be an object of csr, kind and lifetime")
    request, kind, lifetime = fields.get("csr"), fields.get("kind", "proxy"), fields.get("lifetime")
    if not isinstance(request, str):
        raise refuse("csr must be text in PEM")
    if kind not in mapping.KINDS:
        raise refuse(f"kind must be one of {', '.join(mapping.KINDS)}")
    if lifetime is not None and (type(lifetime) is not int or not 0 < lifetime < 10**12):
        raise refuse("lifetime must be whole seconds, more than 0")
    return Order(request.encode("latin-1", "replace"), kind, lifetime)


def application(service: Service) -> Starlette:
    """The ASGI application."""

    async def credentials(request: Request) -> Response:
        started, kind, outcome = time.perf_counter(), "unknown", "error"
        client = request.client.host if request.client else "unknown"
        try:
            # First the token, so that strangers cannot make us read bodies.
            headers = request.headers.getlist("authorization")
            token = await run_in_threadpool(service.authenticate, headers, client)
            media_type = request.headers.get("content-type", "")
            order = _order(media_type, request.query_params, await _body(request))
            kind = order.kind
            answer = await run_in_threadpool(service.issue, token, order, client)
            outcome = "issued"
            return JSONResponse(answer, 201, {"Cache-Control": "no-store"})
        except Refusal as refusal:
            outcome = refusal.reason
            return refusal.response()
        except ClientDisconnect:
            outcome = "disconnected"
            return Response(status_code=400)
        finally:
            service.metrics.requests.labels(kind, outcome).inc()
            service.metrics.seconds.observe(time.perf_counter() - started)

    async def show_authority(_request: Request) -> Response:
        ca = service.authority
        return JSONResponse(
            {
                "ca": ca.ca_pem.decode(),
                "crl": ca.crl_pem.decode(),
                "signing_policy": ca.signing_policy,
                "hashes": ca.hashes,
            }
        )

    async def ca_pem(_request: Request) -> Response:
        return Response(service.authority.ca_pem, media_type="application/x-pem-file")

    async def health(_request: Request) -> Response:
        good, figures = service.health()
        return JSONResponse(figures, 200 if good else 503)

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(
            exposition.generate_latest(service.metrics.registry), media_type=exposition.CONTENT_TYPE_LATEST
        )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette):
        housekeeping = asyncio.create_task(service.housekeep())
        try:
            yield
        finally:
            housekeeping.cancel()

    routes = [
        Route("/v1/credentials", credentials, methods=["POST"]),
        Route("/v1/authority", show_authority),
        Route("/v1/authority/ca.pem", ca_pem),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


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


def server(config: Config, service: Service) -> uvicorn.Server:
    """The web server, ready to run. Raises OSError for its certificate."""
    listen = config.listen
    settings = uvicorn.Config(
        application(service),
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

# SPDX-License-Identifier: Apache-2.0
"""The addresses of WaTTS, version 2, for its clients: credentials whose keys are made here or by a plugin.

GET /api/v2/oidcp   GET /api/v2/IDP/service   GET|POST /api/v2/IDP/credential   GET /api/v2/IDP/credential_data/TOKEN
DELETE /api/v2/IDP/credential/ID

The answer to POST is the address of the credential, from which whoever asked for it gets it within a minute and once.
Until then it is in the service's state, encrypted with a key that only the address holds. What is kept longer says who
has which credential, and holds no secret.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import store, tokens
from dodas.credentials import plugin, plugins
from dodas.credentials.refusal import Refusal
from dodas.credentials.requests import peer, read_body

BASE = "/api/v2"
DATA_SECONDS = 60
PENDING_SECONDS = 600  # longer than any plugin may take
RECORDS, DATA = "watts", "watts-data"
TOKEN = re.compile(r"[0-9]{10}\.[0-9a-f]{64}")

log = logging.getLogger("dodas.watts")


def routes(service) -> list[Route]:
    """The routes for a service.Service."""
    api = _Api(Watts(service), service)
    handlers = [
        ("/oidcp", "GET", api.providers),
        ("/{idp}/service", "GET", api.services),
        ("/{idp}/credential", "GET", api.credentials),
        ("/{idp}/credential", "POST", api.request),
        ("/{idp}/credential_data/{token}", "GET", api.data),
        ("/{idp}/credential/{number}", "DELETE", api.revoke),
    ]
    return [Route(BASE + path, _answered(handler), methods=[method]) for path, method, handler in handlers]


def sweep(kept: store.Sealed) -> None:
    """Forget the credentials that nobody came for."""
    for name in kept.names(DATA):
        if int(name.rpartition("/")[2].partition(".")[0]) < time.time():
            kept.remove(name)


class Watts:
    """What is behind the addresses. Thread-safe; instances that share a store share what it keeps."""

    def __init__(self, service):
        self._service = service
        self._store = service.store
        self.sections = {section.id: section for section in service.config.services}
        self._plugins = {
            name: plugins.Plugin(section) for name, section in self.sections.items() if section.command is not None
        }

    def services(self, token: tokens.Token) -> list[dict]:
        """What there is, and what of it is for the user."""
        mine = self.credentials(token)
        return [self._described(section, token, mine) for section in self.sections.values()]

    def _described(self, section: plugins.ServiceSection, token: tokens.Token, mine: list[dict]) -> dict:
        count = sum(one["service"] == section.id for one in mine)
        enabled, params = True, [[]]
        if section.command is not None:
            try:
                known = self._plugins[section.id].parameters()
                params = [[param.model_dump() for param in group] for group in known.request_params] or [[]]
            except plugins.PluginError:
                enabled = False
        authorized = self._allowed(section, token)
        return {
            "id": section.id,
            "description": section.description,
            "enabled": enabled,
            "authorized": authorized,
            "authz_tooltip": "" if authorized else "no rule of this service is for you",
            "cred_count": count,
            "cred_limit": section.limit,
            "limit_reached": count >= section.limit,
            "pass_access_token": section.pass_access_token,
            "params": params,
        }

    def _allowed(self, section: plugins.ServiceSection, token: tokens.Token) -> bool:
        if section.groups and not set(section.groups) & set(token.groups):
            return False
        return section.command is not None or self._service.explain(token)["kinds"][plugin.KIND]["rule"] is not None

    def credentials(self, token: tokens.Token) -> list[dict]:
        """One's own: id, service, ctime."""
        return [one for one in _current(self._store.read(_records(token))[0]) if not one["pending"]]

    def request(self, token: tokens.Token, access_token: str, name: str, params: dict[str, str], peer: str) -> str:
        """The token under which the credential is to be had once. Raises Refusal, StoreError."""
        section = self.sections.get(name)
        if section is None:
            raise Refusal(404, "not_found", "no_service", "there is no such service")
        if not self._allowed(section, token):
            raise Refusal(403, "access_denied", "not_allowed", "this service is not for you")
        sweep(self._store)
        number = self._reserve(section, token)
        try:
            entries, kept = self._make(section, token, access_token, params, peer)
        except BaseException:
            self._change(token, number, None)
            raise
        self._change(token, number, kept | {"pending": False})
        return self._deposit(token, {"id": number, "entries": entries})

    def _make(self, section, token, access_token, params, peer) -> tuple[list[dict], dict]:
        """(entries, what to keep) of a new credential."""
        if section.command is None:
            if params:
                raise Refusal(400, "invalid_request", "params", "this service takes no parameters")
            made = self._service.make(token, plugin.KIND, section.parameters.get("lifetime"), peer)
            certificate, authority = made.certificate, self._service.authority
            return plugin.entries(made, authority.ca_pem + authority.chain_pem), {
                "state": str(certificate.serial_number),
                "end": certificate.not_valid_after_utc.timestamp(),
            }
        issued = self._plugins[section.id].request(token, access_token, params)
        self._service.audit.write("issued", kind=f"plugin {section.id}", **_who(token, peer))
        return [entry.model_dump(exclude_none=True) for entry in issued.credential], {"state": issued.state}

    def fetch(self, token: tokens.Token, key: str) -> dict:
        """The credential, for the one who asked for it, and once. Raises Refusal, StoreError."""
        gone = Refusal(404, "not_found", "no_data", "there is nothing here, or no more, or not for you")
        if not TOKEN.fullmatch(key) or int(key.partition(".")[0]) < time.time():
            raise gone
        name, sealed = self._place(key)
        value, version = sealed.read(name)
        found = json.loads(value) if value else None
        if found is None or found["owner"] != _records(token):
            raise gone
        try:
            sealed.write(name, b"", version)  # of two who ask at once one gets it
        except store.Conflict:
            raise gone from None
        self._store.remove(name)
        return found["credential"]

    def revoke(self, token: tokens.Token, access_token: str, number: str, peer: str) -> None:
        """End one's own credential. Raises Refusal, StoreError."""
        record = next((one for one in self.credentials(token) if one["id"] == number), None)
        if record is None:
            raise Refusal(404, "not_found", "no_credential", "you have no such credential")
        section = self.sections.get(record["service"])
        if section is None:
            raise Refusal(409, "invalid_request", "no_service", "the service of this credential is no more")
        if section.command is None:
            if section.parameters.get("delete") != "forget":
                self._service.revoke(token, int(record["state"]), None, peer, owned=True)
        else:
            self._plugins[section.id].revoke(token, access_token, record["state"])
            self._service.audit.write("revoked", kind=f"plugin {section.id}", **_who(token, peer))
        self._change(token, number, None)

    def _reserve(self, section: plugins.ServiceSection, token: tokens.Token) -> str:
        number = secrets.token_urlsafe(24)
        record = {"id": number, "service": section.id, "ctime": time.time(), "pending": True, "state": None}

        def change(value: bytes | None) -> bytes:
            current = _current(value)
            if sum(one["service"] == section.id for one in current) >= section.limit:
                raise Refusal(403, "access_denied", "limit", f"you have {section.limit} credentials: revoke one")
            return json.dumps([*current, record]).encode()

        store.update(self._store, _records(token), change)
        return number

    def _change(self, token: tokens.Token, number: str, fields: dict | None) -> None:
        """Complete a record, or remove it."""

        def change(value: bytes | None) -> bytes:
            others = [one for one in _current(value) if one["id"] != number]
            mine = [one | fields for one in _current(value) if one["id"] == number] if fields else []
            return json.dumps([*others, *mine]).encode()

        store.update(self._store, _records(token), change)

    def _deposit(self, token: tokens.Token, credential: dict) -> str:
        key = f"{int(time.time()) + DATA_SECONDS}.{secrets.token_hex(32)}"
        name, sealed = self._place(key)
        sealed.write(name, json.dumps({"owner": _records(token), "credential": credential}).encode(), None)
        return key

    def _place(self, key: str) -> tuple[str, store.Sealed]:
        """(name, store) of a credential that waits; the name tells when it ends, and not the key."""
        digest = hashlib.sha256(f"name {key}".encode()).hexdigest()
        sealed = store.Sealed(self._store, [hashlib.sha256(f"key {key}".encode()).digest()])
        return f"{DATA}/{key.partition('.')[0]}.{digest}", sealed


def _records(token: tokens.Token) -> str:
    """Where the list of a user's credentials is."""
    owner = f"{token.issuer}\0{token.subject}"
    return f"{RECORDS}/{hashlib.sha256(owner.encode()).hexdigest()}"


def _current(value: bytes | None) -> list[dict]:
    """The records that still count."""
    now = time.time()
    return [
        one
        for one in (json.loads(value) if value else [])
        if now < one.get("end", float("inf")) and not (one["pending"] and one["ctime"] + PENDING_SECONDS < now)
    ]


def _who(token: tokens.Token, peer: str) -> dict:
    return {"client": peer, "iss": token.issuer, "sub": token.subject, "client_id": token.client}


def _answered(handler: Callable) -> Callable:
    """Turn refusals into what clients of WaTTS understand, for an async handler(request)."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as error:
            refusal, result = error, {"result": "error"}
        except plugins.LoginNeeded as error:
            refusal = Refusal(403, "access_denied", "oidc_login", str(error))
            result = {"result": "oidc_login", "oidc_login": {"provider": error.provider, "msg": str(error)}}
        except plugins.PluginError as error:
            status, code = {
                "refused": (403, "access_denied"),
                "params": (400, "invalid_request"),
                "request_too_large": (413, "invalid_request"),
            }.get(error.reason, (503, "temporarily_unavailable"))
            reason = error.reason if status != 503 else "plugin"
            refusal, result = Refusal(status, code, reason, str(error)), {"result": "error"}
        except store.StoreError as error:
            log.error("the state cannot be used: %s", error)
            refusal = Refusal(503, "temporarily_unavailable", "state", "the service's state cannot be used")
            result = {"result": "error"}
        except ClientDisconnect:
            return Response(status_code=400)
        refusal.more = {**refusal.more, **result, "user_msg": str(refusal)}
        return refusal.response()

    return answer


class _Api:
    """The handlers."""

    def __init__(self, watts: Watts, service):
        self._watts, self._service = watts, service

    async def providers(self, _request: Request) -> Response:
        found = [
            {"id": issuer.id, "issuer": issuer.issuer, "desc": issuer.issuer, "ready": True}
            for issuer in self._service.config.issuers
        ]
        return JSONResponse({"openid_provider_list": found})

    async def services(self, request: Request) -> Response:
        token, _ = await self._user(request)
        return JSONResponse({"service_list": await run_in_threadpool(self._watts.services, token)})

    async def credentials(self, request: Request) -> Response:
        token, _ = await self._user(request)
        found = await run_in_threadpool(self._watts.credentials, token)
        listed = [
            {
                "cred_id": one["id"],
                "service_id": one["service"],
                "ctime": dt.datetime.fromtimestamp(one["ctime"], dt.UTC).isoformat(timespec="seconds"),
                "interface": "REST interface",
            }
            for one in found
        ]
        return JSONResponse({"credential_list": listed})

    async def request(self, request: Request) -> Response:
        token, text = await self._user(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(400, "invalid_request", "media_type", "send application/json")
        name, params = _read_order(await read_body(request))
        key = await run_in_threadpool(self._watts.request, token, text, name, params, peer(request))
        address = f"{BASE}/{request.path_params['idp']}/credential_data/{key}"
        return Response(status_code=303, headers={"Location": address, "Cache-Control": "no-store"})

    async def data(self, request: Request) -> Response:
        token, _ = await self._user(request)
        credential = await run_in_threadpool(self._watts.fetch, token, request.path_params["token"])
        return JSONResponse({"credential": credential, "result": "ok"}, headers={"Cache-Control": "no-store"})

    async def revoke(self, request: Request) -> Response:
        token, text = await self._user(request)
        number = request.path_params["number"]
        await run_in_threadpool(self._watts.revoke, token, text, number, peer(request))
        return JSONResponse({"result": "ok"})

    async def _user(self, request: Request) -> tuple[tokens.Token, str]:
        """(the verified token, its text), of the provider that the address names."""
        headers = request.headers.getlist("authorization")
        token = await run_in_threadpool(self._service.authenticate, headers, peer(request))
        issuers = {issuer.id: issuer.issuer for issuer in self._service.config.issuers}
        wanted = issuers.get(request.path_params["idp"])
        if wanted is None:
            raise Refusal(404, "not_found", "no_provider", "there is no such provider")
        if token.issuer != wanted:
            raise Refusal(403, "access_denied", "other_provider", "the token is not of this provider")
        return token, headers[0].partition(" ")[2].strip()


def _read_order(body: bytes) -> tuple[str, dict[str, str]]:
    """(service, parameters) that a client asks for. Raises Refusal."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    params = fields.get("params") if isinstance(fields, dict) else None
    params = {} if params is None else params
    if not isinstance(fields, dict) or set(fields) - {"service_id", "params"} or not isinstance(params, dict):
        raise Refusal(400, "invalid_request", "bad_request", "the body must be an object of service_id and params")
    if not isinstance(fields.get("service_id"), str) or not all(isinstance(one, str) for one in params.values()):
        raise Refusal(400, "invalid_request", "bad_request", "service_id and all params must be text")
    return fields["service_id"], params

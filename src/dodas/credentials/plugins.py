# SPDX-License-Identifier: Apache-2.0
"""Plugins of WaTTS, run by this service: programs that make a credential of their own kind for a user.

A plugin is started for each action (parameter, request, revoke), reads one JSON object in base64url and writes one
JSON object. It is not trusted: it gets no environment, no files and little time, and what it writes is parsed strictly.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import re
import threading
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError, field_validator
from pydantic import model_validator as validate_model

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import programs, tokens

VERSION = "1.0.0"  # of the protocol between WaTTS and its plugins
ARGUMENT_BYTES = 128 * 1024 - 1  # of one argument, on Linux
ANSWER_BYTES = 1024 * 1024
PARALLEL = 8
BROKEN_SECONDS = 10
CLAIMS = ("name", "given_name", "family_name", "preferred_username", "email", "groups")

log = logging.getLogger("dodas.plugins")

_running = threading.BoundedSemaphore(PARALLEL)


class PluginError(RuntimeError):
    """A plugin that gave no credential. reason: why, for the log; the message is for the user."""

    def __init__(self, reason: str, message: str = "the service for this credential does not work"):
        super().__init__(message)
        self.reason = reason


class LoginNeeded(PluginError):
    """The plugin wants a login at another provider (its id)."""

    def __init__(self, provider: str, message: str):
        super().__init__("oidc_login", message)
        self.provider = provider


class ServiceSection(BaseModel):
    """A service of WaTTS, in the configuration.

    command: of a plugin; without one, it is the service's own X.509 certificates. parameters: the plugin's conf_params;
    for certificates lifetime (seconds), and what DELETE does: ``revoke``, or ``forget`` for clients that delete at once
    what they go on to use. input: how the plugin gets its request, which everybody on the host can read in
    its arguments (argv); auto: as the plugin says that it can. pass_access_token: give the plugin the user's. timeout:
    seconds of one action. limit: credentials that a user may have at a time. groups: whose members may use it; default:
    all users of the issuers, and for certificates those whom a rule lets have them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    description: Annotated[str, Field(max_length=500)] = ""
    command: Annotated[list[str], Field(min_length=1)] | None = None
    parameters: dict[str, Any] = {}
    input: Literal["stdin", "argv", "auto"] = "stdin"
    pass_access_token: bool = False
    timeout: Annotated[float, Field(gt=0, le=300)] = 30
    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    groups: list[str] = []

    @validate_model(mode="after")
    def _consistent(self) -> ServiceSection:
        if self.command is None:
            lifetime, delete = self.parameters.get("lifetime", 1), self.parameters.get("delete", "revoke")
            if set(self.parameters) - {"lifetime", "delete"} or type(lifetime) is not int or lifetime < 1:
                raise ValueError("without a command the parameters are lifetime, in seconds, and delete")
            if delete not in ("revoke", "forget"):
                raise ValueError("delete is revoke or forget")
        elif not self.command[0].startswith("/"):
            raise ValueError("the first word of command is the path of a program")
        return self


class _Answer(BaseModel):
    # What a plugin says besides is neither used nor passed on.
    # Built when first used: the service starts faster, and most run no plugin.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, defer_build=True)


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a NUL character")
    return value


class Entry(_Answer):
    """One part of a credential, as the user gets it. save_as: a file name."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["text", "textfile", "textarea"]
    value: str
    rows: Annotated[int, Field(ge=0, le=10000)] | None = None
    cols: Annotated[int, Field(ge=0, le=10000)] | None = None
    save_as: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,100}$")] | None = None

    _checked = field_validator("name", "value")(_no_nul)


class Issued(_Answer):
    """A credential. state: what the plugin wants to know when it is to revoke it; nothing secret."""

    result: Literal["ok"]
    credential: Annotated[list[Entry], Field(max_length=100)]
    state: Annotated[str, Field(max_length=8192)]

    _checked = field_validator("state")(_no_nul)


class Login(_Answer):
    """The plugin needs a login of the user at another provider."""

    result: Literal["oidc_login"]
    provider: Annotated[str, Field(max_length=200)]
    msg: str


class Failed(_Answer):
    """The plugin refuses, or could not do it."""

    result: Literal["error"]
    user_msg: str
    log_msg: str


class Revoked(_Answer):
    """The credential is no more."""

    result: Literal["ok"]


class ConfParam(_Answer):
    """Something to configure."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    type: str
    default: Any = ""


class RequestParam(_Answer):
    """Something for the user to fill in."""

    key: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    name: str
    description: str = ""
    type: str
    mandatory: bool = False


class Parameters(_Answer):
    """What a plugin takes. request_params: sets, of which a user fills in one."""

    result: Literal["ok"]
    conf_params: list[ConfParam]
    request_params: list[list[RequestParam]]
    version: str
    developer_email: str = ""
    features: dict[str, Any] = {}


_ANSWERS = {"parameter": Parameters | Failed, "request": Issued | Login | Failed, "revoke": Revoked | Failed}


@functools.cache
def _answers(action: str) -> TypeAdapter:
    return TypeAdapter(Annotated[_ANSWERS[action], Discriminator("result")])


class Plugin:
    """One configured plugin. Thread-safe."""

    def __init__(self, section: ServiceSection):
        self.section = section
        self._parameters: Parameters | None = None
        self._lock = threading.Lock()
        self._broken_until = 0.0

    def parameters(self) -> Parameters:
        """What the plugin takes; asked until it has answered once, but not all the time. Raises PluginError."""
        with self._lock:
            if self._parameters is None:
                if time.monotonic() < self._broken_until:
                    raise PluginError("it did not work lately")
                self._broken_until = time.monotonic() + BROKEN_SECONDS
                # By argument, as the protocol wants it: there is nothing secret in it.
                self._parameters = self._run("parameter", {}, by_argument=True)
            return self._parameters

    def request(self, token: tokens.Token, access_token: str, params: dict[str, str]) -> Issued:
        """A credential for the user of the token. Raises PluginError, LoginNeeded."""
        self._check(params)
        return self._act("request", token, access_token, params, "undefined")

    def revoke(self, token: tokens.Token, access_token: str, state: str) -> None:
        """End the credential with this state. Raises PluginError."""
        self._act("revoke", token, access_token, {}, state)

    def _check(self, params: dict[str, str]) -> None:
        """That a set of parameters is as the plugin wants one."""
        for wanted in self.parameters().request_params or [[]]:
            known = {one.key for one in wanted}
            if set(params) <= known and {one.key for one in wanted if one.mandatory} <= set(params):
                return
        raise PluginError("params", "these parameters are none of the sets that the service takes")

    def _act(self, action: str, token: tokens.Token, access_token: str, params: dict, state: str):
        section, known = self.section, self.parameters()
        user = {"iss": token.issuer, "sub": token.subject}
        user |= {name: token.claims[name] for name in CLAIMS if name in token.claims}
        what = {
            "conf_params": {one.name: one.default for one in known.conf_params} | section.parameters,
            "params": params,
            "cred_state": state,
            "user_info": user,
            "additional_logins": [],
            "watts_userid": encode({"issuer": token.issuer, "subject": token.subject}),
        }
        if section.pass_access_token:
            what["access_token"] = access_token
        takes_stdin = known.features.get("stdin") is True
        by_argument = section.input == "argv" or (section.input == "auto" and not takes_stdin)
        return self._run(action, what, by_argument, secret=access_token)

    def _run(self, action: str, what: dict, by_argument: bool, secret: str = ""):
        """The answer to an action; what goes wrong is logged here, without secrets."""
        name = f"{self.section.id}: {action}"
        text = encode({"watts_version": VERSION, "action": action, **what})
        if by_argument and len(text) > ARGUMENT_BYTES:
            if self.section.input != "auto":
                raise PluginError("request_too_large", "the request is larger than the plugin can take")
            by_argument = False
        if not _running.acquire(timeout=self.section.timeout):
            raise PluginError("busy", "too many requests at a time: try again")
        try:
            arguments, data = ([text], b"") if by_argument else ([], text.encode())
            command = [*self.section.command, *arguments]
            result = programs.run(command, data, self.section.timeout, ANSWER_BYTES)
            if result.status:
                how = f"signal {-result.status}" if result.status < 0 else f"status {result.status}"
                raise PluginError(f"it ended with {how}")
            answer = parse(action, result.stdout)
        except (programs.RunError, PluginError) as error:
            problem = error.reason if isinstance(error, PluginError) else str(error)
            log.error("plugin %s: %s", name, problem)
            raise PluginError(error.reason) from None
        finally:
            _running.release()
        if isinstance(answer, Failed):
            log.warning("plugin %s: it says: %s", name, clean(answer.log_msg, secret, text))
            raise PluginError("refused", clean(answer.user_msg, secret, text))
        if isinstance(answer, Login):
            raise LoginNeeded(clean(answer.provider, secret, text), clean(answer.msg, secret, text))
        return answer


def encode(document: dict) -> str:
    """JSON in base64url, as plugins read it."""
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def parse(action: str, data: bytes):
    """The answer of a plugin. Raises PluginError, whose reason holds nothing of the answer's values."""
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise PluginError("its answer is not UTF-8") from None
    except _DuplicateKey:
        raise PluginError("its answer holds a key twice") from None
    except (ValueError, RecursionError):
        raise PluginError("its answer is not JSON" if data.strip() else "it answered nothing") from None
    if not isinstance(document, dict):
        raise PluginError("its answer is not an object")
    try:
        return _answers(action).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:] or first["loc"]) or "result"
        raise PluginError(f"its answer is not as it should be: {place}: {first['type']}") from None


class _DuplicateKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    if len(pairs) > len(dict(pairs)):
        raise _DuplicateKey
    return dict(pairs)


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def clean(text: str, *secrets: str, limit: int = 500) -> str:
    """Text of a plugin as it may be shown: one line, printable, bounded, without the secrets that it was given."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "[...]")
    text = re.sub(r"\s+", " ", text)
    return "".join(character for character in text if character.isprintable()).strip()[:limit]

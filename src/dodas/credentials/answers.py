# SPDX-License-Identifier: Apache-2.0
"""What plugins of WaTTS answer, checked strictly. Imported when one answers, for most services run no plugin."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError, field_validator


class AnswerError(ValueError):
    """An answer that is not as it should be."""


class _Answer(BaseModel):
    # What a plugin says besides is neither used nor passed on.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


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


def check(action: str, document: dict) -> _Answer:
    """The answer to an action. Raises AnswerError, which holds nothing of the answer's values."""
    try:
        return _answers(action).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:] or first["loc"]) or "result"
        raise AnswerError(f"{place}: {first['type']}") from None

# SPDX-License-Identifier: Apache-2.0
"""The configuration of the credentials service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import mapping, names, tokens, web


class ConfigError(ValueError):
    """A configuration that cannot be used; names the file and the key."""


class Section(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Section):
    """Where the service listens, and the certificate of its web server."""

    address: str = "0.0.0.0"
    port: Annotated[int, Field(ge=1, le=65535)] = 8444
    certfile: Path
    keyfile: Path


class AuthoritySection(Section):
    """The online CA. subject: DN in slash form; default ``/DC=dodas/O=<deployment>/CN=dodas online CA``."""

    lifetime_days: Annotated[int, Field(ge=1, le=7300)] = 365
    subject: str | None = None


class IssuerSection(Section):
    """As tokens.Issuer."""

    issuer: str
    audience: Annotated[str, Field(min_length=1)]
    cafile: Path | None = None
    required_scope: str | None = None
    jwks_uri: str | None = None

    @field_validator("issuer", "jwks_uri")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return web.check_url(value)
        except web.WebError as error:
            raise ValueError(str(error)) from error


class Config(Section):
    """The whole file. crl_hours: how long a revocation list is valid; it is renewed at half that."""

    deployment: str
    listen: Listen
    state_dir: Path = Path("/var/lib/dodas/credentials")
    authority: AuthoritySection = AuthoritySection()
    issuers: Annotated[list[IssuerSection], Field(min_length=1)]
    rules: Annotated[list[dict[str, Any]], Field(min_length=1)]
    crl_hours: Annotated[int, Field(ge=1, le=8760)] = 168

    @field_validator("deployment")
    @classmethod
    def _deployment(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
            raise ValueError("letters, digits and _.- only, 63 at most")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        namespace = names.namespace(names.parse(self.ca_subject))
        trusted = {section.issuer for section in self.issuers}
        if len(trusted) < len(self.issuers):
            raise ValueError("an issuer stands twice")
        for rule in self.parsed_rules():
            if not rule.dn.startswith(namespace + "/"):
                raise ValueError(f"rule {rule.name!r}: dn is not below {namespace}")
            if rule.issuer not in trusted:
                raise ValueError(f"rule {rule.name!r}: its issuer is not among issuers")
        return self

    @property
    def ca_subject(self) -> str:
        """The DN of the online CA."""
        return self.authority.subject or f"/DC=dodas/O={self.deployment}/CN=dodas online CA"

    def parsed_rules(self) -> list[mapping.Rule]:
        """The rules, in order. Raises ValueError."""
        return mapping.parse_rules(self.rules)

    def token_issuers(self) -> list[tokens.Issuer]:
        """The issuers as the verifier takes them."""
        return [
            tokens.Issuer(**{**section.model_dump(), "cafile": section.cafile and str(section.cafile)})
            for section in self.issuers
        ]


def load(path: str | Path) -> Config:
    """Read and check the file. Raises ConfigError."""
    try:
        return Config.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error

# SPDX-License-Identifier: Apache-2.0
"""The configuration of the credentials service."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join, mapping, names, store, tokens, web
from dodas.credentials.plugins import ServiceSection


class ConfigError(ValueError):
    """A configuration that cannot be used; names the file and the key."""


class Section(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Listen(Section):
    """Where the service listens, and the certificate of its web server."""

    address: str = "0.0.0.0"
    port: Annotated[int, Field(ge=1, le=65535)] = 8444
    certfile: Path
    keyfile: Path


class AuthoritySection(Section):
    """The online CA: one of the service's own, or with certfile and keyfile a site's (chainfile: what is above it).

    subject: DN of an own one in slash form; default ``/DC=dodas/O=<deployment>/CN=dodas online CA``. namespace: the DN
    below which a site's CA signs here; default: its own without the last CN.
    """

    lifetime_days: Annotated[int, Field(ge=1, le=7300)] = 365
    subject: str | None = None
    key_type: Literal["rsa-2048", "ec-p256"] = "rsa-2048"
    certfile: Path | None = None
    keyfile: Path | None = None
    chainfile: Path | None = None
    namespace: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AuthoritySection:
        if bool(self.certfile) != bool(self.keyfile):
            raise ValueError("certfile and keyfile go together")
        if self.certfile and self.subject:
            raise ValueError("subject is for an own CA: a site's has its own")
        if not self.certfile and (self.chainfile or self.namespace):
            raise ValueError("chainfile and namespace are for a site's CA: give certfile and keyfile too")
        return self


class ConsulSection(Section):
    """Where the state is when several instances share it. token_file: of an ACL that may write below prefix."""

    url: str = "http://127.0.0.1:8500"
    prefix: str = "dodas/credentials"
    token_file: Path | None = None
    cafile: Path | None = None


class JoinSection(Section):
    """Takes tokens that hosts of the deployment sign themselves. secret_file: 32 bytes in base64."""

    secret_file: Path
    audience: Annotated[str, Field(min_length=1)]


class VomsSection(Section):
    """Where VOMS servers are: as voms-clients read them."""

    vomses: Path = Path("/etc/vomses")
    vomsdir: Path = Path("/etc/grid-security/vomsdir")
    certdir: Path = Path("/etc/grid-security/certificates")


class AdminSection(Section):
    """Who may revoke everything. Groups of an issuer's tokens."""

    issuer: str
    groups: Annotated[list[str], Field(min_length=1)]


class IssuerSection(Section):
    """As tokens.Issuer. id: its name in WaTTS' addresses; client_id, client_secret_file: the service's own client
    there, for token exchange and introspection; scope: what it asks for where a user delegates.
    """

    issuer: str
    audience: Annotated[str, Field(min_length=1)]
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")] = "default"
    cafile: Path | None = None
    required_scope: str | None = None
    jwks_uri: str | None = None
    client_id: str | None = None
    client_secret_file: Path | None = None
    scope: str = "openid offline_access"
    groups_claim: str | None = None
    accept_any_audience: bool = False

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
    """The whole file.

    state_dir: the audit log, and what is kept unless consul is given; all but the log is sealed with the keys (a line
    each, base64) of state_key_file, of which the first seals. crl_hours: how long a revocation list is valid; it is
    renewed at half that. replay_protection: take each token of a person once. services: what WaTTS' clients may order.
    """

    deployment: str
    listen: Listen
    state_dir: Path = Path("/var/lib/dodas/credentials")
    state_key_file: Path
    consul: ConsulSection | None = None
    join: JoinSection | None = None
    admins: list[AdminSection] = []
    voms: VomsSection = Field(default_factory=VomsSection)
    replay_protection: bool = False
    services: list[ServiceSection] = Field(
        default_factory=lambda: [ServiceSection(id="x509", description="X.509 certificate")]
    )
    authority: AuthoritySection = Field(default_factory=AuthoritySection)
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
        trusted = {section.issuer for section in self.issuers}
        if len(trusted) < len(self.issuers):
            raise ValueError("an issuer stands twice")
        if len({section.id for section in self.issuers}) < len(self.issuers):
            raise ValueError("each issuer needs an id of its own")
        if len({section.id for section in self.services}) < len(self.services):
            raise ValueError("each service needs an id of its own")
        for admin in self.admins:
            if admin.issuer not in trusted:
                raise ValueError(f"admins: {admin.issuer} is not among issuers")
        if self.join:
            trusted.add(join.issuer(self.deployment))
        namespace = None if self.authority.certfile else names.namespace(names.parse(self.ca_subject))
        for rule in self.parsed_rules():
            # That a site's CA may sign these names is seen when it is opened.
            if namespace and not rule.dn.startswith(namespace + "/"):
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
        fields = {field.name for field in dataclasses.fields(tokens.Issuer)}
        return [
            tokens.Issuer(
                **{
                    name: str(value) if isinstance(value, Path) else value
                    for name, value in section.model_dump().items()
                    if name in fields
                }
            )
            for section in self.issuers
        ]

    def open_store(self) -> store.Sealed:
        """Where the state is. Raises StoreError."""
        keys = store.read_keys(self.state_key_file)
        if self.consul is None:
            return store.Sealed(store.Directory(self.state_dir), keys)
        consul = self.consul
        try:
            token = consul.token_file and consul.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise store.StoreError(f"the token of Consul cannot be read: {consul.token_file}") from error
        cafile = consul.cafile and str(consul.cafile)
        return store.Sealed(store.Consul(consul.url, consul.prefix, token, cafile), keys)


def load(path: str | Path) -> Config:
    """Read and check the file. Raises ConfigError."""
    try:
        return Config.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error

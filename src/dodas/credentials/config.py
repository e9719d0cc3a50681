# SPDX-License-Identifier: Apache-2.0
"""The configuration of the credentials service."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join, mapping, names, store, tokens, web
from dodas.credentials.sections import Between, Length, Matches, Section, SectionError, section


class ConfigError(ValueError):
    """A configuration that cannot be used; names the file and the key."""


@section
class Listen(Section):
    """Where the service listens, and the certificate of its web server."""

    address: str = "0.0.0.0"
    port: Annotated[int, Between(1, 65535)] = 8444
    certfile: Path
    keyfile: Path


@section
class AuthoritySection(Section):
    """The online CA: one of the service's own, or with certfile and keyfile a site's (chainfile: what is above it).

    subject: DN of an own one in slash form; default ``/DC=dodas/O=<deployment>/CN=dodas online CA``. namespace: the DN
    below which a site's CA signs here; default: its own without the last CN.
    """

    lifetime_days: Annotated[int, Between(1, 7300)] = 365
    subject: str | None = None
    key_type: Literal["rsa-2048", "ec-p256"] = "rsa-2048"
    certfile: Path | None = None
    keyfile: Path | None = None
    chainfile: Path | None = None
    namespace: str | None = None

    def check(self) -> None:
        if bool(self.certfile) != bool(self.keyfile):
            raise ValueError("certfile and keyfile go together")
        if self.certfile and self.subject:
            raise ValueError("subject is for an own CA: a site's has its own")
        if not self.certfile and (self.chainfile or self.namespace):
            raise ValueError("chainfile and namespace are for a site's CA: give certfile and keyfile too")


@section
class ConsulSection(Section):
    """Where the state is when several instances share it. token_file: of an ACL that may write below prefix."""

    url: str = "http://127.0.0.1:8500"
    prefix: str = "dodas/credentials"
    token_file: Path | None = None
    cafile: Path | None = None


@section
class JoinSection(Section):
    """Takes tokens that hosts of the deployment sign themselves. secret_file: 32 bytes in base64."""

    secret_file: Path
    audience: Annotated[str, Length(1)]


@section
class VomsSection(Section):
    """Where VOMS servers are: as voms-clients read them."""

    vomses: Path = Path("/etc/vomses")
    vomsdir: Path = Path("/etc/grid-security/vomsdir")
    certdir: Path = Path("/etc/grid-security/certificates")


@section
class AdminSection(Section):
    """Who may revoke everything. Groups of an issuer's tokens."""

    issuer: str
    groups: Annotated[list[str], Length(1)]


@section
class IssuerSection(Section):
    """As tokens.Issuer. id: its name in WaTTS' addresses; client_id, client_secret_file: the service's own client
    there, for token exchange and introspection; scope: what it asks for where a user delegates.
    """

    issuer: str
    audience: Annotated[str, Length(1)]
    id: Annotated[str, Matches(r"[a-z0-9][a-z0-9_.-]{0,62}", "an id in lower case")] = "default"
    cafile: Path | None = None
    required_scope: str | None = None
    jwks_uri: str | None = None
    client_id: str | None = None
    client_secret_file: Path | None = None
    scope: str = "openid offline_access"
    groups_claim: str | None = None
    accept_any_audience: bool = False

    def check(self) -> None:
        for url in filter(None, (self.issuer, self.jwks_uri)):
            try:
                web.check_url(url)
            except web.WebError as error:
                raise ValueError(str(error)) from error


@section
class ServiceSection(Section):
    """A service of WaTTS, in the configuration.

    command: of a plugin; without one, it is the service's own X.509 certificates. parameters: the plugin's conf_params;
    for certificates lifetime (seconds), and what DELETE does: ``revoke``, or ``forget`` for clients that delete at once
    what they go on to use. input: how the plugin gets its request, which everybody on the host can read in
    its arguments (argv); auto: as the plugin says that it can. pass_access_token: give the plugin the user's. timeout:
    seconds of one action. limit: credentials that a user may have at a time. groups: whose members may use it; default:
    all users of the issuers, and for certificates those whom a rule lets have them.
    """

    id: Annotated[str, Matches(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "letters, digits and _.- only, 63 at most")]
    description: Annotated[str, Length(0, 500)] = ""
    command: Annotated[list[str], Length(1)] | None = None
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    input: Literal["stdin", "argv", "auto"] = "stdin"
    pass_access_token: bool = False
    timeout: Annotated[float, Between(0.001, 300)] = 30
    limit: Annotated[int, Between(1, 1000)] = 20
    groups: list[str] = dataclasses.field(default_factory=list)

    def check(self) -> None:
        if self.command is None:
            lifetime, delete = self.parameters.get("lifetime", 1), self.parameters.get("delete", "revoke")
            if set(self.parameters) - {"lifetime", "delete"} or type(lifetime) is not int or lifetime < 1:
                raise ValueError("without a command the parameters are lifetime, in seconds, and delete")
            if delete not in ("revoke", "forget"):
                raise ValueError("delete is revoke or forget")
        elif not self.command[0].startswith("/"):
            raise ValueError("the first word of command is the path of a program")


@section
class Config(Section):
    """The whole file.

    state_dir: the audit log, and what is kept unless consul is given; all but the log is sealed with the keys (a line
    each, base64) of state_key_file, of which the first seals. crl_hours: how long a revocation list is valid; it is
    renewed at half that. replay_protection: take each token of a person once. services: what WaTTS' clients may order.
    """

    deployment: Annotated[str, Matches(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "letters, digits and _.- only, 63 at most")]
    listen: Listen
    state_dir: Path = Path("/var/lib/dodas/credentials")
    state_key_file: Path
    consul: ConsulSection | None = None
    join: JoinSection | None = None
    admins: list[AdminSection] = dataclasses.field(default_factory=list)
    voms: VomsSection = VomsSection()
    replay_protection: bool = False
    services: list[ServiceSection] = dataclasses.field(
        default_factory=lambda: [ServiceSection(id="x509", description="X.509 certificate")]
    )
    authority: AuthoritySection = AuthoritySection()
    issuers: Annotated[list[IssuerSection], Length(1)]
    rules: Annotated[list[dict[str, Any]], Length(1)]
    crl_hours: Annotated[int, Between(1, 8760)] = 168

    def check(self) -> None:
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

    @property
    def ca_subject(self) -> str:
        """The DN of the online CA."""
        return self.authority.subject or f"/DC=dodas/O={self.deployment}/CN=dodas online CA"

    def parsed_rules(self) -> list[mapping.Rule]:
        """The rules, in order. Raises ValueError."""
        return mapping.parse_rules(self.rules)

    def token_issuers(self) -> list[tokens.Issuer]:
        """The issuers as the verifier takes them."""
        same = {one.name for one in dataclasses.fields(tokens.Issuer)} & {
            one.name for one in dataclasses.fields(IssuerSection)
        }
        return [tokens.Issuer(**{name: _text(getattr(one, name)) for name in same}) for one in self.issuers]

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


def _text(value):
    return str(value) if isinstance(value, Path) else value


def load(path: str | Path) -> Config:
    """Read and check the file. Raises ConfigError."""
    try:
        return Config.parse(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, SectionError) as error:
        raise ConfigError(f"{path}: {error}") from error

# SPDX-License-Identifier: Apache-2.0
"""The credentials service without its web server: a verified token and a CSR in, an X.509 certificate or proxy out."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import hmac
import logging
import time
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    authority,
    client,
    csr,
    files,
    join,
    mapping,
    names,
    proxies,
    store,
    tokens,
    voms,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import InvalidSignature, x509
from dodas.credentials import watts
from dodas.credentials.audit import Audit
from dodas.credentials.config import Config
from dodas.credentials.delegations import Delegations
from dodas.credentials.metrics import Metrics
from dodas.credentials.refusal import Refusal
from dodas.credentials.robots import Robots

# A token of a host that stands for no certificate request: for keys that the service makes.
NO_REQUEST = ""

log = logging.getLogger("dodas.credentials")


@dataclasses.dataclass(frozen=True)
class Order:
    """What a client asks for. lifetime: seconds, or None for as long as the rule allows; policy: of a proxy, or None
    for the rule's; delegation: whose proxy, for hosts of the deployment.
    """

    csr: bytes
    kind: str = "proxy"
    lifetime: int | None = None
    policy: str | None = None
    delegation: str | None = None


class Service:
    """Raises AuthorityError, StoreError, OSError where its state cannot be used."""

    def __init__(self, config: Config):
        state = Path(config.state_dir)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config = config
        self.rules = config.parsed_rules()
        self.store = config.open_store()
        self.authority = _authority(config, self.store)
        for rule in self.rules:
            if not rule.dn.startswith(self.authority.namespace + "/"):
                problem = f"rule {rule.name!r}: dn is not below {self.authority.namespace}"
                raise authority.AuthorityError(problem)
        self.verifier = tokens.Verifier(config.token_issuers(), replay=config.replay_protection)
        self.joins = None
        if config.join:
            secret = store.read_keys(config.join.secret_file)[0]
            self.joins = join.Verifier(config.deployment, secret, config.join.audience)
            self._join_secret = secret
        self.voms = voms.Attributes(config.voms, self.authority)
        self.robots = Robots(self.store, self.authority)
        self.delegations = Delegations(config, self.store, self.authority, self.verifier)
        self.audit = Audit(state / "audit.log")
        self.metrics = Metrics(self)

    # Who asks.

    def authenticate(self, headers: list[str], peer: str) -> tokens.Token:
        """The token of a request's Authorization headers: of an issuer, or of a host. Raises Refusal."""
        try:
            if not headers:
                raise Refusal(401, "invalid_token", "no_token", "an access token is needed")
            scheme, _, text = headers[0].partition(" ")
            if len(headers) > 1 or scheme.lower() not in ("bearer", "basic"):
                raise Refusal(401, "invalid_token", "scheme", "one Authorization: Bearer is needed")
            text = text.strip(" ")
            if scheme.lower() == "basic":
                return self._basic(text)
            verifier = self.joins if self.joins and self.joins.claims(text) else self.verifier
            try:
                return verifier.verify(text)
            except tokens.KeysUnavailable as error:
                raise Refusal(503, "temporarily_unavailable", error.reason, str(error)) from None
            except tokens.TokenError as error:
                lacks_scope = error.reason == "insufficient_scope"
                status, code = (403, error.reason) if lacks_scope else (401, "invalid_token")
                raise Refusal(status, code, error.reason, str(error)) from None
        except Refusal as refusal:
            self.audit.write_unverified(refusal.reason, client=peer)
            raise

    def _basic(self, text: str) -> tokens.Token:
        """A host by its name and its key, as clients that can sign nothing send them."""
        refusal = Refusal(401, "invalid_token", "host_key", "no host of this deployment, or not its key")
        if self.joins is None:
            raise refusal
        try:
            host, _, password = base64.b64decode(text, validate=True).decode().partition(":")
            key = base64.b64encode(join.derive(self._join_secret, host)).decode()
        except (ValueError, binascii.Error):
            raise refusal from None
        if not hmac.compare_digest(key.encode(), password.encode()):
            raise refusal
        now = int(time.time())  # as if the host had signed a token just now
        return tokens.Token(issuer=self.joins.issuer, subject=host, client=None, scopes=(join.SCOPE,), groups=(),
                            issued=now, expires=now + join.LIFETIME, claims={"csr": NO_REQUEST})  # fmt: skip

    def is_host(self, token: tokens.Token) -> bool:
        """Whether a host of the deployment asks."""
        return self.joins is not None and token.issuer == self.joins.issuer

    # What they get.

    def issue(self, token: tokens.Token, order: Order, peer: str) -> dict:
        """Decide, sign and record; the fields of the answer. Raises Refusal, StoreError."""
        if self.is_host(token) and token.claims.get("csr") != join.digest(order.csr):
            self.audit.write_unverified("other_request", client=peer)
            raise Refusal(403, "access_denied", "other_request", "the host's token is not for this certificate request")
        with self._recorded("issued", token, peer, kind=order.kind) as record:
            key = csr.public_key(order.csr)
            certificate, chain, more = self._sign(token, key, order)
            described = _described(certificate)
            record.update(more, **described)
        return {
            "certificate": files.certificate_pem(certificate).decode(),
            "chain": b"".join(map(files.certificate_pem, chain)).decode(),
            "kind": order.kind,
            **described,
            **({"vo": more["vo"]} if "vo" in more else {}),
        }

    def make(self, token: tokens.Token, kind: str, lifetime: int | None, peer: str, delegation: str | None = None):
        """A client.Credential whose key is made here, for those who cannot make one. Raises Refusal, StoreError."""
        with self._recorded("issued", token, peer, kind=kind) as record:
            key = csr.make_key()
            order = Order(b"", kind, lifetime, None, delegation)
            certificate, chain, more = self._sign(token, key.public_key(), order)
            record.update(more, **_described(certificate))
        return client.Credential(certificate, key, tuple(chain))

    def _sign(self, token, key, order: Order):
        """(certificate, chain below the root, fields for the record)."""
        if order.delegation is not None:
            if order.kind != "proxy" or not self.is_host(token):
                raise Refusal(403, "access_denied", "no_delegation", "hosts get proxies of delegations, others nothing")
            found, rule, holder, holder_key = self.delegations.holder(order.delegation)
            more = {"rule": rule.name, "dn": found.dn, "delegation": found.id}
            return *self._proxy(holder, holder_key, key, rule, order, more), more
        decision = mapping.decide(self.rules, token, order.kind)
        if decision.rule is None:
            raise Refusal(403, "access_denied", "no_rule", "no rule allows this", rules=decision.why)
        rule = decision.rule
        lifetime = min(order.lifetime or rule.lifetime, rule.lifetime)
        token_end = dt.datetime.fromtimestamp(int(token.expires), dt.UTC) if rule.clip_to_token else None
        more = {"rule": rule.name, "dn": decision.dn}
        if order.kind == "proxy":
            robot, robot_key = self.robots.get(decision.dn, rule.lifetime)
            return *self._proxy(robot, robot_key, key, rule, order, more, token_end), more
        if order.policy:
            raise Refusal(400, "invalid_request", "bad_request", "only proxies have a policy")
        if order.kind == "host":
            certificate = self.authority.issue_host(
                key, decision.dn, rule.dns_names, days=lifetime / 86400, subject=decision.dn, not_after=token_end
            )
        else:
            certificate = self.authority.issue_eec(key, decision.dn, lifetime, token_end)
        return certificate, list(self.authority.between), more

    def _proxy(self, holder, holder_key, key, rule, order: Order, more: dict, not_after=None):
        """(proxy, chain) below a certificate that the service holds, with attributes of the rule's VO."""
        certificate = proxies.sign(
            holder, holder_key, key, min(order.lifetime or rule.lifetime, rule.lifetime), not_after=not_after,
            policy=_policy(order.policy, rule.policy), path_length=rule.path_length,
            extensions=self._attributes(holder, holder_key, rule, more),
        )  # fmt: skip
        return certificate, [holder, *self.authority.between]

    def _attributes(self, robot, robot_key, rule, more: dict) -> list:
        """The VOMS attributes of a rule's VO, as extensions."""
        if not rule.vo:
            return []
        try:
            found = self.voms.get(robot, robot_key, rule.vo, rule.fqans, rule.lifetime, chain=self.authority.between)
        except voms.VomsError as error:
            if error.reason in ("not_a_member", "refused"):
                raise Refusal(403, "access_denied", "voms", f"no attributes of {rule.vo}: {error}") from None
            raise Refusal(503, "temporarily_unavailable", "voms", f"no attributes of {rule.vo}: {error}") from None
        more["vo"] = rule.vo
        return [found]

    def delegate(self, token: tokens.Token, text: str, peer: str) -> dict:
        """Take a person's token for good; see delegations. Raises Refusal, StoreError."""
        if self.is_host(token):
            raise Refusal(403, "access_denied", "no_rule", "hosts have nothing to delegate")
        with self._recorded("delegated", token, peer, kind="delegation") as record:
            made = self.delegations.create(token, text)
            record.update(dn=made.dn, rule=made.rule, **_described(made.certificate))
        return made.public()

    def delegations_of(self, token: tokens.Token) -> list[dict]:
        """One's own; hosts see all ids."""
        host = self.is_host(token)
        found = [one for one in self.delegations.list() if host or (one.issuer, one.subject) == _who(token)]
        return [one.public() for one in found]

    def undelegate(self, token: tokens.Token, number: str, peer: str) -> None:
        """Forget one's own delegation. Raises Refusal, StoreError."""
        found = self.delegations.get(number)
        if found is None or ((found.issuer, found.subject) != _who(token) and not self.is_admin(token)):
            raise Refusal(404, "not_found", "no_delegation", "you have no such delegation")
        with self._recorded("undelegated", token, peer, kind="delegation") as record:
            record["dn"] = found.dn
            self.delegations.remove(number)

    def is_admin(self, token: tokens.Token) -> bool:
        """Whether the token is of somebody who may revoke everything."""
        return any(token.issuer == one.issuer and set(one.groups) & set(token.groups) for one in self.config.admins)

    def revoke(
        self, token: tokens.Token, serial: int | None, pem: bytes | None, peer: str, owned: bool = False
    ) -> dict:
        """Put a certificate on the revocation list: one's own by showing it, any by its number for administrators.

        For a proxy the certificate that signed it is revoked: proxies are on no list. owned: the caller knows that
        the serial number is the token's. Raises Refusal, StoreError.
        """
        with self._recorded("revoked", token, peer, kind="revocation") as record:
            subject = None
            if pem is not None:
                certificate = self._ours(pem)
                serial, subject = certificate.serial_number, names.slash(certificate.subject)
                mine = {rule.distinguished_name(token) for rule in self.rules if rule.issuer == token.issuer}
                owned = subject in mine
            if serial is None:
                raise Refusal(400, "invalid_request", "bad_request", "name a certificate or a serial number")
            if serial == self.authority.certificate.serial_number:
                raise Refusal(400, "invalid_request", "bad_certificate", "the authority is not on its own list")
            if not owned and not self.is_admin(token):
                raise Refusal(403, "access_denied", "not_yours", "the certificate is not yours")
            self.authority.revoke(serial)
            record.update(serial=str(serial), dn=subject)
        return {"serial": str(serial), "subject": subject}

    def _ours(self, pem: bytes):
        """The end-entity certificate in a PEM file, if this authority signed it."""
        try:
            chain = x509.load_pem_x509_certificates(pem)
            certificate = next(one for one in chain if proxies.proxy_info(one) is None)
            certificate.verify_directly_issued_by(self.authority.certificate)
        except (ValueError, TypeError, StopIteration, InvalidSignature):
            raise Refusal(400, "invalid_request", "bad_certificate", "no certificate of this authority") from None
        return certificate

    def explain(self, token: tokens.Token) -> dict:
        """What a token would give, kind by kind, and why not."""
        kinds = {}
        for kind in mapping.KINDS:
            decision = mapping.decide(self.rules, token, kind)
            kinds[kind] = {"rule": decision.rule and decision.rule.name, "dn": decision.dn, "why": decision.why}
        return {
            "issuer": token.issuer, "subject": token.subject, "client": token.client, "scopes": list(token.scopes),
            "groups": list(token.groups), "expires": int(token.expires),
            "kinds": kinds,
        }  # fmt: skip

    def _recorded(self, decision: str, token: tokens.Token, peer: str, **what):
        return _Recorded(self.audit, decision, token, peer, what)

    # How it is.

    def health(self) -> tuple[bool, dict]:
        """(whether what is served lasts, the figures): the CA must outlive the longest certificate."""
        ca, crl = self.authority.remaining(), self.authority.crl_remaining()
        kept = self.delegations.health()
        problems = [kept["problem"]] if kept["problem"] else []
        if ca < max(rule.lifetime for rule in self.rules):
            problems.append("the CA ends before the certificates that it would sign")
        if crl < self.config.crl_hours * 3600 / 4:
            problems.append("the revocation list is about to end")
        return not problems, {
            "status": "; ".join(problems) or "ok",
            "ca_remaining_seconds": round(ca),
            "crl_remaining_seconds": round(crl),
            "delegations": kept["delegations"],
            "issuers": self.verifier.status(),
        }

    def housekeep(self) -> None:
        """Keep the revocation list and the issuers' keys fresh: to be called about once a minute."""
        self.authority.refresh_crl()
        self.verifier.refresh()
        watts.sweep(self.store)


class _Recorded:
    """A line in the audit log for what is done inside, or why it is refused."""

    def __init__(self, audit: Audit, decision: str, token: tokens.Token, peer: str, what: dict):
        self._audit, self._decision = audit, decision
        self._record = {"client": peer, "iss": token.issuer, "sub": token.subject, "client_id": token.client, **what}

    def __enter__(self) -> dict:
        return self._record

    def __exit__(self, _kind, error, _trace):
        if error is None:
            self._audit.write(self._decision, **self._record)
            return
        refusal = error
        if isinstance(error, csr.RequestError):
            refusal = Refusal(400, "invalid_request", "bad_csr", str(error))
        elif isinstance(error, (authority.AuthorityError, proxies.ProxyError)):
            refusal = Refusal(403, "access_denied", "cannot_sign", str(error))
        if isinstance(refusal, Refusal):
            self._audit.write("refused", reason=refusal.reason, **refusal.more, **self._record)
            if refusal is not error:
                raise refusal from None


def _who(token: tokens.Token) -> tuple[str, str]:
    return token.issuer, token.subject


def _described(certificate) -> dict:
    return {
        "subject": names.slash(certificate.subject),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": str(certificate.serial_number),
    }


def _policy(asked: str | None, allowed: str) -> str:
    """The policy of a proxy: what the rule says, or a limited one where somebody wants less."""
    if asked in (None, allowed):
        return allowed
    if asked == "limited" and allowed == "inherit-all":
        return asked
    raise Refusal(403, "access_denied", "policy", f"the rule allows proxies of policy {allowed}")


def _authority(config: Config, kept: store.Sealed) -> authority.Authority:
    section = config.authority
    if not section.certfile:
        return authority.Authority.open(
            kept, config.ca_subject, section.lifetime_days, config.crl_hours, key_type=section.key_type
        )
    try:
        certificate, key = section.certfile.read_bytes(), files.read_private(section.keyfile)
        chain = section.chainfile.read_bytes() if section.chainfile else b""
    except OSError as error:
        raise authority.AuthorityError(f"the site's CA cannot be read: {error}") from error
    return authority.Authority.given(
        kept, certificate, key, chain, crl_hours=config.crl_hours, namespace=section.namespace
    )

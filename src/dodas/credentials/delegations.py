# SPDX-License-Identifier: Apache-2.0
"""Credentials on behalf of people and robots, whose token the service takes once and keeps fresh from then on.

A delegation is a record in the sealed store: tokens, and an end-entity certificate whose key never leaves the service.
Half-way through the life of its access token the service refreshes it, and with a fresh token, half-way through the
life of the certificate, it makes a new one: whoever is no longer entitled loses the certificate within its life. Hosts
of the deployment get proxies of the certificate for keys of their own.

No instant at which the process may die loses a delegation. The one that could is between the provider's answer, which
ends the old refresh token, and the write of the new one: so the intent to refresh is written first, and who finds
it trades the access token, which is still valid, for a new refresh token (RFC 8693) instead of using the old one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import socket
import threading
import time

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    authority,
    client,
    csr,
    files,
    mapping,
    proxies,
    store,
    tokens,
)
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import x509
from dodas.credentials.config import Config, IssuerSection
from dodas.credentials.refusal import Refusal

TICK_SECONDS = 1.0
PROVIDER_SECONDS = 10.0
LEASE_SECONDS = 60.0  # longer than any renewal takes
RETRY_FIRST = 1.0
RETRY_MOST = 60.0
EXPIRED_MARGIN = 5.0  # an access token with less left is not worth sending

log = logging.getLogger("dodas.credentials.delegations")


@dataclasses.dataclass(frozen=True)
class Delegation:
    """One record; times in seconds since the epoch. credential: PEM of certificate and key.

    intent: a refresh was begun; due: when to renew; failures: in a row; ended: why it is no longer served, or "".
    holder, lease: which instance renews it now, and until when.
    """

    id: str
    issuer: str
    subject: str
    client: str | None
    rule: str
    dn: str
    credential: str
    access_token: str
    access_issued: float
    access_expires: float
    refresh_token: str
    created: float
    due: float
    intent: bool = False
    failures: int = 0
    problem: str = ""
    ended: str = ""
    holder: str = ""
    lease: float = 0.0

    def encode(self) -> bytes:
        """As it is kept."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Delegation:
        """From what is kept."""
        return cls(**json.loads(data))

    @property
    def certificate(self):
        """The end-entity certificate."""
        return x509.load_pem_x509_certificates(self.credential.encode())[0]  # not the key, which takes long

    def public(self) -> dict:
        """What may be shown of it."""
        end = self.certificate.not_valid_after_utc
        return {"id": self.id, "subject": self.dn, "not_after": end.isoformat(), "created": int(self.created),
                "problem": self.ended or self.problem}  # fmt: skip


class Delegations:
    """All of them. May be used from many threads; several instances may share the store."""

    def __init__(self, config: Config, kept: store.Sealed, ca: authority.Authority, verifier: tokens.Verifier):
        self._rules = {rule.name: rule for rule in config.parsed_rules()}
        self._issuers = {section.issuer: section for section in config.issuers}
        self._store = kept
        self._ca = ca
        self._verifier = verifier
        # The same after a restart, which goes on with what it had begun.
        self._me = f"{socket.gethostname()} {config.listen.address} {config.listen.port}"
        self._held: dict[str, tuple[Delegation, tuple]] = {}
        self._stop = threading.Event()
        self._endpoints: dict[str, str] = {}
        self.renewals: dict[str, int] = {"renewed": 0, "failed": 0, "ended": 0}

    # What requests ask for.

    def create(self, token: tokens.Token, text: str) -> Delegation:
        """Take the token of a person or robot, whose text is given, for good. Raises Refusal."""
        section = self._issuers.get(token.issuer)
        if section is None or not section.client_id or not section.client_secret_file:
            raise Refusal(403, "access_denied", "no_delegation", "the service has no client at this issuer")
        able = [rule for rule in self._rules.values() if rule.delegate]
        decision = mapping.decide(able, token, "proxy")
        if decision.rule is None:
            raise Refusal(403, "access_denied", "no_rule", "no rule allows delegation", rules=decision.why)
        try:
            answer = client.exchange_token(
                self._endpoint(section), section.client_id, self._secret(section), text, section.audience,
                section.scope, **self._web(section),
            )  # fmt: skip
        except client.ClientError as error:
            if error.code:
                raise Refusal(403, "access_denied", "exchange", f"the issuer refuses: {error.code}") from None
            raise Refusal(503, "temporarily_unavailable", "exchange", "the issuer does not answer") from None
        now = time.time()
        access, refresh, fresh = self._tokens(answer, token.issuer, token.subject)
        if not refresh:
            raise Refusal(403, "access_denied", "no_refresh_token", "the issuer gave no refresh token")
        made = Delegation(
            id=mapping.identity_hash(token.issuer, token.subject),
            issuer=token.issuer, subject=token.subject, client=token.client, rule=decision.rule.name, dn=decision.dn,
            credential=self._issue(decision.rule, decision.dn), access_token=access, access_issued=now,
            access_expires=fresh.expires, refresh_token=refresh, created=now, due=0.0,
        )  # fmt: skip
        made = dataclasses.replace(made, due=self._due(made))
        store.update(self._store, f"delegations/{made.id}", lambda _old: made.encode())
        self._keep(made)
        return made

    def get(self, number: str) -> Delegation | None:
        """The delegation of an id, or None."""
        if not (number.isascii() and number.isalnum() and len(number) <= 64):
            return None
        data, _version = self._store.read(f"delegations/{number}")
        return Delegation.decode(data) if data else None

    def list(self) -> list[Delegation]:
        """All."""
        found = (self.get(name.partition("/")[2]) for name in self._store.names("delegations"))
        return [one for one in found if one]

    def remove(self, number: str) -> None:
        """Forget it: certificate revoked, refresh token given back where the issuer can be reached."""
        found = self.get(number)
        if found is None:
            return
        self._store.remove(f"delegations/{number}")
        self._held.pop(number, None)
        self._ca.revoke(found.certificate.serial_number)
        section = self._issuers.get(found.issuer)
        if section:
            try:
                client.revoke_token(
                    self._endpoint(section, "revocation_endpoint"), section.client_id, found.refresh_token,
                    self._secret(section), **self._web(section),
                )  # fmt: skip
            except client.ClientError as error:
                log.warning("delegation %s: its refresh token could not be revoked: %s", number, error)

    def holder(self, number: str) -> tuple:
        """(delegation, rule, certificate, key), to sign proxies with. Raises Refusal."""
        found, (certificate, key) = self._current(number)
        rule = self._rules.get(found.rule)
        if rule is None:
            raise Refusal(403, "access_denied", "no_rule", f"rule {found.rule} of the delegation is gone")
        return found, rule, certificate, key

    def _current(self, number: str) -> tuple[Delegation, tuple]:
        held = self._held.get(number)
        if held is None:
            found = self.get(number)
            if found is None:
                raise Refusal(404, "not_found", "no_delegation", "there is no such delegation")
            held = self._keep(found)
        found, (certificate, _key) = held
        if found.ended:
            raise Refusal(403, "access_denied", "ended", f"the delegation has ended: {found.ended}")
        if certificate.not_valid_after_utc.timestamp() <= time.time() + EXPIRED_MARGIN:
            raise Refusal(503, "temporarily_unavailable", "stale", "the delegation could not be renewed in time")
        return held

    def _keep(self, found: Delegation) -> tuple[Delegation, tuple]:
        held = self._held.get(found.id)
        if held is None or held[0].credential != found.credential:
            certificate, key, _chain = files.load_credential(found.credential.encode())
            held = (found, (certificate, key))
        held = self._held[found.id] = (found, held[1])
        return held

    # Keeping them fresh.

    def stop(self) -> None:
        """End run()."""
        self._stop.set()

    def run(self) -> None:
        """Renew what is due, until stop()."""
        while not self._stop.wait(TICK_SECONDS * random.uniform(0.5, 1.5)):
            try:
                self.renew_due()
            except Exception:
                log.exception("delegations could not be looked at, next try at once")

    def renew_due(self) -> None:
        """One look at all of them."""
        kept = self.list()
        for number in set(self._held) - {one.id for one in kept}:
            self._held.pop(number, None)
        for one in kept:
            self._keep(one)
            if not one.ended and time.time() >= one.due and self._lease(one):
                self._renew(one.id)

    def health(self) -> dict:
        """{"delegations": how many, "problem": of the worst, or ""}."""
        worst = ""
        for found, (certificate, _key) in list(self._held.values()):
            left = certificate.not_valid_after_utc.timestamp() - time.time()
            if not found.ended and left < _life(certificate) / 10:
                worst = f"delegation {found.id} ends in {left:.0f} s: {found.problem}"
        return {"delegations": len(self._held), "problem": worst}

    def _change(self, found: Delegation, **fields) -> Delegation | None:
        """Change the record; None where it is gone, or the person has delegated anew meanwhile."""
        changed = None

        def change(data: bytes | None) -> bytes | None:
            nonlocal changed
            kept = Delegation.decode(data) if data else None
            changed = dataclasses.replace(kept, **fields) if kept and kept.created == found.created else None
            return changed and changed.encode()

        store.update(self._store, f"delegations/{found.id}", change)
        return changed

    def _lease(self, seen: Delegation) -> bool:
        """Whether this instance, and no other, renews it for the next minute."""
        now = time.time()

        def take(data: bytes | None) -> bytes | None:
            if data is None:
                return None
            found = Delegation.decode(data)
            if found.due > now or (found.lease > now and found.holder != self._me):
                return None
            return dataclasses.replace(found, holder=self._me, lease=now + LEASE_SECONDS).encode()

        data = store.update(self._store, f"delegations/{seen.id}", take)
        found = data and Delegation.decode(data)
        return bool(found) and found.holder == self._me and found.lease > now and found.due <= now

    def _renew(self, number: str) -> None:
        found = self.get(number)
        if found is None:
            return
        section = self._issuers.get(found.issuer)
        rule = self._rules.get(found.rule)
        if section is None or rule is None or not section.client_id:
            self._end(found, "the issuer or the rule is no longer configured")
            return
        try:
            answer = self._fresh_tokens(found, section)
            if answer.get("refresh_token"):  # first of all: the old one is spent
                found = self._change(found, refresh_token=answer["refresh_token"], intent=False) or found
            access, _refresh, token = self._tokens(answer, found.issuer, found.subject)
        except client.ClientError as error:
            if error.code in ("invalid_grant", "invalid_client", "unauthorized_client", "access_denied"):
                self._end(found, f"the issuer refuses: {error.code}")
            else:
                self._retry(found, str(error))
            return
        except (Refusal, tokens.TokenError) as error:
            self._retry(found, str(error))
            return
        fields = {"access_token": access, "access_issued": time.time(), "access_expires": token.expires}
        found = self._change(found, **fields, intent=False)
        if found is None:
            return
        decision = mapping.decide([rule], token, "proxy")
        if decision.rule is None or decision.dn != found.dn:
            self._end(found, "the rule no longer allows it")
            return
        credential = found.credential
        if _past_half(found.certificate):
            credential = self._issue(rule, found.dn)
        found = dataclasses.replace(found, credential=credential)
        found = self._change(found, credential=credential, due=self._due(found), failures=0, problem="", lease=0.0)
        self.renewals["renewed"] += 1
        if found:
            self._keep(found)

    def _fresh_tokens(self, found: Delegation, section: IssuerSection) -> dict:
        url, secret = self._endpoint(section), self._secret(section)
        if found.intent and time.time() < found.access_expires - EXPIRED_MARGIN:
            try:
                return client.exchange_token(
                    url, section.client_id, secret, found.access_token, section.audience, section.scope,
                    **self._web(section),
                )  # fmt: skip
            except client.ClientError as error:
                if not error.code:
                    raise
                log.info("delegation %s: no exchange (%s), so its refresh token again", found.id, error.code)
        self._change(found, intent=True)
        return client.refresh_token(
            url, section.client_id, found.refresh_token, client_secret=secret, audience=section.audience,
            **self._web(section),
        )  # fmt: skip

    def _retry(self, found: Delegation, problem: str) -> None:
        pause = min(RETRY_FIRST * 2**found.failures, RETRY_MOST, _life(found.certificate) / 20)
        log.warning("delegation %s is not renewed yet, next try in %.0f s: %s", found.id, pause, problem)
        self._change(
            found, failures=min(found.failures + 1, 20), problem=problem, lease=0.0,
            due=time.time() + pause * random.uniform(0.5, 1.5),
        )  # fmt: skip
        self.renewals["failed"] += 1

    def _end(self, found: Delegation, why: str) -> None:
        log.warning("delegation %s has ended: %s", found.id, why)
        ended = self._change(found, ended=why, access_token="", refresh_token="", lease=0.0)
        self._ca.revoke(found.certificate.serial_number)
        self.renewals["ended"] += 1
        if ended:
            self._keep(ended)

    def _due(self, found: Delegation) -> float:
        """Half-way through the life of what ends first, give or take a tenth."""
        now = time.time()
        certificate = found.certificate
        lives = [
            (found.access_expires - found.access_issued, found.access_expires - now),
            (_life(certificate), certificate.not_valid_after_utc.timestamp() - now),
        ]
        return now + max(0.0, min(left - whole * random.uniform(0.45, 0.55) for whole, left in lives))

    def _issue(self, rule: mapping.Rule, dn: str) -> str:
        key = csr.make_key()
        certificate = self._ca.issue_eec(key.public_key(), dn, rule.lifetime)
        return files.credential_pem(certificate, key).decode()

    def _tokens(self, answer: dict, issuer: str, subject: str) -> tuple[str, str, tokens.Token]:
        """(access token, refresh token or "", verified) of an answer that must be about the same person."""
        access, refresh = answer.get("access_token"), answer.get("refresh_token") or ""
        if not isinstance(access, str) or not isinstance(refresh, str):
            raise Refusal(503, "temporarily_unavailable", "exchange", "the issuer's answer holds no token")
        try:
            token = self._verifier.verify(access)
        except tokens.TokenError as error:
            raise Refusal(403, "access_denied", "exchange", f"the issuer's new token: {error}") from None
        if (token.issuer, token.subject) != (issuer, subject):
            raise Refusal(403, "access_denied", "exchange", "the issuer's new token is of somebody else")
        return access, refresh, token

    def _endpoint(self, section: IssuerSection, name: str = "token_endpoint") -> str:
        key = f"{section.issuer} {name}"
        if key not in self._endpoints:
            found = client.discover(section.issuer, **self._web(section)).get(name)
            if not isinstance(found, str):
                raise client.ClientError(f"{section.issuer} names no {name}")
            self._endpoints[key] = found
        return self._endpoints[key]

    def _secret(self, section: IssuerSection) -> str:
        try:
            return section.client_secret_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise client.ClientError(f"{section.client_secret_file}: {type(error).__name__}") from None

    def _web(self, section: IssuerSection) -> dict:
        return {"cafile": section.cafile and str(section.cafile), "timeout": PROVIDER_SECONDS}


def _life(certificate) -> float:
    """Seconds that a certificate was made for."""
    whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc - proxies.BACKDATE
    return max(whole.total_seconds(), 1.0)


def _past_half(certificate) -> bool:
    # A little early is better than a whole life of the access token late.
    return certificate.not_valid_after_utc.timestamp() - time.time() < 0.6 * _life(certificate)

# SPDX-License-Identifier: Apache-2.0
"""Rules that give a verified token a distinguished name. Nothing matches by default; the first rule that does
decides.

A rule is a mapping (all conditions given must hold):

    name: workers                 # for logs and explanations
    issuer: https://...           # exactly this issuer
    subjects: [..]                # any of these; so for clients
    clients: [..]
    groups: [..]                  # any of these, exactly: /cms/uscms does not imply /cms
    scopes: [..]                  # all of these
    dn: /DC=dodas/O=tier3/OU=workers/CN=worker-{hash}
    kinds: [proxy]                # of eec, proxy, host
    lifetime: 43200               # seconds at most
    dns_names: [..]               # kind host: the names it may have
    clip_to_token: false          # whether the certificate ends no later than the token

The CN holds ``{hash}``, 80 bits of SHA-256(issuer NUL subject) in hex, so that two people never share a name
however alike their subjects look; ``{sub}`` and ``{client}`` are for the human reader, with other characters
replaced by ``_``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import names

KINDS = ("eec", "proxy", "host")
MAX_CN = 64
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule; see the module. Raises ValueError that names the rule and the key."""

    name: str
    issuer: str
    dn: str
    kinds: tuple
    lifetime: int
    subjects: tuple = ()
    clients: tuple = ()
    groups: tuple = ()
    scopes: tuple = ()
    dns_names: tuple = ()
    clip_to_token: bool = False

    @classmethod
    def parse(cls, mapping):
        """A rule from a mapping as configuration files hold it."""
        mapping = dict(mapping)
        label = f"rule {mapping.get('name', '?')!r}"
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(mapping) - set(fields))
        if unknown:
            raise ValueError(f"{label}: unknown key {', '.join(unknown)}")
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and not mapping.get(n)]
        if missing:
            raise ValueError(f"{label}: {', '.join(missing)} must be set")
        for key in ("kinds", "subjects", "clients", "groups", "scopes", "dns_names"):
            values = mapping.get(key, ())
            if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
                raise ValueError(f"{label}: {key} must be a list of strings")
            mapping[key] = tuple(values)
        rule = cls(**mapping)
        rule._check(label)
        return rule

    def _check(self, label):
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"{label}: kind {kind!r} is none of {', '.join(KINDS)}")
        if isinstance(self.lifetime, bool) or not isinstance(self.lifetime, int) or self.lifetime < 60:
            raise ValueError(f"{label}: lifetime must be whole seconds, at least 60")
        if not isinstance(self.clip_to_token, bool):
            raise ValueError(f"{label}: clip_to_token must be true or false")
        if ("host" in self.kinds) != bool(self.dns_names):
            raise ValueError(f"{label}: dns_names go with kind host")
        for host in self.dns_names:
            if not HOST_NAME.fullmatch(host):
                raise ValueError(f"{label}: {host!r} is no host name in lower case")
        try:
            *base, (last, cn) = names.split(self.dn)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        if last != "CN" or "{hash}" not in cn or any("{" in value for key, value in base):
            raise ValueError(
                f"{label}: dn must end with a CN that holds {{hash}}; no placeholders go elsewhere"
            )
        if set(PLACEHOLDER.findall(cn)) - {"hash", "sub", "client"}:
            raise ValueError(f"{label}: the placeholders of dn are {{hash}}, {{sub}} and {{client}}")
        try:
            names.parse(self.distinguished_name("https://issuer", "x", "x"))
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error

    def refusal(self, token, kind):
        """Why this rule does not hold for the token: the name of the condition, or None where it holds."""
        if token.issuer != self.issuer:
            return "issuer"
        if kind not in self.kinds:
            return "kind"
        if self.subjects and token.subject not in self.subjects:
            return "subject"
        if self.clients and token.client not in self.clients:
            return "client"
        if self.groups and not set(self.groups) & set(token.groups):
            return "group"
        if not set(self.scopes) <= set(token.scopes):
            return "scope"
        return None

    def distinguished_name(self, issuer, subject, client=None):
        """The DN in slash form: another one for each (issuer, subject), whatever characters they hold."""
        base, cn = self.dn.rsplit("/CN=", 1)
        fixed = PLACEHOLDER.sub("", cn)
        readable = {"sub": subject, "client": client or "none"}
        used = [name for name in PLACEHOLDER.findall(cn) if name in readable]
        room = (MAX_CN - len(fixed) - 20 * cn.count("{hash}")) // max(1, len(used))

        def fill(match):
            if match[1] == "hash":
                return identity_hash(issuer, subject)
            return re.sub(r"[^A-Za-z0-9_.:@-]", "_", readable[match[1]])[: max(0, room)]

        return f"{base}/CN={PLACEHOLDER.sub(fill, cn)}"


@dataclasses.dataclass(frozen=True)
class Decision:
    """rule and dn are None where no rule holds; why gives, by rule, the condition that failed."""

    rule: Rule | None
    dn: str | None
    why: dict


def identity_hash(issuer, subject):
    """80 bits of SHA-256(issuer NUL subject), in hex."""
    identity = f"{issuer}\0{subject}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(identity).hexdigest()[:20]


def parse_rules(mappings):
    """A list of Rule. Raises ValueError, also for two rules of one name."""
    rules = [Rule.parse(mapping) for mapping in mappings]
    if len({rule.name for rule in rules}) < len(rules):
        raise ValueError("two rules have the same name")
    return rules


def decide(rules, token, kind):
    """The first rule that holds for the token and the kind asked for."""
    why = {}
    for rule in rules:
        why[rule.name] = rule.refusal(token, kind)
        if why[rule.name] is None:
            return Decision(rule, rule.distinguished_name(token.issuer, token.subject, token.client), why)
    return Decision(None, None, why)

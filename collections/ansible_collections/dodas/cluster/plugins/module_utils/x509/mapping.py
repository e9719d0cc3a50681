# SPDX-License-Identifier: Apache-2.0
"""Rules that give a verified token a distinguished name. Nothing matches by default; the first rule that does
decides.

A rule is a mapping (all conditions given must hold):

    name: workers                 # for logs and explanations
    issuer: https://...           # exactly this issuer; urn:dodas:<deployment> for the deployment's own hosts
    subjects: [..]                # any of these; so for clients
    clients: [..]
    groups: [..]                  # any of these, exactly: /cms/uscms does not imply /cms
    scopes: [..]                  # all of these
    claims: {acr: [a, b], ..}     # each claim is one of the values given, or a list that holds one
    dn: /DC=dodas/O=tier3/OU=workers/CN=worker-{hash}
    kinds: [proxy]                # of eec, proxy, host
    lifetime: 43200               # seconds at most
    dns_names: [..]               # kind host: the names it may have
    clip_to_token: false          # whether the certificate ends no later than the token
    policy: inherit-all           # of a proxy: or limited, independent
    path_length: 0                # how many proxies may follow a proxy
    vo: cms                       # whose VOMS attributes a proxy gets
    fqans: [/cms/Role=production] # which of them; without, as the VO says
    delegate: false               # whether a token may be left with the service, for workers to get proxies of it

The CN holds ``{hash}``, 80 bits of SHA-256(issuer NUL subject) in hex, so that two people never share a name
however alike their subjects look. Other placeholders are for the human reader: ``{sub}``, ``{client}`` and any claim
that is a string by its name, with all but ASCII letters, digits and ``_.:@-`` replaced by ``_``. A token without such
a claim does not match.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import names, proxies

KINDS = ("eec", "proxy", "host")
MAX_CN = 64
HASH_LENGTH = 20
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
CLAIM = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
UNWANTED = re.compile(r"[^A-Za-z0-9_.:@-]")
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*")
ISSUER = re.compile(r"https?://[!-~]+|urn:dodas:[A-Za-z0-9_.-]{1,63}")
VO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
FQAN = re.compile(r"(/[A-Za-z0-9_.-]+)+(/Role=[A-Za-z0-9_.-]+)?(/Capability=NULL)?")
LISTS = ("kinds", "subjects", "clients", "groups", "scopes", "dns_names", "fqans")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule; see the module. claims: ((name, (value, ..)), ..). Raises ValueError that names the rule and the
    key."""

    name: str
    issuer: str
    dn: str
    kinds: tuple
    lifetime: int
    subjects: tuple = ()
    clients: tuple = ()
    groups: tuple = ()
    scopes: tuple = ()
    claims: tuple = ()
    dns_names: tuple = ()
    clip_to_token: bool = False
    policy: str = "inherit-all"
    path_length: int = 0
    vo: str | None = None
    fqans: tuple = ()
    delegate: bool = False

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
        for key in ("name", "issuer", "dn"):
            if not isinstance(mapping[key], str):
                raise ValueError(f"{label}: {key} must be text")
        for key in LISTS:
            values = mapping.get(key, ())
            if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
                raise ValueError(f"{label}: {key} must be a list of strings")
            mapping[key] = tuple(values)
        mapping["claims"] = _claims(mapping.get("claims", {}), label)
        rule = cls(**mapping)
        rule._check(label)
        return rule

    def _check(self, label):
        if not ISSUER.fullmatch(self.issuer):
            raise ValueError(f"{label}: issuer must be a URL, or urn:dodas: and a deployment")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"{label}: kind {kind!r} is none of {', '.join(KINDS)}")
        if not _is_integer(self.lifetime) or self.lifetime < 60:
            raise ValueError(f"{label}: lifetime must be whole seconds, at least 60")
        for key in ("clip_to_token", "delegate"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{label}: {key} must be true or false")
        if ("host" in self.kinds) != bool(self.dns_names):
            raise ValueError(f"{label}: dns_names go with kind host")
        for host in self.dns_names:
            if not HOST_NAME.fullmatch(host):
                raise ValueError(f"{label}: {host!r} is no host name in lower case")
        self._check_proxy(label)
        self._check_dn(label)

    def _check_proxy(self, label):
        if self.policy not in proxies.POLICIES:
            raise ValueError(f"{label}: policy {self.policy!r} is none of {', '.join(proxies.POLICIES)}")
        if not _is_integer(self.path_length) or not 0 <= self.path_length < 100:
            raise ValueError(f"{label}: path_length must be a number from 0 to 99")
        if self.vo is not None and not (isinstance(self.vo, str) and VO.fullmatch(self.vo)):
            raise ValueError(f"{label}: {self.vo!r} is no name of a VO")
        for fqan in self.fqans:
            if not FQAN.fullmatch(fqan) or fqan.split("/")[1] != self.vo:
                raise ValueError(f"{label}: fqans: {fqan!r} is none of a VO that vo names")
        used = [key for key, default in PROXY_KEYS.items() if getattr(self, key) != default]
        if used and "proxy" not in self.kinds:
            raise ValueError(f"{label}: {', '.join(used)} goes with kind proxy")

    def _check_dn(self, label):
        try:
            *base, (last, cn) = names.split(self.dn)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        if last != "CN" or cn.count("{hash}") != 1 or any("{" in value for key, value in base):
            raise ValueError(
                f"{label}: dn must end with a CN that holds {{hash}} once; no placeholders go elsewhere"
            )
        if all("{" in side for side in cn.split("{hash}")):
            # Else it has no fixed place, and what is beside it could pass for it.
            raise ValueError(f"{label}: dn has placeholders on both sides of {{hash}}")
        if not all(CLAIM.fullmatch(name) for name in PLACEHOLDER.findall(cn)):
            raise ValueError(f"{label}: the placeholders of dn are {{hash}}, {{sub}}, {{client}} and names of claims")
        try:
            names.parse(self._fill(dict.fromkeys(self.placeholders, "x"), "0" * HASH_LENGTH))
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error

    @property
    def placeholders(self):
        """The names in the braces of dn, without ``hash``."""
        return tuple(name for name in PLACEHOLDER.findall(self.dn) if name != "hash")

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
        for name, values in self.claims:
            if not _among(token.claims.get(name), values):
                return f"claim {name}"
        for name in self.placeholders:
            if _readable(token, name) is None:
                return f"claim {name}, which its name needs"
        return None

    def distinguished_name(self, token):
        """The DN in slash form: another one for each (issuer, subject), whatever characters they hold."""
        readable = {name: _readable(token, name) or "none" for name in self.placeholders}
        return self._fill(readable, identity_hash(token.issuer, token.subject))

    def _fill(self, readable, digest):
        room = max(1, self._room())

        def fill(match):
            return digest if match[1] == "hash" else UNWANTED.sub("_", readable[match[1]])[:room]

        return PLACEHOLDER.sub(fill, self.dn)

    def _room(self):
        """Characters for each placeholder but ``hash``."""
        cn = self.dn.rpartition("/CN=")[2]
        fixed = len(PLACEHOLDER.sub("", cn)) + HASH_LENGTH
        return (MAX_CN - fixed) // max(1, len(self.placeholders))


PROXY_KEYS = {
    field.name: field.default
    for field in dataclasses.fields(Rule)
    if field.name in ("policy", "path_length", "vo", "fqans", "delegate")
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """rule and dn are None where no rule holds; why gives, by rule, the condition that failed."""

    rule: Rule | None
    dn: str | None
    why: dict


def identity_hash(issuer, subject):
    """80 bits of SHA-256(issuer NUL subject), in hex."""
    identity = f"{issuer}\0{subject}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(identity).hexdigest()[:HASH_LENGTH]


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
            return Decision(rule, rule.distinguished_name(token), why)
    return Decision(None, None, why)


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _claims(conditions, label):
    if not isinstance(conditions, dict):
        raise ValueError(f"{label}: claims must be a mapping")
    pairs = []
    for name, given in conditions.items():
        values = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not isinstance(name, str) or not values or not all(isinstance(v, (str, int, bool)) for v in values):
            raise ValueError(f"{label}: claims: {name!r} needs text, a number, true or false, or a list of these")
        pairs.append((name, values))
    return tuple(pairs)


def _among(claim, values):
    """Whether a claim is, or holds, one of the values; 1 is not true here."""
    held = claim if isinstance(claim, list) else [claim]
    return any(type(one) is type(value) and one == value for one in held for value in values)


def _readable(token, name):
    """What stands for a placeholder, or None."""
    value = {"sub": token.subject, "client": token.client or "none"}.get(name, token.claims.get(name))
    return value if isinstance(value, str) and value else None

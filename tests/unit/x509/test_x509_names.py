# SPDX-License-Identifier: Apache-2.0
"""Names of all kinds, with OpenSSL's opinion of each."""

import datetime as dt
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type as Type
from hypothesis import given, settings, strategies

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, names
from hypothesis_profile import PROFILE

KEY = ec.generate_private_key(ec.SECP256R1())
OID = x509.NameOID
PRINTABLE = strategies.characters(min_codepoint=32, max_codepoint=126)
IA5 = strategies.characters(max_codepoint=127, exclude_characters="\0")
ANY = strategies.characters(exclude_categories=["Cs"], exclude_characters="\0")
BMP = strategies.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF, exclude_characters="\0")
PLAIN = strategies.sampled_from(" abcXYZ019'()+,-./:=?")


def text(alphabet):
    return strategies.text(alphabet, min_size=1, max_size=16)  # 64 bytes at most


ATTRIBUTES = strategies.one_of(
    *(
        strategies.builds(x509.NameAttribute, strategies.just(oid), text(alphabet), strategies.just(kind))
        for oid in (OID.ORGANIZATION_NAME, OID.COMMON_NAME, OID.LOCALITY_NAME, OID.STATE_OR_PROVINCE_NAME)
        for alphabet, kind in ((ANY, Type.UTF8String), (PLAIN, Type.PrintableString), (BMP, Type.BMPString))
    ),
    *(
        strategies.builds(x509.NameAttribute, strategies.just(oid), text(IA5), strategies.just(Type.IA5String))
        for oid in (OID.DOMAIN_COMPONENT, OID.EMAIL_ADDRESS)
    ),
    strategies.builds(x509.NameAttribute, strategies.just(OID.COUNTRY_NAME), strategies.sampled_from(["IT", "de"])),
    strategies.builds(x509.NameAttribute, strategies.just(OID.SERIAL_NUMBER), text(PLAIN)),
    strategies.builds(x509.NameAttribute, strategies.just(x509.ObjectIdentifier("2.999.40000.1")), text(ANY)),
)
NAMES = strategies.builds(
    x509.Name,
    strategies.lists(
        strategies.builds(
            x509.RelativeDistinguishedName,
            strategies.lists(ATTRIBUTES, min_size=1, max_size=2, unique_by=lambda a: a.oid),
        ),
        min_size=1,
        max_size=6,
    ),
)


def certificate(name):
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder(name, name, KEY.public_key(), 1, now, now + dt.timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )  # fmt: skip


def openssl(made):
    """(hash, old hash, slash form) of certificates, from one process for each."""
    command = ["openssl", "x509", "-noout", "-subject_hash", "-subject_hash_old", "-subject", "-nameopt", "compat"]
    for one in made:
        done = subprocess.run(
            command, input=files.certificate_pem(one), check=True, capture_output=True, timeout=30
        ).stdout.decode()
        first, second, subject = done.split("\n", 2)
        yield first, second, subject.removeprefix("subject=").rstrip("\n")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ([("C", "IT", None), ("O", "INFN", None), ("CN", "INFN Certification Authority", None)], None),
        ([("DC", "ch", None), ("DC", "cern", None), ("CN", "Grid CA 2", None)], "/DC=ch/DC=cern/CN=Grid CA 2"),
        ([("C", "DE", None), ("ST", "Baden-W\N{LATIN SMALL LETTER U WITH DIAERESIS}rttemberg", None)],
         "/C=DE/ST=Baden-W\\xC3\\xBCrttemberg"),
        ([("O", "x", None), ("emailAddress", "ca@x.org", None)], "/O=x/emailAddress=ca@x.org"),
        ([("O", "  A   B ", Type.PrintableString), ("L", "\tTAB ", Type.UTF8String)], None),
        ([("O", "\N{GREEK CAPITAL LETTER ALPHA}\N{NO-BREAK SPACE} X", Type.UTF8String)], None),
        ([("O", "\N{GREEK CAPITAL LETTER ALPHA}\N{IDEOGRAPHIC SPACE} X", Type.BMPString)], None),
        ([("O", "a/CN=b", None), ("CN", "c+d,e\\f", None)], r"/O=a\/CN=b/CN=c\+d,e\f"),
        ([("UID", "u1", None), ("serialNumber", "7", None), ("CN", "x", None)], "/UID=u1/serialNumber=7/CN=x"),
    ],
)  # fmt: skip
def test_names_that_authorities_have(attributes, expected):
    oids = {"C": OID.COUNTRY_NAME, "O": OID.ORGANIZATION_NAME, "CN": OID.COMMON_NAME, "DC": OID.DOMAIN_COMPONENT,
            "ST": OID.STATE_OR_PROVINCE_NAME, "L": OID.LOCALITY_NAME, "emailAddress": OID.EMAIL_ADDRESS,
            "UID": OID.USER_ID, "serialNumber": OID.SERIAL_NUMBER}  # fmt: skip
    made = certificate(x509.Name([x509.NameAttribute(oids[a], value, kind) for a, value, kind in attributes]))
    [(first, second, subject)] = openssl([made])
    assert names.openssl_hashes(made.subject) == [first, second]
    assert names.slash(made.subject) == subject
    assert expected in (None, subject)


@settings(max_examples=PROFILE.max_examples // 30, deadline=None)
@given(NAMES)
def test_any_name_is_as_openssl_sees_it(name):
    made = certificate(name)
    [(first, second, subject)] = openssl([made])
    assert names.openssl_hashes(made.subject) == [first, second]
    assert names.slash(made.subject) == subject

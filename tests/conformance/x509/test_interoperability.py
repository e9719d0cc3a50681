# SPDX-License-Identifier: Apache-2.0
"""What each verifier says of each credential: all cells both ways, with its own words where it refuses."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml

import verifiers
import verifiers_shapes
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files, proxies
from verifiers_shapes import NAMESPACE, SHAPES

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[2] / "docs" / "interoperability.md"
NAMES = [shape.name for shape in SHAPES]
# Shape -> verifier -> what it says when it refuses. Who is not named accepts.
REFUSALS = yaml.safe_load((HERE / "refusals.yaml").read_text(encoding="utf-8"))


def test_expectations_are_of_these_shapes_and_verifiers():
    assert list(REFUSALS) == NAMES and len(NAMES) >= 15 and len(verifiers.VERIFIERS) >= 7
    known = {one.name for one in verifiers.VERIFIERS}
    refusing = [set(refusals or ()) for refusals in REFUSALS.values()]
    assert set().union(*refusing) == known, "a verifier that refuses nothing looks at nothing"
    assert set.intersection(*refusing) == set(), "a verifier that accepts nothing does not work"


@pytest.mark.parametrize("shape", NAMES)
@pytest.mark.parametrize("verifier", verifiers.VERIFIERS, ids=lambda one: one.name)
def test_verdict(matrix, verifier, shape):
    verdict = matrix.verdict(verifier, shape)
    expected = (REFUSALS[shape] or {}).get(verifier.name)
    if expected is None:
        assert verdict.letter == verifiers.ACCEPTED, verdict.said
        return
    letter, pattern = verifiers.REFUSED, expected
    if expected.startswith("client: "):
        letter, pattern = verifiers.UNSENT, expected.removeprefix("client: ")
    assert verdict.letter == letter, verdict.said
    assert re.search(pattern, verdict.said), verdict.said


def test_document_holds_what_was_measured(matrix):
    """WRITE=1 writes it there."""
    for verifier in verifiers.VERIFIERS:
        for shape in NAMES:
            matrix.verdict(verifier, shape)
    measured = "\n".join(matrix.table())
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(r"^\| Credential .*?(?=\n\n)", text, re.M | re.S)
    if os.environ.get("WRITE"):
        DOCUMENT.write_text(text.replace(found[0], measured), encoding="utf-8")
    else:
        assert found[0] == measured, f"WRITE=1 make conformance writes {DOCUMENT.name}"


# Shapes that are no good, asked of the library: what it says.
ASKED = {
    "expired EEC": (lambda w: w.person("alice", lifetime=-60), "ended"),
    "proxy of an expired EEC": (lambda w: w.proxy(verifiers_shapes.expired(w)), "ended"),
    "expired proxy": (lambda w: w.proxy(w.eec, lifetime=-60), "ended"),
    "path length exceeded": (lambda w: w.proxy(w.proxy(w.eec, path_length=0), key=w.keys[0]), "may not sign another"),
    "full proxy of a limited proxy": (lambda w: w.proxy(w.proxy(w.eec, policy="limited")), "only limited"),
    "proxy with an RSA-1024 key": (lambda w: w.proxy(w.eec, key=verifiers_shapes.weak_key()), "2048"),
    "ProxyCertInfo not critical": (
        lambda w: w.proxy(w.eec, extensions=[(proxies.PROXY_CERT_INFO, b"\x30\x00", False)]),
        "already been set",
    ),
    "proxy with a SAN": (lambda w: w.proxy(w.eec, extensions=[("2.5.29.17", b"\x30\x00", False)]), "2.5.29.17"),
    "proxy that says it is a CA": (lambda w: w.proxy(w.eec, extensions=[("2.5.29.19", b"\x30\x00", True)]), "29.19"),
    "proxy signed by another key": (lambda w: w.proxy(dataclasses.replace(w.eec, key=w.keys[0])), "not that of the"),
    "EEC of a foreign CA of the same name and key identifier": (
        lambda w: authority.Authority.given(
            w.folder / "none", files.certificate_pem(w.own.certificate), files.key_pem(w.foreign._key)
        ),
        "key",
    ),
    "EEC signed by an EEC": (
        lambda w: authority.Authority.given(
            w.folder / "none", files.certificate_pem(w.eec.certificate), files.key_pem(w.eec.key)
        ),
        "no CA|not a CA|not of a CA|is no",
    ),
    "EEC outside the signing policy": (
        lambda w: w.own.issue_eec(w.keys[1].public_key(), "/DC=dodas/O=elsewhere/OU=workers/CN=alice", 600),
        f"not below {NAMESPACE}",
    ),
}
# What cannot even be asked for: names and beginnings are not the caller's, and there is always a ProxyCertInfo.
NO_WORDS = {
    "proxy valid in 10 minutes",
    "legacy proxy (no ProxyCertInfo)",
    "proxy whose subject is not below its issuer's",
    "proxy, EEC outside the signing policy",
}


def test_every_bad_shape_is_asked_of_the_library():
    assert {shape.name for shape in SHAPES if not shape.ours} == {*ASKED, *NO_WORDS}


@pytest.mark.parametrize("shape", ASKED)
def test_library_refuses(world, shape):
    make, words = ASKED[shape]
    with pytest.raises((authority.AuthorityError, proxies.ProxyError, csr.RequestError, ValueError), match=words):
        make(world)

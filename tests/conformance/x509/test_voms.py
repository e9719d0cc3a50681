# SPDX-License-Identifier: Apache-2.0
"""Attribute certificates from a real VOMS server, in proxies that are signed from a worker's certificate request.

VOMS' own library decides, and ``voms-proxy-info`` shows what a person sees.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    authority,
    cadirectory,
    csr,
    files,
    names,
    proxies,
    voms,
)
from identity_runtime import Identity
from service_runtime import Credentials
from voms_runtime import VomsServer, environment, write_lsc
from voms_verify import verify

ALICE = "/DC=dodas/O=test/OU=people/CN=alice 0123456789abcdef"
BOB = "/DC=dodas/O=test/OU=people/CN=bob 0123456789abcdef"
HOST = "/DC=grid/O=test/OU=hosts/CN=localhost"
PLAIN = ("/cms/Role=NULL/Capability=NULL", "/cms/uscms/Role=NULL/Capability=NULL")


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a certificate of the online CA."""

    certificate: x509.Certificate
    key: object


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("voms")


@pytest.fixture(scope="module")
def online(folder):
    """The CA of the service, whose certificates go to the VOMS server."""
    ca = authority.Authority.open(folder / "online", "/DC=dodas/O=test/CN=online CA")
    ca.install(folder / "certificates")
    return ca


@pytest.fixture(scope="module")
def host(folder):
    """The credential of the VOMS server, from another CA."""
    ca = authority.Authority.open(folder / "grid", "/DC=grid/O=test/CN=grid CA")
    ca.install(folder / "certificates")
    ca.install(folder / "certificates-of-voms")
    key = csr.make_key()
    certificate = ca.issue_host(key.public_key(), "localhost", ["localhost"])
    files.write(folder / "host.pem", files.credential_pem(certificate, key))
    return folder / "host.pem"


@pytest.fixture(scope="module")
def alice(online):
    return holder(online, ALICE)


@pytest.fixture(scope="module")
def bob(online):
    return holder(online, BOB)


def holder(ca, dn):
    key = csr.make_key()
    return Holder(ca.issue_eec(key.public_key(), dn, 86400), key)


@pytest.fixture(scope="module")
def started(folder, online, host):
    with VomsServer(folder / "server", host, folder / "certificates") as server:
        server.add(ALICE, online.subject, ("/cms/uscms",), {"production": "/cms", "pilot": "/cms/uscms"})
        yield server


@pytest.fixture
def server(started):
    """The server; the network of the test is its."""
    with started.inside():
        yield started


@pytest.fixture
def fetch(server):
    """(holder, FQANs...) -> extension."""

    def ask(holder, *fqans, vo="cms", lifetime=3600, **changes):
        places = {"vomses": server.vomses, "vomsdir": server.vomsdir, "certdir": server.certificates}
        return voms.fetch(vo, holder.certificate, holder.key, (), fqans, lifetime, **{**places, **changes})

    return ask


def worker_proxy(path, holder, *extensions, **options):
    """As the service makes it: a proxy for the key of a worker, of which it has seen only the request."""
    worker = csr.make_key()
    public_key = csr.public_key(csr.make(worker))
    proxy = proxies.sign(holder.certificate, holder.key, public_key, 1800, path_length=0, extensions=extensions)
    files.write(path, files.credential_pem(proxy, worker, [holder.certificate]))
    return path


def info(path, server, *options):
    """(exit status, what voms-proxy-info says)."""
    places = environment(X509_VOMS_DIR=str(server.vomsdir), X509_CERT_DIR=str(server.certificates))
    command = ["voms-proxy-info", *(options or ["-all"]), "-file", str(path)]
    done = subprocess.run(command, env=places, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def fake(path, holder, host, *options, vo="cms", fqan="/cms/Role=NULL/Capability=NULL"):
    """A proxy with an attribute certificate that is signed with the host's key, without any server."""
    credential = path.with_suffix(".holder")
    files.write(credential, files.credential_pem(holder.certificate, holder.key))
    command = ["voms-proxy-fake", "-q", "-rfc", "-newformat", "-cert", credential, "-key", credential]
    command += ["-hostcert", host, "-hostkey", host, "-voms", vo, "-uri", "localhost:15000", "-fqan", fqan]
    command += ["-vomslife", "1", "-out", path, *options]
    trusted = environment(X509_CERT_DIR=str(host.parent / "certificates"))
    subprocess.run(command, env=trusted, capture_output=True, timeout=30, check=True)
    extensions = x509.load_pem_x509_certificates(path.read_bytes())[0].extensions
    return next((voms.OID, one.value.value, False) for one in extensions if one.oid.dotted_string == voms.OID)


# What is accepted.


def test_a_proxy_from_a_request_carries_the_attributes(server, fetch, alice, tmp_path):
    proxy = worker_proxy(tmp_path / "proxy.pem", alice, fetch(alice))
    status, said = info(proxy, server)
    print(said)
    assert status == 0
    lines = {tuple(part.strip() for part in line.split(" : ", 1)) for line in said.splitlines() if " : " in line}
    assert {
        ("identity", ALICE),
        ("type", "RFC compliant proxy"),
        ("VO", "cms"),
        ("issuer", HOST),
        ("attribute", PLAIN[0]),
        ("attribute", PLAIN[1]),
        ("uri", "localhost:15000"),
    } <= lines
    verdict = verify(proxy, server.vomsdir, server.certificates)
    assert (verdict.error, verdict.vo, verdict.user, verdict.fqans) == ("", "cms", ALICE, PLAIN)


def test_each_worker_gets_the_same_attributes_with_a_key_of_its_own(server, fetch, alice, tmp_path):
    extension = fetch(alice)
    paths = [worker_proxy(tmp_path / f"{n}.pem", alice, extension) for n in range(3)]
    assert len({p.read_bytes() for p in paths}) == 3
    for path in paths:
        assert verify(path, server.vomsdir, server.certificates).fqans == PLAIN


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (["/cms/Role=production"], ["/cms/Role=production"]),
        (["/cms/uscms"], ["/cms/uscms/Role=NULL"]),
        (["/cms/uscms/Role=pilot"], ["/cms/uscms/Role=pilot"]),
        (["/cms/uscms", "/cms/Role=production"], ["/cms/uscms/Role=NULL", "/cms/Role=production"]),
        (["/cms/Role=production", "/cms/uscms"], ["/cms/Role=production", "/cms/uscms/Role=NULL"]),
    ],
)
def test_groups_and_roles_come_in_the_order_in_which_they_are_asked_for(server, fetch, alice, tmp_path, asked, first):
    proxy = worker_proxy(tmp_path / "proxy.pem", alice, fetch(alice, *asked))
    fqans = verify(proxy, server.vomsdir, server.certificates).fqans
    assert list(fqans[: len(first)]) == [f"{fqan}/Capability=NULL" for fqan in first]
    assert set(PLAIN) <= set(fqans)


def test_how_long_they_hold(server, fetch, alice):
    for lifetime, expected in ((600, 600), (7230, 7260), (10**6, 86400)):  # whole minutes; the server gives a day
        (attribute,) = voms.read(fetch(alice, lifetime=lifetime)[1])
        assert (attribute.not_after - attribute.not_before).total_seconds() == expected


def test_what_we_read_is_what_voms_reads(server, fetch, alice, tmp_path):
    extension = fetch(alice, "/cms/Role=production")
    proxy = worker_proxy(tmp_path / "proxy.pem", alice, extension)
    (attribute,) = voms.of(x509.load_pem_x509_certificates(proxy.read_bytes())[0])
    assert attribute.fqans == verify(proxy, server.vomsdir, server.certificates).fqans
    assert (attribute.vo, attribute.uri) == ("cms", "localhost:15000")
    assert attribute.serial == alice.certificate.serial_number
    _, left = info(proxy, server, "-actimeleft")
    assert abs((attribute.not_after - dt.datetime.now(dt.UTC)).total_seconds() - int(left)) < 5
    assert voms.of(alice.certificate) == []


def test_the_authority_of_the_holder_need_not_be_in_the_directory(server, fetch, alice, folder, online, tmp_path):
    others = folder / "certificates-of-voms"
    before = sorted(others.iterdir())
    assert fetch(alice, certdir=others, authority=online)[0] == voms.OID
    assert sorted(others.iterdir()) == before
    stale = tmp_path / "certificates"
    online.install(stale)
    for path in [*stale.iterdir(), *others.iterdir()]:
        (stale / path.name).write_bytes(path.read_bytes() if path.parent == others else b"an old one")
    assert fetch(alice, certdir=stale, authority=online)[0] == voms.OID
    reason, message = why(fetch, alice, certdir=others)
    assert (reason, message) == ("no_authorities", f"{others} lacks the authorities of {ALICE}, or it is not valid")


def test_openssl_accepts_the_proxy(server, fetch, alice, tmp_path, folder):
    proxy = worker_proxy(tmp_path / "proxy.pem", alice, fetch(alice))
    command = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-CApath", folder / "certificates"]
    done = subprocess.run([*command, "-untrusted", proxy, proxy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What relying parties refuse. voms-proxy-info accepts all of it: it shows what is there, and its verdict is none.


def refused(path, server, **places):
    """Why VOMS' library refuses what voms-proxy-info shows."""
    status, said = info(path, server)
    assert status == 0 and "=== VO" in said
    verdict = verify(path, places.get("vomsdir", server.vomsdir), places.get("certificates", server.certificates))
    assert (verdict.vo, verdict.fqans) == ("", ())
    return verdict.error


def test_an_issuer_that_is_not_the_vos(server, fetch, alice, tmp_path, host):
    proxy = worker_proxy(tmp_path / "proxy.pem", alice, fetch(alice))
    other = tmp_path / "vomsdir"
    write_lsc(other, "cms", "localhost", x509.load_pem_x509_certificate(host.read_bytes()))
    assert verify(proxy, other, server.certificates).error == ""
    (other / "cms" / "localhost.lsc").write_text("/DC=grid/O=test/OU=hosts/CN=other\n/DC=grid/O=test/CN=grid CA\n")
    assert refused(proxy, server, vomsdir=other) == "Cannot verify AC signature!"


def test_a_vo_that_is_not_known(server, alice, host, tmp_path):
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    extension = fake(good, alice, host)
    assert verify(worker_proxy(good, alice, extension), server.vomsdir, server.certificates).fqans == PLAIN[:1]
    extension = fake(bad, alice, host, vo="lhcb", fqan="/lhcb/Role=NULL/Capability=NULL")
    assert refused(worker_proxy(bad, alice, extension), server) == "Cannot verify AC signature!"


def test_attributes_that_have_ended(server, alice, host, tmp_path):
    path = tmp_path / "proxy.pem"
    worker_proxy(path, alice, fake(path, alice, host, "-pastac", "3:00"))
    assert refused(path, server) == "AC not valid anymore."
    assert info(path, server, "-actimeleft") == (0, "0\n")


def test_attributes_of_another_holder(server, fetch, alice, bob, tmp_path):
    extension = fetch(alice)
    assert verify(worker_proxy(tmp_path / "a", alice, extension), server.vomsdir, server.certificates).error == ""
    stolen = worker_proxy(tmp_path / "b", bob, extension)
    assert refused(stolen, server) == "AC has been granted to a different certificate than the passed one."


def test_attributes_of_the_same_name_with_another_certificate(server, fetch, alice, online, tmp_path):
    """They are bound to the serial number: after renewal new ones are needed."""
    path = worker_proxy(tmp_path / "proxy.pem", holder(online, ALICE), fetch(alice))
    assert refused(path, server) == "AC has been granted to a different certificate than the passed one."


def test_attributes_that_somebody_changed(server, fetch, alice, tmp_path):
    oid, good, critical = fetch(alice, "/cms/Role=production")
    changed = good.replace(b"/cms/Role=production", b"/cms/Role=productiox")
    assert changed != good
    path = worker_proxy(tmp_path / "proxy.pem", alice, (oid, changed, critical))
    assert refused(path, server) == "Failed to verify AC signature."


def test_attributes_of_an_authority_that_is_not_trusted(server, fetch, alice, tmp_path, online):
    path = worker_proxy(tmp_path / "proxy.pem", alice, fetch(alice))
    online.install(tmp_path / "certificates")  # and not that of the VOMS server
    assert refused(path, server, certificates=tmp_path / "certificates")


def test_what_is_no_attribute_certificate(server, alice, tmp_path):
    path = worker_proxy(tmp_path / "proxy.pem", alice, (voms.OID, b"\x30\x03\x02\x01\x01", False))
    assert info(path, server)[0] == 1
    assert verify(path, server.vomsdir, server.certificates).error


# What goes wrong when they are asked for.


def why(fetch, *arguments, **options):
    with pytest.raises(voms.VomsError) as caught:
        fetch(*arguments, **options)
    return caught.value.reason, str(caught.value)


def test_who_is_no_member(fetch, bob):
    assert why(fetch, bob) == ("not_a_member", f"{BOB} is no member of VO cms")


@pytest.mark.parametrize("fqan", ["/cms/Role=admin", "/cms/dcms", "/cms/dcms/Role=production"])
def test_what_the_member_does_not_have(fetch, alice, fqan):
    reason, message = why(fetch, alice, fqan)
    assert reason == "refused"
    assert ALICE in message and "VO cms" in message


def test_a_vo_without_a_server(fetch, alice, server):
    assert why(fetch, alice, vo="lhcb") == ("unknown_vo", f"VO lhcb is not in {server.vomses}")


@pytest.mark.parametrize("vo", ["", "-out", "cms:/cms", "cms cms", "../cms", "cms\n", "cms\0"])
def test_what_is_no_vo(fetch, alice, vo):
    assert why(fetch, alice, vo=vo)[0] == "bad_request"


@pytest.mark.parametrize(
    "fqan",
    ["", "cms", "/lhcb", "/cms/Role=", "/cms/Role=a,/cms", "/cms all", "/cms/Role=a/b", "/cms:all", "/cms/Role=NULL",
     "/cmsx", "/cms\n", "-debug", "/cms/Role=production/Capability=x"],
)  # fmt: skip
def test_what_is_no_group_or_role_of_the_vo(fetch, alice, fqan):
    assert why(fetch, alice, fqan)[0] == "bad_request"


def test_a_server_that_is_not_trusted(fetch, alice, tmp_path, online, server):
    assert why(fetch, alice, vomsdir=tmp_path)[0] == "untrusted"
    online.install(tmp_path / "certificates")  # and not that of the VOMS server
    assert why(fetch, alice, certdir=tmp_path / "certificates")[0] in ("unavailable", "untrusted")
    assert why(fetch, alice, certdir=tmp_path / "nowhere")[0] == "no_authorities"


def test_a_certificate_that_has_ended(fetch, online):
    key = csr.make_key()
    certificate = online.issue_eec(key.public_key(), ALICE, 1)
    while certificate.not_valid_after_utc >= dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1):
        time.sleep(0.05)
    assert why(fetch, Holder(certificate, key))[0] in ("failed", "unavailable")


def test_a_server_that_is_away_and_back(server, fetch, alice):
    server.stop_voms()
    try:
        reason, message = why(fetch, alice)
        assert (reason, "VO cms" in message) == ("unavailable", True)
    finally:
        server.start_voms()
    assert fetch(alice)[0] == voms.OID


def test_a_server_that_hangs(fetch, alice, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        vomses = tmp_path / "vomses"
        vomses.write_text(f'"cms" "localhost" "{silent.getsockname()[1]}" "{HOST}" "cms"\n')
        started = time.monotonic()
        assert why(fetch, alice, vomses=vomses, timeout=2)[0] in ("timeout", "unavailable")
        assert time.monotonic() - started < 10


def test_a_program_that_is_not_there(fetch, alice):
    assert why(fetch, alice, program="/nowhere/voms-proxy-init")[0] == "missing"


def test_a_program_that_answers_something_else(fetch, alice, bob, tmp_path, server):
    theirs = files.credential_pem(bob.certificate, bob.key)
    (tmp_path / "other.pem").write_bytes(theirs)
    for text in ("exit 0", "exit 9", 'cp %s "$X509_USER_PROXY"' % (tmp_path / "other.pem")):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        assert why(fetch, alice, program=str(path))[0] == "failed"


def test_no_secret_is_seen_and_nothing_is_left(fetch, alice, tmp_path, server):
    """A program in the place of voms-proxy-init tells what is to be seen of it, and then becomes it."""
    spy, report = tmp_path / "spy", tmp_path / "report"
    spy.write_text(
        f"""#!{sys.executable} -I
import json, os, sys
key = sys.argv[sys.argv.index("-key") + 1]
modes = [oct(os.stat(path).st_mode & 0o777) for path in (os.path.dirname(key), key)]
report = {{"argv": sys.argv, "environment": dict(os.environ), "modes": modes, "scratch": os.path.dirname(key)}}
open({str(report)!r}, "w").write(json.dumps(report))
os.execvp("voms-proxy-init", ["voms-proxy-init", *sys.argv[1:]])
"""
    )
    spy.chmod(0o755)
    before = os.umask(0)
    try:
        fetch(alice, program=str(spy))
    finally:
        os.umask(before)
    seen = json.loads(report.read_text())
    assert "PRIVATE" not in json.dumps(seen)
    assert seen["modes"] == ["0o700", "0o600"]
    assert seen["environment"]["HOME"] == seen["scratch"]
    assert set(seen["environment"]) <= {
        "PATH", "HOME", "LC_ALL", "LC_CTYPE", "X509_USER_PROXY", "X509_VOMS_DIR", "X509_CERT_DIR"
    }  # fmt: skip
    assert not Path(seen["scratch"]).exists()
    with pytest.raises(voms.VomsError):
        fetch(alice, "/cms/Role=admin", program=str(spy))
    assert not Path(json.loads(report.read_text())["scratch"]).exists()


# What the service keeps.


class Counted:
    """voms.fetch, counted."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return voms.fetch(*arguments, **options)


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture
def attributes(server, counted):
    places = dataclasses.make_dataclass("Places", ["vomses", "vomsdir", "certdir"])
    settings = places(server.vomses, server.vomsdir, server.certificates)
    return voms.Attributes(settings, retry=0.2, fetch=counted)


@pytest.fixture
def clock(monkeypatch):
    """A function that lets time pass for the cache."""
    now = voms._now
    passed = dt.timedelta()

    def advance(seconds):
        nonlocal passed
        passed += dt.timedelta(seconds=seconds)

    monkeypatch.setattr(voms, "_now", lambda: now() + passed)
    return advance


def get(attributes, holder, *fqans, lifetime=3600):
    return attributes.get(holder.certificate, holder.key, "cms", fqans, lifetime)


def test_attributes_are_asked_for_once_in_half_their_life(attributes, counted, alice, clock):
    first = get(attributes, alice)
    clock(1750)
    assert get(attributes, alice) == first
    assert counted.calls == 1
    clock(100)
    second = get(attributes, alice)
    assert (second != first, counted.calls) == (True, 2)


def test_each_certificate_and_role_has_its_own(attributes, counted, alice, online):
    again = holder(online, ALICE)
    found = [get(attributes, alice), get(attributes, alice, "/cms/uscms"), get(attributes, again)]
    assert (len(set(found)), counted.calls) == (3, 3)
    assert voms.read(found[2][1])[0].serial == again.certificate.serial_number


def test_many_who_ask_at_once_make_one_request(server, attributes, counted, alice):
    def ask(_):
        with server.inside():
            return get(attributes, alice)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(ask, range(40)))) == 1
    assert counted.calls == 1


def test_what_holds_is_served_while_the_server_is_away(server, attributes, counted, alice, clock, tmp_path, caplog):
    first = get(attributes, alice)
    server.stop_voms()
    try:
        clock(1900)
        with caplog.at_level(logging.WARNING):
            assert get(attributes, alice) == first
        assert "are served until" in caplog.text
        assert get(attributes, alice) == first
        assert counted.calls == 2  # not for each that asks
        clock(1)
        assert get(attributes, alice) == first
        assert counted.calls == 3
        assert verify(worker_proxy(tmp_path / "p", alice, first), server.vomsdir, server.certificates).error == ""
        clock(1800)  # now they have ended
        with pytest.raises(voms.VomsError) as caught:
            get(attributes, alice)
        assert caught.value.reason == "unavailable"
    finally:
        server.start_voms()
    clock(-3702)
    assert get(attributes, alice) != first


def test_a_refusal_is_not_asked_for_again_at_once(attributes, counted, bob, clock):
    for _ in range(5):
        with pytest.raises(voms.VomsError) as caught:
            get(attributes, bob)
        assert caught.value.reason == "not_a_member"
    assert counted.calls == 1
    clock(1)
    with pytest.raises(voms.VomsError):
        get(attributes, bob)
    assert counted.calls == 2


def test_who_is_a_member_no_longer_keeps_what_was_granted_until_it_ends(server, attributes, online, clock):
    carol = holder(online, "/DC=dodas/O=test/OU=people/CN=carol")
    dn = names.slash(carol.certificate.subject)
    server.add(dn, online.subject)
    first = get(attributes, carol)
    server.remove(dn)
    clock(1900)
    assert get(attributes, carol) == first
    clock(1800)
    with pytest.raises(voms.VomsError) as caught:
        get(attributes, carol)
    assert caught.value.reason == "not_a_member"


def test_what_has_ended_is_forgotten(attributes, alice, online, clock):
    for _ in range(3):
        get(attributes, holder(online, ALICE))
    clock(4000)
    get(attributes, alice, lifetime=7200)
    assert len(attributes._held) == 1


# The whole service.


@pytest.fixture(scope="module")
def whole(started, folder):
    """The credentials service and a provider, in the network of the VOMS server; hosts get attributes."""
    with started.inside():
        (folder / "identity").mkdir()
        identity = Identity(folder / "identity")
        places = {"vomses": started.vomses, "vomsdir": started.vomsdir, "certdir": folder / "certificates-of-voms"}
        service = Credentials(folder / "service", identity, voms={name: str(at) for name, at in places.items()})
        for rule in service.settings["rules"]:
            if rule["name"] == "hosts":
                rule |= {"vo": "cms", "fqans": ["/cms/uscms"]}
        try:
            identity.start()
            service.start()
        except BaseException:
            service.stop()
            identity.stop()
            raise
    yield service
    service.stop()
    identity.stop()


def ask_as_host(service, host):
    """(answer, key) of a worker's request for a proxy."""
    key = csr.make_key()
    request = csr.make(key)
    headers = {"Authorization": f"Bearer {service.join_token(request, host)}"}
    with service.client(headers=headers) as http:
        return http.post("/v1/credentials", json={"csr": request.decode(), "kind": "proxy"}), key


def test_the_service_puts_them_into_the_proxies_of_workers(server, whole, folder, tmp_path):
    def name_of(host):
        with whole.client(headers={"Authorization": f"Bearer {whole.join_token(host=host)}"}) as http:
            return http.get("/v1/explain").json()["kinds"]["proxy"]["dn"]

    with whole.client() as http:
        online = http.get("/v1/authority").json()
    cadirectory.install_document(folder / "certificates", online)  # so that the VOMS server trusts it
    ca = names.slash(x509.load_pem_x509_certificate(online["ca"].encode()).subject)
    server.add(name_of("worker-1"), ca, ("/cms/uscms",))
    answer, _ = ask_as_host(whole, "worker-3")
    assert (answer.status_code, answer.json()["reason"]) == (403, "voms")
    assert f"{name_of('worker-3')} is no member of VO cms" in answer.json()["message"]

    def proxy(name):
        answer, key = ask_as_host(whole, "worker-1")
        assert answer.status_code == 201, answer.text
        assert answer.json()["vo"] == "cms"
        pem = answer.json()["certificate"].encode() + files.key_pem(key) + answer.json()["chain"].encode()
        files.write(tmp_path / name, pem)
        return verify(tmp_path / name, server.vomsdir, server.certificates)

    assert (proxy("first").error, proxy("first").fqans[0]) == ("", "/cms/uscms/Role=NULL/Capability=NULL")
    server.stop_voms()
    try:
        assert proxy("second").fqans == proxy("first").fqans
        answer, _ = ask_as_host(whole, "worker-2")
        assert (answer.status_code, answer.json()["reason"]) == (503, "voms")
    finally:
        server.start_voms()


# The server of these tests.


def test_the_server_leaves_nothing_behind(folder, host):
    def spaces():
        found = set()
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                found.add(os.stat(path).st_ino)
        return found

    def processes(word):
        found = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True, check=False).stdout
        return found.split()

    with VomsServer(folder / "another", host, folder / "certificates") as another:
        namespace = os.stat(f"/proc/{another._first}/ns/net").st_ino
        word = another._scratch.name
        assert namespace in spaces()
        assert namespace != os.stat("/proc/self/ns/net").st_ino
        assert len(processes(word)) >= 2  # the database and the server
        listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
        assert f":{another.port} " not in listening
    assert namespace not in spaces()
    assert processes(word) == []
    assert not another._scratch.exists()
    assert word not in Path("/proc/mounts").read_text()


def test_a_test_run_that_is_killed_leaves_no_server(folder, host, tmp_path):
    code = f"""
import pathlib, sys
from voms_runtime import VomsServer
server = VomsServer(pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(host)!r}), pathlib.Path("{folder}/certificates"))
server.start()
print(server._first, server._scratch, flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first, scratch = child.stdout.readline().split()
    child.kill()
    child.wait(10)
    try:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{first}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        subprocess.run(["rm", "-rf", scratch], check=True)

# SPDX-License-Identifier: Apache-2.0
"""What stands behind the addresses of WaTTS as time passes, and when two instances share a state."""

import types

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, client, csr, store
from ansible_collections.dodas.cluster.plugins.module_utils.x509.tokens import Token
from dodas.credentials import plugins, watts
from dodas.credentials.refusal import Refusal


def token(subject="alice", issuer="https://iam.example.org/"):
    return Token(issuer=issuer, subject=subject, client=None, scopes=(), groups=(), issued=0, expires=2**32, claims={})


class StandIn:
    """A stand-in for the service: an authority, and what it was asked to revoke."""

    def __init__(self, kept, ca, sections):
        self.store, self.authority, self.revoked = kept, ca, []
        self.config = types.SimpleNamespace(services=sections, issuers=[])
        self.audit = types.SimpleNamespace(write=lambda *_, **__: None)
        self.fail = None

    def explain(self, _token):
        return {"kinds": {"eec": {"rule": "people"}}}

    def make(self, asked, _kind, lifetime, _peer):
        if self.fail:
            raise self.fail
        key = csr.make_key()
        dn = f"{self.authority.namespace}/CN={asked.subject}"
        return client.Credential(self.authority.issue_eec(key.public_key(), dn, lifetime or 3600), key, ())

    def revoke(self, _token, serial, _pem, _peer, owned=False):
        assert owned
        self.revoked.append(serial)


@pytest.fixture
def kept(tmp_path):
    return store.Sealed(store.Directory(tmp_path / "state"), [bytes(32)])


@pytest.fixture
def service(kept, tmp_path):
    sections = [
        plugins.ServiceSection(id="x509", limit=2),
        plugins.ServiceSection(id="short", limit=1, parameters={"lifetime": 600}),
    ]
    return StandIn(kept, authority.Authority.open(tmp_path / "ca", "/DC=dodas/O=test/CN=online CA"), sections)


@pytest.fixture
def behind(service):
    return watts.Watts(service)


@pytest.fixture
def clock(monkeypatch):
    """A function that lets time pass."""
    real, passed = watts.time.time, 0

    def advance(seconds):
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(watts, "time", types.SimpleNamespace(time=lambda: real() + passed))
    return advance


def ask(behind, who=None, name="x509"):
    return behind.request(who or token(), "access token", name, {}, "127.0.0.1")


def reason(function, *arguments):
    with pytest.raises(Refusal) as caught:
        function(*arguments)
    return caught.value.reason


def test_a_credential_waits_for_a_minute(behind, clock):
    first, second = ask(behind), ask(behind)
    clock(58)
    assert behind.fetch(token(), first)["entries"]
    clock(3)
    assert reason(behind.fetch, token(), second) == "no_data"


def test_what_nobody_came_for_is_swept(behind, kept, clock):
    ask(behind)
    assert len(kept.names("watts-data")) == 1
    watts.sweep(kept)
    assert len(kept.names("watts-data")) == 1
    clock(62)
    watts.sweep(kept)
    assert kept.names("watts-data") == []


def test_the_next_request_sweeps_too(behind, kept, clock):
    ask(behind)
    clock(62)
    key = ask(behind)
    assert len(kept.names("watts-data")) == 1
    assert behind.fetch(token(), key)


def test_another_instance_hands_out_what_one_has_made(service, behind):
    other = watts.Watts(service)
    key = ask(behind)
    credential = other.fetch(token(), key)
    assert reason(behind.fetch, token(), key) == "no_data"
    other.revoke(token(), "access token", credential["id"], "127.0.0.1")
    assert behind.credentials(token()) == []
    assert len(service.revoked) == 1


def test_two_who_have_read_it_do_not_both_get_it(service, behind, monkeypatch):
    other, key, write = watts.Watts(service), ask(behind), store.Sealed.write
    got = []

    def first_the_other(sealed, *arguments):
        if not got:
            got.append("asked")
            got.append(other.fetch(token(), key))
        write(sealed, *arguments)

    monkeypatch.setattr(store.Sealed, "write", first_the_other)
    assert reason(behind.fetch, token(), key) == "no_data"
    assert got[1]["entries"]


def test_users_are_told_apart_by_issuer_and_subject(behind):
    key = ask(behind)
    for other in (token("bob"), token(issuer="https://other/"), token("/alice", "https://iam.example.org")):
        assert reason(behind.fetch, other, key) == "no_data"
        assert behind.credentials(other) == []
    assert behind.fetch(token(), key)


def test_a_certificate_that_has_ended_counts_no_more(behind, clock):
    ask(behind, name="short")
    assert reason(ask, behind, None, "short") == "limit"
    clock(700)
    assert behind.credentials(token()) == []
    ask(behind, name="short")


def test_a_request_that_fails_leaves_no_record(service, behind, kept):
    service.fail = Refusal(403, "access_denied", "no_rule", "no")
    for _ in range(5):
        assert reason(ask, behind) == "no_rule"
    assert kept.read(kept.names("watts")[0])[0] == b"[]"
    service.fail = None
    ask(behind)


def test_one_that_died_on_the_way_counts_for_ten_minutes(service, behind, clock, monkeypatch):
    """As after kill -9: nothing is undone."""
    service.fail = RuntimeError("killed")
    with monkeypatch.context() as patched:
        patched.setattr(behind, "_change", lambda *_: None)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                ask(behind)
    service.fail = None
    assert behind.credentials(token()) == []
    assert reason(ask, behind) == "limit"
    clock(601)
    ask(behind)


def test_what_cannot_be_revoked_stays(service, behind, monkeypatch):
    key = ask(behind)
    number = behind.fetch(token(), key)["id"]

    def refuse(*_arguments, **_options):
        raise store.StoreError("the state cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr(service, "revoke", refuse)
        with pytest.raises(store.StoreError):
            behind.revoke(token(), "", number, "")
    assert [one["id"] for one in behind.credentials(token())] == [number]
    behind.revoke(token(), "", number, "")
    assert behind.credentials(token()) == []


def test_a_service_that_is_configured_no_more(service, behind):
    number = behind.fetch(token(), ask(behind))["id"]
    service.config.services = service.config.services[1:]
    later = watts.Watts(service)
    assert reason(later.revoke, token(), "", number, "") == "no_service"
    assert reason(ask, later) == "no_service"


def test_an_address_from_another_deployment(service, behind, tmp_path):
    elsewhere = store.Sealed(store.Directory(tmp_path / "other"), [bytes(32)])
    key = ask(behind)
    service.store = elsewhere
    assert reason(watts.Watts(service).fetch, token(), key) == "no_data"

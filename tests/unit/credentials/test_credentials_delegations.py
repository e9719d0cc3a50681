# SPDX-License-Identifier: Apache-2.0
"""What people delegate, with the real provider and the service as a process."""

import dataclasses
import json
import time

import pytest
from cryptography import x509

import identity_flows as flows
from agent_runtime import RealConsul, consul_program
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, names, proxies, store
from dodas.credentials.config import Config
from dodas.credentials.delegations import Delegation, Delegations
from identity_runtime import Identity
from service_runtime import Credentials

NEVER = 2**40


@pytest.fixture(scope="module")
def request_pem():
    return csr.make(csr.make_key()).decode()


@pytest.fixture
def identity(tmp_path):
    (tmp_path / "identity").mkdir()
    service = Identity(tmp_path / "identity")
    service.start()
    yield service
    service.stop()


@pytest.fixture
def service(tmp_path, identity):
    service = Delegating(tmp_path / "credentials", identity)
    service.start()
    yield service
    service.stop()


class Delegating(Credentials):
    """The service, whose users may delegate; a look into its state; and what its clients do."""

    def __init__(self, directory, identity, **changes):
        super().__init__(directory, identity, **changes)
        for rule in self.settings["rules"]:
            rule["delegate"] = rule["name"] == "people"

    @property
    def store(self):
        return Config.model_validate(self.settings).open_store()

    def record(self, number):
        return Delegation.decode(self.store.read(f"delegations/{number}")[0])

    def change(self, number, **fields):
        """Change a record behind the service's back."""

        def change(data):
            return dataclasses.replace(Delegation.decode(data), **fields).encode()

        store.update(self.store, f"delegations/{number}", change)

    def ask(self, method, path, token, **options):
        with self.client(headers={"Authorization": f"Bearer {token}"}) as http:
            return http.request(method, path, **options)

    def delegate(self, token):
        answer = self.ask("POST", "/v1/delegations", token)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def proxy(self, number, request, host="worker-1"):
        """The answer to a worker that asks for a proxy of a delegation."""
        token = self.join_token(request.encode(), host)
        return self.ask("POST", "/v1/credentials", token, json={"csr": request, "delegation": number})


def login(identity):
    with identity.client() as http:
        return flows.device_tokens(http)["access_token"]


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return found


@pytest.fixture
def delegated(service, identity):
    """The id of alice's delegation."""
    return service.delegate(login(identity))


def test_workers_get_proxies_of_who_delegated(service, delegated, request_pem):
    answer = service.proxy(delegated, request_pem).json()
    [robot] = x509.load_pem_x509_certificates(answer["chain"].encode())
    assert names.slash(robot.subject).startswith("/DC=dodas/O=test/OU=people/CN=alice ")
    assert answer["subject"].startswith(names.slash(robot.subject) + "/CN=")
    proxy = x509.load_pem_x509_certificate(answer["certificate"].encode())
    proxy.verify_directly_issued_by(robot)
    assert proxies.proxy_info(proxy) == proxies.ProxyInfo("inherit-all", 0)
    other = service.proxy(delegated, request_pem, "worker-2").json()
    assert other["chain"] == answer["chain"]
    order = {"csr": request_pem, "delegation": delegated, "policy": "limited"}
    answer = service.ask("POST", "/v1/credentials", service.join_token(request_pem.encode()), json=order).json()
    limited = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert proxies.proxy_info(limited) == proxies.ProxyInfo("limited", 0)


def test_only_hosts_use_and_only_owners_see_delegations(service, identity, delegated, request_pem):
    with identity.client() as http:
        robot = flows.worker(http).json()["access_token"]
    alice = login(identity)
    assert [one["id"] for one in service.ask("GET", "/v1/delegations", alice).json()] == [delegated]
    assert service.ask("GET", "/v1/delegations", robot).json() == []
    order = {"csr": request_pem, "delegation": delegated}
    assert service.ask("POST", "/v1/credentials", alice, json=order).status_code == 403
    assert service.ask("DELETE", f"/v1/delegations/{delegated}", robot).status_code == 404
    assert service.ask("POST", "/v1/delegations", robot).json()["reason"] == "no_rule"
    assert service.ask("POST", "/v1/delegations", service.join_token()).status_code == 403
    assert service.proxy("0" * 20, request_pem).status_code == 404
    assert service.proxy("../authority", request_pem).status_code == 404


def test_what_is_taken_back_is_revoked(service, identity, delegated, request_pem):
    serial = service.record(delegated).certificate.serial_number
    alice = login(identity)
    assert service.ask("DELETE", f"/v1/delegations/{delegated}", alice).status_code == 204
    assert service.proxy(delegated, request_pem).status_code == 404
    with service.client() as http:
        crl = x509.load_pem_x509_crl(http.get("/v1/authority/crl.pem").content)
    assert crl.get_revoked_certificate_by_serial_number(serial)
    assert service.store.names("delegations") == []


def test_it_is_renewed_with_rotated_tokens(service, delegated):
    before = service.record(delegated)
    service.change(delegated, due=0)
    after = until(lambda: (one := service.record(delegated)).due > time.time() and one)
    assert after.refresh_token != before.refresh_token and after.access_token != before.access_token
    assert not after.intent and not after.problem
    service.change(delegated, due=0)
    again = until(lambda: (one := service.record(delegated)).due > time.time() and one)
    assert again.refresh_token != after.refresh_token


def test_a_provider_that_is_away_costs_nothing(service, identity, delegated, request_pem):
    identity.stop()
    service.change(delegated, due=0)
    until(lambda: service.record(delegated).problem)
    assert service.proxy(delegated, request_pem).status_code == 201
    identity.start()
    service.change(delegated, due=0)
    until(lambda: not (one := service.record(delegated)).problem and one.due > time.time())


def test_a_refresh_whose_answer_was_lost_loses_nothing(service, identity, delegated):
    """Killed after the provider took the old refresh token, before the new one was written."""
    before = service.record(delegated)
    service.change(delegated, due=NEVER, intent=True)
    service.kill()
    with identity.client() as http:
        form = {"grant_type": "refresh_token", "refresh_token": before.refresh_token}
        assert http.post("/token", auth=("service", identity.secrets["service"]), data=form).status_code == 200
    service.change(delegated, due=0)
    service.start()
    after = until(lambda: (one := service.record(delegated)).due > time.time() and one)
    assert not after.ended and not after.intent and after.refresh_token != before.refresh_token


def test_who_is_no_longer_there_loses_it(service, identity, delegated, request_pem):
    assert service.proxy(delegated, request_pem).status_code == 201
    serial = service.record(delegated).certificate.serial_number
    identity.settings["users"] = []
    identity.restart()
    service.change(delegated, due=0)
    until(lambda: service.record(delegated).ended)
    answer = until(lambda: (one := service.proxy(delegated, request_pem)).status_code != 201 and one)
    assert (answer.status_code, answer.json()["reason"]) == (403, "ended")
    with service.client() as http:
        crl = x509.load_pem_x509_crl(http.get("/v1/authority/crl.pem").content)
        shown = http.get("/health").json()
    assert crl.get_revoked_certificate_by_serial_number(serial) and shown["delegations"] == 1
    assert not service.record(delegated).refresh_token


def test_tokens_are_in_no_file(service, delegated, tmp_path):
    secrets = service.record(delegated)
    for path in service.state.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0
            data = path.read_bytes()
            for secret in (secrets.refresh_token, secrets.access_token, "PRIVATE KEY"):
                assert secret.encode() not in data, path


def test_two_instances_share_a_state_in_consul(tmp_path, identity, request_pem):
    program = consul_program(tmp_path)
    if program is None:
        pytest.skip("an image with consul needs root")
    (tmp_path / "consul").mkdir()
    consul = RealConsul(program, tmp_path / "consul")
    shared = {"consul": {"url": f"http://127.0.0.1:{consul.port}"}}
    first = Delegating(tmp_path / "one", identity, **shared)
    second = Delegating(tmp_path / "two", identity, **shared)
    for name in ("state_key", "join_secret"):
        setattr(second, name, getattr(first, name))
    second.settings.update(state_key_file=first.settings["state_key_file"])
    second.settings["join"]["secret_file"] = first.settings["join"]["secret_file"]
    try:
        first.start()
        second.start()
        authorities = []
        for one in (first, second):
            with one.client() as http:
                authorities.append(http.get("/v1/authority/ca.pem").text)
        assert authorities[0] == authorities[1]
        number = first.delegate(login(identity))
        answers = [one.proxy(number, request_pem).json() for one in (first, second)]
        assert answers[0]["chain"] == answers[1]["chain"]
        refreshes = identity.log().count('"refresh_token"')
        for _ in range(3):
            first.change(number, due=0)
            until(lambda: first.record(number).due > time.time())
        renewed = [json.loads(line) for line in identity.log().splitlines() if '"grant"' in line]
        assert sum(one["grant"] == "refresh_token" for one in renewed) == 3, refreshes
        assert not first.record(number).ended
        first.kill()
        assert second.proxy(number, request_pem).status_code == 201
        second.change(number, due=0)
        until(lambda: second.record(number).due > time.time(), 90)
        # What one revokes the other knows within a minute; that it is told is enough here.
        assert second.ask("DELETE", f"/v1/delegations/{number}", login(identity)).status_code == 204
        first.start()
        assert first.proxy(number, request_pem).status_code == 404
    finally:
        first.stop()
        second.stop()
        consul.stop()


def test_what_was_refused_to_the_one_before_does_not_end_the_new_one(service, identity):
    """A renewal that is under way while the person delegates anew."""
    config = Config.model_validate(service.settings)
    number = service.delegate(login(identity))
    before = service.record(number)
    service.delegate(login(identity))
    kept = Delegations(config, service.store, None, None)
    assert before.created != service.record(number).created
    assert kept._change(before, ended="the issuer refuses", refresh_token="") is None
    assert not service.record(number).ended and service.record(number).refresh_token
    assert kept._change(service.record(number), problem="seen").problem == "seen"

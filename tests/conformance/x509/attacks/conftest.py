# SPDX-License-Identifier: Apache-2.0
"""The real service over HTTPS, the real provider, and an attacker who even has the provider's keys."""

from __future__ import annotations

import json

import pytest

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr
from forgery import Canary, Forger
from identity_runtime import Identity
from service_runtime import Credentials


@pytest.fixture(scope="session")
def identity(tmp_path_factory):
    provider = Identity(tmp_path_factory.mktemp("identity"))
    provider.start()
    yield provider
    provider.stop()


@pytest.fixture(scope="session")
def service(identity, tmp_path_factory):
    instance = Credentials(tmp_path_factory.mktemp("service"), identity)
    instance.settings["issuers"][0]["required_scope"] = "x509"
    instance.start()
    yield instance
    instance.stop()


@pytest.fixture(scope="session")
def http(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def forger(identity):
    return Forger(identity)


@pytest.fixture(scope="session")
def canary():
    listener = Canary()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def key():
    return csr.make_key()


@pytest.fixture(scope="session")
def request_pem(key):
    return csr.make(key)


@pytest.fixture(scope="session")
def order(http, request_pem):
    """Ask for a credential; returns the response. Headers and body as an attacker likes them."""

    def post(token=None, body=None, **options):
        headers = options.pop("headers", {})
        if token is not None:
            token = token if isinstance(token, bytes) else token.encode()
            headers = {"Authorization": b" ".join(filter(None, [b"Bearer", token])), **headers}
        if body is None:
            body = {"csr": request_pem.decode(), "kind": options.pop("kind", "proxy")}
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        return http.post(options.pop("path", "/v1/credentials"), content=body, headers=headers, **options)

    return post


@pytest.fixture(scope="session")
def honest_token(identity):
    with identity.client() as client:
        return flows.worker(client).json()["access_token"]


@pytest.fixture(autouse=True)
def honest_before_and_after(request):
    """A service that is dead or refuses everything has not withstood anything."""
    if "service" not in request.fixturenames:
        yield
        return
    order, token = request.getfixturevalue("order"), request.getfixturevalue("honest_token")
    assert order(token).status_code == 201
    yield
    assert order(token).status_code == 201


@pytest.fixture
def refused(service):
    """Whether an answer is a refusal that gives nothing away: a 4xx, no certificate, nothing of the token in it."""

    def check(response, *secrets):
        assert 400 <= response.status_code < 500, (response.status_code, response.text[:500])
        assert "BEGIN" not in response.text
        shown = response.text + str(response.headers)
        for secret in secrets:
            assert secret not in shown
        return True

    return check

# SPDX-License-Identifier: Apache-2.0
"""The library before a real OpenStack whose servers are nova's fake ones, and a proxy that breaks its API on demand."""

from __future__ import annotations

import secrets

import pytest

from openstack_clients import Deployment, Reality
from openstack_faults import FaultyCloud
from openstack_testbed import testbed_fixture

testbed = testbed_fixture(compute="fake")


@pytest.fixture(scope="session")
def admin(testbed):
    """The administrator's SDK connection."""
    return testbed.connection("admin")


@pytest.fixture(scope="session")
def reality(testbed):
    """What the project that the tests work in holds."""
    return Reality(testbed.connection("demo"))


@pytest.fixture(scope="session")
def proxy(testbed):
    with FaultyCloud(testbed.auth_url) as cloud:
        yield cloud


@pytest.fixture
def faulty(proxy):
    """The proxy, without faults."""
    proxy.clear()
    yield proxy
    proxy.clear()


@pytest.fixture(scope="session")
def faulty_clouds(proxy, testbed, tmp_path_factory):
    """A clouds.yaml that leads through the proxy."""
    return proxy.clouds_file(testbed.clouds_file, tmp_path_factory.mktemp("clouds") / "clouds.yaml")


def _made(reality, clouds):
    """Makes deployments; when the tests with them are over, nothing of them may be left."""
    made = []

    def make(name="t", **settings):
        deployment = Deployment(clouds, f"{name}-{secrets.token_hex(2)}", **settings)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.down()
        assert reality.of(deployment) == []


@pytest.fixture
def make(reality, testbed):
    """A function that makes a Deployment; it is removed afterwards, and has to be gone then."""
    yield from _made(reality, testbed.clouds_file)


@pytest.fixture(scope="module")
def make_once(reality, testbed):
    """The same for the tests of a module."""
    yield from _made(reality, testbed.clouds_file)


@pytest.fixture
def make_faulty(reality, testbed, faulty, faulty_clouds):
    """The same, through the proxy."""
    maker = _made(reality, testbed.clouds_file)
    make = next(maker)

    def through_proxy(*arguments, **settings):
        deployment = make(*arguments, **settings)
        deployment.clouds = faulty_clouds
        return deployment

    yield through_proxy
    faulty.clear()
    next(maker, None)


@pytest.fixture
def compute_quota(admin, reality):
    """A function that sets a quota of nova for the project; set back afterwards."""
    project = reality.connection.current_project_id
    before = admin.compute.get_quota_set(project)
    changed = set()

    def change(**limits):
        changed.update(limits)
        admin.compute.update_quota_set(project, **limits)

    yield change
    if changed:
        admin.compute.update_quota_set(project, **{name: getattr(before, name) for name in changed})

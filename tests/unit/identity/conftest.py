# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from identity_runtime import Identity


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    service = Identity(tmp_path_factory.mktemp("identity"))
    service.start()
    yield service
    service.stop()


@pytest.fixture
def fresh(tmp_path):
    """An instance that a test may configure, start and restart."""
    service = Identity(tmp_path)
    yield service
    service.stop()


@pytest.fixture
def http(identity):
    with identity.client() as client:
        yield client

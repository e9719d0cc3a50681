# SPDX-License-Identifier: Apache-2.0
"""Ansible, and a provider."""

import pytest

from ansible_runtime import Ansible
from identity_runtime import Identity


@pytest.fixture(scope="module")
def ansible(tmp_path_factory):
    return Ansible(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    running = Identity(tmp_path_factory.mktemp("identity"))
    running.start()
    yield running
    running.stop()

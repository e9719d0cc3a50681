# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos.client import Masters as Client
from mesos_runtime import Zookeeper

OPERATOR = ("operator", "operator-secret-0123")
AGENT = ("agent", "agent-secret-0123456")


@pytest.fixture(scope="module")
def zookeeper():
    with Zookeeper() as running:
        yield running


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    """Files of credentials, as the role writes them: of masters, of an agent, of who may ask an agent."""
    folder = tmp_path_factory.mktemp("credentials")
    agent, operator = ({"principal": name, "secret": secret} for name, secret in (AGENT, OPERATOR))
    contents = {"masters": {"credentials": [agent, operator]}, "agent": agent, "http": {"credentials": [operator]}}
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    return paths


@pytest.fixture(scope="module")
def secure(credentials):
    """Flags of masters that let nobody in without credentials."""
    return {
        "credentials": credentials["masters"], "authenticate_agents": True, "authenticate_frameworks": True,
        "authenticate_http_readonly": True, "authenticate_http_readwrite": True,
    }  # fmt: skip


@pytest.fixture
def client_of():
    """A client of running masters, as the operator unless somebody else is given."""

    def make(masters, principal=OPERATOR[0], secret=OPERATOR[1], patience=15.0, resolve=None):
        addresses = [f"127.0.0.1:{program.port}" for program in masters.programs]
        return Client(addresses, principal, secret, patience, resolve)

    return make

# SPDX-License-Identifier: Apache-2.0
"""A cluster of stand-ins: two agents of 2 and 1 cpus whose tasks are processes, and Marathon."""

import contextlib
import dataclasses

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.marathon.client import Marathon as Client
from mesos_runtime import Agent, Marathon, Masters, Zookeeper


@dataclasses.dataclass
class Cluster:
    """zookeeper, masters, marathon: as in mesos_runtime."""

    zookeeper: Zookeeper
    masters: Masters
    marathon: Marathon

    def client(self, timeout=30, **more):
        """Our client of all its Marathons, whose deadline begins now."""
        credentials = ":".join(self.marathon.credentials) if self.marathon.credentials else None
        return Client(self.marathon.urls, credentials=credentials, timeout=timeout, **more)


@contextlib.contextmanager
def started(count=1, **flags):
    with (
        Zookeeper() as zookeeper,
        Masters(zookeeper) as masters,
        Agent(masters, resources="cpus:2;mem:512;disk:500;ports:[31000-31099]", attributes="rack:a"),
        Agent(masters, resources="cpus:1;mem:512;disk:500;ports:[31100-31199]", attributes="rack:b"),
        Marathon(zookeeper, masters, count=count, **flags) as marathon,
    ):
        yield Cluster(zookeeper, masters, marathon)


@pytest.fixture(scope="package")
def cluster():
    with started(credentials="ann:a-word-of-tests") as found:
        yield found


@pytest.fixture
def three_marathons():
    with started(count=3) as found:
        yield found

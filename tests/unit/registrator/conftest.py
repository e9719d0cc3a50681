# SPDX-License-Identifier: Apache-2.0
from contextlib import ExitStack

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files
from consul_runtime import Consul
from mesos_runtime import Agent, Marathon, Masters, Zookeeper
from registrator_runtime import Registrator, eventually

CREDENTIALS = ("ann", "a password of ann")


@pytest.fixture(scope="module")
def consul(tmp_path_factory):
    with Consul(tmp_path_factory.mktemp("consul")) as one:
        yield one


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Certificate, key and authority of servers on 127.0.0.1, as files."""
    folder = tmp_path_factory.mktemp("tls")
    ca = authority.Authority.open(folder / "ca", "/DC=dodas/CN=test")
    key = csr.make_key()
    made = ca.issue_host(key.public_key(), "localhost", ["localhost"], ["127.0.0.1"])
    paths = [folder / name for name in ("tls.crt", "tls.key", "ca.pem")]
    for path, content in zip(paths, (files.certificate_pem(made), files.key_pem(key), ca.ca_pem), strict=True):
        path.write_bytes(content)
    return paths


class Cluster:
    """Real ZooKeeper and Consul; stand-ins of Mesos, one agent and two Marathons that want a password over TLS."""

    def __init__(self, stack, tls):
        self.zookeeper = stack.enter_context(Zookeeper())
        self.masters = stack.enter_context(Masters(self.zookeeper))
        self.agent = stack.enter_context(Agent(self.masters, resources="cpus:8;mem:4096;disk:500;ports:[31000-31099]"))
        self.marathon = stack.enter_context(
            Marathon(self.zookeeper, self.masters, count=2, tls=tls, credentials=":".join(CREDENTIALS))
        )
        self.settings = {"urls": self.marathon.urls, "ca_file": str(tls[2]), "user": CREDENTIALS[0],
                         "password": CREDENTIALS[1]}  # fmt: skip

    def run(self, name, instances=1, **more):
        """Start an app, which needs no container here."""
        given = {"id": f"/dodas/{name}", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 8, "instances": instances}
        answer = self.marathon.call("/v2/apps", body={**given, **more})
        assert answer.status == 201, answer

    def change(self, name, **more):
        answer = self.marathon.call(f"/v2/apps/dodas/{name}?force=true", "PUT", more)
        assert answer.status == 200, answer

    def remove(self, name):
        self.marathon.call(f"/v2/apps/dodas/{name}?force=true", "DELETE")

    def tasks(self, name):
        return self.marathon.call(f"/v2/apps/dodas/{name}/tasks").json["tasks"]


@pytest.fixture(scope="module")
def cluster(certificate):
    with ExitStack() as stack:
        yield Cluster(stack, certificate)


@pytest.fixture
def make(tmp_path, consul):
    """Registrators, which end with the test."""
    made = []

    def start(marathon, name="master-1", **more):
        made.append(Registrator(tmp_path, consul, marathon, name, **more))
        return made[-1].start()

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def catalogue(consul):
    return Catalogue(consul)


class Catalogue:
    """Consul's catalogue, as who asks for services sees it."""

    def __init__(self, consul):
        self.consul = consul

    def instances(self, name, passing=False):
        """Of a service: [(node, status)]"""
        found = self.consul.call("GET", f"/v1/health/service/{name}{'?passing' if passing else ''}", token=None)
        return sorted((one["Node"]["Node"], *(check["Status"] for check in one["Checks"])) for one in found)

    def entries(self, name):
        return self.consul.call("GET", f"/v1/catalog/service/{name}", token=None)

    def wait(self, name, *expected, seconds=5):
        """Wait until the service has these statuses, 5 s at most: that is what is promised."""
        wanted = [("server-1-apps", status) for status in expected]
        return eventually(lambda: self.instances(name) == wanted or None, seconds)

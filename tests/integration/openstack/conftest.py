# SPDX-License-Identifier: Apache-2.0
"""A person's clusters in a real OpenStack whose servers are guests; its login is a token of an identity provider."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import identity_flows
from clusters import Cluster, Dodas
from identity_runtime import AUDIENCE, Identity
from openstack_clients import Reality
from openstack_testbed import testbed_fixture

CLOUD = "site"
testbed = testbed_fixture(compute="guests", hosts=2)


class Made(NamedTuple):
    """What marks all that is made."""

    name: str
    uuid: str


class CloudDodas(Dodas):
    """The command line with a clouds.yaml and the file of a token, which lasts for minutes only."""

    RENEW = 240  # s

    def __init__(self, folder, identity):
        super().__init__(folder / "home")
        self.clouds, self.token, self.identity = folder / "clouds.yaml", folder / "token", identity

    def environment(self, **more):
        if not self.token.exists() or time.time() - self.token.stat().st_mtime > self.RENEW:
            with self.identity.client() as http:
                self.token.write_text(identity_flows.device_tokens(http, resource=AUDIENCE)["access_token"])
        more = {"OS_CLIENT_CONFIG_FILE": self.clouds, "DODAS_ACCESS_TOKEN_FILE": self.token, **more}
        return super().environment(**more)


class CloudCluster(Cluster):
    """A deployment in the cloud."""

    @property
    def made(self):
        return Made(self.name, (self.folder / "uuid").read_text(encoding="ascii").strip())

    @property
    def folder(self):
        return self.dodas.home / "deployments" / self.name

    @property
    def hosts(self):
        return json.loads((self.folder / "hosts.json").read_text(encoding="utf-8"))

    def life(self, host):
        """What is another one once the host was made anew, rebooted, or an app of it restarted."""
        boot = self.run(host, "cat /proc/1/stat").split()[21]
        return self.hosts[host]["id"], boot, self.apps(host)


@pytest.fixture(scope="session")
def identity(testbed, tmp_path_factory):
    """The tests' provider, and the name by which the cloud takes its tokens."""
    service = Identity(tmp_path_factory.mktemp("identity"))
    name = f"iam-{secrets.token_hex(2)}"
    try:
        service.start()
        options = ("--oidc-audience", AUDIENCE, "--oidc-group", "/cms", "--oidc-provider", name)
        testbed.trust(service.url, service.config / "cert.pem", *options)
        yield service, name
    finally:
        service.stop()


@pytest.fixture(scope="session")
def dodas(testbed, identity, tmp_path_factory):
    """The command line; whatever a test made is removed in the end."""
    if os.geteuid() != 0:
        pytest.skip("guests need root")
    service, name = identity
    dodas = CloudDodas(tmp_path_factory.mktemp("openstack"), service)
    auth = {"auth_url": testbed.auth_url, "identity_provider": name, "protocol": "openid", "project_name": "demo",
            "project_domain_name": "Default"}  # fmt: skip
    cloud = {"auth_type": "v3oidcaccesstoken", "auth": auth, "region_name": "RegionOne", "identity_api_version": 3}
    dodas.clouds.write_text(json.dumps({"clouds": {CLOUD: cloud}}))
    dodas("images", "build", "--yes", timeout=1800)
    yield dodas
    for one in dodas.json("list"):
        dodas("down", "--name", one["name"])


@pytest.fixture(scope="session")
def reality(testbed, identity, dodas):
    """What the project holds, asked with the SDK by the person whose token it is: keypairs are theirs."""
    auth = {"identity_provider": identity[1], "access_token": Path(dodas.token).read_text()}
    return Reality(testbed.connection("demo-oidc", auth=auth))


@pytest.fixture
def cluster_of(dodas):
    """The cluster of a name."""
    return lambda name: CloudCluster(dodas, name)


@pytest.fixture(scope="session")
def lab(dodas):
    """A cluster from nothing."""
    report = dodas.json("up", "--cloud", CLOUD, "--yes", "--name", "lab", "-p", "cloud_expires=1d", timeout=1800)
    assert report["complete"], report
    return CloudCluster(dodas, "lab")

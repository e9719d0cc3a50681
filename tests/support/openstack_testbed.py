# SPDX-License-Identifier: Apache-2.0
"""A real OpenStack for tests: tests/testbeds/openstack, started and stopped, or one that runs already.

    testbed = testbed_fixture(compute="fake")       # in a conftest.py or a test's module: a fixture of the session

    def test_servers(testbed):
        testbed.connection("demo").compute.servers()

OPENSTACK_TESTBED=DIR takes the running testbed in that folder, where it has the compute driver that is wanted.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import openstack
import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "testbeds" / "openstack" / "testbed"


class Testbed:
    """One testbed in its folder `state`, whether it runs or not."""

    __test__ = False

    def __init__(self, state: str | os.PathLike):
        self.state = Path(state)
        self.clouds_file = self.state / "clouds.yaml"  # with clouds demo, other, admin and demo-oidc

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """The program; what it prints is in the result, and in the error when it fails."""
        command, *rest = [str(one) for one in arguments]
        done = subprocess.run(
            [PROGRAM, command, "--state", self.state, *rest], capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"testbed {command}: {done.stderr.strip()}")
        return done

    def up(self, compute: str = "fake", hosts: int = 4, *arguments: str) -> Testbed:
        """Start it; what it needs is made first, which takes minutes the first time. Raises RuntimeError."""
        self.run("up", "--compute", compute, "--hosts", str(hosts), *arguments)
        return self

    def down(self) -> None:
        """Stop it, and remove its folder."""
        self.run("down")

    def status(self) -> dict:
        """Facts and services, as `testbed status --json` has them."""
        return json.loads(self.run("status", "--json", check=False).stdout)

    @property
    def _facts(self) -> dict:
        return json.loads((self.state / "testbed.json").read_text())

    @property
    def compute(self) -> str:
        return self._facts["compute"]

    def url(self, service: str) -> str:
        """Of keystone, placement, glance, neutron, nova or metadata, without a path."""
        return f"http://127.0.0.1:{self._facts['ports'][service]}"

    @property
    def auth_url(self) -> str:
        return self.url("keystone") + "/v3"

    def logs(self, service: str) -> str:
        """What a service has logged so far."""
        return (self.state / "logs" / f"{service}.log").read_text(errors="replace")

    def connection(self, cloud: str = "demo", **settings) -> openstack.connection.Connection:
        """The SDK's, to one of the clouds of clouds.yaml; whatever the environment says of clouds does not count."""
        config = openstack.config.OpenStackConfig(config_files=[str(self.clouds_file)], load_envvars=False)
        return openstack.connection.Connection(config=config.get_one(cloud=cloud, **settings))

    def trust(self, issuer: str, ca: os.PathLike, *arguments: str) -> None:
        """Let bearer tokens of an OpenID Connect issuer in, whose server has a certificate of `ca` (PEM)."""
        self.run("oidc", "--oidc-issuer", issuer, "--oidc-ca", str(ca), *arguments)


def testbed_fixture(compute: str = "fake", hosts: int = 4):
    """A fixture of the session: a testbed with that compute driver."""

    @pytest.fixture(scope="session")
    def testbed():
        running = os.environ.get("OPENSTACK_TESTBED")
        if running and Testbed(running).compute == compute:
            yield Testbed(running)
            return
        # The path of a socket is short: below /tmp, not where pytest has its folders.
        with tempfile.TemporaryDirectory(prefix="ostb-") as folder:
            testbed = Testbed(Path(folder, "state"))
            try:
                yield testbed.up(compute, hosts)
            finally:
                testbed.down()

    return testbed


testbed_fixture.__test__ = False

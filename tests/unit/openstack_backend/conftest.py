# SPDX-License-Identifier: Apache-2.0
"""Keys of a deployment, and real sshds that have them."""

import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.sshkeys import SshKeys
from sshd_runtime import Sshd


@pytest.fixture
def state(tmp_path):
    return tmp_path / "home/deployments/test"


@pytest.fixture
def keys(state):
    made = SshKeys(state, "test")
    made.make(["front-1", "worker-1"])
    return made


@pytest.fixture
def sshd(tmp_path, keys):
    """Starts an sshd for a host; a cloud-init there is the shell script given."""
    if os.geteuid() != 0:
        pytest.skip("an sshd for root on port 22 needs root")
    Path("/run/sshd").mkdir(exist_ok=True)  # as its unit does
    started = []

    def start(host, cloud_init=None):
        keys.make([host])
        path = None
        if cloud_init:
            path = tmp_path / f"bin-{host}"
            path.mkdir()
            (path / "cloud-init").write_text(f"#!/bin/sh\n{cloud_init}\n")
            (path / "cloud-init").chmod(0o755)
        started.append(Sshd(tmp_path, keys, host, path).start())
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def effective():
    """What ssh makes of its options, by lower-case name."""

    def ask(options, address="192.0.2.7"):
        done = subprocess.run(["ssh", "-G", *options, address], capture_output=True, text=True, timeout=20, check=True)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    return ask

# SPDX-License-Identifier: Apache-2.0
"""Machines that are there already, and the project's playbooks on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from machines import Machine, Machines

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "inventories/existing/hosts.yml"
PLAYBOOK_SECONDS = 900


class Site:
    """An inventory made from the example, in a folder of its own, and what playbooks do with it."""

    def __init__(self, folder, addresses=None, connection=None):
        self.folder = Path(folder)
        self.inventory = self.folder / "hosts.yml"
        self.data = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        groups = self.data["all"]["children"]
        groups["consul"]["hosts"] = {"front-1": {"ansible_host": (addresses or {}).get("front-1", "192.0.2.10")}}
        worker = {"ansible_host": (addresses or {}).get("worker-1", "192.0.2.11"), "ansible_user": "admin"}
        groups["worker"]["hosts"] = {"worker-1": worker}
        groups["worker"]["vars"] = {"worker_memory_mb": 512, "worker_scratch_mb": 100}
        groups["squid"]["vars"] = {"squid_cache_mb": 128}
        self.data["all"]["vars"].update(connection or {})

    @property
    def groups(self):
        return self.data["all"]["children"]

    def play(self, name, *options, ok=True):
        """Run a playbook; returns (its output, {host: {ok, changed, failures, unreachable, ...}})."""
        self.inventory.write_text(yaml.safe_dump(self.data), encoding="utf-8")
        program = shutil.which("ansible-playbook")
        command = [program, "-i", str(self.inventory), f"playbooks/{name}.yml", *options]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "DODAS_DEPLOYMENT": "site",
            "DODAS_HOME": str(self.folder / "home"),
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PLAYBOOK_SECONDS, check=False
        )
        assert (done.returncode == 0) == ok, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        recap = {}
        for line in done.stdout.partition("PLAY RECAP")[2].splitlines()[1:]:
            host, colon, counts = line.partition(":")
            if colon:
                recap[host.strip()] = {key: int(value) for key, value in (one.split("=") for one in counts.split())}
        return done.stdout + done.stderr, recap

    @property
    def record(self):
        return self.folder / "home/deployments/site/hosts.json"

    def recorded(self):
        """The hosts that the deployment's state names."""
        return json.loads(self.record.read_text(encoding="utf-8"))

    def forget(self, name):
        """As if the inventory had been without the host in the last run."""
        rest = {host: one for host, one in self.recorded().items() if host != name}
        self.record.write_text(json.dumps(rest), encoding="utf-8")


@pytest.fixture(scope="module")
def machines():
    """Debian 12 and 13 that know nothing of dodas, one of them where nobody has root; removed whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("machines that run systemd need root")
    folder = Path(tempfile.mkdtemp(prefix="dodas-"))  # podman wants a short path
    made = Machines(
        folder,
        [
            Machine("front-1", "bookworm"),
            Machine("worker-1", "trixie", user="admin"),
            Machine("campus-1", "bookworm", user="physicist", sudo=False),
        ],
    )
    try:
        made.start()
        yield made
    finally:
        left = made.close()
        assert left == [], f"left on this machine: {left}"
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site(machines, tmp_path_factory):
    connection = {
        "ansible_ssh_private_key_file": str(machines.key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={machines.known_hosts}",
    }
    return Site(tmp_path_factory.mktemp("site"), machines.addresses, connection)


@pytest.fixture
def draft(tmp_path):
    """An inventory whose machines nobody has, to be made wrong."""
    return Site(tmp_path)

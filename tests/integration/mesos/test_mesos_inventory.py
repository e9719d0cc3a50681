# SPDX-License-Identifier: Apache-2.0
"""The example of an inventory for machines that are there: it makes a cluster, and one that does not is refused."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

from clusters import ROOT

EXAMPLE = ROOT / "inventories/mesos/hosts.yml"


@pytest.fixture
def groups():
    """The example's groups, to be made wrong."""
    return yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["all"]["children"]


@pytest.fixture
def prepare(tmp_path):
    """Runs, in check mode, what comes before hosts are reached: (status, output)."""

    def prepare(groups):
        data = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        data["all"]["children"] = groups
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(data), encoding="utf-8")
        command = [shutil.which("ansible-playbook"), "-i", tmp_path / "hosts.yml", "playbooks/provision.yml", "--check"]
        environment = {
            **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "DODAS_HOME": str(tmp_path),
            "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        }  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return prepare


def test_the_example_is_taken(prepare, groups):
    status, output = prepare(groups)
    assert status == 0, output


def two_masters(groups):
    del groups["mesos_master"]["hosts"]["master-3"]


def two_zookeepers(groups):
    del groups["zookeeper"]["hosts"]["master-3"]


def three_balancers(groups):
    groups["load_balancer"]["hosts"]["agent-1"] = None


def app_without_agent(groups):
    groups["squid"]["hosts"] = {"balancer-2": None}


def no_registry(groups):
    del groups["registry"]


def no_shared_address(groups):
    del groups["load_balancer"]["vars"]


def another_engine(groups):
    groups["worker"]["hosts"] = {"worker-1": {"ansible_host": "192.0.2.41", "dodas_engine": "podman"}}


def worker_that_fits_nowhere(groups):
    groups["mesos_agent"]["vars"]["mesos_agent_mem_mb"] = 2048


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (two_masters, "group mesos_master must have 1, 3 or 5 hosts"),
        (two_zookeepers, "group zookeeper must have 1, 3 or 5 hosts"),
        (three_balancers, "group load_balancer must have 2 hosts at most"),
        (app_without_agent, "balancer-2 of group squid must be in mesos_agent"),
        (no_registry, "group registry must have a host"),
        (no_shared_address, "load_balancer_virtual_address: two balancers need one that they share"),
        (another_engine, "engine marathon must be that of all hosts"),
        (worker_that_fits_nowhere, "worker_memory_mb is 4096, and no agent offers more than 2048"),
    ],
)
def test_what_makes_no_cluster_is_refused(prepare, groups, spoil, words):
    spoil(groups)
    status, output = prepare(groups)
    assert status != 0 and words in output, output


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_apps_with_data_stay_where_they_are(seed, tmp_path):
    """In each run of Ansible, whose sets have an order of their own, on the first host of their group."""
    command = [shutil.which("ansible"), "--playbook-dir", "playbooks", "-i", EXAMPLE, "agent-2",
               "-m", "ansible.builtin.debug", "-a", "var=dodas_placement"]  # fmt: skip
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                   "DODAS_HOME": str(tmp_path), "PYTHONHASHSEED": seed}  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    placement = json.loads(done.stdout.partition("=>")[2])["dodas_placement"]
    for app in ("identity", "conditions", "htcondor"):
        assert placement[app]["hosts"] == ["agent-1"]
    assert placement["worker"]["hosts"] == ["agent-1", "agent-2"] and placement["worker"]["instances"] == 8

# SPDX-License-Identifier: Apache-2.0
"""The inventory plugin, through ansible-inventory and ansible-playbook themselves."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TIER3 = ROOT / "templates" / "tier3.yaml"
CONFIG = """\
[inventory]
enable_plugins = dodas.cluster.tosca, host_list, script, auto, yaml, ini, toml
any_unparsed_is_failed = true
"""
GRAPH = """\
@all:
  |--@ungrouped:
  |--@consul:
  |  |--front-1
  |--@identity:
  |  |--front-1
  |--@credentials:
  |  |--front-1
  |--@squid:
  |  |--front-1
  |--@conditions:
  |  |--front-1
  |--@htcondor:
  |  |--front-1
  |--@worker:
  |  |--worker-1
  |  |--worker-2
  |--@node_front:
  |  |--front-1
  |--@node_worker:
  |  |--worker-1
  |  |--worker-2
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path, home):
    """Run one of Ansible's programs; gives the finished process."""
    config = tmp_path / "ansible.cfg"
    config.write_text(CONFIG)

    def _run(program, *arguments, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "DODAS_"))}
        command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=120,
            env={
                **kept,
                "ANSIBLE_CONFIG": str(config),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
                "DODAS_HOME": str(home),
                **environment,
            },
        )

    return _run


@pytest.fixture
def hostvars(run):
    """{host: variables} of a template."""

    def _hostvars(*arguments, template=TIER3, **environment):
        done = run("ansible-inventory", "-i", template, "--list", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)["_meta"]["hostvars"]

    return _hostvars


def state(home, name, **files):
    directory = home / "deployments" / name
    directory.mkdir(parents=True)
    for stem, value in files.items():
        (directory / f"{stem}.json").write_text(json.dumps(value))
    return directory


def test_graph(run):
    done = run("ansible-inventory", "-i", TIER3, "--graph")
    assert (done.returncode, done.stdout, done.stderr) == (0, GRAPH, "")


def test_variables_before_there_are_hosts(hostvars, home):
    found = hostvars()
    assert sorted(found) == ["front-1", "worker-1", "worker-2"]
    assert found["worker-2"] == {
        "dodas_backend": "local",
        "dodas_cpus": 1.0,
        "dodas_deployment": "tier3",
        "dodas_engine": "podman",
        "dodas_index": 2,
        "dodas_host": {"name": "worker-2", "cpus": 1.0, "mem_mb": 1024},
        "dodas_mem_mb": 1024,
        "dodas_node": "worker",
        "dodas_site_name": "T3_Dodas",
        "dodas_state_dir": str(home / "deployments" / "tier3"),
        "dodas_template": str(TIER3),
        "worker_cpus": 1,
        "worker_memory_mb": 1024,
        "worker_scratch_mb": 1024,
        "worker_instances": 1,
        **dict.fromkeys(("worker_outside_host", "worker_outside_ccb", "worker_cms_site"), ""),
    }
    assert found["front-1"]["squid_port"] == 3128 and found["front-1"]["identity_issuer"] == ""
    assert "worker_cpus" not in found["front-1"]


def test_recorded_deployment(hostvars, home):
    directory = state(
        home,
        "tier3",
        inputs={"workers": 3},
        deployment={"backend": "openstack", "engine": "udocker"},
        hosts={
            "front-1": {"address": "10.90.0.2"},
            "worker-1": {"address": "10.90.0.3", "user": "debian", "port": 2222},
        },
    )
    found = hostvars()
    assert sorted(found) == ["front-1", "worker-1", "worker-2", "worker-3"]
    assert {key: value for key, value in found["front-1"].items() if key.startswith("ansible")} == {
        "ansible_host": "10.90.0.2",
        "ansible_user": "root",
        "ansible_ssh_private_key_file": f"{directory}/ssh/id_ed25519",
        "ansible_ssh_common_args": f"-o 'UserKnownHostsFile=\"{directory}/ssh/known_hosts\"' "
        "-o StrictHostKeyChecking=yes",
    }
    assert (found["worker-1"]["ansible_user"], found["worker-1"]["ansible_port"]) == ("debian", 2222)
    assert "ansible_host" not in found["worker-2"]
    assert (found["front-1"]["dodas_backend"], found["front-1"]["dodas_engine"]) == ("openstack", "udocker")


def test_hosts_in_a_cloud(hostvars, home):
    directory = state(
        home,
        "tier3",
        inputs={"workers": 1, "cloud_name": "site", "cloud_flavor": "{front: large}"},
        deployment={"backend": "openstack", "engine": "podman"},
        hosts={
            "front-1": {"address": "10.88.0.5", "public_address": "192.0.2.9", "id": "a", "jump": None},
            "worker-1": {"address": "10.88.0.6", "public_address": None, "id": "b", "jump": "front-1"},
        },
    )
    found = hostvars()
    front, worker = found["front-1"], found["worker-1"]
    assert (front["ansible_host"], front["dodas_inner_address"]) == ("192.0.2.9", "10.88.0.5")
    assert worker["ansible_host"] == worker["dodas_inner_address"] == "10.88.0.6"
    arguments = {name: shlex.split(one["ansible_ssh_common_args"]) for name, one in found.items()}
    assert "HostKeyAlias=front-1" in arguments["front-1"] and "HostKeyAlias=worker-1" in arguments["worker-1"]
    (through,) = [word for word in arguments["worker-1"] if word.startswith("ProxyCommand=")]
    assert f"-i {directory}/ssh/id_ed25519" in through and "root@192.0.2.9" in through
    assert "ProxyCommand" not in front["ansible_ssh_common_args"]
    assert (front["cloud_name"], front["cloud_flavor"]) == ("site", {"front": "large"})
    assert worker["dodas_host"] == {
        "name": "worker-1", "node": "worker", "cpus": 1.0, "mem_mb": 1024, "disk_gb": 10, "roles": ["worker"]
    }  # fmt: skip
    # It says nothing of its size, and is not to get the smallest that there is.
    assert front["dodas_host"]["mem_mb"] == 2000 and "htcondor" in front["dodas_host"]["roles"]


def test_a_setting_of_a_cloud_that_there_is_not(run, tmp_path):
    (tmp_path / "in.yaml").write_text("cloud_imagge: debian\n")
    done = run("ansible-inventory", "-i", TIER3, "--list", DODAS_BACKEND="openstack", DODAS_INPUTS="in.yaml")
    assert done.returncode == 4 and 'unknown setting "cloud_imagge"; did you mean "cloud_image"?' in done.stderr


def test_environment(hostvars, home, tmp_path):
    state(home, "other", inputs={"workers": 9})
    (tmp_path / "in.yaml").write_text("workers: 1\nsite_name: T3_Other\n")
    found = hostvars(
        DODAS_DEPLOYMENT="other", DODAS_INPUTS="in.yaml", DODAS_BACKEND="existing", DODAS_ENGINE="marathon"
    )
    assert sorted(found) == ["front-1", "worker-1"]
    front = found["front-1"]
    assert (front["dodas_deployment"], front["dodas_site_name"]) == ("other", "T3_Other")
    assert (front["dodas_backend"], front["dodas_engine"]) == ("existing", "marathon")


def test_extra_vars_beat_the_environment(hostvars):
    extra = {"dodas_deployment": "mine", "dodas_inputs": {"workers": "4"}}
    found = hostvars("-e", json.dumps(extra), DODAS_DEPLOYMENT="other", DODAS_INPUTS="none.json")
    assert len(found) == 5 and found["front-1"]["dodas_deployment"] == "mine"


def test_inputs_are_not_templates(run, tmp_path):
    template = tmp_path / "site.yaml"
    template.write_text(
        TIER3.read_text()
        .replace('        - pattern: "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"', "")
        .replace("default: T3_Dodas\n      constraints:\n", "default: T3_Dodas\n")
    )
    inputs = tmp_path / "in.json"
    inputs.write_text(json.dumps({"site_name": "{{ 6 * 7 }}"}))
    play = tmp_path / "play.yml"
    play.write_text(
        "- {hosts: htcondor, gather_facts: false, connection: local, tasks: "
        "[{debug: {var: htcondor_pool_name}}]}\n"
    )
    done = run("ansible-playbook", "-i", template, play, DODAS_INPUTS=str(inputs))
    assert done.returncode == 0 and "{{ 6 * 7 }}" in done.stdout


def test_other_inventories_go_to_other_plugins(run, tmp_path):
    plain = tmp_path / "plain.yaml"
    plain.write_text("# tosca_definitions_version: no\nall:\n  hosts:\n    here: {}\n")
    done = run("ansible-inventory", "-i", plain, "-i", TIER3, "--list")
    assert done.returncode == 0 and sorted(json.loads(done.stdout)["_meta"]["hostvars"]) == [
        "front-1",
        "here",
        "worker-1",
        "worker-2",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "host: worker",
            "host: wroker",
            'requirement "host" of "startd": no node template "wroker"; did you mean "worker"?',
        ),
        ("  inputs:", "\tinputs:", "not valid YAML: a tab; indent with spaces"),
    ],
)
def test_an_error_ends_the_run(run, tmp_path, old, new, message):
    template = tmp_path / "site.yaml"
    template.write_text(TIER3.read_text().replace(old, new))
    play = tmp_path / "play.yml"
    play.write_text("- {hosts: localhost, gather_facts: false, tasks: [{debug: {msg: went on}}]}\n")
    done = run("ansible-playbook", "-i", template, play)
    line = TIER3.read_text()[: TIER3.read_text().index(old)].count("\n") + 1
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"[ERROR]: {template}:{line}: {message}\n"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DODAS_INPUTS": "none.json"}, "none.json: no such file"),
        (
            {"DODAS_DEPLOYMENT": "No"},
            f'{TIER3}: deployment name "No" must match ^[a-z][a-z0-9-]{{0,30}}$; '
            "set DODAS_DEPLOYMENT or dodas_deployment",
        ),
    ],
)
def test_errors_of_options(run, environment, message):
    done = run("ansible-inventory", "-i", TIER3, "--list", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"[ERROR]: {message}\n")


def test_an_input_that_is_wrong(run):
    done = run("ansible-inventory", "-i", TIER3, "--list", "-e", '{"dodas_inputs": {"workers": "three"}}')
    assert done.returncode == 4
    assert done.stderr.endswith('input "workers": expected integer >= 1 and <= 200, got "three"\n')


def test_damaged_state(run, home):
    (state(home, "tier3") / "hosts.json").write_text("{")
    done = run("ansible-inventory", "-i", TIER3, "--list")
    assert done.returncode == 4 and "hosts.json: not valid JSON" in done.stderr


def test_documentation(run):
    done = run("ansible-doc", "-t", "inventory", "--json", "dodas.cluster.tosca")
    documentation = json.loads(done.stdout)["dodas.cluster.tosca"]
    assert set(documentation["doc"]["options"]) == {"deployment", "inputs", "backend", "engine"}


def test_the_example_of_the_documentation_works(run, tmp_path, hostvars):
    done = run("ansible-doc", "-t", "inventory", "--json", "dodas.cluster.tosca")
    template = tmp_path / "site.yaml"
    template.write_text(json.loads(done.stdout)["dodas.cluster.tosca"]["examples"])
    found = hostvars(template=template)
    assert sorted(found) == ["front-1", "worker-1", "worker-2"]
    assert found["front-1"]["squid_cache_mb"] == 4096

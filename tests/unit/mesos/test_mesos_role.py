# SPDX-License-Identifier: Apache-2.0
"""What the role mesos makes of its variables, and what it refuses, on hosts of all kinds that exist only by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import flags

PROJECT = Path(__file__).resolve().parents[3]
ROLE = PROJECT / "roles" / "mesos"
sys.path.insert(0, str(PROJECT / "tests" / "standins" / "mesos" / "lib"))
KEY = "sha256:" + "0" * 64
LONG = "a-secret-of-20-chars"
V1, HYBRID = ({"version": version, "controllers": []} for version in ("v1", "hybrid"))
V2 = {"version": "v2", "controllers": ["cpu", "io", "memory", "pids"]}
BARE = {"version": "v2", "controllers": []}
GOOD = {
    "mesos_masters": ["master-1", "master-2", "master-3"], "mesos_zookeeper_servers": ["master-1"],
    "mesos_addresses": {"master-1": "192.0.2.1", "master-2": "192.0.2.2", "master-3": "192.0.2.3"},
    "mesos_agent_secret": LONG, "mesos_operator_secret": LONG, "mesos_framework_secrets": {"marathon": LONG},
    "mesos_source": "archive", "mesos_archive": "/nowhere/mesos.tar.gz", "mesos_archive_checksum": KEY,
    "mesos_version": "1.12.0", "cgroups": V2, "missing": [], "had": {}, "alone": {"rc": 0},
}  # fmt: skip
AGENT = {"mesos_docker_config": "/etc/dodas/registry/auth.json", "mesos_attributes": {"rack": "r1"},
         "mesos_resources": {"cpus": 4, "ports": ["31000-32000"]}}  # fmt: skip
# Versions in an order, by the control groups that they take with tasks confined, and what a host then gets for "auto".
FITS = {
    "1.11.0": {"v1": "cgroups", "hybrid": "cgroups", "v2": None, "bare": None},
    "1.11.0-0.5.1": {"v1": "cgroups", "hybrid": "cgroups", "v2": None, "bare": None},
    "1.11.0-0.6.0": {"v1": None, "hybrid": None, "v2": "cgroups", "bare": "posix"},
    "1.12.0": {"v1": "cgroups", "hybrid": "posix", "v2": "cgroups", "bare": "posix"},
}
GROUPS = {"v1": V1, "hybrid": HYBRID, "v2": V2, "bare": BARE}
REFUSED = {
    "two masters": ({"mesos_masters": ["master-1", "master-2"]}, "mesos_masters: there are 2"),
    "no masters": ({"mesos_masters": []}, "mesos_masters: there are 0"),
    "more than one": ({"had": {"stdout": "1"}}, "mesos_masters: one master cannot become 3"),
    "no ensemble": ({"mesos_zookeeper_servers": []}, "mesos_zookeeper_servers: is empty"),
    "unknown address": ({"mesos_zookeeper_servers": ["master-9"]}, "mesos_addresses: has no address of master-9"),
    "default password": ({"mesos_operator_secret": "changeme"}, "mesos_operator_secret: must be no default one"),
    "no password": ({"mesos_agent_secret": ""}, "mesos_agent_secret: must be no default one"),
    "short secret": ({"mesos_framework_secrets": {"marathon": "x"}}, "mesos_framework_secrets.marathon: must be no"),
    "own principal": ({"mesos_framework_secrets": {"agent": LONG}}, "mesos_framework_secrets: agent is a principal"),
    "no key": ({"mesos_source": "package"}, "mesos_source=package needs mesos_key_file, or mesos_key_checksum"),
    "no line": ({"mesos_source": "mirror"}, "mesos_source=mirror needs mesos_mirror"),
    "no archive": ({"mesos_archive": ""}, "mesos_source=archive needs mesos_archive and mesos_archive_checksum"),
    "no checksum": ({"mesos_archive_checksum": "sha256:1"}, "mesos_source=archive needs mesos_archive"),
    "no image": ({"mesos_source": "image"}, "mesos_source=image needs mesos_image"),
    "no podman": ({"mesos_source": "image", "mesos_image": "i", "missing": ["podman"]}, "needs podman on the host"),
    "no docker": ({"missing": ["docker"]}, "mesos_docker: there is no program docker"),
    "no containers": ({"mesos_containerizers": []}, "mesos_containerizers: is empty"),
    "unknown containers": ({"mesos_containerizers": ["lxc"]}, "mesos_containerizers: lxc is neither docker nor mesos"),
    "attribute": ({"mesos_attributes": {"rack": "a b"}}, "mesos_attributes: rack: 'a b' must be"),
    "resource": ({"mesos_resources": {"cpus": "many"}}, "mesos_resources: cpus: 'many' must be a number"),
    "range": ({"mesos_resources": {"ports": ["2-1"]}}, "mesos_resources: ports: '2-1' is no range"),
    "cgroups": ({"mesos_isolation": "cgroups", "cgroups": HYBRID}, "for mesos_isolation=cgroups"),
}
CASES = {
    "master": ({"mesos_agents": []}, ""),
    "agent": (AGENT, ""),
    "agent with libraries": ({**AGENT, "alone": {"rc": 127}}, ""),
    "package": ({**AGENT, "mesos_source": "package", "mesos_key_checksum": KEY, "mesos_version": ""}, ""),
    "image": ({**AGENT, "mesos_source": "image", "mesos_image": "registry.example/mesos:1"}, ""),
    "no docker here": ({"missing": ["docker"], "mesos_containerizers": ["mesos"]}, ""),
    "docker comes": ({"missing": ["docker"], "mesos_docker_packages": ["docker-engine"]}, ""),
    "old, without docker": ({"mesos_version": "1.10.0", "mesos_containerizers": ["mesos"]}, ""),
    **REFUSED,
    **{f"{version} on {name}": ({"mesos_version": version, "cgroups": groups},
                                "" if FITS[version][name] else f"Mesos {version} wants")
       for version in FITS for name, groups in GROUPS.items()},
}  # fmt: skip
FILES = "{{ _mesos_parts | map('extract', _mesos_files) | flatten }}"
RESULTS = """{%- set found = namespace(hosts={}) -%}
{%- for name in groups['all'] -%}
{%- set made = {'files': hostvars[name].files | default([]), 'refusal': hostvars[name].refusal | default('')} -%}
{%- set found.hosts = found.hosts | combine({name: made}) -%}
{%- endfor -%}
{{ found.hosts | to_json }}"""
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(ROLE / "vars" / "main.yml")],
        "vars": {
            "mesos_had": "{{ had }}",
            "mesos_alone": "{{ alone }}",
            "mesos_found": {"host": {"cgroups": "{{ cgroups }}", "systemd": True, "missing_programs": "{{ missing }}",
                                     "os": {"id": "debian", "codename": "bookworm"}}},
        },
        "tasks": [
            {
                "block": [
                    {"ansible.builtin.include_tasks": str(ROLE / "tasks" / "preflight.yml")},
                    {"ansible.builtin.set_fact": {"files": FILES}},
                ],
                "rescue": [{"ansible.builtin.set_fact": {"refusal": "{{ ansible_failed_result.msg }}"}}],
            },
            {
                "ansible.builtin.copy": {"dest": "{{ playbook_dir }}/results.json", "content": RESULTS, "mode": "0600"},
                "run_once": True,
            },
        ],
    }
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{case: {"files": [...], "refusal": message}} of one play over all cases."""
    folder = tmp_path_factory.mktemp("role")
    (folder / "templates").symlink_to(ROLE / "templates")
    names = {name: f"case-{number}" for number, name in enumerate(CASES)}
    hosts = {
        host: {**_defaults(host), **CASES[name][0], "mesos_addresses": {**GOOD["mesos_addresses"], host: "192.0.2.9"}}
        for name, host in names.items()
    }
    hosts[names["master"]]["mesos_masters"] = [names["master"], "master-2", "master-3"]
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (folder / "play.yml").write_text(json.dumps(PLAY))
    environment = {
        **os.environ, "HOME": str(folder), "ANSIBLE_COLLECTIONS_PATH": str(PROJECT / "collections"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "local"), "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml",
    }  # fmt: skip
    environment.pop("ANSIBLE_CONFIG", None)
    program = str(Path(sys.executable).parent / "ansible-playbook")
    command = [program, "-c", "local", "-f", "4", "-i", "hosts.json", "play.yml"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "results.json").read_text())
    return {name: found[host] for name, host in names.items()}


def _defaults(host):
    return {**yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()), **GOOD, "mesos_agents": [host]}


def _file(result, name):
    assert result["refusal"] == ""
    return next(one for one in result["files"] if one["path"].endswith(f"/{name}"))


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused_and_what_is_not(results, case):
    refusal = results[case]["refusal"]
    assert CASES[case][1] in refusal
    assert bool(refusal) == bool(CASES[case][1])


@pytest.mark.parametrize(("version", "groups"), [(v, g) for v in FITS for g in GROUPS if FITS[v][g]])
def test_how_tasks_are_confined(results, version, groups):
    made = flags.read(_file(results[f"{version} on {groups}"], "agent.env")["content"])
    confined = FITS[version][groups] == "cgroups"
    assert made["isolation"] == ("cgroups/cpu,cgroups/mem" if confined else "posix/cpu,posix/mem")
    assert made["launcher"] == ("linux" if confined else "posix")  # cgroups with the posix launcher would abort
    assert made["systemd_enable_support"] == ("false" if groups in ("v2", "bare") else "true")


def test_a_master_knows_the_majority_and_who_may_come(results):
    made = flags.read(_file(results["master"], "master.env")["content"])
    assert made["quorum"] == "2"
    assert made["zk"] == "zk://192.0.2.1:2181/mesos"
    assert (made["ip"], made["port"]) == ("192.0.2.9", "5050")
    assert {made[name] for name in made if name.startswith("authenticate_")} == {"true"}
    secrets = _file(results["master"], "credentials.json")
    assert (secrets["mode"], secrets["owner"]) == ("0600", "dodas-mesos")
    found = json.loads(secrets["content"])["credentials"]
    assert [one["principal"] for one in found] == ["agent", "operator", "marathon"]
    lists = json.loads(_file(results["master"], "acls.json")["content"])
    assert lists["register_frameworks"][0]["principals"] == {"values": ["marathon"]}
    assert lists["register_frameworks"][-1] == {"principals": {"type": "ANY"}, "roles": {"type": "NONE"}}


def test_an_agent_says_what_was_declared(results):
    made = flags.read(_file(results["agent"], "agent.env")["content"])
    assert made["attributes"] == "rack:r1"
    assert made["resources"] == "cpus:4;ports:[31000-32000]"
    assert made["docker_config"] == "/etc/dodas/registry/auth.json"
    assert made["launcher_dir"] == f"/opt/mesos/{KEY[7:]}/libexec/mesos"
    assert "executor_environment_variables" not in made
    assert made["reconfiguration_policy"] == "additive"
    assert not [value for value in made.values() if value.startswith("/tmp")]
    unit = _file(results["agent"], "dodas-mesos-agent.service")["content"]
    assert f"ExecStart=/opt/mesos/{KEY[7:]}/bin/mesos-agent\n" in unit
    assert "LD_LIBRARY_PATH" not in unit
    more = flags.read(_file(results["agent with libraries"], "agent.env")["content"])
    assert json.loads(more["executor_environment_variables"]) == {"LD_LIBRARY_PATH": f"/opt/mesos/{KEY[7:]}/lib"}
    unit = _file(results["agent with libraries"], "dodas-mesos-agent.service")["content"]
    assert f"Environment=LD_LIBRARY_PATH=/opt/mesos/{KEY[7:]}/lib\n" in unit
    other = flags.read(_file(results["package"], "agent.env")["content"])
    assert "launcher_dir" not in other
    third = flags.read(_file(results["image"], "agent.env")["content"])
    assert third["docker_mesos_image"] == "registry.example/mesos:1"


@pytest.mark.parametrize(("case", "part"), [("master", "MASTER"), ("agent", "AGENT"), ("image", "AGENT")])
def test_no_flag_is_unknown(results, case, part):
    """In the environment a mistake would be passed over."""
    from mesos_standin import flags as known

    made = flags.read(_file(results[case], f"{part.lower()}.env")["content"])
    only_some_versions = {"enable_cgroupsv2", "enable_cgroups_v2"}
    assert made.keys() - getattr(known, part).keys() - only_some_versions == set()


def test_no_secret_is_where_others_read_it(results):
    for name in ("master", "agent"):
        for one in results[name]["files"]:
            assert LONG not in one["content"] or one["mode"] == "0600"

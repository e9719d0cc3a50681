# SPDX-License-Identifier: Apache-2.0
"""Flags of Mesos as files, and what a change of an agent's flags means for it."""

import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import flags

ODD = {
    "cluster": 'a "cluster" with $HOME, `date` and a \\ in it',
    "executor_environment_variables": {"LD_LIBRARY_PATH": "/opt/mesos/lib", "A": "'"},
    "attributes": "rack:r1;kit:#test",
    "containerizers": ["docker", "mesos"],
    "strict": False,
    "quorum": 2,
}


def test_file_has_what_a_shell_reads_and_what_is_read_back(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text("# a comment\n" + flags.write(ODD))
    names = [f"MESOS_{name.upper()}" for name in ODD]
    script = f'set -a; . {path}; for name in {" ".join(names)}; do eval "printf \'%s\\n\' \\"\\$$name\\""; done'
    by_shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert by_shell == list(flags.read(path.read_text()).values())
    assert by_shell[0] == ODD["cluster"]
    assert by_shell[1] == '{"A": "\'", "LD_LIBRARY_PATH": "/opt/mesos/lib"}'
    assert by_shell[2:] == ["rack:r1;kit:#test", "docker,mesos", "false", "2"]


def test_what_is_none_is_left_out():
    assert flags.write({"resources": None, "port": 5051}) == 'MESOS_PORT="5051"\n'


@pytest.mark.parametrize(("given", "message"), [
    ({"Quorum": 2}, "'Quorum' is no name"),
    ({"no-quorum": 2}, "'no-quorum' is no name"),
    ({"cluster": "one\ntwo"}, "flag cluster"),
])  # fmt: skip
def test_flags_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        flags.write(given)


def test_attributes_and_resources_in_words():
    assert flags.text({"rack": "r1", "slots": 4}) == "rack:r1;slots:4"
    offered = {"cpus": 2.5, "mem": 1024, "ports": ["31000-32000", "33000-33000"]}
    assert flags.text(offered, numbers=True) == "cpus:2.5;mem:1024;ports:[31000-32000,33000-33000]"
    assert flags.text({}) == ""


@pytest.mark.parametrize(("given", "numbers", "message"), [
    ({"rack": "a b"}, False, "rack: 'a b'"),
    ({"rack": "a:b"}, False, "rack: 'a:b'"),
    ({"rack": "a;b"}, False, "rack: 'a;b'"),
    ({"rack": "[1"}, False, "rack: "),
    ({"rack": "{a}"}, False, "rack: "),
    ({"rack": ""}, False, "rack: ''"),
    ({"rack": True}, False, "rack: True"),
    ({"ra;ck": "a"}, False, "'ra;ck' is no name"),
    ({"cpus": "many"}, True, "cpus: 'many' must be a number"),
    ({"cpus": -1}, True, "cpus: -1 must be a number"),
    ({"ports": ["32000-31000"]}, True, "ports: '32000-31000' is no range"),
    ({"ports": []}, True, "ports: there is no range"),
])  # fmt: skip
def test_what_mesos_would_end_for(given, numbers, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("{", r"\{")):
        flags.text(given, numbers)


KNOWN = {"hostname": "worker-1", "port": "5051", "attributes": "rack:r1", "resources": "cpus:2;ports:[31000-31999]"}


@pytest.mark.parametrize(("changed", "kind", "reason"), [
    ({}, "same", ""),
    ({"isolation": "posix/cpu"}, "same", ""),
    ({"resources": "ports:[31000-31499,31500-31999];cpus:2.0"}, "same", ""),
    ({"resources": "cpus:4;ports:[31000-31999]"}, "additive", "cpus is more"),
    ({"resources": "cpus:2;ports:[30000-32000]"}, "additive", "ports is more"),
    ({"attributes": "rack:r1;kit:a"}, "additive", "kit is new"),
    ({"resources": "cpus:1;ports:[31000-31999]"}, "incompatible", "cpus is another"),
    ({"resources": "cpus:2;ports:[31000-31998]"}, "incompatible", "ports is another"),
    ({"resources": "cpus:2"}, "incompatible", "ports is gone"),
    ({"resources": "cpus:2;ports:[31000-31999];mem:512"}, "incompatible", "mem is new"),
    ({"attributes": "rack:r2"}, "incompatible", "rack is another"),
    ({"attributes": ""}, "incompatible", "rack is gone"),
    ({"hostname": "worker-2"}, "incompatible", "hostname was worker-1 and is worker-2"),
    ({"resources": "ports:[31000-31999]", "attributes": "rack:r1;kit:a"}, "incompatible", "cpus is gone, kit is new"),
])  # fmt: skip
def test_what_a_change_means(changed, kind, reason):
    assert flags.change(KNOWN, {**KNOWN, **changed}) == {"kind": kind, "reason": reason}

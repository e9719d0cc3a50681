# SPDX-License-Identifier: Apache-2.0
"""Modules through Ansible itself, in check mode: results, and messages for parameters that are wrong."""

import json
import os
import shutil

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from ansible_runtime import Ansible


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run [(module, parameters)] as one play in check mode on this machine; returns the results in order."""
    folder = tmp_path_factory.mktemp("modules")
    ansible = Ansible(folder, DODAS_HOME=str(folder / "home"), DODAS_IMAGES=str(folder / "images"))

    def play(tasks):
        given = ((f"dodas.cluster.{name}", parameters) for name, parameters in tasks)
        done = ansible.play(*given, options=["--check", "--diff"])
        return done.results, done.output

    yield play
    shutil.rmtree(Podman(folder / "home").run_dir, ignore_errors=True)


SQUID = {"container": {"docker": {"image": "i"}}}
WRONG = [
    ("podman_app", {"definition": {"id": "a", "instance": 2, **SQUID}}, "app definition: instance: unknown field"),
    ("podman_app", {"definition": {}, "state": "absent"}, "app definition: id: is missing"),
    ("config_files", {"files": [{"path": "/nowhere/x", "content": "", "mode": 420}]}, "mode '420' is not octal"),
    ("deployment_secrets", {"name": "a", "state_dir": "/nowhere", "certificates": {"web": "x"}},
     "certificates.web: must be a list of DNS names"),
    ("probe_info", {"probes": [{"name": "collector", "command": ["sh", "-c", "echo 'is down' >&2; exit 1"]}],
                    "timeout": 0}, "collector: is down"),
    ("local_cluster", {"name": "a", "state_dir": "/nowhere"}, "state is present but all of the following are missing"),
]  # fmt: skip
NEED_ROOT = [
    ("local_cluster", {"name": "A b", "state": "absent"}, "deployment name 'A b' must match"),
    ("container_image", {"folder": "/nowhere", "project": "/"}, "/nowhere: is no folder of images"),
]


def test_wrong_parameters_are_one_clear_line(run):
    wrong = [*WRONG, *(NEED_ROOT if os.geteuid() == 0 else [])]
    results, output = run([one[:2] for one in wrong])
    for (name, _parameters, message), result in zip(wrong, results, strict=True):
        assert result["failed"], name
        assert message in result["msg"], (name, result["msg"])
    assert "Traceback" not in output


def test_check_mode_reports_and_changes_nothing_and_the_diff_hides_secrets(run, tmp_path):
    files = [
        {"path": str(tmp_path / "open.conf"), "content": "shown-content\n"},
        {"path": str(tmp_path / "key"), "content": "s3cret-content\n", "mode": "0600"},
    ]
    state = tmp_path / "state"
    wanted = {"name": "a", "state_dir": str(state), "secrets": ["x"], "certificates": {"web": ["web.service.consul"]}}
    (written, made, probed), output = run(
        [
            ("config_files", {"files": files}),
            ("deployment_secrets", wanted),
            ("probe_info", {"probes": [{"name": "n", "command": ["echo", "3 hosts"], "expect": r"(\d+) hosts"}]}),
        ]
    )
    assert written["paths"] == [str(tmp_path / "open.conf"), str(tmp_path / "key")]
    assert made["made"] == ["x", "web"]
    assert written["changed"] and made["changed"]
    assert probed["probes"][0]["output"] == "3"
    assert list(tmp_path.iterdir()) == []
    assert "shown-content" in output
    assert "s3cret-content" not in output


def test_contents_and_environments_are_in_no_result(run, tmp_path):
    secret = "correct-horse-battery"
    file = {"path": str(tmp_path / "secret"), "content": secret, "mode": "0600"}
    app = {"definition": {"id": "a", "env": {"PASSWORD": secret}, **SQUID}, "files": [file]}
    results, printed = run([("config_files", {"files": [file]}), ("podman_app", app)])
    assert [one["changed"] for one in results] == [True, True]
    assert secret not in json.dumps(results) + printed

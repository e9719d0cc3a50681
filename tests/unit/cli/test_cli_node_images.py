# SPDX-License-Identifier: Apache-2.0
"""`./dodas images ... --format qcow2`: what it lists, and what it refuses before anything is built."""

import json
import os

import pytest
from click.testing import CliRunner

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build
from dodas import cli, machine
from dodas.deployments import ROOT


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Run `dodas images` with these arguments."""
    monkeypatch.setenv("DODAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    monkeypatch.setattr(machine, "become_root", lambda keep=None: None)
    monkeypatch.setattr(machine, "ensure_packages", lambda *_: None)
    return lambda *arguments: CliRunner().invoke(cli.main, ["images", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--cloud", "mine"], "container images are not uploaded: say --format qcow2"),
        (["build", "--no-upload"], "container images are not uploaded"),
        (["build", "--format", "qcow2", "--upload"], "--upload needs --cloud NAME"),
        (["build", "--format", "qcow2", "--engine", "podman"], "leave out --engine or --format"),
        (["prune", "--format", "qcow2"], "nothing to prune"),
        (["build", "debian-13", "--format", "qcow2"], "no disk image 'debian-13': there are debian-12"),
        (["build", "--format", "qcow2", "--cloud", "mine"], "cloud mine is not in clouds.yaml"),
    ],
)
def test_what_is_refused_before_anything_is_built(images, monkeypatch, arguments, message):
    monkeypatch.setattr(node_build, "build", lambda *_, **__: pytest.fail("it was built"))
    done = images(*arguments)
    assert done.exit_code != 0
    assert message in str(done.exception) + done.output


def test_a_format_that_there_is_not(images):
    done = images("build", "--format", "vmdk")
    assert done.exit_code == 2
    assert "'vmdk' is not 'qcow2'" in done.output


def test_what_is_there_is_listed(images, tmp_path):
    one = node.load(ROOT / "nodes/debian-12", ROOT)
    (before,) = json.loads(images("list", "--format", "qcow2", "--json").output)
    assert before == {"name": "debian-12", "reference": one.reference, "content": one.content, "path": None, "size": 0,
                      "cloud_id": None}  # fmt: skip
    path = tmp_path / "cache/nodes" / f"{one.reference}.qcow2"
    deployment.write_json(path.with_suffix(".json"), {"size_mb": 1})
    path.write_bytes(b"disk")
    (after,) = json.loads(images("list", "--format", "qcow2", "--json").output)
    assert after == {**before, "path": str(path), "size": 4}
    shown = images("list", "--format", "qcow2")
    assert str(path) in shown.output.split()


def test_what_is_built_is_told(images, monkeypatch, tmp_path):
    def build(one, project, progress):
        assert project == ROOT
        progress("disk", None)
        progress("disk", 1.5)
        path = node_build.cache() / f"{one.reference}.qcow2"
        deployment.write_json(path.with_suffix(".json"), {"size_mb": 1})
        path.write_bytes(b"disk")
        return node_build.present(one)

    monkeypatch.setattr(node_build, "build", build)
    done = images("build", "debian-12", "--format", "qcow2", "--yes")
    assert done.exit_code == 0, done.exception
    assert done.output.splitlines()[:2] == ["  disk", "  disk: 1.5 s"]
    assert str(node_build.cache() / os.listdir(node_build.cache())[0]).rpartition(".")[0] in done.output

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import deployment


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DODAS_HOME", str(tmp_path))
    assert deployment.home() == tmp_path
    assert deployment.deployment_dir("tier3") == tmp_path / "deployments" / "tier3"
    monkeypatch.delenv("DODAS_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert deployment.home() == Path("/var/lib/dodas")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert deployment.home() == tmp_path / ".local/share/dodas"


@pytest.mark.parametrize("name", ["a", "tier3", "a-b-c", "a" * 31])
def test_valid_names(name):
    assert deployment.valid_name(name)


@pytest.mark.parametrize("name", ["", "3a", "-a", "A", "a_b", "a.b", "a/b", "..", "a\n", "a" * 32, None, 3])
def test_names_that_are_not_valid(name):
    assert not deployment.valid_name(name)
    with pytest.raises(ValueError, match=r"deployment name .* must match"):
        deployment.deployment_dir(name)


def test_json(tmp_path):
    path = tmp_path / "new" / "x.json"
    assert deployment.read_json(path) is None
    assert deployment.read_json(path, {}) == {}
    deployment.write_json(path, {"a": [1]})
    deployment.write_json(path, {"a": [2]})
    assert deployment.read_json(path) == {"a": [2]}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_value(tmp_path):
    path = tmp_path / "x.json"
    deployment.write_json(path, 1)
    with pytest.raises(TypeError):
        deployment.write_json(path, object())
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text()) == 1


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        deployment.read_json(path)

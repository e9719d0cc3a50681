# SPDX-License-Identifier: Apache-2.0
"""node_image and node_image_info through Ansible itself: what is there, what would be made, and what is wrong."""

from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.images import node
from ansible_runtime import Ansible

ROOT = Path(__file__).resolve().parents[3]
GIVEN = {"folder": str(ROOT / "nodes"), "project": str(ROOT)}
MODULES = ("dodas.cluster.node_image", "dodas.cluster.node_image_info")


@pytest.fixture
def ansible(tmp_path):
    settings = {"DODAS_HOME": tmp_path / "home", "DODAS_IMAGES": tmp_path / "images", "DODAS_CACHE": tmp_path / "cache",
                "OS_CLIENT_CONFIG_FILE": tmp_path / "clouds.yaml"}  # fmt: skip
    return Ansible(tmp_path, **{name: str(value) for name, value in settings.items()})


def test_what_is_not_built_would_be_and_what_is_there_is_told(ansible, tmp_path):
    tasks = [(name, GIVEN) for name in MODULES]
    one = node.load(ROOT / "nodes/debian-12", ROOT)
    before = ansible.play(*tasks, options=["--check"]).results
    assert [found["changed"] for found in before] == [True, False]
    entry = {"name": "debian-12", "reference": one.reference, "content": one.content, "path": None, "size": 0,
             "cloud_id": None}  # fmt: skip
    assert [found["images"] for found in before] == [[entry], [entry]]
    path = tmp_path / "cache/nodes" / f"{one.reference}.qcow2"
    deployment.write_json(path.with_suffix(".json"), {"size_mb": 1})
    path.write_bytes(b"disk")
    after = ansible.play(*tasks).results
    assert [found["changed"] for found in after] == [False, False]
    assert [found["images"] for found in after] == [[{**entry, "path": str(path), "size": 4}]] * 2
    assert after[0]["built"] == {}


def test_what_is_wrong_is_said(ansible):
    wrong = [
        ({"names": ["debian-13"]}, "no disk image 'debian-13': there are debian-12"),
        ({"folder": "/nowhere"}, "/nowhere: is no folder of disk images"),
        ({"cloud": "mine"}, "cloud mine is not in clouds.yaml"),
    ]
    cases = [(module, parameters, message) for module in MODULES for parameters, message in wrong]
    found = ansible.play(*((module, {**GIVEN, **parameters}) for module, parameters, _ in cases), options=["--check"])
    assert len(found.results) == len(cases)
    for (module, parameters, message), result in zip(cases, found.results, strict=True):
        assert message in result["msg"], (module, parameters)

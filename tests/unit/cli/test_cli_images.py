# SPDX-License-Identifier: Apache-2.0
"""Which images a plain user's engine can build."""

from ansible_collections.dodas.cluster.plugins.module_utils.images import catalogue
from dodas import cli


def test_what_an_image_is_built_on_can_be_built_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DODAS_IMAGES", str(tmp_path))
    _builder, every = cli._images("udocker")
    assert {"worker", "htcondor"} <= every.keys()
    assert [one.name for one in catalogue.with_parents(every, list(every))] == list(every)

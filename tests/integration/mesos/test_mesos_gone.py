# SPDX-License-Identifier: Apache-2.0
"""The last to run: down leaves nothing of the cluster."""

import time


def test_down_leaves_nothing(dodas, cms, measured):
    began = time.monotonic()
    dodas("down", "--name", cms.name)
    measured("down", time.monotonic() - began)
    assert cms.name not in [one["name"] for one in dodas.json("list")]
    assert not (dodas.home / "deployments" / cms.name).exists()
    label = f"label=dodas.deployment={cms.name}"
    for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert dodas.podman(*kind, "--quiet", "--filter", label) == ""

# SPDX-License-Identifier: Apache-2.0
"""The last to run: down leaves the machine as it was."""

import time


def test_down_leaves_nothing(dodas, e2e, before):
    began = time.monotonic()
    dodas("down", "--name", "e2e")
    assert time.monotonic() - began < 30
    assert dodas.json("list") == []
    after = type(before)(dodas.home)
    # podman's configuration for the next deployment, and the logs of images
    after.found["files"] = {one for one in after.found["files"] if not one.startswith(str(dodas.home / "local"))}
    after.found["files"] -= {str(dodas.home / "deployments")}
    added = after.added_since(before)
    assert not added, added


def test_down_again_says_that_there_is_nothing(dodas, before):
    done = dodas("down", status=2)
    assert done.stderr == "dodas: there is no deployment; ./dodas up makes one\n"

# SPDX-License-Identifier: Apache-2.0
"""With archives of a real Mesos and a real Marathon: that they are what runs, and what only they do."""

import json
import os
import urllib.request

import pytest

pytestmark = pytest.mark.skipif(
    not (os.environ.get("DODAS_MESOS_ARCHIVE") and os.environ.get("DODAS_MARATHON_ARCHIVE")),
    reason="DODAS_MESOS_ARCHIVE and DODAS_MARATHON_ARCHIVE name no archives of real ones",
)


def test_no_stand_in_runs(cms):
    with urllib.request.urlopen(f"http://{cms.addresses['master-1']}:5050/version", timeout=5) as answer:
        version = json.load(answer)
    assert "stand-in" not in json.dumps(version).lower()
    assert "stand-in" not in json.dumps(cms.marathon("/v2/info")).lower()


def test_a_task_that_takes_more_memory_than_it_has_is_ended(cms, eventually):
    app = {"id": "/guest/greedy", "cpus": 0.1, "mem": 32, "cmd": "exec python3 -c 'x = bytearray(10**9)'",
           "backoffSeconds": 600}  # fmt: skip
    cms.marathon("/v2/apps", "POST", app)
    try:
        eventually(lambda: cms.marathon("/v2/apps/guest/greedy")["app"].get("lastTaskFailure"), 120, "it failed")
        assert "memory" in cms.marathon("/v2/apps/guest/greedy")["app"]["lastTaskFailure"]["message"].lower()
    finally:
        cms.marathon("/v2/apps/guest/greedy", "DELETE")

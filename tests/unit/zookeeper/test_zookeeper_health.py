# SPDX-License-Identifier: Apache-2.0
"""What a ZooKeeper server says of itself: before real ones."""

import subprocess
import sys

import pytest

from consul_runtime import ROOT
from mesos_runtime import Zookeeper, wait_for
from ports import free_port

HEALTH = ROOT / "roles/zookeeper/files/zookeeper_health.py"


def health(program, *options):
    command = [sys.executable, "-I", HEALTH, *options, program.folder / "zoo.cfg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def test_one_server_alone():
    with Zookeeper() as zookeeper:
        status, text = health(zookeeper[0])
        assert (status, text.split(",")[0]) == (0, "standalone")
        zookeeper[0].kill()
        assert health(zookeeper[0]) == (2, "Connection refused")


def test_an_ensemble_loses_one_server_and_then_its_quorum():
    with Zookeeper(3) as zookeeper:
        wait_for(lambda: "2 of 2 followers" in " ".join(health(one)[1] for one in zookeeper), "all follow")
        states = {one: health(one) for one in zookeeper}
        assert sorted(text.split(",")[0] for _status, text in states.values()) == ["follower", "follower", "leader"]
        assert {status for status, _text in states.values()} == {0}
        leader = next(one for one, (_status, text) in states.items() if text.startswith("leader"))
        lost, left = (one for one in zookeeper if one is not leader)
        lost.kill()
        wait_for(lambda: health(leader)[0] == 1, "the leader misses a follower")
        assert health(leader)[1].endswith(", 1 of 2 followers")
        leader.kill()
        wait_for(lambda: health(left) == (2, "runs, and has no quorum"), "the quorum is lost")
        status, text = health(left, "--wait", "0.5")
        assert status == 2
        assert "runs, and has no quorum" in text
        lost.start()
        assert health(left, "--wait", "20")[0] in (0, 1)


def test_others_are_named_when_waiting_was_in_vain(tmp_path):
    port = free_port()
    config = tmp_path / "zoo.cfg"
    config.write_text(f"clientPort={port}\nclientPortAddress=127.0.0.1\n"
                      "server.1=127.0.0.1:2:3\nserver.2=127.0.0.2:2:3\nserver.3=127.0.0.3:2:3\n")  # fmt: skip
    done = subprocess.run(
        [sys.executable, HEALTH, "--wait", "0.3", config], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "; ".join(f"127.0.0.{i}:{port}: Connection refused" for i in (1, 2, 3))


@pytest.mark.parametrize("text", [None, "", "clientPort=many\n"])
def test_a_configuration_that_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "zoo.cfg").write_text(text)
    done = subprocess.run(
        [sys.executable, HEALTH, tmp_path / "zoo.cfg"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stdout.startswith(f"{tmp_path}/zoo.cfg: ")
    assert done.stderr == ""

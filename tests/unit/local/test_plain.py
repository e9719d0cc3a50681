# SPDX-License-Identifier: Apache-2.0
"""Hosts that are folders: names, addresses on the loopback, and that nothing stays."""

import json
import re
import socket

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.engine import plainhost
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.local import plain


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DODAS_HOME", str(tmp_path))
    monkeypatch.setattr(plainhost, "_crontab", lambda: "")
    monkeypatch.setattr(plainhost.PlainHost, "_keep_in_crontab", lambda *_: None)
    return tmp_path


def cluster(home, name="one"):
    return plain.PlainCluster(name, home / "deployments" / name)


def hosts(*names):
    return [{"name": name, "cpus": 1.0, "mem_mb": 512} for name in names]


def test_hosts_come_stay_and_go(home):
    one = cluster(home)
    assert one.plan(hosts("front-1", "worker-1")) == {"create": ["front-1", "worker-1"], "start": [], "remove": []}
    assert not home.joinpath("deployments").exists()
    made = one.apply(hosts("front-1", "worker-1"))
    network = made["front-1"]["address"].rpartition(".")[0]
    assert re.fullmatch(r"127\.([1-9]\d*)\.\d+", network)
    assert [host["address"] for host in made.values()] == [f"{network}.10", f"{network}.11"]
    assert json.loads((home / "deployments/one/hosts.json").read_text()) == made

    assert one.plan(hosts("front-1", "worker-1")) == {"create": [], "start": [], "remove": []}
    again = one.apply(hosts("front-1", "worker-2"))
    assert again["front-1"] == made["front-1"] and again["worker-2"]["address"] == f"{network}.11"
    assert sorted(one.found()) == ["front-1", "worker-2"]

    assert sorted(one.remove()) == ["front-1", "worker-2"]
    assert one.found() == {} and not (home / "deployments/one/hosts").exists()


def test_networks_of_others_are_left_alone(home):
    first = cluster(home).apply(hosts("front-1"))["front-1"]["address"].rpartition(".")[0]
    cluster(home).remove()
    (home / "deployments/one/hosts.json").unlink()
    with socket.create_server((f"{first}.77", 0)):
        second = cluster(home).apply(hosts("front-1"))["front-1"]["address"].rpartition(".")[0]
        assert second != first
    (home / "deployments/two").mkdir()
    (home / "deployments/two/hosts.json").write_text(json.dumps({"x": {"address": f"{first}.10"}}))
    cluster(home).remove()
    (home / "deployments/one/hosts.json").unlink()
    assert cluster(home).apply(hosts("front-1"))["front-1"]["address"].rpartition(".")[0] != first


@pytest.mark.parametrize("names", [["Front"], ["a", "a"], ["../x"]])
def test_names_that_cannot_be_hosts(home, names):
    with pytest.raises(EngineError, match="host name"):
        cluster(home).plan(hosts(*names))


def test_too_many_hosts(home):
    with pytest.raises(EngineError, match="has no address left for 246 hosts"):
        cluster(home).apply(hosts(*(f"w-{i}" for i in range(246))))

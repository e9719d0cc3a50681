# SPDX-License-Identifier: Apache-2.0
"""Waiting for hosts, before real sshds."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import access
from ansible_collections.dodas.cluster.plugins.module_utils.sshkeys import SshKeys


def known(server, **more):
    return {"address": server.address, "public_address": None, "id": "some", "jump": None, **more}


def test_hosts_that_answer(state, sshd):
    hosts = {name: known(sshd(name)) for name in ("front-1", "worker-1")}
    assert set(access.wait(state, hosts, timeout=60)) == set(hosts)
    assert [line.split()[0] for line in (state / "ssh/known_hosts").read_text().splitlines()] == ["front-1", "worker-1"]


def test_a_host_behind_another(state, sshd):
    front, worker = sshd("front-1"), sshd("worker-1")
    hosts = {"worker-1": known(worker, jump="front-1"), "front-1": known(front)}
    assert set(access.wait(state, hosts, timeout=60)) == set(hosts)
    front.stop()
    with pytest.raises(access.AccessError, match=r"worker-1 \(127.*; front-1 \(127|front-1 \(127.*; worker-1 \(127"):
        access.wait(state, hosts, timeout=10)


def test_a_host_that_comes_late(state, sshd, tmp_path, monkeypatch):
    server = sshd("front-1")
    server.stop()
    monkeypatch.setattr(access.time, "sleep", lambda _seconds: server.process or server.start())
    access.wait(state, {"front-1": known(server)}, timeout=60)


def test_a_silent_host_is_named_and_the_others_are_not(state, keys, sshd):
    hosts = {"front-1": known(sshd("front-1")), "worker-1": {"address": "127.0.0.99", "id": "x"}}
    with pytest.raises(access.AccessError, match=r"^worker-1 \(127.0.0.99\): .*refused$"):
        access.wait(state, hosts, timeout=10)


def test_another_server_with_the_address_is_not_let_pass(state, sshd, tmp_path):
    server = sshd("front-1")
    keys = SshKeys(state, "test")
    keys.forget("front-1")
    keys.make(["front-1"])
    with pytest.raises(access.AccessError, match="front-1 .*: its SSH key is not the one that it was given"):
        access.wait(state, {"front-1": known(server)}, timeout=10)


def test_a_host_that_does_not_know_us(state, sshd):
    server = sshd("front-1")
    SshKeys(state, "test").private.unlink()
    SshKeys(state, "test").make()
    with pytest.raises(access.AccessError, match="front-1 .*: it does not let the deployment's key in as root"):
        access.wait(state, {"front-1": known(server)}, timeout=10)


def test_what_cloud_init_says_went_wrong(state, sshd):
    server = sshd("front-1", "echo status: error; echo 'detail: no such module'; exit 1")
    with pytest.raises(access.AccessError, match="front-1 .*: cloud-init failed: status: error detail: no such module"):
        access.wait(state, {"front-1": known(server)}, timeout=60)


def test_what_can_be_lived_with(state, sshd):
    access.wait(state, {"front-1": known(sshd("front-1", "exit 2"))}, timeout=60)


def test_cloud_init_without_end(state, sshd):
    server = sshd("front-1", "sleep 60")
    with pytest.raises(access.AccessError, match="front-1 .*: cloud-init has not ended"):
        access.wait(state, {"front-1": known(server)}, timeout=10)

# SPDX-License-Identifier: Apache-2.0
"""One run at a time: who holds the lock, and when it is stale."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import lock
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, Busy
from openstack_paper import UUID, Paper


class Keypairs(Paper):
    """Keeps keypairs as nova does: no two of one name."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def list(self, service, path, key, **query):
        return [{"keypair": {"name": name, "public_key": value}} for name, value in self.kept.items()]

    def post(self, service, path, body, find=None, **options):
        if body["keypair"]["name"] in self.kept:
            raise ApiError("409: it is there", "compute", 409)
        self.kept[body["keypair"]["name"]] = body["keypair"]["public_key"]

    def delete(self, service, path, **options):
        self.kept.pop(path.rpartition("/")[2], None)

    def hold(self, number, **changes):
        """A lock that somebody holds."""
        self.kept[f"dodas-lock-{UUID}-{number}"] = lock._key({**lock._me(60), **changes})


def test_the_second_one_is_told_who_is_first():
    cloud = Keypairs()
    told = rf"process {os.getpid()}, since 20.*remove keypair dodas-lock-"
    with lock.held(cloud, UUID, 60), pytest.raises(Busy, match=told):
        lock.take(cloud, UUID, 60)
    assert cloud.kept == {}


def test_the_lock_goes_when_the_run_fails():
    cloud = Keypairs()
    with pytest.raises(ZeroDivisionError), lock.held(cloud, UUID, 60):
        raise ZeroDivisionError
    assert cloud.kept == {}


def test_a_process_that_is_gone_leaves_a_stale_lock():
    cloud = Keypairs()
    gone = subprocess.Popen(["true"])
    gone.wait()
    cloud.hold(4, pid=gone.pid, started=1)
    assert lock.take(cloud, UUID, 60) == f"dodas-lock-{UUID}-5"
    assert list(cloud.kept) == [f"dodas-lock-{UUID}-5"]


def test_another_machine_is_believed_until_its_time_is_over():
    cloud = Keypairs()
    cloud.hold(1, machine="another", pid=1, started=1)
    with pytest.raises(Busy):
        lock.take(cloud, UUID, 60)
    cloud.hold(1, machine="another", pid=1, started=1, until="2020-01-01T00:00:00Z")
    lock.take(cloud, UUID, 60)


def test_of_two_that_find_a_stale_lock_one_gets_it():
    cloud = Keypairs()
    cloud.hold(1, until="2020-01-01T00:00:00Z")
    stale = cloud.list("compute", "/os-keypairs", "keypairs")
    lock.take(cloud, UUID, 60)
    listed, looks = cloud.list, iter([stale])  # the second one has looked before the first one took it
    cloud.list = lambda *arguments, **query: next(looks, None) or listed(*arguments, **query)
    with pytest.raises(Busy):
        lock.take(cloud, UUID, 60)
    assert list(cloud.kept) == [f"dodas-lock-{UUID}-2"]


def test_locks_of_other_deployments_are_not_seen():
    cloud = Keypairs()
    cloud.kept["dodas-lock-other-1"] = "ssh-ed25519 AAAA x"
    cloud.kept[f"dodas-tier3-{UUID}"] = "ssh-ed25519 AAAA x"
    assert lock.locks(cloud, UUID) == {}

# SPDX-License-Identifier: Apache-2.0
"""Inventories that make no cluster are refused in one line, before anything is made or reached."""

from __future__ import annotations

import pytest


def no_htcondor(groups, _variables):
    del groups["htcondor"]


def two_htcondor(groups, _variables):
    groups["htcondor"]["hosts"]["front-2"] = {"ansible_host": "192.0.2.12"}


def no_credentials(groups, _variables):
    del groups["credentials"]


def nothing_at_all(groups, _variables):
    groups.clear()
    groups["worker"] = {"hosts": {"worker-1": {"ansible_host": "192.0.2.11"}}}


def two_consul(groups, _variables):
    groups["consul"]["hosts"]["worker-1"] = None


def no_worker(groups, _variables):
    groups["worker"]["hosts"].clear()


def shared_port(groups, _variables):
    groups["worker"]["hosts"]["front-1"] = None


def dotted_name(groups, _variables):
    groups["worker"]["hosts"]["worker.example.org"] = {"ansible_host": "192.0.2.12"}


def no_address(groups, _variables):
    del groups["worker"]["hosts"]["worker-1"]["ansible_host"]


def no_deployment(_groups, variables):
    del variables["dodas_deployment"]


def unknown_backend(_groups, variables):
    variables["dodas_backend"] = "moon"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_htcondor, "group htcondor must have one host"),
        (two_htcondor, "group htcondor must have one host"),
        (no_credentials, "group credentials must have 1 or 2 hosts"),
        (nothing_at_all, "group conditions must have one host"),
        (two_consul, "group consul must have 1, 3 or 5 hosts"),
        (no_worker, "group worker must have a host"),
        (shared_port, "front-1 cannot be in htcondor and in worker, which use the same port"),
        (dotted_name, "worker.example.org cannot be a name in .node.consul"),
        (no_address, "ansible_host is missing for worker-1"),
        (no_deployment, "the inventory must say dodas_deployment"),
        (unknown_backend, "dodas_backend (local, existing or openstack)"),
    ],
)
def test_wrong_inventory_is_refused_before_anything_is_made(draft, spoil, words):
    spoil(draft.groups, draft.data["all"]["vars"])
    output, recap = draft.play("up", ok=False)
    assert words in " ".join(output.split())
    assert set(recap) == {"localhost"} and recap["localhost"]["changed"] == 0
    assert not (draft.folder / "home/deployments").exists()

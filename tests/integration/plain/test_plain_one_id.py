# SPDX-License-Identifier: Apache-2.0
"""The same for a user to whom /etc/subuid gives nothing: all users of containers are one. Tests build on each other."""

from __future__ import annotations

SUBIDS = False
FOUND = {}


def test_up(user):
    FOUND["before"] = user.files()
    assert "complete: tier3" in user.up().stdout
    assert user.run("front-1", "udocker exec dodas-htcondor id -un").strip() == "dodas"
    assert user.run("front-1", "udocker exec dodas-squid id -un").strip() == "proxy"


def test_jobs_of_dimuon(user):
    done = user.dodas("submit", str(user.project / "examples/dimuon"), "--wait")
    assert "18 of 18 done" in done.stdout and "18 jobs on 2 hosts" in done.stdout


def test_doctor_finds_nothing(user):
    assert "✗" not in user.dodas("doctor").stdout


def test_down_leaves_nothing(user):
    user.dodas("down")
    assert user.left(FOUND["before"]) == {}

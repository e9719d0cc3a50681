# SPDX-License-Identifier: Apache-2.0
"""The whole cluster as one plain user: `./dodas up` on a machine without root and podman, from images to nothing.

Tests build on each other.
"""

from __future__ import annotations

import re

from plain_user import wait_for

FOUND = {}


def test_up_says_what_is_missing_and_makes_the_cluster(user):
    FOUND["before"] = user.files()
    done = user.up()
    assert "root is missing: everything runs as one plain user with engine udocker" in done.stderr
    assert "conditions: building" in done.stdout and "complete: tier3" in done.stdout
    found = user.json("status")
    assert (found["engine"], found["complete"], len(found["slots"])) == ("udocker", True, 2)
    assert [one["engine"] for one in user.json("list")] == ["udocker"]
    FOUND["hosts"] = {name: one["address"] for name, one in found["hosts"].items()}


def test_everything_is_the_user_s_and_listens_on_the_deployment_s_own_loopback(user):
    network = FOUND["hosts"]["front-1"].rpartition(".")[0]
    assert re.fullmatch(r"127\.\d+\.\d+", network) and not network.startswith("127.0.")
    assert {address.rpartition(".")[0] for address in user.listeners()} == {network}
    assert set(FOUND["hosts"].values()) <= user.listeners()


def test_no_secret_is_in_a_command_line(user):
    secrets = user.person.home / ".local/share/dodas/deployments/tier3/secrets.json"
    assert secrets.stat().st_mode & 0o077 == 0
    values = re.findall(r'"([A-Za-z0-9+/=_-]{24,})"', secrets.read_text(encoding="utf-8"))
    lines = " ".join(user.person.processes().values())
    assert values and "supervisord" in lines
    assert not [value for value in values if value in lines]


def test_jobs_of_dimuon(user):
    done = user.dodas("submit", str(user.project / "examples/dimuon"), "--wait")
    assert "18 of 18 done" in done.stdout and "m(Z) = 91.1" in done.stdout
    assert "18 jobs on 2 hosts" in done.stdout


def test_second_up_changes_nothing(user):
    programs = user.run("front-1", "supervisorctl pid all")
    done = user.dodas("up", "--yes")
    assert "changed=0" in done.stdout, done.stdout
    assert user.run("front-1", "supervisorctl pid all") == programs


def test_scale_touches_only_what_is_new_or_leaves(user):
    front = user.run("front-1", "supervisorctl pid all")
    found = user.json("scale", "workers=3")
    assert found["complete"] and len(found["slots"]) == 3
    assert "worker-3.node.consul" in user.run("front-1", "udocker exec dodas-htcondor cat /etc/hosts")
    found = user.json("scale", "workers=1")
    assert found["complete"] and [one["machine"] for one in found["slots"]] == ["worker-1"]
    assert user.run("front-1", "supervisorctl pid all") == front


def test_app_that_dies_comes_back(user):
    assert user.dodas("check").stdout.strip().endswith("hold")
    before = user.run("front-1", "supervisorctl pid dodas-squid")
    user.run("front-1", "udocker kill dodas-squid || udocker exec dodas-squid sh -c 'kill -9 -1'")
    wait_for(lambda: user.run("front-1", "supervisorctl pid dodas-squid") not in ("0\n", before), 20, "squid starts")
    wait_for(user.is_complete, 60, "the cluster is whole")
    assert "dodas.renew" in user.dodas("logs", "worker").stdout


def test_cluster_comes_back_after_a_reboot(user):
    """All processes are killed at once, and what cron starts with the machine is started."""
    lines = [line for line in user.crontab().splitlines() if line.startswith("@reboot ")]
    assert len(lines) == len(user.json("status")["hosts"]) == 2 and user.json("status")["unkept"] == []
    user.person.kill()
    assert not user.is_complete()
    for line in lines:
        done = user.person.run(["/bin/sh", "-c", line.removeprefix("@reboot ")], env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done.stderr
    wait_for(user.is_complete, 120, "the cluster is whole")


def test_doctor_finds_nothing(user):
    """Soon after the reboot, when a worker on a busy machine may still have to join."""
    wait_for(lambda: "✗" not in user.dodas("doctor", status=None).stdout, 60, "the doctor finds nothing")


def test_engine_of_a_deployment_stays(user):
    done = user.dodas("up", "--engine", "podman", status=2)
    assert "exists with engine udocker" in done.stderr


def test_down_leaves_nothing(user):
    user.dodas("down")
    assert user.left(FOUND["before"]) == {}

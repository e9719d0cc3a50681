# SPDX-License-Identifier: Apache-2.0
"""A second deployment beside the first, killed on its way up."""

import os
import signal
import time

import pytest


@pytest.fixture
def neighbour(dodas, e2e):
    """What the first deployment runs, which must stay."""

    def look():
        return {host: e2e.apps(host) for host in ("front-1", "worker-1", "worker-2")}

    before = look()
    yield
    assert look() == before


def things(dodas, name):
    """All that a deployment has."""
    label = f"label=dodas.deployment={name}"
    listings = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    found = [one for kind in listings for one in dodas.podman(*kind, "--quiet", "--filter", label).split()]
    return found + [str(path) for path in (dodas.home / "deployments").glob(f"{name}*")]


def test_killed_up_is_finished_by_the_next(dodas, neighbour):
    arguments = ("up", "--yes", "--name", "e2e2", "-p", "workers=1")
    for seconds in (2, 5, 9):
        up = dodas.start(*arguments)
        time.sleep(seconds)
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()
    found = dodas.json(*arguments)
    assert found["complete"] and len(found["slots"]) == 1
    dodas("down", "--name", "e2e2")
    assert things(dodas, "e2e2") == []


def test_down_ends_an_up_that_runs(dodas, neighbour, eventually):
    up = dodas.start("up", "--yes", "--name", "e2e2", "-p", "workers=1")
    eventually(lambda: "dodas-e2e2-front-1" in dodas.podman("ps", "--format", "{{.Names}}"), 30, "a host was made")
    busy = dodas("up", "--name", "e2e2", status=2)
    assert "another dodas command" in busy.stderr and len(busy.stderr.splitlines()) <= 2
    dodas("down", "--name", "e2e2")
    assert up.wait(10) != 0
    time.sleep(3)
    assert things(dodas, "e2e2") == []


def test_down_works_with_half_of_the_state(dodas, neighbour, tmp_path, eventually):
    template = tmp_path / "e2e2.yaml"
    template.write_bytes((dodas.root / "templates/tier3.yaml").read_bytes())
    up = dodas.start("up", "--yes", str(template), "-p", "workers=1")
    eventually(lambda: "dodas-e2e2-front-1" in dodas.podman("ps", "--format", "{{.Names}}"), 30, "a host was made")
    os.killpg(up.pid, signal.SIGKILL)
    up.wait()
    template.unlink()
    for name in ("secrets.json", "hosts.json", "inputs.json"):
        (dodas.home / "deployments/e2e2" / name).unlink(missing_ok=True)
    dodas("down", "--name", "e2e2")
    assert things(dodas, "e2e2") == []

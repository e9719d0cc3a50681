# SPDX-License-Identifier: Apache-2.0
"""Up, status, submit, up again, scale."""

import re
import shutil
import time


def test_status_is_green(dodas, e2e):
    found = dodas.json("status", "--name", "e2e")
    assert found["complete"] and found["errors"] == []
    assert {probe["name"] for probe in found["probes"]} == {
        "consul", "identity", "credentials", "squid", "collector", "schedd", "negotiator", "slots", "worker", "proxy"
    }  # fmt: skip
    assert all(probe["ok"] for probe in found["probes"])
    assert len(found["slots"]) == 2


def test_dimuon(dodas, e2e, tmp_path):
    folder = tmp_path / "dimuon"
    shutil.copytree(dodas.root / "examples/dimuon", folder, ignore=shutil.ignore_patterns("results", "*.png"))
    done = dodas("submit", str(folder), "--wait", "--name", "e2e", "--timeout", "240")
    assert "18 of 18 done" in done.stdout
    mass = float(re.search(r"m\(Z\) = ([\d.]+) ", done.stdout).group(1))
    assert abs(mass - 91.19) < 0.2
    assert (folder / "dimuon.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "results").glob("histogram_*.json"))) == 18
    through = [path.read_text(encoding="utf-8") for path in (folder / "results").glob("job_*.out")]
    assert len(through) == 18 and all("squid" in one for one in through)


def test_up_again_changes_nothing(dodas, e2e):
    done = dodas("up", "--name", "e2e")
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0"]


def test_scale_touches_only_what_is_new(dodas, e2e):
    before = {host: e2e.apps(host) for host in ("front-1", "worker-1", "worker-2")}
    found = dodas.json("scale", "workers=4", "--name", "e2e")
    assert found["complete"] and len(found["slots"]) == 4
    assert {host: e2e.apps(host) for host in before} == before
    # hosts that were there are only looked at, in the last phase
    hosts = {phase["name"]: phase["hosts"] for phase in found["phases"]}
    assert hosts["Configure hosts"] == hosts["Run workers"] == 2 and found["tasks"] < 50


def test_killed_startd_comes_back_and_no_job_is_lost(e2e, tmp_path, eventually):
    batch = e2e.submit(tmp_path / "sleep", jobs=5, seconds=20)
    eventually(lambda: len(e2e.running(batch)) == 4, 30, "4 jobs run")
    victim = e2e.running(batch)[0]
    daemon = e2e.run(victim, "podman exec dodas-worker pgrep -x condor_startd")
    began = time.monotonic()
    e2e.run(victim, "podman exec dodas-worker pkill -9 -x condor_startd")
    eventually(lambda: e2e.run(victim, "podman exec dodas-worker pgrep -x condor_startd || true").strip()
               not in ("", daemon.strip()), 30, "the startd is back")  # fmt: skip
    eventually(lambda: victim in e2e.running(batch), 60 - (time.monotonic() - began), f"{victim} runs a job again")
    eventually(lambda: e2e.finished(batch) == 5, 90, "all jobs ended well")


def test_worker_that_leaves_finishes_its_job(dodas, e2e, tmp_path, eventually):
    batch = e2e.submit(tmp_path / "sleep", jobs=4, seconds=15)
    eventually(lambda: len(e2e.running(batch)) == 4, 30, "4 jobs run")
    found = dodas.json("scale", "workers=2", "--name", "e2e")
    assert found["complete"] and len(found["slots"]) == 2
    eventually(lambda: e2e.finished(batch) == 4, 30, "all jobs ended well")
    assert e2e.condor(f"condor_history {batch} -af NumJobStarts").split() == ["1"] * 4

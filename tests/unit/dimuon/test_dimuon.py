# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import dimuon
import merge
import numpy as np
import pytest
import yaml

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "dimuon"
EVENTS = 40_000
EDGES = np.linspace(*dimuon.BINS[:2], dimuon.BINS[2] + 1)
MASS = (EDGES[1:] + EDGES[:-1]) / 2
WINDOW = (merge.FIT_RANGE[0] < MASS) & (merge.FIT_RANGE[1] > MASS)


def conditions(run: int) -> dict:
    return json.loads((EXAMPLE / "conditions" / f"run_{run}.json").read_text())


def peak(counts) -> float:
    return merge.fit(MASS[WINDOW], np.array(counts)[WINDOW])["values"]["peak"]


@pytest.fixture
def web(monkeypatch):
    """An http server on loopback; `answers` maps a path to (status, body) or to a list of them, used in turn."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    answers, seen = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            answer = answers.get(self.path, (404, b""))
            if isinstance(answer, list):
                answer = answer.pop(0)
            self.send_response(answer[0])
            self.send_header("Cache-Status", "squid-1;hit;detail=match")
            self.send_header("Via", "1.1 squid-1")
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.answers, server.seen, server.url = answers, seen, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def publish(web):
    for run in range(merge.JOBS):
        web.answers[f"/dimuon/run_{run}.json"] = (200, json.dumps(conditions(run)).encode())


@pytest.fixture(scope="module")
def histograms(tmp_path_factory):
    """All jobs' histograms, made without a network."""
    folder = tmp_path_factory.mktemp("results")
    for run in range(merge.JOBS):
        result = dimuon.run_job(run, EVENTS, conditions(run))
        result |= {"process": run, "host": "worker-1", "conditions": {"cache": "squid-1;hit", "proxy": "1.1 squid-1"}}
        (folder / f"histogram_{run}.json").write_text(json.dumps(result))
    return folder


def copy(histograms, folder):
    for path in histograms.iterdir():
        (folder / path.name).write_text(path.read_text())


# --- physics


def test_muons_have_the_mass_of_their_parent():
    rng = np.random.default_rng(1)
    mass = rng.uniform(20, 150, 10_000)
    assert np.allclose(dimuon.invariant_mass(*dimuon.pairs(rng, mass)), mass, rtol=1e-9)


def test_line_shape():
    mass = dimuon.masses(np.random.default_rng(1), 400_000, background=0)
    counts, edges = np.histogram(mass, 120, (86, 96))
    half = (counts > counts.max() / 2).sum() * (edges[1] - edges[0])
    assert abs(np.median(mass) - dimuon.Z_MASS) < 0.03
    assert half == pytest.approx(dimuon.Z_WIDTH, abs=0.2)


def test_fit_finds_what_was_put_in():
    p = {"peak": 90.7, "resolution": 1.4, "acceptance": 0.3, "height": 9000, "continuum": 150, "slope": 0.03}
    counts = np.random.default_rng(1).poisson(merge.model(MASS[WINDOW], p))
    result = merge.fit(MASS[WINDOW], counts)
    for name in ("peak", "resolution", "height"):
        assert abs(result["values"][name] - p[name]) < 4 * result["errors"][name]
    assert result["chi2"] / result["ndf"] == pytest.approx(1, abs=0.4)


def test_a_job_is_deterministic_and_no_two_are_alike():
    first = dimuon.run_job(3, 5000, conditions(3))
    assert first == dimuon.run_job(3, 5000, conditions(3))
    assert first["counts"] != dimuon.run_job(4, 5000, conditions(4))["counts"]


@pytest.mark.parametrize("run", range(merge.JOBS))
def test_each_run_needs_its_own_conditions(run):
    good = dimuon.run_job(run, EVENTS, conditions(run))
    assert abs(peak(good["counts"]) - dimuon.Z_MASS) < 0.1
    assert peak(good["recorded"]) < 90
    other = dimuon.run_job(run, EVENTS, conditions((run + 1) % merge.JOBS))
    assert other["counts"] != good["counts"]


def test_conditions_are_what_the_script_writes():
    files = {path.name: json.loads(path.read_text()) for path in (EXAMPLE / "conditions").iterdir()}
    assert files == {f"run_{run}.json": dimuon.detector(run) for run in range(merge.JOBS)}
    assert len({json.dumps(value["pt_scale"]) for value in files.values()}) == merge.JOBS


# --- fetching


def test_fetch_tells_where_it_came_from(web):
    publish(web)
    found, origin = dimuon.fetch(f"{web.url}/dimuon/", 5)
    assert found == conditions(5)
    assert origin == {
        "url": f"{web.url}/dimuon/run_5.json",
        "proxy": "1.1 squid-1",
        "cache": "squid-1;hit;detail=match",
        "attempts": 1,
    }


def test_fetch_goes_through_the_proxy(web, monkeypatch):
    url = "http://conditions.service.consul:8088/dimuon"
    monkeypatch.setenv("http_proxy", web.url)
    web.answers[f"{url}/run_0.json"] = (200, json.dumps(conditions(0)).encode())
    assert dimuon.fetch(url, 0, deadline=5)[0] == conditions(0)


def test_fetch_tries_again_what_may_pass(web, monkeypatch):
    pauses = []
    monkeypatch.setattr(dimuon.time, "sleep", pauses.append)
    good = json.dumps(conditions(0)).encode()
    web.answers["/run_0.json"] = [(503, b""), (504, b""), (200, b"half {"), (200, good)]
    assert dimuon.fetch(web.url, 0)[1]["attempts"] == 4
    assert pauses == [1, 2, 4]


@pytest.mark.parametrize("status", [403, 404])
def test_fetch_gives_up_at_once_on_what_will_not_pass(web, status):
    web.answers["/run_0.json"] = (status, b"")
    with pytest.raises(dimuon.ConditionsError, match=f"run_0.json: HTTP {status}"):
        dimuon.fetch(web.url, 0)
    assert len(web.seen) == 1


def test_fetch_has_a_deadline():
    with pytest.raises(dimuon.ConditionsError, match="after 1 attempts"):
        dimuon.fetch("http://127.0.0.1:9", 0, deadline=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"run": 1},
        {"pt_scale": {"barrel": 1.0}},
        {"pt_scale": {"barrel": 0.0, "endcap": 1.0}},
        {"pt_scale": {"barrel": "x", "endcap": 1.0}},
        {"pt_scale": {"barrel": float("nan"), "endcap": 1.0}},
        {"pt_resolution": None},
    ],
)
def test_wrong_conditions_are_refused(change):
    with pytest.raises(dimuon.ConditionsError):
        dimuon.check({**conditions(0), **change}, 0)


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_conditions_of_another_shape_are_refused(value):
    with pytest.raises(dimuon.ConditionsError):
        dimuon.check(value, 0)


def test_a_job_without_conditions_fails_and_leaves_nothing(web, tmp_path, capsys):
    output = tmp_path / "h.json"
    assert dimuon.main(["0", "--conditions-url", web.url, "--output", str(output)]) == 1
    assert "no conditions for job 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the last step


def test_merge(histograms, tmp_path, capsys):
    plot = tmp_path / "dimuon.png"
    assert merge.main([str(histograms), str(plot)]) == 0
    said = capsys.readouterr().out
    assert "18 jobs on 1 hosts; conditions: 18 through a proxy, 18 from its cache" in said
    assert abs(float(re.search(r"m\(Z\) = ([\d.]+)", said)[1]) - dimuon.Z_MASS) < 0.05
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 20_000


def test_merge_notices_one_run_without_conditions(histograms, tmp_path, capsys):
    copy(histograms, tmp_path)
    path = tmp_path / "histogram_7.json"
    part = json.loads(path.read_text())
    path.write_text(json.dumps({**part, "counts": part["recorded"]}))
    assert merge.main([str(tmp_path), str(tmp_path / "p.png")]) == 1
    assert "GeV: run 7: 8" in capsys.readouterr().err


def test_merge_refuses_a_wrong_peak(histograms, tmp_path, capsys):
    for path in histograms.iterdir():
        part = json.loads(path.read_text())
        (tmp_path / path.name).write_text(json.dumps({**part, "counts": part["recorded"]}))
    assert merge.main([str(tmp_path), str(tmp_path / "p.png")]) == 1
    assert "all: 8" in capsys.readouterr().err


def test_merge_names_missing_jobs(histograms, tmp_path, capsys):
    copy(histograms, tmp_path)
    for run in (3, 11):
        (tmp_path / f"histogram_{run}.json").unlink()
    assert merge.main([str(tmp_path), str(tmp_path / "p.png")]) == 2
    assert "no histogram of jobs 3, 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"process": 1}, {"bins": [0, 1, 2]}, {"counts": [1, 2]}, {"counts": None}, {"events": None, "counts": [0] * 240}],
)
def test_merge_refuses_a_wrong_histogram(histograms, tmp_path, capsys, change):
    copy(histograms, tmp_path)
    path = tmp_path / "histogram_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert merge.main([str(tmp_path), str(tmp_path / "p.png")]) == 2
    assert "0" in capsys.readouterr().err


# --- all of it


def test_end_to_end(web, tmp_path):
    """What the submit description and job.yaml say, without HTCondor."""
    publish(web)
    (tmp_path / "results").mkdir()
    for source in ("dimuon.py", "merge.py"):
        (tmp_path / source).write_bytes((EXAMPLE / source).read_bytes())
    submit = (EXAMPLE / "dimuon.sub").read_text()
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*)$", submit, re.M))
    assert re.search(r"^queue 18$", submit, re.M)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    for process in range(merge.JOBS):
        macros = {"Process": str(process), "conditions_url": f"{web.url}/dimuon", "events": str(EVENTS)}
        arguments = settings["arguments"]
        for macro, value in macros.items():
            arguments = arguments.replace(f"$({macro})", value)
        subprocess.run(
            [sys.executable, *arguments.split()], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
        name = settings["transfer_output_files"].replace("$(Process)", str(process))
        (tmp_path / name).rename(tmp_path / "results" / name)
    assert sorted(web.seen) == sorted(f"/dimuon/run_{run}.json" for run in range(merge.JOBS))
    job = yaml.safe_load((EXAMPLE / "job.yaml").read_text())
    assert job == {
        "submit": "dimuon.sub",
        "publish": "conditions",
        "outputs": "results",
        "finish": ["python", "merge.py", "results", "dimuon.png"],
    }
    subprocess.run([sys.executable, *job["finish"][1:]], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "dimuon.png").exists()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One job of the dimuon analysis: fetch the run's conditions, take data, reconstruct Z -> mu mu, write a histogram.

The detector is simulated. It measures each run's momenta with a scale of its own, which only the conditions of
that run tell: who does not fetch them finds the Z at the wrong mass. Units are GeV and radians.

Exit status: 0 done; 1 no usable conditions.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

Z_MASS, Z_WIDTH = 91.1876, 2.4952  # PDG 2024
BINS = (60.0, 120.0, 240)  # low edge, high edge, number of bins
BARREL = 1.2  # |eta| where the endcaps begin
CHUNK = 50_000  # events in memory at a time
MAX_BYTES = 65536  # of a conditions file
DEADLINE = 180.0  # seconds for fetching, retries included


# --- the simulated experiment


def detector(run: int) -> dict:
    """What the detector does to momenta in a run. Reconstruction must not look here: it reads the conditions."""
    rng = np.random.default_rng([1991, run])
    return {
        "run": run,
        "pt_scale": {
            "barrel": round(0.96 + rng.uniform(-0.03, 0.02), 5),
            "endcap": round(0.95 + rng.uniform(-0.03, 0.02), 5),
        },
        # sigma(pt)/pt = constant (+) slope * pt, added in quadrature
        "pt_resolution": {"constant": round(0.016 + rng.uniform(0, 0.004), 5), "slope": 0.0001},
    }


def by_region(eta, values: dict):
    return np.where(np.abs(eta) < BARREL, values["barrel"], values["endcap"])


def resolution(pt, values: dict):
    return np.hypot(values["constant"], values["slope"] * pt)


def pairs(rng, mass):
    """Decay particles of these masses into two back-to-back muons; return (pt, eta, phi), each of shape (2, n)."""
    n = len(mass)
    # In the rest frame: 1 + cos^2 theta, by rejection from pairs of candidates until all are taken.
    cos = np.empty(n)
    todo = np.arange(n)
    while todo.size:
        trial = rng.uniform(-1, 1, todo.size)
        accepted = rng.uniform(0, 2, todo.size) < 1 + trial**2
        cos[todo[accepted]] = trial[accepted]
        todo = todo[~accepted]
    azimuth = rng.uniform(-np.pi, np.pi, n)
    sin = np.sqrt(1 - cos**2)
    direction = np.stack([sin * np.cos(azimuth), sin * np.sin(azimuth), cos])
    momentum = np.stack([direction, -direction], axis=1) * mass / 2  # massless muons, axes (xyz, muon, event)

    # Boost by the parent's momentum: a falling pt spectrum, rapidity of a few units.
    pt = rng.gamma(2.0, 5.0, n)
    phi = rng.uniform(-np.pi, np.pi, n)
    rapidity = rng.normal(0, 1.3, n)
    transverse = np.hypot(mass, pt)
    parent = np.stack([pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(rapidity)])
    energy = transverse * np.cosh(rapidity)
    along = np.einsum("ie,ime->me", parent, momentum)
    boosted = momentum + parent[:, None] * (along / (mass * (energy + mass)) + 0.5)
    px, py, pz = boosted
    muon_pt = np.hypot(px, py)
    return muon_pt, np.arcsinh(pz / muon_pt), np.arctan2(py, px)


def masses(rng, n: int, background: float):
    """Relativistic Breit-Wigner, with a fraction of exponential background."""
    low, high = (np.arctan((edge**2 - Z_MASS**2) / (Z_MASS * Z_WIDTH)) for edge in (40.0, 160.0))
    signal = np.sqrt(Z_MASS**2 + Z_MASS * Z_WIDTH * np.tan(rng.uniform(low, high, n)))
    continuum = 40.0 + rng.exponential(30.0, n)
    return np.where(rng.random(n) < background, continuum, signal)


def take_data(rng, n: int, truth: dict, background: float) -> dict:
    """Events as the detector records them."""
    pt, eta, phi = pairs(rng, masses(rng, n, background))
    smear = 1 + resolution(pt, truth["pt_resolution"]) * rng.normal(size=pt.shape)
    charge = np.array([[1], [-1]]) * np.where(rng.random(pt.shape) < 5e-4, -1, 1)  # a few are misidentified
    return {
        "pt": pt * by_region(eta, truth["pt_scale"]) * np.abs(smear),
        "eta": eta + rng.normal(0, 3e-4, eta.shape),
        "phi": phi + rng.normal(0, 3e-4, phi.shape),
        "charge": charge,
    }


# --- the analysis


def invariant_mass(pt, eta, phi):
    return np.sqrt(2 * pt[0] * pt[1] * (np.cosh(eta[0] - eta[1]) - np.cos(phi[0] - phi[1])))


def select(pt, eta, charge, relative_error):
    return (
        (pt.max(axis=0) > 25)
        & (pt.min(axis=0) > 15)
        & (np.abs(eta).max(axis=0) < 2.4)
        & (charge.sum(axis=0) == 0)
        & (relative_error.max(axis=0) < 0.05)
    )


def reconstruct(event: dict, conditions: dict | None):
    """Dimuon masses of the selected events; without conditions momenta are taken as they were recorded."""
    pt, eta = event["pt"], event["eta"]
    error = np.zeros_like(pt)
    if conditions:
        pt = pt / by_region(eta, conditions["pt_scale"])
        error = resolution(pt, conditions["pt_resolution"])
    return invariant_mass(pt, eta, event["phi"])[select(pt, eta, event["charge"], error)]


def run_job(process: int, events: int, conditions: dict, background: float = 0.15) -> dict:
    """Histograms of one job, corrected and (to show the difference) as recorded; the same for the same process."""
    rng = np.random.default_rng([2016, process])
    truth = detector(process)
    low, high, count = BINS
    counts, recorded = np.zeros(count, int), np.zeros(count, int)
    for start in range(0, events, CHUNK):
        event = take_data(rng, min(CHUNK, events - start), truth, background)
        counts += np.histogram(reconstruct(event, conditions), count, (low, high))[0]
        recorded += np.histogram(reconstruct(event, None), count, (low, high))[0]
    return {"events": events, "bins": list(BINS), "counts": counts.tolist(), "recorded": recorded.tolist()}


# --- conditions


class ConditionsError(Exception):
    pass


def check(conditions, run: int) -> dict:
    try:
        numbers = [*conditions["pt_scale"].values(), *conditions["pt_resolution"].values()]
        names = set(conditions["pt_scale"]), set(conditions["pt_resolution"])
        good = names == ({"barrel", "endcap"}, {"constant", "slope"}) and all(0 <= float(x) < 2 for x in numbers)
        good = good and min(conditions["pt_scale"].values()) > 0.5
    except (TypeError, KeyError, ValueError, AttributeError):
        good = False
    if not good or conditions.get("run") != run:
        raise ConditionsError(f"not the conditions of run {run}")
    return conditions


def fetch(base: str, run: int, deadline: float = DEADLINE) -> tuple[dict, dict]:
    """Conditions of a run and where they came from, through the proxy that http_proxy names.

    Tries again, with growing pauses, what may pass (no connection, a server's or proxy's 5xx).
    """
    url = f"{base.rstrip('/')}/run_{run}.json"
    opener = urllib.request.build_opener()
    end, pause, attempts = time.monotonic() + deadline, 1.0, 0
    while True:
        attempts += 1
        try:
            with opener.open(url, timeout=min(20.0, deadline)) as answer:
                body = answer.read(MAX_BYTES)
                cache = answer.headers.get("Cache-Status") or answer.headers.get("X-Cache")
                origin = {"url": url, "proxy": answer.headers.get("Via"), "cache": cache, "attempts": attempts}
            return check(json.loads(body), run), origin
        except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
            reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise ConditionsError(f"{url}: {reason}") from error
            if time.monotonic() + pause > end:
                raise ConditionsError(f"{url}: {reason} (after {attempts} attempts)") from error
        time.sleep(pause)
        pause = min(2 * pause, 20.0)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("process", type=int, help="number of the job, which is the number of the run")
    parser.add_argument("--conditions-url", default=os.environ.get("CONDITIONS_URL"), help="folder of run_N.json")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for fetching the conditions")
    parser.add_argument("--output", help="default: histogram_N.json")
    options = parser.parse_args(argv)
    if not options.conditions_url:
        parser.error("--conditions-url or CONDITIONS_URL is needed")

    started = time.process_time()
    try:
        conditions, origin = fetch(options.conditions_url, options.process, options.deadline)
    except ConditionsError as error:
        print(f"dimuon: no conditions for job {options.process}: {error}", file=sys.stderr)
        return 1
    result = {"process": options.process, "host": socket.gethostname(), "conditions": origin}
    result |= run_job(options.process, options.events, conditions)
    result["cpu_seconds"] = round(time.process_time() - started, 2)

    output = Path(options.output or f"histogram_{options.process}.json")
    partial = output.with_suffix(".new")
    partial.write_text(json.dumps(result))
    partial.replace(output)
    print(
        f"run {options.process} on {result['host']}: {sum(result['counts'])} of {options.events} events selected in "
        f"{result['cpu_seconds']} s, conditions from {origin['url']} ({origin['proxy'] or 'no proxy'})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Last step of the dimuon analysis: add the jobs' histograms, fit the Z peak, plot it, and judge the result.

The fit is a binned maximum likelihood: a relativistic Breit-Wigner of the known width, smeared by a Gaussian, over an
exponential. Exit status: 0 the peak is where it should be, in the sum and in each run; 1 it is not; 2 histograms are
missing or do not belong together.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from dimuon import BINS, Z_MASS, Z_WIDTH

JOBS = 18
TOLERANCE = 0.2  # GeV
FIT_RANGE = (75.0, 107.0)  # outside it the acceptance cuts bend the spectrum

STEPS = np.linspace(-5, 5, 101)  # of the smearing, in units of its width
GAUSS = np.exp(-(STEPS**2) / 2) / np.exp(-(STEPS**2) / 2).sum()


class HistogramError(Exception):
    pass


def read(path: Path, process: int) -> dict:
    """The histogram of one job, its counts as arrays."""
    try:
        part = json.loads(path.read_text())
        if part["process"] != process or tuple(part["bins"]) != BINS:
            raise ValueError("of another job or with other bins")
        part |= {name: np.array(part[name], int) for name in ("counts", "recorded")}
        if any(part[name].shape != (BINS[2],) for name in ("counts", "recorded")):
            raise ValueError("other bins")
        part["proxied"] = bool(part["conditions"]["proxy"])
        part["cached"] = re.search(r"\bhit\b", part["conditions"]["cache"] or "", re.I) is not None
        return {name: part[name] for name in ("counts", "recorded", "events", "host", "proxied", "cached")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HistogramError(f"{path}: {error!r}") from error


def read_all(folder: Path, jobs: int) -> list[dict]:
    """Histograms 0 to jobs - 1; HistogramError names what is missing or wrong."""
    paths = [folder / f"histogram_{process}.json" for process in range(jobs)]
    missing = [str(process) for process, path in enumerate(paths) if not path.exists()]
    if missing:
        raise HistogramError(f"{folder}: no histogram of jobs {', '.join(missing)}")
    return [read(path, process) for process, path in enumerate(paths)]


# --- the fit


def breit_wigner(mass, peak):
    """Relativistic, of fixed width, normalized to its maximum; per GeV of mass."""
    return mass * peak * Z_WIDTH**2 / ((mass**2 - peak**2) ** 2 + peak**2 * Z_WIDTH**2)


def signal(mass, p):
    # The resolution is relative; the acceptance of the cuts rises slowly with the true mass.
    stretch = 1 + p["resolution"] / Z_MASS * STEPS
    true = mass[:, None] / stretch
    return p["height"] * (breit_wigner(true, p["peak"]) * (1 + p["acceptance"] * (true / Z_MASS - 1)) / stretch) @ GAUSS


def background(mass, p):
    return p["continuum"] * np.exp(-p["slope"] * (mass - Z_MASS))


def model(mass, p):
    return signal(mass, p) + background(mass, p)


def fit(mass, counts) -> dict:
    """Maximize the Poisson likelihood by Fisher scoring with damping.

    Returns parameters and their errors, chi2 and ndf, in counts a bin and GeV.
    """
    names = ["peak", "resolution", "acceptance", "height", "continuum", "slope"]
    low = np.array([80, 0.3, -3, 0, 0, -0.1])
    high = np.array([102, 6.0, 3, np.inf, np.inf, 0.2])
    start = mass[np.argmax(counts)]
    values = np.array([start, 1.2, 0.2, 1.3 * counts.max(), max(counts.min(), 1) / 2, 0.03])

    def expected(x):
        return np.maximum(model(mass, dict(zip(names, x, strict=True))), 1e-6)

    def deviance(mu):
        return 2 * np.sum(mu - counts + np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / mu), 0))

    def gradient(x):
        step = 1e-4 * np.maximum(np.abs(x), 0.01)
        return np.stack([(expected(x + d) - expected(x - d)) / (2 * d.sum()) for d in np.diag(step)], axis=1)

    damping, mu = 1e-3, expected(values)
    best = deviance(mu)
    for _ in range(300):
        slopes = gradient(values)
        information = slopes.T @ (slopes / mu[:, None])
        force = slopes.T @ ((counts - mu) / mu)
        damped = information + damping * np.diag(np.diag(information) + 1e-12)
        trial = np.clip(values + np.linalg.solve(damped, force), low, high)
        attempt = expected(trial)
        result = deviance(attempt)
        if result < best:
            done = best - result < 1e-6
            values, mu, best, damping = trial, attempt, result, max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping *= 5
            if damping > 1e9:
                break
    slopes = gradient(values)
    errors = np.sqrt(np.diag(np.linalg.pinv(slopes.T @ (slopes / mu[:, None]))))
    chi2 = float(np.sum((counts - mu) ** 2 / mu))
    return {
        "values": dict(zip(names, map(float, values), strict=True)),
        "errors": dict(zip(names, map(float, errors), strict=True)),
        "chi2": chi2,
        "ndf": len(mass) - len(names),
    }


# --- the plot


def plot(path: Path, parts: list[dict], mass, window, result: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    p, e = result["values"], result["errors"]
    counts, recorded = (sum(part[name] for part in parts) for name in ("counts", "recorded"))
    events, step = sum(part["events"] for part in parts), mass[1] - mass[0]
    plt.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 11, "mathtext.fontset": "dejavusans", "axes.linewidth": 1.0,
        "xtick.direction": "in", "ytick.direction": "in", "xtick.top": True, "ytick.right": True,
        "xtick.minor.visible": True, "ytick.minor.visible": True, "legend.frameon": False,
    })  # fmt: skip
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 6.6), sharex=True, height_ratios=(3.4, 1), gridspec_kw={"hspace": 0.06}
    )
    unit = 10 ** (3 * (int(np.log10(counts.max())) // 3))
    scale = {1: "", 1000: r"$10^3$ "}.get(unit, r"$10^6$ ")
    fine = np.linspace(*FIT_RANGE, 600)

    top.stairs(recorded / unit, np.linspace(*BINS[:2], BINS[2] + 1), color="0.6", fill=True, alpha=0.35,
               label="Without conditions")  # fmt: skip
    top.plot(fine, background(fine, p) / unit, color="#0072b2", ls="--", lw=1.5, label="Background")
    top.plot(fine, model(fine, p) / unit, color="#d55e00", lw=2, label="Fit")
    top.errorbar(mass, counts / unit, np.sqrt(counts) / unit, fmt="o", ms=2.6, lw=0.9, color="black", zorder=5,
                 label="With conditions")  # fmt: skip
    top.axvline(Z_MASS, color="0.4", lw=0.8, ls=":")
    top.set_ylim(0, 1.18 * max(counts.max(), recorded.max()) / unit)
    top.set_ylabel(f"{scale}Events / {step:g} GeV", loc="top")
    handles, labels = top.get_legend_handles_labels()
    order = [labels.index(name) for name in ("With conditions", "Fit", "Background", "Without conditions")]
    top.legend([handles[i] for i in order], [labels[i] for i in order], loc="upper right")
    text = "\n".join([
        r"$Z \to \mu^{+}\mu^{-}$",
        rf"{len(parts)} jobs, {events / 1e6:.3g} million events",
        "",
        rf"$m_Z$ = {p['peak']:.3f} $\pm$ {e['peak']:.3f} GeV",
        rf"PDG: {Z_MASS:.3f} GeV",
        rf"resolution: {p['resolution']:.2f} GeV",
        rf"$\chi^2$/ndf = {result['chi2']:.0f}/{result['ndf']}",
    ])  # fmt: skip
    top.text(0.03, 0.96, text, transform=top.transAxes, va="top", linespacing=1.5)
    top.set_title("dodas", loc="left", fontweight="bold")
    top.set_title("simulated events", loc="right", fontsize=10, color="0.3")

    expected = model(mass[window], p)
    bottom.axhline(0, color="0.4", lw=0.8)
    for level in (-2, 2):
        bottom.axhline(level, color="0.7", lw=0.8, ls=":")
    bottom.errorbar(
        mass[window], (counts[window] - expected) / np.sqrt(expected), 1, fmt="o", ms=2.6, lw=0.7, color="black"
    )
    limit = max(4.5, 1.2 * np.abs((counts[window] - expected) / np.sqrt(expected)).max())
    bottom.set_ylim(-limit, limit)
    bottom.set_xlim(*BINS[:2])
    bottom.set_ylabel(r"(data $-$ fit) / $\sigma$", fontsize=10)
    bottom.set_xlabel(r"$m_{\mu\mu}$ [GeV]", loc="right")
    figure.align_ylabels()
    figure.savefig(path, dpi=160, bbox_inches="tight")
    plt.close(figure)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of histogram_N.json")
    parser.add_argument("plot", type=Path, help="PNG to write")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="GeV from the known mass")
    options = parser.parse_args(argv)

    edges = np.linspace(*BINS[:2], BINS[2] + 1)
    mass = (edges[1:] + edges[:-1]) / 2
    window = (mass > FIT_RANGE[0]) & (mass < FIT_RANGE[1])
    try:
        parts = read_all(options.results, options.jobs)
        for process, part in enumerate(parts):
            if part["counts"][window].sum() < 1000:
                raise HistogramError(f"job {process}: too few events for a fit")
    except HistogramError as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    result = fit(mass[window], sum(part["counts"] for part in parts)[window])
    plot(options.plot, parts, mass, window, result)

    peak, error = result["values"]["peak"], result["errors"]["peak"]
    hosts = {part["host"] for part in parts}
    proxied, cached = (sum(part[name] for part in parts) for name in ("proxied", "cached"))
    print(f"{len(parts)} jobs on {len(hosts)} hosts; conditions: {proxied} through a proxy, {cached} from its cache")
    print(
        f"m(Z) = {peak:.3f} +- {error:.3f} GeV, chi2/ndf = {result['chi2']:.0f}/{result['ndf']}, plot in {options.plot}"
    )

    # Each run as well: a few wrong ones would drown in the sum.
    peaks = [fit(mass[window], part["counts"][window])["values"]["peak"] for part in parts]
    wrong = [
        f"run {run}: {found:.2f}" for run, found in enumerate(peaks) if not abs(found - Z_MASS) <= options.tolerance
    ]
    if not abs(peak - Z_MASS) <= options.tolerance:
        wrong.insert(0, f"all: {peak:.2f}")
    if wrong:
        print(f"merge: not at {Z_MASS:.2f} +- {options.tolerance} GeV: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

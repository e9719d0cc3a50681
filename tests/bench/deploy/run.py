#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast a cluster comes, changes and goes, and what it weighs: a table, and JSON with --json FILE.

Uses the real command line on this machine, with a state directory of its own. `--first` also measures an `up` with an
empty image store and a new environment (minutes; once). Beside the figures stand the target of each, and what the
demonstration of 2016 took: 30 minutes from the request to a complete cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TARGETS = {
    "first up, images and environment included": 600,
    "up until the first job has run, images cached": 90,
    "up that changes nothing": 20,
    "scale by two workers": 20,
    "submit to running": 3,
    "down": 10,
    "footprint of the idle cluster (MB)": 1500,
}
YEAR_2016 = {"first up, images and environment included": 1800}
ONE_JOB = """executable = /bin/sleep
transfer_executable = False
arguments = 1
log = results/one.log
request_memory = 64MB
queue 1
"""


class Bench:
    """One cluster in a scratch directory, used through ./dodas."""

    def __init__(self, scratch):
        self.scratch = Path(scratch)
        self.environment = {**os.environ, "DODAS_HOME": str(self.scratch / "home")}
        self.job = self.scratch / "one"
        self.job.mkdir()
        (self.job / "job.yaml").write_text("submit: one.sub\n", encoding="utf-8")
        (self.job / "one.sub").write_text(ONE_JOB, encoding="utf-8")

    def dodas(self, *arguments, timeout=1500):
        """Run ./dodas; returns what it printed and the seconds it took. Ends the benchmark when it fails."""
        start = time.monotonic()
        done = subprocess.run([ROOT / "dodas", *arguments], env=self.environment, capture_output=True, text=True,
                              timeout=timeout, check=False)  # fmt: skip
        seconds = time.monotonic() - start
        if done.returncode != 0:
            sys.exit(f"./dodas {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout, seconds

    def round(self):
        """One life of a cluster; returns seconds (and MB) by figure, and the tasks of `scale`."""
        found = {}
        start = time.monotonic()
        self.dodas("up", "--name", "bench")
        self.dodas("submit", str(self.job), "--wait")
        found["up until the first job has run, images cached"] = time.monotonic() - start
        time.sleep(5)
        found["footprint of the idle cluster (MB)"] = self.footprint()
        printed, found["up that changes nothing"] = self.dodas("up", "--name", "bench")
        if "changed=0" not in printed:
            sys.exit(f"a second up changed something:\n{printed}")
        found["submit to running"] = self.submit_to_running()
        printed, found["scale by two workers"] = self.dodas("scale", "workers=4", "--json")
        tasks = json.loads(printed)["tasks"]
        _, found["down"] = self.dodas("down")
        return found, tasks

    def submit_to_running(self):
        """Seconds from condor_submit to the job's execution, by the job's own log; the median of 5."""
        took = []
        for _ in range(5):
            printed, _ = self.dodas("submit", str(self.job), "--wait", "--json")
            log = Path(json.loads(printed)["outputs"], "one.log").read_text(encoding="utf-8")
            stamps = [re.search(rf"^{code} .*?(\d+):(\d+):(\d+)", log, re.M).groups() for code in ("000", "001")]
            seconds = [int(h) * 3600 + int(m) * 60 + float(s) for h, m, s in stamps]
            took.append((seconds[1] - seconds[0]) % 86400)
        return statistics.median(took)

    def footprint(self):
        """Memory in MB (proportional set size) of every process of the hosts."""
        store = self.scratch / "home" / "local"
        podman = ["podman", "--root", str(store / "storage"), "--runroot", _runroot(store)]
        podman += ["ps", "-q", "--format", "{{.Pid}}"]
        environment = {**os.environ, "CONTAINERS_CONF": str(store / "containers.conf")}
        printed = subprocess.run(podman, env=environment, capture_output=True, text=True, check=True).stdout
        children = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(fields[1], []).append(status.parent.name)
        pending, total = printed.split(), 0
        while pending:
            process = pending.pop()
            pending += children.get(process, [])
            try:
                rollup = Path("/proc", process, "smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue
            total += int(re.search(r"^Pss: +(\d+)", rollup, re.M).group(1))
        return total / 1024


def _runroot(store):
    """Where the command line runs podman: asked from the library, which decides it."""
    sys.path.insert(0, str(ROOT / "collections"))
    from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman

    command = Podman(store.parent).command("ps")
    return command[command.index("--runroot") + 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", action="store_true", help="also measure the very first up")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures = {name: [] for name in TARGETS}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(scratch)
        try:
            if options.first:
                images, cache = Path(scratch) / "images", Path(scratch) / "cache"
                bench.environment |= {"DODAS_IMAGES": str(images), "DODAS_CACHE": str(cache)}
                _, seconds = bench.dodas("up", "--yes", "--name", "bench")
                figures["first up, images and environment included"].append(seconds)
                bench.dodas("down")
            else:
                bench.dodas("images", "build", "--yes")
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
                found, tasks = bench.round()
                for name, value in found.items():
                    figures[name].append(value)
        finally:
            subprocess.run([ROOT / "dodas", "down"], env=bench.environment, capture_output=True, check=False)
            if options.first:
                mounts = Path("/proc/self/mounts").read_text().splitlines()
                mounted = [line.split()[1] for line in mounts if scratch in line]
                for path in reversed(mounted):
                    subprocess.run(["umount", path], check=False)
                shutil.rmtree(Path(scratch) / "images", ignore_errors=True)
    print(f"{'':<50}{'median':>9}{'target':>9}{'2016':>9}   all")
    for name, values in figures.items():
        if values:
            peer = f"{YEAR_2016[name]:>9}" if name in YEAR_2016 else f"{'-':>9}"
            shown = " ".join(f"{value:.1f}" for value in values)
            print(f"{name:<50}{statistics.median(values):>9.1f}{TARGETS[name]:>9}{peer}   {shown}")
    print(f"scale by two workers ran {tasks} tasks, on the controller and the new hosts (and probes on all)")
    if options.json:
        result = {
            name: {"median": statistics.median(v), "target": TARGETS[name], "all": v}
            for name, v in figures.items()
            if v
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

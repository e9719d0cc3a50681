# SPDX-License-Identifier: Apache-2.0
"""Clusters as a person has them: through the command line, with a home of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman

ROOT = Path(__file__).parents[2]


def wait_for(condition, seconds, what):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)
    return found


class Dodas:
    """The command line, with a home of its own."""

    root = ROOT

    def __init__(self, home):
        self.home = home

    def environment(self, **more):
        return {**os.environ, "DODAS_HOME": str(self.home), **{key: str(value) for key, value in more.items()}}

    def __call__(self, *arguments, status=0, timeout=300, **more):
        """Run it; its output. `status`: how it must end, None for however."""
        done = subprocess.run(
            [ROOT / "dodas", *arguments], env=self.environment(**more), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert status in (None, done.returncode), f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments, **options):
        return json.loads(self(*arguments, "--json", **options).stdout)

    def start(self, *arguments):
        """Start it in a session of its own."""
        return subprocess.Popen(
            [ROOT / "dodas", *arguments], env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def podman(self, *arguments):
        """What is in the store of the hosts."""
        podman = Podman(self.home)
        podman.configure()
        return podman.run(*arguments)


class Cluster:
    """A deployment, and its hosts."""

    def __init__(self, dodas, name, front="front-1"):
        self.dodas, self.name, self.front = dodas, name, front

    def run(self, host, command, data=None, check=True):
        """What a shell command printed on a host."""
        arguments = [ROOT / "dodas", "ssh", "--name", self.name, host, command]
        done = subprocess.run(arguments, env=self.dodas.environment(), input=data or "", capture_output=True, text=True,
                              timeout=120, check=False)  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def condor(self, command):
        return self.run(self.front, f"podman exec -u dodas dodas-htcondor {command}")

    def slots(self):
        return self.condor("condor_status -const 'SlotType==\"Partitionable\"' -af Name").split()

    def apps(self, host):
        """Container and time of its start, by app."""
        shape = "{{.Names}} {{.ID}} {{.StartedAt}}"
        return dict(line.split(maxsplit=1) for line in self.run(host, f"podman ps --format '{shape}'").splitlines())

    def submit(self, folder, jobs, seconds):
        """Submit jobs that sleep; HTCondor's number of them."""
        folder.mkdir()
        (folder / "job.yaml").write_text("submit: sleep.sub\n", encoding="utf-8")
        (folder / "sleep.sub").write_text(
            f"executable = /bin/sleep\ntransfer_executable = False\narguments = {seconds}\nlog = sleep.log\n"
            f"request_cpus = 1\nrequest_memory = 64\nqueue {jobs}\n",
            encoding="utf-8",
        )
        return self.dodas.json("submit", str(folder), "--name", self.name)["cluster"]

    def running(self, batch):
        """Hosts that run jobs of the batch, one entry a job."""
        found = self.condor(f"condor_q {batch} -const JobStatus==2 -af RemoteHost")
        return re.findall(r"^\w+@([a-z0-9-]+)", found, re.M)

    def finished(self, batch):
        """How many jobs of the batch ended well; all others are still in the queue."""
        ended = self.condor(f"condor_history {batch} -af ExitCode").split()
        assert set(ended) <= {"0"}
        return len(ended)

# SPDX-License-Identifier: Apache-2.0
"""Runs a folder of jobs on a cluster: copy, publish, submit, watch the queue, fetch the results, finish.

`job.yaml` in the folder says how; examples/README.md explains its keys.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dodas.errors import DodasError, InputError

JOBS = "/var/lib/dodas/htcondor/jobs"
OWNER = "dodas"  # user of the image
CONDITIONS = "/var/lib/dodas/conditions"
CONDITIONS_URL = "http://conditions.service.consul:8088"
STATES = {1: "idle", 2: "running", 3: "removed", 4: "completed", 5: "held", 6: "transferring", 7: "suspended"}
HELD = 5
PAUSE = 0.5  # seconds between two looks at the queue


class JobFile(BaseModel):
    """job.yaml."""

    model_config = ConfigDict(extra="forbid")

    submit: str
    publish: str | None = None
    outputs: str = "results"
    prepare: list[str] | None = None
    finish: list[str] | None = None


def read(folder):
    """The job file of a folder. Raises InputError that names the file and the key."""
    path = Path(folder) / "job.yaml"
    try:
        found = JobFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        hint = "examples/README.md shows what a folder of jobs needs"
        raise InputError(f"{path}: there is no such file; {hint}") from None
    except (yaml.YAMLError, OSError) as exc:
        raise InputError(f"{path}: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        one = exc.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}") from exc
    for name in (found.submit, found.publish):
        if name and not (path.parent / name).exists():
            raise InputError(f"{path}: {name} does not exist")
    return found


class Batch:
    """One submission of a folder: `cluster` is HTCondor's number, `jobs` how many processes it has."""

    def __init__(self, deployment, folder):
        self.deployment = deployment
        self.folder = Path(folder).resolve()
        self.file = read(self.folder)
        self.front = deployment.host_of("htcondor")
        self.name = re.sub(r"[^a-z0-9-]", "-", self.folder.name.lower()) + time.strftime("-%Y%m%d-%H%M%S")
        self.remote = f"{JOBS}/{self.name}"
        self.cluster = None
        self.jobs = 0

    def submit(self):
        """Copy the folder to the schedd, publish what is to be published, and submit. Raises DodasError."""
        arguments = []
        if self.file.prepare and self._run(self.file.prepare) != 0:
            raise DodasError(f"the first step failed: {' '.join(self.file.prepare)}")
        if self.file.publish:
            origin = self.deployment.host_of("conditions")
            self._copy(origin, "conditions", self.folder / self.file.publish, f"{CONDITIONS}/{self.name}")
            arguments.append(f"conditions_url={CONDITIONS_URL}/{self.name}")
        self._copy(self.front, "htcondor", self.folder, self.remote, OWNER)
        submit = shlex.join(["condor_submit", "-terse", *arguments, self.file.submit])
        printed = self._condor(f"mkdir -p {shlex.quote(self.file.outputs)} && {submit}")
        found = re.search(r"^(\d+)\.(\d+) - \d+\.(\d+)$", printed, re.M)
        if not found:
            raise DodasError(f"condor_submit answered: {printed.strip()}")
        self.cluster, self.jobs = int(found.group(1)), int(found.group(3)) - int(found.group(2)) + 1

    def wait(self, timeout, show=True):
        """Watch the queue until every job has left it; a bar shows it.

        Raises DodasError for held jobs and time-outs.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[detail]}"), TimeElapsedColumn())  # fmt: skip
        deadline = time.monotonic() + timeout
        with Progress(*columns, disable=not show) as progress:
            bar = progress.add_task(f"cluster {self.cluster}", total=self.jobs, detail="")
            while True:
                queue = self._queue()
                counts = Counter(STATES.get(state, "other") for state, _ in queue)
                detail = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
                progress.update(bar, completed=self.jobs - len(queue), detail=detail or "done")
                held = [reason for state, reason in queue if state == HELD]
                if held:
                    raise DodasError(f"{len(held)} of {self.jobs} jobs are held: {held[0]}")
                if not queue:
                    return
                if time.monotonic() > deadline:
                    reason = self._why_idle()
                    found = f"{detail} after {timeout} s" + (f" ({reason})" if reason else "")
                    raise DodasError(f"cluster {self.cluster}: {found}; it goes on: ./dodas queue")
                time.sleep(PAUSE)

    def results(self):
        """How the jobs ended: {"done": n, "failed": n, "workers": {machine: n}}."""
        attributes = "ExitCode ExitBySignal LastRemoteHost"
        ended = self._condor(f"condor_history {self.cluster} -limit {self.jobs} -af {attributes}").splitlines()
        good = [line for line in ended if line.split()[:2] == ["0", "false"]]
        machines = Counter(re.sub(r".*@([^.]+).*", r"\1", line.split()[2]) for line in ended)
        return {"done": len(good), "failed": self.jobs - len(good), "workers": dict(machines)}

    def fetch(self):
        """Copy the outputs back into the folder; returns where they are."""
        words = ("tar", "-C", self.remote, "-c", self.file.outputs)
        data = self.deployment.execute(self.front, "htcondor", *words, data=b"", timeout=600)
        # GNU tar lets nothing lead out of the folder; Python's filters for that are missing in Debian 12.
        command = ["tar", "-C", self.folder, "--no-same-owner", "-x"]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode != 0:
            raise DodasError(f"{self.file.outputs} cannot be written: {done.stderr.decode(errors='replace').strip()}")
        return self.folder / self.file.outputs

    def finish(self):
        """Run the last step on this machine, in the folder; returns its exit status."""
        return self._run(self.file.finish) if self.file.finish else 0

    def _run(self, words):
        program, *arguments = words
        command = [sys.executable if program == "python" else program, *arguments]
        return subprocess.run(command, cwd=self.folder, check=False).returncode

    def _queue(self):
        printed = self._condor(f"condor_q {self.cluster} -af:V JobStatus HoldReason")
        lines = (line.split(maxsplit=1) for line in printed.splitlines() if line.strip())
        return [(int(words[0]), words[1].strip('"') if len(words) > 1 else "") for words in lines]

    def _why_idle(self):
        """What keeps its first idle job from a slot; "" if there is none."""
        words = "-constraint 'JobStatus == 1' -limit 1 -json -attributes ProcId,NumShadowStarts"
        try:
            found = json.loads(self._condor(f"condor_q {self.cluster} {words}") or "[]")
            if not found:
                return ""
            analysis = self._condor(f"condor_q -better-analyze {self.cluster}.{found[0]['ProcId']}")
        except DodasError as exc:  # the time-out is what the caller has to hear of
            return f"HTCondor does not say why: {exc}"
        return why_idle(analysis, found[0].get("NumShadowStarts", 0))

    def _condor(self, command):
        return self.deployment.execute(self.front, "htcondor", "sh", "-c", command, user=OWNER, folder=self.remote)

    def _copy(self, host, app, source, target, owner=""):
        """Copy a folder into an app's state as a whole, without what an earlier run brought back."""
        leave_out = {self.file.outputs, "__pycache__"}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(source, ".", filter=lambda one: None if {*Path(one.name).parts[:1]} & leave_out else one)
        where = shlex.quote(target)
        script = f"mkdir -p {where} && tar -C {where} --no-same-owner -x"
        script += f" && chown -R {owner}: {where}" if owner else ""
        self.deployment.execute(host, app, "sh", "-c", script, data=buffer.getvalue(), timeout=600)


def why_idle(analysis, starts):
    """In a few words, why a job waits; "" if that cannot be told.

    `analysis` is what `condor_q -better-analyze` says of it, `starts` how often a shadow was started for it.
    """
    counts = {what: int(number) for number, what in re.findall(r"^ +(\d+) (.+?) *$", analysis, re.M)}
    if "are able to run your job" not in counts:
        return ""
    refused = counts["are rejected by your job's requirements"]
    refuse = counts["reject your job because of their own requirements"]
    busy = counts["match and are already running your jobs"] + counts["match but are serving other users"]
    free = counts["are able to run your job"]
    if not refused + refuse + busy + free:
        return "the pool has no slots"
    never = re.findall(r"^\[\d+\] +0 +(.+?) *$", analysis, re.M)
    if never:
        return f"no slot fulfils {' and '.join(never)}"
    if starts:
        return f"its first idle job was started before and came back, starts: {starts}; its log says why"
    if free:
        return f"slots that fit and are free: {free}; /var/lib/dodas/htcondor/log/SchedLog says why none took it"
    if busy:
        return "every slot that fits is busy"
    return f"no slot fits: its requirements refuse {refused}, the START of their startd {refuse}"


def queue(deployment):
    """The jobs of all users that are in the queue: [{id, owner, state, host, command}]."""
    attributes = "ClusterId ProcId Owner JobStatus RemoteHost Cmd"
    words = ("condor_q", "-allusers", "-af", *attributes.split())
    printed = deployment.execute(deployment.host_of("htcondor"), "htcondor", *words)
    found = []
    for line in printed.splitlines():
        cluster, process, owner, state, host, command = line.split(maxsplit=5)
        host = "" if host == "undefined" else re.sub(r".*@([^.]+).*", r"\1", host)
        found.append({"id": f"{cluster}.{process}", "owner": owner, "state": STATES.get(int(state), state),
                      "host": host, "command": command})  # fmt: skip
    return found

# SPDX-License-Identifier: Apache-2.0
"""Ansible itself, as a process, against this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent


@dataclasses.dataclass
class Run:
    """A playbook that was run. results: of its tasks, in order; output: all that it printed."""

    status: int
    output: str
    results: list


class Ansible:
    """Plays on localhost with the connection local, all that they leave below a folder. environment: added to ours."""

    def __init__(self, folder: Path, **environment: str):
        self.folder = folder
        places = {
            "ANSIBLE_COLLECTIONS_PATH": str(PROJECT / "collections"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "HOME": str(folder),
            **environment,
        }
        self.environment = {**os.environ, **places}
        self.environment.pop("ANSIBLE_CONFIG", None)

    def command(self, tasks, *options) -> list[str]:
        """The command that runs [(module, parameters)] as one play; more keys of a task may be a third."""
        given = [
            {module: parameters, "ignore_errors": True, "register": f"r{i}", **dict(*more)}
            for i, (module, parameters, *more) in enumerate(tasks)
        ]
        results = "{{ [" + ", ".join(f"r{i}" for i in range(len(tasks))) + "] }}"
        keep = {"ansible.builtin.copy": {"dest": str(self._results()), "content": results},
                "check_mode": False, "diff": False}  # fmt: skip
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": [*given, keep]}]
        path = self.folder / "play.json"
        path.write_text(json.dumps(play))
        return [str(PROGRAMS / "ansible-playbook"), "-i", "localhost,", "-c", "local", *options, str(path)]

    def play(self, *tasks, options=()) -> Run:
        """Run tasks to the end, also after one that failed."""
        done = subprocess.run(
            self.command(tasks, *options),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return self.ended(done.returncode, done.stdout + done.stderr)

    def ended(self, status: int, output: str) -> Run:
        """The Run of a command that somebody else ran."""
        assert status == 0, output
        assert "Traceback" not in output, output
        return Run(status, output, json.loads(self._results().read_text()))

    def _results(self):
        return self.folder / "results.json"

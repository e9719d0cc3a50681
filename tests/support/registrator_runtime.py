# SPDX-License-Identifier: Apache-2.0
"""The registrator: as a library, and as a process with a configuration of its own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "roles/registrator/files/dodas_registrator.py"


def library():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("dodas_registrator", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def eventually(condition, seconds=10):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return found


class Registrator:
    """One registrator. consul: of consul_runtime; marathon: as its configuration has it; more: settings of its own."""

    def __init__(self, folder, consul, marathon, name="master-1", url=None, **more):
        consul_part = {"url": url or consul.url, "token": consul.tokens.get("registrator", "")}
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.json"
        self.config.touch(0o600)
        self.config.write_text(json.dumps({"name": name, "consul": consul_part, "marathon": marathon, **more}))
        self.process = None

    def start(self):
        command = [sys.executable, "-u", str(PROGRAM), str(self.config)]
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        return self

    def stop(self, number=signal.SIGTERM):
        """End it as systemd does, or as a crash with SIGKILL; its exit status."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise

    def says(self, text):
        return text in self.log.read_text()

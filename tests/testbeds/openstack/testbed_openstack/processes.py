# SPDX-License-Identifier: Apache-2.0
"""A testbed's processes: started in sessions of their own, known by pid and start time, stopped all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from testbed_openstack.place import Place, TestbedError

TAIL = 15  # lines of a log in an error


class Processes:
    """Those of one testbed, as STATE/processes.json has them."""

    def __init__(self, place: Place):
        self.place = place
        self.file = place.state / "processes.json"
        self._started: dict[str, subprocess.Popen] = {}

    def known(self) -> dict[str, dict]:
        """{name: {"pid", "start"}}, whether they live or not."""
        try:
            return json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}

    def start(self, name: str, command: list, environment: dict[str, str]) -> None:
        """Its output goes to logs/NAME.out."""
        with open(self.place.logs / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.place.state,
                start_new_session=True,
            )
        self._started[name] = process
        known = {**self.known(), name: {"pid": process.pid, "start": start_time(process.pid)}}
        partial = self.file.with_suffix(".new")
        partial.write_text(json.dumps(known, indent=1) + "\n")
        partial.replace(self.file)

    def alive(self, name: str) -> bool:
        if name in self._started:
            self._started[name].poll()  # one that has ended is no zombie then
        return lives(**self.known()[name])

    def check(self) -> None:
        """Raises TestbedError with the end of its log when a process has died."""
        for name in self.known():
            if not self.alive(name):
                raise TestbedError(f"{name} died while the testbed started\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of what it has printed and of its log, the errors among them first."""
        parts = []
        for path in (self.place.logs / f"{name}.out", self.place.logs / f"{name}.log"):
            if path.exists() and (lines := path.read_text(errors="replace").splitlines()):
                parts += [f"--- {path}", *lines[-TAIL:]]
        return "\n".join(parts)

    def stop(self, seconds: float = 15) -> None:
        """All of them and their children; those that do not end in time are killed."""
        sessions = {name: one["pid"] for name, one in self.known().items() if _ours(**one)}
        # The database last: the others write to it until they end.
        for group in ([name for name in sessions if name != "mariadb"], ["mariadb"]):
            leaders = [sessions[name] for name in group if name in sessions]
            _end(leaders, signal.SIGTERM, seconds)
            left = _end(leaders, signal.SIGKILL, 10)
            if left:
                raise TestbedError(f"processes do not end, even killed: {left}")
        for process in self._started.values():
            process.poll()
        self.file.unlink(missing_ok=True)

    def status(self) -> list[dict]:
        """One entry a process: name, pid, alive, memory in MB (proportional, with its children), url."""
        rows = []
        for name, one in self.known().items():
            alive = lives(**one)
            memory = sum(_memory(pid) for pid in _members(one["pid"])) if alive else 0
            url = self.place.url(name) if name in self.place.ports else None
            rows.append({"name": name, "pid": one["pid"], "alive": alive, "memory_mb": memory // 1024, "url": url})
        return rows


def start_time(pid: int) -> int:
    """When the process started, in ticks since the machine did; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def lives(pid: int, start: int) -> bool:
    """Whether this very process lives, not another one that got its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == start and fields[0] not in "ZX"


def _ours(pid: int, start: int) -> bool:
    """Whether the process lives, or children of it that it left behind: its number is free for nobody else then."""
    return start_time(pid) in (0, start) and bool(_members(pid))


def _members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _memory(pid: int) -> int:
    """kB, what it shares with others in proportion."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _end(leaders: list[int], number: int, seconds: float) -> list[int]:
    """Signal the sessions; return the processes that are left of them."""
    for leader in leaders:
        # A server that is told to end ends its children; who is dead or killed cannot.
        members = _members(leader)
        for pid in [leader] if number == signal.SIGTERM and leader in members else members:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    deadline = time.monotonic() + seconds
    while left := [pid for leader in leaders for pid in _members(leader)]:
        if time.monotonic() > deadline:
            break
        for leader in leaders:
            try:
                os.waitpid(leader, os.WNOHANG)
            except ChildProcessError:
                continue
        time.sleep(0.05)
    return left

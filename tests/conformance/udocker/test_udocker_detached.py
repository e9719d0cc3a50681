# SPDX-License-Identifier: Apache-2.0
"""Containers in the background: what udocker 1.3.17 cannot do (issues 283 and 427). Logs, restarts, health, ends."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from udocker_program import Program, until


@pytest.fixture(scope="module", params=[True, False], ids=["subids", "one-id"])
def udocker(request):
    with Program(subids=request.param, name="det") as made:
        yield made


@pytest.fixture(autouse=True)
def _clear(udocker):
    yield
    udocker.clear()
    until(lambda: not _left(udocker), "no process is left")


def _left(udocker):
    return [
        line
        for line in udocker.person.processes().values()
        if "monitor" in line or "sleep" in line or "udocker" in line
    ]


def state(udocker, name):
    return json.loads((udocker.store / "containers" / name / "state.json").read_text())


def status(udocker, name):
    found = state(udocker, name)
    return found["status"], found.get("code")


def monitor_of(udocker, name):
    return state(udocker, name)["keeper"]["pid"]


def test_issues_283_and_427_run_in_the_background(udocker):
    began = time.monotonic()
    identifier = udocker.out("run", "-d", "--name=back", "busybox", "sh", "-c", "echo hello; exec sleep 1000")
    assert time.monotonic() - began < 20
    assert len(identifier) == 36
    until(lambda: udocker.out("logs", "back") == "hello", "the log has what was written")
    assert status(udocker, "back")[0] == "running"
    assert udocker.out("exec", "back", "cat", "/proc/1/comm")
    udocker.out("stop", "-t", "5", "back")
    assert status(udocker, "back") == ("exited", 143)
    assert udocker.out("logs", "back") == "hello"


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_executed_is_told_at_once(udocker, command, code):
    done = udocker("run", "-d", "--name=failed", "busybox", command)
    assert done.returncode == code
    assert done.stdout == ""
    assert command in done.stderr
    assert status(udocker, "failed") == ("exited", code)
    assert udocker("run", "-d", "--rm", "busybox", command).returncode == code
    assert len(udocker.containers()) == 1


def test_it_survives_whoever_started_it(udocker):
    """Neither the end of a session nor a terminal's hang-up reaches it, and nothing of it holds a pipe open."""
    process = udocker.start("run", "-d", "--name=stays", "busybox", "sleep", "1000", stdout=subprocess.PIPE)
    process.stdout.read()  # ends only if nobody else has it
    process.wait(60)
    monitor = Path("/proc", str(monitor_of(udocker, "stays")))
    fields = (monitor / "stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) not in (os.getpid(), process.pid)
    assert int(fields[3]) != os.getsid(0)
    assert int(fields[4]) == 0  # no terminal
    opened = [os.readlink(path) for path in (monitor / "fd").iterdir()]
    assert not [path for path in opened if "pts" in path or "locks" in path], opened
    assert os.readlink(monitor / "cwd") == "/"
    assert status(udocker, "stays")[0] == "running"


def test_a_killed_monitor_takes_its_container_with_it_and_is_seen(udocker):
    udocker.out("run", "-d", "--name=orphan", "--restart=always", "busybox", "sleep", "1000")
    os.kill(monitor_of(udocker, "orphan"), signal.SIGKILL)
    until(lambda: not _left(udocker), "the container ends with its monitor")
    assert json.loads(udocker.docker("inspect", "orphan").stdout)[0]["State"]["Status"] == "exited"
    assert udocker("exec", "orphan", "true").returncode == 1
    udocker.out("start", "orphan")
    assert udocker.out("exec", "orphan", "echo", "again") == "again"
    os.kill(monitor_of(udocker, "orphan"), signal.SIGKILL)
    udocker.out("rm", "-f", "orphan")


def test_rm_removes_it_at_its_end(udocker):
    script = "while ! test -e /go; do sleep 0.05; done; exit 5"
    udocker.out("run", "-d", "--rm", "--name=brief", "busybox", "sh", "-c", script)
    waiting = udocker.start("wait", "brief", stdout=subprocess.PIPE, text=True)
    monitor = monitor_of(udocker, "brief")

    def sockets():
        paths = [f"/proc/{monitor}/fd/{number}" for number in os.listdir(f"/proc/{monitor}/fd")]
        return [path for path in paths if os.path.lexists(path) and "socket" in os.readlink(path)]

    until(lambda: len(sockets()) == 2, "somebody waits")
    udocker.out("exec", "brief", "touch", "/go")
    assert waiting.communicate(timeout=60)[0] == "5\n"
    until(lambda: not udocker.containers(), "it goes")
    assert not os.path.lexists(udocker.store / "containers/brief")


# Logs


def test_logs_are_exact_for_both_streams(udocker):
    data = os.urandom(50_000) + "ä☕\n".encode() * 100 + b"\xff\x00\r\nno end"
    folder = udocker.folder("logs")
    (folder / "data").write_bytes(data)
    (folder / "data").chmod(0o644)
    udocker.out("run", "--name=log", "-d", "-v", f"{folder}:/d", "busybox", "sh", "-c", "cat /d/data; echo error >&2")
    udocker.out("wait", "log")
    done = udocker("logs", "log", text=False)
    assert done.stdout == data
    assert done.stderr == b"error\n"
    records = [json.loads(line) for line in (udocker.store / "containers/log/log").read_text().splitlines()]
    assert {record["stream"] for record in records} == {"stdout", "stderr"}
    assert all(set(record) == {"log", "stream", "time"} for record in records)


def test_parts_of_the_log(udocker):
    udocker.out(
        "run", "-d", "--name=parts", "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; printf rest"
    )
    udocker.out("wait", "parts")
    assert udocker.out("logs", "--tail", "2", "parts") == "line 5\nrest"
    assert udocker.out("logs", "--tail", "0", "parts") == ""
    assert udocker.out("logs", "--tail", "100", "parts").startswith("line 1\n")
    stamped = udocker.out("logs", "-t", "parts").splitlines()
    assert len(stamped) == 6
    assert stamped[0].endswith("Z line 1")
    assert udocker.out("logs", "--since", "1h", "parts").count("line") == 5
    assert udocker.out("logs", "--until", "1h", "parts") == ""
    assert udocker.out("logs", "--since", stamped[0].split()[0], "parts").count("line") == 5


def test_logs_are_followed_to_the_end(udocker):
    script = "echo one; while ! test -e /go; do sleep 0.05; done; echo two; printf three"
    udocker.out("run", "-d", "--name=follow", "busybox", "sh", "-c", script)
    process = udocker.start("logs", "-f", "follow", stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    udocker.out("exec", "follow", "touch", "/go")
    assert process.stdout.read() == "two\nthree"
    assert process.wait(60) == 0


def test_a_prompt_is_in_the_log_before_its_line_ends(udocker):
    udocker.out(
        "run", "-d", "-i", "--name=prompt", "busybox", "sh", "-c", "printf 'name? '; read name; echo hello $name"
    )
    until(lambda: udocker.out("logs", "prompt") == "name? ", "the prompt is there")


def test_logs_are_rotated_and_can_be_left_out(udocker):
    script = "i=0; while test $i -lt 3000; do echo line $i; i=$((i+1)); done"
    udocker.out(
        "run",
        "-d",
        "--name=rotated",
        "--log-opt",
        "max-size=20k",
        "--log-opt",
        "max-file=3",
        "busybox",
        "sh",
        "-c",
        script,
    )
    udocker.out("wait", "rotated")
    folder = udocker.store / "containers" / os.readlink(udocker.store / "containers/rotated")
    sizes = {path.name: path.stat().st_size for path in folder.glob("log*")}
    assert set(sizes) == {"log", "log.1", "log.2"}
    assert max(sizes.values()) < 40_000
    assert udocker.out("logs", "rotated").endswith("line 2999")
    udocker.out("run", "-d", "--name=silent", "--log-driver=none", "busybox", "echo", "hello")
    udocker.out("wait", "silent")
    assert "no log" in udocker("logs", "silent").stderr


def test_a_log_in_the_foreground_where_it_is_asked_for(udocker):
    done = udocker(
        "run", "--name=seen", "--log-driver=json-file", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert udocker.out("logs", "seen") == "out"


def test_a_slow_reader_gets_all_of_it(udocker):
    """More than pipes hold, read long after the container has ended."""
    script = "head -c 1150000 /dev/zero; touch /ended"
    process = udocker.start(
        "run", "--name=slow", "--log-driver=json-file", "busybox", "sh", "-c", script, stdout=subprocess.PIPE
    )
    until(lambda: (udocker.store / "containers/slow/upper/ended").exists(), "it has written all")
    time.sleep(2.5)  # longer than a monitor waits for what comes late
    assert len(process.stdout.read()) == 1_150_000
    assert process.wait(60) == 0


# Ends


def test_stop_asks_then_kills(udocker):
    udocker.out(
        "run",
        "-d",
        "--name=polite",
        "busybox",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    )
    until(lambda: udocker.out("logs", "polite") == "ready", "it is ready")
    udocker.out("stop", "polite")
    assert status(udocker, "polite") == ("exited", 3)
    assert udocker.out("logs", "polite") == "ready\nbye"
    udocker.out(
        "run", "-d", "--name=deaf", "busybox", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    )
    until(lambda: udocker.out("logs", "deaf") == "ready", "it is ready")
    began = time.monotonic()
    udocker.out("stop", "-t", "1", "deaf")
    assert 1 <= time.monotonic() - began < 15
    assert status(udocker, "deaf") == ("exited", 137)
    assert udocker("stop", "deaf").returncode == 0


def test_stop_signal_and_kill(udocker):
    script = "trap 'echo usr1; exit 4' USR1; trap 'echo hup' HUP; echo ready; while :; do sleep 0.05; done"
    udocker.out("run", "-d", "--name=own", "--stop-signal", "USR1", "busybox", "sh", "-c", script)
    until(lambda: udocker.out("logs", "own") == "ready", "it is ready")
    udocker.out("kill", "-s", "HUP", "own")
    until(lambda: udocker.out("logs", "own") == "ready\nhup", "it got HUP")
    assert udocker("kill", "-s", "NONSENSE", "own").returncode == 1
    udocker.out("stop", "own")
    assert status(udocker, "own") == ("exited", 4)
    assert udocker("kill", "own").returncode == 1
    udocker.out("start", "own")
    udocker.out("kill", "own")
    assert udocker.out("wait", "own") == "137"


def test_rm_of_a_running_container_needs_force(udocker):
    udocker.out("run", "-d", "--name=runs", "busybox", "sh", "-c", "trap '' TERM; sleep 1000")
    done = udocker("rm", "runs")
    assert done.returncode == 1
    assert "running" in done.stderr
    udocker.out("rm", "-f", "runs")
    assert not udocker.containers()


def test_restart_and_start_again(udocker):
    udocker.out("run", "-d", "--name=twice", "busybox", "sh", "-c", "echo began; exec sleep 1000")
    until(lambda: udocker.out("logs", "twice") == "began", "it began")
    first = monitor_of(udocker, "twice")
    udocker.out("restart", "-t", "1", "twice")
    until(lambda: udocker.out("logs", "twice") == "began\nbegan", "it began again")
    assert monitor_of(udocker, "twice") != first
    assert udocker("run", "-d", "twice", "true").returncode == 125
    assert udocker("start", "twice").returncode == 0


def test_all_processes_of_a_container_end_with_its_first(udocker):
    udocker.out(
        "run",
        "-d",
        "--name=many",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3; do (setsid sleep 999 &); done; exec sleep 1000",
    )
    until(lambda: sum(line.startswith("sleep 999") for line in udocker.person.processes().values()) == 3, "more run")
    udocker.out("stop", "-t", "1", "many")
    until(lambda: not _left(udocker), "all have ended")


def test_no_zombies(udocker):
    script = (
        "for i in 1 2 3 4 5; do (true &); done; for i in 1 2 3; do sh -c 'sleep 0.01 & exec true'; done; sleep 1000"
    )
    udocker.out("run", "-d", "--name=reaped", "busybox", "sh", "-c", script)

    def zombies():
        return [
            line for line in udocker.out("exec", "reaped", "ps", "-o", "stat,comm").splitlines() if line.startswith("Z")
        ]

    until(lambda: not zombies(), "orphans are reaped")


# Restarts


def test_on_failure_so_many_times(udocker):
    udocker.out("run", "-d", "--name=fails", "--restart=on-failure:2", "busybox", "sh", "-c", "echo try; exit 6")
    until(lambda: status(udocker, "fails") == ("exited", 6) and state(udocker, "fails")["restarts"] == 2, "it gives up")
    assert udocker.out("logs", "fails") == "try\ntry\ntry"
    udocker.out("run", "-d", "--name=succeeds", "--restart=on-failure", "busybox", "echo", "once")
    udocker.out("wait", "succeeds")
    assert udocker.out("logs", "succeeds") == "once"


def test_always_until_it_is_stopped(udocker):
    udocker.out("run", "-d", "--name=always", "--restart=always", "busybox", "sh", "-c", "echo began; sleep 0.05")
    until(lambda: udocker.out("logs", "always").count("began") >= 3, "it is started again and again")
    udocker.out("stop", "-t", "1", "always")
    until(lambda: status(udocker, "always")[0] == "exited", "it stays stopped")
    count = udocker.out("logs", "always").count("began")
    assert udocker.out("logs", "always").count("began") == count
    udocker.out("start", "always")
    until(lambda: udocker.out("logs", "always").count("began") >= count + 2, "and is started again")
    udocker.out("rm", "-f", "always")


def test_pauses_between_restarts_grow(udocker):
    udocker.out("run", "-d", "--name=slower", "--restart=always", "busybox", "true")
    until(lambda: state(udocker, "slower")["restarts"] >= 3, "three restarts")
    began = time.monotonic()
    until(lambda: state(udocker, "slower")["restarts"] >= 4, "one more")
    assert time.monotonic() - began > 0.5
    assert udocker.out("ps", "--format", "{{.State}}") in ("restarting", "running")
    udocker.out("stop", "-t", "1", "slower")
    assert status(udocker, "slower")[0] == "exited"


def test_restart_and_rm_exclude_each_other(udocker):
    done = udocker("run", "-d", "--rm", "--restart=always", "busybox", "true")
    assert done.returncode == 125
    assert not udocker.containers()


# Health


def test_health_of_a_container(udocker):
    check = ["--health-cmd", "test -e /well", "--health-interval", "100ms", "--health-retries", "2"]
    udocker.out("run", "-d", "--name=well", *check, "busybox", "sh", "-c", "touch /well; sleep 1000")

    def health():
        return state(udocker, "well")["health"]["Status"]

    until(lambda: health() == "healthy", "it is well")
    assert "(healthy)" in udocker.docker("ps").stdout
    udocker.out("exec", "well", "rm", "/well")
    until(lambda: health() == "unhealthy", "it is not")
    assert state(udocker, "well")["health"]["FailingStreak"] >= 2
    udocker.out("exec", "well", "touch", "/well")
    until(lambda: health() == "healthy", "it is well again")


def test_a_health_check_that_hangs_is_ended(udocker):
    check = ["--health-cmd", "sleep 999", "--health-interval", "100ms", "--health-retries", "1"]
    udocker.out("run", "-d", "--name=hangs", *check, "--health-timeout", "200ms", "busybox", "sleep", "1000")
    until(lambda: state(udocker, "hangs")["health"]["Status"] == "unhealthy", "it is found out")
    assert "timeout" in state(udocker, "hangs")["health"]["Log"][-1]["Output"]


def test_waiting_for_many(udocker):
    for code in (0, 3):
        udocker.out("run", "-d", f"--name=w{code}", "busybox", "sh", "-c", f"sleep 0.2; exit {code}")
    assert udocker.out("wait", "w0", "w3") == "0\n3"

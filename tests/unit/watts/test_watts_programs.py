# SPDX-License-Identifier: Apache-2.0
"""Other programs, run within bounds: real ones, and as bad as programs can be."""

import concurrent.futures
import json
import os
import signal
import time
import tracemalloc
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import programs

SH = "#!/bin/sh"


def refused(command, **options):
    with pytest.raises(programs.RunError) as caught:
        programs.run(command, **options)
    return caught.value.reason


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid_file):
    """Whether the process that wrote its number there is no more."""
    stat = Path(f"/proc/{Path(pid_file).read_text().strip()}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_input_and_both_outputs(program):
    path = program("import sys; d = sys.stdin.read(); print(d[::-1], end=''); print('aside', file=sys.stderr)")
    result = programs.run([path], "näher".encode())
    assert result == programs.Result(0, "rehän".encode(), b"aside\n")


def test_a_large_input_and_output_pass_while_both_flow(program):
    data = os.urandom(3_000_000)
    assert programs.run([program("cat", SH)], data, limit=3_000_000).stdout == data


def test_arguments_are_no_shell_words(program):
    path = program("import json, sys; print(json.dumps(sys.argv[1:]))")
    assert programs.run([path, "a b", "$(id)", ""]).stdout == b'["a b", "$(id)", ""]\n'


def test_a_program_that_does_not_read_its_input(program):
    assert programs.run([program("exit 3", SH)], b"x" * 10_000_000) == programs.Result(3, b"", b"")


def test_a_signal_is_told_from_a_status(program):
    assert programs.run([program("kill -SEGV $$", SH)]).status == -signal.SIGSEGV


def test_environment_directory_and_files_are_not_inherited(program, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_SERVICE", "x")
    path = program(
        """
        import json, os
        print(json.dumps([dict(os.environ), os.getcwd(), sorted(os.listdir("/proc/self/fd")), os.getsid(0)]))
        """
    )
    held = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        environment, where, files, session = json.loads(programs.run([path]).stdout)
    finally:
        os.close(held)
    environment.pop("LC_CTYPE", None)  # of Python's own making
    assert environment == {"PATH": programs.PATH, "LC_ALL": "C.UTF-8", "HOME": "/"}
    assert where == "/"
    assert files == ["0", "1", "2", "3"]  # 3 is the directory that is being listed
    assert session != os.getsid(0)


def test_what_cannot_be_started(program, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x7fELF" + bytes(200))
    binary.chmod(0o755)
    assert refused(["/nowhere/plugin"]) == "missing"
    assert refused(["no-such-program-anywhere"]) == "missing"
    assert refused([str(plain)]) == "not_executable"
    assert refused([str(tmp_path)]) == "not_executable"
    assert refused([program("", "#!/nowhere/python")]) == "interpreter"
    assert refused([str(binary)]) == "not_started"
    assert refused([program("", SH), "x" * 200_000]) == "not_started"
    assert refused([program("", SH), "a\0b"]) == "not_started"


def test_errors_hold_no_argument(program):
    for command in (["/nowhere/plugin", "s3cret"], [program("", SH), "s3cret" + "x" * 200_000]):
        with pytest.raises(programs.RunError) as caught:
            programs.run(command)
        assert "s3cret" not in str(caught.value)


def test_a_program_that_hangs_is_killed_with_its_children(program, tmp_path):
    path = program(f"sleep 600 & echo $! > {tmp_path}/child; trap '' TERM; echo $$ > {tmp_path}/self; sleep 600", SH)
    started = time.monotonic()
    assert refused([path], timeout=0.5) == "timeout"
    assert time.monotonic() - started < 5
    for name in ("child", "self"):
        wait_until(lambda name=name: gone(tmp_path / name))


def test_a_grandchild_that_keeps_the_pipe_open_does_not_keep_us(program, tmp_path):
    path = program(f"sleep 600 & echo $! > {tmp_path}/child; echo done", SH)
    started = time.monotonic()
    assert programs.run([path], timeout=30).stdout == b"done\n"
    assert time.monotonic() - started < 5
    wait_until(lambda: gone(tmp_path / "child"))


def test_even_one_in_a_session_of_its_own(program, tmp_path):
    path = program(f"setsid sleep 3 & echo $! > {tmp_path}/child; echo done", SH)
    started = time.monotonic()
    assert programs.run([path], timeout=30).stdout == b"done\n"
    assert time.monotonic() - started < 2.5


def test_a_program_that_closes_its_outputs_and_goes_on_is_waited_for(program):
    assert programs.run([program("exec >&- 2>&-; sleep 0.3; exit 7", SH)]).status == 7


def test_huge_output_ends_it(program):
    started = time.monotonic()
    assert refused([program("yes", SH)], timeout=30, limit=1024 * 1024) == "too_large"
    assert time.monotonic() - started < 5


def test_output_up_to_the_limit_is_taken_whole(program):
    path = program("import sys; sys.stdout.write('x' * int(sys.argv[1]))")
    assert len(programs.run([path, "100000"], limit=100_000).stdout) == 100_000
    assert refused([path, "100001"], limit=100_000) == "too_large"


def test_a_flood_on_stderr_is_read_and_forgotten(program):
    path = program("import sys; sys.stderr.write('x' * 20_000_000); print('fine')")
    tracemalloc.start()
    try:
        result = programs.run([path])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert result.stdout == b"fine\n"
    assert len(result.stderr) == programs.STDERR_BYTES


def test_an_endless_flood_on_stderr_ends_with_the_time(program):
    assert refused([program("yes >&2", SH)], timeout=0.5) == "timeout"


def test_nothing_is_left_open_or_unwaited_for(program):
    good, bad = program("echo hello", SH), program("sleep 600", SH)
    programs.run([good])

    def held():
        children = " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children"))
        return sorted(os.listdir("/proc/self/fd")), sorted(children.split())

    before = held()
    for _ in range(20):
        programs.run([good])
        refused([bad], timeout=0.02)
        refused(["/nowhere"])
    assert held() == before


def test_many_at_once_do_not_hold_each_other(program):
    path = program("import sys; print(sys.stdin.read())")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: programs.run([path], str(n).encode()).stdout, range(24)))
    assert answers == [f"{n}\n".encode() for n in range(24)]

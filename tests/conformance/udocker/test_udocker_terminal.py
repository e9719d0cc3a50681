# SPDX-License-Identifier: Apache-2.0
"""Containers on terminals: a person's, one of their own, left and taken up again."""

import os
import signal
import subprocess

import pytest

from udocker_program import Program, Terminal, until


@pytest.fixture(scope="module", params=[True, False], ids=["subids", "one-id"])
def udocker(request):
    with Program(subids=request.param, name="tty") as made:
        yield made


@pytest.fixture(autouse=True)
def _clear(udocker):
    yield
    udocker.clear()


def shell(udocker, *arguments, **more):
    terminal = Terminal(udocker, *arguments, **more)
    terminal.expect("# ")
    return terminal


def test_a_shell_has_a_terminal_of_its_own(udocker):
    terminal = shell(udocker, "run", "--rm", "-it", "busybox", "sh")
    terminal.type("tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all; exit 5\n")
    code, seen = terminal.end()
    lines = seen.decode().splitlines()
    assert code == 5
    assert lines[-3:] == ["31 97", "xterm", "all"]
    assert lines[-4].startswith("/dev/")


def test_udocker_gives_a_shell_a_terminal_without_being_asked(udocker):
    terminal = shell(udocker, "run", "--rm", "busybox", "sh")
    terminal.type("test -t 0 && echo is one; exit 3\n")
    code, seen = terminal.end()
    assert code == 3
    assert b"is one\r\n" in seen


def test_its_size_follows_the_window(udocker):
    script = "trap 'stty size; exit' WINCH; echo set; while :; do sleep 0.05; done"
    terminal = Terminal(udocker, "run", "--rm", "-it", "busybox", "sh", "-c", script)
    terminal.expect("set\r\n")
    terminal.resize(50, 120)
    code, seen = terminal.end()
    assert code == 0
    assert b"50 120" in seen


def test_control_c_interrupts_the_command_and_not_the_shell(udocker):
    terminal = shell(udocker, "run", "--rm", "-it", "busybox", "sh")
    terminal.type("sleep 1000\n")
    terminal.expect("sleep 1000\r\n")
    until(lambda: any(line == "sleep 1000 " for line in udocker.person.processes().values()), "it sleeps")
    terminal.type(b"\x03")
    terminal.expect("# ")
    terminal.type("echo still $((40 + 2)); exit\n")
    assert b"still 42" in terminal.end()[1]


def test_bytes_pass_a_terminal_unchanged(udocker):
    """With its own translation switched off: every byte there is, both ways, and multi-byte characters."""
    terminal = Terminal(
        udocker,
        "run",
        "--rm",
        "-it",
        "busybox",
        "sh",
        "-c",
        "stty raw -echo; echo ready; head -c 520 | od -An -v -tu1; cat",
    )
    terminal.expect("ready\n")
    data = bytes(byte for byte in range(256) if byte not in (0x10, 0x11)) * 2 + "täglich".encode()[:8] + b"1234"
    terminal.type(data)
    numbers = []
    while len(numbers) < 520:
        numbers += terminal.expect("\n").split()
    assert bytes(map(int, numbers)) == data
    terminal.type("☕ 東京".encode())
    terminal.expect("☕ 東京")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end()[0] == 143


def test_large_output_on_a_terminal_is_whole(udocker):
    terminal = Terminal(
        udocker, "run", "--rm", "-it", "busybox", "sh", "-c", "stty -onlcr; yes 'ä 123456789' | head -n 200000"
    )
    code, seen = terminal.end()
    assert code == 0
    assert seen == "ä 123456789\n".encode() * 200_000


def test_t_and_i_without_a_terminal_are_refused_as_docker_does(udocker):
    for program in (udocker, udocker.docker):
        done = program("run", "--rm", "-it", "busybox", "true", input="")
        assert done.returncode == 1
        assert "not a TTY" in done.stderr
    assert not udocker.containers()
    # Output alone may go anywhere.
    done = udocker.docker("run", "--rm", "-t", "busybox", "sh", "-c", "test -t 1 && echo one", text=False)
    assert done.stdout == b"one\r\n"


def test_left_and_attached_to_again(udocker):
    terminal = shell(udocker, "run", "--name=left", "-it", "busybox", "sh")
    terminal.type("echo first $((40 + 2))\n")
    terminal.expect("first 42")
    terminal.type(b"\x10\x11")
    assert terminal.end()[0] == 0
    assert "left" in udocker.docker("ps", "--filter", "status=running").stdout
    again = Terminal(udocker, "attach", "left")
    again.type("echo second $((40 + 3))\n")
    again.expect("second 43")
    again.type("exit 7\n")
    assert again.end()[0] == 7
    assert udocker.out("wait", "left") == "7"


def test_left_while_it_writes(udocker):
    for number in range(5):
        name = f"busy{number}"
        script = "while :; do echo line; done"
        terminal = Terminal(udocker, "run", f"--name={name}", "-it", "busybox", "sh", "-c", script)
        terminal.expect("line")
        terminal.type(b"\x10\x11")
        assert terminal.end()[0] == 0
        for _look in range(5):
            assert name in udocker.docker("ps", "--filter", "status=running").stdout
        udocker.out("rm", "-f", name)


def test_other_keys_leave_it(udocker):
    terminal = shell(udocker, "run", "--name=keys", "-it", "--detach-keys", "ctrl-a,d", "busybox", "sh")
    terminal.type(b"echo \x10\x11x\n")  # no longer special
    terminal.expect("# ")
    terminal.type(b"\x01d")
    assert terminal.end()[0] == 0
    assert "keys" in udocker.docker("ps").stdout


def test_two_are_attached(udocker):
    udocker.out("run", "-d", "-i", "--name=shared", "busybox", "sh", "-c", "while read line; do echo got $line; done")
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first, second = (udocker.start("attach", "shared", **streams) for _number in range(2))
    until(lambda: len(_sockets(udocker, "shared")) == 3, "both are there")
    first.stdin.write("one\n")
    first.stdin.flush()
    assert first.stdout.readline() == "got one\n"
    assert second.stdout.readline() == "got one\n"
    first.stdin.close()
    second.stdin.write("two\n")
    second.stdin.flush()
    assert second.stdout.readline() == "got two\n"
    udocker.out("stop", "-t", "1", "shared")
    assert {first.wait(60), second.wait(60)} == {143}
    assert udocker.out("logs", "shared") == "got one\ngot two"


def _sockets(udocker, name):
    import json

    monitor = json.loads((udocker.store / "containers" / name / "state.json").read_text())["keeper"]["pid"]
    paths = [f"/proc/{monitor}/fd/{number}" for number in os.listdir(f"/proc/{monitor}/fd")]
    return [path for path in paths if os.path.lexists(path) and "socket" in os.readlink(path)]


def test_exec_on_a_terminal(udocker):
    udocker.out("run", "-d", "--name=back", "busybox", "sleep", "1000")
    terminal = shell(udocker, "exec", "-it", "back", "sh")
    terminal.type("tty; stty size; exit 9\n")
    code, seen = terminal.end()
    assert code == 9
    assert seen.decode().splitlines()[-2:] == ["/dev/pts/0", "31 97"]


def test_start_attached(udocker):
    udocker.out("create", "--name=made", "-i", "busybox", "sh", "-c", "read line; echo got $line; exit 6")
    done = udocker("start", "-a", "-i", "made", input="text\n")
    assert (done.returncode, done.stdout) == (6, "got text\n")
    done = udocker("start", "-a", "made", input="unread\n")
    assert (done.returncode, done.stdout) == (6, "got\n")


def test_a_killed_command_does_not_leave_its_container_behind(udocker):
    terminal = shell(udocker, "run", "--name=killed", "-it", "busybox", "sh")
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end()[0] == -9
    assert udocker.out("wait", "killed") == "129"


def test_a_terminal_that_goes_away_ends_the_shell(udocker):
    terminal = shell(udocker, "run", "--rm", "-it", "busybox", "sh")
    os.close(terminal.master)
    os.waitpid(terminal.pid, 0)
    until(lambda: not udocker.containers(), "the container ends, and goes")

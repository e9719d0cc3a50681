# SPDX-License-Identifier: Apache-2.0
"""One command at a time changes a deployment, however the one before ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dodas import lock
from dodas.errors import InputError

HOLD = """
import subprocess, sys
from dodas import lock
with lock.only_one(sys.argv[1]) as held:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[held])
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.fixture
def holder(tmp_path):
    """A command that holds the lock, and its child; their processes."""
    command = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "site"], stdout=subprocess.PIPE, text=True)
    child = int(command.stdout.readline())
    yield command, child
    if is_alive(child):
        os.kill(child, signal.SIGKILL)
    command.kill()
    command.communicate()


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_second_command_is_refused_and_the_first_goes_on(tmp_path, holder):
    command, child = holder
    with pytest.raises(InputError, match=rf"process {command.pid}\) works on site"), lock.only_one(tmp_path / "site"):
        pass
    assert command.poll() is None and is_alive(child)


def test_end_kills_the_first_and_its_children(tmp_path, holder):
    command, child = holder
    with lock.only_one(tmp_path / "site", end=True):
        assert command.wait(5) == -signal.SIGKILL and not is_alive(child)


def test_what_a_killed_command_left_running_is_ended(tmp_path, holder):
    command, child = holder
    command.kill()
    command.wait()
    assert is_alive(child)
    began = time.monotonic()
    with lock.only_one(tmp_path / "site"):
        assert not is_alive(child)
    assert time.monotonic() - began < 5


def test_lock_of_a_folder_that_was_removed_meanwhile(tmp_path):
    folder = tmp_path / "site"
    with lock.only_one(folder):
        (folder / "lock").unlink()
        folder.rmdir()
        with lock.only_one(folder):
            assert (folder / "lock").exists()

# SPDX-License-Identifier: Apache-2.0
"""The one-file program in the hands of a user: what tests of containers type.

with Program(subids=True) as udocker:
    udocker("run", "--rm", "busybox", "true").returncode
    udocker.out("ps")                 # stdout of a command that must succeed
"""

import atexit
import contextlib
import fcntl
import functools
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import udocker_images
from udocker_people import Person

LIBRARY = Path(__file__).parents[2] / "collections/ansible_collections/dodas/cluster/plugins/module_utils/udocker"
DEADLINE = 60
SOON = 20


def _folder(prefix):
    """A folder that is there as long as the tests are."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def program():
    """The one file, made by the Python that tests run it with."""
    path = _folder("udocker-program-") / "udocker"
    subprocess.run([Person.python, LIBRARY / "bundle.py", path], check=True)
    return path


@functools.cache
def image():
    """An archive of a tiny image: busybox, with a few users more than root."""
    passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n"
    extra = udocker_images.layer(
        udocker_images.member("etc/passwd", passwd),
        udocker_images.member("etc/group", "root:x:0:\nann:x:1000:\nmore:x:1001:ann\n"),
        udocker_images.member("home/ann/", uid=1000, gid=1000),
    )
    folder = _folder("udocker-image-")
    return udocker_images.busybox(folder, kind="docker", name="busybox:latest", extra=[extra])


class Program:
    """A person who has the program and the image `busybox`."""

    def __init__(self, subids=True, deny=False, name="ann"):
        self.person = Person(name, subids=subids)
        self.deny = deny
        try:
            self.path = self.person.give(program())
            self.path.chmod(0o755)
            archive = self.person.give(image())
            self.out("load", "-i", archive)
        except BaseException:
            self.person.remove()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.person.remove()

    @property
    def home(self):
        return self.person.home

    @property
    def store(self):
        return self.home / ".udocker"

    def argv(self, *arguments):
        return [self.path, *map(str, arguments)]

    def __call__(self, *arguments, **more):
        return self.person.run(self.argv(*arguments), **{"deny": self.deny, "timeout": DEADLINE, **more})

    def out(self, *arguments, **more):
        """What a command that must succeed prints, without the last newline."""
        done = self(*arguments, **more)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.rstrip("\n") if isinstance(done.stdout, str) else done.stdout

    def start(self, *arguments, **more):
        """A command that is not waited for."""
        return self.person.popen(self.argv(*arguments), deny=self.deny, **more)

    def docker(self, *arguments, **more):
        """The same program, called docker."""
        path = self.home / "docker"
        with contextlib.suppress(FileExistsError):
            path.symlink_to(self.path)
        return self.person.run([path, *map(str, arguments)], **{"deny": self.deny, "timeout": DEADLINE, **more})

    def containers(self):
        """The ids of all containers."""
        return self.out("ps", "-q").split()

    def clear(self):
        """Remove all containers."""
        found = self.containers()
        for identifier in found:
            (self.store / "containers" / identifier / "PROTECT").unlink(missing_ok=True)
        if found:
            self.out("rm", "-f", *found)

    def folder(self, name):
        """A folder of its own in its home."""
        path = self.home / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        os.chown(path, self.person.uid, self.person.gid)
        return path


def until(condition, what, deadline=SOON):
    """What condition() gives when that is true at last; fails when it is not within `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline} s")
        time.sleep(0.01)


class Terminal:
    """A command on a terminal of its own, as a person has it."""

    def __init__(self, udocker, *arguments, rows=31, columns=97):
        command = udocker.person.command(udocker.argv(*arguments), udocker.deny)
        self.pid, self.master = pty.fork()
        if not self.pid:
            try:
                os.chdir(udocker.home)
                os.execve(command[0], command, {**udocker.person.environment, "TERM": "xterm"})
            finally:
                os._exit(99)
        self.resize(rows, columns)
        self.seen = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def _read(self, timeout):
        if not select.select([self.master], [], [], timeout)[0]:
            return None
        try:
            return os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return b""

    def expect(self, text, deadline=DEADLINE):
        """Read until `text` has come; returns what came before it and with it."""
        text = text.encode() if isinstance(text, str) else text
        end = time.monotonic() + deadline
        while text not in self.seen:
            data = self._read(max(0.0, end - time.monotonic()))
            if not data:
                raise AssertionError(f"{text!r} did not come: {self.seen!r}")
            self.seen += data
        found, _text, self.seen = self.seen.partition(text)
        return found + text

    def end(self, deadline=DEADLINE):
        """Wait for its end; (exit code, the rest of the output)."""
        limit = time.monotonic() + deadline
        while True:
            data = self._read(max(0.0, limit - time.monotonic()))
            if data is None:
                os.kill(self.pid, 9)
                raise AssertionError(f"it did not end: {self.seen!r}")
            if not data:
                break
            self.seen += data
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.master)
        return os.waitstatus_to_exitcode(status), self.seen


if __name__ == "__main__":
    print(program(), image(), file=sys.stderr)

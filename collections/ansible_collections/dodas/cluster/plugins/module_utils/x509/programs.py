# SPDX-License-Identifier: Apache-2.0
"""Another program, run so that it can do no harm but to itself: bounded in time and output, and ended with all that it
started. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import time

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STDERR_BYTES = 16 * 1024


class RunError(RuntimeError):
    """A program that could not be run to its end. reason: missing, interpreter, not_executable, not_started, timeout or
    too_large. pid: what its process had, or None."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason
        self.pid = None


@dataclasses.dataclass(frozen=True)
class Result:
    """status: the exit status, negative for a signal; stdout: bytes; stderr: its first 16 KiB."""

    status: int
    stdout: bytes
    stderr: bytes


def run(command, data=b"", timeout=30.0, limit=1024 * 1024, environment=None):
    """The Result of a command (a list whose first word is a path or is looked for in PATH).

    data: bytes for its standard input. timeout: seconds until it is killed. limit: bytes of its output at most.
    environment: a dict to add to PATH, LC_ALL and HOME, which are all that it gets. It runs in ``/``, in a process
    group of its own that is killed when it ends, whoever of it is left. Raises RunError.
    """
    deadline = time.monotonic() + timeout
    name = os.path.basename(command[0])
    surroundings = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/", **(environment or {})}
    process = _start(command, name, surroundings)
    try:
        stdout, stderr = _talk(process, name, data, deadline, timeout, limit)
    except RunError as error:
        error.pid = process.pid
        raise
    finally:
        # Before it is waited for: until then its number is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()
    return Result(process.returncode, stdout, stderr)


def _start(command, name, environment):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        return subprocess.Popen(
            command, bufsize=0, cwd="/", env=environment, start_new_session=True, **pipes
        )
    except FileNotFoundError:
        if os.path.exists(command[0]):
            raise RunError("interpreter", f"{name}: the interpreter in its first line is missing") from None
        raise RunError("missing", f"{name} is not there") from None
    except PermissionError:
        raise RunError("not_executable", f"{name} may not be executed") from None
    except (OSError, ValueError) as error:
        problem = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a command"
        raise RunError("not_started", f"{name} cannot be started: {problem}") from None


def _talk(process, name, data, deadline, timeout, limit):
    """(stdout, stderr) when the process itself has ended, whoever else holds the pipes."""
    stdout, stderr, unsent = bytearray(), bytearray(), memoryview(data)
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for pipe in (process.stdout, process.stderr):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ)
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RunError("timeout", f"{name} did not end in {timeout:g} s")
                ready = [key.fileobj for key, _events in selector.select(left)]
                if process.stdin in ready:
                    try:
                        unsent = unsent[process.stdin.write(unsent[:65536]) or 0 :]
                    except BrokenPipeError:
                        unsent = unsent[:0]
                    if not unsent:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                # What it wrote before it ended is in the pipes; what comes later is not its.
                over = ended in ready
                for pipe, held, most in ((process.stdout, stdout, limit), (process.stderr, stderr, STDERR_BYTES)):
                    if pipe in ready or over:
                        _read(pipe, held, most, selector)
                if len(stdout) > limit:
                    raise RunError("too_large", f"{name} wrote more than {limit} bytes")
                if over:
                    return bytes(stdout), bytes(stderr[:STDERR_BYTES])
    finally:
        os.close(ended)


def _read(pipe, held, most, selector):
    """Read what is there into held, but keep no more than one byte beyond most."""
    for _chunk in range(64):
        chunk = None if pipe.closed else pipe.read(65536)
        if not chunk:
            if chunk == b"":
                selector.unregister(pipe)
                pipe.close()
            return
        held += chunk[: most + 1 - len(held)]

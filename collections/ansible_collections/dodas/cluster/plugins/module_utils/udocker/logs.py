# SPDX-License-Identifier: Apache-2.0
"""The log of a detached container: JSON lines, as Docker's json-file keeps them, from any bytes and back to the same.

Each record is {"log": text, "stream": "stdout"|"stderr", "time": RFC 3339}. A line that has not ended yet, or a long
one, takes several records, of which the last alone ends in a newline. Bytes that are no UTF-8 are lone surrogates.
"""

import os

from . import records
from .errors import Error

LONGEST = 16384  # bytes of one record


class Writer:
    """Appends to the log at `path`; with `max_size` bytes it is rotated, `max_files` in all are kept."""

    def __init__(self, path, max_size=0, max_files=1):
        self.path = path
        self.max_size = max_size
        self.max_files = max(1, max_files)
        self.pending = {}
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.file).st_size

    def write(self, stream, data):
        """Take what came from a stream; what does not end a line waits for its rest, or for flush()."""
        data = self.pending.pop(stream, b"") + data
        lines = []
        while data:
            end = data.find(b"\n", 0, LONGEST) + 1
            if not end:
                if len(data) < LONGEST:
                    self.pending[stream] = data
                    break
                end = LONGEST
            lines.append(data[:end])
            data = data[end:]
        self._append(stream, lines)

    def flush(self):
        """Keep what waits, although its line has not ended."""
        for stream, data in list(self.pending.items()):
            self._append(stream, [data])
        self.pending.clear()

    def close(self):
        self.flush()
        os.close(self.file)

    def _append(self, stream, lines):
        if not lines:
            return
        import time

        from .containers import timestamp

        now = timestamp(time.time())
        made = []
        for line in lines:
            record = {"log": line.decode("utf-8", "surrogateescape"), "stream": stream, "time": now}
            made.append(records.dumps(record).encode() + b"\n")
        for data in made if self.max_size else [b"".join(made)]:
            if self.max_size and self.size + len(data) > self.max_size and self.size:
                self._rotate()
            self.size += len(data)
            while data:
                data = data[os.write(self.file, data) :]

    def _rotate(self):
        os.close(self.file)
        for number in range(self.max_files - 1, 0, -1):
            older = f"{self.path}.{number - 1}" if number > 1 else self.path
            if os.path.exists(older):
                os.replace(older, f"{self.path}.{number}")
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = 0


def read(container, write, follow=False, tail=None, since=0.0, until=0.0, timestamps=False):
    """Give the log to write(stream, data) in order; with `follow` until the container has ended.

    tail: the last so many lines; since, until: seconds since the epoch. Raises Error without a log.
    """
    path = container.path("log")
    if not os.path.exists(path):
        if container.state()["status"] == "created":
            return
        raise Error(f"container {container.name} has no log: it ran in the foreground, or with --log-driver none")
    show = _Show(write, timestamps, since, until)
    older = [name for name in (f"{path}.{number}" for number in range(99, 0, -1)) if os.path.exists(name)]
    source = open(path, "rb")  # noqa: SIM115 - rotation puts another in its place
    try:
        for line in _last(older, source, tail) if tail is not None else _all(older, source):
            show(line)
        if follow:
            source = _follow(container, path, source, show)
    finally:
        source.close()


def _all(older, source):
    for name in older:
        yield from _lines(name)
    while True:
        line = source.readline()
        if not line.endswith(b"\n"):  # the end, or being written
            source.seek(-len(line), os.SEEK_CUR)
            return
        yield line


def _lines(path):
    with open(path, "rb") as source:
        return source.readlines()


def _last(older, source, count):
    """The records of the last `count` lines; `source` is left at the end of what was read."""
    import collections

    found = collections.deque()
    ended = 0
    content = list(_all(older, source))
    if count == 0:
        return []
    for line in reversed(content):
        if _ends(line):
            ended += 1
            if ended > count:
                break
        elif not found:
            ended += 1  # the last one, which has not ended
        found.appendleft(line)
    return found


def _ends(line):
    try:
        return records.loads(line.decode("ascii"))["log"].endswith("\n")
    except (ValueError, KeyError):
        return True


def _follow(container, path, source, show):
    """What is appended from now on, also after the log was rotated; returns the file that was read last."""
    import time

    ended = False
    while True:
        line = source.readline()
        if line.endswith(b"\n"):
            show(line)
            continue
        if line:
            source.seek(-len(line), os.SEEK_CUR)
        elif ended:
            return source
        try:
            if os.stat(path).st_ino != os.fstat(source.fileno()).st_ino and not line:
                source.close()
                source = open(path, "rb")  # noqa: SIM115 - as above
                continue
        except FileNotFoundError:
            return source  # removed
        # What was written before the container ended is read once more after that was seen.
        ended = not container.is_running()
        if not ended:
            time.sleep(0.05)


class _Show:
    def __init__(self, write, timestamps, since, until):
        self.write, self.timestamps = write, timestamps
        self.since = _stamp(since)
        self.until = _stamp(until)
        self.inside = set()  # streams in the middle of a line

    def __call__(self, line):
        try:
            record = records.loads(line.decode("ascii"))
            data = record["log"].encode("utf-8", "surrogateescape")
            stream, when = record["stream"], record["time"]
        except (ValueError, KeyError):
            return  # damaged by a full disk or a crash
        if (self.since and when < self.since) or (self.until and when > self.until):
            return
        if self.timestamps and stream not in self.inside:
            data = when.encode() + b" " + data
        if data.endswith(b"\n"):
            self.inside.discard(stream)
        else:
            self.inside.add(stream)
        self.write(stream, data)


def _stamp(seconds):
    from .containers import timestamp

    return timestamp(seconds) if seconds else ""

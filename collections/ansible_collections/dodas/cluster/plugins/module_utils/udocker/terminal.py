# SPDX-License-Identifier: Apache-2.0
"""Terminals: raw mode, window sizes, detach keys, and a person's end of a container's streams.

Between a monitor and who is attached goes a stream of frames: a byte that says what, four bytes of length, the content.
"""

import errno
import os

from .engines.process import FORWARDED
from .errors import Error

# To the monitor
INPUT, END, RESIZE, SIGNAL, DETACH = b"i", b"e", b"r", b"s", b"d"
# From the monitor
OUTPUT, ERRORS, EXIT = b"o", b"E", b"x"

CHUNK = 65536
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441  # unlock a terminal's other end, and open it whatever its name is
DETACH_KEYS = "ctrl-p,ctrl-q"


def window(descriptor):
    """(rows, columns) of a terminal; None where there is none."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def set_window(descriptor, rows, columns):
    import fcntl
    import termios

    size = b"".join(number.to_bytes(2, "little" if _little() else "big") for number in (rows, columns, 0, 0))
    try:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)
    except OSError:
        pass  # gone meanwhile


def _little():
    import sys

    return sys.byteorder == "little"


def open_in(running):
    """(master, slave) of a terminal of a running container, where it has a name; else of this host's."""
    import fcntl

    from .ports import visible

    pid = visible(running)
    try:
        master = os.open(f"/proc/{pid}/root/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.openpty()
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
        return master, fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        return os.openpty()


class Raw:
    """A terminal that passes every key and byte as it is, for a `with`; no terminal is left alone."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.before = None

    def __enter__(self):
        import termios

        try:
            self.before = termios.tcgetattr(self.descriptor)
        except termios.error:
            return self
        mode = [one[:] if isinstance(one, list) else one for one in self.before]
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
            | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.descriptor, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_exception):
        import termios

        if self.before is not None:
            try:
                termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self.before)
            except termios.error:
                pass  # hung up


class DetachKeys:
    """Finds the keys that detach in what a person types: "ctrl-p,ctrl-q", "a,b", ... Raises Error."""

    def __init__(self, text):
        self.keys = b"".join(self._key(one) for one in (text or DETACH_KEYS).split(","))
        self.held = b""
        self.detached = False

    @staticmethod
    def _key(text):
        text = text.strip()
        if text.lower().startswith("ctrl-") and len(text) == 6 and (text[5].isalpha() or text[5] in "@[\\]^_"):
            return bytes([ord(text[5].upper()) & 0x1F])
        if len(text) == 1 and text.isascii():
            return text.encode()
        raise Error(f"--detach-keys: {text!r} is no key: a letter or ctrl-LETTER is", 125)

    def feed(self, data):
        """What of `data` is for the container; `detached` is set when the keys were typed."""
        out = b""
        for byte in data:
            self.held += bytes([byte])
            while self.held and not self.keys.startswith(self.held):
                out += self.held[:1]
                self.held = self.held[1:]
            if self.held == self.keys:
                self.held = b""
                self.detached = True
                break
        return out


def frame(kind, content=b""):
    return kind + len(content).to_bytes(4, "big") + content


class Frames:
    """Takes frames out of a stream of bytes."""

    def __init__(self):
        self.buffer = b""

    def feed(self, data):
        """[(kind, content)] that are whole now."""
        buffer = self.buffer + data
        found = []
        start = 0
        while len(buffer) - start >= 5:
            end = start + 5 + int.from_bytes(buffer[start + 1 : start + 5], "big")
            if len(buffer) < end:
                break
            found.append((buffer[start : start + 1], buffer[start + 5 : end]))
            start = end
        self.buffer = buffer[start:]
        return found


def write_all(descriptor, data):
    """Write it as a whole, also where the other end takes it slowly; raises BrokenPipeError."""
    import select

    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody else's O_NONBLOCK on a terminal that is shared
            select.select([], [descriptor], [])


class Watch:
    """Signals as bytes on a pipe, for a `with`: `reader` is readable when one has come, taken() lists them."""

    def __init__(self, names):
        self.names = names

    def __enter__(self):
        import signal

        self.reader, self._writer = os.pipe()
        for end in (self.reader, self._writer):
            os.set_blocking(end, False)
        self._before = {}
        for name in self.names:
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, lambda *_signal: None)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_exception):
        import signal

        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)

    def taken(self):
        try:
            return list(os.read(self.reader, 1024))
        except BlockingIOError:
            return []


def handed_on(tty, sig_proxy=True):
    """The Watch for attach(): over the signals that a container gets instead of the one who is attached."""
    if not sig_proxy and not tty:
        return Watch(())
    return Watch(("SIGWINCH", *FORWARDED))


def attach(connection, signals, tty, stdin=True, sig_proxy=True, detach_keys="", streams=("stdout", "stderr")):
    """Be a person's end of a container whose monitor is at the other end of socket descriptor `connection`.

    signals: what handed_on() gives, in a `with` since before the container was started: those that came early wait
    Returns the exit code; None when the person detached. 137 when the monitor was killed.
    """
    import select
    import signal

    outputs = {OUTPUT: 1 if "stdout" in streams else None, ERRORS: 2 if "stderr" in streams else None}
    terminal = tty and stdin and os.isatty(0)
    keys = DetachKeys(detach_keys) if terminal else None
    os.set_blocking(connection, False)
    waiting = bytearray()
    frames = Frames()
    poll = select.poll()

    def resize():
        size = window(1) or window(0)
        if size:
            waiting.extend(frame(RESIZE, b"%d %d" % size))

    def taken(read):
        """What a read gives; None when there is nothing yet."""
        try:
            return read()
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ECONNRESET, errno.EPIPE):
                return b""
            raise

    with Raw(0) if terminal else _Nothing():
        if tty:
            resize()
        while True:
            poll.register(connection, select.POLLIN | (select.POLLOUT if waiting else 0))
            poll.register(signals.reader, select.POLLIN)
            if stdin and len(waiting) < 4 * CHUNK:
                poll.register(0, select.POLLIN)
            else:
                try:
                    poll.unregister(0)
                except KeyError:
                    pass
            events = dict(poll.poll())
            for number in signals.taken():
                if number == signal.SIGWINCH:
                    if tty:
                        resize()
                else:
                    waiting.extend(frame(SIGNAL, b"%d" % number))
            if 0 in events:
                data = taken(lambda: os.read(0, CHUNK))
                if data and keys:
                    data = keys.feed(data)
                    if data:
                        waiting.extend(frame(INPUT, data))
                    if keys.detached:
                        waiting.extend(frame(DETACH))
                        _last_words(connection, waiting)
                        return None
                elif data:
                    waiting.extend(frame(INPUT, data))
                elif data == b"":
                    stdin = False
                    waiting.extend(frame(END))
                    poll.unregister(0)
            if events.get(connection, 0) & select.POLLOUT:
                try:
                    del waiting[: os.write(connection, waiting[: 4 * CHUNK])]
                except BlockingIOError:
                    pass
                except OSError:
                    waiting.clear()
            if events.get(connection, 0) & ~select.POLLOUT:
                data = taken(lambda: os.read(connection, 4 * CHUNK))
                if data == b"":
                    return 137
                for kind, content in frames.feed(data or b""):
                    if kind == EXIT:
                        return int(content)
                    if outputs.get(kind) is not None:
                        try:
                            write_all(outputs[kind], content)
                        except BrokenPipeError:
                            # Nobody reads any more: the container is told as a process at a pipe would be.
                            outputs[kind] = None
                            waiting.extend(frame(SIGNAL, b"%d" % signal.SIGPIPE) if sig_proxy else b"")


def _last_words(connection, waiting):
    os.set_blocking(connection, True)
    try:
        write_all(connection, bytes(waiting))
    except OSError:
        pass


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass


def serve(running, master, stdin=True, detach_keys=""):
    """Be a person's end of a process whose terminal's other end is `master` (exec -t); returns its exit code.

    None when the person detached.
    """
    import select
    import signal

    keys = DetachKeys(detach_keys)
    os.set_blocking(master, False)
    terminal = stdin and os.isatty(0)
    waiting = bytearray()
    ended = False
    with Raw(0) if terminal else _Nothing(), Watch(("SIGWINCH", "SIGCHLD", *FORWARDED)) as signals:
        size = window(0) or window(1)
        if size:
            set_window(master, *size)
        while True:
            read = [master, signals.reader]
            if stdin and len(waiting) < CHUNK:
                read.append(0)
            ready, writable, _failed = select.select(read, [master] if waiting else [], [], 0.05 if ended else None)
            if ended and master not in ready:
                return running.wait()
            for number in signals.taken():
                if number == signal.SIGWINCH:
                    size = window(0) or window(1)
                    if size:
                        set_window(master, *size)
                elif number == signal.SIGCHLD:
                    ended = running.poll() is not None
                else:
                    running.kill(number)
            if 0 in ready:
                try:
                    data = os.read(0, CHUNK)
                except OSError:
                    data = b""
                if data:
                    waiting.extend(keys.feed(data) if terminal else data)
                    if keys.detached:
                        return None
                else:
                    stdin = False
                    waiting.extend(b"\x04")
            if writable:
                try:
                    del waiting[: os.write(master, waiting)]
                except BlockingIOError:
                    pass
            if master in ready:
                try:
                    data = os.read(master, CHUNK)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: the last process has closed it
                    data = b""
                if not data:
                    return running.wait()
                try:
                    write_all(1, data)
                except BrokenPipeError:
                    running.kill(signal.SIGHUP)

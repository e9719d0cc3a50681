# SPDX-License-Identifier: Apache-2.0
"""Keeps one container that nobody's terminal holds: its streams, its log, who is attached, its restarts and its health.

A monitor is a process of its own session without a terminal. It starts the container, answers through a pipe whether
the command could be executed, and ends when the container is not to be started again. When it is killed, the
container goes with it, and everybody sees that from its identity in state.json.
"""

import os

from . import containers
from .errors import Error
from .terminal import CHUNK, DETACH, END, ERRORS, EXIT, INPUT, OUTPUT, RESIZE, SIGNAL, Frames, frame, set_window

FULL = 1 << 20  # bytes that wait for one who is attached; the container waits from then on
QUICK = 10.0  # seconds: a container that ran longer is started again at once
LONGEST_PAUSE = 60.0
DRAIN = 2.0  # seconds that output may come after the container has ended, from those that hold its pipes
_PR_SET_NAME = 15
ANSWER = 300.0  # seconds until a command must have been executed


def launch(container, make_spec, options, holder, client=None, ports=None):
    """Start a container under a monitor; returns when its command was executed.

    make_spec() -> Spec is called for every start; holder: descriptor of the container's lock, kept until state.json
    is written; client: a socket's descriptor whose other end is attached from the beginning.
    Raises Error with the status of the failure (125, 126, 127).
    """
    detach(
        f"container {container.name}",
        lambda writer: _become(container, make_spec, options, writer, holder, client, ports),
    )


def detach(what, work):
    """Have work(writer) done in a session of its own; returns when it has written "started" to that descriptor.

    what: names it in errors. Raises Error of "STATUS MESSAGE" where it writes that instead, or nothing in time.
    """
    import _signal
    import select

    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _signal.set_wakeup_fd(-1)  # its starter's, who may be attached: what comes here is none of theirs
            os.close(reader)
            os.setsid()
            if os.fork():
                os._exit(0)
            work(writer)
        finally:
            os._exit(1)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as source:
        if not select.select([source], [], [], ANSWER)[0]:
            raise Error(f"{what}: the command was not executed within {ANSWER:g} s", 125)
        answer = source.read()
    if answer != b"started":
        status, _space, message = answer.decode("utf-8", "surrogateescape").partition(" ")
        raise Error(message or f"{what}: what should have started the command ended", int(status or 125))


def _become(container, make_spec, options, writer, holder, client, ports):
    """The monitor's life."""
    import traceback

    from . import linux

    monitor = None
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        keep = [one for one in (writer, holder, client) if one is not None] + (ports.descriptors() if ports else [])
        linux.close_from(3, keep)
        linux.prctl(_PR_SET_NAME, _name())
        os.chdir("/")
        monitor = Monitor(container, make_spec, options, ports)
        if client is not None:
            monitor.owner = monitor.attach(client)
        monitor.run(writer, holder)
    except BaseException as exc:
        message = str(exc) if isinstance(exc, Error) else traceback.format_exc()
        _tell(writer, f"{getattr(exc, 'status', 125)} {message}")
        try:
            with open(container.path("monitor.err"), "a", encoding="utf-8") as target:
                target.write(traceback.format_exc())
        except OSError:
            pass
        if monitor:
            monitor.close(code=125)
    finally:
        os._exit(0)


def _name():
    import ctypes

    global _named
    _named = ctypes.create_string_buffer(b"udocker-monitor")  # stays alive as long as the call may read it
    return ctypes.addressof(_named)


def _tell(writer, text):
    try:
        os.write(writer, text.encode("utf-8", "surrogateescape")[:65000])
        os.close(writer)
    except OSError:
        pass  # told already, or nobody waits


class Monitor:
    def __init__(self, container, make_spec, options, ports=None):
        self.container = container
        self.make_spec = make_spec
        self.options = options
        self.ports = ports
        self.log = _log(container, options)
        self.clients = {}  # descriptor: _Client
        self.owner = None  # of them, the command that started it in the foreground
        self.sources = {}  # descriptor: kind of frame
        self.input = None  # descriptor of the container's stdin
        self.waiting = bytearray()  # for it
        self.input_ended = False
        self.size = (24, 80)  # of its terminal: rows, columns
        self.running = None
        self.state = {"status": "running", "keeper": containers.identity(), "restarts": 0}
        self.health = None
        self.listener = self._listen()

    # One life of the container after another

    def run(self, writer, holder):
        from .terminal import Watch

        # An end of the container wakes us up; so does whoever ends this user's processes, as at a shutdown.
        with Watch(("SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP")) as self.signals:
            self._run(writer, holder)

    def _run(self, writer, holder):
        import time

        pause = 0.1
        while True:
            began = time.monotonic()
            try:
                self.start()
            except Error as exc:
                if writer is not None:
                    self.state.update(status="exited", code=exc.status, error=str(exc), finished=time.time())
                    self.container.write_state(self.state)
                    # Told first: whoever waits for it holds the lock, too.
                    _tell(writer, f"{exc.status} {exc}")
                    os.close(holder)
                    self._leave(exc.status)
                    return
                code, self.state["error"] = exc.status, str(exc)
            else:
                if writer is not None:
                    os.close(holder)
                    _tell(writer, "started")
                    writer = None
                code = self.watch()
            finished = time.time()
            if not self._again(code):
                break
            pause = 0.1 if time.monotonic() - began > QUICK else min(pause * 2, LONGEST_PAUSE)
            self.state.update(status="restarting", code=code, finished=finished, running=None)
            self.state["restarts"] += 1
            self.container.write_state(self.state)
            if not self._pause(pause):
                break
        self.state.update(status="exited", code=code, finished=finished, running=None)
        self._leave(code)

    def _leave(self, code):
        """The end: the last state, or nothing at all where --rm was asked for; then whoever is attached is told."""
        if self.log:
            self.log.close()
            self.log = None
        if self.options["rm"]:
            self._forget_listener()
            try:
                with self.container.locked("remove", 30):
                    containers.discard(self.container)
                containers.forget_lock(self.container)
            except Error:
                self.container.write_state(self.state)
        else:
            self.container.write_state(self.state)
            self._forget_listener()
        self.close(code)

    def close(self, code):
        """Tell whoever is attached how it ended, behind all output, however slowly they take it."""
        import select

        if self.ports:
            self.ports.close()
        self.owner = None
        for client in list(self.clients.values()):
            client.waiting.extend(frame(EXIT, b"%d" % code))
        while True:
            waiting = [descriptor for descriptor, client in self.clients.items() if client.waiting]
            if not waiting:
                return
            for descriptor in select.select([], waiting, [])[1]:
                self.clients[descriptor].flush()

    def _again(self, code):
        """Whether its restart policy brings it back."""
        if os.path.exists(self.container.path("stop")) or not os.path.isdir(self.container.directory):
            return False
        record = containers._read_json(self.container.path("record.json")) or {}
        policy, most = containers.restart_policy((record.get("options") or {}).get("restart") or "no")
        if policy == "on-failure":
            return code != 0 and (not most or self.state["restarts"] < most)
        return policy in ("always", "unless-stopped")

    def _pause(self, seconds):
        """Wait before the next start; False when somebody wants it stopped."""
        end = _clock() + seconds
        while _clock() < end:
            self._turn(min(0.1, max(0.0, end - _clock())))
            if os.path.exists(self.container.path("stop")) or not os.path.isdir(self.container.directory):
                return False
        return True

    def start(self):
        """Start the container with fresh streams; its state says so then."""
        import time

        spec = self.make_spec()
        theirs, ours = [], []
        if spec.terminal:
            master, slave = os.openpty()
            set_window(master, *self.size)
            os.set_inheritable(slave, True)
            theirs, ours = [slave], [master]
            stdio = (slave, slave, slave)
            sources, self.input = {master: OUTPUT}, master
        else:
            out, out_theirs = os.pipe()
            err, err_theirs = os.pipe()
            theirs, ours = [out_theirs, err_theirs], [out, err]
            sources = {out: OUTPUT, err: ERRORS}
            if self.options["interactive"]:
                stdin, self.input = os.pipe()
                ours.append(self.input)
            else:
                stdin = os.open(os.devnull, os.O_RDONLY)
                self.input = None
            theirs.append(stdin)
            stdio = (stdin, out_theirs, err_theirs)
        try:
            ready = self.ports.connect if self.ports else None
            self.running = self.container.engine().start(spec, stdio, ready)
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            self.input = None
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.sources = sources
        self.waiting.clear()
        self.input_ended = False
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        self.state.update(
            status="running", started=time.time(), running=self.running.as_dict(), error="", env=spec.env, cwd=spec.cwd,
            user=spec.user, tty=spec.terminal, stdin=self.input is not None, finished=0,
        )  # fmt: skip
        if self.ports:
            self.state["ports"] = self.ports.serve(self.running)
        self.health = _health(self.container, self.options)
        if self.health:
            self.state["health"] = self.health.state
        self.container.write_state(self.state)

    def watch(self):
        """Pass its streams on until it has ended; returns its exit code."""
        code = end = None
        while True:
            timeout = 0.1 if end is not None else self.health.next() if self.health else None
            if self.log and self.log.pending:
                timeout = 0.1 if timeout is None else min(timeout, 0.1)
            if code is None:
                code = self.running.poll()
                if code is not None:
                    end = _clock() + DRAIN
                    timeout = 0.1
            busy = self._turn(timeout)
            if not busy and self.log and self.log.pending and end is None:
                self.log.flush()
            if end is not None and not (self.held_up() or (busy and _clock() < end)):
                break
            if self.health and end is None and self.health.turn(self.running, self.state):
                self.container.write_state(self.state)
        if self.health:
            self.health.close()
        if self.ports:
            self.ports.ended()
        for descriptor in {*self.sources, *(() if self.input is None else (self.input,))}:
            os.close(descriptor)
        self.sources, self.input = {}, None
        if self.log:
            self.log.flush()
        return code

    def held_up(self):
        """Whether somebody who is attached takes the output so slowly that the container waits."""
        return any(len(client.waiting) >= FULL for client in self.clients.values())

    def _turn(self, timeout):
        """Wait for something to happen, and do what it asks for; whether anything came from the container."""
        import select

        wanted = {self.signals.reader: select.POLLIN}
        if self.listener is not None:
            wanted[self.listener] = select.POLLIN
        if not self.held_up():
            wanted.update((descriptor, select.POLLIN) for descriptor in self.sources)
        if self.input is not None and self.waiting:
            wanted[self.input] = wanted.get(self.input, 0) | select.POLLOUT
        for descriptor, client in self.clients.items():
            wanted[descriptor] = (select.POLLIN if len(self.waiting) < FULL else 0) | (
                select.POLLOUT if client.waiting else 0
            )
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        busy = False
        for descriptor, events in poll.poll(None if timeout is None else max(0, int(timeout * 1000))):
            if descriptor == self.signals.reader:
                self._signalled()
            elif descriptor == self.listener:
                self._accept()
            elif descriptor in self.clients:
                self._client(self.clients[descriptor], events)
            else:
                if descriptor == self.input and events & (select.POLLOUT | select.POLLERR):
                    self._feed()
                if descriptor in self.sources and events & ~select.POLLOUT:
                    busy = self._output(descriptor) or busy
        return busy

    def _signalled(self):
        """Stop the container when this process is asked to end; a terminal's hang-up is none of its business."""
        import signal

        if {signal.SIGTERM, signal.SIGINT}.intersection(self.signals.taken()):
            from .runtime import stop_signal

            self._end(stop_signal(self.container))

    def _end(self, number):
        """Ask the container to end, for good."""
        from .runtime import mark_stopped

        mark_stopped(self.container)
        if self.running is not None:
            try:
                self.running.kill(number)
            except OSError:
                pass  # it has just ended

    # The container's streams

    def _output(self, descriptor):
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        kind = self.sources[descriptor]
        if not data:
            del self.sources[descriptor]
            if descriptor != self.input:
                os.close(descriptor)
            return False
        if self.log:
            self.log.write("stderr" if kind == ERRORS else "stdout", data)
        for client in list(self.clients.values()):
            client.waiting.extend(frame(kind, data))
            client.flush()
        return True

    def _feed(self):
        """Give the container what waits for its stdin."""
        try:
            del self.waiting[: os.write(self.input, self.waiting)]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self.waiting.clear()
            if self.input not in self.sources:
                os.close(self.input)
                self.input = None
            return
        self._end_input()

    def _end_input(self):
        if self.input_ended and not self.waiting and self.input is not None:
            if self.input in self.sources:
                self.waiting.extend(b"\x04")
                self.input_ended = False
            else:
                os.close(self.input)
                self.input = None

    # Who is attached

    def _listen(self):
        """A socket in the container's folder, whose path may be longer than a socket's may be."""
        import socket

        folder = os.open(self.container.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                os.unlink("attach", dir_fd=folder)
            except FileNotFoundError:
                pass
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(f"/proc/self/fd/{folder}/attach")
                listener.listen(16)
            except OSError:  # a file system without sockets: it works, but cannot be attached to
                listener.close()
                return None
            listener.setblocking(False)
            return listener.detach()
        finally:
            os.close(folder)

    def _forget_listener(self):
        if self.listener is not None:
            os.close(self.listener)
            self.listener = None
            try:
                os.unlink(self.container.path("attach"))
            except OSError:
                pass

    def _accept(self):
        import socket
        import struct

        listener = socket.socket(fileno=os.dup(self.listener))
        try:
            connection, _address = listener.accept()
        except OSError:
            return
        finally:
            listener.close()
        _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in (os.getuid(), 0):
            self.attach(connection.detach())
        else:
            connection.close()

    def attach(self, descriptor):
        os.set_blocking(descriptor, False)
        client = self.clients[descriptor] = _Client(descriptor)
        return client

    def _client(self, client, events):
        import select

        if events & select.POLLOUT:
            client.flush()
        if events & ~select.POLLOUT:
            try:
                data = os.read(client.descriptor, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.detach(client)
                return
            for kind, content in client.frames.feed(data):
                if kind == DETACH:
                    self.owner = None
                self._asked(kind, content)

    def _asked(self, kind, content):
        if kind == INPUT and self.input is not None:
            self.waiting.extend(content)
            self._feed()
        elif kind == END and self.options["interactive"] and not self.options["detach"]:
            # Whoever started it in the foreground gave all that there is; of `run -d -i` it stays open.
            self.input_ended = True
            self._end_input()
        elif kind == RESIZE:
            self.size = tuple(map(int, content.split()))
            for descriptor in self.sources:
                if descriptor == self.input:
                    set_window(descriptor, *self.size)
        elif kind == SIGNAL and self.running is not None:
            try:
                self.running.kill(int(content))
            except (OSError, Error):
                pass  # it has just ended

    def detach(self, client):
        if self.clients.pop(client.descriptor, None) is None:
            return
        os.close(client.descriptor)
        if client is self.owner and self.options["dialect"] == "udocker":
            # The command was killed: as without a monitor, its container does not stay behind.
            self._end(1 if self.options["tty"] else 15)


class _Client:
    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.waiting = bytearray()
        self.frames = Frames()

    def flush(self):
        try:
            if self.waiting:
                del self.waiting[: os.write(self.descriptor, self.waiting[: 4 * CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            # It has gone. What it said last is still to be read: that it leaves the container, perhaps.
            self.waiting.clear()


def _clock():
    import time

    return time.monotonic()


def _log(container, options):
    from . import logs
    from .options import size

    driver = options["log_driver"] or "json-file"
    if driver == "none":
        return None
    if driver not in ("json-file", "local", "k8s-file", "journald", "syslog"):
        raise Error(f"--log-driver {driver}: json-file and none are there", 125)
    given = dict(one.partition("=")[::2] for one in options["log_opt"])
    most = given.get("max-size") or ""
    files = given.get("max-file") or "1"
    if not files.isdigit():
        raise Error(f"--log-opt max-file={files}: a number is expected", 125)
    return logs.Writer(container.path("log"), size(most) if most else 0, int(files))


def _health(container, options):
    if options["no_healthcheck"]:
        return None
    if not str(options["health_retries"] or 3).isdigit():
        raise Error(f"--health-retries {options['health_retries']}: a number is expected", 125)
    check = dict(container.config().get("Healthcheck") or {})
    if options["health_cmd"]:
        check["Test"] = ["CMD-SHELL", options["health_cmd"]]
    test = check.get("Test") or []
    if not test or test[0] == "NONE":
        return None
    from .health import Health

    return Health(container, options, check)

# SPDX-License-Identifier: Apache-2.0
"""What is done with containers: run, start, exec, attach, stop, kill, restart, wait, logs, top.

Exit codes are Docker's: what the command gave (128+n where signal n ended it), 125 when it was not started, 126 when it
cannot be executed, 127 when there is no such program. A command in the foreground without a terminal has the caller's
own descriptors, so that its bytes pass nobody; everything else is kept by a monitor.
"""

import os

from . import containers
from .errors import Error, NotFound

STOP_TIMEOUT = 10.0  # seconds between asking and killing
GONE = 20.0  # seconds that the end of a killed container may take


class NoTerminal(Error):
    """-t and -i were given without a terminal: status 1 with Docker, too."""


def say(text):
    """Where notes go: to standard error."""
    import sys

    sys.stderr.write(f"udocker: {text}\n")


# Which container


def obtain(store, name, argv=(), options=None, progress=None):
    """(Container, whether it is new) for `run` and `create`: a container of that name, or a new one of that image.

    options: of containers.OPTIONS; pull says when the image is pulled. Raises Error, NotFound.
    """
    options = options or {}
    pull = options.get("pull") or "missing"
    if options.get("location"):
        return containers.create(store, None, _kept(options, name), argv, rootfs=options["location"]), True
    if pull == "reuse" and options.get("name"):
        try:
            return containers.find(store, options["name"]), False
        except NotFound:
            pass
    if not name:
        raise Error("which image or container is not said", 125)
    if pull != "always" and options.get("dialect") != "docker":
        try:
            found = containers.find(store, name)
        except NotFound:
            pass
        else:
            if options.get("name") and options["name"] not in found.names():
                containers.add_name(found, options["name"])
            return found, False
    return containers.create(store, image_of(store, name, options, progress), _kept(options, name), argv), True


def _kept(options, _name):
    return {key: value for key, value in options.items() if key in containers.OPTIONS}


def image_of(store, name, options=None, progress=None):
    """The Image of a reference that people write, pulled according to options["pull"] (missing, always, never)."""
    options = options or {}
    pull = options.get("pull") or "missing"
    full = full_name(store, name)
    image = None
    if pull != "always":
        try:
            image = store.image(full)
        except NotFound:
            image = _old_image(store, name)
        platform = options.get("platform")
        if image and platform and image.platform and not _same_platform(platform, image.platform):
            image = None
    if image is None:
        if pull == "never":
            raise NotFound(f"no image {name} here, and --pull=never was given", 125)
        from . import reference, transfer

        image = transfer.pull(store, reference.parse(name), platform=options.get("platform") or None, progress=progress)
    return image


def full_name(store, name):
    """The name under which the store would keep an image."""
    if name.count(":") and "@" not in name and os.path.exists(store._image_path(name)):
        return name
    from . import reference

    return reference.parse(name).name


def _old_image(store, name):
    """An image that udocker 1.3.17 keeps in the same folder, taken over; None without."""
    if not os.path.isdir(store.path("repos")):
        return None
    from . import legacy

    try:
        return legacy.image(store, name)
    except NotFound:
        return None


def _same_platform(wanted, has):
    wanted, has = wanted.split("/"), has.split("/")
    if len(wanted) == 1:
        wanted.insert(0, "linux")
    return wanted == has[: len(wanted)]


def settle(container, options=None):
    """Every option of a run: what is asked for now, else what the container was created with, else the default."""
    settled = container.options
    for key, value in (options or {}).items():
        if key not in containers.OPTIONS:
            raise Error(f"unknown option: {key}", 125)
        if value != containers.OPTIONS[key]:
            if isinstance(value, list) and isinstance(settled[key], list):
                value = settled[key] + [one for one in value if one not in settled[key]]
            settled[key] = value
    return settled


# Run


def run(store, name, argv=(), options=None, progress=None, note=say):
    """Run a command in a container, or in a new one of an image; returns the exit code.

    In the background (detach) it prints the container's id and returns 0 when the command was executed.
    Raises Error with Docker's status when nothing was started.
    """
    options = options or {}
    cidfile = options.get("cidfile")
    if cidfile and os.path.lexists(cidfile):
        raise Error(f"--cidfile {cidfile} is there already: another container may be its owner", 125)
    container, fresh = obtain(store, name, argv, options, progress)
    settled = settle(container, options)
    if fresh and settled["location"]:
        settled["rm"] = True
    try:
        if settled["cidfile"]:
            _write_cidfile(settled["cidfile"], container.id)
        if settled["detach"]:
            background(container, argv, settled, note)
            os.write(1, (container.id + "\n").encode())
            return 0
        return foreground(container, argv, settled, note, fresh)
    except Error:
        if fresh and settled["rm"] and not container.is_running():
            containers.remove(container, force=True)
        raise


def _write_cidfile(path, identifier):
    try:
        with open(path, "x", encoding="ascii") as target:
            target.write(identifier)
    except FileExistsError:
        raise Error(f"--cidfile {path} is there already: another container may be its owner", 125) from None
    except OSError as exc:
        raise Error(f"--cidfile {path}: {exc.strerror}", 125) from exc


def foreground(container, argv, options, note=say, fresh=False):
    """Run it with this process's streams; returns the exit code."""
    if options["dialect"] == "udocker" and not options["tty"] and not options["attach"]:
        # As udocker, which has the person's terminal as its own: a shell has one without being asked.
        options["tty"] = os.isatty(0) and os.isatty(1)
    if options["interactive"] is None:
        options["interactive"] = options["dialect"] == "udocker" and (not options["tty"] or os.isatty(0))
    if options["attach"]:
        options["interactive"] = options["interactive"] and "stdin" in [one.lower() for one in options["attach"]]
    if options["tty"] and options["interactive"] and not os.isatty(0):
        raise NoTerminal("the input device is not a TTY: leave out -t, or -i", 1)
    logged = options["log_driver"] not in ("", "none")
    kept = publishes(options) or options["network"] not in ("", "host", "none") or _policy(options) != "no"
    if options["tty"] or logged or kept:
        return _attended(container, argv, options, note)
    from .options import build

    engine = container.engine()
    stdio, opened = _stdio(options)
    forward = _Forward()
    try:
        with container.locked("start"):
            if not fresh:
                state = container.state()
                if state["status"] in ("running", "restarting", "elsewhere"):
                    return _beside(container, engine, argv, options, state, stdio, note, forward)
                containers._unlink(container.path("stop"))
            spec = build(container, argv, options, note)
            running = engine.start(spec, stdio)
            state = {
                "status": "running", "keeper": containers.identity(), "started": containers._now(), "env": spec.env,
                "cwd": spec.cwd, "user": spec.user, "running": running.as_dict(), "foreground": True,
            }  # fmt: skip
            container.write_state(state)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    code = forward.wait(running)
    ended(container, state, code, options["rm"])
    return code


def ended(container, state, code, remove):
    """Say that it has ended; with `remove` it goes."""
    if not remove or container.protected:
        state.update(status="exited", code=code, finished=containers._now(), running=None)
        container.write_state(state)
        return
    try:
        with container.locked("remove"):
            containers.discard(container)
        containers.forget_lock(container)
    except NotFound:
        pass  # somebody removed it by force


def _beside(container, engine, argv, options, state, stdio, note, forward):
    """Run one more command in a container that runs already, as udocker lets people do.

    A plain tree gets a first process of its own; in other engines the command joins what runs, and ends with it.
    """
    if options["dialect"] == "docker":
        raise Error(f"container {container.name} is running: use exec", 125)
    from .options import build

    spec = build(container, argv, options, note, live=False)
    if engine.name in ("directory", "proot"):
        return forward.wait(engine.start(spec, stdio))
    if state["status"] != "running" or not state.get("running"):
        raise Error(f"container {container.name} runs on {_where(state)}: two cannot share what it writes", 125)
    return forward.wait(engine.enter(state["running"], spec, stdio))


def _stdio(options):
    """(stdin, stdout, stderr), and what is to be closed afterwards."""
    wanted = [one.lower() for one in options["attach"]]
    null = None
    stdio = [0, 1, 2]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if (name == "stdin" and not options["interactive"]) or (wanted and name not in wanted):
            if null is None:
                null = os.open(os.devnull, os.O_RDWR)
            stdio[number] = null
    return tuple(stdio), [] if null is None else [null]


def _attended(container, argv, options, note):
    """Run it under a monitor, this process being attached from the beginning; returns the exit code."""
    import socket

    from . import terminal

    ours, theirs = socket.socketpair()
    options["log_driver"] = options["log_driver"] or "none"
    with terminal.handed_on(options["tty"], options["sig_proxy"]) as signals:
        background(container, argv, options, note, client=theirs.fileno())
        theirs.close()
        code = terminal.attach(
            ours.fileno(),
            signals,
            options["tty"],
            stdin=bool(options["interactive"]),
            sig_proxy=options["sig_proxy"],
            detach_keys=options["detach_keys"],
            streams=[one.lower() for one in options["attach"]] or ("stdout", "stderr"),
        )
    ours.close()
    return 0 if code is None else code


def background(container, argv, options, note=say, client=None):
    """Start it under a monitor; returns when the command was executed. Raises Error with Docker's status."""
    from . import monitor
    from .options import build, network_of

    policy, _most = containers.restart_policy(options["restart"])
    if policy != "no" and options["rm"]:
        raise Error("--restart and --rm exclude each other", 125)
    with container.locked("start") as holder:
        if container.is_running():
            raise Error(f"container {container.name} is running already", 125)
        containers._unlink(container.path("stop"))
        published = None
        if publishes(options) or network_of(options) == "private":
            from . import ports

            published = ports.publish(container, options, note)
        try:
            said = []

            def make_spec():
                # Notes are for whoever starts it, not for every restart.
                spec = build(container, argv, options, note if not said else _silent)
                said.append(True)
                return spec

            if published and published.nameserver() and not options["dns"]:
                options["dns"] = [published.nameserver()]

            make_spec()
            monitor.launch(container, make_spec, options, holder, client, published)
        finally:
            if published:
                published.forget()


def _silent(_text):
    pass


def publishes(options):
    return bool(options["publish"] or options["publish_all"])


def _policy(options):
    return containers.restart_policy(options["restart"])[0]


class _Forward:
    """Hands signals on to a container in the foreground, exactly as they came, and waits for its end.

    Those that came before it was there wait for it.
    """

    def __init__(self):
        import _signal  # the module without its enumerations, which take longer to import than to use

        from .engines.process import FORWARDED

        self.signal = _signal
        self.early = []
        self.numbers = {getattr(_signal, name) for name in FORWARDED if hasattr(_signal, name)}
        for number in self.numbers:
            if _signal.getsignal(number) != _signal.SIG_IGN:  # nohup
                _signal.signal(number, self._keep)

    def _keep(self, number, _frame):
        self.early.append(number)

    def wait(self, running):
        """The exit code."""
        module = self.signal
        watched = self.numbers | {module.SIGCHLD}
        module.pthread_sigmask(module.SIG_BLOCK, watched)  # after the start: the container inherits no mask
        try:
            for number in self.early:
                running.kill(number)
            while running.poll() is None:
                number = module.sigwait(watched)
                if number != module.SIGCHLD:
                    running.kill(number)
            return running.wait()
        finally:
            module.pthread_sigmask(module.SIG_UNBLOCK, watched)


# Exec


def execute(container, argv, options=None, note=say):
    """Run a command in a running container (exec); returns its exit code.

    options: env, env_file, user, workdir, tty, interactive, detach, detach_keys. Detached: 0 when it was executed.
    """
    from .options import extend
    from .spec import Spec

    given = dict(containers.OPTIONS, **options or {})
    state = container.state()
    if state["status"] != "running" or not state.get("running"):
        raise Error(_not_running(container, state), 1)
    if not argv:
        raise Error("which command is not said", 1)
    env = dict(state.get("env") or {})
    if given["tty"]:
        env.setdefault("TERM", os.environ.get("TERM") or "xterm")
    if given["user"]:
        env.pop("HOME", None)
    spec = Spec(
        container.directory, container.layers, list(argv), extend(env, given),
        cwd=given["workdir"] or state.get("cwd") or "/",
        user=given["user"] or state.get("user") or "",
        terminal=bool(given["tty"]),
    )  # fmt: skip
    engine = container.engine()
    if given["detach"]:
        return _execute_detached(engine, state["running"], spec)
    if given["tty"]:
        if given["interactive"] and not os.isatty(0):
            raise NoTerminal("the input device is not a TTY: leave out -t, or -i", 1)
        return _execute_on_terminal(engine, state["running"], spec, given)
    given["attach"] = []
    stdio, opened = _stdio(given)
    forward = _Forward()
    try:
        running = engine.enter(state["running"], spec, stdio)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return forward.wait(running)


def _execute_on_terminal(engine, where, spec, options):
    from . import terminal

    master, slave = terminal.open_in(where)
    size = terminal.window(0) or terminal.window(1) or (24, 80)
    terminal.set_window(master, *size)
    os.set_inheritable(slave, True)
    try:
        running = engine.enter(where, spec, (slave, slave, slave))
    finally:
        os.close(slave)
    code = terminal.serve(running, master, bool(options["interactive"]), options["detach_keys"])
    return 0 if code is None else code


def _execute_detached(engine, where, spec):
    """A child of its own session waits for the command; this returns as soon as that was executed."""
    from . import monitor

    def work(writer):
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            running = engine.enter(where, spec, (0, 1, 2))
        except Error as exc:
            os.write(writer, f"{exc.status} {exc}".encode("utf-8", "surrogateescape"))
            return
        os.write(writer, b"started")
        os.close(writer)
        running.wait()

    monitor.detach(spec.argv[0], work)
    return 0


def _not_running(container, state):
    if state["status"] == "elsewhere":
        return f"container {container.name} runs on {_where(state)}: only there can be seen what it does"
    return f"container {container.name} is not running"


def _where(state):
    node = (state.get("keeper") or {}).get("node") or "another machine"
    return f"{node}, in another pid namespace" if node == os.uname().nodename else node


# Start, stop


def start(container, options=None, attach=False, interactive=False, detach_keys="", note=say):
    """Start a container again, with its own command and options; attached, returns its exit code, else 0.

    One that runs already is left alone.
    """
    settled = settle(container, options)
    settled["detach"] = not attach
    if settled["interactive"] is None:
        settled["interactive"] = False
    if container.state()["status"] in ("running", "restarting"):
        return attach_to(container, stdin=interactive, detach_keys=detach_keys) if attach else 0
    if attach:
        settled["interactive"] = interactive and (settled["interactive"] or settled["dialect"] == "udocker")
        settled["detach_keys"] = detach_keys or settled["detach_keys"]
        settled["log_driver"] = settled["log_driver"] or "json-file"
        return _attended(container, (), settled, note)
    background(container, (), settled, note)
    return 0


def stop(container, timeout=None, signal=None):
    """Ask a container to end, and kill it after `timeout` seconds (10); whether it ran. Its restart policy rests."""
    state = container.state()
    if state["status"] == "elsewhere":
        raise Error(_not_running(container, state))
    if state["status"] not in ("running", "restarting"):
        return False
    options = container.options
    if timeout is None:
        timeout = options["stop_timeout"]
    if timeout is None:
        timeout = container.config().get("StopTimeout")
    timeout = STOP_TIMEOUT if timeout is None else float(timeout)
    number = number_of(signal) if signal else stop_signal(container)
    mark_stopped(container)
    deliver(container, number)
    if wait_for_end(container, timeout if timeout >= 0 else None) is None:
        kill_and_wait(container)
    return True


def stop_signal(container):
    """The number of the signal that asks a container to end."""
    return number_of(container.options["stop_signal"] or container.config().get("StopSignal") or "TERM")


def mark_stopped(container):
    """Note that somebody wants it stopped: its restart policy rests until it is started."""
    try:
        with open(container.path("stop"), "w", encoding="ascii"):
            pass
    except FileNotFoundError:
        pass  # it went meanwhile


def kill_and_wait(container):
    """End a container now. Raises Error when it cannot be ended."""
    mark_stopped(container)
    deliver(container, 9)
    if wait_for_end(container, GONE) is not None:
        return
    # What keeps it does not answer: without it, the kernel ends the container's processes.
    keeper = container.state().get("keeper") or {}
    if containers.is_alive(keeper):
        _send(keeper["pid"], 9)
    if wait_for_end(container, GONE) is None:
        pid = keeper.get("pid")
        raise Error(f"container {container.name} does not end: process {pid} waits in the kernel, for a disk perhaps")


def kill(container, signal="KILL"):
    """Send a signal to a container's first process. Raises Error when it does not run."""
    state = container.state()
    if state["status"] != "running":
        raise Error(_not_running(container, state))
    number = number_of(signal)
    if number in (9, stop_signal(container)):
        mark_stopped(container)
    deliver(container, number)


def deliver(container, number):
    """Hand a signal to what runs, if it does."""
    state = container.state()
    running = state.get("running")
    if state["status"] not in ("running", "restarting") or not running:
        return
    send = getattr(container.engine(), "signal", None)
    if send:
        send(running, number)
    else:
        _send(running["pid"], number)


def _send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def number_of(signal):
    """The number of a signal given as "TERM", "SIGTERM", 15 or "15"; raises Error."""
    import signal as module

    text = str(signal).upper()
    if text.isdigit() and 0 < int(text) < module.NSIG:
        return int(text)
    name = text if text.startswith("SIG") else "SIG" + text
    base, plus, more = name.partition("+")
    number = getattr(module, base, None)
    if not isinstance(number, module.Signals) or (plus and not more.isdigit()):
        raise Error(f"{signal}: no such signal")
    return int(number) + int(more or 0)


def wait_for_end(container, timeout=None):
    """Wait until a container does not run; its exit code (0 when it is gone), None when `timeout` seconds were over."""
    import time

    end = None if timeout is None else time.monotonic() + timeout
    pause = 0.002
    while True:
        if not os.path.isdir(container.directory):
            return 0
        state = container.state()
        if state["status"] not in ("running", "restarting", "elsewhere"):
            return state.get("code") or 0
        now = time.monotonic()
        if end is not None and now >= end:
            return None
        time.sleep(pause if end is None else min(pause, max(0.0, end - now)))
        pause = min(pause * 1.5, 0.05)


def wait(container):
    """Wait for its end; its exit code. Attached to its monitor where there is one, so that --rm takes no code away."""
    connection = _connect(container)
    if connection is None:
        code = wait_for_end(container)
        return code
    from . import terminal

    with connection, terminal.handed_on(False, sig_proxy=False) as signals:
        code = terminal.attach(connection.fileno(), signals, False, stdin=False, sig_proxy=False, streams=())
    return container.state().get("code", code) if os.path.isdir(container.directory) else code


def restart(container, timeout=None, signal=None, note=say):
    """Stop a container and start it again in the background."""
    stop(container, timeout, signal)
    start(container, note=note)


def update(container, restart_policy=None):
    """Change the restart policy, also of a running container."""
    if restart_policy is not None:
        containers.restart_policy(restart_policy)
        with container.locked("update"):
            container.record.setdefault("options", {})["restart"] = restart_policy
            container.write_record()


def start_wanted(store, note=say):
    """Start what its policy wants running and does not: after a reboot of the machine. Returns the ids."""
    found = []
    for container in containers.listed(store):
        policy = _policy(container.options)
        wanted = policy == "always" or (policy == "unless-stopped" and not os.path.exists(container.path("stop")))
        if wanted and container.state()["status"] == "exited":
            start(container, note=note)
            found.append(container.id)
    return found


# Attach, logs, top


def attach_to(container, stdin=True, sig_proxy=True, detach_keys=""):
    """Be the terminal of a container that a monitor keeps; its exit code, or 0 when the person detached."""
    from . import terminal

    state = container.state()
    if state["status"] not in ("running", "restarting"):
        raise Error(_not_running(container, state))
    connection = _connect(container)
    if connection is None:
        raise Error(f"container {container.name} runs in the foreground of another command: use exec")
    tty = bool(state.get("tty"))
    with connection, terminal.handed_on(tty, sig_proxy) as signals:
        code = terminal.attach(
            connection.fileno(), signals, tty, stdin=stdin and bool(state.get("stdin")), sig_proxy=sig_proxy,
            detach_keys=detach_keys,
        )  # fmt: skip
    return 0 if code is None else code


def _connect(container):
    """A socket to its monitor; None without one."""
    import socket

    try:
        folder = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"container {container.id[:12]} is gone") from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{folder}/attach")
        return connection
    except OSError:
        connection.close()
        return None
    finally:
        os.close(folder)


def logs(container, follow=False, tail=None, since=0.0, until=0.0, timestamps=False, write=None):
    """Give out the log: to standard output and error, or to write(stream, data)."""
    from . import logs as kept
    from .terminal import write_all

    def out(stream, data):
        write_all(2 if stream == "stderr" else 1, data)

    kept.read(container, write or out, follow, tail, since, until, timestamps)


def top(container):
    """Its processes: [{"uid", "pid", "ppid", "stime", "tty", "time", "cmd"}], as the host sees them."""
    state = container.state()
    if state["status"] != "running" or not state.get("running"):
        raise Error(_not_running(container, state))
    from .ports import visible

    running = state["running"]
    first = running["shown"]
    space = _readlink(f"/proc/{visible(running)}/ns/pid")
    alone = space and space != _readlink("/proc/self/ns/pid")
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = _process(int(name))
            if entry:
                table[entry["pid"]] = entry
    found = []
    for pid, entry in sorted(table.items()):
        if (pid == first or _readlink(f"/proc/{pid}/ns/pid") == space) if alone else _descends(table, pid, first):
            found.append(entry)
    return found


def _descends(table, pid, ancestor):
    while pid in table and pid != ancestor:
        pid = table[pid]["ppid"]
    return pid == ancestor


def _readlink(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _process(pid):
    import time

    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            head, _bracket, rest = source.read().rpartition(b")")
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            command = source.read().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    fields = rest.split()
    tick = os.sysconf("SC_CLK_TCK")
    used = (int(fields[11]) + int(fields[12])) // tick
    with open("/proc/uptime", encoding="ascii") as source:
        began = time.time() - float(source.read().split()[0]) + int(fields[19]) / tick
    return {
        "uid": uid, "pid": pid, "ppid": int(fields[1]), "stime": time.strftime("%H:%M", time.localtime(began)),
        "tty": "?" if fields[4] == b"0" else f"pts/{int(fields[4]) & 0xFF}",
        "time": f"{used // 3600:02d}:{used // 60 % 60:02d}:{used % 60:02d}",
        "cmd": command or f"[{head.partition(b'(')[2].decode('utf-8', 'replace')}]",
    }  # fmt: skip


# Files and images


def copy(store, source, target, archive=False, follow=False):
    """`cp`: see exchange.copy()."""
    from . import exchange

    exchange.copy(store, source, target, archive, follow)


def diff(container):
    """[(kind, path)] of what a container has changed: A added, C changed, D deleted."""
    from . import exchange

    return exchange.diff(container)


def commit(container, name=None, message="", author="", changes=()):
    """Make an image of what a container has become: see exchange.commit()."""
    from . import exchange

    return exchange.commit(container, name, message, author, changes)

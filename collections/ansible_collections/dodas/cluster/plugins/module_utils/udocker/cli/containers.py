# SPDX-License-Identifier: Apache-2.0
"""Commands about containers that there are."""

import os

from .. import containers as library
from ..errors import Error, NotFound

# How `ps -m` and `setup` call engines: by the modes of udocker 1.3.17 where they are the same thing.
MODES = {"proot": "P1", "directory": "R1", "overlay": "O1", "fuse": "O2"}


def each(session, keys, action):
    """Do something to each container that is named; errors are told, and the rest is done. Returns the status."""
    status = 0
    for key in keys:
        try:
            action(key)
        except Error as exc:
            session.error(str(exc))
            status = 1
    return status


# List


def ps(session, options):
    found = _chosen(session, options)
    if options.quiet:
        for container in found:
            session.out(container.id if options.no_trunc or not session.docker else container.id[:12])
        return
    as_json = options.json or session.json
    if session.docker or options.format or as_json:
        facts = [row(container, options) for container in found]
        if as_json:
            from ..records import dumps

            session.out(dumps(facts))
        elif options.format:
            from . import template

            for line in template.rows(options.format, facts, HEADINGS):
                session.out(line)
        else:
            _table(session, facts, options)
        return
    _udocker_table(session, found, options)


HEADINGS = {
    "ID": "CONTAINER ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT", "Names": "NAMES",
    "LocalVolumes": "LOCAL VOLUMES",
}  # fmt: skip


def _table(session, facts, options):
    from .output import columns

    names = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"]
    if options.size:
        names.append("Size")
    heads = [HEADINGS.get(name, name.upper()) for name in names]
    for line in columns([heads] + [[one[name] for name in names] for one in facts]):
        session.out(line)


def _udocker_table(session, found, options):
    """The columns of udocker 1.3.17, which scripts cut at fixed places; what is new comes last."""
    heads = rows = "%-36.36s %s %s "
    titles = ["CONTAINER ID", "P", "M"]
    if options.m:
        heads, rows = heads + "%s ", rows + "%2.2s "
        titles.append("MOD")
    if options.size:
        heads, rows = heads + "%s ", rows + "%5.5s "
        titles.append("SIZE")
    if options.p:
        heads, rows = heads + "%s ", rows + "%-18.18s "
        titles.append("PLATFORM          ")
    heads, rows = heads + "%-18s %-20.20s", rows + "%-18.100s %-20.100s"
    titles += ["NAMES", "IMAGE"]
    if options.status:
        heads, rows = heads + " %s", rows + " %s"
        titles.append("STATUS")
    session.out(heads % tuple(titles))
    names = library.names(session.store)
    for container in found:
        its = names.get(container.id)
        cells = [container.id, "P" if container.protected else ".", "W" if _writable(container) else "R"]
        if options.m:
            cells.append(mode(container))
        if options.size:
            cells.append(_megabytes(size_of(container)))
        if options.p:
            cells.append(platform(container))
        cells += [str(its) if its else "", familiar(container.image)]
        if options.status:
            cells.append(status_text(container))
        session.out(rows % tuple(cells))


def _chosen(session, options):
    """The containers that the options mean, the newest first."""
    found = library.listed(session.store)
    everything = options.all or not session.docker or options.latest or options.last or options.filter
    if options.running or not everything:
        found = [container for container in found if container.is_running()]
    filters = [text.partition("=")[::2] for text in options.filter]
    for key, _value in filters:
        if key not in FILTERS:
            raise Error(f"--filter {key}: one of {', '.join(FILTERS)}")
    if session.docker and not options.all and filters and not {"status", "exited"} & {key for key, _value in filters}:
        found = [container for container in found if container.is_running()]
    for key in {key for key, _value in filters}:
        values = [value for name, value in filters if name == key]
        found = [container for container in found if passes(session, container, key, values)]
    last = 1 if options.latest else int(options.last or 0) if (options.last or "0").lstrip("-").isdigit() else None
    if last is None:
        raise Error(f"--last {options.last} is no number")
    return found[:last] if last > 0 else found


FILTERS = ("id", "name", "status", "label", "ancestor", "exited", "health", "before", "since", "network")


def passes(session, container, key, values):
    if key == "id":
        return any(container.id.startswith(value) for value in values)
    if key == "name":
        import re

        try:
            return any(re.search(value, "/" + name) or re.search(value, name)
                       for value in values for name in container.names())  # fmt: skip
        except re.error as exc:
            raise Error(f"--filter name={values}: {exc}") from None
    if key == "status":
        return container.state()["status"] in values
    if key == "label":
        labels = library.inspect(container)["Config"]["Labels"]
        return all(_has_label(labels, value) for value in values)
    if key == "ancestor":
        return any(_same_image(container.image, value) for value in values)
    if key == "exited":
        state = container.state()
        return state["status"] == "exited" and str(state.get("code")) in values
    if key == "health":
        return (library.inspect(container)["State"].get("Health") or {}).get("Status", "none") in values
    if key in ("before", "since"):
        other = library.find(session.store, values[-1]).record.get("created") or 0
        created = container.record.get("created") or 0
        return created < other if key == "before" else created > other
    return (container.options["network"] or "host") in values  # key == "network"


def _has_label(labels, text):
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _same_image(name, text):
    from ..reference import parse

    try:
        asked = parse(text)
    except Error:
        return False
    any_tag = ":" not in text.rpartition("/")[2]
    return name == asked.name or (any_tag and name.rpartition(":")[0] == asked.name.rpartition(":")[0])


def row(container, options=None):
    """What `docker ps --format` can name."""
    from . import output

    about = library.inspect(container)
    state, created = container.state(), container.record.get("created") or 0
    labels = about["Config"]["Labels"] or {}
    command = " ".join(command_of(container))
    whole = options is not None and options.no_trunc
    if not whole and len(command) > 20:
        command = command[:19] + "\u2026"
    wants_size = options is not None and (options.size or ".Size" in (options.format or ""))
    return {
        "ID": container.id if whole else container.id[:12],
        "Names": ",".join(container.names()) or container.id[:12],
        "Image": familiar(container.image),
        "Command": '"' + command + '"',
        "CreatedAt": output.stamp(created),
        "RunningFor": output.ago(created),
        "Ports": ports_text(about["NetworkSettings"]["Ports"]),
        "State": state["status"],
        "Status": status_text(container, state),
        "Size": output.size(size_of(container)) if wants_size else "0B",
        "Labels": ",".join("{}={}".format(*pair) for pair in sorted(labels.items())),
        "Mounts": ",".join(text.split(":")[0] for text in container.options["volume"]),
        "Networks": container.options["network"] or "host",
        "LocalVolumes": "0",
        "Engine": container.record.get("engine") or "",
        "Protected": container.protected,
    }


def familiar(name):
    """An image's name as people type it."""
    from ..reference import parse

    try:
        return parse(name).familiar
    except Error:
        return name


def command_of(container):
    """What it runs, as far as it is known before."""
    config = container.config()
    entrypoint = config.get("Entrypoint") or []
    entrypoint = [entrypoint] if isinstance(entrypoint, str) else entrypoint
    command = container.record.get("command") or config.get("Cmd") or []
    return list(entrypoint) + ([command] if isinstance(command, str) else list(command))


def status_text(container, state=None):
    """In docker's words: Up 5 minutes, Exited (0) 2 hours ago, Created."""
    import time

    from .output import ago, span

    state = state or container.state()
    status = state["status"]
    if status == "running":
        health = (state.get("health") or {}).get("Status")
        health = " ({})".format("health: starting" if health == "starting" else health) if health else ""
        return "Up " + span(time.time() - (state.get("started") or time.time())) + health
    if status == "exited":
        return "Exited ({}) {}".format(state.get("code") or 0, ago(state.get("finished")))
    if status == "restarting":
        return "Restarting ({}) {}".format(state.get("code") or 0, ago(state.get("finished")))
    return {"created": "Created", "elsewhere": "Up elsewhere"}.get(status, status)


def ports_text(ports):
    parts = []
    for inside, bindings in sorted((ports or {}).items()):
        for binding in bindings or [None]:
            if binding:
                parts.append("{}:{}->{}".format(binding.get("HostIp") or "0.0.0.0", binding.get("HostPort"), inside))
            else:
                parts.append(inside)
    return ", ".join(parts)


def mode(container):
    """Its engine in two characters."""
    return MODES.get(container.record.get("engine"), "??")


def platform(container):
    about = container.configuration()
    parts = [about.get("os") or "unknown", about.get("architecture") or "unknown"]
    return "/".join(parts + ([about["variant"]] if about.get("variant") else []))


def size_of(container):
    """Bytes that are its own on disk, and not its image's."""
    from ..images import container_size

    return container_size(container)


def _megabytes(count):
    return str(-(-count // (1024 * 1024)))


def _writable(container):
    return os.access(container.directory, os.W_OK)


# Life


def start(session, options):
    from .. import runtime

    keys = options.arguments
    if options.attach or options.interactive:
        if len(keys) > 1:
            raise Error("one container at a time can be attached to")
        container = library.find(session.store, keys[0])
        keys = options.detach_keys or ""
        return runtime.start(container, None, True, options.interactive, keys, session.debug)

    def begin(key):
        runtime.start(library.find(session.store, key), note=session.debug)
        session.out(key)

    return each(session, keys, begin)


def _seconds(text, what, default=None):
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        raise Error(f"--{what} {text} is no number of seconds") from None


def stop(session, options):
    from .. import runtime

    timeout = _seconds(options.time, "time")

    def end(key):
        runtime.stop(library.find(session.store, key), timeout=timeout, signal=options.signal)
        session.out(key)

    return each(session, options.arguments, end)


def kill(session, options):
    from .. import runtime

    def send(key):
        runtime.kill(library.find(session.store, key), options.signal or "KILL")
        session.out(key)

    return each(session, options.arguments, send)


def restart(session, options):
    from .. import runtime

    timeout = _seconds(options.time, "time")

    def again(key):
        runtime.restart(library.find(session.store, key), timeout, options.signal, session.debug)
        session.out(key)

    return each(session, options.arguments, again)


def wait(session, options):
    from .. import runtime

    def end(key):
        session.out(str(runtime.wait(library.find(session.store, key))))

    return each(session, options.arguments, end)


def attach(session, options):
    from .. import runtime

    container = library.find(session.store, options.arguments[0])
    return runtime.attach_to(container, stdin=not options.no_stdin, detach_keys=options.detach_keys or "")


def logs(session, options):
    from .. import runtime

    container = library.find(session.store, options.arguments[0])
    tail = None if options.tail in (None, "all", "-1") else options.tail
    if tail is not None and not tail.isdigit():
        raise Error(f"--tail {tail} is no number of lines")
    since, until = moment(options.since, "since"), moment(options.until, "until")
    runtime.logs(container, options.follow, None if tail is None else int(tail), since, until, options.timestamps)


def moment(text, what):
    """Seconds since the epoch of 2024-05-06[T07:08:09[Z]], of seconds since the epoch, or of "10m": so long ago."""
    import datetime
    import time

    if not text:
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    import re

    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time() - sum(float(number) * units.get(unit, 0.001) for number, unit in parts)
    digits = re.sub(r"(\.\d{6})\d+", r"\1", text)  # nanoseconds
    if digits.endswith("Z"):
        digits = digits[:-1] + "+00:00"
    try:
        return datetime.datetime.fromisoformat(digits).timestamp()
    except ValueError:
        raise Error(f"--{what} {text}: 2024-05-06T07:08:09 is a time, and 10m is ten minutes ago") from None


def top(session, options):
    from .. import runtime
    from .output import columns

    processes = runtime.top(library.find(session.store, options.arguments[0]))
    names = ["uid", "pid", "ppid", "stime", "tty", "time", "cmd"]
    for line in columns([[name.upper() for name in names]] + [[str(one[name]) for name in names] for one in processes]):
        session.out(line)


def stats(session, options):
    """What the processes of containers use, once."""
    from .. import runtime
    from .output import columns, size

    keys = options.arguments
    found = [library.find(session.store, key) for key in keys] or library.listed(session.store)
    memory = _meminfo()
    facts = []
    for container in found:
        running = container.state()["status"] == "running"
        if not running and not (options.all or keys):
            continue
        used, seconds, count = _usage(runtime.top(container)) if running else (0, 0.0, 0)
        started = container.state().get("started") or 0
        import time

        alive = max(time.time() - started, 0.01) if running else 1.0
        facts.append({
            "ID": container.id if options.no_trunc else container.id[:12],
            "Container": container.id[:12],
            "Name": container.name,
            "CPUPerc": f"{100 * seconds / alive:.2f}%",
            "MemUsage": f"{size(used)} / {size(memory)}",
            "MemPerc": f"{100.0 * used / memory if memory else 0:.2f}%",
            "NetIO": "-- / --",
            "BlockIO": "-- / --",
            "PIDs": str(count),
        })  # fmt: skip
    if session.json or options.format:
        from . import template

        heads = {"CPUPerc": "CPU %", "MemPerc": "MEM %", "MemUsage": "MEM USAGE / LIMIT"}
        for line in template.rows(options.format or "json", facts, heads):
            session.out(line)
        return
    heads = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS"]
    names = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "PIDs"]
    for line in columns([heads] + [[one[name] for name in names] for one in facts]):
        session.out(line)


def _usage(processes):
    """(bytes of memory, seconds of CPU, number) of processes."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    used, seconds = 0, 0.0
    for process in processes:
        try:
            with open("/proc/{}/stat".format(process["pid"]), "rb") as source:
                fields = source.read().rpartition(b")")[2].split()
        except OSError:
            continue
        used += int(fields[21]) * page
        seconds += (int(fields[11]) + int(fields[12])) / tick
    return used, seconds, len(processes)


def _meminfo():
    with open("/proc/meminfo", encoding="ascii") as source:
        return int(source.readline().split()[1]) * 1024


def port(session, options):
    ports = library.inspect(library.find(session.store, options.arguments[0]))["NetworkSettings"]["Ports"] or {}
    wanted = options.arguments[1] if len(options.arguments) > 1 else None
    if wanted and "/" not in wanted:
        wanted += "/tcp"
    if wanted and not ports.get(wanted):
        raise Error(f"no public port '{wanted}' published for {options.arguments[0]}")
    for inside, bindings in sorted(ports.items()):
        for binding in bindings or []:
            text = "{}:{}".format(binding.get("HostIp") or "0.0.0.0", binding.get("HostPort"))
            if wanted in (None, inside):
                session.out(text if wanted else f"{inside} -> {text}")


# Names and protection


def rm(session, options):
    def remove(key):
        try:
            container = library.find(session.store, key)
        except NotFound:
            if options.force and session.docker:
                return
            raise
        if not session.docker:
            session.say("deleting container: " + container.id)
        library.remove(container, force=options.force)
        if session.docker:
            session.out(key)

    return each(session, options.arguments, remove)


def rename(session, options):
    old, new = options.arguments
    library.rename(library.find(session.store, old), new)


def name(session, options):
    key, new = options.arguments
    library.add_name(library.find(session.store, key), new)


def rmname(session, options):
    library.remove_name(session.store, options.arguments[0])
    session.say(f"container name: {options.arguments[0]} removed.")


def clone(session, options):
    session.out(library.clone(library.find(session.store, options.arguments[0]), options.name).id)


def protect(session, options):
    _protection(session, options.arguments[0], True)


def unprotect(session, options):
    _protection(session, options.arguments[0], False)


def _protection(session, key, wanted):
    try:
        container = library.find(session.store, key)
    except NotFound:
        from .. import images
        from ..reference import parse

        (images.protect if wanted else images.unprotect)(session.store, parse(key).name)
        return
    (library.protect if wanted else library.unprotect)(container)


# Content


def cp(session, options):
    from .. import exchange

    source, target = options.arguments
    exchange.copy(session.store, source, target, options.archive, options.follow_link)


def diff(session, options):
    from .. import exchange

    changes = exchange.diff(library.find(session.store, options.arguments[0]))
    if options.json or session.json:
        from ..records import dumps

        session.out(dumps([{"Kind": kind, "Path": path} for kind, path in changes]))
        return
    for kind, path in changes:
        session.out(f"{kind} {path}")


def commit(session, options):
    from .. import exchange
    from .progress import of

    key, name = [*options.arguments, None][:2]
    with of(session) as progress:
        image = exchange.commit(
            library.find(session.store, key), name, message=options.message or "", author=options.author or "",
            changes=options.change, progress=progress,
        )  # fmt: skip
    session.out(image.config)


# How it is run


def setup(session, options):
    container = library.find(session.store, options.arguments[0])
    if not {"execmode", "nvidia", "purge", "fixperm"} & options.given:
        session.out("execmode: " + (container.record.get("mode") or mode(container)))
        session.out("nvidiamode: " + str(bool(container.options["nvidia"])))
        return
    if options.execmode:
        if container.protected:
            raise Error("container is protected")
        _set_engine(session, container, options.execmode)
    if options.nvidia:
        container.record.setdefault("options", {})["nvidia"] = True
        container.write_record()
    if options.purge or options.fixperm:
        session.debug("nothing of that is needed here: mounts leave nothing, and files are the user's")


def _set_engine(session, container, wanted):
    """Change the engine of a container that exists: of the others, to what keeps a plain tree in ROOT."""
    from .. import engines

    name = wanted.upper()
    if name in ("F1", "F2", "F3", "F4", "S1"):
        session.warn("{} has no like here: {} goes on with engine {}".format(
            name, container.name, container.record["engine"]))  # fmt: skip
        return
    engine = engines.choose(session.store, wanted)
    has = container.record["engine"]
    if engine.name != has:
        if engine.name not in ("directory", "proot"):
            both = "{} has a plain tree, which engine {} does not take: make a new container with run --engine={}"
            raise Error(both.format(container.name, engine.name, engine.name))
        if has not in ("directory", "proot"):
            library.materialise(container)
        container.record["engine"] = engine.name
    container.record["mode"] = name if name in engines.MODES else None
    container.write_record()

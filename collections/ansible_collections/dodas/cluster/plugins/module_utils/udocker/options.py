# SPDX-License-Identifier: Apache-2.0
"""What a person asked for (containers.OPTIONS) and what the image says make what an engine is asked to run (Spec)."""

import os

from .containers import find
from .errors import Error
from .spec import Mount, Spec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash -i; exec sh -i"]  # where nothing says what to run
# Programs that are made to be process 1 and insist on it.
INITS = frozenset(
    ("init", "systemd", "tini", "tini-static", "dumb-init", "catatonit", "docker-init", "s6-svscan", "runsvdir")
)
# Of the host's environment these stay out of --hostenv: they describe the host's session.
NOT_HOSTENV = frozenset(("HOME", "PATH", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "VTE_VERSION", "UDOCKER_DIR"))
NO_EFFECT = (
    "cap_add", "cap_drop", "security_opt", "privileged", "memory", "memory_swap", "cpus", "cpu_shares", "pids_limit",
    "ipc", "pid", "uts", "userns", "cgroupns", "group_add", "sysctl", "oom_score_adj", "runtime", "isolation",
    "mac_address", "ip", "link", "network_alias",
)  # fmt: skip
# Those that ask for what is so anyway.
IMPLIED = {"ipc": ("", "host"), "uts": ("", "host"), "userns": ("", "host", "keep-id"), "cgroupns": ("", "host")}
BIND_OPTIONS = frozenset(
    (
        "ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", "shared", "rshared", "slave", "rslave",
        "private", "rprivate", "bind", "rbind", "U",
    )
)  # fmt: skip


def build(container, argv, options, note, live=True):
    """The Spec of a container's process.

    argv: the command, instead of the container's or the image's; note(text) is told what has no effect.
    live: it is going to be started, so that the files bound into it are made.
    """
    config = {} if options["nometa"] else container.config()
    network = network_of(options)
    hostname = options["hostname"] or (None if network == "host" else container.id[:12])
    env = environment(config, options, hostname)
    user = options["user"] or str(config.get("User") or "")
    mounts = _mounts(container, options, hostname, user, env, live)
    command = command_of(config, argv or container.record.get("command") or [], options, note)
    init = options["init"]
    if init is None:
        init = os.path.basename(command[0]) not in INITS
    for name in NO_EFFECT:
        if options[name] and options[name] not in IMPLIED.get(name, ()):
            note(f"--{name.replace('_', '-')} has no effect: containers here are processes of a user")
    devices, limits = _devices(options, mounts, env), _limits(options)
    if options["kernel"]:
        if container.record["engine"] == "proot":
            limits["kernel"] = options["kernel"]
        else:
            note("--kernel has no effect: only PRoot can pretend to be another kernel")
    return Spec(
        container.directory,
        container.layers,
        command,
        env,
        cwd=options["workdir"] or config.get("WorkingDir") or "/",
        user=user,
        hostname=hostname,
        mounts=mounts,
        network="host" if network == "host" else "none",
        read_only=options["read_only"],
        volatile=options["rm"] and not container.protected,
        terminal=bool(options["tty"]),
        init=init,
        devices=devices,
        limits=limits,
    )


def command_of(config, argv, options, note):
    """What is executed: entry point and command by Docker's rules."""
    entrypoint = options["entrypoint"]
    argv = list(argv)
    if entrypoint is None:
        entrypoint = _words(config.get("Entrypoint"))
        argv = argv or _words(config.get("Cmd"))
    elif isinstance(entrypoint, str):
        # udocker splits it at blanks; Docker takes it as one program
        entrypoint = entrypoint.split() if options["dialect"] == "udocker" else [entrypoint] if entrypoint else []
    command = list(entrypoint) + argv
    if not command or not command[0]:
        if options["dialect"] == "docker":
            raise Error("no command: neither the command line nor the image names one", 125)
        note("no command given: a shell is started")
        return SHELL
    return command


def _words(value):
    return value.split() if isinstance(value, str) else [str(word) for word in value or ()]


# Environment


def environment(config, options, hostname):
    """The variables, by Docker's rules: of the image, then of files, then of the command line."""
    env = {"PATH": PATH, "HOSTNAME": hostname or os.uname().nodename}
    if options["tty"]:
        env["TERM"] = "xterm" if options["dialect"] == "docker" else os.environ.get("TERM") or "xterm"
    elif options["dialect"] == "udocker" and "TERM" in os.environ:
        env["TERM"] = os.environ["TERM"]
    if options["hostenv"]:
        env.update((key, value) for key, value in os.environ.items() if key not in NOT_HOSTENV)
    for entry in config.get("Env") or ():
        name, equals, value = entry.partition("=")
        if equals:
            env[name] = value
    return extend(env, options)


def extend(env, options):
    """Add --env-file and --env; a name without a value takes the host's, if it has one."""
    entries = []
    for path in options["env_file"]:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as source:
                lines = source.read().split("\n")
        except OSError as exc:
            raise Error(f"--env-file {path}: {exc.strerror}", 125) from exc
        for number, line in enumerate(lines, 1):
            line = line.lstrip().rstrip("\r")
            if line and not line.startswith("#"):
                if not line.partition("=")[0].strip() or " " in line.partition("=")[0]:
                    raise Error(f"{path}:{number}: not NAME=VALUE", 125)
                entries.append(line)
    for entry in entries + list(options["env"]):
        name, equals, value = entry.partition("=")
        if not name:
            raise Error(f"--env {entry}: a variable needs a name", 125)
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
        else:
            env.pop(name, None)
    return env


# Files


def _mounts(container, options, hostname, user, env, live):
    docker = options["dialect"] == "docker"
    mounts = []
    if not options["nosysdirs"]:
        mounts.extend(_system_files(container, options, hostname, live))
    if options["bindhome"]:
        home = os.path.realpath(os.path.expanduser("~"))
        mounts.append(Mount("bind", home, home))
        env.setdefault("HOME", home)
    for name in options["volumes_from"]:
        mounts.extend(_volumes_from(container.store, name))
    for text in options["volume"]:
        mounts.append(volume(container, text, docker, live))
    for text in options["mount"]:
        mounts.append(_mount(container, text, live))
    for text in options["tmpfs"]:
        path, _colon, more = text.partition(":")
        mounts.append(Mount("tmpfs", _inside(path, "--tmpfs"), options=more))
    if options["shm_size"]:
        mounts.append(Mount("tmpfs", "/dev/shm", options=f"size={size(options['shm_size'])},mode=1777"))
    if not docker and (os.environ.get("DISPLAY") or options["dri"]) and "DISPLAY" in env:
        mounts.extend(_x11(env))
    taken = {mount.target for mount in mounts}
    mounts.extend(mount for mount in _accounts(container, options, user, env, live) if mount.target not in taken)
    for unwanted in options["novol"]:
        mounts = [mount for mount in mounts if unwanted not in (mount.target, mount.source)]
    # The last of two for the same place is meant, and what lies deeper comes after what it lies in.
    mounts = list({mount.target: mount for mount in mounts}.values())
    mounts.sort(key=lambda mount: mount.target.count("/") if mount.target != "/" else 0)
    return mounts


def volume(container, text, docker, live=True):
    """The Mount of a --volume: HOST[:CONTAINER[:OPTIONS]], or NAME:CONTAINER for a folder that the store keeps."""
    parts = text.split(":")
    given = set()
    if len(parts) > 2 or (len(parts) == 2 and not parts[1].startswith("/") and parts[1] in BIND_OPTIONS):
        given = set(parts.pop().split(","))
        if given - BIND_OPTIONS:
            raise Error(f"--volume {text}: unknown option {', '.join(sorted(given - BIND_OPTIONS))}", 125)
    if len(parts) > 2 or not parts[0]:
        raise Error(f"--volume {text}: HOST[:CONTAINER[:ro]] is expected", 125)
    source = parts[0]
    target = _inside(parts[1] if len(parts) == 2 and parts[1] else source, "--volume " + text)
    if len(parts) == 1 and docker:
        return _named(container, container.path("volumes", target.strip("/").replace("/", "_")), target, given, live)
    if source.startswith((".", "~")) or ("/" in source and not source.startswith("/")):
        source = os.path.abspath(os.path.expanduser(source))
    if not source.startswith("/"):
        return _named(container, container.store.path("volumes", _volume_name(source)), target, given, live)
    return _bind(source, target, "ro" in given, docker, live, "--volume " + text)


def _bind(source, target, read_only, create, live, what):
    if live and not os.path.exists(source):
        if not create:
            raise Error(f"{what}: {source} does not exist on this host", 125)
        try:
            os.makedirs(source)
        except OSError as exc:
            raise Error(f"{what}: {source} cannot be made: {exc.strerror}", 125) from exc
    return Mount("bind", target, source, read_only)


def _named(container, folder, target, given, live):
    """A folder of the store; a new one is filled with what the image has there, as Docker does."""
    if live and not os.path.isdir(folder):
        from .exchange import fill_volume

        fill_volume(container, target, folder)
    return Mount("bind", target, folder, "ro" in given)


def _volume_name(name):
    from .containers import check_name

    check_name(name)
    return name


def _mount(container, text, live):
    """The Mount of a --mount type=bind|tmpfs|volume,source=...,target=...,readonly."""
    what = "--mount " + text
    values = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        values[{"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)] = (
            value if equals else "true"
        )
    kind = values.pop("type", "volume")
    target = _inside(values.pop("target", ""), what)
    source = values.pop("source", "")
    read_only = values.pop("readonly", "false") in ("true", "1")
    for ignored in ("bind-propagation", "consistency", "volume-nocopy", "bind-nonrecursive"):
        values.pop(ignored, None)
    if kind == "tmpfs":
        options = []
        if "tmpfs-size" in values:
            options.append(f"size={size(values.pop('tmpfs-size'))}")
        if "tmpfs-mode" in values:
            options.append(f"mode={values.pop('tmpfs-mode')}")
        mount = Mount("tmpfs", target, read_only=read_only, options=",".join(options))
    elif kind == "bind":
        source = os.path.abspath(os.path.expanduser(source)) if source else ""
        if not source:
            raise Error(f"{what}: a bind mount needs source=", 125)
        mount = _bind(source, target, read_only, False, live, what)
    elif kind == "volume":
        name = _volume_name(source) if source else ""
        folder = container.store.path("volumes", name) if name else container.path("volumes", target.replace("/", "_"))
        mount = _named(container, folder, target, {"ro"} if read_only else set(), live)
    else:
        raise Error(f"{what}: type {kind} is not supported: bind, tmpfs and volume are", 125)
    if values:
        raise Error(f"{what}: unknown: {', '.join(sorted(values))}", 125)
    return mount


def _volumes_from(store, text):
    name, _colon, mode = text.partition(":")
    other = find(store, name)
    options = other.options
    mounts = [volume(other, one, options["dialect"] == "docker") for one in options["volume"]]
    mounts.extend(_mount(other, one, True) for one in options["mount"])
    for mount in mounts:
        mount.read_only = mount.read_only or mode == "ro"
    return mounts


def _inside(path, what):
    """A path in the container, absolute and clean; raises Error."""
    if not path.startswith("/") or os.path.normpath(path).strip("/") == "":
        raise Error(f"{what}: an absolute path in the container, other than /, is expected", 125)
    return "/" + os.path.normpath(path).strip("/")


def _system_files(container, options, hostname, live):
    """Mounts of hosts, resolv.conf and hostname: files of its own folder; the image stays as it is."""
    folder = container.path("etc")
    contents = {"resolv.conf": _resolv_conf(options), "hosts": _hosts(options, hostname)}
    if hostname:
        contents["hostname"] = hostname + "\n"
    mounts = []
    for name, content in contents.items():
        path = os.path.join(folder, name)
        if live:
            _write(path, content)
        mounts.append(Mount("bind", "/etc/" + name, path))
    return mounts


def _resolv_conf(options):
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="surrogateescape") as source:
            lines = source.read().splitlines()
    except OSError:
        lines = []
    for key, words in (("nameserver", "dns"), ("search", "dns_search"), ("options", "dns_option")):
        given = options[words]
        if given:
            given = [given] if isinstance(given, str) else list(given)
            replaced = (key, "domain") if key == "search" else (key,)
            lines = [line for line in lines if line.split(None, 1)[:1] not in [[one] for one in replaced]]
            if key == "nameserver":
                lines.extend("nameserver " + address for address in given)
            elif given != ["."]:
                lines.append(key + " " + " ".join(given))
    return "\n".join(lines) + "\n"


def _hosts(options, hostname):
    text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    if network_of(options) == "host":
        try:
            with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as source:
                text = source.read()
        except OSError:
            pass
    if text and not text.endswith("\n"):
        text += "\n"
    if hostname:
        text += f"127.0.0.1\t{hostname}\n"
    for entry in options["add_host"]:
        name, colon, address = entry.replace("=", ":", 1).partition(":")
        if not colon or not name:
            raise Error(f"--add-host {entry}: NAME:ADDRESS is expected", 125)
        text += f"{'127.0.0.1' if address == 'host-gateway' else address.strip('[]')}\t{name}\n"
    return text


def _accounts(container, options, user, env, live):
    """Mounts of passwd and group where they are not the image's own.

    --hostauth: the host's files, and this user's entry where it comes from elsewhere (LDAP). Otherwise, as udocker
    does: a user that the image does not know, and that this host's user is, is added to a copy of the image's.
    """
    name = user.partition(":")[0]
    wanted = options["hostauth"]
    if not wanted and (options["containerauth"] or options["dialect"] == "docker" or not name or name.isdigit()):
        return []
    from . import accounts

    try:
        contents = accounts.files(container, name, host=wanted)
    except LookupError:
        raise Error(f"user {name} is known neither to the image nor to this host", 125) from None
    mounts = []
    for file, content in contents.items():
        path = container.path("etc", file)
        if live:
            _write(path, content)
        mounts.append(Mount("bind", "/etc/" + file, path))
    return mounts


def _write(path, content):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        target = os.open(path, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = os.open(path, flags, 0o644)
    try:
        os.write(target, content.encode("utf-8", "surrogateescape"))
    finally:
        os.close(target)


def _x11(env):
    """Mounts for programs with windows, when the container was given DISPLAY."""
    mounts = []
    if os.path.isdir("/tmp/.X11-unix"):
        mounts.append(Mount("bind", "/tmp/.X11-unix", "/tmp/.X11-unix"))
    authority = os.environ.get("XAUTHORITY") or os.path.expanduser("~/.Xauthority")
    if os.path.isfile(authority):
        mounts.append(Mount("bind", "/tmp/.Xauthority", authority, read_only=True))
        env.setdefault("XAUTHORITY", "/tmp/.Xauthority")
    return mounts


# Devices and limits


def _devices(options, mounts, env):
    devices = []
    for text in options["device"]:
        source, _colon, rest = text.partition(":")
        target = rest.partition(":")[0]
        if not os.path.exists(source):
            raise Error(f"--device {text}: {source} does not exist on this host", 125)
        if target.startswith("/") and target != source:
            mounts.append(Mount("bind", target, source))
        elif os.path.isdir(source):
            devices.extend(os.path.join(source, name) for name in sorted(os.listdir(source)))
        else:
            devices.append(source)
    if options["dri"] or options["nvidia"] or options["gpus"]:
        from . import devices as known

        for wanted, give in ((options["dri"], "dri"), (options["nvidia"] or options["gpus"], "nvidia")):
            if wanted:
                found = getattr(known, give)()
                devices.extend(found[0])
                mounts.extend(found[1])
                env.update((key, value) for key, value in found[2].items() if key not in env)
    return devices


def _limits(options):
    limits = {}
    if options["cpuset_cpus"]:
        limits["cpuset"] = options["cpuset_cpus"]
    for text in options["ulimit"]:
        name, equals, values = text.partition("=")
        soft, _colon, hard = values.partition(":")
        try:
            pair = tuple(-1 if one == "unlimited" else int(one) for one in (soft, hard or soft))
        except ValueError:
            pair = ()
        if not equals or not pair:
            raise Error(f"--ulimit {text}: NAME=SOFT[:HARD] is expected", 125)
        limits[name] = pair
    return limits


def size(text):
    """Bytes of "64m"; raises Error."""
    text = str(text).strip().lower()
    number = text.rstrip("kmgtbi")
    unit = text[len(number) :][:1]
    if not number.isdigit():
        raise Error(f"{text!r} is no size: 64m, 1g are", 125)
    return int(number) * 1024 ** ("bkmgt".index(unit) if unit else 0)


def seconds(text, default):
    """Seconds of a duration such as "1m30s", "500ms" or "10"; raises Error."""
    if text in ("", None):
        return default
    if isinstance(text, (int, float)):
        return text / 1e9  # as an image's configuration keeps it
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "": 1.0}
    total, number, unit = 0.0, "", ""
    try:
        for char in text + "0":
            if char.isdigit() or char == ".":
                if unit:
                    total, number, unit = total + float(number) * units[unit], "", ""
                number += char
            else:
                unit += char
        # the digit put last closes the last unit, or follows a bare number
        return total if number == "0" else total + float(number[:-1])
    except (ValueError, KeyError):
        raise Error(f"{text!r} is no duration: 30s, 1m30s, 500ms are", 125) from None


def network_of(options):
    """host, none or private."""
    wanted = options["network"]
    if wanted in ("", "host"):
        return "host"
    if wanted == "none":
        return "none"
    if wanted in ("private", "slirp4netns", "pasta"):
        return "private"
    if wanted in ("bridge", "default"):
        return "host"  # Docker's default, asked for by name: what has ports published works with the host's network
    raise Error(f"--network {wanted}: host, none and private are there", 125)

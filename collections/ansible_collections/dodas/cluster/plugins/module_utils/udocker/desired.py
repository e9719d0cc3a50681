# SPDX-License-Identifier: Apache-2.0
"""What a container shall be, compared with what is recorded of it: for those who describe and do not command.

A definition is options by their names in containers.OPTIONS, plus "command" (a list). Only the options that MANAGED
names are compared; an option that is not defined has its default.
"""

from .containers import OPTIONS

# Options that a definition may have. Lists whose order means nothing are compared as sets.
MANAGED = (
    "add_host", "device", "dns", "engine", "entrypoint", "env", "health_cmd", "hostauth", "hostname", "init",
    "interactive", "label", "network", "publish", "read_only", "restart", "shm_size", "stop_signal", "stop_timeout",
    "tmpfs", "tty", "ulimit", "user", "volume", "workdir",
)  # fmt: skip
# Beginnings of names of variables that would change the runtime itself.
SENSITIVE = ("BASH_ENV", "DOCKER_", "ENV", "HOME", "IFS", "LD_", "PATH", "PYTHON", "TMPDIR", "UDOCKER_", "XDG_")
UNORDERED = frozenset(("add_host", "device", "env", "label", "publish", "tmpfs", "ulimit", "volume"))


def definition(options, command=()):
    """A definition without what says nothing: unknown options raise KeyError."""
    made = {"command": [str(word) for word in command]}
    for name, value in options.items():
        if name not in MANAGED:
            raise KeyError(name)
        made[name] = _normal(name, value)
    return made


def recorded(record):
    """The definition of a container, from its record.json."""
    stored = record.get("options") or {}
    made = {name: _normal(name, stored[name]) for name in MANAGED if name in stored}
    made["command"] = list(record.get("command") or ())
    # The engine is noted whether somebody asked for it or not.
    made.pop("engine", None)
    return made


def differences(wanted, record, manifest=None):
    """{name: (before, after)} of what the definition `wanted` changes in a container with this record.

    manifest: digest of the image that it shall be of, None where that is not compared
    """
    before = recorded(record)
    found = {}
    for name in sorted(set(wanted) | set(before)):
        if name == "engine":
            old, new = record.get("engine"), wanted.get("engine")
            if new and new != old:
                found[name] = (old, new)
            continue
        default = [] if name == "command" else _normal(name, OPTIONS[name])
        old, new = before.get(name, default), wanted.get(name, default)
        if old != new:
            found[name] = (old, new)
    if manifest and record.get("manifest") and manifest != record["manifest"]:
        found["image"] = (record["manifest"], manifest)
    return found


def summary(wanted, image=None):
    """A definition as text, one line each, values of variables left out: they may be secrets."""
    lines = [f"image: {image}"] if image else []
    for name in sorted(wanted):
        value = wanted[name]
        if name == "env":
            value = [item.partition("=")[0] + "=..." for item in value]
        if value not in (None, "", [], False):
            text = " ".join(value) if isinstance(value, list) else value
            lines.append(f"{name}: {text}")
    return "".join(line + "\n" for line in lines)


def variables(values):
    """(options, environment) to run the program with, so that a container has the variables `values` (a mapping).

    They are passed by name, so that no list of processes shows their values, but for those that the runtime itself
    would heed.
    """
    own = {name for name in values if name.startswith(SENSITIVE)}
    options = [f"--env={name}={value}" if name in own else f"--env={name}" for name, value in sorted(values.items())]
    return options, {name: value for name, value in values.items() if name not in own}


def _normal(name, value):
    if name in UNORDERED:
        return sorted(set(value or ()))
    if isinstance(value, (list, tuple)):
        return [str(one) for one in value]
    default = OPTIONS[name]
    if default is None or isinstance(default, bool) or value is None:
        return value
    return type(default)(value)

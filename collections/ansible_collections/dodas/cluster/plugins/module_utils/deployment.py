# SPDX-License-Identifier: Apache-2.0
"""Where the controller keeps what it knows about a deployment.

`$DODAS_HOME/deployments/NAME/` (mode 0700) holds inputs.json, deployment.json, hosts.json and the secrets.
Everything that reads or writes this state goes through here: names, modes and atomicity are decided once.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid as uuids
from pathlib import Path

NAME = r"^[a-z][a-z0-9-]{0,30}$"


def valid_name(name):
    """Whether `name` can name a deployment: it becomes a directory, a host name's part and a label."""
    return isinstance(name, str) and re.fullmatch(NAME[1:-1], name) is not None


def home():
    """The state directory: `$DODAS_HOME`, or /var/lib/dodas for root, or ~/.local/share/dodas."""
    given = os.environ.get("DODAS_HOME")
    if given:
        return Path(given).expanduser().absolute()
    return Path("/var/lib/dodas") if os.geteuid() == 0 else Path.home() / ".local/share/dodas"


def deployment_dir(name):
    """The directory of deployment `name`, existing or not. Raises ValueError for a name that is not valid."""
    if not valid_name(name):
        raise ValueError(f"deployment name {json.dumps(name)} must match {NAME}")
    return home() / "deployments" / name


def uuid(state_dir, make=True):
    """What tells a deployment from all others, also in a cloud: made once, kept in `state_dir`/uuid.

    None where there is none yet and `make` is false. Raises ValueError, naming a damaged file.
    """
    path = Path(state_dir) / "uuid"
    try:
        return str(uuids.UUID(path.read_text(encoding="ascii").strip()))
    except FileNotFoundError:
        if not make:
            return None
    except ValueError as exc:
        raise ValueError(f"{path}: no UUID") from exc
    write_text(path, f"{uuids.uuid4()}\n")
    return uuid(state_dir)


def read_json(path, default=None):
    """The value in the file, or `default` without such a file. Raises ValueError, naming a damaged file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as exc:
        raise ValueError(f"{path}: not valid JSON: {exc}") from exc


def write_json(path, value):
    """Write `value` with mode 0600, all or nothing; missing directories are made with mode 0700."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path, text):
    """As `write_json`, for text."""
    path = Path(path)
    for directory in reversed([path.parent, *path.parent.parents]):
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp: mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

# SPDX-License-Identifier: Apache-2.0
"""The client's parameters, from its files in the order that they count."""

from __future__ import annotations

import subprocess
from pathlib import Path

ETC = Path("/etc/cvmfs")


def files(name):
    """What is read for repository `name`, later ones count."""
    domain = name.partition(".")[2]
    found = [ETC / "default.conf", *sorted(ETC.glob("default.d/*.conf")), ETC / "default.local"]
    if name:
        found += [ETC / f"{folder}/{one}.{end}" for folder, one in (("domain.d", domain), ("config.d", name))
                  for end in ("conf", "local")]  # fmt: skip
    return [path for path in found if path.exists()]


def read(name=""):
    """The parameters for a repository, as its shell files say."""
    script = 'set -a; while [ $# -gt 0 ]; do . "$1"; shift; done; exec env -0'
    command = ["/bin/sh", "-c", script, "sh", *map(str, files(name))]
    shown = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True).stdout
    pairs = (line.partition("=")[::2] for line in shown.decode().split("\0") if line)
    ours = {key: value for key, value in pairs if key not in ("PATH", "PWD", "_", "SHLVL", "OLDPWD")}
    organisation = name.partition(".")[0]
    return {key: value.replace("@fqrn@", name).replace("@org@", organisation) for key, value in ours.items()}


def is_on(value):
    return (value or "").lower() in ("yes", "on", "1", "true")


def full_name(name, parameters):
    return name if "." in name or not name else f"{name}.{parameters.get('CVMFS_DEFAULT_DOMAIN', 'cern.ch')}"


def cache(name, parameters):
    """The folder of the cache, and of the socket."""
    base = parameters.get("CVMFS_CACHE_BASE", "/var/lib/cvmfs")
    return Path(base, "shared" if is_on(parameters.get("CVMFS_SHARED_CACHE")) else name)

# SPDX-License-Identifier: Apache-2.0
"""What the backend `local` needs of this machine: root and a few Debian packages, or with engine `udocker` neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import click

from ansible_collections.dodas.cluster.plugins.module_utils import host
from dodas.deployments import ROOT
from dodas.errors import DodasError

PACKAGES = ("podman", "crun", "netavark", "aardvark-dns", "iptables", "nftables", "mmdebstrap", "openssh-client")


def choose_engine(yes):
    """The engine for a new deployment: udocker where podman or root is missing, unless somebody says no."""
    if os.geteuid() != 0:
        lacks = "root"
    elif not shutil.which("podman") and not shutil.which("dpkg-query"):
        lacks = "podman"
    else:
        return "podman"
    if not yes and sys.stdin.isatty():
        question = f"{lacks} is missing: run everything as one plain user with engine udocker?"
        return "udocker" if click.confirm(question, default=True) else "podman"
    click.echo(f"dodas: {lacks} is missing: everything runs as one plain user with engine udocker", err=True)
    return "udocker"


def become_root(keep=None):
    """Run this very command again as root, where it is not yet. Raises DodasError where there is no way.

    keep: a clouds.yaml of the user's, which is used by root, too.
    """
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise DodasError("images and hosts of containers are made by root: become root, or install sudo")
    click.echo("dodas: root makes images and hosts of containers: sudo", err=True)
    if keep:
        os.environ["OS_CLIENT_CONFIG_FILE"] = str(keep.absolute())
    kept = ["DODAS_HOME", "DODAS_CACHE", "DODAS_IMAGES", "DODAS_ACCESS_TOKEN"]
    kept += [name for name in os.environ if name.startswith("OS_")]
    os.execvp("sudo", ["sudo", f"--preserve-env={','.join(kept)}", str(ROOT / "dodas"), *sys.argv[1:]])


def ensure_packages(yes, packages=PACKAGES, what="the local backend"):
    """Install those of the packages that are missing, after saying so. Raises DodasError."""
    if not shutil.which("dpkg-query"):
        missing = [name for name in ("podman", "crun", "mmdebstrap") if not shutil.which(name)]
        if missing:
            names = " ".join(missing)
            raise DodasError(f"please install {names}: only Debian's packages are installed by dodas itself")
        return
    missing = host.missing_packages(packages)
    if not missing:
        return
    text = f"{what} needs the Debian packages {' '.join(missing)}"
    if not yes:
        if not sys.stdin.isatty():
            raise DodasError(f"{text}: say --yes to have them installed")
        click.confirm(f"{text}. Install them?", default=True, abort=True)
    click.echo(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DodasError(f"apt-get {command[0]} failed: {(done.stderr.strip() or done.stdout.strip())[-400:]}")

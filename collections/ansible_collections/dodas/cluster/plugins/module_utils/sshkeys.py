# SPDX-License-Identifier: Apache-2.0
"""A deployment's SSH keys: its own and each host's, made before the hosts, so that nothing is trusted on first use.

They are in `state_dir`/ssh: `id_ed25519`, `known_hosts` and `hosts/NAME/host`, each with its `.pub`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 8


class SshKeys:
    """The keys of deployment `name`."""

    def __init__(self, state_dir, name):
        self.folder = Path(state_dir) / "ssh"
        self.name = name

    @property
    def private(self):
        """The file of the deployment's private key."""
        return self.folder / "id_ed25519"

    @property
    def public_key(self):
        """The line that lets the deployment in."""
        return _public(self.private).read_text(encoding="utf-8").strip()

    def host_key(self, host):
        """(private, public) text of a host's key."""
        path = self._host(host)
        return path.read_text(encoding="utf-8"), _public(path).read_text(encoding="utf-8").strip()

    def make(self, hosts=()):
        """Make the keys that are missing. Raises OSError."""
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _keygen(self.private, f"dodas {self.name}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._make_host, hosts))

    def know(self, names):
        """Write known_hosts: {host: the name or address by which ssh looks for it}."""
        lines = [f"{name} {self.host_key(host)[1]}\n" for host, name in names.items()]
        (self.folder / "known_hosts").write_text("".join(lines), encoding="utf-8")

    def forget(self, host):
        """Remove a host's key."""
        shutil.rmtree(self._host(host).parent, ignore_errors=True)

    def _host(self, host):
        return self.folder / "hosts" / host / "host"

    def _make_host(self, host):
        path = self._host(host)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _keygen(path, host)


def options(state_dir, host=None, hosts=None):
    """Options of ssh by which a deployment's hosts are reached, with their keys checked against its own list.

    hosts: what is recorded of them. One that has an `id` may have any address, now or later, so its key is looked for
    by its name; with a `jump`, it is reached through the host of that name.
    """
    known_hosts = str(Path(state_dir) / "ssh" / "known_hosts").replace("%", "%%")  # ssh expands % itself
    found = ["-o", f'UserKnownHostsFile="{known_hosts}"', "-o", "StrictHostKeyChecking=yes"]
    known = (hosts or {}).get(host) or {}
    if known.get("id"):
        found += ["-o", f"HostKeyAlias={host}"]
    if known.get("jump"):
        key, address = Path(state_dir) / "ssh" / "id_ed25519", outer_address(hosts[known["jump"]])
        through = ["ssh", "-i", str(key), *options(state_dir, known["jump"], hosts), "-o", "ConnectTimeout=10"]
        # This ssh has its % expanded by the one that runs it.
        words = shlex.join([*through, "-o", "ControlPath=none", f"root@{address}"]).replace("%", "%%")
        found += ["-o", f"ProxyCommand={words} -W [%h]:%p"]
    return found


def outer_address(known):
    """The address by which a host is reached from here."""
    return known.get("public_address") or known.get("address")


def _public(path):
    return path.with_name(f"{path.name}.pub")


def _keygen(path, comment):
    if path.exists() and _public(path).exists():
        return
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    try:
        subprocess.run(command, check=True, timeout=30, capture_output=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise OSError(f"{path}: the key could not be made: {exc}") from exc

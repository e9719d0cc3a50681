# SPDX-License-Identifier: Apache-2.0
"""One run at a time on a deployment, also from two machines.

The lock is a keypair, since nova makes no two of one name for a user. Its comment says who holds it and until when. One
that is stale is not removed first, which two could do at once: the next one is named with the next number, which only
one can make.
"""

from __future__ import annotations

import base64
import datetime
import getpass
import json
import os
import platform
import re
import struct
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, Busy

MARGIN = 60  # seconds after its deadline for which a run may still hold its lock


@contextmanager
def held(cloud, uuid, seconds):
    """Hold the lock of deployment `uuid` for a run that takes at most `seconds`. Raises Busy."""
    name = take(cloud, uuid, seconds)
    try:
        yield
    finally:
        # the run's time may be over: the lock goes nevertheless
        deadline, cloud.deadline = cloud.deadline, None
        try:
            cloud.delete("compute", f"/os-keypairs/{name}", patience=20)
        finally:
            cloud.deadline = deadline


def take(cloud, uuid, seconds):
    """Take the lock and return the name of its keypair. Raises Busy, saying who has it."""
    found = locks(cloud, uuid)
    for number in sorted(found, reverse=True):
        if not _stale(found[number]):
            raise Busy(_busy(_name(uuid, number), found[number]))
    number = max(found, default=0) + 1
    mine = _me(seconds)
    body = {"keypair": {"name": _name(uuid, number), "type": "ssh", "public_key": _key(mine)}}
    try:
        cloud.post("compute", "/os-keypairs", body, find=lambda: _same(cloud, uuid, number, mine))
    except ApiError as exc:
        if exc.status != 409:
            raise
        holder = locks(cloud, uuid).get(number)
        if holder != mine:  # it is ours when only the answer was lost
            raise Busy(_busy(_name(uuid, number), holder or {})) from exc
    for old in found:
        cloud.delete("compute", f"/os-keypairs/{_name(uuid, old)}")
    return _name(uuid, number)


def locks(cloud, uuid):
    """{number: who} of the deployment's locks, stale ones too."""
    listed = [one["keypair"] for one in cloud.list("compute", "/os-keypairs", "keypairs")]
    found = {}
    for one in listed:
        match = re.fullmatch(re.escape(_name(uuid, "")) + r"(\d+)", one["name"])
        if match:
            found[int(match[1])] = _holder(one["public_key"])
    return found


def _name(uuid, number):
    return f"dodas-lock-{uuid}-{number}"


def _same(cloud, uuid, number, mine):
    return mine if locks(cloud, uuid).get(number) == mine else None


def _me(seconds):
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(seconds=seconds + MARGIN)
    return {
        "who": f"{getpass.getuser()}@{platform.node()}",
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
        "since": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "until": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "nonce": os.urandom(6).hex(),
    }


def _machine():
    """What tells this kernel, and its processes' numbers, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid):
    """When a process began, in the kernel's ticks, or None when there is no such."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _key(who):
    """A public key that nobody has the private half of, with `who` as its comment."""
    parts = [b"ssh-ed25519", os.urandom(32)]
    blob = b"".join(struct.pack(">I", len(one)) + one for one in parts)
    comment = base64.urlsafe_b64encode(json.dumps(who, sort_keys=True).encode()).decode()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


def _holder(public_key):
    try:
        return json.loads(base64.urlsafe_b64decode(public_key.split()[2]))
    except (IndexError, ValueError):
        return {}


def _stale(holder):
    """Whether the run that made the lock is over: its process is gone, as far as can be seen, or its time."""
    until = holder.get("until")
    if until and until < datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"):
        return True
    if not holder.get("machine") or holder["machine"] != _machine():
        return False
    return _started(holder["pid"]) != holder["started"]


def _busy(name, holder):
    who = f"{holder.get('who', 'somebody')}, process {holder.get('pid', '?')}"
    return (
        f"another run changes this deployment: {who}, since {holder.get('since', '?')}, at most until "
        f"{holder.get('until', '?')}; if it is gone, remove keypair {name}"
    )

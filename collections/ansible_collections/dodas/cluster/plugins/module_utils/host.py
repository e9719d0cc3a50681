# SPDX-License-Identifier: Apache-2.0
"""What a host can do, found by looking: control groups, limits, name resolution.

Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
from pathlib import Path

CAP_SYS_RESOURCE = 24
# Controllers that a container's limits need.
NEEDED_CONTROLLERS = ("cpu", "memory", "pids")


def cgroups(root="/sys/fs/cgroup"):
    """The control groups: version ("v2", "hybrid" or "v1") and the v2 controllers that can be used.

    Where v1 holds the controllers, a container engine that needs v2 can be given a cgroup2 mount of its own, without
    limits: see `crun_wrapper`.
    """
    unified = Path(root, "cgroup.controllers")
    if unified.exists():
        return {"version": "v2", "controllers": unified.read_text(encoding="ascii").split()}
    return {"version": "hybrid" if Path(root, "unified").exists() else "v1", "controllers": []}


def has_capability(bit, status="/proc/self/status"):
    """Whether this process holds capability number `bit`."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path(status).read_text(encoding="ascii"), re.M)
    return bool(found and int(found.group(1), 16) >> bit & 1)


def hard_limits():
    """Hard limits that cannot be raised, as a container engine's `default_ulimits`; empty where they can be."""
    if has_capability(CAP_SYS_RESOURCE):
        return []
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    hard = {name: resource.getrlimit(number)[1] for name, number in limits.items()}
    # podman lowers its own limits to these before it starts anything, and cannot get back above them.
    podman = {"nofile": 1048576, "nproc": 32768}
    return [f"{name}={n}:{n}" for name, n in ((k, min(v, podman[k]) if v >= 0 else podman[k]) for k, v in hard.items())]


def container_limits_work(found):
    """Whether containers can have limits on cpu, memory and processes here. `found` is what `cgroups` returned."""
    return found["version"] == "v2" and all(name in found["controllers"] for name in NEEDED_CONTROLLERS)


def crun_wrapper(cgroup_version):
    """A runtime for machines whose control groups are not v2, or None where crun itself serves.

    crun refuses hybrid control groups, and a privileged systemd container on v1 could remount the controllers of the
    whole machine. In a mount namespace of its own with a cgroup2 mount it can do neither.
    """
    if cgroup_version == "v2":
        return None
    return (
        "#!/bin/sh\n"
        "exec unshare --mount --propagation private sh -c '\n"
        "  umount -R /sys/fs/cgroup 2>/dev/null\n"
        '  mount -t cgroup2 none /sys/fs/cgroup && exec crun "$@"\n'
        "' crun \"$@\"\n"
    )


def nameservers(path="/etc/resolv.conf"):
    """Addresses of the name servers in use."""
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def os_release(path="/etc/os-release"):
    """The operating system: id ("debian"), codename ("bookworm"), version ("12")."""
    pairs = re.findall(r'^(\w+)="?([^"\n]*)"?$', Path(path).read_text(encoding="utf-8"), re.M)
    values = dict(pairs)
    return {
        "id": values.get("ID", ""),
        "like": values.get("ID_LIKE", "").split(),
        "codename": values.get("VERSION_CODENAME", ""),
        "version": values.get("VERSION_ID", ""),
    }


def default_address():
    """The address that this host uses to reach others; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))
            return probe.getsockname()[0]
        except OSError:
            return ""


def own_network():
    """The network of the address that this host uses to reach others, such as 10.88.0.0/24; "" where it is unknown."""
    try:
        command = ["ip", "-json", "-4", "address", "show"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        for interface in json.loads(shown):
            for one in interface.get("addr_info", ()):
                if one["local"] == default_address():
                    return str(ipaddress.ip_interface(f"{one['local']}/{one['prefixlen']}").network)
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return ""


def missing_packages(names):
    """Those of the Debian packages `names` that are not installed."""
    if not names:
        return []
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Abbrev}\\n", *names]
    shown = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout
    installed = {line.split()[0] for line in shown.splitlines() if line.split()[1:2] == ["ii"]}
    return [name for name in names if name not in installed]


def describe(packages=(), programs=()):
    """Everything above, as one dictionary."""
    found = cgroups()
    disk = shutil.disk_usage("/var/lib")
    return {
        "cgroups": found,
        "limits_work": container_limits_work(found),
        "hard_limits": hard_limits(),
        "crun_wrapper": crun_wrapper(found["version"]) or "",
        "nameservers": nameservers(),
        "resolver": "resolved" if str(Path("/etc/resolv.conf").resolve()).startswith("/run/systemd/") else "file",
        "os": os_release(),
        "address": default_address(),
        "network": own_network(),
        "hostname": socket.gethostname(),
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "container": bool(os.environ.get("container")) or Path("/run/systemd/container").exists(),
        "free_disk_mb": disk.free // 2**20,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "cpus": os.cpu_count(),
        "systemd": Path("/run/systemd/system").is_dir(),
        "missing_packages": missing_packages(packages),
        "missing_programs": [name for name in programs if not shutil.which(name)],
    }

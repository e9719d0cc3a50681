# SPDX-License-Identifier: Apache-2.0
"""Root file systems of guests: a plain Debian 12 made by mmdebstrap, or what an uploaded disk image holds.

Both are made once, named by their content, and never written to again: a guest has them below a layer of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from testbed_openstack.guests_library import debian_sources, node_root
from testbed_openstack.place import TestbedError

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates", "cloud-init", "curl", "dbus", "iproute2", "iputils-ping", "kmod", "libpam-systemd", "netbase",
    "openssh-server", "procps", "python3", "sudo", "systemd-sysv", "tzdata",
)  # fmt: skip
BUILD_TIMEOUT = 1200  # seconds
KEEP_DAYS = 3  # that a root is kept for without being used
# What a mirror that is a snapshot says of its age is not for guests to judge.
APT_SETTINGS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")

# The kernel, its settings, its devices and its terminals belong to the machine, and the network is set up before init.
MASKED = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-remount-fs.service", "systemd-timesyncd.service",
    "systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "chrony.service",
    "systemd-udev-trigger.service", "systemd-udev-settle.service", "systemd-networkd.service",
    "systemd-networkd.socket", "systemd-networkd-wait-online.service", "systemd-resolved.service",
    "systemd-hwdb-update.service", "systemd-journald-audit.socket", "systemd-growfs-root.service",
    "grub-common.service", "networking.service", "ifupdown-pre.service", "ifupdown-wait-online.service",
    "NetworkManager.service", "getty@tty1.service", "console-getty.service", "serial-getty@ttyS0.service",
    "getty.target", "dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "proc-sys-fs-binfmt_misc.automount", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "unattended-upgrades.service",
)  # fmt: skip
CLOUD_INIT = """\
# The testbed's guests: the seed is there before the guest is, and so is the network.
datasource_list: [NoCloud]
network: {config: disabled}
growpart: {mode: "off"}
resize_rootfs: false
manage_etc_hosts: true
locale: false
apt: {preserve_sources_list: true}
"""


class RootError(TestbedError):
    """A root file system could not be made; the message says of what and why."""


def guest_root(cache):
    """The plain Debian 12, built where `cache` lacks it; its path. Raises RootError."""
    recipe = [SUITE, PACKAGES, _sources(), _apt_settings(), _fingerprint()]
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    return _made(Path(cache) / f"guests-{name}", _bootstrap, "the guests' root")


def image_root(cache, image):
    """The root file system inside the disk image (qcow2 or raw) at `image`; its path. Raises RootError."""
    with Path(image).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    recipe = [content, _sources(), _apt_settings(), _fingerprint()]
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    return _made(Path(cache) / f"guests-{name}", lambda target: _unpack(Path(image), target), f"the root of {image}")


def adapt(root):
    """Make a machine's root one for a container: no devices, no boot loader, no network set-up of its own."""
    units = root / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for unit in MASKED:
        path = units / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")
    _write(root / "etc/fstab", "")
    _write(root / "etc/hosts", "127.0.0.1 localhost\n")
    _write(root / "etc/machine-id", "")
    _write(root / "etc/cloud/cloud.cfg.d/99_testbed.cfg", CLOUD_INIT)
    _write(root / "etc/apt/apt.conf.d/90testbed", "".join(_apt_settings()))
    sources = root / "etc/apt/sources.list"
    if _sources() and not (sources.exists() and sources.read_text(encoding="utf-8").strip()):
        _write(sources, "\n".join(_sources()) + "\n")
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.touch()
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for state in ("var/lib/cloud", "var/lib/systemd/random-seed"):
        path = root / state
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def main():
    """guests_root CACHE IMAGE: print where the root file system of a disk image is."""
    try:
        print(image_root(sys.argv[1], sys.argv[2]))
    except (OSError, RootError) as exc:
        sys.exit(str(exc))


def _fingerprint():
    """How roots are made is part of their content."""
    parts = [*MASKED, CLOUD_INIT, *map(inspect.getsource, (adapt, _bootstrap, _unpack))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _made(target, make, what):
    """`target`, made by `make(folder)` unless it is there; all or nothing, one maker at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            print(f"making {what}: {target}", file=sys.stderr, flush=True)
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                make(partial)
                adapt(partial)
            except (OSError, subprocess.SubprocessError) as exc:
                shutil.rmtree(partial, ignore_errors=True)
                said = getattr(exc, "stderr", None) or str(exc)
                raise RootError(f"{what}: {_last_words(said)}") from exc
            partial.rename(target)
        os.utime(target)
    return target


def prune(cache):
    """Remove roots that no testbed has used for some time."""
    for root in Path(cache).glob("guests-*"):
        if root.is_dir() and time.time() - root.stat().st_mtime > KEEP_DAYS * 86400:
            shutil.rmtree(root)
            root.with_name(f"{root.name}.lock").unlink(missing_ok=True)


@contextmanager
def _locked(path):
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _bootstrap(target):
    """A Debian from where this machine's apt gets its own."""
    # dpkg's many small writes are what takes long: in memory where there is enough of it.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, prefix="ostb-") as scratch:
        archive = Path(scratch) / "root.tar"
        excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
        command = ["mmdebstrap", "--quiet", "--variant=apt", "--aptopt=Acquire::Check-Valid-Until false",
                   "--dpkgopt=force-unsafe-io", *excludes, f"--include={','.join(PACKAGES)}",
                   SUITE, str(archive), *_sources()]  # fmt: skip
        _run(command, env={**os.environ, "TMPDIR": scratch})
        target.mkdir()
        _run(["tar", "--extract", "--numeric-owner", "--xattrs", f"--file={archive}", f"--directory={target}"])


def _unpack(image, target):
    """The root file system of a disk image."""
    try:
        node_root.unpack(image, target)
    except node_root.UnpackError as exc:
        raise OSError(str(exc)) from exc


def _sources():
    """The source lines of this machine's own Debian mirror; mmdebstrap's default elsewhere."""
    return debian_sources(SUITE)


def _apt_settings():
    """Settings of this machine's apt that its mirror needs: proxies, and how old a list may be."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=60, check=False).stdout
    return [
        f"{line}\n"
        for line in dump.splitlines()
        if line.split(" ")[0] in APT_SETTINGS or (line.startswith("Acquire::") and "::Proxy " in line)
    ]


def _run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=True, **options)
    return done.stdout


def _last_words(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "dpkg: error"))]
    return (errors or lines or ["no message"])[-1]


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Builds disk images of hosts in a cloud (node.Node) and keeps them: made once for the same content.

    built = node_build.build(node, project)      # built.path, built.manifest

Needs root, podman and the Debian packages PACKAGES; the machine has to be one that the image is for (x86-64).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.images import build as containers
from ansible_collections.dodas.cluster.plugins.module_utils.images import builders, node_disk
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman

PACKAGES = ("mmdebstrap", "qemu-utils", "e2fsprogs", "fdisk", "dosfstools", "mtools",
            "grub-common", "grub-pc-bin", "grub-efi-amd64-bin")  # fmt: skip
PROGRAMS = ("podman", "mmdebstrap", "qemu-img", "mke2fs", "sfdisk", "mkfs.vfat", "mmd", "mcopy", "grub-mkimage")
STORE = "usr/lib/dodas/images"  # container images in the root, read-only
STORE_PARTS = ("overlay", "overlay-images", "overlay-layers")  # of a podman store, what is needed to read it
NEEDED_DISK_MB = 8000
NEEDED_MEMORY_MB = 8000  # from which the root is made in memory, where dpkg's many small writes cost nothing
MEMORY = Path("/dev/shm")
TIMEOUT = 1800  # seconds for one step
# What is each host's own, or left by the build; `*` as in a shell.
LEFTOVERS = ("etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/cloud/*",
             "var/log/*.log", "var/log/apt/*", "var/cache/apt/*.bin", "var/cache/debconf/*-old", "var/lib/apt/lists/*",
             "var/lib/dpkg/*-old", "etc/hostname", "root/.*_history", "etc/apt/sources.list.d/*",
             "etc/apt/preferences.d/dodas", "tmp/*", "var/tmp/*")  # fmt: skip


@dataclass
class Built:
    """A disk image in the cache. `manifest`: content, base, built, sha512, size_mb (as a host sees it), packages."""

    path: Path
    manifest: dict

    @property
    def size(self):
        """Bytes of the file."""
        return self.path.stat().st_size


def cache():
    """The folder of disk images: `$DODAS_CACHE/nodes`, or /var/cache/dodas/nodes."""
    return Path(os.environ.get("DODAS_CACHE") or "/var/cache/dodas").expanduser().absolute() / "nodes"


def present(node, folder=None):
    """What the cache has of `node`; None where it has nothing of the present content."""
    path = Path(folder or cache()) / f"{node.reference}.qcow2"
    manifest = deployment.read_json(path.with_suffix(".json"))
    return Built(path, manifest) if manifest and path.exists() else None


def build(node, project, folder=None, podman=None, progress=None):
    """Build `node` where the cache lacks it, and the container images that are in it; returns what is in the cache.

    `progress(step, seconds or None)` is called when a step starts and ends. Images that nobody asked for in KEEP_DAYS
    of images.build go. Raises ImageError, naming the step, the last line that it printed and its log; PodmanError.
    """
    folder = Path(folder or cache())
    if not podman:
        podman = Podman(deployment.home())
        podman.configure()
    with podman.lock("nodes"):
        there = present(node, folder)
        if there:
            os.utime(there.path)
            return there
        _preflight(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        return _Build(node, Path(project), folder, builders.Podman(podman), progress or (lambda *_: None)).run()


class _Build:
    """One build. Each step is named in what is said of it."""

    def __init__(self, node, project, folder, builder, progress):
        self.node, self.project, self.folder = node, project, folder
        self.builder, self.progress = builder, progress
        self.log = folder / f"{node.name}.log"

    def run(self):
        archive = self._containers()
        partial = self.folder / f".{self.node.reference}.partial"
        with self.log.open("w", encoding="utf-8") as stream, _scratch(self.folder) as scratch:
            try:
                with self._step("root file system", stream):
                    self._root(scratch, stream)
                if archive:
                    with self._step("container images", stream):
                        self._load(scratch, archive, stream)
                root = scratch / "root"
                with self._step("what is each host's own", stream):
                    clean(root)
                    packages = _versions(root)
                with self._step("disk", stream):
                    size = node_disk.make(root, self._room(scratch), partial, stream)
                manifest = {"name": self.node.reference, "content": self.node.content, "base": self.node.base,
                            "built": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "size_mb": size,
                            "sha512": _sha512(partial), "packages": packages}  # fmt: skip
                path = self.folder / f"{self.node.reference}.qcow2"
                deployment.write_json(path.with_suffix(".json"), manifest)
                partial.replace(path)
                return Built(path, manifest)
            finally:
                partial.unlink(missing_ok=True)

    def _containers(self):
        """The archive of the container images that are in it; None where it has none."""
        if not self.node.images:
            return None
        every = [*self.node.parents, *self.node.images]
        containers.build(self.builder, every, self.project, progress=self.progress)
        return containers.archive(self.builder, self.node.images, self.builder.archives)[0]

    def _root(self, scratch, stream):
        files, preferences = scratch / "files", scratch / "preferences"
        _stage(self.node.folder / "root", files)
        sources, pins = [*containers.debian_sources(self.node.suite), *_security(self.node.suite)], []
        for suite, packages in self.node.earlier.items():
            sources += containers.debian_sources(suite)
            pins.append(f"Package: *\nPin: release n={suite}\nPin-Priority: -1\n")
            pins.append(f"Package: {' '.join(packages)}\nPin: release n={suite}\nPin-Priority: 100\n")
        preferences.write_text("\n".join(pins), encoding="ascii")
        into = '"$1/etc/apt/preferences.d"'
        hooks = [
            f"--setup-hook=mkdir -p {into} && cp {_quote(preferences)} {into}/dodas",
            # Before the kernel is installed: its initial RAM disk depends on fstab.
            f'--essential-hook=cp -a {_quote(files)}/. "$1"',
            f'--customize-hook=chroot "$1" /bin/sh -eu < {_quote(self.node.folder / "customize")}',
        ]
        packages = [*self.node.packages, *(name for names in self.node.earlier.values() for name in names)]
        files = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in builders.LEFT_OUT]
        files.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")  # the image is given to others
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until false",
                   "--dpkgopt=force-unsafe-io", *files, *hooks, f"--include={','.join(packages)}",
                   self.node.suite, str(scratch / "root"), *sources]  # fmt: skip
        _run(command, stream, {"TMPDIR": str(scratch)})

    def _load(self, scratch, archive, stream):
        store = scratch / "root" / STORE
        store.mkdir(parents=True)
        settings = scratch / "storage.conf"
        settings.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\nrunroot = "{scratch}/run"\n')
        podman = ["podman", "--root", str(store), "--runroot", f"{scratch}/run", "--tmpdir", f"{scratch}/tmp",
                  "load", "--quiet", "--input", archive]  # fmt: skip
        # A mount namespace of its own takes along what podman would leave mounted in the store.
        command = ["unshare", "--mount", "--propagation", "private", *podman]
        _run(command, stream, {**self.builder.podman.environment(), "CONTAINERS_STORAGE_CONF": str(settings)})
        for path in store.iterdir():
            if path.name not in STORE_PARTS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _room(self, scratch):
        """A folder for the uncompressed disk."""
        room = scratch / "disk"
        room.mkdir()
        return room

    @contextlib.contextmanager
    def _step(self, name, stream):
        self.progress(name, None)
        start = time.monotonic()
        try:
            yield
        except subprocess.CalledProcessError as exc:
            stream.flush()
            lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith(("E: ", "Error", "error"))] or lines[-1:] or [str(exc)]
            reason = f"{Path(exc.cmd[0]).name}: {errors[0].strip()}"
            raise ImageError(f"disk image {self.node.name}: {name}: {reason} (log: {self.log})") from exc
        except subprocess.TimeoutExpired as exc:
            reason = f"{Path(exc.cmd[0]).name} did not end in {exc.timeout:.0f} s"
            raise ImageError(f"disk image {self.node.name}: {name}: {reason} (log: {self.log})") from exc
        except OSError as exc:
            raise ImageError(f"disk image {self.node.name}: {name}: {exc} (log: {self.log})") from exc
        self.progress(name, round(time.monotonic() - start, 1))


def clean(root):
    """Remove from the folder `root` what each host has for itself and what a build leaves, mirrors among it."""
    for pattern in LEFTOVERS:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # Empty, not missing: the host makes its own, and its services stay as they were set here.
    (root / "etc/machine-id").write_text("", encoding="ascii")
    (root / "etc/apt/sources.list").write_text("", encoding="ascii")  # cloud-init knows what to write
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    options = root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap"
    kept = [line for line in options.read_text(encoding="ascii").splitlines() if "unsafe-io" not in line]
    options.write_text("\n".join(kept) + "\n", encoding="ascii")
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _stage(source, target):
    """Copy files with root as their owner, whoever has them here."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _security(suite):
    """The source line of the suite's security updates, from where this machine's apt has those of its own."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for line in subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines():
        origin, codename, address = line.split()
        if origin == "Debian" and codename.endswith("-security"):
            return [f"deb {address} {suite}-security main"]
    return []


def _versions(root):
    """Version by package."""
    command = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return dict(line.split() for line in shown.splitlines())


def _preflight(folder):
    if os.geteuid() != 0:
        raise ImageError("disk images are made by root: use sudo")
    if platform.machine() != "x86_64":
        raise ImageError(f"disk images are for x86_64, and this machine is {platform.machine()}")
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        raise ImageError(f"not installed: {', '.join(missing)}: apt-get install {' '.join(PACKAGES)}")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free // 2**20
    if free < NEEDED_DISK_MB:
        raise ImageError(f"{there}: {free} MB free, making a disk image needs {NEEDED_DISK_MB} MB")


def _tidy(folder):
    """Remove images that nobody asked for in a while, and what builds left that were killed."""
    for left in (found for place in (MEMORY, folder) for found in place.glob(f"{_scratch_name(folder)}*")):
        shutil.rmtree(left)
    for left in folder.glob(".*.partial"):
        left.unlink()
    for path in folder.glob("*.qcow2"):
        if time.time() - path.stat().st_mtime > containers.KEEP_DAYS * 86400:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()


@contextlib.contextmanager
def _scratch(folder):
    """A folder for the build, in memory where there is plenty of it."""
    roomy = MEMORY.is_dir() and min(shutil.disk_usage(MEMORY).free, _available()) > NEEDED_MEMORY_MB * 2**20
    with tempfile.TemporaryDirectory(dir=MEMORY if roomy else folder, prefix=_scratch_name(folder)) as scratch:
        # mmdebstrap's user for downloads looks in.
        Path(scratch).chmod(0o755)
        yield Path(scratch)


def _scratch_name(folder):
    """How names of folders for builds into `folder` begin: by it, since others may build elsewhere."""
    return f"dodas-node-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-"


def _available():
    """Bytes of memory that are free for use."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _sha512(path):
    digest = hashlib.sha512()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _quote(path):
    return shlex.quote(str(path))


def _run(command, stream, environment):
    stream.flush()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT,
                   env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **environment},
                   check=True)  # fmt: skip

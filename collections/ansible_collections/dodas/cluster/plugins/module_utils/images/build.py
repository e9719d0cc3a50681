# SPDX-License-Identifier: Apache-2.0
"""Builds images into the image store, several at once, each no earlier than the one it is built on.

Packages come from where this machine gets its own: apt's, pip's and npm's configuration are lent to the build and
stay out of the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import PREFIX, ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError

TIMEOUT = 1200  # seconds for one image
KEEP_DAYS = 7
NEEDED_DISK_MB = 3000
# Lent to builds where the machine has them: package clients' configuration and certificate authorities.
LENT_FILES = ("/etc/pip.conf", "/etc/npmrc", "/etc/ssl/certs")


def present(podman):
    """What the store holds: the size in bytes by reference."""
    found = {}
    for image in podman.json("images", "--format", "json", store="images"):
        for reference in image.get("Names") or []:
            if reference.startswith(PREFIX):
                found[reference] = image["Size"]
    return found


def missing(podman, images):
    """Those of `images` whose content is not in the store."""
    have = present(podman)
    return [image for image in images if image.reference not in have]


def build(podman, images, project, jobs=2, log_dir=None, progress=None):
    """Build `images` (parents first) where the store lacks them; returns {name: seconds} of those built.

    `progress(name, seconds or None)` is called when an image starts and ends. Raises ImageError, naming the image, the
    last line of its build and its log; what was built before stays.
    """
    if not missing(podman, images):
        return {}
    with podman.lock("images"):
        todo = {image.name: image for image in missing(podman, images)}  # another may have built some meanwhile
        _preflight(podman, todo.values())
        log_dir = Path(log_dir or podman.home / "log")
        log_dir.mkdir(parents=True, exist_ok=True)
        took, running = {}, {}
        with ThreadPoolExecutor(jobs) as pool:
            while todo or running:
                busy = {image.name for image in running.values()}
                for image in [i for i in todo.values() if i.parent not in todo and i.parent not in busy]:
                    if len(running) >= jobs:
                        break
                    if progress:
                        progress(image.name, None)
                    running[pool.submit(_build_one, podman, image, Path(project), log_dir)] = todo.pop(image.name)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    image = running.pop(future)
                    took[image.name] = future.result()
                    if progress:
                        progress(image.name, took[image.name])
        return took


def listing(podman, images):
    """One entry an image: name, reference, present, size in bytes."""
    have = present(podman)
    return [
        {
            "name": one.name,
            "reference": one.reference,
            "present": one.reference in have,
            "size": have.get(one.reference, 0),
        }
        for one in images
    ]


def archive(podman, images, folder):
    """Save images as one archive in `folder`, named by their content; returns its path and whether it was made.

    Archives that nobody asked for in KEEP_DAYS go.
    """
    digest = hashlib.sha256(" ".join(sorted(image.reference for image in images)).encode()).hexdigest()[:16]
    path = Path(folder) / f"images-{digest}.tar"
    with podman.lock("images"):
        if path.exists():
            path.touch()
            return str(path), False
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("images-*"):
            if time.time() - old.stat().st_mtime > KEEP_DAYS * 86400:
                old.unlink()
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        names = [name for image in images for name in (image.reference, f"{PREFIX}{image.name}:latest")]
        save = ("save", "--quiet", "--multi-image-archive", "--output", partial)
        podman.run(*save, *names, store="images", timeout=TIMEOUT)
        partial.replace(path)
    return str(path), True


def prune(podman, images):
    """Remove images of ours that no folder describes as it is now; returns their references."""
    keep = {image.reference for image in images} | {f"{PREFIX}{image.name}:latest" for image in images}
    with podman.lock("images"):
        old = [reference for reference in present(podman) if reference not in keep]
        for reference in old:
            podman.run("rmi", "--force", reference, store="images")
        podman.run("image", "prune", "--force", store="images")
    return old


def _preflight(podman, images):
    free = shutil.disk_usage(podman.images).free // 2**20
    if free < NEEDED_DISK_MB:
        raise ImageError(f"{podman.images}: {free} MB free, building images needs {NEEDED_DISK_MB} MB")
    if any(image.suite for image in images) and not shutil.which("mmdebstrap"):
        raise ImageError("mmdebstrap is not installed: apt-get install mmdebstrap")


def _build_one(podman, image, project, log_dir):
    start = time.monotonic()
    log = log_dir / f"image-{image.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            (_build_root if image.suite else _build_container)(podman, image, project, stream)
            podman.run("tag", f"{PREFIX}{image.name}:latest", image.reference, store="images")
        except subprocess.CalledProcessError as exc:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith(("E: ", "Error", "error"))] or lines[-1:] or [str(exc)]
            raise ImageError(f"image {image.name}: {errors[0].strip()} (log: {log})") from exc
        except subprocess.TimeoutExpired as exc:
            raise ImageError(f"image {image.name}: not built after {TIMEOUT} s (log: {log})") from exc
        except (OSError, PodmanError) as exc:
            raise ImageError(f"image {image.name}: {exc} (log: {log})") from exc
    return round(time.monotonic() - start, 1)


def _run(command, stream, **options):
    subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=True, **options)


def _build_root(podman, image, project, stream):
    # dpkg's many small writes are what takes long: in memory where there is enough of it.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as scratch:
        archive = Path(scratch) / "root.tar"
        excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
        command = ["mmdebstrap", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until false",
                   "--dpkgopt=force-unsafe-io", *excludes, f"--include={','.join(image.packages)}",
                   image.suite, str(archive), *debian_sources(image.suite)]  # fmt: skip
        _run(command, stream, env={**os.environ, "TMPDIR": scratch})
        stream.flush()
        podman.run("import", "--quiet", archive, f"{PREFIX}{image.name}:latest", store="images", timeout=TIMEOUT)


def _build_container(podman, image, project, stream):
    parent = f"{PREFIX}{image.parent}"
    podman.run("tag", f"{parent}:{image.parent_digest}", f"{parent}:latest", store="images")
    lent = [path for path in LENT_FILES if Path(path).exists()]
    options = [f"--volume={path}:{path}:ro" for path in lent]
    command = podman.command(
        "build", "--isolation=chroot", "--network=host", "--pull=never", "--layers=false", "--format=docker",
        *options, "--build-context", f"dodas={project}", "--tag", f"{PREFIX}{image.name}:latest", image.folder,
        store="images",
    )  # fmt: skip
    _run(command, stream, env=podman.environment())


def debian_sources(suite):
    """Source lines for `suite` from the mirror that this machine's apt uses for Debian.

    Empty on machines that are not Debian: mmdebstrap then takes its own default.
    """
    if not shutil.which("apt-get"):
        return []
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip
    for line in found.splitlines():
        origin, *rest = line.split()
        if origin == "Debian" and "-" not in rest[1]:
            return [f"deb {rest[-1]} {suite} main"]
    return []

# SPDX-License-Identifier: Apache-2.0
"""Builds images into a store of images, several at once, each no earlier than the one it is built on.

Who builds and keeps them is a builder (builders.Podman, builders.Udocker); a Podman stands for its own. Packages come
from where this machine gets its own: apt's, pip's and npm's configuration are lent to the build and stay out of the
image.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.images import builders
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import PREFIX, ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.bootstrap import debian_sources
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error

KEEP_DAYS = 7
NEEDED_DISK_MB = 3000


def present(builder):
    """What the store holds of ours: the size in bytes by reference."""
    return builders.of(builder).present()


def missing(builder, images):
    """Those of `images` whose content is not in the store."""
    have = present(builder)
    return [image for image in images if image.reference not in have]


def build(builder, images, project, jobs=2, log_dir=None, progress=None):
    """Build `images` (parents first) where the store lacks them; returns {name: seconds} of those built.

    `progress(name, seconds or None)` is called when an image starts and ends. Raises ImageError, naming the image, the
    last line of its build and its log; what was built before stays.
    """
    if not missing(builder, images):
        return {}
    builder = builders.of(builder)
    with builder.lock():
        todo = {image.name: image for image in missing(builder, images)}  # another may have built some meanwhile
        _preflight(builder, todo.values())
        log_dir = Path(log_dir or builder.log_dir)
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
                    running[pool.submit(_build_one, builder, image, Path(project), log_dir)] = todo.pop(image.name)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    image = running.pop(future)
                    took[image.name] = future.result()
                    if progress:
                        progress(image.name, took[image.name])
        return took


def listing(builder, images):
    """One entry an image: name, reference, present, size in bytes."""
    have = present(builder)
    return [
        {
            "name": one.name,
            "reference": one.reference,
            "present": one.reference in have,
            "size": have.get(one.reference, 0),
        }
        for one in images
    ]


def archive(builder, images, folder):
    """Save images as one archive in `folder`, named by their content; returns its path and whether it was made.

    Archives that nobody asked for in KEEP_DAYS go.
    """
    digest = hashlib.sha256(" ".join(sorted(image.reference for image in images)).encode()).hexdigest()[:16]
    path = Path(folder) / f"images-{digest}.tar"
    with builders.of(builder).lock():
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
        builders.of(builder).save(names, partial)
        partial.replace(path)
    return str(path), True


def prune(builder, images):
    """Remove images of ours that no folder describes as it is now; returns their references."""
    keep = {image.reference for image in images} | {f"{PREFIX}{image.name}:latest" for image in images}
    with builders.of(builder).lock():
        old = [reference for reference in present(builder) if reference not in keep]
        builders.of(builder).remove(old)
    return old


def _preflight(builder, images):
    free = shutil.disk_usage(builder.folder).free // 2**20
    if free < NEEDED_DISK_MB:
        raise ImageError(f"{builder.folder}: {free} MB free, building images needs {NEEDED_DISK_MB} MB")
    builder.preflight(images)


def _build_one(builder, image, project, log_dir):
    start = time.monotonic()
    log = log_dir / f"image-{image.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            builder.build(image, project, stream)
        except subprocess.CalledProcessError as exc:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith(("E: ", "Error", "error"))] or lines[-1:] or [str(exc)]
            raise ImageError(f"image {image.name}: {errors[0].strip()} (log: {log})") from exc
        except subprocess.TimeoutExpired as exc:
            raise ImageError(f"image {image.name}: not built after {builders.TIMEOUT} s (log: {log})") from exc
        except (OSError, PodmanError, Error) as exc:
            raise ImageError(f"image {image.name}: {exc} (log: {log})") from exc
    return round(time.monotonic() - start, 1)


__all__ = ["archive", "build", "debian_sources", "listing", "missing", "present", "prune"]

# SPDX-License-Identifier: Apache-2.0
"""Gets the image that a job names, before the job starts: HTCondor's hook PREPARE_JOB.

The job's ad comes on standard input. A job of the container universe names its image in `ContainerImage`, and so may
any other (`+ContainerImage = "..."`, or `+SingularityImage`, as jobs for other pools do). What goes to standard output
becomes part of the ad: `JobImage`, which container.py runs. Where the image cannot be had, the job is held, and the
reason is what is said here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import archives, config, images, reference, transfer
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from dodas.worker import CONFIGURATION, store_of_user

ATTRIBUTES = ("SingularityImage", "ContainerImage")
ARCHIVES = ("docker-archive:", "oci-archive:", "oci:")
LOADED = "localhost/job/"  # images from files are named by what they hold: tags in files may be anybody's
MB = 1 << 20


def attribute(ad, name):
    """A text in an ad, or ""."""
    found = re.search(rf'^{name} = ("(?:[^"\\]|\\.)*")$', ad, re.M | re.I)
    return json.loads(found.group(1)) if found else ""


def find(text, folder):
    """("registry", name), or ("archive" or "tree", path) of what a job calls its image; raises Error.

    folder: where the job's files are. A transferred file is there under its last name.
    """
    name = text
    for prefix in ("docker://", *ARCHIVES):
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    if text.startswith("docker://"):
        return "registry", name
    for path in (os.path.join(folder, name), os.path.join(folder, os.path.basename(name.rstrip("/")))):
        if os.path.isdir(path):
            layout = any(os.path.exists(os.path.join(path, one)) for one in ("oci-layout", "manifest.json"))
            return "archive" if layout else "tree", os.path.realpath(path)
        if os.path.isfile(path):
            with open(path, "rb") as source:
                if b"SIF_MAGIC" in source.read(64):
                    raise Error(f"{text} is a SIF image, which only Apptainer reads: give an archive of Docker or OCI")
            return "archive", path
    if name.startswith(("/", ".")) or text.startswith(ARCHIVES) or re.search(r"\.(tar(\.\w+)?|tgz|sif|oci)$", name):
        raise Error(f"{text} is not there: name it in transfer_input_files, or give a registry's name (docker://...)")
    return "registry", name


class Cache:
    """Images of one user on this worker, at most `limit` bytes of them; those used last stay."""

    def __init__(self, store, limit, settings=None):
        self.store, self.limit = store, limit
        self.settings = settings or config.Config(root=store.root, file=_existing(CONFIGURATION))

    def get(self, text, folder, always=False):
        """What `container` runs for the image `text` of a job: a name in the store or a folder. Raises Error."""
        kind, where = find(text, folder)
        if kind == "tree":
            return where
        name = self._load(where) if kind == "archive" else self._pull(where, always)
        self._used(name)
        self._bound(name)
        return name

    def _pull(self, text, always):
        wanted = reference.parse(text)
        if not always:
            try:
                return self.store.image(wanted.name).name
            except NotFound:
                pass
        return transfer.pull(self.store, wanted).name

    def _load(self, path):
        known = self._note("archive-" + _hash(path))
        try:
            with open(known, encoding="utf-8") as source:
                return self.store.image(source.read()).name
        except (FileNotFoundError, NotFound):
            pass
        found = archives.load(self.store, path)
        if len(found) != 1:
            raise Error(f"{os.path.basename(path)} holds {len(found)} images: save one alone")
        [image] = found
        tag, image.name = image.name, LOADED + image.manifest.partition(":")[2][:32] + ":latest"
        self.store.write_image(image)
        if tag != image.name:
            self.store.remove_image(tag)
        with open(f"{known}.{os.getpid()}", "w", encoding="utf-8") as target:
            target.write(image.name)
        os.replace(f"{known}.{os.getpid()}", known)
        return image.name

    def _used(self, name):
        path = self._note(hashlib.sha256(name.encode()).hexdigest())
        with open(path, "w", encoding="utf-8") as target:
            target.write(name)

    def _note(self, name):
        folder = self.store.path("used")
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, name)

    def _bound(self, keep):
        """Remove images until the rest fits; `keep` stays, and so does what a running job uses."""
        while images.disk_usage(self.store) > self.limit:
            old = [one.name for one in self.store.images() if one.name != keep]
            if not old:
                return
            images.rmi(self.store, min(old, key=self._last_use), force=True)
            images.prune(self.store)

    def _last_use(self, name):
        try:
            return os.stat(self._note(hashlib.sha256(name.encode()).hexdigest())).st_mtime
        except FileNotFoundError:
            return 0.0


def _hash(path):
    """Stands for a file's content; for a folder's, which is not read, for its place and age."""
    found = hashlib.sha256()
    if os.path.isdir(path):
        return hashlib.sha256(f"{path} {os.stat(path).st_mtime_ns} {time.time_ns()}".encode()).hexdigest()
    with open(path, "rb") as source:
        while data := source.read(MB):
            found.update(data)
    return found.hexdigest()


def _existing(path):
    return path if os.path.exists(path) else None


def main():
    ad = sys.stdin.read()
    text = next(filter(None, (attribute(ad, one) for one in ATTRIBUTES)), "")
    if not text:
        return 0
    try:
        limit = int(os.environ.get("IMAGES_MB", "10240")) * MB
        cache = Cache(Store(store_of_user()), limit)
        always = attribute(ad, "DockerPullPolicy").lower() == "always"
        found = cache.get(text, os.environ.get("_CONDOR_SCRATCH_DIR", "."), always)
    except (Error, OSError) as exc:
        reason = " ".join(f"image {text}: {exc}".split())
        print(f"HookStatusMessage = {json.dumps(reason)}")
        return 1
    print(f"JobImage = {json.dumps(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

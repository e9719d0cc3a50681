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
import subprocess
import sys

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import reference
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from dodas.worker import CONFIGURATION, PROGRAM, store_of_user

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
    """Images of one user on this worker, about `limit` bytes of them; those used last stay."""

    def __init__(self, store, limit, program=PROGRAM):
        self.store, self.limit, self.program = store, limit, program

    def get(self, text, folder, always=False):
        """What `container` runs for the image `text` of a job: a name in the store or a folder. Raises Error."""
        kind, where = find(text, folder)
        if kind == "tree":
            return where
        if kind == "archive":
            name = f"{LOADED}{_digest(where)[:32]}:latest"
            command = ["load", "--quiet", f"--input={where}", name]
        else:
            name = reference.parse(where).name
            command = ["pull", "--quiet", where]
        if (always and kind == "registry") or not self._has(name):
            # a job may bring what proves who it is to a private registry, as its file .docker/config.json
            self._run(*command, DOCKER_CONFIG=os.path.join(folder, ".docker"))
            self._bound(name)
        self._used(name)
        return name

    def _has(self, name):
        try:
            return bool(self.store.image(name))
        except NotFound:
            return False

    def _run(self, *words, **environment):
        command = [self.program, f"--repo={self.store.root}", f"--config={CONFIGURATION}", *words]
        command = [word for word in command if word != f"--config={CONFIGURATION}" or os.path.exists(CONFIGURATION)]
        done = subprocess.run(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")] or [done.stderr]
            raise Error(lines[0].partition("Error: ")[2] or lines[0])

    def _used(self, name):
        """Note that it is used now."""
        path = self._note(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8"):
            os.utime(path)

    def _last_use(self, name):
        try:
            return os.stat(self._note(name)).st_mtime
        except FileNotFoundError:
            return 0.0

    def _note(self, name):
        return self.store.path("used", hashlib.sha256(name.encode()).hexdigest())

    def _bound(self, keep):
        """Remove images until the rest fits; `keep` stays, and so do layers that a running job uses."""
        while _size(self.store.root) > self.limit:
            old = [one.name for one in self.store.images() if one.name != keep]
            if not old:
                return
            name = min(old, key=self._last_use)
            self._run("rmi", "--force", name)
            self._run("prune", "--force")
            if os.path.exists(self._note(name)):
                os.unlink(self._note(name))


def _size(folder):
    """Bytes on disk of a tree, as far as it can be read; several names of a file count once."""
    total, folders, seen = 0, [folder], set()
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    if about.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if about.st_ino in seen:
                            continue
                        seen.add(about.st_ino)
                    total += about.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue  # unreadable, or gone meanwhile
    return total


def _digest(path):
    """Stands for what an archive or a folder with an OCI layout holds."""
    if os.path.isdir(path):
        # its index names all else by digest
        path = next(filter(os.path.exists, (os.path.join(path, one) for one in ("index.json", "manifest.json"))))
    found = hashlib.sha256()
    with open(path, "rb") as source:
        while data := source.read(MB):
            found.update(data)
    return found.hexdigest()


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

# SPDX-License-Identifier: Apache-2.0
"""Who builds images and keeps them: dodas's own podman, which needs root, or our own runtime, as any user.

    builder = builders.builder("udocker")        # or "podman"
    build.build(builder, images, project)
    builder.provide([image.reference], store)    # udocker: to the store of a host on this machine
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import PREFIX, ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local import podman as local
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.bootstrap import debian_sources
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.engines import directory, fuse, overlay, proot
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import NotFound as UdockerNotFound

SHIPPED = (directory, fuse, overlay, proot)  # the runtime imports them by name: named here, Ansible ships them
TIMEOUT = 1200  # seconds for one image
# Lent to builds where the machine has them: package clients' configuration and certificate authorities.
LENT_FILES = ("/etc/pip.conf", "/etc/npmrc", "/etc/ssl/certs")
LEFT_OUT = ("doc", "man", "locale", "info")  # of /usr/share, in Debian roots


class Podman:
    """dodas's podman and its store of images (local.podman.Podman)."""

    name = "podman"

    def __init__(self, podman):
        self.podman = podman
        self.folder = Path(podman.images)
        self.log_dir = Path(podman.home) / "log"
        self.archives = self.folder.parent / "archives"

    def present(self):
        """What the store holds of ours: the size in bytes by reference."""
        found = {}
        for image in self.podman.json("images", "--format", "json", store="images"):
            for reference in image.get("Names") or []:
                if reference.startswith(PREFIX):
                    found[reference] = image["Size"]
        return found

    def lock(self):
        return self.podman.lock("images")

    def preflight(self, images):
        if any(image.suite for image in images) and not shutil.which("mmdebstrap"):
            raise ImageError("mmdebstrap is not installed: apt-get install mmdebstrap")

    def build(self, image, project, stream):
        """Build one image; what it says goes to `stream`. Raises CalledProcessError, TimeoutExpired, PodmanError."""
        (self._root if image.suite else self._container)(image, project, stream)
        self.podman.run("tag", f"{PREFIX}{image.name}:latest", image.reference, store="images")

    def _root(self, image, _project, stream):
        # dpkg's many small writes are what takes long: in memory where there is enough of it.
        memory = Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
        with tempfile.TemporaryDirectory(dir=memory if roomy else None) as scratch:
            archive = Path(scratch) / "root.tar"
            excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
            command = ["mmdebstrap", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until false",
                       "--dpkgopt=force-unsafe-io", *excludes, f"--include={','.join(image.packages)}",
                       image.suite, str(archive), *debian_sources(image.suite)]  # fmt: skip
            _run(command, stream, env={**os.environ, "TMPDIR": scratch})
            stream.flush()
            name = f"{PREFIX}{image.name}:latest"
            self.podman.run("import", "--quiet", archive, name, store="images", timeout=TIMEOUT)

    def _container(self, image, project, stream):
        parent = f"{PREFIX}{image.parent}"
        self.podman.run("tag", f"{parent}:{image.parent_digest}", f"{parent}:latest", store="images")
        lent = [path for path in LENT_FILES if Path(path).exists()]
        options = [f"--volume={path}:{path}:ro" for path in lent]
        command = self.podman.command(
            "build", "--isolation=chroot", "--network=host", "--pull=never", "--layers=false", "--format=docker",
            *options, "--build-context", f"dodas={project}", "--tag", f"{PREFIX}{image.name}:latest", image.folder,
            store="images",
        )  # fmt: skip
        _run(command, stream, env=self.podman.environment())

    def save(self, references, path):
        save = ("save", "--quiet", "--multi-image-archive", "--output", path)
        self.podman.run(*save, *references, store="images", timeout=TIMEOUT)

    def remove(self, references):
        for reference in references:
            self.podman.run("rmi", "--force", reference, store="images")
        self.podman.run("image", "prune", "--force", store="images")


class Udocker:
    """Our own runtime, in a store of its own: `$DODAS_IMAGES/udocker`, or in the user's cache."""

    name = "udocker"

    def __init__(self, store=None):
        self.folder = Path(store or udocker_store())
        self.log_dir = self.folder / "log"
        self.archives = self.folder.parent / "archives"

    @property
    def store(self):
        from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store

        return Store(str(self.folder))

    def present(self):
        return {image.name: image.size for image in self.store.images() if image.name.startswith(PREFIX)}

    @contextlib.contextmanager
    def lock(self, timeout=1500):
        """Hold the store's lock; raises ImageError when another process holds it for longer than `timeout` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        with (self.folder / "build.lock").open("a+") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        stream.seek(0)
                        holder = stream.read().strip() or "unknown"
                        raise ImageError(f"process {holder} still builds images after {timeout} s") from None
                    time.sleep(0.2)
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def preflight(self, images):
        """Nothing that the builder itself does not say."""

    def build(self, image, project, stream):
        job = {"store": str(self.folder), "name": image.name, "reference": image.reference, "project": str(project),
               "folder": str(image.folder), "suite": image.suite, "packages": image.packages,
               "parent": f"{PREFIX}{image.parent}:{image.parent_digest}" if image.parent else None}  # fmt: skip
        # A process of its own: it may be ended when it takes too long, and forks as it likes.
        code = f"import sys; from {__name__} import work; sys.exit(work(sys.argv[1]))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # -S: what Ansible ships with a module has a sitecustomize that is not for this.
        _run([sys.executable, "-S", "-c", code, json.dumps(job)], stream, env=environment)

    def save(self, references, path):
        from ansible_collections.dodas.cluster.plugins.module_utils.udocker import archives

        archives.save(self.store, references, str(path))

    def remove(self, references):
        from ansible_collections.dodas.cluster.plugins.module_utils.udocker import images

        for reference in references:
            with contextlib.suppress(UdockerNotFound):
                self.store.remove_image(reference)
        images.prune(self.store)

    def provide(self, references, store):
        """Make images known to another store of this user on this machine; layers are shared, not copied."""
        from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store

        target = Store(str(store))
        for reference in references:
            image = self.store.image(reference)
            blobs = [image.manifest, image.config, *(layer["digest"] for layer in image.layers)]
            for source, place in [
                *((self.store.blob(digest), target.blob(digest)) for digest in blobs),
                *((self.store.layer(layer["diff_id"]), target.layer(layer["diff_id"])) for layer in image.layers),
                *((self.store.layer(layer["diff_id"]) + ".json.z", target.layer(layer["diff_id"]) + ".json.z")
                  for layer in image.layers),
            ]:  # fmt: skip
                if os.path.exists(source) and not os.path.lexists(place):
                    os.makedirs(os.path.dirname(place), exist_ok=True)
                    os.symlink(source, place)
            target.write_image(image)


def udocker_store():
    """The folder of our own images: `$DODAS_IMAGES/udocker`, or in root's or the user's cache."""
    given = os.environ.get("DODAS_IMAGES")
    if given:
        return Path(given).expanduser().absolute() / "udocker"
    if os.geteuid() == 0:
        return Path("/var/cache/dodas/udocker/images")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dodas/images/udocker"


def builder(engine):
    """The builder whose images containers of that engine (podman, udocker) run. Raises PodmanError."""
    if engine == "udocker":
        return Udocker()
    podman = local.Podman(deployment.home())
    podman.configure()
    return Podman(podman)


def of(builder):
    """The builder itself, or that of a local.podman.Podman."""
    return builder if hasattr(builder, "preflight") else Podman(builder)


def work(text):
    """Build one image as Udocker.build says; runs in a process of its own. Returns the exit status."""
    from ansible_collections.dodas.cluster.plugins.module_utils.udocker import bootstrap, build
    from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store

    job = json.loads(text)
    store = Store(job["store"])
    names = [job["reference"], f"{PREFIX}{job['name']}:latest"]
    try:
        if job["suite"]:
            excludes = [f"/usr/share/{name}/*" for name in LEFT_OUT]
            bootstrap.bootstrap(store, names, job["suite"], job["packages"], exclude=excludes, progress=_say)
        else:
            parent = store.image(job["parent"])
            parent.name = job["parent"].rpartition(":")[0] + ":latest"
            store.write_image(parent)
            lend = [path for path in LENT_FILES if os.path.exists(path)]
            contexts = {"dodas": job["project"]}
            build.build(store, job["folder"], tags=names, contexts=contexts, pull="never", lend=lend, progress=_say)
    except Error as exc:
        _print(f"Error: {exc}")
        return exc.status or 1
    return 0


def _print(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(event, **facts):
    if event == "output":
        sys.stdout.buffer.write(facts["data"])
        sys.stdout.buffer.flush()
    elif event == "step":
        cached = " (cached)" if facts["cached"] else ""
        _print(f"STEP {facts['number']}/{facts['total']}: {facts['text']}{cached}")
    elif event == "warning":
        _print(f"Warning: {facts['text']}")


def _run(command, stream, **options):
    """subprocess.run that gives what it ends the time to tidy up."""
    with subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, **options) as process:
        try:
            status = process.wait(TIMEOUT)
        except BaseException:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)

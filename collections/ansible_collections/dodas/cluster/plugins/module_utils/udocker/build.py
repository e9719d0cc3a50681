# SPDX-License-Identifier: Apache-2.0
"""Builds images from Containerfiles: what udocker says it cannot do.

Each RUN is a container on the layers so far, and what it changed becomes the next layer; COPY and ADD write a layer
without a container. A step that was done before on the same files is taken from the cache (store: cache/build), which
is keyed by what the files are, never by their times. Stages that do not need each other are built side by side.
"""

import hashlib
import json
import os
import time

from . import containerfile as syntax
from . import reference
from .errors import Error, NotFound
from .stages import PROXIES, Stage

# Files of the machine that `lend` may name: configuration of package clients and certificate authorities.
MACHINE_FILES = ("/etc/pip.conf", "/etc/npmrc", "/etc/ssl/certs")
JOBS = 2


def build(
    store,
    context,
    containerfile=None,
    tags=(),
    build_args=None,
    target=None,
    contexts=None,
    no_cache=False,
    pull="missing",
    platform=None,
    labels=None,
    secrets=None,
    progress=None,
    engine=None,
    lend=(),
    network="host",
    text=None,
):
    """Build an image and return it (store.Image, of the first tag).

    context: folder that COPY copies from, or None; containerfile: path, by default Containerfile or Dockerfile there;
        text: its content instead
    tags: names for the image; without any it is localhost/build:ID
    build_args, labels: {name: value}; secrets: {id: path, or ("env", variable)}
    target: stage to build; contexts: {name: folder, or "docker-image://REFERENCE"}, for FROM and --from
    pull: missing, always or never; platform: os/architecture[/variant]; engine: its name
    lend: files and folders of the machine that each RUN sees, read-only, and that stay out of the image
    network: "host" or "none" for RUN
    progress(event, **facts): ("step", stage, number, total, line, text, cached), ("output", stage, data),
        ("warning", text), and what transfer.pull tells
    Raises Error; nothing half-made stays.
    """
    job = _Job()
    job.store = store
    job.progress = progress or (lambda _event, **_facts: None)
    job.silent = progress is None
    job.no_cache = no_cache
    job.network = network
    job.secrets = secrets or {}
    job.lend = [path for path in lend if os.path.exists(path)]
    job.contexts = _contexts(context, contexts or {})
    path, content = _read(context, containerfile, text)
    job.ignore_file = path if text is None else None
    job.file = syntax.parse(content, path)
    job.build_args = dict(build_args or {})
    job.platform = _platform(platform)
    job.chosen = bool(platform)
    job.globals = _globals(job)
    last = job.file.stage(target) if target else job.file.stages[-1]
    if last is None:
        names = [stage.name or str(stage.number) for stage in job.file.stages]
        raise Error(f"{path}: no stage {target}: there are {', '.join(names)}")
    job.needs = {}
    _plan(job, last)
    job.images = {name: _image(job, name, pull) for name in _images_needed(job)}
    if any(one.name == "RUN" for number in job.needs for one in job.file.stages[number].instructions) or any(
        "RUN" in str(image.get("OnBuild")) for image in job.images.values()
    ):
        from . import engines

        job.engine = engines.choose(store, engine, str(job.platform))
    done = _build_stages(job)
    _warn_of_arguments(job, done)
    return _finish(job, done[last.number], tags, labels or {})


class _Job:
    """What is the same for all stages of a build."""

    def __init__(self):
        self.engine = None
        self.images = {}  # what stages build on and read from, by the name that it has in the Containerfile

    def fail(self, line, message):
        raise Error(f"{self.file.path}:{line}: {message}")

    def expand(self, line, word, variables):
        try:
            return syntax.expand(word, variables, self.file.escape)
        except ValueError as exc:
            raise Error(f"{self.file.path}:{line}: {word}: {exc}") from None

    def meaning(self, stage, name, base=False):
        """What a name in FROM or --from stands for: ("scratch" | "stage" | "context" | "image", value)."""
        value = self.contexts.get(name.lower()) if name else None
        if value:
            kind, separator, rest = value.partition("-image://")
            return ("image", rest) if separator and kind in ("docker", "container") else ("context", value)
        if base and name == "scratch":
            return "scratch", None
        found = self.file.stage(name) if not base or not name.isdigit() else None
        if found and found.number < stage.number:
            return "stage", found.number
        if found and found is stage and not base:
            self.fail(stage.line, f"--from={name} means the stage itself")
        if found and not base:
            self.fail(found.line, f"stage {name} is needed by an earlier one: move it up")
        return "image", name

    def epoch(self):
        """Seconds that what the build makes is dated with: $SOURCE_DATE_EPOCH, or now."""
        value = self.build_args.get("SOURCE_DATE_EPOCH") or os.environ.get("SOURCE_DATE_EPOCH") or ""
        return float(value) if value.isdigit() else float(int(time.time()))

    def now(self):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.epoch()))


# Before anything is built


def _contexts(context, named):
    found = {"": context}
    for name, value in named.items():
        if not value.startswith(("docker-image://", "container-image://")) and not os.path.isdir(value):
            raise Error(f"build context {name}: {value} is no folder and no docker-image://NAME")
        found[name.lower()] = value
    if context is not None and not os.path.isdir(context):
        raise Error(f"{context}: is no folder: the context of a build is one")
    return found


def _read(context, path, text):
    """(path, content) of the Containerfile."""
    if text is not None:
        return path or "Containerfile", text
    if path is None:
        if context is None:
            raise Error("a build needs a context or a Containerfile")
        for name in ("Containerfile", "Dockerfile"):
            path = os.path.join(context, name)
            if os.path.exists(path):
                break
    try:
        with open(path, encoding="utf-8") as source:
            return path, source.read()
    except OSError as exc:
        raise Error(f"{path}: {exc.strerror}: --file names the Containerfile") from exc
    except UnicodeDecodeError:
        raise Error(f"{path}: is no text in UTF-8") from None


def _platform(text):
    from .manifests import parse_platform

    return parse_platform(text)


def _platform_variables(job):
    found = {}
    for prefix, platform in (("TARGET", job.platform), ("BUILD", _platform(None))):
        found[prefix + "PLATFORM"] = str(platform)
        found[prefix + "OS"] = platform.system
        found[prefix + "ARCH"] = platform.architecture
        found[prefix + "VARIANT"] = platform.variant
    return found


def _globals(job):
    """The arguments before the first FROM, with their values."""
    job.predefined = _platform_variables(job)
    found = {}
    for instruction in job.file.arguments:
        for name, value in instruction.words:
            if name in job.build_args:
                found[name] = job.build_args[name]
            elif value is not None:
                found[name] = job.expand(instruction.line, value, dict(job.predefined, **found))
    return found


def _plan(job, stage):
    """Note in job.needs what a stage, and those that it needs, build on: {number: [number, ...]}."""
    if stage.number in job.needs:
        return
    variables = dict(job.predefined, **job.globals)
    stage.base = job.expand(stage.line, stage.base, variables)
    if not stage.base:
        job.fail(stage.line, "FROM what? The name of the image is empty: an ARG before FROM may have no value")
    if stage.platform:
        stage.platform = job.expand(stage.line, stage.platform, variables)
    needed = [stage.base] + [name for one in stage.instructions for name in _sources(one)]
    job.needs[stage.number] = []
    for at, name in enumerate(needed):
        found = job.file.stage(name) if at or not name.isdigit() else None
        if found and name.lower() not in job.contexts and found.number < stage.number:
            job.needs[stage.number].append(found.number)
            _plan(job, found)


def _sources(instruction):
    """The stages, images and contexts that an instruction reads from."""
    if instruction.flags.get("from"):
        yield instruction.flags["from"]
    for text in instruction.flags.get("mount", ()):
        for part in text.split(","):
            key, _equals, value = part.partition("=")
            if key == "from":
                yield value


def _images_needed(job):
    """Names of images that stages build on or read from."""
    found = {}
    for number in job.needs:
        stage = job.file.stages[number]
        for at, name in enumerate([stage.base] + [one for each in stage.instructions for one in _sources(each)]):
            kind, value = job.meaning(stage, name, at == 0)
            if kind == "image":
                found[value] = stage.platform if at == 0 else None
    job.platforms = found
    return list(found)


def _image(job, name, pull):
    """What stages need of an image: its configuration and layers."""
    full = reference.parse(name).name
    wanted = job.platforms[name] or (str(job.platform) if job.chosen else None)
    platform = wanted or str(job.platform)
    image = None
    if pull != "always":
        try:
            image = job.store.image(full)
        except NotFound:
            pass
        if image and wanted and not _platform(wanted).rank(_platform(image.platform)):
            image = None  # of that name, and made for other machines
    if image is None or not all(job.store.has_layer(layer["diff_id"]) for layer in image.layers):
        if pull == "never":
            raise Error(f"no image {full} for {platform} in the store, and none may be pulled")
        from . import transfer

        image = transfer.pull(job.store, reference.parse(name), platform=platform, progress=job.progress)
    config = json.loads(job.store.read_blob(image.config))
    return {"config": config, "layers": image.layers, "OnBuild": (config.get("config") or {}).get("OnBuild")}


def _warn_of_arguments(job, done):
    known = {name for state in done.values() for name in state["declared"]} | set(job.globals) | set(PROXIES)
    known |= {name for one in job.file.arguments for name, _value in one.words} | {"SOURCE_DATE_EPOCH"}
    for name in job.build_args:
        if name not in known and name not in job.predefined:
            job.progress("warning", text=f"build argument {name} is used by no ARG of the stages that were built")


# Stages


def _build_stages(job):
    """Build what is needed; returns {number: state}. Two at a time where they do not need each other."""
    done, running = {}, {}
    todo = sorted(job.needs)
    try:
        while todo or running:
            ready = [one for one in todo if all(need in done for need in job.needs[one])]
            if not running and len(ready) == 1:
                number = ready[0]
                done[number] = Stage(job, job.file.stages[number], done).run()
                todo.remove(number)
                continue
            for number in ready[: JOBS - len(running)]:
                running[number] = _Worker(job, number, done)
                todo.remove(number)
            for number in _Worker.wait(running):
                done[number] = running.pop(number).result
    finally:
        for worker in running.values():
            worker.stop()
    return done


class _Worker:
    """A stage that is built in a process of its own."""

    def __init__(self, job, number, done):
        self.job = job
        self.result = None
        self.source, target = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.source)
            self._work(job, number, done, target)
        os.close(target)
        self.stream = os.fdopen(self.source, "rb")

    @staticmethod
    def _work(job, number, done, target):
        import pickle
        import signal

        from . import linux

        asked = []

        def interrupted(*_signal):
            # Once: a terminal tells this process and its parent, who tells it again, and then it is clearing away.
            if not asked:
                asked.append(True)
                raise KeyboardInterrupt

        status = 1
        try:
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, interrupted)
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
            with open(target, "wb", buffering=0) as stream:

                def tell(event, **facts):
                    stream.write(pickle.dumps((event, facts)))

                job.progress = tell
                try:
                    tell(None, result=Stage(job, job.file.stages[number], done).run())
                except Exception as exc:
                    error = exc if isinstance(exc, Error) else Error(f"{type(exc).__name__}: {exc}")
                    tell(None, message=str(error), status=error.status)
            status = 0
        except BaseException:  # interrupted: whoever did it knows
            pass
        finally:
            os._exit(status)

    @staticmethod
    def wait(running):
        """Pass on what workers say until one has its result; returns the numbers of those that do."""
        import pickle
        import select

        by_stream = {worker.stream: number for number, worker in running.items()}
        for stream in select.select(list(by_stream), [], [])[0]:
            number = by_stream[stream]
            worker = running[number]
            try:
                event, facts = pickle.load(stream)
            except EOFError:
                raise Error(f"the process that built stage {number} was killed") from None
            if event is not None:
                worker.job.progress(event, **facts)
                continue
            if "result" not in facts:
                raise Error(facts["message"], facts["status"])
            worker.result = facts["result"]
            worker.stop()
            return [number]
        return []

    def stop(self):
        import signal

        self.stream.close()
        if self.result is None:
            os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)


# Afterwards


def _finish(job, state, tags, labels):
    """Write configuration, manifest and names."""
    from . import images

    config = state["config"]
    if labels:
        config["config"]["Labels"] = dict(config["config"].get("Labels") or {}, **labels)
    config["config"] = {name: value for name, value in config["config"].items() if value not in (None, [], {}, "")}
    config["rootfs"] = {"type": "layers", "diff_ids": [layer["diff_id"] for layer in state["layers"]]}
    config.setdefault("created", job.now())
    content = json.dumps(config, separators=(",", ":")).encode()
    name = f"localhost/build:{hashlib.sha256(content).hexdigest()[:12]}"
    names = [reference.parse(tag).name for tag in tags] or [name]
    made = [images.keep(job.store, name, content, state["layers"]) for name in names]
    return made[0]

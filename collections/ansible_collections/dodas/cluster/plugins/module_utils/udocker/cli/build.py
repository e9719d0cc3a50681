# SPDX-License-Identifier: Apache-2.0
"""The command build."""

import os
import sys

from ..errors import Error


def build(session, options):
    from .. import build as library
    from .. import images

    place = options.arguments[0]
    text, file, temporary = None, options.file, None
    if place == "-":
        text, place = sys.stdin.read(), None
    elif "://" in place or place.startswith("git@"):
        temporary = _fetched(place, session.config.tmpdir or None)
        place = temporary.name
    elif not os.path.isdir(place):
        raise Error(f"{place} is no folder")
    if file == "-":
        text, file = sys.stdin.read(), None
    elif file and not os.path.isabs(file) and not os.path.exists(file) and place:
        file = os.path.join(place, file)  # docker looks from where one is, podman in the folder too
    volumes = []
    for volume in options.volume:
        parts = volume.split(":")
        if len(parts) > 1 and parts[1] != parts[0]:
            raise Error(f"--volume {volume}: RUN sees a folder under its own name here")
        volumes.append(parts[0])
    try:
        with Progress(session, options.quiet) as progress:
            image = library.build(
                session.store,
                place,
                containerfile=file,
                text=text,
                tags=options.tag,
                build_args=_assigned(options.build_arg),
                labels=_assigned(options.label),
                target=options.target,
                contexts=_assigned(options.build_context),
                no_cache=options.no_cache,
                pull=_pull(options.pull),
                platform=options.platform,
                secrets=_secrets(options.secret),
                engine=session.engine(options),
                lend=volumes,
                network=options.network or "host",
                progress=progress,
            )
    finally:
        if temporary:
            temporary.cleanup()
    if options.iidfile:
        with open(options.iidfile, "w", encoding="ascii") as target:
            target.write(image.config)
    if options.output:
        _write(session, options.output, image)
    if options.quiet or session.quiet:
        session.out(image.config)
    elif session.docker:
        session.out("Successfully built " + image.config.partition(":")[2][:12])
        for tag in options.tag:
            session.out("Successfully tagged " + images.familiar(tag))
    else:
        session.out(images.familiar(image.name))


def _pull(text):
    if text is None:
        return "missing"
    if text.lower() in ("", "true", "always", "newer"):
        return "always"
    return "missing" if text.lower() == "false" else text.lower()


def _assigned(texts):
    """{name: value}; one without a value has the environment's."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _secrets(texts):
    """{id: path or ("env", variable)} of id=NAME[,src=FILE][,env=VARIABLE]."""
    found = {}
    for text in texts:
        facts = dict(part.partition("=")[::2] for part in text.split(","))
        name = facts.get("id")
        if not name:
            raise Error(f"--secret {text}: id=NAME,src=FILE is expected")
        path = facts.get("src") or facts.get("source")
        variable = facts.get("env") or (name if name in os.environ and not path else None)
        found[name] = ("env", variable) if variable and not path else path or name
    return found


def _fetched(place, parent):
    """A folder with what a repository or an archive at a URL holds."""
    import subprocess
    import tempfile

    repository, _hash, branch = place.partition("#")
    branch, _colon, below = branch.partition(":")
    if below:
        raise Error(f"{place}: a folder within a repository is not taken: clone it")
    if not (repository.endswith(".git") or repository.startswith("git")):
        raise Error(f"{place}: a git repository or a folder is expected")
    folder = tempfile.TemporaryDirectory(dir=parent)
    chosen = ["--branch", branch] if branch else []
    line = ["git", "clone", "--quiet", "--depth=1", *chosen, "--", repository, folder.name]
    try:
        subprocess.run(line, check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        folder.cleanup()
        raise Error(f"{repository} cannot be cloned: {exc}") from None
    return folder


def _write(session, text, image):
    """--output: FILE, type=oci|docker,dest=FILE."""
    from .. import archives

    facts = dict(part.partition("=")[::2] for part in text.split(",")) if "=" in text else {"dest": text}
    kind, path = facts.get("type", "docker"), facts.get("dest")
    if kind not in ("docker", "oci", "image") or (kind != "image" and not path):
        raise Error(f"--output {text}: type=docker or oci, and dest=FILE are possible")
    if path:
        archives.save(session.store, [image.name], path, kind="oci" if kind == "oci" else "docker")


class Progress:
    """What a build does: its steps, what its commands say, and pulls."""

    def __init__(self, session, quiet):
        from . import progress

        self.quiet = quiet or session.quiet
        self.stages = set()
        self.session = session
        self.layers = progress.Progress(session.level) if not self.quiet else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.layers:
            self.layers.__exit__(*exception)

    def __call__(self, event, **facts):
        if event == "warning":
            self.session.warn(facts.get("text") or facts.get("message") or "")
        elif self.quiet:
            return
        elif event == "step":
            self.stages.add(str(facts["stage"]))
            named = len(self.stages) > 1 or not str(facts["stage"]).isdigit()
            stage = f"{facts['stage']}: " if named else ""
            cached = " (cached)" if facts.get("cached") else ""
            sys.stderr.write(f"STEP {stage}{facts['number']}/{facts['total']}: {facts['text']}{cached}\n")
            sys.stderr.flush()
        elif event == "output":
            sys.stderr.flush()
            data = facts["data"]
            os.write(2, data if isinstance(data, bytes) else data.encode())
        else:
            self.layers(event, **facts)

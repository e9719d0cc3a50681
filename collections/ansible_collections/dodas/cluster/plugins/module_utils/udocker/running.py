# SPDX-License-Identifier: Apache-2.0
"""RUN: a container on the layers so far, whose changes become the next layer."""

import os
import stat

from .errors import Error
from .spec import Mount, Spec

TAIL = 4000  # bytes of a failed command's output that its error holds where nobody was shown it


def run(stage, argv, script, env, mounts, network, keep):
    """Run argv in a container of its own; returns what keep(write) does with the layer of what it changed.

    script: (path, content) of a file that it needs, or None; env: {name: value}; mounts: options of each --mount
    Raises Error, which names the instruction and how the command ended.
    """
    job, store = stage.job, stage.store
    with store.temporary() as folder:
        directory = os.path.join(folder, "container")
        os.mkdir(directory)
        layers = stage.folders()
        held = []
        try:
            job.engine.prepare(directory, layers)
            prepared, secrets = _mounts(stage, folder, mounts, script, held)
            config = stage.config["config"]
            spec = Spec(
                directory, layers, argv, dict(_proxies(job), **env, **secrets), cwd=config.get("WorkingDir") or "/",
                user=str(config.get("User") or ""), mounts=prepared, network=network,
            )  # fmt: skip
            try:
                running = started(job.engine, spec)
            except Error as exc:
                stage.fail(str(exc), exc.status)
            name = stage.stage.name or str(stage.stage.number)
            code, tail = pump(running, lambda data: job.progress("output", stage=name, data=data))
            if code:
                said = "\n" + tail.decode("utf-8", "replace").strip() if job.silent and tail else ""
                stage.fail(f"{_shown(argv)} {_ending(code)}{said}", code)
            return _changes(keep, directory, layers, [mount.target for mount in prepared])
        finally:
            job.engine.remove(directory)
            for release in reversed(held):
                release()


def started(engine, spec):
    """Start a container whose output can be read: (Running, descriptor). Raises Error."""
    source, target = os.pipe()
    try:
        with open(os.devnull, "rb") as nothing:
            return engine.start(spec, (nothing.fileno(), target, target)), source
    except BaseException:
        os.close(source)
        raise
    finally:
        os.close(target)


def pump(container, tell):
    """Pass on what a started container prints until it ends; returns its exit code and the last of what it printed.

    Interrupted, it ends the container.
    """
    running, source = container
    tail = b""
    try:
        with open(source, "rb", buffering=0) as stream:
            for piece in iter(lambda: stream.read(1 << 16), b""):
                tail = (tail + piece)[-TAIL:]
                tell(piece)
        return running.wait(), tail
    except BaseException:
        running.kill(9)
        running.wait()
        raise


def _shown(argv):
    text = argv[2] if len(argv) == 3 and argv[1] == "-c" else " ".join(argv)
    first = text.strip().split("\n")[0]
    return f"`{first[:300]}{' ...' if len(text.strip()) > min(len(first), 300) else ''}`"


def _ending(code):
    if code > 128:
        import signal

        try:
            return f"was ended by {signal.Signals(code - 128).name} (exit status {code})"
        except ValueError:
            pass
    return f"failed with exit status {code}"


def _proxies(job):
    from .stages import PROXIES

    found = {name: os.environ[name] for name in PROXIES if name in os.environ}
    found.update((name, value) for name, value in job.build_args.items() if name in PROXIES)
    return found


# What is mounted


def _mounts(stage, folder, options, script, held):
    """([Mount], variables of secrets); functions that let go of what is held are added to `held`."""
    job = stage.job
    found = [Mount("bind", path, path, read_only=_read_only(job)) for path in ("/etc/hosts", "/etc/resolv.conf")
             if os.path.exists(path)]  # fmt: skip
    found += [Mount("bind", path, os.path.realpath(path), read_only=_read_only(job)) for path in job.lend]
    variables = {}
    for number, mount in enumerate(options):
        kind, target = mount["type"], mount.get("target")
        if kind == "tmpfs":
            size = f"size={mount['size']}" if "size" in mount else ""
            found.append(Mount("tmpfs", target, options=size))
        elif kind == "cache":
            found.append(_cache(stage, mount, held))
        elif kind == "bind":
            found.append(_bind(stage, mount, os.path.join(folder, f"mount{number}"), held))
        else:
            _secret(stage, mount, os.path.join(folder, f"mount{number}"), found, variables)
    if script:
        path = os.path.join(folder, "script")
        with open(path, "wb") as target:
            target.write(script[1])
        os.chmod(path, 0o755)
        found.append(Mount("bind", script[0], path, read_only=_read_only(job)))
    return found, variables


def _read_only(job):
    # PRoot has no mounts: what may not be written is left to the rights of the files.
    return job.engine.name != "proot"


def _cache(stage, mount, held):
    """A folder that stays between builds."""
    from . import cache

    store = stage.store
    name = cache.key("mount", mount.get("id") or mount["target"])[:32]
    sharing = mount.get("sharing", "shared")
    if sharing not in ("shared", "private", "locked"):
        stage.fail(f"--mount: sharing={sharing}: is shared, private or locked")
    if sharing != "shared":
        lock = store.lock(f"cache-{name}")
        lock.__enter__()
        held.append(lambda: lock.__exit__(None, None, None))
    folder = store.path("cache", "mounts", name)
    if not os.path.isdir(folder):
        from . import userns

        os.makedirs(folder, exist_ok=True)
        try:
            mode, uid, gid = int(mount.get("mode", "755"), 8), int(mount.get("uid", 0)), int(mount.get("gid", 0))
        except ValueError:
            stage.fail("--mount=type=cache: mode is octal, uid and gid are numbers")
        userns.call(_own, folder, mode, uid, gid)
    return Mount("bind", mount["target"], folder, read_only="readonly" in mount)


def _own(path, mode, uid, gid):
    try:
        os.chown(path, uid, gid)
    except OSError:
        pass  # one id is all there is
    os.chmod(path, mode)


def _bind(stage, mount, copy, held):
    """Part of the context, of a stage or of an image. What may be written to, or is in layers, is a copy."""
    from . import dockerignore, trees, userns
    from .copying import Copy
    from .view import View

    kind, value, root = stage.root_of(mount.get("from"))
    writable = "readwrite" in mount and mount["readwrite"] != "false"
    source = mount.get("source", "/")
    view = View(root)
    parts = view.resolve(source)
    entry = view.entry(parts)
    if not entry:
        stage.fail(f"--mount: {source} is not in {mount.get('from') or 'the context'}")
    ignore = None
    if kind == "context":
        ignore = dockerignore.read(value, None if mount.get("from") else stage.job.ignore_file)
    if kind == "context" and not writable and not (ignore and ignore.rules):
        return Mount("bind", mount["target"], entry.path, read_only=_read_only(stage.job))
    user = "" if kind == "context" else None
    target = "/content/" if entry.is_folder else "/content"
    job = Copy([], root, [source], target, user=user, ignore=ignore, folder=entry.is_folder)

    os.mkdir(copy)
    held.append(lambda: trees.remove(copy))
    archive = os.path.join(copy, "tar")
    userns.call(_write, job, archive)
    userns.call(_extract, archive, os.path.join(copy, "tree"))
    return Mount("bind", mount["target"], os.path.join(copy, "tree", "content"), read_only=not writable)


def _write(job, path):
    with open(path, "wb") as stream:
        job.write(stream)


def _extract(archive, top):
    from . import tar, unpack

    os.mkdir(top)
    limits = tar.Limits()
    descriptor = os.open(archive, os.O_RDONLY)
    stream = tar.Plain(descriptor, limits)
    writer = unpack.Writer(top, stream, limits)
    try:
        writer.run()
    finally:
        writer.close()
        stream.close()
        os.close(descriptor)


def _secret(stage, mount, path, found, variables):
    from . import userns

    name = mount.get("id") or os.path.basename(mount["target"])
    secret = stage.job.secrets.get(name)
    if secret is None:
        if mount.get("required", "false") not in ("false", "0"):
            stage.fail(f"secret {name} is required: --secret id={name},src=FILE")
        return
    if isinstance(secret, tuple):
        content = os.environb.get(os.fsencode(secret[1]))
        if content is None:
            stage.fail(f"secret {name}: the variable {secret[1]} is not set")
    else:
        try:
            with open(secret, "rb") as source:
                content = source.read()
        except OSError as exc:
            stage.fail(f"secret {name}: {secret}: {exc.strerror}")
    if "env" in mount:
        variables[mount["env"]] = content.decode("utf-8", "surrogateescape")
    if "env" not in mount or "target" in mount:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            target.write(content)
        userns.call(_own, path, int(mount.get("mode", "400"), 8), int(mount.get("uid", 0)), int(mount.get("gid", 0)))
        place = mount.get("target") or f"/run/secrets/{name}"
        found.append(Mount("bind", place, path, read_only=_read_only(stage.job)))


# What it changed


def _changes(keep, directory, layers, targets):
    """The layer of what the container in `directory` changed; places that mounts were put on are no change."""
    from . import pack, userns

    top, whole = pack.top(directory)
    userns.call(clear, top, layers, targets)
    return keep(lambda stream: pack.write_changes(stream, layers, top, whole))


def clear(top, layers, targets):
    """Remove from `top` what was made for mounts to be put on, if nobody used it, and let folders look untouched."""
    from .view import View

    view = View(layers)
    for target in [*targets, "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev", "/proc", "/sys"]:
        parts = view.resolve(target)
        while parts and not view.entry(parts) and _removed(os.path.join(top, *parts)):
            parts = parts[:-1]
        while parts:
            _restore(view, parts, os.path.join(top, *parts))
            parts = parts[:-1]


def _removed(path):
    """Remove an empty file or folder; whether it is not there then."""
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(path)
        elif stat.S_ISREG(status.st_mode) and not status.st_size:
            os.unlink(path)
        else:
            return False
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _restore(view, parts, path):
    """Undo the trace that a mount leaves on a folder above it: a copy in the upper folder, a newer time."""
    from .trees import is_opaque
    from .view import Entry

    known = view.entry(parts)
    try:
        here = Entry(path, os.lstat(path))
        if not (known and known.is_folder and here.is_folder) or is_opaque(path):
            return
        if (here.mode, here.uid, here.gid) != (known.mode, known.uid, known.gid):
            return
        if not os.listdir(path) and view.names(parts):
            os.rmdir(path)  # an upper folder: of a whole tree, the names would be here
        elif sorted(os.listdir(path)) == view.names(parts):
            os.utime(path, (known.mtime, known.mtime))
    except OSError:
        return

# SPDX-License-Identifier: Apache-2.0
"""What goes in and out of containers: cp in both directions, what changed (diff), an image of it (commit).

A container's side works where its root is the process's root, or, under PRoot, below a folder through mounts.resolve():
whatever links a hostile container holds, and however they change meanwhile, nothing outside is read or written. The
host's side writes below its target without following any link that came from the container.
"""

import errno
import os
import stat

from .errors import Error, NotFound

CHUNK = 1 << 20


def copy(store, source, target, archive=False, follow=False):
    """`cp`: one of source and target is CONTAINER:PATH, the other a path on the host or "-" for a tar.

    archive: keep owners; follow: copy what a link at the end of source leads to. Raises Error, NotFound.
    """
    ours, theirs = _side(store, source), _side(store, target)
    if ours[0] and theirs[0]:
        raise Error("from one container to another: copy it to the host first")
    if ours[0]:
        take(ours[0], ours[1], target, archive, follow)
    elif theirs[0]:
        give(theirs[0], source, theirs[1], archive, follow)
    else:
        raise Error(f"neither {source} nor {target} names a container: CONTAINER:PATH does")


def _side(store, text):
    from .containers import find

    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or not name:
        return None, text
    return find(store, name), path or "/"


def take(container, path, target, archive=False, follow=False):
    """Copy `path` of a container to `target` of the host, or as a tar to standard output ("-")."""
    _prepare()
    contents = path.endswith("/.") or os.path.normpath(path) in ("/", ".")
    reader, writer = os.pipe()
    if target == "-":
        worker = _Worker(_pump, [writer], reader, 1)
    else:
        worker = _Worker(_receive_on_host, [writer], reader, target, contents, path, archive)
    os.close(reader)
    _both(container, worker, [writer], _send, path, writer, contents and target != "-", follow)


def give(container, source, path, archive=False, follow=False):
    """Copy `source` of the host, or a tar from standard input ("-"), to `path` of a container."""
    _prepare()
    contents = source.endswith("/.")
    reader, writer = os.pipe()
    if source == "-":
        worker = _Worker(_pump, [reader], 0, writer)
        name = None
    else:
        if not os.path.lexists(source):
            raise NotFound(f"{source}: no such file or folder")
        name = "" if contents else os.path.basename(os.path.abspath(source))
        worker = _Worker(_send_from_host, [reader], source, writer, contents, follow)
    os.close(writer)
    _both(container, worker, [reader], _receive_inside, path, reader, name, archive)


def _both(container, worker, ends, function, *args):
    """Run the container's part here, and the host's in its worker; the first error of either is raised."""
    failure = None
    try:
        _inside(container, function, *args)
    except (Error, OSError) as exc:
        failure = exc
    finally:
        for end in ends:
            os.close(end)
    said = worker.result()
    if isinstance(failure, Error) and not (said and "Broken pipe" in str(failure)):
        raise failure
    if said:
        raise Error(said)
    if failure:
        raise Error(f"{failure.filename or container.name}: {failure.strerror}") from failure


def _inside(container, function, *args):
    engine = container.engine()
    if container.is_running():
        return engine.inside(container.directory, container.layers, function, *args)
    with container.locked("copy files"):
        return engine.inside(container.directory, container.layers, function, *args)


def _prepare():
    """Import what the container's side needs: inside, nothing can be imported."""
    import tarfile

    from . import mounts

    loaded = [tarfile, mounts]
    for name in ("zlib", "bz2", "lzma"):
        try:
            loaded.append(__import__(name))
        except ImportError:
            pass  # a tar that is compressed so cannot be read
    return loaded


class _Worker:
    """A child that runs function(*args), with the descriptors of the other side closed."""

    def __init__(self, function, close, *args):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self.reader)
                for descriptor in close:
                    os.close(descriptor)
                function(*args)
            except Error as exc:
                os.write(writer, str(exc).encode("utf-8", "surrogateescape"))
            except OSError as exc:
                if exc.errno != errno.EPIPE:
                    os.write(writer, f"{exc.filename or 'copy'}: {exc.strerror}".encode("utf-8", "surrogateescape"))
            except BaseException:
                import traceback

                os.write(writer, traceback.format_exc().encode("utf-8", "surrogateescape"))
            finally:
                os._exit(0)
        os.close(writer)

    def result(self):
        """What went wrong, or ""."""
        with open(self.reader, "rb") as source:
            said = source.read().decode("utf-8", "surrogateescape")
        os.waitpid(self.pid, 0)
        return said


def _pump(source, target):
    while True:
        data = os.read(source, CHUNK)
        if not data:
            return
        while data:
            data = data[os.write(target, data) :]


# Sending: a tree as a tar


def _send(root, path, writer, contents, follow):
    """In the container: write `path` as a tar. contents: what is in it, without its own name."""
    from . import mounts

    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    name = os.path.basename(os.path.normpath(path)) or "."
    try:
        for _link in range(40):
            parent, last = os.path.split(os.path.normpath("/" + path))
            here = mounts.resolve(folder, parent)
            last = last or "."
            if not (follow or contents) or not stat.S_ISLNK(_lstat(last, dir_fd=here).st_mode):
                break
            path = os.path.join(parent, os.readlink(last, dir_fd=here))
        _lstat(last, dir_fd=here)
    except OSError as exc:
        raise NotFound(f"{path}: {exc.strerror} in the container") from None
    finally:
        os.close(folder)
    _write_tar(here, last, "." if contents else name, writer)


def _send_from_host(source, writer, contents, follow):
    if follow or contents or source.endswith("/"):
        source = os.path.realpath(source)
    parent, last = os.path.split(os.path.abspath(source))
    here = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _write_tar(here, last or ".", "." if contents else last or ".", writer)


def _write_tar(here, entry, name, writer):
    """Write what is called `entry` in folder descriptor `here` under `name`."""
    import tarfile

    with open(writer, "wb", closefd=False) as stream, tarfile.open(
        fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK
    ) as archive:
        _add(archive, here, entry, name, {})


def _lstat(name, dir_fd):
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _add(archive, here, entry, name, seen):
    import tarfile

    status = _lstat(entry, dir_fd=here)
    if stat.S_ISDIR(status.st_mode):
        descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    elif stat.S_ISREG(status.st_mode):
        # It may be a pipe by now, whose opening would wait for somebody.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(entry, flags, dir_fd=here)
    else:
        descriptor = None
    try:
        status = status if descriptor is None else os.fstat(descriptor)
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
        info.uid, info.gid = status.st_uid, status.st_gid
        if stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            for below in sorted(os.listdir(descriptor)):
                try:
                    _add(archive, descriptor, below, f"{name}/{below}", seen)
                except FileNotFoundError:
                    pass  # removed meanwhile
        elif stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry, dir_fd=here)
            archive.addfile(info)
        elif stat.S_ISREG(status.st_mode):
            first = seen.get((status.st_dev, status.st_ino))
            if first is not None:
                info.type, info.linkname = tarfile.LNKTYPE, first
                archive.addfile(info)
                return
            if status.st_nlink > 1:
                seen[status.st_dev, status.st_ino] = name
            info.size = status.st_size
            with open(descriptor, "rb", closefd=False) as content:
                archive.addfile(info, _Exactly(content, info.size))
        elif stat.S_ISFIFO(status.st_mode):
            info.type = tarfile.FIFOTYPE
            archive.addfile(info)
        # Sockets and devices belong to where they are.
    except PermissionError as exc:
        raise Error(f"{name}: {exc.strerror}") from exc
    finally:
        if descriptor is not None:
            os.close(descriptor)


class _Exactly:
    """A file that has the size that was told, although it may be written to meanwhile."""

    def __init__(self, source, size):
        self.source, self.left = source, size

    def read(self, size):
        size = min(size, self.left)
        data = self.source.read(size)
        self.left -= size
        return data + bytes(size - len(data))


# Receiving


def _receive_inside(root, path, reader, name, archive):
    """In the container: unpack a tar to `path`; `name` is what its tree is called, "" for contents, None for a tar."""
    from . import mounts

    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        base, rename = _inside_target(mounts, folder, path, name)
    finally:
        os.close(folder)
    _read_tar(base, reader, rename, (0, 0) if not archive else None)


def _inside_target(mounts, root, path, name):
    """(descriptor of the folder to write to, name of the tree there or None to keep the tar's)."""
    try:
        found = mounts.resolve(root, path)
    except FileNotFoundError:
        found = None
    except OSError as exc:
        raise Error(f"{path}: {exc.strerror} in the container") from None
    if found is not None and stat.S_ISDIR(os.fstat(found).st_mode):
        return found, None
    if name is None:
        raise Error(f"{path} is no folder of the container")
    if found is None and path.endswith("/") and name:
        raise NotFound(f"{path}: there is no such folder in the container")
    parent, last = os.path.split(path.rstrip("/"))
    try:
        return mounts.resolve(root, parent or "/"), last
    except OSError as exc:
        raise NotFound(f"{parent}: {exc.strerror} in the container") from None


def _receive_on_host(reader, target, contents, path, archive):
    """Unpack a tar to `target`, by the rules of cp."""
    rename = None
    if os.path.isdir(target):
        base = os.open(target, os.O_PATH | os.O_DIRECTORY)
    else:
        if target.endswith("/") and not os.path.exists(target) and not contents and not path.endswith("/"):
            raise NotFound(f"{target}: there is no such folder")
        parent, rename = os.path.split(os.path.abspath(target))
        base = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    _read_tar(base, reader, rename, None if archive and os.geteuid() == 0 else ())


def _read_tar(base, reader, rename, owner):
    """Unpack the tar of descriptor `reader` below folder descriptor `base`.

    rename: what its first component becomes; owner: (uid, gid) of all, () to leave them alone, None for the tar's
    """
    import tarfile

    later = []
    with open(reader, "rb", closefd=False) as stream:
        try:
            archive = tarfile.open(fileobj=stream, mode="r|*", bufsize=CHUNK)  # noqa: SIM115 - closed below
        except tarfile.ReadError:
            return  # the other side failed, and says why
        with archive:
            for info in archive:
                parts = [part for part in info.name.split("/") if part not in ("", ".")]
                if ".." in parts:
                    raise Error(f"{info.name}: leads outside")
                if rename is not None:
                    parts = [rename, *(parts if _from_contents(info.name) else parts[1:])]
                _unpack(archive, info, base, parts, owner, rename, later)
        while stream.read(CHUNK):
            pass  # what pads the end
    for folder, info in reversed(later):  # after what is in them was made
        _finish(folder, info, owner)
        os.close(folder)


def _from_contents(name):
    return name == "." or name.startswith("./")


def _unpack(archive, info, base, parts, owner, rename, later):
    import tarfile

    parent = _folder(base, parts[:-1])
    name = parts[-1] if parts else "."
    try:
        if info.isdir():
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise Error(f"{info.name}: a file is where a folder is to come") from None
                return
            later.append((os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent), info))
            return
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Error(f"{info.name}: a folder is where a file is to come")
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        if info.issym():
            os.symlink(info.linkname, name, dir_fd=parent)
            if owner != ():
                uid, gid = owner or (info.uid, info.gid)
                _try(os.chown, name, uid, gid, dir_fd=parent, follow_symlinks=False)
        elif info.islnk():
            linked = [part for part in info.linkname.split("/") if part not in ("", ".")]
            linked = linked if rename is None or _from_contents(info.linkname) else linked[1:]
            linked = linked if rename is None else [rename, *linked]
            if ".." in linked:
                raise Error(f"{info.linkname}: leads outside")
            other = _folder(base, linked[:-1])
            try:
                os.link(linked[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(other)
        elif info.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                source = archive.extractfile(info)
                while True:
                    data = source.read(CHUNK)
                    if not data:
                        break
                    while data:
                        data = data[os.write(file, data) :]
                _finish(file, info, owner)
            finally:
                os.close(file)
        elif info.type == tarfile.FIFOTYPE:
            os.mkfifo(name, stat.S_IMODE(info.mode), dir_fd=parent)
    finally:
        os.close(parent)


def _folder(base, parts):
    """Descriptor of a folder below `base`; nothing on the way is a link. What is missing is made."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    for part in parts:
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        except OSError as exc:
            os.close(here)
            raise Error(f"{'/'.join(parts)}: {part} is a link or no folder: nothing is written through it") from exc
        os.close(here)
        here = below
    return here


def _finish(descriptor, info, owner):
    if owner != ():
        uid, gid = owner or (info.uid, info.gid)
        _try(os.fchown, descriptor, uid, gid)
    mode = stat.S_IMODE(info.mode)
    if owner == ():
        mode &= ~0o6000  # on the host it is somebody else's program now
    os.fchmod(descriptor, mode)
    os.utime(descriptor, (info.mtime, info.mtime))


def _try(function, *args, **more):
    try:
        function(*args, **more)
    except OSError:
        pass  # an id that this user does not have


# Volumes


def fill_volume(container, target, folder):
    """Make `folder`, with what a container has at `target`: a new volume begins with that, as Docker's do."""
    half = f"{folder}.{os.getpid()}"
    os.makedirs(half, exist_ok=True)
    _prepare()
    reader, writer = os.pipe()
    worker = _Worker(_receive_on_host, [writer], reader, half, True, target, False)
    os.close(reader)
    try:
        container.engine().inside(container.directory, container.layers, _send, target, writer, True, True)
    except (Error, OSError):
        pass  # the image has nothing there
    finally:
        os.close(writer)
    worker.result()
    try:
        os.rename(half, folder)
    except OSError:  # another one was faster
        import shutil

        shutil.rmtree(half, ignore_errors=True)


# Changes, and images of them


def diff(container):
    """[(kind, path)] of what a container has changed: A added, C changed, D deleted."""
    from . import pack

    return pack.diff(container)


def commit(container, name=None, message="", author="", changes=(), progress=None):
    """Make an image of a container's image and what it has changed; returns the Image.

    name: as people write it, None for a name made of the container's; changes: instructions such as "CMD [\"bash\"]"
    progress: told ("layer", ...) as of a pull
    """
    from . import images, manifests, pack, reference
    from .containers import timestamp

    store = container.store
    full = reference.parse(name or f"{container.name.lower()}:latest").name
    configuration = _changed(container.configuration(), changes)
    lower = _image_layers(container)
    with _Still(container):
        layer = pack.layer(container)
    if progress:
        progress("layer", digest=layer["digest"], done=layer["size"], total=layer["size"], state="done")
    import time

    now = timestamp(time.time())
    command = container.record.get("command")
    if command and not any(change.split(None, 1)[0].upper() == "CMD" for change in changes):
        configuration["config"]["Cmd"] = list(command)
    configuration.setdefault("architecture", manifests.host().architecture if hasattr(manifests, "host") else "")
    configuration.setdefault("os", "linux")
    history = configuration["history"] = list(configuration.get("history") or [])
    entry = {"created": now, "created_by": " ".join(command or ())}
    entry.update((key, value) for key, value in (("comment", message), ("author", author)) if value)
    history.append(entry)
    configuration["created"] = now
    if author:
        configuration["author"] = author
    layers = [*lower, layer]
    configuration["rootfs"] = {"type": "layers", "diff_ids": [one["diff_id"] for one in layers]}
    return images.keep(store, full, configuration, layers)


def _image_layers(container):
    """The layers of its image, as Image.layers has them: by its manifest, since the name may stand for another now."""
    if not container.record.get("layers"):
        return []
    import json

    store = container.store
    manifest = json.loads(store.read_blob(container.record["manifest"]).decode())
    pairs = zip(manifest["layers"], container.record["layers"])
    return [
        {"digest": one["digest"], "diff_id": diff_id, "size": one["size"], "mediaType": one.get("mediaType")}
        for one, diff_id in pairs
    ]


class _Still:
    """Nothing starts or removes a container that stands still, for a `with`; one that runs goes on running."""

    def __init__(self, container):
        self.lock = None if container.is_running() else container.locked("commit")

    def __enter__(self):
        return self.lock and self.lock.__enter__()

    def __exit__(self, *exception):
        return self.lock and self.lock.__exit__(*exception)


ALLOWED = (
    "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME",
    "WORKDIR",
)  # fmt: skip


def _changed(configuration, changes):
    """A copy of an image's configuration after some instructions of a Containerfile; raises Error."""
    import json

    configuration = json.loads(json.dumps(configuration or {}))
    config = configuration["config"] = configuration.get("config") or configuration.pop("container_config", None) or {}
    if not changes:
        return configuration
    from . import containerfile, stages

    class Job:
        """What a stage of a build asks of its build."""

        file = containerfile.Containerfile("--change", "\\")
        store = None

        @staticmethod
        def expand(_line, word, variables):
            return containerfile.expand(word, variables)

        @staticmethod
        def progress(*_event, **_facts):
            pass

        @staticmethod
        def now():
            return ""

    stage = stages.Stage(Job, containerfile.Stage(0, "", "", "", 0), {})
    stage.config = dict(configuration, history=[])
    for text in changes:
        word = text.split(None, 1)[0].upper() if text.strip() else ""
        if word not in ALLOWED:
            raise Error(f"--change {text}: one of {', '.join(ALLOWED)} is expected")
        instruction = containerfile.parse_trigger(text, "--change")
        stage.instruction = instruction
        if word == "WORKDIR":
            path = os.path.normpath(os.path.join(config.get("WorkingDir") or "/", instruction.words[0]))
            config["WorkingDir"] = "/" + path.strip("/")
        else:
            getattr(stage, "_" + word.lower())(instruction)
    return configuration

# SPDX-License-Identifier: Apache-2.0
"""Images from a registry to the store, and from the store to a registry.

Layers are downloaded by threads, each into a file of its own that is hashed while it grows, and unpacked from it by
other processes at the same time. The file stays when a pull ends early, and the next one goes on where it ended.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import queue
import socket
import threading
import time

from . import manifests
from .auth import Denied
from .errors import Error, NotFound
from .http import BLOCK, Unreachable
from .reference import Reference, parse
from .registry import connect
from .store import Image, hash_of

PARALLEL = 4
ATTEMPTS = 5  # in a row that bring no byte
LONGEST_WAIT = 3600.0  # seconds for another process that pulls the same layer
TICK = 0.1


def pull(store, reference, platform=None, progress=None, parallel=PARALLEL, **access):
    """Have the image in the store, unpacked, and return its Image; raises Error, NotFound.

    reference: Reference or text; platform: text, None for this machine's; parallel: downloads at once;
    access: as registry.connect takes it
    progress: called as progress("layer", digest=, done=, total=, state=) with bytes done of total and state waiting,
    downloading, unpacking, done or exists; and as progress("warning", text=)
    """
    reference = _parsed(reference)
    image = _present(store, reference)
    if image is not None and reference.digest and platform is None:
        return image
    wanted = manifests.parse_platform(platform)
    registry = connect(reference, store, **access)
    try:
        with store.lock("prune", shared=True):
            return _Pull(store, registry, reference, _reporter(progress), parallel).run(image, wanted, platform)
    finally:
        registry.close()


def push(store, name, reference=None, progress=None, parallel=PARALLEL, **access):
    """Send image `name` of the store to where `reference` says (None: as it is called); returns its digest.

    progress: as with `pull`, state also uploading; raises Error, NotFound
    """
    name = _parsed(name)
    reference = _parsed(reference) if reference else name
    image = store.image(name.name)
    registry = connect(reference, store, **access)
    try:
        return _Push(store, registry, reference, _reporter(progress), parallel).run(image)
    finally:
        registry.close()


def tags(reference, store=None, **access):
    """The tags of a repository (a generator)."""
    reference = _parsed(reference)
    registry = connect(reference, store, **access)
    try:
        yield from registry.tags(reference.repository)
    finally:
        registry.close()


def search(term, host=None, index=None, store=None, **access):
    """{name, description, official, stars} of repositories (a generator); `term` may begin with a registry's host."""
    head, slash, rest = term.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        host, term = head, rest
    place = parse("x", registry=host)
    place.repository = ""
    registry = connect(place, store, **access)
    try:
        yield from registry.search(term, index)
    finally:
        registry.close()


def inspect(reference, platform=None, store=None, **access):
    """What the registry has under a name: the manifest or list as it is, or the one for a platform (mapping)."""
    reference = _parsed(reference)
    registry = connect(reference, store, **access)
    try:
        manifest = registry.manifest(reference.repository, reference.target)
        if platform:
            fetch = _fetcher(registry, reference.repository)
            manifest = manifests.choose(manifest, manifests.parse_platform(platform), fetch, reference.familiar)
        return manifest.document
    finally:
        registry.close()


def _parsed(reference):
    return reference if isinstance(reference, Reference) else parse(reference)


def _present(store, reference):
    """The Image if nothing of it is missing, else None."""
    try:
        image = store.image(reference.name)
    except NotFound:
        return None
    blobs = [image.manifest, image.config] + [layer["digest"] for layer in image.layers]
    whole = all(map(store.has_blob, blobs)) and all(store.has_layer(layer["diff_id"]) for layer in image.layers)
    return image if whole else None


def _fetcher(registry, repository):
    def fetch(descriptor):
        manifest = registry.manifest(repository, descriptor["digest"])
        stated = descriptor.get("mediaType")
        if stated and stated != manifest.media_type:
            raise Error(f"{descriptor['digest']}: the list says it is {stated!r}, and it is {manifest.media_type!r}")
        return manifest

    return fetch


def _reporter(progress):
    """`progress` for many threads: one call at a time."""
    lock = threading.Lock()

    def report(event, **facts):
        if progress is not None:
            with lock:
                progress(event, **facts)

    return report


def _keep(store, content, digest):
    if not store.has_blob(digest):
        with store.temporary() as folder:
            path = os.path.join(folder, "blob")
            with open(path, "wb") as target:
                target.write(content)
            store.keep_blob(path, digest)


# Pull


class _Pull:
    def __init__(self, store, registry, reference, report, parallel):
        self.store = store
        self.registry = registry
        self.reference = reference
        self.report = report
        self.parallel = parallel
        self.unpackers = queue.Queue()
        self.stopped = threading.Event()

    def run(self, image, platform, asked):
        store, repository = self.store, self.reference.repository
        if image is not None and self._is_current(image, platform):
            for layer in image.layers:
                self._say(layer, layer["size"], "exists")
            return image
        get = _fetcher(self.registry, repository)

        def fetch(descriptor):
            read.append(get(descriptor))
            return read[-1]

        top = self.registry.manifest(repository, self.reference.target)
        read = [top]
        where = self.reference.familiar
        manifest = manifests.choose(top, platform, fetch, where)
        content = self._config(manifest)
        _config, diff_ids, is_for = manifests.parse_config(content, manifest, where)
        if is_for.architecture and not platform.rank(is_for):
            if asked:
                raise NotFound(f"{where} is for {is_for}, not for {platform}")
            self.report("warning", text=f"{where} is for {is_for}, this machine is {platform}")
        layers = [
            {"digest": layer["digest"], "diff_id": diff_id, "size": layer["size"]}
            for layer, diff_id in zip(manifest.layers, diff_ids)
        ]
        self._get(layers)
        _keep(store, content, manifest.config["digest"])
        for each in read:
            _keep(store, each.content, each.digest)
        size = len(manifest.content) + len(content) + sum(layer["size"] for layer in layers)
        image = Image(
            self.reference.name, manifest.digest, manifest.config["digest"], layers, time.time(), str(is_for), size
        )
        store.write_image(image)
        return image

    def _is_current(self, image, platform):
        """Whether the registry still means this image; asks for no more than a digest where that is enough."""
        try:
            digest = self.reference.digest or self.registry.digest(self.reference.repository, self.reference.target)
        except Unreachable:
            raise
        except Error:  # it may not know this question
            digest = None
        if digest is None or digest == image.manifest or not self.store.has_blob(digest):
            return digest == image.manifest

        def kept(descriptor):
            return manifests.parse(self.store.read_blob(descriptor["digest"]), "", digest=descriptor["digest"])

        try:
            # The list that it was chosen from is in the store.
            return manifests.choose(kept({"digest": digest}), platform, kept, "").digest == image.manifest
        except Error:
            return False

    def _config(self, manifest):
        digest = manifest.config["digest"]
        if self.store.has_blob(digest):
            with contextlib.suppress(Error):
                return self.store.read_blob(digest)
        return self.registry.small_blob(self.reference.repository, manifest.config)

    def _get(self, layers):
        """Download and unpack what is missing."""
        jobs = {}
        for layer in layers:
            if self.store.has_blob(layer["digest"]) and self.store.has_layer(layer["diff_id"]):
                self._say(layer, layer["size"], "exists")
            elif layer["digest"] not in jobs:
                jobs[layer["digest"]] = layer
                self._say(layer, 0, "waiting")
        if not jobs:
            return
        missing = sum(not self.store.has_layer(layer["diff_id"]) for layer in jobs.values())
        # Forked while this is the only thread.
        unpackers = []
        try:
            for _number in range(min(missing, len(os.sched_getaffinity(0)), self.parallel)):
                unpackers.append(_Unpacker(self.store, unpackers))
                self.unpackers.put(unpackers[-1])
            # The largest first, so that nothing large is left for the end.
            order = sorted(jobs.values(), key=lambda layer: -layer["size"])
            _in_threads(order, self._layer, self.parallel, self._stop)
        finally:
            for unpacker in unpackers:
                unpacker.socket.close()
            for unpacker in unpackers:
                unpacker.wait()

    def _stop(self):
        self.stopped.set()
        self.registry.client.stop()

    def _say(self, layer, done, state):
        self.report("layer", digest=layer["digest"], done=done, total=layer["size"], state=state)

    def _layer(self, layer):
        store, digest = self.store, layer["digest"]
        with _Partial(store, digest, self.stopped, lambda done: self._say(layer, done, "downloading")) as partial:
            if store.has_blob(digest) and store.has_layer(layer["diff_id"]):  # thanks to somebody else
                partial.drop()
                self._say(layer, layer["size"], "exists")
                return
            if store.has_blob(digest):
                partial.drop()
                with open(store.blob(digest), "rb") as blob:
                    job = _Job(self, layer, blob.fileno())
                    job.offer(os.fstat(blob.fileno()).st_size, ended=True)
                    job.finish()
                self._say(layer, layer["size"], "done")
                return
            try:
                self._fetch(layer, partial)
            except _Damaged:
                # What an earlier pull had left may be to blame: once more, without it.
                resumed = partial.resumed
                partial.restart()
                if not resumed:
                    raise
                self._fetch(layer, partial)
            partial.keep(store, digest)
            self._say(layer, layer["size"], "done")

    def _fetch(self, layer, partial):
        """Have the whole blob in `partial`, verified, and its layer unpacked."""
        algorithm = layer["digest"].partition(":")[0]
        size, hashed = layer["size"], hashlib.new(algorithm)
        if partial.size > size:
            partial.restart()
        job = _Job(self, layer, partial.descriptor)
        try:
            partial.hash(hashed)
            job.offer(partial.size)
            failures = 0
            while partial.size < size:
                before = partial.size
                try:
                    self._receive(layer, partial, hashed, job, mirrors=not failures)
                except Unreachable:
                    failures = 1 if partial.size > before else failures + 1
                    if failures >= ATTEMPTS or self.stopped.wait(self.registry.client.pause * 2**failures):
                        raise
            if f"{algorithm}:{hashed.hexdigest()}" != layer["digest"]:
                raise _Damaged(f"{self._where(layer)} is not what its digest says: refused")
            job.offer(size, ended=True)
            job.finish()
        except BaseException:
            job.abandon()
            raise

    def _receive(self, layer, partial, hashed, job, mirrors):
        start, size = partial.size, layer["size"]
        with self.registry.blob(self.reference.repository, layer["digest"], start, mirrors) as response:
            skip = 0
            if response.status == 206:
                begins = response.headers.get("Content-Range", "").replace("bytes", "").strip().partition("-")[0]
                if begins != str(start):
                    raise Unreachable(f"{self._where(layer)}: asked for byte {start} on, got {begins or 'another'}")
            else:
                skip = start
            expected = size - start + skip
            if response.length is not None and response.length != expected:
                found = response.length + start - skip
                raise _Damaged(f"{self._where(layer)} has {found} bytes, the manifest says {size}: refused")
            buffer = memoryview(bytearray(BLOCK))
            while True:
                count = response.readinto(buffer)
                if not count:
                    break
                if self.stopped.is_set():
                    raise Unreachable("stopped")
                piece = buffer[min(skip, count) : count]
                skip -= min(skip, count)
                if partial.size + len(piece) > size:
                    raise _Damaged(f"{self._where(layer)} has more bytes than the {size} of the manifest: refused")
                hashed.update(piece)
                partial.write(piece)
                job.offer(partial.size)
            if partial.size < size:
                raise Unreachable(f"{self._where(layer)} ends after {partial.size} of {size} bytes")

    def _where(self, layer):
        return f"{self.reference.familiar}: layer {layer['digest']}"


class _Damaged(Error):
    """A blob that is not what the manifest says, or cannot be unpacked: nothing of it is worth keeping."""


class _Partial:
    """A blob as far as it has come, in the store's tmp/ and under a lock; two pulls share it, one after the other."""

    def __init__(self, store, digest, stopped, report):
        self.path = store.path("tmp", digest.replace(":", "-") + ".partial")
        self.stopped = stopped
        self.report = report

    def __enter__(self):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        deadline = time.monotonic() + LONGEST_WAIT
        while True:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._lock(deadline)
                found = os.stat(self.path)
            except FileNotFoundError:
                found = None
            except BaseException:
                os.close(self.descriptor)
                raise
            mine = os.fstat(self.descriptor)
            if found is not None and (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                break
            os.close(self.descriptor)  # it was finished by another meanwhile
        self.size = mine.st_size
        self.resumed = self.size > 0
        os.lseek(self.descriptor, 0, os.SEEK_END)
        return self

    def _lock(self, deadline):
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                status = os.fstat(self.descriptor)
                self.report(status.st_size)
                if time.monotonic() > deadline:
                    holder = _holder(status.st_ino)
                    raise Error(f"{self.path}: another pull{holder} has held it for {LONGEST_WAIT:.0f} s") from None
                if self.stopped.wait(TICK):
                    raise Unreachable("stopped") from None

    def __exit__(self, *_exc):
        if self.path and not self.size:
            self.drop()
        os.close(self.descriptor)

    def hash(self, hashed):
        """Hash what is there already."""
        position = 0
        while position < self.size:
            piece = os.pread(self.descriptor, BLOCK, position)
            if not piece:
                break
            hashed.update(piece)
            position += len(piece)

    def write(self, piece):
        while piece:
            try:
                count = os.write(self.descriptor, piece)
            except OSError as exc:
                raise Error(f"{self.path}: {exc.strerror}") from exc
            self.size += count
            piece = piece[count:]

    def restart(self):
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.size, self.resumed = 0, False

    def drop(self):
        self.size = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def keep(self, store, digest):
        """Take it as a blob of the store."""
        store.keep_blob(self.path, digest)
        self.path = None


def _holder(inode):
    """Which process holds a lock, as text for an error."""
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        for line in locks:
            words = line.split()
            if f":{inode} " in line and "->" not in words:
                return f" (process {words[4]})"
    return ""


class _Job:
    """One layer on its way from the file that it is in, as far as that has come, to a process that unpacks it."""

    def __init__(self, pull, layer, descriptor):
        self.pull = pull
        self.layer = layer
        self.descriptor = descriptor
        self.unpacked = pull.store.has_layer(layer["diff_id"])
        self.unpacker = None
        self.available = 0
        self.ended = False
        self.failed = False
        self.broken = False
        self.said = 0.0
        self.changed = threading.Condition()

    def offer(self, available, ended=False):
        """Say how far the file has come; the unpacking begins when somebody is free for it."""
        with self.changed:
            self.available, self.ended = available, ended
            self.changed.notify()
        if self.unpacker is None and not self.unpacked and available:
            with contextlib.suppress(queue.Empty):
                self._begin(self.pull.unpackers.get_nowait())
        if self.broken and self.unpacker is not None:
            self._result()
        now = time.monotonic()
        if now - self.said > TICK and not ended:
            self.said = now
            self.pull._say(self.layer, available, "downloading")

    def _begin(self, unpacker):
        self.unpacker = unpacker
        target = unpacker.start(self.layer["diff_id"])
        self.thread = threading.Thread(target=self._pump, args=(target,), daemon=True)
        self.thread.start()

    def _pump(self, target):
        position = 0
        try:
            while True:
                with self.changed:
                    while position >= self.available and not self.ended and not self.failed:
                        self.changed.wait()
                    available = self.available
                    if self.failed or position >= available:
                        return
                while position < available and not self.failed:
                    count = _copy(target, self.descriptor, position, min(available - position, 1 << 20))
                    if not count:
                        return
                    position += count
                if self.ended:
                    self.pull._say(self.layer, position, "unpacking")
        except BrokenPipeError:
            self.broken = True  # the other end says why
        finally:
            os.close(target)

    def finish(self):
        """Wait until the layer is unpacked; raises Error."""
        if self.unpacked:
            return
        self.pull._say(self.layer, 0, "unpacking")
        while self.unpacker is None:
            if self.pull.stopped.is_set():
                raise Unreachable("stopped")
            with contextlib.suppress(queue.Empty):
                self._begin(self.pull.unpackers.get(timeout=TICK))
        self._result()

    def _result(self):
        unpacker, self.unpacker, self.unpacked = self.unpacker, None, True
        try:
            unpacker.result(self.layer)
        finally:
            self.thread.join()
            self.pull.unpackers.put(unpacker)

    def abandon(self):
        """End the unpacking, whatever it has come to."""
        with self.changed:
            self.failed = True
            self.changed.notify()
        if self.unpacker is not None:
            with contextlib.suppress(Error):
                self._result()


def _copy(target, source, position, count):
    """Copy at most `count` bytes of a file to a pipe; returns how many."""
    try:
        return os.sendfile(target, source, position, count)
    except BrokenPipeError:
        raise
    except OSError:  # not every file system can
        return os.write(target, os.pread(source, count, position))


class _Unpacker:
    """A process that unpacks layers, one after the other, each from a pipe that it is handed."""

    def __init__(self, store, earlier=()):
        self.socket, other = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                for unpacker in (self, *earlier):
                    unpacker.socket.close()
                _unpack_all(store, other)
                status = 0
            finally:
                os._exit(status)
        other.close()

    def start(self, diff_id):
        """Begin a layer; returns the descriptor to write its blob to."""
        source, target = os.pipe2(os.O_CLOEXEC)
        try:
            descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, source.to_bytes(4, "little"))]
            self.socket.sendmsg([json.dumps(diff_id).encode() + b"\n"], descriptors)
        except OSError:
            pass  # `result` tells
        finally:
            os.close(source)
        return target

    def result(self, layer):
        """Wait for the end of the layer that was begun; raises what unpacking raised."""
        answer = b""
        while not answer.endswith(b"\n"):
            try:
                more = self.socket.recv(1 << 16)
            except OSError:
                more = b""
            if not more:
                raise Error(f"layer {layer['digest']}: the process that unpacked it was killed: is there memory left?")
            answer += more
        problem = json.loads(answer)
        if problem:
            raise _Damaged(f"layer {layer['digest']}: {problem[0]}", problem[1])

    def wait(self):
        """Wait for its end, after its socket was closed."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _unpack_all(store, other):
    """What an _Unpacker does, until its starter closes the socket or is no more."""
    import signal

    from . import unpack

    # Ctrl-C is for the starter: it ends the stream, and the unpacking then removes what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, ancillary, _flags, _address = other.recvmsg(4096, socket.CMSG_SPACE(4))
        if not message:
            return
        source = int.from_bytes(ancillary[0][2][:4], "little")
        try:
            unpack.layer(store, source, diff_id=json.loads(message))
            problem = None
        except Error as exc:
            problem = [str(exc), exc.status]
        except Exception as exc:
            problem = [f"{type(exc).__name__}: {exc}", 1]
        finally:
            os.close(source)
        other.sendall(json.dumps(problem).encode() + b"\n")


def _in_threads(jobs, work, count, stop):
    """Call work(job) for each job in up to `count` threads. The first failure stops the rest, and is raised."""
    waiting = collections.deque(jobs)
    failures = []

    def run():
        while not failures:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                work(job)
            except BaseException as exc:
                failures.append(exc)
                stop()

    threads = [threading.Thread(target=run, daemon=True) for _number in range(min(count, len(waiting)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C
        failures.append(None)
        stop()
        for thread in threads:
            if thread.ident:
                thread.join()
        raise
    if failures:
        raise failures[0]


# Push


class _Push:
    def __init__(self, store, registry, reference, report, parallel):
        self.store = store
        self.registry = registry
        self.reference = reference
        self.report = report
        self.parallel = parallel

    def run(self, image):
        content = self.store.read_blob(image.manifest)
        manifest = manifests.parse(content, image.name, digest=image.manifest)
        blobs = {blob["digest"]: blob for blob in [*manifest.layers, manifest.config]}
        for digest in blobs:
            if not self.store.has_blob(digest):
                raise NotFound(f"{image.name}: blob {digest} is not in the store: pull the image again")
        sources = self._sources(blobs)

        def send(blob):
            self._blob(blob, sources.get(blob["digest"]))

        _in_threads(list(blobs.values()), send, self.parallel, self.registry.client.stop)
        target = self.reference.digest or self.reference.tag
        self.registry.put_manifest(
            self.reference.repository, target, content, manifest.media_type, hash_of(image.manifest, content)
        )
        return image.manifest

    def _sources(self, blobs):
        """{digest: another repository of the same registry that had the blob when it was pulled or pushed}."""
        found = {}
        for image in self.store.images():
            registry, _slash, rest = image.name.partition("/")
            repository = rest.partition("@")[0].rpartition(":")[0] if "@" not in rest else rest.partition("@")[0]
            if registry == self.reference.registry and repository != self.reference.repository:
                for digest in [image.config, *(layer["digest"] for layer in image.layers)]:
                    if digest in blobs:
                        found.setdefault(digest, repository)
        return found

    def _say(self, blob, done, state):
        self.report("layer", digest=blob["digest"], done=done, total=blob["size"], state=state)

    def _blob(self, blob, source):
        registry, repository, digest = self.registry, self.reference.repository, blob["digest"]
        self._say(blob, 0, "waiting")
        if registry.has_blob(repository, digest):
            self._say(blob, blob["size"], "exists")
            return
        try:
            location = registry.start_upload(repository, digest, source)
        except (Denied, NotFound):
            if not source:
                raise
            location = registry.start_upload(repository, digest)
        if location is None:
            self._say(blob, blob["size"], "exists")
            return
        self._send(blob, location)
        self._say(blob, blob["size"], "done")

    def _send(self, blob, location):
        registry, repository, digest, size = self.registry, self.reference.repository, blob["digest"], blob["size"]
        where = f"{self.reference.familiar}: blob {digest}"
        start, failures = 0, 0
        while start < size:
            body = functools.partial(_Sent, self, blob, start)
            try:
                location = registry.send(repository, location, body, start, size - start, where)
                break
            except (Unreachable, NotFound) as exc:
                # A registry gives up an upload whose rest begins elsewhere than it thinks: what was on its way when
                # the connection broke may have arrived after it told how far it was.
                forgotten = isinstance(exc, NotFound)
                if failures + 1 >= ATTEMPTS or (forgotten and not failures):
                    raise
            failures += 1
            time.sleep(registry.client.pause * 2**failures)
            try:
                start, location = (0, None) if forgotten else registry.sent(repository, location, where)
            except NotFound:
                start, location = 0, None
            location = location or registry.start_upload(repository, digest)
        registry.finish_upload(repository, location, digest, where)


class _Sent:
    """A blob to be read by who sends it, telling how far it has come."""

    def __init__(self, push, blob, start):
        self.push = push
        self.blob = blob
        self.file = open(push.store.blob(blob["digest"]), "rb")  # noqa: SIM115 - closed by close
        self.file.seek(start)
        self.said = 0.0

    def read(self, size=-1):
        now = time.monotonic()
        if now - self.said > TICK:
            self.said = now
            self.push._say(self.blob, self.file.tell(), "uploading")
        return self.file.read(size)

    def close(self):
        self.file.close()

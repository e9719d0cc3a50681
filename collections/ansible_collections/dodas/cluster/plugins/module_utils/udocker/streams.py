# SPDX-License-Identifier: Apache-2.0
"""Streams of bytes: from wherever they come, without the compression that they have (gzip, bzip2, xz, zstd)."""

import os
import zlib

from .errors import Error

CHUNK = 1 << 20


class opened:
    """Context: a descriptor to read `source` from: a path, a descriptor, or an object with read(size)."""

    def __init__(self, source):
        self.source = source
        self.failure = None

    def __enter__(self):
        source = self.source
        if isinstance(source, int):
            self.descriptor = os.dup(source)
        elif isinstance(source, (str, bytes)) or hasattr(source, "__fspath__"):
            try:
                self.descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise Error(f"{os.fsdecode(source)}: {exc.strerror}") from exc
        else:
            import threading

            # The child gets a pipe, which this process fills.
            self.descriptor, target = os.pipe2(os.O_CLOEXEC)
            self.thread = threading.Thread(target=self._pump, args=(source, target), daemon=True)
            self.thread.start()
        return self.descriptor

    def __exit__(self, kind, *_rest):
        os.close(self.descriptor)
        if self.failure and (kind is None or issubclass(kind, Error)):
            raise self.failure

    def _pump(self, source, target):
        try:
            while True:
                piece = memoryview(source.read(1 << 17))
                if not piece:
                    break
                while piece:
                    piece = piece[os.write(target, piece) :]
        except BrokenPipeError:
            pass  # who reads has failed, and says so
        except Exception as exc:  # it is the caller's: a connection that broke
            self.failure = exc
        finally:
            os.close(target)


def decompressed(pieces, counted=None):
    """The plain bytes of a stream that comes in pieces, in chunks of at most a few MiB.

    counted: an object with an attribute `taken`, which grows by what was read. Raises Error, also where it is cut off.
    """
    pieces = _counting(pieces, counted) if counted else iter(pieces)
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= 6:
            break
    pieces = _chain(head, pieces)
    kind = compression(head)
    if kind == "gzip":
        return _inflated("gzip", lambda: zlib.decompressobj(31), zlib.error, pieces)
    if kind == "bzip2":
        return _module_or_program("bz2", "BZ2Decompressor", OSError, ("bzip2", "-dc"), pieces)
    if kind == "xz":
        return _module_or_program("lzma", "LZMADecompressor", None, ("xz", "-dc"), pieces)
    if kind == "zstd":
        return _zstd(pieces)
    return pieces


def compression(head):
    """How a stream that begins with these bytes (6 or more) is compressed: gzip, bzip2, xz, zstd or None."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:3] == b"BZh" and head[4:6] in (b"1A", b"\x17r"):
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    if head[:4] == b"(\xb5/\xfd" or (head[1:4] == b"*M\x18" and head[0] >> 4 == 5):
        return "zstd"
    return None


def digest(source):
    """The digest of what is in a stream, an object with read(size), once it is not compressed any more."""
    import hashlib

    found = hashlib.sha256()
    for chunk in decompressed(iter(lambda: source.read(1 << 17), b"")):
        found.update(chunk)
    return "sha256:" + found.hexdigest()


def _counting(pieces, counted):
    for piece in pieces:
        counted.taken += len(piece)
        yield piece


def _chain(head, pieces):
    if head:
        yield head
    yield from pieces


def _inflated(what, make, failure, pieces):
    worker = make()
    try:
        for piece in pieces:
            while piece:
                if worker is None:
                    piece = piece.lstrip(b"\0")  # padding, as of a tape
                    if not piece:
                        break
                    worker = make()
                out = worker.decompress(piece, CHUNK)
                if out:
                    yield out
                if worker.eof:
                    piece, worker = worker.unused_data, None
                elif what == "gzip":
                    piece = worker.unconsumed_tail
                else:
                    piece = b""
                    while not (worker.needs_input or worker.eof):
                        yield worker.decompress(b"", CHUNK)
                    if worker.eof:
                        piece, worker = worker.unused_data, None
        if worker is not None and what == "gzip":
            out = worker.flush()
            if out:
                yield out
            worker = None if worker.eof else worker
    except failure as exc:
        raise Error(f"the {what} stream is damaged: {exc}") from exc
    if worker is not None:
        raise Error(f"the {what} stream ends too early")


def _module_or_program(name, kind, failure, program, pieces):
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError:
        return _piped(program, pieces)
    return _inflated(program[0], getattr(module, kind), failure or module.LZMAError, pieces)


def _zstd(pieces):
    import importlib

    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return _inflated("zstd", module.ZstdDecompressor, module.ZstdError, pieces)
    return _piped(("zstd", "-dc"), pieces)


def _piped(command, pieces):
    import subprocess
    import threading

    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=True
        )
    except OSError as exc:
        raise Error(
            f"layers compressed with {command[0]} need the program {command[0]}"
            + (" or Python 3.14 or its package backports.zstd" if command[0] == "zstd" else "")
        ) from exc
    failures = []

    def feed():
        try:
            for piece in pieces:
                process.stdin.write(piece)
            process.stdin.close()
        except BrokenPipeError:
            pass
        except Exception as exc:
            failures.append(exc)
            process.kill()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        while True:
            out = process.stdout.read(CHUNK)
            if not out:
                break
            yield out
        said = process.stderr.read(1000).decode("utf-8", "replace").strip()
        if failures:
            raise failures[0]
        if process.wait():
            raise Error(f"the {command[0]} stream is damaged: {said}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

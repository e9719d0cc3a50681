# SPDX-License-Identifier: Apache-2.0
"""New layers: a tar that is made here becomes a compressed blob and an unpacked layer, in one pass."""

import os

from .errors import Error


def from_tar(store, write):
    """Keep the layer whose tar write(stream) makes; returns it as Image.layers has it.

    write runs in a user namespace, where there is one, and sees the owners that containers have. Raises Error.
    """
    from . import unpack

    with store.temporary() as folder:
        path = os.path.join(folder, "blob")
        with _Made(write, path) as made:
            diff_id = unpack.layer(store, made.source)
        store.keep_blob(path, made.digest)
        return {"digest": made.digest, "diff_id": diff_id, "size": os.path.getsize(store.blob(made.digest))}


class _Made:
    """The tar as descriptor `source`; at its end it is also, compressed, in file `path`, and `digest` is of that."""

    def __init__(self, write, path):
        self.write = write
        self.path = path
        self.digest = None

    def __enter__(self):
        from . import userns

        self.source, target = os.pipe()
        self.report, report = os.pipe()

        def make():
            try:
                os.close(self.source)
                stream = _Both(target, self.path)
                self.write(stream)
                message = "." + stream.close()
            except BaseException as exc:
                message = "!" + (str(exc) if isinstance(exc, Error) else f"{type(exc).__name__}: {exc}")
            os.write(report, message.encode("utf-8", "replace")[:4000])

        try:
            self.pid = userns.spawn(0, make)[0]
        except userns.Denied:
            self.pid = os.fork()
            if not self.pid:
                try:
                    make()
                finally:
                    os._exit(0)
        os.close(target)
        os.close(report)
        return self

    def __exit__(self, kind, _exception, _traceback):
        os.close(self.source)
        with open(self.report, "rb") as report:
            message = report.read().decode("utf-8", "replace")
        os.waitpid(self.pid, 0)
        if message.startswith("."):
            self.digest = message[1:]
        elif kind is None or issubclass(kind, Error):
            raise Error(message[1:] or "what wrote the layer was killed")


class _Both:
    """Writes to a descriptor, and compressed to a file."""

    def __init__(self, target, path):
        import hashlib
        import zlib

        self.target = target
        self.blob = open(path, "wb")  # noqa: SIM115 - closed by close
        # No time in its header: the same files make the same bytes.
        self.compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
        self.hash = hashlib.sha256()

    def write(self, content):
        piece = memoryview(content)
        while piece:
            piece = piece[os.write(self.target, piece) :]
        self._keep(self.compressor.compress(content))
        return len(content)

    def _keep(self, content):
        self.hash.update(content)
        self.blob.write(content)

    def close(self):
        """Returns the digest of what is in the file."""
        self._keep(self.compressor.flush())
        self.blob.close()
        return "sha256:" + self.hash.hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""A stand-in for registries that misbehave, as real ones do now and then and never when asked to.

with Faulty(layout) as registry:                        # serves the blobs and images of an OCI layout
    registry.fault("/blobs/sha256:ab", cut(1000))       # the next request of that path, once
    registry.fault("/manifests/", status(503), times=2)
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import struct
import threading
from pathlib import Path

from udocker_registry import DEADLINE, Server, digest


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; `self.server.faulty` knows what to say."""

    protocol_version = "HTTP/1.1"
    timeout = DEADLINE

    def handle_one_request(self):
        self.body = None
        super().handle_one_request()

    def respond(self):
        faulty = self.server.faulty
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        with faulty.lock:
            faulty.requests.append((self.command, self.path, dict(self.headers.items()), self.client_address))
            action = faulty.next_fault(self.command, self.path)
        (action or faulty.serve)(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = respond

    def reply(self, code, content=b"", headers=(), length=None):
        """Answer; length: that is announced, if not that of the content."""
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_arguments):
        pass


class Faulty:
    """requests: [(method, path, headers, client address)] as they came. tls: a server's ssl.SSLContext."""

    def __init__(self, layout=None, tls=None):
        self.blobs, self.manifests, self.requests, self.faults = {}, {}, [], []
        self.lock = threading.Lock()
        self.ranges = True
        self.server = Server(Handler, tls)
        self.server.faulty = self
        self.host, self.url = self.server.host, self.server.url
        if layout is not None:
            self.add(layout)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.server.__exit__()

    def add(self, layout, tag="1"):
        """Serve what is in an OCI layout; the image is called `tag`, whatever its repository."""
        for path in (Path(layout) / "blobs" / "sha256").iterdir():
            self.blobs[f"sha256:{path.name}"] = path.read_bytes()
        entry = json.loads((Path(layout) / "index.json").read_text())["manifests"][0]
        return self.manifest(self.blobs[entry["digest"]], entry["mediaType"], tag)

    def manifest(self, content, media_type, tag="1"):
        """Serve a manifest (bytes, or a mapping) by tag and digest; returns its descriptor."""
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        for name in (tag, digest(content)):
            self.manifests[name] = (content, media_type)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def document(self, tag="1"):
        return json.loads(self.manifests[tag][0])

    def fault(self, pattern, action, times=1, method="GET"):
        """Do `action` (a function of the Handler) at the next `times` requests whose path matches a pattern.

        Of several that match, the one that was added last is done.
        """
        self.faults.insert(0, [re.compile(pattern), method, action, times])

    def next_fault(self, method, path):
        for entry in self.faults:
            pattern, wanted, action, times = entry
            if times > 0 and method == wanted and pattern.search(path):
                entry[3] -= 1
                return action
        return None

    def asked(self, pattern, method="GET"):
        """The headers of the requests whose path matches."""
        return [headers for how, path, headers, _peer in self.requests if how == method and re.search(pattern, path)]

    def serve(self, handler):
        path = handler.path.partition("?")[0]
        kind, _slash, name = path.rpartition("/")
        if path == "/v2/":
            handler.reply(200, b"{}")
        elif kind.endswith("/manifests") and name in self.manifests:
            content, media_type = self.manifests[name]
            handler.reply(200, content, {"Content-Type": media_type, "Docker-Content-Digest": digest(content)})
        elif kind.endswith("/blobs") and name in self.blobs:
            content = self.blobs[name]
            wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
            if wanted and self.ranges:
                start = int(wanted[1])
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                handler.reply(206, content[start:], {"Content-Range": span})
            else:
                handler.reply(200, content)
        else:
            handler.reply(404, json.dumps({"errors": [{"code": "UNKNOWN", "message": "no such thing"}]}).encode())


# Faults


def status(code, headers=(), content=b""):
    return lambda handler: handler.reply(code, content, headers)


def redirect(url, code=307):
    return status(code, {"Location": url})


def reset(handler):
    """End the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def cut(count):
    """Announce the whole blob from where it was asked for, and send `count` bytes of it."""

    def act(handler):
        content = handler.server.faulty.blobs[handler.path.rpartition("/")[2]]
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        handler.reply(206 if wanted else 200, content[start : start + count], headers, len(content) - start)
        handler.wfile.flush()
        handler.close_connection = True

    return act


def held(count, go_on):
    """Send `count` bytes of a blob, and the rest when the threading.Event `go_on` is set."""

    def act(handler):
        content = handler.server.faulty.blobs[handler.path.rpartition("/")[2]]
        handler.reply(200, content[:count], length=len(content))
        handler.wfile.flush()
        go_on.wait(DEADLINE)
        handler.wfile.write(content[count:])

    return act


def instead(content, headers=()):
    """Send something else."""
    return status(200, headers, content)


class Relay:
    """Passes bytes on to a real server on loopback, and breaks `breaks` connections after `count` bytes to it.

    For what a real server has no switch for: a connection that breaks in the middle of an upload.
    """

    def __init__(self, port, count=1 << 62, breaks=0):
        self.port, self.count, self.breaks = port, count, breaks
        self.broken = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _address = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()

    def pump(self, source, target, counted=False):
        passed = 0
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece)
                passed += len(piece)
                if counted and passed > self.count and self.broken < self.breaks:
                    self.broken += 1
                    break
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

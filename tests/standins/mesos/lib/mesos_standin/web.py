# SPDX-License-Identifier: Apache-2.0
"""HTTP of masters and agents: a server that keeps connections, who may ask, and calls to other servers."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import http.client
import http.server
import json
import socket
import threading
import traceback
import urllib.parse


class Reply(Exception):
    """An answer: status, what is sent as JSON (a text as it is), and headers."""

    def __init__(self, status=200, body="", headers=None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class Request:
    """What was asked; `connection` is one object for each connection, None once it is closed."""

    def __init__(self, method, target, headers, content, connection):
        parts = urllib.parse.urlsplit(target)
        self.method, self.target, self.headers, self.content = method, target, headers, content
        self.path = urllib.parse.unquote(parts.path).rstrip("/") or "/"
        self.query = dict(urllib.parse.parse_qsl(parts.query))
        self.connection = connection
        self.principal = None

    def json(self):
        """The body's JSON; answers 400 when it is none."""
        try:
            return json.loads(self.content)
        except ValueError as exc:
            raise Reply(400, f"Failed to parse body into JSON: {exc}") from None

    def credentials(self):
        """(principal, secret) of HTTP basic authentication, or None."""
        kind, _, word = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            name, colon, secret = base64.b64decode(word, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (name, secret) if colon else None


class Connection:
    """A client's connection; `closed` are functions to call when it ends."""

    def __init__(self, address):
        self.address = address
        self.closed = []


class Server(http.server.ThreadingHTTPServer):
    """Gives each request to `answer(request)`, which returns a Reply or raises one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, answer):
        self.answer = answer
        super().__init__(address, _Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def start(self):
        self.thread.start()

    def server_bind(self):
        # Without looking up names, as http.server would.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        """A client that went away is no matter."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "mesos-stand-in"
    sys_version = ""
    wbufsize = -1  # an answer in one piece

    def setup(self):
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kept = Connection(self.client_address)

    def finish(self):
        try:
            super().finish()
        finally:
            for function in self.kept.closed:
                function()

    def _serve(self):
        length = self.headers.get("Content-Length", "0")
        content = self.rfile.read(int(length)) if length.isdigit() else b""
        asked = Request(self.command, self.path, self.headers, content, self.kept)
        try:
            reply = self.server.answer(asked)
        except Reply as raised:
            reply = raised
        except Exception as exc:
            traceback.print_exception(type(exc), exc, exc.__traceback__)
            reply = Reply(500, f"{type(exc).__name__}: {exc}")
        body = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        content = body.encode()
        self.send_response(reply.status)
        if content and "Content-Type" not in reply.headers:
            kind = "text/plain; charset=utf-8" if isinstance(reply.body, str) else "application/json"
            self.send_header("Content-Type", kind)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def log_message(self, *_arguments):
        """No line for each request."""


class Guard:
    """Who may ask: HTTP basic authentication in two realms, and what access control lists say."""

    def __init__(self, name, flags, known, acls=None):
        self.name, self.known, self.acls = name, known, acls or {}
        self.closed = {
            "readonly": flags.authenticate_http_readonly,
            "readwrite": flags.authenticate_http_readwrite,
        }

    def authenticate(self, request, realm):
        """Answers 401 where the realm asks for credentials and these are not right."""
        if not self.closed[realm]:
            return
        given = request.credentials()
        if not given or not self.right(given):
            raise Reply(401, "", {"WWW-Authenticate": f'Basic realm="{self.name}-{realm}"'})
        request.principal = given[0]

    def right(self, given):
        secret = self.known.get(given[0])
        return secret is not None and hmac.compare_digest(secret.encode(), given[1].encode())

    def authorize(self, request, action, about=None):
        """Answers 403 unless the list for `action` lets the principal; about: what it is done to, None: anything."""
        for entry in self.acls.get(action, ()):
            principals = entry.get("principals", {})
            objects = [value for key, value in entry.items() if key != "principals"]
            if not _matches(principals, request.principal):
                continue
            if about is not None and not all(_matches(one, about) for one in objects):
                continue
            if any(one.get("type") == "NONE" for one in (principals, *objects)):
                raise Reply(403)
            return
        if not self.acls.get("permissive", True):
            raise Reply(403)


def _matches(entity, value):
    """Whether an entity of an access control list is about a value."""
    return entity.get("type") in ("ANY", "NONE") or value in entity.get("values", ())


def token_of(request):
    """The bearer token of a request, or an empty text."""
    kind, _, word = request.headers.get("Authorization", "").partition(" ")
    return word if kind.lower() == "bearer" else ""


class Client:
    """A connection to a server that is kept; raises OSError when it does not work."""

    def __init__(self, url, timeout=5.0, credential=None, token=""):
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        if credential:
            word = base64.b64encode(":".join(credential).encode()).decode()
            self.headers["Authorization"] = f"Basic {word}"

    def call(self, method, path, body=None):
        """(status, JSON or text, headers)."""
        content = json.dumps(body) if body is not None else None
        try:
            self.connection.request(method, path, content, self.headers)
            answer = self.connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise OSError(f"{self.connection.host}:{self.connection.port}: {exc}") from exc
        try:
            return answer.status, json.loads(text), answer.headers
        except ValueError:
            return answer.status, text, answer.headers

    def close(self):
        """End the connection at once, also under a call of another thread."""
        opened = self.connection.sock
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def call(url, method, path, body=None, timeout=5.0, credential=None, token=""):
    """Ask once; see Client.call."""
    client = Client(url, timeout, credential, token)
    try:
        return client.call(method, path, body)
    finally:
        client.close()

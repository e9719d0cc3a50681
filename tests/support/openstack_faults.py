# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a real OpenStack that answers wrongly, late or not at all, when it is told to.

with FaultyCloud("http://127.0.0.1:5000/v3") as cloud:          # the identity service's URL
    cloud.clouds_file(original, target)                         # clouds.yaml whose clouds are all reached through it
    cloud.fault("POST compute /servers$", status(503, retry_after=1), times=3)
    cloud.fault("*", kill(process), skip=17)                    # at call 18, whatever it is
    cloud.count("GET compute")

The catalogue that comes with a token names the proxy instead of the services, so that all of them are reached through
it. Nothing else of what they say is changed.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import signal
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from udocker_registry import DEADLINE, Server

# Headers that are about one connection, and those that this proxy writes itself.
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "accept-encoding"}
SERVER = {"date", "server"}


@dataclass(frozen=True)
class Call:
    """One request. done: what became of it: a status, `reset`, `lost`, `killed`, the name of an error."""

    method: str
    service: str
    path: str
    done: object = None

    @property
    def text(self):
        return f"{self.method} {self.service} {self.path}"


@dataclass
class Fault:
    """skip: how many matching calls pass first; times: how many are then hit."""

    pattern: str
    action: object
    times: float
    skip: int
    hits: int = 0

    def takes(self, call):
        """Whether it is this call's turn; counts it."""
        if not matches(self.pattern, call) or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        self.hits += 1
        return True


def matches(pattern, call):
    """Whether a call is one of `METHOD service regex-of-the-path`; `*` is any, and what is left out is any."""
    method, service, path = [*pattern.split(maxsplit=2), "*", "*"][:3]
    return (
        method in ("*", call.method)
        and service in ("*", call.service)
        and (path == "*" or re.search(path, call.path) is not None)
    )


class Exchange(http.server.BaseHTTPRequestHandler):
    """A connection of a client. Faults are functions of it."""

    protocol_version = "HTTP/1.1"
    timeout = DEADLINE
    disable_nagle_algorithm = True
    number = None

    def respond(self):
        cloud = self.server.cloud
        self.service, slash, path = self.path.removeprefix("/").partition("/")
        self.target = slash + path or "/"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding"):
            return self.reset()  # nothing that a test asks for is sent in chunks
        call = Call(self.command, self.service, self.target)
        self.number, action = cloud.arrived(call, self.headers.get("X-Auth-Token"))
        try:
            (action or pass_on)(self)
        except OSError as exc:  # a client that went away, or a service
            self.reset(type(exc).__name__)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def forward(self):
        """Have the service do it; returns (status, headers, content) as the client shall see them."""
        return self.server.cloud.ask(self.service, self.command, self.target, self.headers.items(), self.body)

    def note(self, done):
        """Say what becomes of the call, before the client can know it."""
        self.server.cloud.finished(self.number, done)

    def reply(self, code, content=b"", headers=(), message=None, length=None):
        """Answer the client. message: an error as the services write it. length: that is announced, if another."""
        self.note(code)
        if message is not None:
            content = json.dumps({"error": {"code": code, "message": message}}).encode()
            headers = [("Content-Type", "application/json"), *headers]
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD" and code not in (204, 304):
            self.wfile.write(content)

    def reset(self, why="reset"):
        """End the connection without an answer."""
        self.note(why)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def log_message(self, *_arguments):
        pass


class FaultyCloud:
    """auth_url: of the real identity service; cafile: the authority of its certificate, with https.

    calls: [Call] in the order in which they came.
    """

    def __init__(self, auth_url, cafile=None):
        parts = urlsplit(auth_url)
        self.origins = {"identity": f"{parts.scheme}://{parts.netloc}"}
        self.tls = ssl.create_default_context(cafile=cafile) if parts.scheme == "https" else None
        self.calls, self.faults, self.tokens, self.expired = [], [], set(), set()
        self.lock = threading.RLock()
        self.server = Server(Exchange)
        self.server.cloud = self
        self.auth_url = f"{self.server.url}/identity{parts.path}"

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.server.__exit__()

    def clouds_file(self, original, target):
        """Write clouds.yaml (0600) whose clouds are those of the original, through the proxy; returns its path."""
        clouds = yaml.safe_load(Path(original).read_text(encoding="utf-8"))
        for cloud in clouds["clouds"].values():
            cloud["auth"]["auth_url"] = self.auth_url
        target = Path(target)
        target.touch(mode=0o600)
        target.write_text(yaml.safe_dump(clouds), encoding="utf-8")
        return target

    # What shall go wrong

    def fault(self, pattern, action, times=1, skip=0):
        """Do `action` at calls that match `METHOD service regex` (see `matches`), after `skip` of them; returns Fault.

        Of several that match, the one that was added last is done.
        """
        fault = Fault(pattern, action, times, skip)
        with self.lock:
            self.faults.insert(0, fault)
        return fault

    def expire(self):
        """Let every token that was used until now be refused, as if its time were over."""
        with self.lock:
            self.expired |= self.tokens

    def clear(self):
        """No faults any more, and no calls so far."""
        with self.lock:
            self.faults.clear()
            self.calls.clear()
            self.expired.clear()

    # What happened

    def count(self, pattern="*"):
        """How many calls match."""
        return sum(matches(pattern, call) for call in list(self.calls))

    def summary(self):
        """Counter of `METHOD service`."""
        return Counter(f"{call.method} {call.service}" for call in list(self.calls))

    # The proxy's own

    def arrived(self, call, token):
        """Note a call; returns its number and the fault that it is to meet, or None."""
        with self.lock:
            number = len(self.calls)
            self.calls.append(call)
            if token in self.expired and call.service != "identity":
                return number, status(401, message="The request you have made requires authentication.")
            if token:
                self.tokens.add(token)
            return number, next((fault.action for fault in self.faults if fault.takes(call)), None)

    def finished(self, number, done):
        with self.lock:
            if number is not None and number < len(self.calls):
                self.calls[number] = replace(self.calls[number], done=done)

    def ask(self, service, method, target, headers, body):
        origin = self.origins.get(service)
        if origin is None:
            return 404, [("Content-Type", "text/plain")], f"this proxy knows no service {service!r}".encode()
        parts = urlsplit(origin)
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=DEADLINE * 10, context=self.tls)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=DEADLINE * 10)
        with contextlib.closing(connection):
            sent = {name: value for name, value in headers if name.lower() not in HOP | {"host"}}
            connection.request(method, target, body or None, {**sent, "Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        if service == "identity" and b'"catalog"' in content:
            self.learn(json.loads(content))
        headers = [item for item in answer.getheaders() if item[0].lower() not in HOP | SERVER]
        if answer.headers.get("Content-Type", "").startswith("application/json"):
            content = self.renamed(content.decode()).encode()
        return answer.status, [(name, self.renamed(value)) for name, value in headers], content

    def learn(self, document):
        """Note where the services of a catalogue are."""
        for entry in document.get("token", document).get("catalog", ()):
            for endpoint in entry["endpoints"]:
                parts = urlsplit(endpoint["url"])
                origin = f"{parts.scheme}://{parts.netloc}"
                with self.lock:
                    if origin not in self.origins.values():
                        self.origins[entry["type"]] = origin

    def renamed(self, text):
        """The text with URLs of the services turned into URLs of the proxy."""
        for service, origin in list(self.origins.items()):
            text = re.sub(re.escape(origin) + r"(?!\d)", f"{self.server.url}/{service}", text)
        return text


# Faults: functions of an Exchange.


def pass_on(exchange):
    """Nothing is wrong."""
    code, headers, content = exchange.forward()
    exchange.reply(code, content, headers)


def status(code, retry_after=None, message="a fault that was asked for", html=False):
    """Answer so, without asking the service. html: as a load balancer says it, not as the service does."""
    headers = [] if retry_after is None else [("Retry-After", str(retry_after))]

    def act(exchange):
        if html:
            page = f"<html><body><h1>{code}</h1>{message}</body></html>".encode()
            exchange.reply(code, page, [("Content-Type", "text/html"), *headers])
        else:
            exchange.reply(code, headers=headers, message=message)

    return act


def slow(seconds, then=pass_on):
    """Answer later."""

    def act(exchange):
        time.sleep(seconds)
        then(exchange)

    return act


def reset(exchange):
    """End the connection; the service never hears of the call."""
    exchange.reset()


def lost(exchange):
    """The service does it, and the answer is lost."""
    exchange.forward()
    exchange.reset("lost")


def cut(exchange):
    """The service does it, and half of the answer arrives."""
    code, headers, content = exchange.forward()
    exchange.reply(code, content[: len(content) // 2], headers, length=len(content))
    exchange.close_connection = True


def hook(function, then=pass_on):
    """Call `function()` before it."""

    def act(exchange):
        function()
        then(exchange)

    return act


def kill(process, done=False):
    """Kill -9 the client (a Popen, or a function that returns one). done: the service does what was asked, before."""

    def act(exchange):
        if done:
            exchange.forward()
        victim = process() if callable(process) else process
        victim.send_signal(signal.SIGKILL)
        victim.wait(DEADLINE)  # before the connection ends: the client must not see that
        exchange.reset("killed")

    return act

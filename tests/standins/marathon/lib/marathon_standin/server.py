# SPDX-License-Identifier: Apache-2.0
"""HTTP and HTTPS: who may ask, what the leader answers, and what others pass on to it."""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import json
import logging
import queue
import socket
import socketserver
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kazoo.exceptions import KazooException

from .api import Answer, Request
from .errors import ApiError

LOG = logging.getLogger("marathon")
VIA = "X-Marathon-Via"
HEARTBEAT = 5  # seconds between two empty lines of a quiet event stream
IDLE = 30  # seconds that a connection may be silent
# As long as nobody leads, a request is held back this long.
ELECTION = 2.5  # seconds
NOT_PASSED_ON = {"connection", "host", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


class Server(ThreadingHTTPServer):
    """One of an instance's ports; `tls` is its context or None."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, member, tls):
        self.member = member
        self.tls = tls
        super().__init__(address, Handler)

    def server_bind(self):
        """Without the base class's question to the resolver."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def finish_request(self, request, client_address):
        """Answer a connection; its handshake, if any, is done by its own thread."""
        if self.tls:
            request.settimeout(IDLE)
            request = self.tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(request, client_address)
        finally:
            if self.tls:
                with contextlib.suppress(OSError):
                    request.unwrap().close()

    def handle_error(self, request, client_address):
        """Connections break; nobody has to know."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE

    def setup(self):
        """Small answers go out at once."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def serve(self):
        """Answer a request."""
        member = self.server.member
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length) if length.isdigit() else 0)
        if not self.allowed(member.options.http_credentials):
            realm = member.options.http_realm
            self.reply(Answer(401, {"message": "Unauthorized"}, {"WWW-Authenticate": f'Basic realm="{realm}"'}))
            return
        deadline = time.monotonic() + ELECTION
        while True:
            api, leader = member.api, member.leader
            if api or (leader and leader != member.options.address):
                break
            if time.monotonic() > deadline:
                self.reply(Answer(503, {"message": "Could not determine the current leader"}))
                return
            time.sleep(0.1)
        if not api:
            self.pass_on(leader, body)
        elif urllib.parse.urlsplit(self.path).path.rstrip("/") == "/v2/events":
            self.stream(api)
        else:
            self.reply(self.answer(api, body))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def allowed(self, credentials):
        """Whether the request gives the credentials that are wanted."""
        if not credentials:
            return True
        kind, _, word = self.headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(word, validate=True)
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, credentials.encode())

    def answer(self, api, body):
        """The leader's own answer."""
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
        try:
            found = api.answer(Request(self.command, parts.path, query, body, self.client_address[0]))
        except ApiError as exc:
            found = Answer(exc.status, exc.body)
        except KazooException as exc:
            LOG.exception("ZooKeeper failed")
            found = Answer(503, {"message": f"the state cannot be stored: {type(exc).__name__}"})
        except Exception as exc:  # whatever it is, the client has to be told
            LOG.exception("%s %s", self.command, self.path)
            found = Answer(500, {"message": f"{type(exc).__name__}: {exc}"})
        options = self.server.member.options
        found.headers = {"X-Marathon-Leader": f"{options.scheme}://{options.address}", **found.headers}
        return found

    def reply(self, found):
        """Send an Answer."""
        text = "" if found.body is None else found.body if isinstance(found.body, str) else json.dumps(found.body)
        kind = "text/plain;charset=utf-8" if isinstance(found.body, str) else "application/json"
        data = text.encode()
        self.send_response(found.status)
        for name, value in {"Cache-Control": "no-cache, no-store, must-revalidate", **found.headers}.items():
            self.send_header(name, value)
        if data:
            self.send_header("Content-Type", kind)
        if found.status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, api):
        """Server-sent events until the client goes, or this instance no longer leads."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        wanted, light = set(query.get("event_type", ())), query.get("plan-format") == ["light"]
        events = api.scheduler.events
        self.close_connection = True
        self.send_response(200)
        for name, value in (("Content-Type", "text/event-stream;charset=utf-8"), ("Cache-Control", "no-cache"),
                            ("Transfer-Encoding", "chunked")):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        follower = events.follow(self)
        try:
            events.publish("event_stream_attached", remoteAddress=self.client_address[0])
            while self.server.member.api is api:
                try:
                    event = follower.get(timeout=HEARTBEAT)
                except queue.Empty:
                    self.chunk(b"\r\n")
                    continue
                if event is None:
                    return
                if wanted and event["eventType"] not in wanted:
                    continue
                if light and "plan" in event:
                    plan = {key: value for key, value in event["plan"].items() if key not in ("original", "target")}
                    event = {**event, "plan": plan}
                self.chunk(f"event: {event['eventType']}\r\ndata: {json.dumps(event)}\r\n\r\n".encode())
        except OSError:
            return
        finally:
            events.leave(self)
            events.publish("event_stream_detached", remoteAddress=self.client_address[0])

    def chunk(self, data):
        """Send a part of an answer whose length nobody knows yet."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def pass_on(self, leader, body):
        """Ask the leader and give its answer; who follows events is sent there."""
        member = self.server.member
        options = member.options
        if urllib.parse.urlsplit(self.path).path.rstrip("/") == "/v2/events":
            self.reply(Answer(302, None, {"Location": f"{options.scheme}://{leader}{self.path}"}))
            return
        if options.address in self.headers.get_all(VIA, ()):
            self.reply(Answer(502, {"message": "Detected proxying loop."}))
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON}
        headers.update({VIA: options.address, "X-Forwarded-For": self.client_address[0]})
        kind = http.client.HTTPSConnection if options.scheme == "https" else http.client.HTTPConnection
        extra = {"context": member.client_tls} if options.scheme == "https" else {}
        connection = kind(leader, timeout=options.leader_proxy_connection_timeout / 1000, **extra)
        try:
            connection.connect()
            connection.sock.settimeout(options.leader_proxy_read_timeout / 1000)
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        except ConnectionRefusedError:
            self.reply(Answer(502, {"message": "Connection to leader refused."}))
            return
        except TimeoutError:
            self.reply(Answer(504, {"message": "Connection to leader timed out."}))
            return
        except (OSError, http.client.HTTPException) as exc:
            LOG.warning("the leader %s: %s", leader, exc)
            self.reply(Answer(502, {"message": "Failed to successfully establish a connection to the leader."}))
            return
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in NOT_PASSED_ON:
                self.send_header(name, value)
        self.send_header(VIA, options.address)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        """Requests are logged without what is in them."""
        LOG.debug(format, *args)

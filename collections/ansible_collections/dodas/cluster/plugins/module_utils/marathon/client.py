# SPDX-License-Identifier: Apache-2.0
"""A client of Marathon's REST API that outlives a change of the leader.

Any of several endpoints serves; followers pass requests on to the leader or redirect to it. While there is no leader,
or an endpoint does not answer, the request is tried again until the client's deadline.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import stat
import time
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import (
    Denied,
    MarathonError,
    NotFound,
    Unclear,
    Unreachable,
    refused,
)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
REQUEST_SECONDS = 20  # for one answer of one endpoint
PAUSE = 0.5  # seconds between two rounds over the endpoints
LIMIT = 64 * 2**20  # bytes of an answer
REDIRECTS = (301, 302, 307, 308)
NO_LEADER = (502, 503, 504)


class Deadline:
    """A point in time, `seconds` from now."""

    def __init__(self, seconds):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self):
        """Seconds until it passes; 0 afterwards."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, seconds):
        """Sleep so long, or until it passes. Returns whether there is time left."""
        time.sleep(min(seconds, self.left()))
        return self.left() > 0


class _Passing(Exception):
    """What another endpoint, or the same one later, may answer. unclear: the request may have been done."""

    def __init__(self, problem, unclear=False):
        super().__init__(problem)
        self.unclear = unclear


class Marathon:
    """Marathon at `urls`; `credentials`: "user:password" or None; `cafile`: PEM file of the authorities to trust, the
    system's when empty; `timeout`: seconds until `deadline`, which all requests share; `resolve`: addresses of names
    that are not looked up. Raises MarathonError."""

    def __init__(self, urls, cafile=None, credentials=None, timeout=60, resolve=None):
        self.urls = [_checked(url, credentials) for url in urls]
        if not self.urls:
            raise MarathonError("no URL of Marathon is given")
        self.deadline = Deadline(timeout)
        self._resolve = resolve or {}
        self._headers = {"Accept": "application/json"}
        if credentials:
            encoded = base64.b64encode(credentials.encode()).decode()
            self._headers["Authorization"] = f"Basic {encoded}"
        self._tls = _context(cafile) if any(url.startswith("https:") for url in self.urls) else None

    @contextlib.contextmanager
    def within(self, seconds):
        """Requests inside have another deadline."""
        before, self.deadline = self.deadline, Deadline(seconds)
        try:
            yield
        finally:
            self.deadline = before

    # What there is

    def info(self):
        """Name, version, leader, and how Marathon is configured."""
        return self.request("GET", "/v2/info")

    def leader(self):
        """HOST:PORT of the leader; empty while there is none."""
        try:
            return self.request("GET", "/v2/leader").get("leader") or ""
        except NotFound:
            return ""

    def apps(self, embed=(), **filters):
        """Apps as dicts. embed: of tasks, counts, deployments, lastTaskFailure, ...; filters: id, label, cmd."""
        query = [(name, value) for name, value in filters.items() if value]
        return self.request("GET", "/v2/apps", [*query, *(("embed", f"apps.{one}") for one in embed)])["apps"]

    def app(self, app_id, embed=()):
        """One app, None where there is none."""
        with contextlib.suppress(NotFound):
            query = [("embed", f"app.{one}") for one in embed]
            return self.request("GET", f"/v2/apps{_quoted(app_id)}", query)["app"]

    def group(self, group_id):
        """A group with all below it, None where there is none."""
        with contextlib.suppress(NotFound):
            query = [("embed", "group.groups"), ("embed", "group.apps")]
            return self.request("GET", f"/v2/groups{_quoted(group_id)}", query)

    def deployments(self):
        """The deployments that go on."""
        return self.request("GET", "/v2/deployments")

    def queue(self):
        """What waits to be launched, with offers that did not fit."""
        return self.request("GET", "/v2/queue", [("embed", "lastUnusedOffers")])["queue"]

    # Changes; each returns the id of its deployment. What is lost on the way is sent again: it changes nothing twice.

    def put_apps(self, definitions, force=False):
        """Make all these apps what their definitions say, in one deployment."""
        query = [*_force(force), ("partialUpdate", "false")]
        return self.request("PUT", "/v2/apps", query, definitions)["deploymentId"]

    def put_group(self, group_id, definition, force=False):
        """Make a group what its definition says; apps that it has and its lists do not name are removed."""
        return self.request("PUT", f"/v2/groups{_quoted(group_id)}", _force(force), definition)["deploymentId"]

    def delete_app(self, app_id, force=False):
        """Remove an app; None where there was none."""
        query = [("force", "true" if force else "false")]  # here true is Marathon's default
        with contextlib.suppress(NotFound):
            return self.request("DELETE", f"/v2/apps{_quoted(app_id)}", query)["deploymentId"]

    def delete_group(self, group_id, force=False):
        """Remove a group and all below it; None where there was none."""
        with contextlib.suppress(NotFound):
            return self.request("DELETE", f"/v2/groups{_quoted(group_id)}", _force(force))["deploymentId"]

    def restart_app(self, app_id, force=False):
        """Replace all instances of an app."""
        version = (self.app(app_id) or {}).get("version")
        while True:
            try:
                path = f"/v2/apps{_quoted(app_id)}/restart"
                return self.request("POST", path, _force(force), again=False)["deploymentId"]
            except Unclear:
                found = self.app(app_id) or {}
                if found.get("version") != version:  # a restart gives the app a new version
                    return next((one["id"] for one in found.get("deployments", [])), None)

    def roll_back(self, deployment_id):
        """Undo a deployment by another, whose id is returned; None where it is over."""
        with contextlib.suppress(NotFound):
            return self.request("DELETE", f"/v2/deployments/{deployment_id}")["deploymentId"]

    def cancel(self, deployment_id):
        """End a deployment where it is; nothing where it is over."""
        with contextlib.suppress(NotFound):
            self.request("DELETE", f"/v2/deployments/{deployment_id}", _force(True))

    # How

    def request(self, method, path, query=(), body=None, again=True):
        """The JSON of the answer. again: whether it may be sent a second time. Raises MarathonError."""
        problems = {}
        while True:
            for url in list(self.urls):
                try:
                    answer = self._ask(method, url, path, query, body)
                except _Passing as exc:
                    if exc.unclear and not again:
                        raise Unclear(f"{method} {url}{path}: {exc}") from exc
                    problems[url] = str(exc)
                    if not self.deadline.left():
                        break
                else:
                    self.urls.remove(url)  # the one that answers is asked first from now on
                    self.urls.insert(0, url)
                    return answer
            if not self.deadline.pause(PAUSE):
                each = "; ".join(f"{url}: {problem}" for url, problem in problems.items())
                raise Unreachable(f"no Marathon answered within {self.deadline.seconds:g} s: {each}")

    def _ask(self, method, base, path, query, body):
        """One answer of one endpoint, also by way of a redirect to the leader."""
        url = base + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        for _hop in range(3):
            status, location, raw = self._exchange(method, url, data)
            if status not in REDIRECTS or not location:
                break
            onward = urllib.parse.urljoin(url, location)
            if url.startswith("https:") and not onward.startswith("https:"):
                raise Denied(f"{url}: redirects to {onward}, which is not https")
            url = onward
        else:
            raise _Passing("one redirect after another")
        shown = url.partition("?")[0]
        if status in NO_LEADER:
            raise _Passing(f"HTTP status {status}: is there a leader?", unclear=True)
        try:
            answer = json.loads(raw) if raw else {}
        except (ValueError, RecursionError):
            if status < 300:
                raise MarathonError(f"{method} {shown}: the answer is not JSON: is this Marathon?") from None
            answer = None
        if status >= 300:
            raise refused(method, shown, status, answer, body)
        return answer

    def _exchange(self, method, url, data):
        """(status, Location, body) of one request."""
        parts = urllib.parse.urlsplit(url)
        seconds = max(0.1, min(REQUEST_SECONDS, self.deadline.left()))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=seconds)
        headers = {**self._headers, **({"Content-Type": "application/json"} if data is not None else {})}
        sent = False
        try:
            address = self._resolve.get(parts.hostname) or parts.hostname
            connection.sock = socket.create_connection((address, port), seconds)
            if parts.scheme == "https":
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=parts.hostname)
            sent = True
            connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), data, headers)
            response = connection.getresponse()
            return response.status, response.getheader("Location"), _body(response, url, seconds)
        except ssl.SSLCertVerificationError as exc:
            raise Denied(f"{url.partition('?')[0]}: its certificate is not trusted: {exc.verify_message}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise _Passing(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__, unclear=sent) from exc
        finally:
            connection.close()


def read_credentials(path):
    """The line "user:password" of a file that only its owner, and perhaps a group, may read. Raises MarathonError."""
    try:
        with open(path, encoding="utf-8") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise MarathonError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or 'it is not text'}") from exc
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise MarathonError(f"{path}: everybody can read or write it: make its mode 0600")
    user, colon, password = text.partition(":")
    if not (user and colon and password) or "\n" in text:
        raise MarathonError(f"{path}: must be one line, user:password")
    return text


def _checked(url, credentials):
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise MarathonError(f"{url.rpartition('@')[2]}: must be an http or https URL without a user name")
    if credentials and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise MarathonError(f"{url}: a password is sent by https only")
    return url.rstrip("/")


def _context(cafile):
    try:
        return ssl.create_default_context(cafile=cafile or None)
    except (OSError, ssl.SSLError) as exc:
        raise MarathonError(f"{cafile}: cannot be read as a file of authorities: {exc.strerror or exc}") from exc


def _body(response, url, seconds):
    end, body = time.monotonic() + seconds, bytearray()
    while True:
        chunk = response.read1(65536)
        if not chunk:
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return bytes(body)
        body += chunk
        if len(body) > LIMIT:
            raise MarathonError(f"{url}: the answer is larger than {LIMIT} bytes")
        if time.monotonic() > end:
            raise TimeoutError("the answer took too long")


def _quoted(app_id):
    return urllib.parse.quote("/" + app_id.strip("/"))


def _force(force):
    return [("force", "true")] if force else []

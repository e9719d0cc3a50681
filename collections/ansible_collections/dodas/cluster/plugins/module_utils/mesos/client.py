# SPDX-License-Identifier: Apache-2.0
"""A client of Mesos' masters that finds the leader, also while it changes. Standard library only, Python 3.9.

A master that does not lead answers 307 to what only the leader knows, and one that leads without a majority of its
registry answers 503 to GET_AGENTS (while /health still says 200). So that call is what tells whether Mesos works.
"""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import time
import urllib.parse

from ansible_collections.dodas.cluster.plugins.module_utils.mesos.errors import Denied, NoLeader, Refused

REQUEST_SECONDS = 3.0  # for one answer of one master
PAUSE = 0.5  # seconds between two rounds over the masters
LIMIT = 64 * 2**20  # bytes of an answer
JSON = "application/json"


class Answer:
    """What a master answered: status, its words, and where it points to ("host:port", empty where it does not)."""

    def __init__(self, status, content, location):
        self.status = status
        self.text = content.decode("utf-8", "replace").strip()
        self.points_to = urllib.parse.urlsplit(location or "").netloc

    @property
    def json(self):
        """The document; None where there is none. Raises Refused for what is no JSON."""
        try:
            return json.loads(self.text) if self.text else None
        except ValueError:
            raise Refused(f"the answer is not JSON: {self.text[:200]}") from None


class Masters:
    """The masters at `addresses` ("host:port" each), asked as `principal` with `secret` (nobody when empty).

    patience: seconds to wait for a leader. resolve: IP addresses of names that are not looked up.
    """

    def __init__(self, addresses, principal="", secret="", patience=15.0, resolve=None):
        if not addresses:
            raise ValueError("no address of a master is given")
        self.addresses = [checked(address) for address in addresses]
        self.patience = patience
        self._resolve = resolve or {}
        self.leader = ""  # the last that answered as such
        self._headers = {"Accept": JSON, "Content-Type": JSON}
        if principal:
            word = base64.b64encode(f"{principal}:{secret}".encode()).decode()
            self._headers["Authorization"] = f"Basic {word}"

    def call(self, kind, **body):
        """What the leader answers to a call of the operator's API (/api/v1), the part that has its name. MesosError."""
        answer = self.request("POST", "/api/v1", {"type": kind, **body})
        return (answer or {}).get(kind.lower(), {})

    def request(self, method, path, body=None):
        """The document that the leader answers, None for an empty one; waits for a leader. MesosError."""
        deadline = time.monotonic() + self.patience
        while True:
            problems = {}
            answer = self._of_leader(method, path, body, problems)
            if answer is not None:
                return self._document(answer, f"{self.leader}: {method} {path}", body)
            if time.monotonic() >= deadline:
                told = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
                raise NoLeader(f"no master of Mesos answers as leader: {told}")
            time.sleep(PAUSE)

    def ask(self, address, method, path, body=None):
        """One master's Answer, which may point elsewhere. Raises OSError when it does not answer."""
        parts = urllib.parse.urlsplit(f"//{address}")
        host = self._resolve.get(parts.hostname) or parts.hostname
        connection = http.client.HTTPConnection(host, parts.port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(LIMIT), answer.getheader("Location"))
        except http.client.HTTPException as exc:
            raise OSError(f"no HTTP: {type(exc).__name__}") from exc
        finally:
            connection.close()

    def ask_all(self, method, path, body=None):
        """{address: Answer, or the OSError of one that does not answer}; all are asked at once."""

        def attempt(address):
            try:
                return address, self.ask(address, method, path, body)
            except OSError as exc:
                return address, exc

        with concurrent.futures.ThreadPoolExecutor(len(self.addresses)) as pool:
            return dict(pool.map(attempt, self.addresses))

    def _of_leader(self, method, path, body, problems):
        """The leader's Answer; None when none leads, and `problems` says of each master why it is not the one."""
        waiting = [*([self.leader] if self.leader else []), *self.addresses]
        while waiting:
            address = waiting.pop(0)
            if address in problems:
                continue
            try:
                answer = self.ask(address, method, path, body)
            except OSError as exc:
                problems[address] = problem(exc)
                continue
            if answer.status == 307:
                problems[address] = f"says that {answer.points_to} leads"
                waiting.insert(0, answer.points_to)
            elif answer.status in (502, 503, 504):
                problems[address] = answer.text or f"HTTP status {answer.status}"
            else:
                self.leader = address
                return answer
        return None

    @staticmethod
    def _document(answer, what, body):
        kind = f" {body['type']}" if isinstance(body, dict) and "type" in body else ""
        if answer.status == 401:
            raise Denied(f"{what}{kind}: Mesos wants a principal and a secret, or these are wrong")
        if answer.status == 403:
            raise Denied(f"{what}{kind}: this principal may not do that: {answer.text or 'no reason is given'}")
        if answer.status >= 400:
            raise Refused(f"{what}{kind}: HTTP status {answer.status}: {answer.text or 'no reason is given'}")
        return answer.json


def checked(address):
    """The address "host:port" itself. Raises ValueError that names it."""
    try:
        parts = urllib.parse.urlsplit(f"//{address}")
        good = parts.netloc == address and parts.hostname and parts.port
    except ValueError:
        good = False
    if not good or "@" in address:
        raise ValueError(f"{address}: the address of a master must be HOST:PORT")
    return address


def problem(error):
    """An OSError in a few words."""
    return error.strerror or str(error) or type(error).__name__

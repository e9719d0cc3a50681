# SPDX-License-Identifier: Apache-2.0
"""A Consul agent's HTTP API, and who may do what there. Runs on managed hosts: standard library only.

A grant is a use of Consul (the app agent, the balancer...): the rules of a policy, and the one token that has it.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass

NAME = r"[a-z][a-z0-9_]{0,60}"
PREFIX = "dodas-"  # of our policies' names
RETRY = 0.5  # seconds


class ConsulError(Exception):
    """Consul refused, or is not there; `status` is what HTTP said, 0 where nobody answered. Holds no token."""

    def __init__(self, message, status=0):
        super().__init__(message)
        self.status = status


class Consul:
    """The agent at `url`, asked with `token` (none when empty); `timeout`: seconds for one answer."""

    def __init__(self, url="http://127.0.0.1:8500", token="", timeout=10.0):
        self.url = url.rstrip("/")
        self.token = token
        self.timeout = timeout

    def call(self, method, path, body=None):
        """What it answered, from JSON. Raises ConsulError."""
        headers = {"X-Consul-Token": self.token} if self.token else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the agent is on this host
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            said = exc.read(500).decode("utf-8", "replace").strip()
            raise ConsulError(f"{self.url}: {self._hidden(said) or exc.reason}", exc.code) from None
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise ConsulError(f"{self.url}: {getattr(exc, 'reason', exc)}") from exc

    def as_holder_of(self, token):
        """The same agent, asked with another token."""
        return Consul(self.url, token, self.timeout)

    def _hidden(self, text):
        return text.replace(self.token, "(token)") if self.token else text


@dataclass
class Grant:
    """What holders of `token` may do: `rules` in Consul's language."""

    name: str
    rules: str
    token: str

    def __post_init__(self):
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"{self.name!r} is no name of a grant: it must match {NAME}")
        if not is_uuid(self.token):
            raise ValueError(f"{self.name}: its token is no UUID, which is what Consul takes")

    @property
    def policy(self):
        return PREFIX + self.name

    @property
    def description(self):
        return f"dodas: {self.name}"


def is_uuid(text):
    """Whether it is a UUID as Consul takes one."""
    try:
        return str(uuid.UUID(text)) == text
    except (ValueError, AttributeError, TypeError):
        return False


class Access:
    """The grants of a cluster; `consul` is asked with the management token."""

    def __init__(self, consul, grants):
        tokens = [consul.token, *(one.token for one in grants)]
        names = [one.name for one in grants]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"{name}: is there twice")
            if tokens[i + 1] in tokens[: i + 1]:
                raise ValueError(f"{name}: its token is another's as well")
        self.consul = consul
        self.grants = grants

    def wait(self, seconds):
        """Wait until a leader takes the management token. Raises ConsulError that says which servers are there."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.consul.call("GET", "/v1/acl/token/self")
                self.consul.call("GET", "/v1/acl/policies")
                return
            except ConsulError as exc:
                if time.monotonic() > deadline:
                    problem = f"the management token is not taken after {seconds} s: {exc}; servers that have joined: "
                    raise ConsulError(problem + self._peers(), exc.status) from exc
            time.sleep(RETRY)

    def steps(self):
        """What is to be done, as [(what, method, path, body)]. Raises ConsulError."""
        policies = {one["Name"]: one["ID"] for one in self.consul.call("GET", "/v1/acl/policies")}
        tokens = self.consul.call("GET", "/v1/acl/tokens")
        steps = []
        for grant in self.grants:
            steps += self._policy_steps(grant, policies.get(grant.policy))
            steps += self._token_steps(grant, tokens)
        return steps + self._old_tokens(self.consul.call("GET", "/v1/acl/token/self"), tokens)

    def apply(self, steps):
        """Do what `steps` said. Raises ConsulError that names the step."""
        for what, method, path, body in steps:
            try:
                self.consul.call(method, path, body)
            except ConsulError as exc:
                raise ConsulError(f"{what}: {exc}", exc.status) from exc

    def _peers(self):
        try:
            return ", ".join(self.consul.call("GET", "/v1/status/peers")) or "none"
        except ConsulError as exc:
            return f"unknown ({exc})"

    def _policy_steps(self, grant, number):
        body = {"Name": grant.policy, "Description": grant.description, "Rules": grant.rules}
        if number is None:
            return [(f"create policy {grant.policy}", "PUT", "/v1/acl/policy", body)]
        if self.consul.call("GET", f"/v1/acl/policy/{number}")["Rules"] != grant.rules:
            return [(f"change policy {grant.policy}", "PUT", f"/v1/acl/policy/{number}", {"ID": number, **body})]
        return []

    def _token_steps(self, grant, tokens):
        body = {"Description": grant.description, "Policies": [{"Name": grant.policy}]}
        try:
            found = self.consul.as_holder_of(grant.token).call("GET", "/v1/acl/token/self")
        except ConsulError as exc:
            if exc.status != 403:
                raise
            created = {"SecretID": grant.token, **body}
            return [(f"create the token of {grant.name}", "PUT", "/v1/acl/token", created),
                    *self._old_tokens({"AccessorID": None, **body}, tokens)]  # fmt: skip
        policies = [one["Name"] for one in found.get("Policies") or []]
        same = (found["Description"], policies) == (grant.description, [grant.policy])
        path = f"/v1/acl/token/{found['AccessorID']}"
        changed = [] if same else [(f"change the token of {grant.name}", "PUT", path, body)]
        return [*changed, *self._old_tokens({**found, **body}, tokens)]

    @staticmethod
    def _old_tokens(own, tokens):
        """Steps that remove the tokens that had the same use before `own`."""
        return [
            (f"remove an old token ({one['Description']})", "DELETE", f"/v1/acl/token/{one['AccessorID']}", None)
            for one in tokens
            if one["Description"] == own["Description"] and one["AccessorID"] != own["AccessorID"]
        ]

# SPDX-License-Identifier: Apache-2.0
"""The little that the program itself asks of its services. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from testbed_openstack.place import Place, TestbedError

# All services are on this machine: no proxy is on the way to them.
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def status(url: str) -> int | None:
    """HTTP status of a GET; None when nobody answers."""
    try:
        with _OPEN(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class Api:
    """Requests of one user in one project."""

    def __init__(self, place: Place, user: str, project: str):
        self.place, self._token = place, None
        identity = {"name": user, "domain": {"id": "default"}, "password": place.secrets()[user]}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": identity}},
                "scope": {"project": {"name": project, "domain": {"id": "default"}}},
            }
        }
        answer, headers = self._ask("POST", "keystone", "/v3/auth/tokens", body)
        self._token, self.project = headers["X-Subject-Token"], answer["token"]["project"]["id"]

    def _ask(self, method, service, path, body=None, content="application/json", **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.place.url(service) + path, data, method=method)
        headers = {"Content-Type": content, "Accept": "application/json", **headers}
        for name, value in headers.items():
            request.add_header(name, value)
        if self._token:
            request.add_header("X-Auth-Token", self._token)
        try:
            with _OPEN(request, timeout=120) as answer:
                text = answer.read()
                return (json.loads(text) if text else None), answer.headers
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise TestbedError(f"{service}: {method} {path}: {error.code} {detail}") from None
        except OSError as error:
            raise TestbedError(f"{service}: {method} {path}: {error}; see {self.place.logs / service}.log") from None

    def get(self, service: str, path: str):
        return self._ask("GET", service, path)[0]

    def post(self, service: str, path: str, body):
        return self._ask("POST", service, path, body)[0]

    def put(self, service: str, path: str, body=None, content="application/json"):
        return self._ask("PUT", service, path, body, content)[0]

    def patch(self, service: str, path: str, body):
        return self._ask("PATCH", service, path, body)[0]

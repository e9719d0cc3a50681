# SPDX-License-Identifier: Apache-2.0
"""What a client and a person with a browser do."""

from __future__ import annotations

import html
import re

from joserfc import jwt
from joserfc.jwk import KeySet

from identity_runtime import PASSWORD, SERVICE_SECRET, WORKER_SECRET

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
SCOPES = "openid offline_access x509 wlcg.groups"


def claims(http, token):
    """Verify a token against the published keys; return its claims."""
    keys = KeySet.import_key_set(http.get("/jwks").json())
    return jwt.decode(token, keys, algorithms=["RS256", "ES256"]).claims


def worker(http, secret=WORKER_SECRET, **data):
    body = {"grant_type": "client_credentials", "scope": "x509 wlcg.groups", **data}
    return http.post("/token", auth=("worker", secret), data=body)


def form(page):
    """Action and hidden fields of the first form on a page."""
    action = html.unescape(re.search(r'action="([^"]+)"', page.text)[1])
    fields = re.findall(r'name="(\w+)" value="([^"]*)"', page.text)
    return action, {name: html.unescape(value) for name, value in fields if name in ("xsrf", "user_code", "confirm")}


def follow(http, answer):
    while answer.is_redirect:
        target = str(answer.next_request.url)
        if not target.startswith(str(http.base_url)):
            return answer
        answer = http.get(target)
    return answer


def start_device(http, **data):
    answer = http.post("/device/auth", data={"client_id": "dodas", "scope": SCOPES, **data})
    assert answer.status_code == 200, answer.text
    return answer.json()


def open_login(http, device):
    """Type the code of a device and confirm it; the page that asks for a password comes back."""
    action, fields = form(http.get("/device"))
    confirm = http.post(action, data={**fields, "user_code": device["user_code"]})
    assert device["user_code"] in confirm.text
    action, fields = form(confirm)
    page = follow(http, http.post(action, data=fields))
    assert "Password" in page.text
    return page


def sign_in(http, page, name="alice", password=PASSWORD, **options):
    return follow(http, http.post(form(page)[0], data={"name": name, "password": password}, **options))


def approve(http, page):
    return follow(http, http.post(form(page)[0]))


def poll(http, device):
    data = {"grant_type": DEVICE, "client_id": "dodas", "device_code": device["device_code"]}
    return http.post("/token", data=data)


def device_tokens(http, **data):
    device = start_device(http, **data)
    done = approve(http, sign_in(http, open_login(http, device)))
    assert "Signed in" in done.text
    answer = poll(http, device)
    assert answer.status_code == 200, answer.text
    http.cookies.clear()
    return answer.json()


def refresh(http, token, **data):
    return http.post(
        "/token", data={"grant_type": "refresh_token", "client_id": "dodas", "refresh_token": token, **data}
    )


def exchange(http, token, **data):
    body = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, **data}
    return http.post("/token", auth=("service", SERVICE_SECRET), data=body)

# SPDX-License-Identifier: Apache-2.0
"""keystone, with what a web server's OpenID Connect module does before it: bearer tokens become WSGI variables.

Issuers are in STATE/oidc.json, read at each login: {provider: {"issuer", "ca", "audience"}}.
"""

import functools
import json
import re
import ssl
import threading
import urllib.request

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from keystone.wsgi.api import application as keystone

from testbed_openstack.place import Place

LOGIN = re.compile(r"/v3/OS-FEDERATION/identity_providers/([^/]+)/protocols/[^/]+/auth")
ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "EdDSA"]
PLACE = Place.load()


class Issuer:
    """Validates tokens of one issuer with the keys that it publishes."""

    def __init__(self, issuer, ca=None, audience=None):
        self.issuer, self.audience = issuer, audience
        self._context = ssl.create_default_context(cafile=ca) if issuer.startswith("https:") else None
        self._keys, self._lock = None, threading.Lock()

    def _get(self, url):
        # Issuers of tests are on this machine: no proxy is on the way to them.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        with opener.open(url, timeout=10) as answer:
            return json.load(answer)

    def _read_keys(self):
        found = self._get(self.issuer.rstrip("/") + "/.well-known/openid-configuration")
        self._keys = KeySet.import_key_set(self._get(found["jwks_uri"]))

    def claims(self, token):
        """Claims of a valid token. Raises JoseError or ValueError."""
        with self._lock:
            if self._keys is None:
                self._read_keys()
            try:
                decoded = jwt.decode(token, self._keys, algorithms=ALGORITHMS)
            except (JoseError, ValueError):
                self._read_keys()  # the issuer may have new ones
                decoded = jwt.decode(token, self._keys, algorithms=ALGORITHMS)
        wanted = {name: {"essential": True} for name in ("iss", "sub", "exp", *(["aud"] if self.audience else []))}
        wanted["iss"]["value"] = self.issuer
        if self.audience:
            wanted["aud"]["value"] = self.audience
        jwt.JWTClaimsRegistry(leeway=30, **wanted).validate(decoded.claims)
        return decoded.claims


@functools.lru_cache
def _issuer(text):
    return Issuer(**json.loads(text))


def issuer_of(provider):
    """The issuer registered for an identity provider; None when there is none."""
    try:
        settings = json.loads((PLACE.state / "oidc.json").read_text()).get(provider)
    except FileNotFoundError:
        return None
    return _issuer(json.dumps(settings, sort_keys=True)) if settings else None


def _variables(claims):
    """Claims as keystone's mappings take them: lists joined, and no structures."""
    for name, value in claims.items():
        if isinstance(value, list):
            value = ";".join(str(one) for one in value)
        if isinstance(value, (str, int, float)):
            yield f"OIDC-{name}", str(value)


def application(environ, start_response):
    for name in [name for name in environ if name.upper().startswith(("OIDC", "HTTP_OIDC"))]:
        del environ[name]
    login = LOGIN.match(environ.get("PATH_INFO", ""))
    if login:
        issuer = issuer_of(login[1])
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            if not issuer or scheme.lower() != "bearer":
                raise ValueError("no issuer" if not issuer else "no bearer token")
            environ.update(_variables(issuer.claims(token.strip())))
        except (JoseError, ValueError, OSError) as error:
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "application/json")])
            message = f"{type(error).__name__}: {error}" if issuer else f"no issuer is known for {login[1]}"
            return [json.dumps({"error": {"code": 401, "title": "Unauthorized", "message": message}}).encode()]
        environ["REMOTE_USER"] = environ["OIDC-sub"]
    return keystone(environ, start_response)

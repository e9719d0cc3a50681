# SPDX-License-Identifier: Apache-2.0
"""What an attacker makes: tokens of any shape, also signed with the provider's own keys, and raw requests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import socket
import ssl
import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from joserfc.jwk import ECKey, RSAKey

from identity_runtime import AUDIENCE, Identity

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def text(value) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


class Forger:
    """Signs what it is told, with the keys that a provider signs with: so the issuer itself has gone mad."""

    def __init__(self, identity: Identity):
        self.issuer = identity.url
        held = json.loads((Path(identity.state) / "jwks.json").read_text())["keys"]
        self.jwks = {jwk["alg"]: jwk for jwk in held[:2]}
        self.keys = {
            "RS256": RSAKey.import_key(self.jwks["RS256"]).private_key,
            "ES256": ECKey.import_key(self.jwks["ES256"]).private_key,
        }
        self.own = {"RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1())}

    def public(self, alg: str = "RS256") -> dict:
        """The public JWK."""
        return {name: value for name, value in self.jwks[alg].items() if name in ("kty", "n", "e", "crv", "x", "y")}

    def claims(self, **changes) -> dict:
        """Those of an honest token of the worker; None leaves one out."""
        now = int(time.time())
        honest = {
            "iss": self.issuer,
            "sub": "worker",
            "client_id": "worker",
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "nbf": now,
            "jti": hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:16],
            "scope": "x509 wlcg.groups",
        }
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return {name: value for name, value in {**honest, **changes}.items() if value is not ABSENT}

    def header(self, alg="RS256", **changes) -> dict:
        kid = self.jwks["ES256" if alg == "ES256" else "RS256"]["kid"]
        header = {"alg": alg, "typ": "at+jwt", "kid": kid, **changes}
        return {name: value for name, value in header.items() if value is not ABSENT}

    def sign(self, header, claims, alg: str = "RS256", key=None) -> str:
        """A compact JWT, however strange its parts (objects, or bytes as they are)."""
        signed = f"{b64(text(header))}.{b64(text(claims))}"
        return f"{signed}.{b64(self.signature(signed.encode(), alg, key))}"

    def signature(self, data: bytes, alg: str, key=None) -> bytes:
        """alg: what is done, whatever the header says."""
        digest = HASHES.get(alg[2:5], hashes.SHA256())
        if alg.startswith("HS"):
            return hmac.new(key, data, f"sha{alg[2:5]}").digest()
        key = key or self.keys["ES256" if alg.startswith("E") else "RS256"]
        if alg.startswith("RS"):
            return key.sign(data, padding.PKCS1v15(), digest)
        if alg.startswith("PS"):
            return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def token(self, alg: str = "RS256", **changes) -> str:
        """A token that is right but for the changes of its claims."""
        return self.sign(self.header(alg), self.claims(**changes), alg)

    def with_header(self, alg: str = "RS256", key=None, **changes) -> str:
        """A token that is right but for the changes of its header."""
        return self.sign(self.header(alg, **changes), self.claims(), alg, key)


class _Absent:
    def __repr__(self):
        return "absent"


ABSENT = _Absent()


def pem(key, form="SubjectPublicKeyInfo", encoding="PEM") -> bytes:
    """The public half of a key."""
    return key.public_key().public_bytes(
        getattr(serialization.Encoding, encoding), getattr(serialization.PublicFormat, form)
    )


class Canary:
    """A port that nobody has a reason to connect to; ``visits`` counts who did."""

    def __init__(self):
        self.visits = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()

    def close(self):
        self._socket.close()


class Relay:
    """Passes TCP connections on to a port, and counts them."""

    def __init__(self, port: int):
        self.connections = 0
        self._target = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            try:
                target = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                connection.close()
                continue
            for pair in ((connection, target), (target, connection)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()

    def close(self):
        self._socket.close()


def raw(service, data: bytes, seconds: float = 10) -> bytes:
    """All that comes back on one connection for these bytes."""
    with connect(service, seconds) as connection:
        with contextlib.suppress(OSError):  # hung up on us already: what it said is still there
            connection.sendall(data)
        return receive(connection)


def connect(service, seconds: float = 10) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", service.port), timeout=seconds)
    return service.context().wrap_socket(plain, server_hostname="127.0.0.1")


def receive(connection) -> bytes:
    """Until the other side hangs up or says nothing more."""
    answer = b""
    with contextlib.suppress(OSError):
        while data := connection.recv(65536):
            answer += data
    return answer


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what came back."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]

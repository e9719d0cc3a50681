# SPDX-License-Identifier: Apache-2.0
"""The credentials service as a process of its own, on loopback with TLS."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join
from identity_runtime import AUDIENCE, SERVICE_SECRET, Identity, make_certificate
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "test"
HOST = "worker-1"
# With DEBUG for all loggers, also those of the libraries: what must not leak does not leak then either.
DEBUG = "import logging, sys; logging.basicConfig(level=logging.DEBUG); from dodas.credentials.__main__ import main; "


class Credentials:
    """One instance, which can be stopped, killed and started again on the same state.

    issuers: an Identity, a mapping as in ``issuers`` of the configuration, or a list of either. changes replace keys
    of the configuration, which is ``settings`` and may be edited before start(). Attributes: url, cafile, state
    (directory), join_secret and state_key (bytes), process.
    """

    def __init__(self, directory: Path, issuers, debug: bool = False, **changes):
        self.directory = Path(directory)
        self.config, self.state = self.directory / "etc", self.directory / "state"
        self.config.mkdir(parents=True)
        make_certificate(self.config)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.cafile = str(self.config / "cert.pem")
        self.debug = debug
        self.join_secret, self.state_key = secrets.token_bytes(32), secrets.token_bytes(32)
        self.process: subprocess.Popen | None = None
        sections = [self._section(issuer) for issuer in (issuers if isinstance(issuers, list) else [issuers])]
        self.settings = {
            "deployment": DEPLOYMENT,
            "listen": {
                "address": "127.0.0.1",
                "port": self.port,
                "certfile": self.cafile,
                "keyfile": str(self.config / "key.pem"),
            },
            "state_dir": str(self.state),
            "state_key_file": self.secret_file("state.key", self.state_key),
            "join": {"secret_file": self.secret_file("join.key", self.join_secret), "audience": self.url},
            "issuers": sections,
            "rules": [*rules(sections[0]["issuer"]), *join_rules()],
        }
        self.settings.update(changes)

    def _section(self, issuer) -> dict:
        if not isinstance(issuer, Identity):
            return dict(issuer)
        section = {"issuer": issuer.url, "audience": AUDIENCE, "cafile": str(issuer.config / "cert.pem")}
        section |= {"client_id": "service", "client_secret_file": self.secret_file("client.secret", SERVICE_SECRET)}
        return section | {"scope": "x509 wlcg.groups offline_access"}

    def secret_file(self, name: str, value: bytes | str) -> str:
        """Path of a private file beside the configuration that holds the value, bytes in base64."""
        path = self.config / name
        path.touch(0o600)
        path.write_text(value if isinstance(value, str) else base64.b64encode(value).decode())
        return str(path)

    def command(self) -> tuple[list[str], dict[str, str]]:
        path = self.config / "config.yaml"
        path.write_text(yaml.safe_dump(self.settings))
        program = ["-c", DEBUG + "sys.exit(main())"] if self.debug else ["-m", "dodas.credentials"]
        places = {"PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
        places["MALLOC_ARENA_MAX"] = "1"  # as in the image
        return [sys.executable, *program, "--config", str(path)], {**os.environ, **places}

    def start(self, seconds: float = 20) -> None:
        """Returns when it answers."""
        command, environment = self.command()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + seconds
        with self.client() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    http.get("/v1/authority/ca.pem")
                    return
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the credentials service does not start:\n{self.log()}")
                time.sleep(0.02)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash: nothing is tidied up."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(15)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def refuse(self) -> str:
        """Start with a configuration or state that cannot be used; return what it says."""
        command, environment = self.command()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def log(self) -> str:
        """All that it has printed so far."""
        return (self.directory / "log").read_text(errors="replace")

    def audit(self) -> list[dict]:
        """The lines of its audit log."""
        return [json.loads(line) for line in (self.state / "audit.log").read_text().splitlines()]

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.cafile)

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.context(), trust_env=False, timeout=20, **options)

    def join_key(self, host: str = HOST) -> bytes:
        return join.derive(self.join_secret, host)

    def join_token(self, request: bytes = b"", host: str = HOST, **more) -> str:
        """A token of a host of the deployment, for the certificate request (PEM)."""
        audience = more.pop("audience", self.url)
        return join.make(self.join_key(host), DEPLOYMENT, host, audience, request, **more)


def rules(issuer: str) -> list[dict]:
    """For the clients and users of identity_runtime: worker: proxy; alice: eec and proxy."""
    common = {"issuer": issuer, "lifetime": 3600}
    workers = {"name": "workers", "clients": ["worker"], "kinds": ["proxy"]}
    people = {"name": "people", "groups": ["/cms"], "kinds": ["eec", "proxy"], "clip_to_token": True}
    return [
        {**common, **workers, "dn": f"/DC=dodas/O={DEPLOYMENT}/OU=workers/CN=worker {{hash}}"},
        {**common, **people, "dn": f"/DC=dodas/O={DEPLOYMENT}/OU=people/CN={{sub}} {{hash}}"},
    ]


def join_rules() -> list[dict]:
    """For the hosts of the deployment, with their own tokens."""
    dn = f"/DC=dodas/O={DEPLOYMENT}/OU=workers/CN={{sub}} {{hash}}"
    return [{"name": "hosts", "issuer": join.issuer(DEPLOYMENT), "lifetime": 3600, "kinds": ["proxy"], "dn": dn}]

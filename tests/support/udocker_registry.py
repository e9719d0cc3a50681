# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback: plain or with TLS, open, with a password file, or with tokens.

    with Registry(tmp_path, tls=True, auth="token") as registry:
        registry.host                        # "127.0.0.1:PORT"
        registry.put(layout, "busybox:latest", "team/busybox:1")

Users and what they may do: USERS. Everybody may pull what is below `public/`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from ports import free_port

DEADLINE = 20.0
USERS = {"ann": "ann's secret, with: a colon", "bob": "bob-secret"}  # ann may push and pull, bob may pull
SERVICE = 'registry, of "tests"'


class Authority:
    """A CA of our own, in files below `folder`: ca.crt, server.crt, server.key (for loopback and NAMES)."""

    NAMES = ("localhost", "registry.test", "mirror.test")

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.certificate, self.key = (self.folder / name for name in ("ca.crt", "server.crt", "server.key"))
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests of registries")])
        ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, x509.BasicConstraints(True, 0), [])
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        names = [x509.DNSName(each) for each in self.NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
        leaf = _certificate(name, ca_name, key.public_key(), ca_key, x509.BasicConstraints(False, None), names)
        self.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        self.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(_pem(key))

    def trust(self, folder, host):
        """Put the CA where clients look for a host's: FOLDER/HOST/ca.crt; returns the folder."""
        place = Path(folder) / host
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.ca, place / "ca.crt")
        return Path(folder)

    def server_context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def _certificate(subject, issuer, public, signer, constraints, names):
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server of a test, in threads of this process, on loopback."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler, context=None):
        super().__init__(("127.0.0.1", 0), handler)
        self.context = context
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self):
        return f"{'https' if self.context else 'http'}://{self.host}"

    def finish_request(self, request, client_address):
        if self.context:  # in the request's own thread
            request.settimeout(DEADLINE)
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except (ssl.SSLError, OSError):
                return
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        """Clients that go away are part of the tests."""

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.shutdown()
        self.server_close()
        self.thread.join(DEADLINE)


class TokenServer:
    """A stand-in for an authorization server, to docker-registry a real one: it signs tokens that it verifies.

    answer: the name that a token has in an answer, `token` or `access_token`
    stale: how many of the first tokens have expired already when they are given
    offline: whether identity tokens are given, and taken
    asked: [(user or None, [scope, ...], how)] of the tokens that were given
    """

    def __init__(self, folder, authority=None, answer="token", lifetime=300, stale=0, offline=True):
        self.answer, self.lifetime, self.stale, self.offline = answer, lifetime, stale, offline
        self.asked, self.refused, self.identities = [], [], {}
        self.lock = threading.Lock()
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tokens of tests")])
        constraints = x509.BasicConstraints(True, None)
        certificate = _certificate(name, name, self.key.public_key(), self.key, constraints, [])
        self.bundle = Path(folder) / "tokens.crt"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                user = None
                kind, _space, value = self.headers.get("Authorization", "").partition(" ")
                if kind.lower() == "basic":
                    user, _colon, password = base64.b64decode(value).decode().partition(":")
                    if USERS.get(user) != password:
                        return self.refuse(user)
                offline = "offline_token" in query
                return self.give(user, query.get("scope", []), "GET", offline, query.get("service"))

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {key: values[0] for key, values in urllib.parse.parse_qs(content).items()}
                user = form.get("username")
                if form["grant_type"] == "refresh_token":
                    user = issuer.identities.get(form["refresh_token"])
                    if user is None:
                        return self.refuse("refresh_token")
                elif USERS.get(user) != form.get("password"):
                    return self.refuse(user)
                return self.give(user, form.get("scope", "").split(), "POST", False, [form.get("service")])

            def refuse(self, user):
                issuer.refused.append(user)
                self.reply(401, {"errors": [{"code": "UNAUTHORIZED", "message": "no"}]})

            def give(self, user, scopes, how, offline, service):
                if service != [SERVICE]:
                    return self.reply(400, {"errors": [{"message": f"service {service}"}]})
                return self.reply(200, issuer.token(user, scopes, how, offline))

            def reply(self, status, document):
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments):
                pass

        self.server = Server(Handler, authority.server_context() if authority else None)

    @property
    def realm(self):
        return f"{self.server.url}/token"

    def token(self, user, scopes, how, offline):
        with self.lock:
            self.asked.append((user, scopes, how))
            stale = self.stale > 0
            self.stale -= stale
        now = int(time.time()) - (3600 if stale else 0)
        access = []
        for scope in (scope for each in scopes for scope in each.split()):
            kind, _colon, rest = scope.partition(":")
            name, _colon, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": self.allowed(user, kind, name, actions.split(","))})
        claims = {
            "iss": "tests", "sub": user or "", "aud": SERVICE, "iat": now, "nbf": now - 10, "exp": now + 300,
            "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self.x5c]}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        answer = {self.answer: f"{signed}.{_base64url(signature)}", "expires_in": self.lifetime}
        if offline and self.offline and user:
            answer["refresh_token"] = secrets.token_urlsafe(24)
            self.identities[answer["refresh_token"]] = user
        return answer

    @staticmethod
    def allowed(user, kind, name, actions):
        if user == "ann":
            return actions
        readable = user == "bob" or name.startswith("public/")
        return [action for action in actions if readable and kind == "repository" and action == "pull"]

    def close(self):
        self.server.__exit__()


def _base64url(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Registry:
    """docker-registry, with its files below `folder`; auth: None, "basic" or "token"; tokens: of TokenServer."""

    def __init__(self, folder, tls=False, auth=None, authority=None, **tokens):
        self.folder = Path(folder) / f"registry-{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True)
        self.storage = self.folder / "storage"
        self.authority = authority or (Authority(self.folder / "ca") if tls else None)
        self.tls, self.auth = tls, auth
        self.tokens = TokenServer(self.folder, self.authority if tls else None, **tokens) if auth == "token" else None
        self.process = None
        self.log = self.folder / "log"

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def __enter__(self):
        try:
            for _attempt in range(5):  # another may take the port first
                self.port = free_port()
                if self._start():
                    break
            else:
                raise RuntimeError(f"docker-registry does not start: {self.log.read_text()[-2000:]}")
            self.certificates = self.folder / "certs.d"
            if self.tls:
                self.authority.trust(self.certificates, self.host)
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_exception):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(DEADLINE)
        if self.tokens is not None:
            self.tokens.close()

    def _start(self):
        config = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "of tests"},
        }
        if self.tls:
            config["http"]["tls"] = {"certificate": str(self.authority.certificate), "key": str(self.authority.key)}
        if self.auth == "basic":
            path = self.folder / "htpasswd"
            path.write_text("".join(f"{_htpasswd(user, password, '-B', '-C4')}\n" for user, password in USERS.items()))
            config["auth"] = {"htpasswd": {"realm": "tests, of passwords", "path": str(path)}}
        elif self.auth == "token":
            config["auth"] = {
                "token": {
                    "realm": self.tokens.realm, "service": SERVICE, "issuer": "tests",
                    "rootcertbundle": str(self.tokens.bundle),
                }
            }  # fmt: skip
        path = self.folder / "config.yml"
        path.write_text(json.dumps(config))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(path)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        context = ssl.create_default_context(cafile=self.authority.ca) if self.tls else None
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/v2/", context=context, timeout=DEADLINE).close()
                return True
            except urllib.error.HTTPError:
                return True
            except OSError:
                time.sleep(0.02)
        return False

    def put(self, layout, name, target, **options):
        """Have skopeo copy image `name` of an OCI layout here, as `target`; returns its digest.

        options: of skopeo, as format="v2s2", all=True
        """
        return self.skopeo("copy", f"oci:{layout}:{name}", f"docker://{self.host}/{target}", side="dest", **options)

    def skopeo(self, *arguments, side, user="ann", **options):
        """Run skopeo copy; side: of the copy that is here, "src" or "dest". Returns the manifest's digest."""
        digest = self.folder / f"digest-{secrets.token_hex(4)}"
        command = ["skopeo", *arguments, f"--digestfile={digest}"]
        for key, value in options.items():
            command.append(f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}"))
        command += (
            [f"--{side}-cert-dir={self.certificates / self.host}"] if self.tls else [f"--{side}-tls-verify=false"]
        )
        if self.auth:
            command.append(f"--{side}-creds={user}:{USERS[user]}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"skopeo {arguments[0]}: {done.stderr}")
        return digest.read_text()

    def blob(self, digest):
        """The file that a blob is in."""
        value = digest.partition(":")[2]
        return self.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def requests(self):
        """[(method, path, status)] of what was asked, in order."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, IndexError):
                if '] "' in line and "HTTP/1." in line:
                    request, rest = line.split('] "', 1)[1].split('" ', 1)
                    found.append((*request.split()[:2], int(rest.split()[0])))
        return found


def _htpasswd(user, password, *options):
    command = ["htpasswd", "-n", "-i", *options, user]
    return subprocess.run(command, input=password, capture_output=True, text=True, check=True).stdout.strip()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def put_raw(registry, repository, blobs, manifest, media_type, tag="latest"):
    """Store blobs and a manifest in an open registry over its own interface, as they are; returns the digest."""
    for content in blobs:
        request = urllib.request.Request(f"{registry.url}/v2/{repository}/blobs/uploads/", b"", method="POST")
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            location = response.headers["Location"]
        url = f"{location}{'&' if '?' in location else '?'}digest={digest(content)}"
        headers = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT"), timeout=DEADLINE).close()
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    request = urllib.request.Request(
        f"{registry.url}/v2/{repository}/manifests/{tag}", content, {"Content-Type": media_type}, method="PUT"
    )
    urllib.request.urlopen(request, timeout=DEADLINE).close()
    return digest(content)


@contextlib.contextmanager
def process(command, port, **more):
    """A server that listens on a port of loopback, while the block lasts."""
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, **more)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            if running.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {running.returncode}")
            try:
                socket.create_connection(("127.0.0.1", port), DEADLINE).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{command[0]} does not listen on {port}") from None
                time.sleep(0.02)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(DEADLINE)


@contextlib.contextmanager
def squid(user=None, password=None, hosts=()):
    """A real HTTP proxy; the port. hosts: names that it knows to be on loopback."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # it runs as a user of its own
        with _squid(Path(folder), user, password, hosts) as port:
            yield port


@contextlib.contextmanager
def _squid(folder, user, password, hosts):
    port = free_port()
    (folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in hosts))
    lines = [
        f"http_port 127.0.0.1:{port}", "pid_filename none", "cache deny all", "access_log none", "cache_log /dev/null",
        "cache_store_log none", f"hosts_file {folder}/hosts", "shutdown_lifetime 0 seconds", "visible_hostname proxy",
        "netdb_filename none", "pinger_enable off", f"coredump_dir {folder}", "dns_nameservers 127.0.0.1",
    ]  # fmt: skip
    if user:
        (folder / "passwords").write_text(_htpasswd(user, password) + "\n")
        lines += [
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords",
            "auth_param basic realm tests", "acl known proxy_auth REQUIRED", "http_access allow known",
            "http_access deny all",
        ]  # fmt: skip
    else:
        lines.append("http_access allow all")
    (folder / "squid.conf").write_text("\n".join([*lines, ""]))
    log = open(folder / "log", "wb")  # noqa: SIM115
    with log, process(["squid", "-N", "-f", str(folder / "squid.conf")], port, stdout=log, stderr=log):
        yield port


@contextlib.contextmanager
def microsocks(user=None, password=None):
    """A real SOCKS 5 proxy; the port."""
    port = free_port()
    login = ["-u", user, "-P", password] if user else []
    with process(["microsocks", "-i", "127.0.0.1", "-p", str(port), *login], port):
        yield port


@contextlib.contextmanager
def ssh_socks():
    """A real proxy that speaks SOCKS 4, 4a and 5: OpenSSH's; the port."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, server, port = Path(scratch), free_port(), free_port()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        os.makedirs("/run/sshd", exist_ok=True)  # where sshd confines itself to
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {server}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n"
        )
        client = ["ssh", "-N", "-F", "none", "-q", "-i", str(folder / "user"), "-p", str(server)]
        for option in ("StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", "IdentitiesOnly=yes"):
            client += ["-o", option]
        client += ["-D", f"127.0.0.1:{port}", "127.0.0.1"]
        with process(["/usr/sbin/sshd", "-D", "-q", "-f", str(folder / "sshd_config")], server), process(client, port):
            yield port

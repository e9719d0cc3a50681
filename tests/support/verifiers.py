# SPDX-License-Identifier: Apache-2.0
"""Relying parties of others, and what each says of a credential.

They run in one container from an image of Debian's packages, with network, process and mount namespaces of their own:
what they listen on, start and write is gone with it. The container ends when this process does, however it does.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
import select
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.images import build, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
from verifiers_shapes import DEPLOYMENT, NAMESPACE, VOMS_ATTRIBUTES

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "tests" / "conformance" / "x509" / "images"
HERE = "/srv/world"  # the world's folder, as the container sees it
CERTIFICATES = f"{HERE}/certificates"
SECONDS, START_SECONDS = 20, 60
PEOPLE = ("alice", "mallory")
ACCEPTED, REFUSED, UNSENT = "V", "x", "c"


class VerifierError(RuntimeError):
    """A verifier neither accepted nor refused. Names it, and quotes the end of its log."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """letter: accepted, refused, or refused by the verifier's own client already; said: its own words."""

    letter: str
    said: str = ""


class Box:
    """The container. folder: an existing directory, which the container sees as ``HERE``."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.chmod(0o755)
        self.podman = Podman(home_of(folder))
        self.podman.configure()
        images = catalogue.catalogue(IMAGES, ROOT)
        build.build(self.podman, list(images.values()), ROOT)
        name = f"dodas-verifiers-{os.getpid()}"
        # It says "ready", and stays as long as its standard input is open.
        self._command = self.podman.command(
            "run", "--rm", "--interactive", "--pull=never", "--network=none", "--cgroups=disabled", f"--name={name}",
            "--log-driver=none", "--hostname=localhost", f"--volume={folder}:{HERE}", images["verifiers"].reference,
            "sh", "-c", "echo ready; exec cat",
        )  # fmt: skip
        self._log = folder / "podman.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self.podman.environment(), start_new_session=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._servers, self.closing = [], []
        try:
            ready, _writable, _failed = select.select([self._process.stdout], [], [], START_SECONDS)
            if not ready or self._process.stdout.readline() != b"ready\n":
                raise VerifierError(f"the container of the verifiers did not start: {self._log.read_text()[-500:]}")
            self.pid = int(self.podman.run("inspect", "--format", "{{.State.Pid}}", name))
        except BaseException:
            self.stop()
            raise
        self.root = Path(f"/proc/{self.pid}/root")

    def stop(self):
        """End all that runs in it, and remove what podman keeps of it."""
        for server in self._servers:
            server.kill()
            server.wait(SECONDS)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(SECONDS)
        for one in self.closing:
            one.shutdown(socket.SHUT_RDWR)
        remove_store(self.podman)

    def command(self, *command, **environment):
        """The arguments that run a command in it, in no environment but the one given."""
        enter = ["nsenter", "--target", self.pid, "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd"]
        pairs = [f"{name}={value}" for name, value in environment.items()]
        return list(map(str, [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin", "HOME=/root", *pairs, *command]))

    def run(self, *command, data=b"", **environment):
        """Run a command to its end: its status, and what it printed. Raises subprocess.TimeoutExpired."""
        done = subprocess.run(self.command(*command, **environment), input=data, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=SECONDS, check=False)  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def start(self, log, *command, **environment):
        """Start a server, which prints to a file. It ends with the container."""
        with open(log, "wb") as stream:
            self._servers.append(subprocess.Popen(
                self.command(*command, **environment), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            ))  # fmt: skip

    def certificates(self, path):
        """Those in a file of the world."""
        return x509.load_pem_x509_certificates((self.folder / Path(path).relative_to(HERE)).read_bytes())

    def version(self, package):
        """Of a package of Debian's."""
        return self.run("dpkg-query", "-W", "-f", "${source:Upstream-Version}", package)[1]


def home_of(folder):
    """Where podman keeps what it needs for a Box of that folder."""
    return folder.with_name(f"{folder.name}-podman")


def remove_store(podman):
    """Remove what podman keeps, once it has no container."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted((one for one in mounts if one.startswith(f"{podman.home}/")), reverse=True):
        subprocess.run(["umount", mount], check=True, timeout=SECONDS)
    for path in (podman.home.parent, podman.run_dir):
        shutil.rmtree(path)


def voms_attributes(box, world, person):
    """DER of VOMS attributes for a person, signed by the host of the world, whom the verifiers trust with that."""
    shown, made = box.folder / "voms-person.pem", box.folder / "voms-proxy.pem"
    files.write(shown, person.pem)
    status, said = box.run(
        "voms-proxy-fake", "-cert", f"{HERE}/{shown.name}", "-key", f"{HERE}/{shown.name}", "-certdir", CERTIFICATES,
        "-hostcert", f"{HERE}/host.crt", "-hostkey", f"{HERE}/host.key", "-voms", "cms", "-uri", "localhost:15000",
        "-fqan", "/cms/Role=NULL/Capability=NULL", "-rfc", "-newformat", "-out", f"{HERE}/{made.name}",
    )  # fmt: skip
    if status:
        raise VerifierError(f"voms-proxy-fake: {status}: {said[-500:]}")
    trusted = box.folder / "vomsdir" / "cms" / "localhost.lsc"
    trusted.parent.mkdir(parents=True, exist_ok=True)
    trusted.write_text(f"{NAMESPACE}/OU=hosts/CN=localhost\n{world.own.subject}\n", encoding="utf-8")
    extensions = x509.load_pem_x509_certificate(made.read_bytes()).extensions
    return next(one.value.value for one in extensions if one.oid.dotted_string == VOMS_ATTRIBUTES)


class Verifier:
    """One relying party. log: what it says, as a file of this machine."""

    name = ""
    package = ""
    good = "proxy"  # a shape that it takes for sure
    logs = "none.log"
    beside: type | None = None  # the verifier whose server it is a part of

    def __init__(self, box: Box):
        self.box = box
        self.log = box.folder / self.logs

    def start(self):
        """Start what it consists of."""

    def ask(self, path):
        """Its Verdict on the credential at path (in the container). Raises VerifierError for anything else."""
        raise NotImplementedError

    def run(self, *command, **options):
        """Box.run, within its time."""
        try:
            return self.box.run(*command, **options)
        except subprocess.TimeoutExpired as error:
            printed = (error.stdout or b"")[-500:].decode(errors="replace")
            return self.fail(f"{command[0]} does not end in {SECONDS} s: {printed}")

    def tls(self, port, path, data=b""):
        """What a server answers to a client that shows any credential, also those that its own would not."""
        options = ["-quiet", "-verify_quiet", "-cipher", "DEFAULT@SECLEVEL=0", "-CApath", CERTIFICATES]
        shown = ["-cert", path, "-key", path, "-cert_chain", path]
        return self.run("openssl", "s_client", "-connect", f"localhost:{port}", *options, *shown, data=data)[1]

    def await_ready(self, path):
        """Wait until it takes a good credential."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.ask(path).letter == ACCEPTED:
                    return
                problem = "refuses a good credential"
            except VerifierError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                self.fail(f"not ready in {START_SECONDS} s: {problem}")
            time.sleep(0.1)

    def judge(self, path, good):
        """Its Verdict; where that is no, it must take a good credential right after."""
        verdict = self.ask(path)
        if verdict.letter != ACCEPTED and (after := self.ask(good)).letter != ACCEPTED:
            self.fail(f"refuses a good credential after another: {after.said}")
        return verdict

    def fail(self, problem):
        """Raises VerifierError."""
        raise VerifierError(f"{self.name}: {problem}; the end of its log: {self.read()[-800:]}")

    def read(self, mark=0):
        """What it logged since it had logged so many bytes."""
        try:
            return self.log.read_bytes()[mark:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def mark(self):
        """How much it logged by now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def await_log(self, pattern, mark, seconds=5):
        """The match of a pattern in what it logged since, or None."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.read(mark), re.M | re.S)):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        return found


class OpenSSL(Verifier):
    """``openssl verify``, with proxies allowed and the lists of all authorities."""

    name = "OpenSSL"
    package = "openssl"

    def ask(self, path):
        options = ["-allow_proxy_certs", "-crl_check_all", "-x509_strict", "-CApath", CERTIFICATES]
        options += ["-no-CAfile", "-no-CAstore", "-untrusted", path]
        status, output = self.run("openssl", "verify", *options, path)
        if status == 0 and output.strip() == f"{path}: OK":
            return Verdict(ACCEPTED)
        reasons = re.findall(r"^error \d+ at \d+ depth lookup: .*", output, re.M)
        if status == 2 and reasons:
            return Verdict(REFUSED, output)
        return self.fail(f"{status}: {output}")


class Globus(Verifier):
    """A MyProxy server, and its client ``myproxy-info``: Globus GSI at both ends."""

    name = "Globus"
    package = "myproxy-server"
    logs = "myproxy.log"
    port = 7512

    def start(self):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(self.box.root / "dev" / "log"))
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
        self.box.closing.append(listener)
        store = self.box.folder / "myproxy"
        store.mkdir(mode=0o700)
        (store / "config").write_text('accepted_credentials "*"\nauthorized_retrievers "*"\n', encoding="utf-8")
        keys = {"X509_USER_CERT": f"{HERE}/host.crt", "X509_USER_KEY": f"{HERE}/host.key"}
        status, said = self.run(
            "myproxy-server", "-v", "-l", "localhost", "-p", self.port, "-c", f"{HERE}/myproxy/config",
            "-s", f"{HERE}/myproxy", X509_CERT_DIR=CERTIFICATES, **keys,
        )  # fmt: skip
        if status:
            self.fail(f"{status}: {said}")

    def _listen(self, listener):
        """The container's system log: where the server says what it thinks."""
        with listener, open(self.log, "ab", 0) as stream:
            while message := listener.recv(65536):
                stream.write(message.rstrip(b"\0\n") + b"\n")

    def ask(self, path):
        mark = self.mark()
        _status, output = self.run(
            "myproxy-info", "-s", "localhost", "-p", self.port, "-l", "nobody", X509_CERT_DIR=CERTIFICATES,
            X509_USER_PROXY=path, MYPROXY_SERVER_DN=f"{NAMESPACE}/OU=hosts/CN=localhost",
        )  # fmt: skip
        if "no credentials found for user nobody" in output:
            if self.await_log(r"Authenticated client /DC=", mark):
                return Verdict(ACCEPTED)
            self.fail(f"its client is served, but not authenticated: {output}")
        mark = self.mark()
        if "Connection refused" not in (answer := self.tls(self.port, path)):
            ended = self.await_log(r"(Error authenticating client: GSS[^<]*)<.*Exiting|Authenticated client", mark)
            if ended and ended[1]:
                return Verdict(REFUSED, ended[1])
        return self.fail(f"its client says {output}, another {answer}")


class Voms(Verifier):
    """VOMS's own verification of chains (``voms-verify``) and of attributes (``voms-proxy-info``)."""

    name = "VOMS"
    package = "voms-clients"

    def ask(self, path):
        environment = {"X509_CERT_DIR": CERTIFICATES, "X509_VOMS_DIR": f"{HERE}/vomsdir"}
        status, output = self.run("voms-verify", X509_USER_CERT=path, **environment)
        if status and "certificate validation error" in output:
            return Verdict(REFUSED, output)
        if status or "Certificate chain verified successfully" not in output:
            self.fail(f"{status}: {output}")
        held = self.box.certificates(path)[0].extensions
        if VOMS_ATTRIBUTES not in [one.oid.dotted_string for one in held]:
            return Verdict(ACCEPTED)
        status, output = self.run("voms-proxy-info", "-fqan", X509_USER_PROXY=path, **environment)
        if status and "WARNING: " in output:
            return Verdict(REFUSED, output)
        if status or "/cms/Role=NULL/Capability=NULL" not in output:
            self.fail(f"{status}: {output}")
        return Verdict(ACCEPTED)


class XRootD(Verifier):
    """XRootD's gsi protocol: a server, which also speaks HTTPS, and ``xrdfs``."""

    name = "XRootD gsi"
    package = "xrootd-server"
    logs = "xrootd.log"
    port, http_port = 1094, 8443

    def start(self):
        folder = self.box.folder / "xrootd"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "file").write_text("hello\n", encoding="utf-8")
        known = [f'"/DC=dodas/O={o}/OU=workers/CN={cn}" member\n' for o in (DEPLOYMENT, "elsewhere") for cn in PEOPLE]
        (folder / "gridmap").write_text("".join(known), encoding="utf-8")
        (folder / "authdb").write_text("u member /data lr\n", encoding="utf-8")
        here, own = f"{HERE}/xrootd", "/run/xrootd"  # the latter is the server's own user's
        (folder / "config").write_text(
            f"""
            all.export /data
            oss.localroot {here}
            all.adminpath {own}
            all.pidpath {own}
            xrd.port {self.port}
            xrd.network nodnr
            xrd.tls {own}/host.crt {own}/host.key
            xrd.tlsca certdir {CERTIFICATES} crlcheck all
            xrootd.seclib libXrdSec.so
            sec.protocol gsi -certdir:{CERTIFICATES} -cert:{own}/host.crt -key:{own}/host.key -gridmap:{here}/gridmap \\
                -gmapopt:1 -crl:3
            sec.protbind * only gsi
            ofs.authorize 1
            acc.authdb {here}/authdb
            xrd.protocol http:{self.http_port} libXrdHttp.so
            http.gridmap required {here}/gridmap
            xrd.trace conn tls
            http.trace all
            """,
            encoding="utf-8",
        )
        self.run("sh", "-c", f"install -d -o xrootd -m 700 {own} && cp {HERE}/host.* {own} && chown xrootd {own}/*")
        user = ["setpriv", "--reuid=xrootd", "--regid=xrootd", "--init-groups"]
        self.box.start(self.log, *user, "xrootd", "-c", f"{here}/config")

    def ask(self, path):
        letter, said, output = self._client(path)
        if letter is UNSENT and "expired certificates" in output:
            # Somebody whose clock is behind: the server decides with its own.
            end = min(one.not_valid_after_utc for one in self.box.certificates(path))
            letter, said, output = self._client(path, "faketime", "-f", f"@{end - dt.timedelta(seconds=30):%F %T}")
        return Verdict(letter, said)

    def _client(self, path, *clock):
        mark = self.mark()
        # Users give it a proxy as one file, and certificate and key of anything else apart.
        shown = {"X509_USER_PROXY": path}
        if len(self.box.certificates(path)) == 1:
            shown = {"X509_USER_CERT": path, "X509_USER_KEY": path, "X509_USER_PROXY": "/nowhere"}
        status, output = self.run(
            *clock, "xrdfs", f"root://localhost:{self.port}", "stat", "/data/file", X509_CERT_DIR=CERTIFICATES,
            XrdSecPROTOCOL="gsi", XrdSecGSICREATEPROXY=0, XrdSecDEBUG=3, XRD_CONNECTIONRETRY=1, XRD_CONNECTIONWINDOW=5,
            XRD_REQUESTTIMEOUT=10, XRD_STREAMERRORWINDOW=0, **shown,
        )  # fmt: skip
        ended = self.await_log(r"(.*) disc \d", mark) if status == 0 or "Auth failed: " in output else None
        if ended and status == 0 and re.search(r"^Size: +6$", output, re.M) and "login as member" in ended[1]:
            return ACCEPTED, "", output
        if ended and status:
            if refused := re.search("User authentication failed; .*", ended[1]):
                return REFUSED, refused[0], output
            if said := re.findall(r"secgsi_QueryProxy: proxy files .*|Auth failed: Secgsi: .*", output):
                return UNSENT, "\n".join(said), output
        return self.fail(f"{status}: {output[-500:]}")


class XrdHttp(Verifier):
    """The HTTPS side of the XRootD server, and curl."""

    name = "XrdHttp"
    package = "xrootd-server-plugins"
    port = XRootD.http_port
    path, content = "/data/file", r"^hello$"
    refusal = r"CertVerify: Error \d+ at depth \d+ \[[^]]*\]"
    statuses = ("000",)
    logs = XRootD.logs
    beside = XRootD

    def ask(self, path):
        mark = self.mark()
        options = ["-sS", "-m", "5", "--ciphers", "DEFAULT@SECLEVEL=0", "--capath", CERTIFICATES]
        shown = ["--cert", path, "--key", path, "-w", r"\n%{http_code}"]
        status, output = self.run("curl", *options, *shown, f"https://localhost:{self.port}{self.path}")
        answer, _newline, code = output.rpartition("\n")
        if status == 58:  # curl did not take it: others might
            mark = self.mark()
            lines = f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            answer = self.tls(self.port, path, lines.encode())
            code = (re.findall(r"^HTTP/1.1 (\d+)", answer, re.M) or ["000"])[0]
        if code == "200" and re.search(self.content, answer, re.M):
            return Verdict(ACCEPTED)
        if code in self.statuses and status != 7 and (refused := self.await_log(self.refusal, mark)):
            return Verdict(REFUSED, refused[0])
        return self.fail(f"{status}, {code}: {answer}")


class Nginx(XrdHttp):
    """nginx that wants a certificate, and curl."""

    name = "nginx"
    package = "nginx-light"
    good = "EEC"
    logs = "nginx.log"
    beside = None
    port = 9443
    path, content = "/", r"^CN=\w+,OU=workers,O=\w+,DC=dodas$"
    refusal = r"client SSL certificate verify error: \(\d+:[^)]*\)"
    statuses = ("400",)

    def start(self):
        (self.box.folder / "nginx.conf").write_text(
            f"""
            daemon off;
            master_process off;
            pid /run/nginx.pid;
            error_log stderr info;
            events {{}}
            http {{
              access_log off;
              server {{
                listen 127.0.0.1:{self.port} ssl;
                ssl_certificate {HERE}/host.crt;
                ssl_certificate_key {HERE}/host.key;
                ssl_client_certificate {HERE}/ca.pem;
                ssl_crl {HERE}/crl.pem;
                ssl_verify_client on;
                ssl_verify_depth 5;
                location / {{ return 200 "$ssl_client_s_dn\\n"; }}
              }}
            }}
            """,
            encoding="utf-8",
        )
        self.box.start(self.log, "nginx", "-e", "stderr", "-c", f"{HERE}/nginx.conf")


class HTCondor(Verifier):
    """A collector with the settings of role htcondor, and ``condor_ping`` with those of role worker."""

    name = "HTCondor"
    package = "condor"
    port = 9618
    state = "/var/lib/dodas/htcondor"

    def __init__(self, box):
        super().__init__(box)
        self.log = box.root / self.state[1:] / "log" / "CollectorLog"

    def start(self):
        folder = self.box.folder / "condor"
        folder.mkdir()
        self._render(folder)
        lax = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nCipherString = DEFAULT@SECLEVEL=0\n"
        (folder / "openssl.cnf").write_text(lax, encoding="utf-8")
        status, said = self.run("sh", "-c", f"""
            set -e
            install -d /etc/dodas/htcondor /etc/dodas/tls
            install -d -o condor -g condor {self.state} {self.state}/spool {self.state}/log {self.state}/execute
            install -d -o condor -g condor /run/condor /run/lock/condor
            cp {HERE}/condor/* /etc/dodas/htcondor
            cp {HERE}/host.crt /etc/dodas/htcondor/tls.crt
            cp {HERE}/host.key /etc/dodas/htcondor/tls.key
            cp {HERE}/ca.pem /etc/dodas/tls/ca.pem
            cp {HERE}/ca.pem {self.state}/ca.pem
        """)
        if status:
            self.fail(said)
        settings = {"_CONDOR_DAEMON_LIST": "MASTER COLLECTOR", "_CONDOR_COLLECTOR_DEBUG": "D_SECURITY"}
        output = self.box.folder / "condor.log"
        self.box.start(output, "condor_master", "-f", CONDOR_CONFIG="/etc/dodas/htcondor/condor_config", **settings)

    def _render(self, folder):
        """The roles' own templates, by Ansible."""
        variables = {
            "htcondor_deployment": DEPLOYMENT, "htcondor_hostname": "localhost", "htcondor_pool_domain": DEPLOYMENT,
            "htcondor_port": self.port, "worker_condor_host": f"localhost:{self.port}", "worker_hostname": "localhost",
            "worker_pool_domain": DEPLOYMENT, "worker_http_proxy": "",
        }  # fmt: skip
        made = {"condor_config": "htcondor/templates/condor_config.j2", "mapfile": "htcondor/templates/mapfile.j2",
                "worker_config": "worker/templates/condor_config.j2"}  # fmt: skip
        tasks = [
            {"ansible.builtin.template": {"src": str(ROOT / "roles" / template), "dest": str(folder / name)}}
            for name, template in made.items()
        ]
        play = {"hosts": "all", "connection": "local", "gather_facts": False, "tasks": tasks}
        files = ("htcondor/defaults", "htcondor/vars", "worker/defaults", "worker/vars")
        play["vars_files"] = [str(ROOT / "roles" / file / "main.yml") for file in files]
        (folder / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
        command = ["ansible-playbook", "-i", "localhost,", "-e", json.dumps(variables), folder / "play.yml"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            self.fail(f"the roles' settings: {done.stdout[-800:]}{done.stderr[-200:]}")

    def ask(self, path):
        mark = self.mark()
        status, output = self.run(
            "condor_ping", "-type", "COLLECTOR", "-verbose", "-debug", "WRITE", X509_USER_PROXY=path,
            CONDOR_CONFIG="/etc/dodas/htcondor/worker_config", _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS="SSL",
            _CONDOR_TOOL_DEBUG="D_SECURITY", OPENSSL_CONF="/etc/dodas/htcondor/openssl.cnf",
        )  # fmt: skip
        said = dict(re.findall(r"^([A-Z][\w ]*): +(\S.*)$", output, re.M))
        if status == 0 and said.get("Authorized") == "TRUE" and said.get("Authenticated using") == "SSL":
            if said.get("Remote Mapping") == f"worker@{DEPLOYMENT}":
                return Verdict(ACCEPTED)
            self.fail(f"maps to {said.get('Remote Mapping')}")
        if status and "Failed to authenticate using SSL" in output:
            ended = self.await_log(r"(.*)DC_AUTHENTICATE: required authentication of \S+ failed", mark)
            if ended and (reasons := re.findall(r"err \d+:.*|Failed to map .*", ended[1])):
                return Verdict(REFUSED, "\n".join(reasons))
            if reasons := re.findall(r"SSL Auth: Error .*", output):
                return Verdict(UNSENT, "\n".join(reasons))
        return self.fail(f"{status}: {output[-500:]}")


VERIFIERS = (OpenSSL, Globus, Voms, XRootD, XrdHttp, Nginx, HTCondor)

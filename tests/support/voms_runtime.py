# SPDX-License-Identifier: Apache-2.0
"""Debian's VOMS server with a database of its own, in network and process namespaces that end with this process.

The server listens on every address it sees, so it sees only the loopback interface of a namespace. The namespaces have
no name: they are gone with their last process, and their first one ends as soon as its standard input is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import names

CLONE_NEWNET = 0x40000000
TRIES = 5
SECONDS = 60
SCHEMA = Path("/usr/share/voms/voms-mysql.data")


def write_lsc(vomsdir: Path, vo: str, host: str, certificate: x509.Certificate) -> None:
    """Trust the attribute certificates that this server signs for a VO: its DN and that of its CA."""
    (vomsdir / vo).mkdir(parents=True, exist_ok=True)
    lines = f"{names.slash(certificate.subject)}\n{names.slash(certificate.issuer)}\n"
    (vomsdir / vo / f"{host}.lsc").write_text(lines)


class VomsServer:
    """One VO.

    credential: PEM file of the host ``localhost`` (certificate and key); certificates: the CA directory.
    vomsdir and vomses are what clients want to know of it.
    """

    def __init__(self, directory: Path, credential: Path, certificates: Path, vo: str = "cms"):
        self.vo, self.directory, self.certificates, self.credential = vo, directory, certificates, credential
        self.vomsdir, self.vomses, self.log = directory / "vomsdir", directory / "vomses", directory / "voms.log"
        self.uri, self.port = "localhost:15000", 15000  # nobody else is in the namespace
        self._processes: list[subprocess.Popen] = []
        self._voms: subprocess.Popen | None = None

    def start(self) -> None:
        """Returns when the server answers; what it says when it fails is in the error."""
        self.directory.mkdir(parents=True, exist_ok=True)
        certificate = x509.load_pem_x509_certificate(self.credential.read_bytes())
        write_lsc(self.vomsdir, self.vo, "localhost", certificate)
        # A socket's path must be short.
        self._scratch = Path(tempfile.mkdtemp(prefix="dodas-voms-", dir="/tmp"))
        try:
            self._make_namespaces()
            self._start_database()
            self.start_voms()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Nothing is left: the processes end with the first of their namespace."""
        for process in self._processes:
            process.kill() if process.stdin is None else process.stdin.close()
        for process in self._processes:
            process.wait(SECONDS)
        self._processes, self._voms = [], None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> VomsServer:
        self.start()
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()

    def start_voms(self) -> None:
        """Start the server on its database, again after stop_voms()."""
        self.port += 1  # the one before may be in use for a minute after connections that it closed
        certificate = x509.load_pem_x509_certificate(self.credential.read_bytes())
        line = [self.vo, "localhost", str(self.port), names.slash(certificate.subject), self.vo]
        self.vomses.write_text(" ".join(f'"{word}"' for word in line) + "\n")
        password = self._scratch / "password"
        password.write_text("not asked for\n")
        password.chmod(0o640)
        database = ["-sqlloc", "/usr/lib/voms/libvomsmysql.so", "-dbname", "voms", "-username", "voms"]
        database += ["-contactstring", "localhost", "-mysql-socket", str(self._socket), "-passfile", str(password)]
        host = ["-x509_cert_dir", str(self.certificates), "-x509_user_cert", str(self.credential)]
        host += ["-x509_user_key", str(self.credential)]
        options = ["-foreground", "-port", str(self.port), "-vo", self.vo, "-uri", self.uri]
        options += ["-logfile", str(self.log), "-loglevel", "3", "-timeout", "86400", "-newformat"]
        probe = [sys.executable, "-c", f"import socket; socket.create_connection(('localhost', {self.port})).close()"]
        for left in reversed(range(TRIES)):
            self._voms = self._spawn("voms", "voms", *options, *host, *database)
            try:
                self._wait_for(probe, self._voms, "voms.out")
                return
            except RuntimeError:
                # Once in a dozen starts this server ends at once, with status 0 and without a word.
                if self._voms.poll() != 0 or not left:
                    raise
                self._processes.remove(self._voms)

    def stop_voms(self) -> None:
        """An outage: the database stays."""
        subprocess.run(self._join("pkill", "-KILL", "-x", "voms"), check=True)
        self._voms.wait(SECONDS)
        self._processes.remove(self._voms)

    def add(self, dn: str, ca: str, groups: tuple[str, ...] = (), roles: dict[str, str] | None = None) -> None:
        """Make a member of the VO. groups: below it, such as ``/cms/uscms``; roles: {name: group}."""
        statements = [
            f"INSERT IGNORE INTO ca (ca) VALUES ('{ca}')",
            f"INSERT INTO usr (dn, ca) SELECT '{dn}', cid FROM ca WHERE ca = '{ca}'",
            "SET @user = LAST_INSERT_ID()",
        ]
        for group in (f"/{self.vo}", *groups):
            statements.append(f"INSERT IGNORE INTO `groups` (dn, parent, must) VALUES ('{group}', 1, 1)")
            statements.append(f"INSERT INTO m (userid, gid) SELECT @user, gid FROM `groups` WHERE dn = '{group}'")
        for role, group in (roles or {}).items():
            statements.append(f"INSERT IGNORE INTO roles (role) VALUES ('{role}')")
            statements.append(
                "INSERT INTO m (userid, gid, rid) SELECT @user, gid, rid FROM `groups`, roles "
                f"WHERE dn = '{group}' AND role = '{role}'"
            )
        self._sql(";\n".join(statements) + ";\n", "voms")

    def remove(self, dn: str) -> None:
        """Make somebody a member no longer."""
        self._sql(f"DELETE FROM usr WHERE dn = '{dn}';\n", "voms")

    @contextlib.contextmanager
    def inside(self):
        """In this thread, and in the processes that it starts, the network is that of the server."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as before, open(f"/proc/{self._first}/ns/net") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield self
            finally:
                if libc.setns(before.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")

    def _make_namespaces(self) -> None:
        script = "ip link set lo up && echo ready && read _"
        command = ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", script]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes.append(holder)
        if holder.stdout.readline() != "ready\n":
            raise RuntimeError("no network namespace: root is needed")
        holder.stdout.close()
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._first = int(children[0])

    def _join(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._first), "-n", "-p", "-m", *command]

    def _spawn(self, name: str, *command: str) -> subprocess.Popen:
        with open(self.directory / f"{name}.out", "ab") as out:
            process = subprocess.Popen(self._join(*command), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def _start_database(self) -> None:
        data, self._socket = self._scratch / "data", self._scratch / "socket"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)
        options = ["--no-defaults", f"--datadir={data}", f"--socket={self._socket}", "--user=root", "--skip-networking"]
        options += [f"--pid-file={self._scratch / 'pid'}", "--innodb-flush-log-at-trx-commit=0"]
        database = self._spawn("mariadb", "mariadbd", *options)
        self._wait_for([*self._client(), "-e", "SELECT 1"], database, "mariadb.out")
        self._sql("CREATE DATABASE voms; GRANT SELECT ON voms.* TO voms@localhost IDENTIFIED BY 'not asked for';\n")
        self._sql(SCHEMA.read_text(), "voms")
        self._sql(
            f"INSERT INTO `groups` VALUES (1, '/{self.vo}', 1, 1);\n"
            "INSERT INTO seqnumber VALUES ('00'); INSERT INTO version VALUES (2);\n",
            "voms",
        )

    def _client(self) -> list[str]:
        return ["mariadb", "--no-defaults", f"--socket={self._socket}", "--user=root"]

    def _sql(self, text: str, database: str = "") -> None:
        command = [*self._client(), *filter(None, [database])]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def _wait_for(self, probe: list[str], process: subprocess.Popen, output: str) -> None:
        deadline = time.monotonic() + SECONDS
        while subprocess.run(self._join(*probe), capture_output=True, timeout=SECONDS, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / output).read_text(errors="replace")
                raise RuntimeError(f"{output}: the server did not start\n{said[-2000:]}")
            time.sleep(0.05)


def environment(**more: str) -> dict[str, str]:
    """For foreign tools: nothing of the machine's own grid configuration."""
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C", **more}

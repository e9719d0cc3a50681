# SPDX-License-Identifier: Apache-2.0
"""A Mesos cluster on loopback: real ZooKeeper (Debian's package), the stand-ins of Mesos and Marathon as processes.

    with Zookeeper() as zookeeper, Masters(zookeeper, 3) as masters, Agent(masters, attributes="rack:r1") as agent:
        masters.leader().url                        # "http://127.0.0.1:PORT"
        call(masters.leader().url + "/state").json
        with Marathon(zookeeper, masters) as marathon:
            marathon.url

Tasks of these agents are plain processes (STANDIN_RUNTIME=process): `cmd` or `args` of the app, no container.
All listen on 127.0.0.1 on ports that are free at that moment; each keeps its files and its log in a folder below /tmp
that goes with it. Nothing is left running when a block ends. ZooKeeper's sessions end after 1 s here (what killed
programs held is seen gone then), where servers take 4 s and more by default.

With DODAS_MESOS_ARCHIVE (an archive of a real Mesos, or the folder that it was unpacked to) masters and agents are real
ones; what is below /standin/ is then not there, nor are tasks as processes.

As of real masters: when the leader and another one of three are killed, the survivor is elected, answers /health and
/state with 200, GET_AGENTS with 503, and dies when `registry_fetch_timeout` is over. When the two followers are killed,
the leader goes on as if nothing had happened, until it has to write its registry (an agent comes or goes; it dies
`registry_store_timeout` later); only the metric registrar/log/ensemble_size says that it is alone.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ports import free_port

STANDINS = Path(__file__).resolve().parents[1] / "standins"
ENVIRONMENT = Path("/etc/zookeeper/conf/environment")
DEADLINE = 30.0
REAL = os.environ.get("DODAS_MESOS_ARCHIVE", "")


def wait_for(question, what, deadline=DEADLINE, pause=0.05):
    """The first answer of `question` that is true; it may fail with OSError before. Raises TimeoutError with `what`."""
    end = time.monotonic() + deadline
    while True:
        with contextlib.suppress(OSError, ConnectionError):
            if answer := question():
                return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not in {deadline:.0f} s")
        time.sleep(pause)


class Answer:
    """What a server answered: status, headers, text, and json (None where it is none)."""

    def __init__(self, status, headers, content):
        self.status, self.headers, self.text = status, headers, content.decode("utf-8", "replace")
        try:
            self.json = json.loads(self.text)
        except ValueError:
            self.json = None

    def __repr__(self):
        return f"<{self.status} {self.text[:300]}>"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments):
        return None


def call(url, method=None, body=None, credentials=None, cafile=None, timeout=10.0, headers=None):
    """Ask a server; redirects are not followed. `body` is sent as JSON (bytes as they are); credentials: (user, word).

    Without a method it is GET, or POST where there is a body. Raises OSError when nobody answers.
    """
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, dict(headers or {}), method=method)
    if body is not None and not request.has_header("Content-type"):
        request.add_header("Content-Type", "application/json")
    if credentials:
        word = base64.b64encode(":".join(credentials).encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    handlers = [urllib.request.ProxyHandler({}), _NoRedirect]
    if cafile:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=cafile)))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as answer:
        with answer:
            return Answer(answer.code, answer.headers, answer.read())


class Program:
    """A program of a test with a folder of its own, which can be started again on the same folder."""

    def __init__(self, name, command, environment=None, port=0):
        self.name, self.command, self.port = name, [str(word) for word in command], port
        self.environment = {**os.environ, **(environment or {})}
        self.folder = Path(tempfile.mkdtemp(prefix=f"dodas-{name}-"))
        self.log = self.folder / "log"
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        return self

    def wait(self, deadline=DEADLINE):
        """Wait until it ends by itself; its status (negative: the signal that ended it)."""
        return self.process.wait(deadline)

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """Ask it to end, and end it when it does not."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def kill(self):
        """As a crash."""
        if self.running:
            self.process.kill()
            self.process.wait(10)

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def answers(self, path="/"):
        """Whether it answers at all; raises AssertionError with its log when it has ended instead."""
        assert self.running, f"{self.name} ended with {self.process.returncode}:\n{self.output()[-3000:]}"
        return call(self.url + path, timeout=3)


class _Group:
    """Programs that come and go together."""

    def __init__(self):
        self.programs = []

    def __enter__(self):
        try:
            for program in self.programs:
                program.start()
            self.ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception):
        for program in self.programs:
            if program.running:
                program.process.terminate()
        for program in self.programs:
            program.stop()
            program.remove()

    def __getitem__(self, index):
        return self.programs[index]

    def __len__(self):
        return len(self.programs)

    @property
    def alive(self):
        return [program for program in self.programs if program.running]

    def ready(self):
        """Wait until they work."""


class Zookeeper(_Group):
    """A ZooKeeper server, or an ensemble of `count`.

    hosts: "127.0.0.1:PORT[,...]"; a session ends at least 1 s and at most 60 s after its client was last heard of.
    """

    def __init__(self, count=1):
        super().__init__()
        ports = [(free_port(), free_port(), free_port()) for _ in range(count)]
        self.hosts = ",".join(f"127.0.0.1:{client}" for client, _, _ in ports)
        for number, (client, _, _) in enumerate(ports, 1):
            program = Program(f"zookeeper-{number}", [], port=client)
            self.programs.append(program)
            settings = [
                "tickTime=500", "initLimit=20", "syncLimit=10", "maxSessionTimeout=60000", "maxClientCnxns=0",
                f"dataDir={program.folder}/data", f"clientPort={client}", "clientPortAddress=127.0.0.1",
                "admin.enableServer=false", "4lw.commands.whitelist=*",
            ]  # fmt: skip
            if count > 1:
                settings += [f"server.{i}=127.0.0.1:{peer}:{vote}" for i, (_, peer, vote) in enumerate(ports, 1)]
            (program.folder / "data").mkdir()
            (program.folder / "data" / "myid").write_text(f"{number}\n")
            (program.folder / "zoo.cfg").write_text("\n".join(settings) + "\n")
            program.command = [
                "java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true",
                "-Dzookeeper.jmx.log4j.disable=true", "-cp", classpath(),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(program.folder / "zoo.cfg"),
            ]  # fmt: skip

    def ready(self):
        for program in self.programs:
            wait_for(lambda program=program: "Mode: " in self.word(program, b"srvr"), f"{program.name} serves")

    @staticmethod
    def word(program, word):
        """The answer to a four-letter word; raises AssertionError when the server has ended."""
        assert program.running, f"{program.name} ended:\n{program.output()[-3000:]}"
        with socket.create_connection(("127.0.0.1", program.port), 3) as connection:
            connection.sendall(word)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def url(self, path):
        """zk://HOSTS/PATH, as flags of Mesos and Marathon want it."""
        return f"zk://{self.hosts}/{path.strip('/')}"


def classpath():
    """Where the packaged server's classes are, as its own start script knows; without its settings for logs."""
    found = re.search(r'^CLASSPATH="?([^"\n]+)', ENVIRONMENT.read_text(), re.M)
    return ":".join(part for part in found.group(1).split(":") if part.endswith(".jar"))


def flag_words(flags):
    """Command line words of flags given as Python names and values: True is --name, False --no-name."""
    switches = {True: "--{}", False: "--no-{}"}
    return [
        switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
        for name, value in flags.items()
    ]


class Masters(_Group):
    """`count` masters; `quorum` is more than half of them unless it is given. `flags` go to each of them.

    zk: "zk://.../mesos"; asks: credentials to find the leader with, where HTTP needs them
    """

    def __init__(self, zookeeper, count=1, quorum=None, asks=None, **flags):
        super().__init__()
        self.zookeeper, self.quorum, self.asks = zookeeper, quorum or count // 2 + 1, asks
        self.zk = zookeeper.url("mesos")
        self.flags = flags
        for number in range(1, count + 1):
            port = free_port()
            program = Program(f"mesos-master-{number}", [], real_environment(), port=port)
            program.command = standin("mesos-master", **{
                "ip": "127.0.0.1", "hostname": "127.0.0.1", "port": port, "zk": self.zk, "quorum": self.quorum,
                "work_dir": program.folder / "work", "zk_session_timeout": "2secs", **real_flags("webui_dir"), **flags,
            })  # fmt: skip
            self.programs.append(program)

    def ready(self):
        self.leader()

    def leading(self):
        """The master that leads and has recovered its registry, or None."""
        for program in self.alive:
            with contextlib.suppress(OSError):
                if REAL:
                    if call(f"{program.url}/api/v1", body={"type": "GET_AGENTS"}, credentials=self.asks).status == 200:
                        return program
                    continue
                elected = call(f"{program.url}/standin/leader", timeout=3).json
                if elected["leads"] and elected["recovered"]:
                    return program
        return None

    def leader(self, deadline=DEADLINE):
        """The leading master; waits until there is one that has recovered."""

        def leading():
            assert self.alive, f"no master runs:\n{self.programs[0].output()[-3000:]}"
            return self.leading()

        return wait_for(leading, "a master leads", deadline)

    def v1(self, kind, credentials=None, program=None, **body):
        """Ask the leader (or another master) a call of the operator's API: v1("GET_AGENTS")."""
        program = program or self.leader()
        return call(f"{program.url}/api/v1", body={"type": kind, **body}, credentials=credentials)


class Agent(_Group):
    """An agent of `masters` (or of a text for --master). Its resources do not depend on the machine.

    `flags` as on the command line; `environment` is added to its own.
    """

    def __init__(self, masters, environment=None, wait=True, **flags):
        super().__init__()
        self.masters, self.wait = masters, wait
        port = free_port()
        ours = {"STANDIN_RUNTIME": "process", **real_environment(), **(environment or {})}
        self.program = Program("mesos-agent", [], ours, port=port)
        self.programs.append(self.program)
        self.flags = {
            "ip": "127.0.0.1", "hostname": "127.0.0.1", "port": port, "work_dir": self.program.folder / "work",
            "runtime_dir": self.program.folder / "run", "master": getattr(masters, "zk", masters),
            "launcher": "posix", "systemd_enable_support": False,
            "containerizers": "mesos" if REAL else "mesos,docker", **real_flags("launcher_dir"),
            "resources": "cpus:2;mem:512;disk:500;ports:[31000-31099]", "executor_shutdown_grace_period": "2secs",
            "zk_session_timeout": "2secs", **flags,
        }  # fmt: skip
        self.set()

    def set(self, **flags):
        """Other flags, from its next start on."""
        self.flags.update(flags)
        self.program.command = standin("mesos-agent", **self.flags)

    @property
    def url(self):
        return self.program.url

    @property
    def id(self):
        """Its id, once it is registered."""
        return call(f"{self.url}/state").json["id"]

    def start(self):
        self.program.start()
        self.ready()

    def ready(self):
        if self.wait:
            wait_for(lambda: self.program.answers("/state").json.get("id"), "the agent is registered")

    def __exit__(self, *exception):
        # As a real one's, its tasks do not end with it.
        self.program.stop()
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.program.folder).encode() in line.read_bytes():
                    os.killpg(int(line.parent.name), signal.SIGKILL)
        super().__exit__(*exception)

    def tasks(self):
        return call(f"{self.url}/standin/tasks").json


class Marathon(_Group):
    """`count` instances of Marathon for `masters`; the first to answer leads.

    tls: (certificate file, key file, CA file) of its servers; credentials: "user:password". `flags` go to each
    instance; ssl_keystore_path among them takes the place of the first two files.
    """

    def __init__(self, zookeeper, masters, count=1, tls=None, credentials="", **flags):
        super().__init__()
        self.credentials = tuple(credentials.split(":", 1)) if credentials else None
        self.cafile = str(tls[2]) if tls else None
        self.scheme = "https" if tls else "http"
        given = {"http_credentials": credentials} if credentials else {}
        for number in range(1, count + 1):
            port = free_port()
            program = Program(f"marathon-{number}", [], port=port)
            ports = {"https_port": port, "disable_http": True} if tls else {"http_port": port}
            pem = tls and "ssl_keystore_path" not in flags
            files = {"standin_tls_certificate": tls[0], "standin_tls_key": tls[1]} if pem else {}
            settings = {
                "master": masters.zk, "zk": zookeeper.url("marathon"), "hostname": "127.0.0.1",
                "http_address": "127.0.0.1", "https_address": "127.0.0.1", "zk_session_timeout": 2000,
                **ports, **files, **given, **flags,
            }  # fmt: skip
            program.command = standin("marathon", folder="marathon", **settings)
            self.programs.append(program)

    def url_of(self, program):
        return f"{self.scheme}://127.0.0.1:{program.port}"

    @property
    def urls(self):
        return [self.url_of(program) for program in self.programs]

    @property
    def url(self):
        """Of the first that runs."""
        return self.url_of(self.alive[0])

    def call(self, path, method=None, body=None, program=None, **others):
        """Ask an instance (the first that runs); see `call`."""
        url = self.url_of(program) if program else self.url
        return call(url + path, method, body, credentials=self.credentials, cafile=self.cafile, **others)

    def leading(self):
        """The instance that leads, or None."""
        with contextlib.suppress(OSError):
            name = (self.call("/v2/leader").json or {}).get("leader", "")
            for program in self.alive:
                if name.endswith(f":{program.port}"):
                    return program
        return None

    def leader(self, deadline=DEADLINE):
        return wait_for(self.leading, "an instance of Marathon leads", deadline)

    def ready(self):
        for program in self.programs:

            def answers(program=program):
                assert program.running, f"{program.name} ended:\n{program.output()[-3000:]}"
                return self.call("/ping", program=program, timeout=3).status == 200

            wait_for(answers, f"{program.name} answers")
        self.leader()


def standin(program, /, folder="mesos", **flags):
    """The command that runs a stand-in's program from this repository, or the real one where that is given."""
    if REAL and folder == "mesos":
        return [str(real_tree() / "bin" / program), *flag_words(flags)]
    return [sys.executable, str(STANDINS / folder / "bin" / program), *flag_words(flags)]


@functools.cache
def real_tree():
    """The folder of the real Mesos that DODAS_MESOS_ARCHIVE names."""
    if os.path.isdir(REAL):
        return Path(REAL).absolute()
    folder = Path(tempfile.mkdtemp(prefix="dodas-mesos-real-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(REAL) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def real_environment():
    """What the real programs need besides."""
    return {"LD_LIBRARY_PATH": str(real_tree() / "lib")} if REAL else {}


def real_flags(name):
    """Where the real programs find their own files: `launcher_dir` or `webui_dir`."""
    places = {"launcher_dir": "libexec/mesos", "webui_dir": "share/mesos/webui"}
    return {name: real_tree() / places[name]} if REAL else {}


def freeze(program):
    """The program answers no more, but its connections stay; `thaw` ends that."""
    program.signal(signal.SIGSTOP)


def thaw(program):
    program.signal(signal.SIGCONT)

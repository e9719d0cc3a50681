# SPDX-License-Identifier: Apache-2.0
"""A real Consul on loopback, with the access control that role consul sets up.

    with Consul(tmp_path) as consul:          # one server; Consul(tmp_path, servers=3): three
        consul.url, consul.dns_port           # of the first agent; consul.agents has all of them
        consul.tokens["registrator"]          # UUIDs by use, as in consul_tokens
        consul.token_file("registrator")      # a file of mode 0600 that holds one
        consul.call("GET", "/v1/catalog/services", token="balancer")  # token: the use; management by default
        consul.agents[0].kill(), .start()     # what it knows is on disk

With acl=False nobody needs a token. The program is the one installed, or Debian's, unpacked from its package.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import yaml

from ansible_collections.dodas.cluster.plugins.module_utils import consul as client
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bullseye"  # the last of Debian that has Consul
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
START_SECONDS = 30


def policies():
    """Rules by use, as role consul gives them."""
    return yaml.safe_load((ROOT / "roles/consul/vars/main.yml").read_text(encoding="utf-8"))["_consul_policies"]


def program():
    """Path of a real Consul. Raises RuntimeError where there is none to be had."""
    installed = shutil.which("consul")
    if installed:
        return installed
    cache = os.environ.get("DODAS_CACHE") or ("/var/cache/dodas" if os.geteuid() == 0 else Path.home() / ".cache/dodas")
    target = Path(cache, "tests", f"consul-{SUITE}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                _unpack(Path(work))
                os.rename(f"{work}/files/usr/bin/consul", target)
    return str(target)


def _unpack(work):
    """Unpack Debian's package below `work`/files; lists and package come from where the machine's do."""
    shown = _apt("indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages").splitlines()
    mirrors = [line.split()[2] for line in shown if line.startswith("Debian ") and "-" not in line.split()[1]]
    if not mirrors:
        raise RuntimeError("apt knows no mirror of Debian's that could have Consul; install consul")
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirrors[0]} {SUITE} main\n")
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    options = [
        f"Dir::Etc::SourceList={work}/sources.list", "Dir::Etc::SourceParts=-", f"Dir::State::Lists={work}/lists",
        f"Dir::Cache={work}/cache", "Acquire::Check-Valid-Until=false", "APT::Sandbox::User=root",
    ]  # fmt: skip
    options = [word for option in options for word in ("--option", option)]
    _apt(*options, "update")
    _apt(*options, "download", "consul", folder=work)
    package = next(work.glob("consul_*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package, work / "files"], check=True, timeout=60)


def _apt(*words, folder=None):
    environment = {**os.environ, "LC_ALL": "C"}
    command = ["apt-get", "--quiet=2", *words]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


class Agent:
    """One server of the cluster, a process. Attributes: name, url, port, dns_port, process, log (path)."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.port, self.dns_port, self.gossip_port, self.rpc_port = (free_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self.process = None

    def configure(self, peers, tokens):
        """Write its configuration; peers: all servers, tokens: by use, empty for no access control."""
        access = {"enabled": True, "default_policy": "deny", "down_policy": "extend-cache",
                  "tokens": {"master": tokens["management"], "agent": tokens["management"],
                             "agent_master": tokens["agent"], "default": tokens["dns"]}
                  } if tokens else {"enabled": False}  # fmt: skip
        config = {
            "node_name": self.name, "server": True, "bootstrap_expect": len(peers),
            "data_dir": str(self.folder / "data"), "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
            "retry_interval": "1s", "leave_on_terminate": False,
            "retry_join": [f"127.0.0.1:{one.gossip_port}" for one in peers if one is not self],
            "ports": {"http": self.port, "dns": self.dns_port, "serf_lan": self.gossip_port, "server": self.rpc_port,
                      "serf_wan": -1, "https": -1, "grpc": -1},
            "performance": {"raft_multiplier": 1}, "disable_update_check": True, "log_level": "WARN", "acl": access,
            "enable_local_script_checks": True,
        }  # fmt: skip
        path = self.folder / "consul.json"
        path.touch(0o600)
        path.write_text(json.dumps(config))

    def start(self):
        """Start it; who needs a leader waits for one (Consul.wait)."""
        if self.process is None:
            command = [program(), "agent", f"-config-file={self.folder / 'consul.json'}"]
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self):
        """As systemd stops it."""
        self._end(signal.SIGINT)

    def kill(self):
        """As a crash."""
        self._end(signal.SIGKILL)

    def _end(self, number):
        if self.process:
            self.process.send_signal(number)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
            self.process = None


class Consul:
    """The servers of a cluster in `folder`, started by `with`; `uses`: rules by use where the role's do not serve."""

    def __init__(self, folder, servers=1, acl=True, uses=None):
        self.folder = Path(folder)
        self.uses = {**policies(), **(uses or {})} if acl else {}
        self.tokens = {name: str(uuid.uuid4()) for name in ("management", *self.uses)} if acl else {}
        self.agents = []
        for i in range(servers):
            place = self.folder / f"consul-{i + 1}"
            place.mkdir(parents=True, mode=0o700)
            self.agents.append(Agent(place, f"server-{i + 1}"))
        for one in self.agents:
            one.configure(self.agents, self.tokens)

    @property
    def url(self):
        return self.agents[0].url

    @property
    def port(self):
        return self.agents[0].port

    @property
    def dns_port(self):
        return self.agents[0].dns_port

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Start all servers, wait for a leader, and give out the tokens."""
        for one in self.agents:
            one.start()
        self.wait()
        if self.tokens:
            access = self.access()
            access.wait(START_SECONDS)
            access.apply(access.steps())
            for one in self.agents:
                self._wait_for(one, self._takes_tokens)

    def kill(self):
        for one in self.agents:
            one.kill()

    def access(self):
        """The grants, as module consul_acl knows them."""
        grants = [client.Grant(name, rules, self.tokens[name]) for name, rules in self.uses.items()]
        return client.Access(client.Consul(self.url, self.tokens["management"]), grants)

    def wait(self, agent=None):
        """Wait until the agent, the first one by default, has a leader that answers."""
        self._wait_for(agent or self.agents[0], lambda one: self.call("GET", "/v1/catalog/nodes", agent=one))

    def call(self, method, path, body=None, token="management", agent=None):
        """What Consul answered; token: the use whose token is sent, None for none. Raises client.ConsulError."""
        sent = self.tokens.get(token, "") if token else ""
        return client.Consul((agent or self.agents[0]).url, sent).call(method, path, body)

    def token_file(self, use):
        """Path of a file that holds the token, as services find it."""
        path = self.folder / f"{use}.token"
        path.touch(0o600)
        path.write_text(f"{self.tokens[use]}\n")
        return path

    def log(self):
        """All that the servers have printed."""
        return "".join(one.log.read_text(errors="replace") for one in self.agents if one.log.exists())

    def _takes_tokens(self, agent):
        uses = [name for name in self.tokens if name != "management"]
        return all(self.call("GET", "/v1/acl/token/self", token=name, agent=agent) for name in uses)

    def _wait_for(self, agent, condition):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if condition(agent):
                    return
                problem = "not in time"
            except client.ConsulError as exc:
                problem = str(exc)
            ended = agent.process is None or agent.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{agent.name}: {'it ended' if ended else problem}\n{self.log()[-3000:]}")
            time.sleep(0.05)

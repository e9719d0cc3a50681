# SPDX-License-Identifier: Apache-2.0
"""What a newcomer does, through the command line, on one cluster that all files here share."""

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from guests import Guests

ROOT = Path(__file__).parents[3]
ORDER = (
    "bad_input", "newcomer", "job_images", "lifetimes", "trust", "access", "faults", "place", "interrupted",
    "two_instances", "gone",
)  # fmt: skip
PYTHON = "PYTHONPATH=/opt/dodas/src:/opt/dodas/collections"
# Values that change whatever one does, and those of interfaces, which come and go with these.
COUNTERS = re.compile(
    r"fs/(dentry-state|file-nr|inode-nr|inode-state|aio-nr|quota/.*|epoll/.*)|net/netfilter/.*|.*/(neigh|conf)/(veth|podman).*"
    r"|kernel/(random/.*|ns_last_pid|pty/nr|perf_event_max_sample_rate|.*_next_id)|net/ipv[46]/route/.*|net/ipv4/tcp_mem|sunrpc/.*"
)


def pytest_collection_modifyitems(items):
    """Bad input before there is a cluster; and that nothing is left is seen last."""
    here = {item: i for i, item in enumerate(items) if item.path.parent == Path(__file__).parent}
    if here:
        ours = sorted(here, key=lambda item: (ORDER.index(item.path.stem.removeprefix("test_")), here[item]))
        for place, item in zip(sorted(here.values()), ours, strict=True):
            items[place] = item


def wait_for(condition, seconds, what):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)
    return found


class Dodas:
    """The command line, with a home of its own."""

    root = ROOT

    def __init__(self, home):
        self.home = home

    def environment(self, **more):
        return {**os.environ, "DODAS_HOME": str(self.home), **{key: str(value) for key, value in more.items()}}

    def __call__(self, *arguments, status=0, timeout=300, **more):
        """Run it; its output. `status`: how it must end, None for however."""
        done = subprocess.run(
            [ROOT / "dodas", *arguments], env=self.environment(**more), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert status in (None, done.returncode), f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments, **options):
        return json.loads(self(*arguments, "--json", **options).stdout)

    def start(self, *arguments):
        """Start it in a session of its own."""
        return subprocess.Popen(
            [ROOT / "dodas", *arguments], env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def podman(self, *arguments):
        """What is in the store of the hosts."""
        podman = Podman(self.home)
        podman.configure()
        return podman.run(*arguments)


class Cluster:
    """A deployment, and its hosts."""

    def __init__(self, dodas, name, front="front-1"):
        self.dodas, self.name, self.front = dodas, name, front

    def run(self, host, command, data=None, check=True):
        """What a shell command printed on a host."""
        arguments = [ROOT / "dodas", "ssh", "--name", self.name, host, command]
        done = subprocess.run(arguments, env=self.dodas.environment(), input=data or "", capture_output=True, text=True,
                              timeout=120, check=False)  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def condor(self, command):
        return self.run(self.front, f"podman exec -u dodas dodas-htcondor {command}")

    def slots(self):
        return self.condor("condor_status -const 'SlotType==\"Partitionable\"' -af Name").split()

    def apps(self, host):
        """Container and time of its start, by app."""
        shape = "{{.Names}} {{.ID}} {{.StartedAt}}"
        return dict(line.split(maxsplit=1) for line in self.run(host, f"podman ps --format '{shape}'").splitlines())

    def submit(self, folder, jobs, seconds):
        """Submit jobs that sleep; HTCondor's number of them."""
        folder.mkdir()
        (folder / "job.yaml").write_text("submit: sleep.sub\n", encoding="utf-8")
        (folder / "sleep.sub").write_text(
            f"executable = /bin/sleep\ntransfer_executable = False\narguments = {seconds}\nlog = sleep.log\n"
            f"request_cpus = 1\nrequest_memory = 64\nqueue {jobs}\n",
            encoding="utf-8",
        )
        return self.dodas.json("submit", str(folder), "--name", self.name)["cluster"]

    def running(self, batch):
        """Hosts that run jobs of the batch, one entry a job."""
        found = self.condor(f"condor_q {batch} -const JobStatus==2 -af RemoteHost")
        return re.findall(r"^\w+@([a-z0-9-]+)", found, re.M)

    def finished(self, batch):
        """How many jobs of the batch ended well; all others are still in the queue."""
        ended = self.condor(f"condor_history {batch} -af ExitCode").split()
        assert set(ended) <= {"0"}
        return len(ended)


class Machine:
    """Everything on this machine that a deployment could leave behind."""

    def __init__(self, home):
        self.found = {
            "containers": _lines("podman", "ps", "--all", "--external", "--format", "{{.Names}}"),
            "networks": _lines("podman", "network", "ls", "--format", "{{.Name}}"),
            "volumes": _lines("podman", "volume", "ls", "--quiet"),
            "mounts": {line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()},
            "network namespaces": _lines("ip", "netns"),
            "links": {line.split()[0].partition("@")[0] for line in _lines("ip", "-br", "link")},
            "routes": _lines("ip", "route"),
            "iptables": {re.sub(r"\[\d+:\d+\]", "", one) for one in _lines("iptables-save") if not one.startswith("#")},
            "nft": {line.split("packets")[0].strip() for line in _lines("nft", "list", "ruleset")},
            "files": {str(path) for path in Path(home).rglob("*")} if Path(home).exists() else set(),
            "runtime files": {str(path) for path in _runtime(home) if path.exists()},
            "processes": _processes(),
        }
        self.sysctls = _sysctls()

    def added_since(self, before):
        """What is here now and was not: {kind: {name, ...}}."""
        added = {kind: found - before.found[kind] for kind, found in self.found.items()}
        changed = {name for name, value in before.sysctls.items() if self.sysctls.get(name) != value}
        return {kind: names for kind, names in {**added, "sysctls": changed}.items() if names}


def _lines(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return set(done.stdout.splitlines())


def _runtime(home):
    """Locks, podman's runtime directory, and sockets of connections that are kept open."""
    names = [hashlib.sha256(bytes(home / "deployments" / name)).hexdigest()[:8] for name in ("e2e", "e2e2")]
    run = Path("/run/dodas")
    return [*run.glob("*-e2e*"), Podman(home).run_dir, *(run / "ssh" / name for name in names)]


def _sysctls():
    found = {}
    for path in Path("/proc/sys").rglob("*"):
        name = str(path.relative_to("/proc/sys"))
        if not COUNTERS.fullmatch(name):
            try:
                found[name] = path.read_text(encoding="utf-8") if path.is_file() else ""
            except (OSError, UnicodeDecodeError):
                continue
    return found


def _processes():
    """Processes of this machine, not of a container in it, that make, watch or reach containers."""
    found = set()
    ours = os.stat("/proc/self/ns/pid").st_ino
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.with_name("ns").joinpath("pid").stat().st_ino != ours:
                continue
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if re.search(rb"conmon|aardvark|podman|crun|ansible|ssh", words[0] + b" ".join(words[1:2])):
            found.add(f"{path.parts[2]} {b' '.join(words).decode(errors='replace')[:100]}")
    return found


@pytest.fixture
def cluster_of(dodas):
    """The cluster of a name."""
    return lambda name: Cluster(dodas, name)


@pytest.fixture
def eventually():
    """`wait_for`, for the files here."""
    return wait_for


@pytest.fixture(scope="session")
def dodas(tmp_path_factory):
    """The command line, with a new home; what is left of it in the end is removed."""
    if os.geteuid() != 0:
        pytest.skip("hosts that run systemd need root")
    dodas = Dodas(tmp_path_factory.mktemp("newcomer") / "home")
    dodas("images", "--yes")  # the first command of all makes the environment, and says so
    yield dodas
    for one in dodas.json("list"):
        dodas("down", "--name", one["name"], status=None)


@pytest.fixture(scope="session")
def before(dodas):
    """The machine before the first deployment."""
    return Machine(dodas.home)


@pytest.fixture(scope="session")
def e2e(dodas, before):
    """A cluster from nothing."""
    report = dodas.json("up", "--yes", "--name", "e2e", timeout=900)
    assert report["complete"], report
    return Cluster(dodas, "e2e")


class Watch(threading.Thread):
    """Asks the collector every two seconds when it last heard from a startd, and since when that runs."""

    def __init__(self, cluster, name):
        super().__init__(daemon=True)
        self.ages, self.starts = [], set()
        self._ask = lambda: cluster.condor(f"condor_status -const 'Machine != \"\" && regexp(\"{name}\", Name)' "
                                           "-af 'time() - LastHeardFrom' DaemonStartTime")  # fmt: skip
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(2):
            found = self._ask().split()
            self.ages.append(int(found[0]) if found else 10**6)
            self.starts.update(found[1:2])

    def stop(self):
        self._over.set()
        self.join(60)


class ShortLived:
    """A worker next to another, with proxies that last for a minute."""

    LIFETIME = 60
    NAME = "short-lived"

    def __init__(self, cluster):
        self.cluster = cluster
        self.guests = Guests(cluster, "worker-1", "/var/lib/dodas-short", 9750)
        settings = json.loads(cluster.run("worker-1", "cat /etc/dodas/worker/renew.json"))
        folder = f"{self.guests.folder}/{self.NAME}"
        settings |= {"output": f"{folder}/proxy.pem", "lifetime": self.LIFETIME}
        settings |= {"ca_output": f"{folder}/ca.pem", "ca_directory": f"{folder}/certificates"}
        renew = f"exec /usr/bin/env {PYTHON} python3 -m dodas.credentials.renew --config {folder}/renew.json\n"
        self.guests.start(
            self.NAME, files={"renew.json": json.dumps(settings), "renew": renew}, DAEMON_LIST="MASTER STARTD RENEW",
            RENEW="/bin/sh", RENEW_ARGS=f"{folder}/renew", START="TARGET.ShortLived =?= True", ShortLivedHost="True",
            STARTD_ATTRS="$(STARTD_ATTRS) ShortLivedHost", MASTER_BACKOFF_CONSTANT="1",
        )  # fmt: skip
        self.path = settings["output"]
        self.began = time.monotonic()
        wait_for(lambda: [slot for slot in cluster.slots() if self.NAME in slot], 60, "it joined the pool")
        [self.slot] = [slot for slot in cluster.slots() if self.NAME in slot]
        self.watch = Watch(cluster, self.NAME)
        self.watch.start()

    def proxy_life(self):
        """Seconds that its proxy lasts now."""
        command = f"date -d \"$(openssl x509 -noout -enddate -in {self.path} | cut -d= -f2)\" +%s; date +%s"
        end, now = map(int, self.cluster.run("worker-1", command).split())
        return end - now

    def issued(self):
        """What the service recorded of its proxies."""
        lines = self.cluster.run("front-1", "cat /var/lib/dodas/credentials/audit.log").splitlines()
        records = [json.loads(line) for line in lines]
        return [one for one in records if one["decision"] == "issued" and one["sub"] == "worker-1"]


@pytest.fixture(scope="session")
def short_lived(e2e):
    """A worker whose proxy is renewed every half minute, from the first test that asks for it."""
    made = ShortLived(e2e)
    yield made
    made.watch.stop()
    made.guests.stop()

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
from clusters import Cluster, Dodas, wait_for
from guests import Guests

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

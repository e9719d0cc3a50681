# SPDX-License-Identifier: Apache-2.0
"""A Mesos cluster on this machine, which all files here share: three masters, two agents, two balancers.

Mesos and Marathon are the stand-ins of tests/standins, unless DODAS_MESOS_ARCHIVE and DODAS_MARATHON_ARCHIVE are the
paths of real ones. Everything else is real. With DODAS_TEST_KEEP=FOLDER the cluster is there when the tests have ended,
and the next ones find it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.mesos import cluster as mesos
from ansible_collections.dodas.cluster.plugins.module_utils.mesos.client import Masters
from clusters import ROOT, Cluster, Dodas, wait_for

ORDER = ("mesos_inventory", "mesos_bad_input", "mesos_cluster", "mesos_real", "mesos_faults", "mesos_gone")
NAME = "cms"
TEMPLATE = str(ROOT / "templates/cms-mesos.yaml")
# Two agents on one machine offer more than this has, so that six workers have a place.
SIZES = {"agent_cpus": 8, "agent_memory_mb": 8192, "squid_cache_mb": 256, "worker_scratch_mb": 64}
MASTERS = ("master-1", "master-2", "master-3")
AGENTS = ("agent-1", "agent-2")
BALANCERS = ("balancer-1", "balancer-2")
MEASURED = []
KEEP = os.environ.get("DODAS_TEST_KEEP")


def pytest_collection_modifyitems(items):
    """Bad input before there is a cluster, and that nothing is left is seen last."""
    here = {item: i for i, item in enumerate(items) if item.path.parent == Path(__file__).parent}
    ours = sorted(here, key=lambda item: (ORDER.index(item.path.stem.removeprefix("test_")), here[item]))
    for place, item in zip(sorted(here.values()), ours, strict=True):
        items[place] = item


def pytest_terminal_summary(terminalreporter):
    if MEASURED:
        terminalreporter.section("measured on the Mesos cluster")
        for what, seconds in MEASURED:
            terminalreporter.write_line(f"{seconds:7.1f} s  {what}")


@pytest.fixture
def measured():
    """Notes how many seconds something took, for the end of the report."""
    return lambda what, seconds: MEASURED.append((what, seconds))


class MesosCluster(Cluster):
    """The deployment. What has its data on a host is on the first agent, the rest where Marathon has put it."""

    masters, agents, balancers = MASTERS, AGENTS, BALANCERS

    def __init__(self, dodas, name, report):
        super().__init__(dodas, name, AGENTS[0])
        self.report = report  # of the first `up`
        self.addresses = {host: one["address"] for host, one in report["hosts"].items()}
        state = dodas.home / "deployments" / name
        self.secrets = json.loads((state / "secrets.json").read_text(encoding="utf-8"))
        self.pki = state / "pki"

    # Commands

    def up(self, *options, **more):
        return self.dodas.json("up", "--name", self.name, *options, timeout=1200, **more)

    def scale(self, workers):
        return self.dodas.json("scale", f"workers={workers}", "--name", self.name, timeout=1200)

    def status(self):
        return self.dodas.json("status", "--name", self.name, status=None)

    def is_complete(self):
        return self.status()["complete"]

    # Apps

    def execute(self, app, command, user="root", host=AGENTS[0]):
        """What a shell command printed in the container of an app on a host."""
        found = f'"$(podman ps --quiet --filter label=dodas.app={app} | head -n 1)"'
        return self.run(host, f"podman exec --user {user} {found} sh -c {shlex.quote(command)}")

    def condor(self, command):
        return self.execute("htcondor", command, user="dodas")

    def tasks(self, app=None):
        """Ids of the tasks that Marathon has, and the hosts where they are, of one app or of all."""
        found = self.marathon("/v2/tasks")["tasks"]
        return {one["id"]: one["host"].removesuffix(".node.consul") for one in found if app in (None, one["appId"])}

    def marathon(self, path, method="GET", body=None, host=MASTERS[0]):
        """What Marathon answers to who asks on a host."""
        data = "--header 'Content-Type: application/json' --data-binary @-" if body is not None else ""
        printed = self.run(
            host,
            "curl --silent --show-error --fail-with-body --cacert /etc/dodas/tls/ca.pem "
            f"--config <(sed 's/.*/user = \"&\"/' /etc/dodas/marathon/api) --request {method} {data} "
            f"https://marathon.service.consul:8443{shlex.quote(path)}",
            data=None if body is None else json.dumps(body),
        )
        return json.loads(printed) if printed else None

    # Mesos, asked from here: it takes a moment, and `status` some seconds

    def password(self, use):
        """As the playbooks make it of the deployment's secret."""
        return hashlib.sha256((self.secrets["mesos"] + use).encode()).hexdigest()

    def mesos(self):
        masters = [f"{self.addresses[host]}:5050" for host in MASTERS]
        return mesos.look(Masters(masters, "operator", self.password("operator")))

    def leader(self):
        """The host of the leading master; None while there is none."""
        address = self.mesos()["leader"].partition(":")[0]
        return next((host for host in MASTERS if self.addresses[host] == address), None)

    def agent(self, host):
        """An agent as the leading master knows it; None when it knows none that is there."""
        found = self.mesos()["agents"]
        return next((one for one in found if one["hostname"] == f"{host}.node.consul" and one["active"]), None)

    # Balancers

    def virtual_address(self):
        return self.addresses[BALANCERS[0]].rpartition(".")[0] + ".250"

    def holder(self):
        """The balancer that has the virtual address."""
        shown = {host: self.run(host, "ip -4 -oneline address") for host in BALANCERS}
        holders = [host for host, text in shown.items() if f" {self.virtual_address()}/" in text]
        assert len(holders) == 1, shown
        return holders[0]

    # Faults

    def kill(self, host, *units):
        """End services without a word, and keep them from coming back."""
        names = " ".join(units)
        self.run(host, f"systemctl kill --kill-whom=main --signal=KILL {names}; systemctl stop {names}")

    def start(self, host, *units):
        self.run(host, f"systemctl reset-failed {' '.join(units)}; systemctl start {' '.join(units)}")

    def all_run(self, batch, workers):
        """Each of so many workers runs a job of the batch; if not, the pool says why."""
        try:
            wait_for(lambda: len(set(self.running(batch))) == workers, 90, "each worker runs a job")
        except AssertionError as exc:
            schedd = "grep -v QmgmtPeer /var/lib/dodas/htcondor/log/SchedLog | tail -n 25"
            startd = "tail -n 12 /var/lib/dodas/worker/log/StartLog"
            said = [self.condor(f"condor_q -better-analyze {batch}")[-1500:], self.condor("condor_status -wide")]
            said += [self.execute("htcondor", schedd)]
            said += [self.execute("worker", startd, host=host) for host in set(self.tasks("/dodas/worker").values())]
            raise AssertionError("\n".join([str(exc), *said])) from exc

    @contextlib.contextmanager
    def nothing_lost(self, folder, jobs=2, seconds=45):
        """Jobs that run meanwhile, one a worker; all of them end well, and none is started a second time."""
        batch = self.submit(folder / "sleep", jobs, seconds)
        self.all_run(batch, min(jobs, len(self.slots())))
        yield batch
        wait_for(lambda: self.finished(batch) == jobs, 300, f"{jobs} jobs ended well")
        assert self.condor(f"condor_history {batch} -af NumJobStarts").split() == ["1"] * jobs


def given_archive(name):
    """The archive of a real Mesos or Marathon that whoever runs the tests has; None without one."""
    path = os.environ.get(f"DODAS_{name.upper()}_ARCHIVE", "")
    return Path(path) if path else None


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """Inputs of the template that say where Mesos and Marathon come from."""
    folder, inputs = Path(KEEP or tmp_path_factory.mktemp("archives")), {}
    folder.mkdir(exist_ok=True)
    for name in ("mesos", "marathon"):
        archive = given_archive(name)
        if archive is None:
            archive = folder / f"{name}.tar.gz"
            subprocess.run([sys.executable, ROOT / f"tests/standins/{name}/build.py", archive], check=True)
        checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
        inputs |= {f"{name}_source": "archive", f"{name}_archive": archive}
        inputs[f"{name}_archive_checksum"] = f"sha256:{checksum}"
    if given_archive("mesos") is None:
        inputs |= {"docker": "podman", "docker_packages": "[]"}
    return inputs


@pytest.fixture(scope="session")
def dodas(tmp_path_factory):
    """The command line, with a new home; what is left of it in the end is removed."""
    if os.geteuid() != 0:
        pytest.skip("hosts that run systemd need root")
    dodas = Dodas(Path(KEEP or tmp_path_factory.mktemp("mesos")) / "home")
    yield dodas
    for one in dodas.json("list") if not KEEP else ():
        dodas("down", "--name", one["name"], status=None)


@pytest.fixture(scope="session")
def cms(dodas, archives):
    """A cluster from nothing, or the one that was kept."""
    if KEEP and NAME in [one["name"] for one in dodas.json("list")]:
        return MesosCluster(dodas, NAME, dodas.json("status", "--name", NAME))
    options = [word for name, value in {**SIZES, **archives}.items() for word in ("-p", f"{name}={value}")]
    report = dodas.json("up", TEMPLATE, "--yes", "--name", NAME, *options, timeout=1200)
    assert report["complete"], report
    MEASURED.append(("up, from nothing to complete", report["seconds"]))
    return MesosCluster(dodas, NAME, report)


@pytest.fixture
def eventually():
    """`wait_for`, for the files here."""
    return wait_for

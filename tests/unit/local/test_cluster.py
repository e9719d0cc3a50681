# SPDX-License-Identifier: Apache-2.0
"""Hosts in containers: plans, addresses, keys and errors, with a stand-in for podman."""

import contextlib
import itertools
import json
import re
import socket
import stat
import threading
import time

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.local import cluster as module
from ansible_collections.dodas.cluster.plugins.module_utils.local.cluster import LocalCluster
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, PodmanError


class FakePodman:
    """A stand-in for podman: containers, volumes and networks as dictionaries."""

    def __init__(self, folder, subnet="10.88.7.0/24"):
        self.home, self.images, self.run_dir, self.machine = folder, folder / "images", folder / "run", folder
        self.subnet = subnet
        self.containers, self.volumes, self.networks, self.calls = {}, {}, {}, []
        self.fail = ""
        self.mutex = threading.Lock()

    @contextlib.contextmanager
    def lock(self, _name):
        yield

    def json(self, *arguments, **options):
        return json.loads(self.run(*arguments, **options) or "[]")

    def run(self, *arguments, **_options):
        arguments = [str(one) for one in arguments]
        with self.mutex:
            self.calls.append(arguments)
            return getattr(self, "do_" + arguments[0])(arguments)

    def labels(self, arguments):
        pairs = [b for a, b in itertools.pairwise(arguments) if a == "--label"]
        return dict(pair.split("=", 1) for pair in pairs)

    def filtered(self, arguments, things):
        wanted = re.search(r"label=dodas.deployment=(\S+)", " ".join(arguments))
        return [n for n, one in things.items() if not wanted or one["labels"].get("dodas.deployment") == wanted[1]]

    def do_ps(self, arguments):
        found = self.filtered(arguments, self.containers)
        return json.dumps([{"Names": [one], "Id": one, "Labels": self.containers[one]["labels"]} for one in found])

    def do_inspect(self, arguments):
        chosen = [self.containers[name] for name in arguments[3:]]
        return json.dumps([{"Config": {"Labels": o["labels"]}, "State": {"Status": o["state"]}} for o in chosen])

    def do_run(self, arguments):
        if self.fail and self.fail in arguments:
            raise PodmanError("podman run --detach: out of space")
        name = arguments[arguments.index("--name") + 1]
        assert name not in self.containers
        (self.home / "storage").mkdir(exist_ok=True)
        self.containers[name] = {"labels": self.labels(arguments), "state": "running"}

    def do_start(self, arguments):
        self.containers[arguments[1]]["state"] = "running"

    def do_rm(self, arguments):
        for name in arguments[1:]:
            self.containers.pop(name, None)

    def do_volume(self, arguments):
        match arguments[1]:
            case "create":
                self.volumes[arguments[-1]] = {"labels": self.labels(arguments)}
            case "ls":
                return "\n".join(self.filtered(arguments, self.volumes))
            case "rm":
                for name in arguments[3:]:
                    del self.volumes[name]

    def do_network(self, arguments):
        match arguments[1]:
            case "create":
                self.networks[arguments[-1]] = {"labels": self.labels(arguments)}
            case "ls":
                name = re.search(r"name=\^(.*)\$", " ".join(arguments))
                return "\n".join(one for one in self.networks if not name or one == name[1])
            case "inspect":
                return json.dumps([{"subnets": [{"subnet": self.subnet}]}])
            case "rm":
                del self.networks[arguments[-1]]


@pytest.fixture
def podman(tmp_path, monkeypatch):
    for name in ("remember", "restore"):
        monkeypatch.setattr(module.machine, name, lambda _folder: None)
    monkeypatch.setattr(module, "_wait_for_ssh", lambda *_: None)
    return FakePodman(tmp_path)


@pytest.fixture
def cluster(podman, tmp_path):
    return LocalCluster("tier3", tmp_path / "state", podman)


def hosts(*names):
    return [{"name": name} for name in names]


def addresses(result):
    return {name: one["address"] for name, one in result.items()}


def test_plan_and_apply(cluster, podman):
    wanted = hosts("front-1", "worker-1")
    assert cluster.plan(wanted) == {"create": ["front-1", "worker-1"], "start": [], "remove": []}
    made = addresses(cluster.apply(wanted, "image"))
    assert made == {"front-1": "10.88.7.10", "worker-1": "10.88.7.11"}
    assert cluster.plan(wanted) == {"create": [], "start": [], "remove": []}
    podman.calls.clear()
    assert addresses(cluster.apply(wanted, "image")) == made
    assert {call[0] for call in podman.calls} <= {"ps", "inspect", "network"}, "a second time nothing is done"
    assert all(call[1] != "create" for call in podman.calls)


@pytest.mark.parametrize(
    ("state", "kind"), [("exited", "start"), ("stopped", "start"), ("created", "create"), ("running", None)]
)
def test_what_is_half_made_or_stopped(cluster, podman, state, kind):
    made = addresses(cluster.apply(hosts("front-1"), "image"))
    podman.containers["dodas-tier3-front-1"]["state"] = state
    plan = cluster.plan(hosts("front-1"))
    assert [name for name, todo in plan.items() if todo] == ([kind] if kind else [])
    assert addresses(cluster.apply(hosts("front-1"), "image")) == made
    assert podman.containers["dodas-tier3-front-1"]["state"] == "running"


def test_addresses_stay_and_taken_ones_are_never_given_again(cluster):
    cluster.apply(hosts("front-1", "worker-1", "worker-2"), "image")
    after = addresses(cluster.apply(hosts("worker-3", "front-1", "worker-2", "worker-4"), "image"))
    assert after == {
        "front-1": "10.88.7.10", "worker-2": "10.88.7.12", "worker-3": "10.88.7.11", "worker-4": "10.88.7.13"
    }  # fmt: skip


def test_a_full_network_is_an_error(cluster, podman):
    podman.subnet = "10.88.7.0/28"
    assert len(set(addresses(cluster.apply(hosts(*(f"w-{i}" for i in range(5))), "image")).values())) == 5
    with pytest.raises(PodmanError, match=r"network dodas-tier3 \(10.88.7.0/28\) has no address left for 6 hosts"):
        cluster.apply(hosts(*(f"w-{i}" for i in range(6))), "image")


def test_keys_are_for_their_owner_and_stay(cluster, tmp_path):
    cluster.apply(hosts("front-1", "worker-1"), "image")
    ssh = tmp_path / "state/ssh"
    keys = [ssh / "id_ed25519", ssh / "hosts/front-1/host", ssh / "hosts/worker-1/host", ssh / "authorized_keys"]
    for path in keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (tmp_path / "state", ssh):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (tmp_path / "state/hosts.json").exists()
    before = [path.read_bytes() for path in keys]
    cluster.apply(hosts("front-1", "worker-1", "worker-2"), "image")
    assert [path.read_bytes() for path in keys] == before
    known = (ssh / "known_hosts").read_text().splitlines()
    assert [line.split()[:2] for line in known] == [[f"10.88.7.{i}", "ssh-ed25519"] for i in (10, 11, 12)]
    cluster.apply(hosts("front-1"), "image")
    assert not (ssh / "hosts/worker-1").exists()


def test_a_host_that_cannot_be_made_is_named_and_a_later_call_finishes(cluster, podman):
    podman.fail = "dodas-tier3-worker-1"
    with pytest.raises(PodmanError, match="worker-1: podman run --detach: out of space"):
        cluster.apply(hosts("front-1", "worker-1"), "image")
    podman.fail = ""
    assert cluster.plan(hosts("front-1", "worker-1")) == {"create": ["worker-1"], "start": [], "remove": []}
    assert set(cluster.apply(hosts("front-1", "worker-1"), "image")) == {"front-1", "worker-1"}


@pytest.mark.parametrize("names", [["Front"], ["a/b"], ["-a"], [""], ["a", "a"]])
def test_host_names_that_cannot_be(cluster, podman, names):
    with pytest.raises(PodmanError, match="host name"):
        cluster.apply(hosts(*names), "image")
    assert podman.containers == {}


@pytest.mark.parametrize("name", ["", "Tier3", "../x", "a b", "--all"])
def test_deployment_names_that_cannot_be(podman, tmp_path, name):
    with pytest.raises(PodmanError, match="deployment name .* must match"):
        LocalCluster(name, tmp_path, podman)


def test_little_disk_is_an_error_before_anything_is_made(cluster, podman, monkeypatch):
    monkeypatch.setattr(module, "NEEDED_DISK_MB", 2**40)
    with pytest.raises(PodmanError, match=r"MB free, hosts need"):
        cluster.apply(hosts("front-1"), "image")
    assert podman.networks == {}


def test_remove_leaves_other_deployments(cluster, podman, tmp_path):
    other = LocalCluster("tier3-b", tmp_path / "b", podman)
    cluster.apply(hosts("front-1"), "image")
    other.apply(hosts("front-1"), "image")
    assert cluster.remove() == ["front-1", "dodas-tier3"]
    assert cluster.remove() == []
    assert set(podman.containers) == {"dodas-tier3-b-front-1"}
    assert set(podman.volumes) == {"dodas-tier3-b-front-1-store", "dodas-tier3-b-front-1-state"}
    assert set(podman.networks) == {"dodas-tier3-b"}


@pytest.mark.parametrize(("greeting", "error"), [(b"HTTP/1.1 400", "no SSH greeting"), (None, "refused"), (b"", "SSH")])
def test_a_host_whose_sshd_does_not_answer_is_named(monkeypatch, greeting, error):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        real = socket.create_connection
        monkeypatch.setattr(module.socket, "create_connection", lambda _to, timeout: real(("127.0.0.1", port), timeout))
        if greeting is None:
            server.close()
        else:
            threading.Thread(target=answer, args=(server, greeting), daemon=True).start()
        start = time.monotonic()
        found = module._wait_for_ssh("worker-7", "10.0.0.7", time.monotonic() + 0.2)
    assert found.startswith("worker-7 (10.0.0.7): sshd did not answer: ")
    assert error in found
    assert time.monotonic() - start < 1


def test_a_host_whose_sshd_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        real, port = socket.create_connection, server.getsockname()[1]
        monkeypatch.setattr(module.socket, "create_connection", lambda _to, timeout: real(("127.0.0.1", port), timeout))
        threading.Thread(target=answer, args=(server, b"SSH-2.0-OpenSSH"), daemon=True).start()
        assert module._wait_for_ssh("a", "10.0.0.7", time.monotonic() + 5) is None


def answer(server, greeting):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)


def test_every_silent_host_is_named(cluster, monkeypatch):
    monkeypatch.setattr(module, "_wait_for_ssh", lambda name, *_: f"{name}: no" if name.startswith("w") else None)
    with pytest.raises(PodmanError, match="^worker-1: no; worker-2: no$"):
        cluster.apply(hosts("front-1", "worker-1", "worker-2"), "image")


def test_podmans_errors_are_one_line(tmp_path, monkeypatch):
    stub = tmp_path / "podman"
    stub.write_text("#!/bin/sh\necho 'WARN: noise' >&2\necho 'Error: no such image' >&2\nexit 125\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(PodmanError, match="^podman run --detach: Error: no such image$"):
        Podman(tmp_path, tmp_path / "run", tmp_path / "images").run("run", "--detach", "x")
    stub.write_text("#!/bin/sh\nexec sleep 20\n")
    with pytest.raises(PodmanError, match=r"^podman ps: no answer in 0\.2 s$"):
        Podman(tmp_path, tmp_path / "run", tmp_path / "images").run("ps", timeout=0.2)

# SPDX-License-Identifier: Apache-2.0
"""The stand-in of Mesos runs tasks in containers, with podman and a store of this test's own. No network is made."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from mesos_runtime import REAL, Agent, Masters, Zookeeper, call, wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers with podman need root here"),
    pytest.mark.skipif(bool(REAL), reason="only the stand-in takes tasks without a framework"),
]
IMAGE = "localhost/busybox:1"


def busybox(path):
    """A tar with busybox and its commands."""
    program = shutil.which("busybox")
    names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as tar:
        for folder in ("bin", "tmp", "etc", "mnt"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(program, "bin/busybox")
        for name in names:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(entry)
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(b"root:x:0:0::/:/bin/sh\n")
        tar.addfile(entry, io.BytesIO(b"root:x:0:0::/:/bin/sh\n"))
    return path


@pytest.fixture(scope="module")
def podman():
    """(podman with a store of its own that has IMAGE, a program that runs it as `docker`)."""
    folder = Path(tempfile.mkdtemp(prefix="dodas-"))  # podman wants short paths
    ours = Podman(folder / "home", folder / "run", folder / "images")
    ours.configure()
    ours.run("import", "--change", "CMD=/bin/sh", busybox(folder / "busybox.tar"), IMAGE, store="images")
    program = folder / "docker"
    names = ("CONTAINERS_CONF", "CONTAINERS_REGISTRIES_CONF", "NETAVARK_FW")
    settings = " ".join(f"{name}={shlex.quote(ours.environment()[name])}" for name in names)
    program.write_text(f'#!/bin/sh\n{settings} exec {shlex.join(ours.command())} "$@"\n')
    program.chmod(0o755)
    yield ours, program
    ours.run("rm", "--all", "--force", "--time", "0")
    for store in (ours.home / "storage" / "overlay", ours.images / "overlay"):
        subprocess.run(["umount", "-q", str(store)], check=False)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(podman):
    with (
        Zookeeper() as zookeeper,
        Masters(zookeeper) as masters,
        Agent(masters, {"STANDIN_RUNTIME": ""}, docker=podman[1]) as agent,
    ):
        framework = call(f"{masters.leader().url}/standin/frameworks", body={"name": "tests"}).json["id"]
        yield agent, framework
        for one in agent.tasks():
            call(f"{agent.url}/standin/tasks/{one['id']}?grace=0", "DELETE")
        wait_for(lambda: all(one["ended"] for one in agent.tasks()), "all tasks have ended")


def launch(cluster, name, env=None, ports=(), docker=None, volumes=(), **definition):
    agent, framework = cluster
    container = {"type": "DOCKER", "docker": {"image": IMAGE, **(docker or {})}, "volumes": list(volumes)}
    definition = {"cpus": 0.1, "mem": 32, "networks": [{"mode": "host"}], "container": container, **definition}
    body = {"id": name, "framework_id": framework, "app_id": f"/dodas/{name}", "definition": definition,
            "ports": list(ports), "env": env or {}}  # fmt: skip
    assert call(f"{agent.url}/standin/tasks", body=body).status == 201


def task(cluster, name):
    return next(one for one in cluster[0].tasks() if one["id"] == name)


def wait_state(cluster, name, state):
    def reached():
        one = task(cluster, name)
        assert one["state"] == state or not one["ended"], one
        return one["state"] == state and one

    return wait_for(reached, f"{name} is {state}", 60)


def sandbox(cluster, name):
    work = cluster[0].program.folder / "work"
    return next(work.glob(f"slaves/*/frameworks/*/executors/{name}/runs/latest")).resolve()


def test_container_finds_its_environment(cluster, podman, tmp_path):
    (tmp_path / "read").write_text("from the host\n")
    volumes = [{"containerPath": "/data", "hostPath": str(tmp_path), "mode": "RO"}]
    launch(
        cluster, "env", {"WORD": "a secret", "LINES": "two\nlines"}, [31001], volumes=volumes,
        docker={"parameters": [{"key": "label", "value": "dodas.app=env"}, {"key": "hostname", "value": "worker-1"}]},
        cmd="env; hostname; cat /data/read; echo kept >$MESOS_SANDBOX/file; touch /data/x 2>/dev/null || echo refused",
    )  # fmt: skip
    assert wait_state(cluster, "env", "TASK_FINISHED")["message"] == "Container exited with status 0"
    place = sandbox(cluster, "env")
    said = (place / "stdout").read_text()
    for line in ("WORD=a secret", "LINES=two", "lines", "PORT0=31001", "MESOS_TASK_ID=env", "HOST=127.0.0.1",
                 "MESOS_SANDBOX=/mnt/mesos/sandbox", f"MARATHON_APP_DOCKER_IMAGE={IMAGE}", "worker-1",
                 "from the host", "refused"):  # fmt: skip
        assert f"{line}\n" in said
    assert (place / "file").read_text() == "kept\n"
    assert podman[0].run("ps", "--all", "--quiet", "--filter", "label=MESOS_TASK_ID=env") == ""
    assert [path.name for path in place.parent.iterdir() if path.suffix == ".environment"] == []


def test_running_container(cluster, podman):
    check = {"protocol": "COMMAND", "command": {"value": "test -e /tmp/health"}, "gracePeriodSeconds": 60,
             "intervalSeconds": 0.5, "timeoutSeconds": 10, "maxConsecutiveFailures": 0}  # fmt: skip
    launch(
        cluster, "stays", {"WORD": "a secret"}, healthChecks=[check], taskKillGracePeriodSeconds=20,
        args=["/bin/sh", "-c", "trap 'echo asked; exit 0' TERM; touch /tmp/health; while :; do sleep 0.1; done"],
    )  # fmt: skip
    shown = wait_state(cluster, "stays", "TASK_RUNNING")
    labels = podman[0].run("inspect", "--format", "{{json .Config.Labels}}", shown["container"])
    assert '"MESOS_TASK_ID":"stays"' in labels
    wait_for(lambda: task(cluster, "stays")["healthy"] is True, "it is healthy")
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "a secret" not in lines
    assert shown["container"] in lines

    agent = cluster[0]
    agent.program.stop()
    agent.start()
    again = wait_state(cluster, "stays", "TASK_RUNNING")
    assert (again["container"], again["started"]) == (shown["container"], shown["started"])
    wait_for(lambda: task(cluster, "stays")["healthy"] is True, "it is healthy again")
    assert call(f"{agent.url}/standin/tasks/stays", "DELETE").status == 202
    wait_state(cluster, "stays", "TASK_KILLED")
    assert (sandbox(cluster, "stays") / "stdout").read_text() == "asked\n"
    assert podman[0].run("ps", "--all", "--quiet", "--filter", "label=MESOS_TASK_ID=stays") == ""


@pytest.mark.parametrize(("name", "definition", "message"), [
    ("status", {"cmd": "exit 9"}, "Container exited with status 9"),
    ("image", {"docker": {"image": "localhost/nothing:1", "parameters": [{"key": "pull", "value": "never"}]}},
     "Failed to run docker container: "),
    ("pull", {"docker": {"image": "localhost:1/nothing:1", "forcePullImage": True}}, "Failed to launch container: "),
])  # fmt: skip
def test_container_that_fails(cluster, name, definition, message):
    launch(cluster, name, **definition)
    assert wait_state(cluster, name, "TASK_FAILED")["message"].startswith(message)


def test_containers_of_a_lost_agent_are_removed(cluster, podman):
    agent = cluster[0]
    launch(cluster, "orphan", cmd="exec sleep 600")
    name = wait_state(cluster, "orphan", "TASK_RUNNING")["container"]
    agent.program.stop()
    (agent.program.folder / "work" / "meta" / "slaves" / "latest").unlink()
    assert name in podman[0].run("ps", "--format", "{{.Names}}")
    agent.start()
    assert name not in podman[0].run("ps", "--all", "--format", "{{.Names}}")
    assert agent.tasks() == []

# SPDX-License-Identifier: Apache-2.0
"""The program under the name `docker`: what people type, and what HTCondor, cwltool, nextflow and snakemake call."""

from __future__ import annotations

import io
import json
import posixpath
import re
import signal
import subprocess
import tarfile

import pytest

import udocker_images as images
from udocker_program import Program, until

HEX = re.compile(r"[0-9a-f-]{36}$")


@pytest.fixture(scope="module")
def udocker():
    with Program() as program:
        yield program


@pytest.fixture(autouse=True)
def tidy(udocker):
    yield
    udocker.clear()


@pytest.fixture
def docker(udocker):
    """Call docker: its standard output; `.done(...)` gives the whole process."""

    def call(*arguments, status=0, **more):
        done = udocker.docker(*arguments, **more)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.rstrip("\n") if isinstance(done.stdout, str) else done.stdout

    call.done = udocker.docker
    return call


# What people type


def test_run_gives_output_and_status(docker):
    assert docker("run", "--rm", "busybox", "echo", "hello") == "hello"
    docker("run", "--rm", "busybox", "sh", "-c", "exit 37", status=37)
    docker("run", "--rm", "busybox", "sh", "-c", "kill -9 $$", status=137)
    docker("run", "--rm", "busybox", "no-such-program", status=127)
    docker("run", "--rm", "busybox", "/etc/passwd", status=126)
    docker("run", "--rm", "--pull=never", "no-such-image", status=125)
    docker("run", "--nonsense", "busybox", status=125)


def test_an_image_and_a_container_of_one_name_are_not_confused(docker):
    """In docker `run NAME` always means an image, in udocker a container first."""
    docker("create", "--name", "busybox", "busybox", "echo", "of the container")
    assert docker("run", "--rm", "busybox", "echo", "of the image") == "of the image"


def test_the_life_of_a_container(docker):
    identifier = docker("run", "-d", "--name", "web", "--label", "a=b", "busybox", "sh", "-c", "echo up; sleep 600")
    assert HEX.match(identifier)
    assert docker("ps", "-q") == identifier[:12]
    assert docker("ps", "-q", "--no-trunc") == identifier
    until(lambda: docker("logs", "web") == "up", "the log")
    assert docker("exec", "web", "echo", "beside") == "beside"
    docker("exec", "web", "sh", "-c", "exit 3", status=3)
    assert docker("inspect", "--format", "{{.State.Status}} {{.State.Running}}", "web") == "running true"
    assert "sleep 600" in docker("top", "web")
    assert docker("rename", "web", "site") == ""
    assert docker("stop", "-t", "1", "site") == "site"
    assert docker("ps", "-q") == ""
    assert docker("ps", "-aq") == identifier[:12]
    assert docker("wait", "site") == docker("inspect", "-f", "{{.State.ExitCode}}", "site")
    assert docker("start", "site") == "site"
    assert docker("restart", "-t", "0", "site") == "site"
    assert docker("kill", "-s", "TERM", "site") == "site"
    assert docker("rm", "-f", "site") == "site"
    assert docker("ps", "-aq") == ""


def test_removing_what_runs_needs_force(docker):
    docker("run", "-d", "--name", "busy", "busybox", "sleep", "600")
    done = docker.done("rm", "busy")
    assert done.returncode == 1 and "running" in done.stderr
    assert docker("container", "rm", "-f", "busy") == "busy"
    assert docker("rm", "-f", "busy") == ""
    docker("rm", "busy", status=1)


def test_lists(docker):
    docker("create", "--name", "one", "--label", "team=a", "busybox", "true")
    docker("run", "--name", "two", "--label", "team=b", "busybox", "sh", "-c", "exit 4", status=4)
    head, *rows = docker("ps", "-a").splitlines()
    assert head.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert [row.split()[-1] for row in rows] == ["two", "one"]
    assert all(row.index("busybox:latest") == head.index("IMAGE") for row in rows)
    assert docker("ps", "-a", "--format", "{{.Names}}: {{.Image}}").splitlines() == [
        "two: busybox:latest", "one: busybox:latest",
    ]  # fmt: skip
    assert json.loads(docker("ps", "-a", "--filter", "name=one", "--format", "{{json .}}"))["State"] == "created"
    head = docker("ps", "-a", "--format", "table {{.Names}}\t{{.Status}}").splitlines()[0]
    assert head.split() == ["NAMES", "STATUS"]
    for filters, names in (
        (["label=team=a"], ["one"]), (["label=team"], ["two", "one"]), (["status=exited"], ["two"]),
        (["exited=4"], ["two"]), (["exited=0"], []), (["name=t.o"], ["two"]), (["ancestor=busybox"], ["two", "one"]),
        (["since=one"], ["two"]), (["name=one", "name=two"], ["two", "one"]), (["name=one", "label=team=b"], []),
    ):  # fmt: skip
        words = [word for text in filters for word in ("--filter", text)]
        assert docker("ps", "-a", "--format", "{{.Names}}", *words).split() == names
    assert docker("ps", "-l", "--format", "{{.Names}}") == "two"
    done = docker.done("ps", "--filter", "nonsense=1")
    assert done.returncode == 1 and "nonsense" in done.stderr


def test_files_go_in_and_out(docker, udocker):
    folder = udocker.folder("files")
    (folder / "in").write_text("content\n")
    docker("create", "--name", "box", "busybox", "cat", "/srv/in")
    docker("exec", "box", "true", status=1)
    docker("run", "--name", "other", "busybox", "mkdir", "/srv")
    docker("cp", f"{folder}/in", "other:/srv/")
    assert [line for line in docker("diff", "other").splitlines() if "/etc" not in line] == ["A /srv", "A /srv/in"]
    with tarfile.open(fileobj=io.BytesIO(docker("cp", "other:/srv/in", "-", text=False))) as archive:
        assert [posixpath.normpath(name) for name in archive.getnames()] == ["in"]
    docker("cp", "other:/srv/in", f"{folder}/out")
    assert (folder / "out").read_text() == "content\n"
    committed = docker("commit", "-m", "files", "-c", "CMD cat /srv/in", "other", "files:1")
    assert committed.startswith("sha256:")
    assert docker("run", "--rm", "files:1") == "content"
    assert docker("rmi", "files:1").splitlines()[0] == "Untagged: files:1"


def test_images(docker, udocker):
    assert docker("images", "-q", "busybox") == docker("inspect", "-f", "{{slice .Id 7 19}}", "busybox")
    head, row = docker("images", "busybox").splitlines()
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert row.split()[:2] == ["busybox", "latest"]
    docker("tag", "busybox", "team.example.org/group/box:2")
    assert docker("images", "--format", "{{.Repository}}:{{.Tag}}", "team.example.org/*/box") == (
        "team.example.org/group/box:2"
    )
    assert docker("images", "--filter", "reference=*/group/box", "-q") == docker("images", "-q", "busybox")
    tar = udocker.home / "box.tar"
    docker("save", "-o", tar, "team.example.org/group/box:2")
    assert docker("rmi", "team.example.org/group/box:2") == "Untagged: team.example.org/group/box:2"
    assert docker("load", "-i", tar) == "Loaded image: team.example.org/group/box:2"
    assert docker("history", "-q", "busybox").splitlines()[0] == docker("images", "-q", "busybox")
    docker("image", "rm", "team.example.org/group/box:2")
    docker("inspect", "team.example.org/group/box:2", status=1)
    assert docker("rmi", "-f", "team.example.org/group/box:2") == ""


def test_an_image_that_containers_use_stays(docker, udocker):
    docker("tag", "busybox", "used:1")
    docker("create", "--name", "user", "busybox")
    assert docker("rmi", "used:1") == "Untagged: used:1"
    done = docker.done("rmi", "busybox")
    assert done.returncode == 1 and "user" in done.stderr
    assert docker("run", "--rm", "busybox", "echo", "here") == "here"


def test_inspect_has_the_fields_that_tools_read(docker):
    identifier = docker(
        "create", "--name", "seen", "-e", "A=1", "-v", "/etc/hostname:/h:ro", "-w", "/tmp", "--label", "x=y",
        "--hostname", "own", "--restart", "on-failure:3", "busybox", "sleep", "1",
    )  # fmt: skip
    (about,) = json.loads(docker("inspect", "seen"))
    assert about["Id"] == identifier and about["Name"] == "/seen"
    assert about["State"]["Status"] == "created" and about["State"]["Pid"] == 0
    assert about["Config"]["Labels"]["x"] == "y"
    assert about["Config"]["Cmd"] == ["sleep", "1"]
    assert about["Config"]["Image"] == "busybox:latest"
    assert about["Config"]["Hostname"] == "own"
    assert about["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    (mount,) = about["Mounts"]
    assert (mount["Source"], mount["Destination"], mount["RW"]) == ("/etc/hostname", "/h", False)
    (image,) = json.loads(docker("image", "inspect", "busybox"))
    assert image["RepoTags"] == ["busybox:latest"] and image["Os"] == "linux"
    docker("inspect", "--type", "image", "seen", status=1)
    done = docker.done("inspect", "nothing-of-that-name")
    assert done.returncode == 1 and done.stdout.strip() == "[]"


def test_versions_can_be_compared(docker):
    assert re.match(r"Docker version \d+\.\d+\.\d+, build ", docker("--version"))
    assert re.match(r"\d+\.\d+\.\d+$", docker("version", "--format", "{{.Server.Version}}"))
    assert docker("version", "-f", "{{.Client.APIVersion}}") == docker("version", "-f", "{{.Server.APIVersion}}")
    assert json.loads(docker("version", "--format", "json"))["Server"]["Os"] == "linux"
    assert "Server Version: " in docker("info")
    assert int(docker("info", "--format", "{{.NCPU}}")) > 0
    assert json.loads(docker("info", "--format", "{{json .SecurityOptions}}")) == ["name=rootless"]
    assert "Server" in docker("version")


@pytest.mark.parametrize(
    "words", [["pause", "x"], ["network", "ls"], ["volume", "create"], ["compose", "up"], ["swarm", "init"], ["events"],
              ["run", "--link", "a", "busybox"], ["run", "--runtime", "other", "busybox"]],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(docker, words):
    done = docker.done(*words)
    assert done.returncode not in (0, 127)
    assert f"{words[1] if words[0] == 'run' else words[0]} is not possible: " in done.stderr


def test_prune_and_df(docker):
    docker("run", "--name", "gone", "--label", "a=1", "busybox", "true")
    docker("run", "--name", "kept", "--label", "b=1", "busybox", "true")
    said = docker("container", "prune", "-f", "--filter", "label=a=1")
    assert "Deleted Containers:" in said and "Total reclaimed space:" in said
    assert docker("ps", "-a", "--format", "{{.Names}}") == "kept"
    assert docker("system", "df").splitlines()[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    docker("system", "prune", "-f")
    assert docker("ps", "-aq") == ""
    assert docker("run", "--rm", "busybox", "echo", "still") == "still"


def test_build(docker, udocker):
    folder = udocker.folder("context")
    (folder / "Dockerfile").write_text('FROM busybox\nARG WHO=nobody\nRUN echo "$WHO" > /who\nCMD ["cat", "/who"]\n')
    identifier = docker("build", "-q", "-t", "who:1", "--build-arg", "WHO=ann", ".", cwd=folder)
    assert re.match(r"sha256:[0-9a-f]{64}$", identifier)
    assert docker("run", "--rm", "who:1") == "ann"
    said = docker("build", "-t", "who:2", folder)
    assert said.splitlines()[-1] == "Successfully tagged who:2"
    assert docker("run", "--rm", "who:2") == "nobody"
    (folder / "Dockerfile").write_text("FROM busybox\nRUN exit 5\n")
    done = docker.done("build", folder)
    assert done.returncode and "exit 5" in done.stderr


def test_statistics(docker):
    docker("run", "-d", "--name", "used", "busybox", "sleep", "600")
    head, row = docker("stats", "--no-stream").splitlines()
    assert head.split()[:2] == ["CONTAINER", "ID"] and row.split()[1] == "used"
    assert json.loads(docker("stats", "--no-stream", "--format", "{{json .}}"))["PIDs"] != "0"


# What tools call


def test_what_htcondor_calls(docker, udocker):
    """The docker universe: src/condor_utils/docker-api.cpp of HTCondor, in its order."""
    assert re.match(r"Docker version \d+\.\d+", docker("-v"))
    docker("info")
    (line,) = docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}", "busybox").splitlines()
    assert re.match(r"busybox:latest [0-9a-f]{12} [0-9.]+MB$", line)
    identifiers = docker("images", "-q", "busybox").split()
    line = docker("inspect", "--format", "{{.Id}} {{.Metadata.LastTagTime}}", *identifiers)
    assert re.match(r"sha256:[0-9a-f]{64} 20\d\d-", line)
    assert docker("inspect", "--format", "{{.Architecture}}", "busybox") == "amd64"
    docker("tag", "busybox", "htcondor.org/ann_at_example.org/busybox")
    scratch = udocker.folder("execute")
    docker(
        "create", "--cpu-shares=100", "--memory=128m", "--cap-drop=all", "--cap-add=SYS_PTRACE", "--security-opt",
        "no-new-privileges", "--init", "--name", "HTCJob1_0_slot1_PID7", "--label=org.htcondorproject=True",
        "--log-driver", "none", "-e", "_CONDOR_SLOT=slot1", "-e", "HOME=/x y", "--volume", f"{scratch}:{scratch}",
        "--workdir", scratch, "--user", f"{udocker.person.uid}:{udocker.person.gid}", "--group-add",
        udocker.person.gid, "--hostname", "ann-1.0-host", "--shm-size", "67108864", "busybox", "sh", "-c",
        "echo $_CONDOR_SLOT; pwd; echo done > result; exit 9",
    )  # fmt: skip
    said = docker("start", "-a", "HTCJob1_0_slot1_PID7", status=9)
    assert said.splitlines() == ["slot1", str(scratch)]
    assert (scratch / "result").read_text() == "done\n"
    assert (scratch / "result").stat().st_uid == udocker.person.uid
    form = (
        'ContainerId="{{.Id}}"\nPid={{.State.Pid}}\nName="{{.Name}}"\nRunning={{.State.Running}}\n'
        'ExitCode={{.State.ExitCode}}\nStartedAt="{{.State.StartedAt}}"\nFinishedAt="{{.State.FinishedAt}}"\n'
        'DockerError={{json .State.Error}}\nOOMKilled="{{.State.OOMKilled}}"'
    )
    lines = docker("inspect", "--format", form, "HTCJob1_0_slot1_PID7").splitlines()
    assert len(lines) == 9 and lines[4] == "ExitCode=9" and lines[3] == "Running=false" and lines[7] == 'DockerError=""'
    assert docker("rm", "-f", "-v", "HTCJob1_0_slot1_PID7") == "HTCJob1_0_slot1_PID7"
    docker("pause", "HTCJob1_0_slot1_PID7", status=125)
    docker("container", "prune", "-f", "--filter=label=org.htcondorproject=True")
    docker("rmi", "htcondor.org/ann_at_example.org/busybox")
    assert docker("images", "-q", "htcondor.org/ann_at_example.org/busybox") == ""


def test_htcondor_removes_a_job_that_runs(docker, udocker):
    docker("create", "--name", "HTCJob2", "--init", "busybox", "sleep", "600")
    start = udocker.person.popen([udocker.home / "docker", "start", "-a", "HTCJob2"])
    until(lambda: docker("inspect", "-f", "{{.State.Running}}", "HTCJob2") == "true", "the job's start")
    assert docker("kill", "HTCJob2") == "HTCJob2"
    assert start.wait(30) == 137
    assert docker("rm", "-f", "-v", "HTCJob2") == "HTCJob2"


def test_a_signal_to_the_client_reaches_the_job(docker, udocker):
    start = udocker.person.popen(
        [udocker.home / "docker", "run", "--name", "told", "busybox", "sh", "-c",
         "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert start.stdout.readline() == b"ready\n"
    start.send_signal(signal.SIGTERM)
    assert start.wait(30) == 5


def test_what_cwltool_calls(docker, udocker):
    out, tmp = udocker.folder("cwl-out"), udocker.folder("cwl-tmp")
    (tmp / "input").write_text("input\n")
    cidfile = udocker.home / "cid"
    said = docker(
        "run", "-i", f"--mount=type=bind,source={out},target=/var/spool/cwl",
        f"--mount=type=bind,source={tmp},target=/tmp",
        f"--mount=type=bind,source={tmp}/input,target=/var/lib/cwl/input,readonly", "--workdir=/var/spool/cwl",
        "--read-only=true", "--log-driver=none", f"--user={udocker.person.uid}:{udocker.person.gid}", "--rm",
        f"--cidfile={cidfile}", "--net=none", "--env=TMPDIR=/tmp", "--env=HOME=/var/spool/cwl", "busybox", "sh", "-c",
        "cat /var/lib/cwl/input > result; cat result; ! touch /etc/x 2>/dev/null",
    )  # fmt: skip
    assert said == "input"
    assert (out / "result").stat().st_uid == udocker.person.uid
    assert HEX.match(cidfile.read_text())


def test_what_nextflow_calls(docker, udocker):
    folder = udocker.folder("nextflow")
    (folder / ".command.run").write_text("echo $NXF_TASK_WORKDIR; cat\n")
    user = f"{udocker.person.uid}:{udocker.person.gid}"
    said = docker(
        "run", "-i", "--cpu-shares", "1024", "--memory", "1024m", "-e", "NXF_TASK_WORKDIR", "-e", "NXF_DEBUG=0", "-v",
        f"{folder}:{folder}", "-w", folder, "--entrypoint", "/bin/sh", "-u", user, "--name", "nxf-1", "busybox", "-c",
        "/bin/sh .command.run", env={"NXF_TASK_WORKDIR": str(folder)}, input="typed",
    )  # fmt: skip
    assert said == f"{folder}\ntyped"
    assert docker("rm", "nxf-1") == "nxf-1"


def test_bytes_pass_unchanged(docker):
    content = bytes(range(256)) * 300 + "\u00e4\u20ac".encode()
    assert docker("run", "--rm", "-i", "busybox", "cat", input=content, text=False) == content


def test_without_interactive_there_is_no_input(docker):
    assert docker("run", "--rm", "busybox", "cat", input="typed") == ""
    assert docker("run", "--rm", "-i", "busybox", "cat", input="typed") == "typed"


def test_an_image_of_an_archive(docker, udocker, tmp_path):
    tiny = ([images.base()], None)
    tar = udocker.person.give(images.docker(tmp_path / "two.tar", {"two:1": tiny, "two:2": tiny}))
    assert docker("load", "-q", "-i", tar).splitlines() == ["Loaded image: two:1", "Loaded image: two:2"]
    identifier = docker("import", "-c", "CMD [\"echo\", \"imported\"]", "-", "tree:1", text=True,
                        input=None, stdin=open(_tree(docker, udocker), "rb"))  # noqa: SIM115
    assert identifier.startswith("sha256:")
    assert docker("run", "--rm", "tree:1") == "imported"


def _tree(docker, udocker):
    docker("create", "--name", "tree", "busybox")
    docker("export", "-o", udocker.home / "tree.tar", "tree")
    return udocker.home / "tree.tar"

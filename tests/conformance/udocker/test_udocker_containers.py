# SPDX-License-Identifier: Apache-2.0
"""Containers of real users without rights: created, run, entered, named, copied, removed. With and without subuids."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import time

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import bundle
from udocker_program import SOON, Program, Terminal, image, until


@pytest.fixture(scope="module", params=[True, False], ids=["subids", "one-id"])
def udocker(request):
    with Program(subids=request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def _clear(request):
    yield
    if "udocker" in request.fixturenames:
        request.getfixturevalue("udocker").clear()


def run(udocker, *arguments, **more):
    return udocker("run", "--rm", *arguments, **more)


# Create


def test_issues_175_and_426_a_container_costs_neither_time_nor_disk(udocker):
    def disk():
        return int(udocker.person.run(["du", "-s", "-B1", udocker.store]).stdout.split()[0])

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, took = disk(), []
    for _number in range(10):
        began = used()
        udocker.out("create", "busybox")
        took.append(used() - began)
    assert disk() - before < 10 * 1_000_000
    # Seconds of a processor, with what becomes the user: udocker 1.3.17 unpacks the image again, which takes some.
    assert min(took) < 0.25, took


def test_defect_5_create_returns_no_id_when_it_failed(udocker):
    layers = udocker.store / "layers"
    hidden = layers.with_name("layers.hidden")
    before = set(udocker.containers())
    layers.rename(hidden)
    try:
        done = udocker("create", "--name", "broken", "busybox")
    finally:
        hidden.rename(layers)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "layer" in done.stderr
    assert set(udocker.containers()) == before
    assert not os.path.lexists(udocker.store / "containers/broken")
    assert not list((udocker.store / "tmp").iterdir())


def test_ids_are_uuids_and_names_are_links_as_in_udocker(udocker):
    identifier = udocker.out("create", "--name=work", "busybox")
    assert [len(part) for part in identifier.split("-")] == [8, 4, 4, 4, 12]
    folder = udocker.store / "containers" / identifier
    assert os.readlink(udocker.store / "containers/work") == identifier
    assert (folder / "ROOT").is_dir()
    assert json.loads((folder / "container.json").read_text())["config"]["Cmd"]
    assert (folder / "imagerepo.name").read_text().endswith("busybox:latest")


def test_of_two_creators_of_a_name_one_wins(udocker):
    started = [
        udocker.start("create", "--name=same", "busybox", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _number in range(6)
    ]
    ended = [(process, *process.communicate(timeout=60)) for process in started]
    winners = [out.strip() for process, out, _err in ended if process.returncode == 0]
    assert len(winners) == 1
    assert all("same" in err for process, _out, err in ended if process.returncode)
    assert udocker.containers() == winners
    assert os.readlink(udocker.store / "containers/same") == winners[0]


def test_found_by_the_start_of_an_id_that_no_other_has(udocker):
    identifier = udocker.out("create", "busybox")
    assert json.loads(udocker.out("inspect", identifier[:7]))
    assert "no container" in udocker("start", "ffffffff-0000").stderr
    made = [identifier]
    while not any(one[:2] == made[-1][:2] for one in made[:-1]):
        made.append(udocker.out("create", "busybox"))
    ambiguous = udocker("start", made[-1][:2])
    assert ambiguous.returncode == 1
    assert "give more of it" in ambiguous.stderr


def test_names_are_given_changed_and_taken(udocker):
    identifier = udocker.out("create", "--name=first", "busybox")
    udocker.out("name", identifier, "second")
    assert "['first', 'second']" in udocker.out("ps")
    udocker.out("rename", "first", "third")
    assert "['third']" in udocker.out("ps")
    udocker.out("rmname", "third")
    assert "third" not in udocker.out("ps")
    other = udocker.out("create", "--name=taken", "busybox")
    done = udocker("name", identifier, "taken")
    assert done.returncode == 1
    assert other[:12] in done.stderr
    for name in ("a/b", "..", "-x", "a b", "../../x"):
        assert udocker("create", f"--name={name}", "busybox").returncode != 0


def test_a_protected_container_stays_and_the_exit_code_is_exactly_1(udocker):
    udocker.out("create", "--name=kept", "busybox")
    udocker.out("protect", "kept")
    for arguments in (("rm", "kept"), ("rm", "-f", "kept")):
        done = udocker(*arguments)
        assert done.returncode == 1
        assert "protected" in done.stderr
    assert udocker("run", "--rm", "kept", "true").returncode == 0
    assert "kept" in udocker.out("ps")
    udocker.out("unprotect", "kept")
    udocker.out("rm", "kept")
    assert not udocker.containers()
    assert not os.path.lexists(udocker.store / "containers/kept")


def test_a_clone_has_what_was_written_and_goes_its_own_way(udocker):
    udocker.out("run", "--name=old", "busybox", "sh", "-c", "echo one > /file; rm /etc/group; mkdir /home/new")
    clone = udocker.out("clone", "--name=new", "old")
    assert clone in udocker.containers()
    assert (
        udocker.out("run", "new", "sh", "-c", "cat /file; ls /home; test -e /etc/group || echo gone")
        == "one\nann\nnew\ngone"
    )
    udocker.out("run", "new", "sh", "-c", "echo two > /file")
    assert udocker.out("run", "old", "cat", "/file") == "one"


@pytest.mark.parametrize("engine", ["overlay", "directory"])
@pytest.mark.parametrize("words", [["run"], ["run", "--rm"]], ids=" ".join)
def test_a_run_reads_what_the_program_has_in_front_and_nothing_else(udocker, engine, words):
    """Each line that it prints of a module is one of bundle.FIRST; the container's own imports are among them."""
    container = udocker.out(f"--engine={engine}", "create", "busybox").split()[-1]
    udocker.out("run", container, "true")
    command = [udocker.person.python, "-IS", "-X", "importtime", "-X", "utf8", "-c", bundle.STARTS, udocker.path]
    done = udocker.person.run([*command, "-q", f"--engine={engine}", *words, container, "true"])
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    loaded = {name for name in loaded if name.startswith("udocker.")}
    assert f"udocker.engines.{engine}" in loaded
    assert loaded <= {"udocker.cli", *(f"udocker.{name}" for name in bundle.FIRST)}


def test_a_program_that_is_replaced_while_it_runs_goes_on(udocker):
    path = udocker.path.with_name("replaced")
    shutil.copy(udocker.path, path)
    path.chmod(0o755)
    replace = f"cp {path} {path}.new && echo >> {path}.new && mv {path}.new {path}"
    script = f'{path} run --rm busybox sh -c "echo there; read line; exit 5" < fifo; echo $?'
    is_there = f"for i in $(seq {SOON}); do grep -q there said && break; sleep 1; done"
    done = udocker.person.run(["sh", "-c", f"""
        mkfifo fifo
        ({script}) > said & exec 3> fifo
        {is_there}; {replace}
        echo >&3; exec 3>&-; wait; cat said; rm fifo said
    """])  # fmt: skip
    assert done.stdout == "there\n5\n", done.stderr
    assert udocker.containers() == []


def test_a_container_runs_again_as_it_is(udocker):
    udocker.out("create", "--name=again", "-e", "A=1", "-w", "/tmp", "busybox")
    udocker.out("run", "again", "sh", "-c", "echo $A > file")
    assert udocker.out("run", "-e", "B=2", "again", "sh", "-c", "pwd; cat file; echo $A$B") == "/tmp\n1\n12"


# Run


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["no-such-program"], 127),
        (["/no/such/program"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_exit_codes_are_exact(udocker, command, code):
    done = run(udocker, "busybox", *command)
    assert done.returncode == code, done.stderr
    if code in (126, 127):
        assert command[0] in done.stderr
    assert not udocker.containers()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-v", "/no/such/folder:/x"], ["--env-file", "/no/such/file"], ["--ulimit", "nofile"], ["-p", "x:y"],
        ["--network", "nonsense"], ["--restart", "sometimes"], ["-v", "/tmp:relative"], ["--device", "/dev/nothing"],
        ["--add-host", "x"], ["--mount", "type=bind,target=/x"], ["--shm-size", "much"],
    ],
)  # fmt: skip
def test_125_when_the_command_was_not_started_and_nothing_is_left(udocker, arguments):
    done = run(udocker, *arguments, "busybox", "true")
    assert done.returncode == 125, done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert not udocker.containers()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_handed_on_as_they_came(udocker, name):
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while true; do sleep 0.05; done"
    process = udocker.start("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, "SIG" + name))
    assert process.stdout.read() == f"got {name}\n"
    assert process.wait(60) == 9


def test_a_signal_that_nobody_handles_ends_it(udocker):
    process = udocker.start("run", "--rm", "busybox", "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE)
    process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 143
    assert not udocker.containers()


def test_a_killed_command_takes_its_container_with_it(udocker):
    process = udocker.start(
        "run", "--name=killed", "busybox", "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE
    )
    process.stdout.readline()
    until(lambda: "killed" in udocker.docker("ps").stdout, "it is seen")
    process.kill()
    process.wait(60)
    until(
        lambda: not [line for line in udocker.person.processes().values() if "sleep 1000" in line], "the container ends"
    )
    state = json.loads(udocker.docker("inspect", "killed").stdout)[0]["State"]
    assert (state["Status"], state["Running"], state["ExitCode"]) == ("exited", False, 137)
    assert udocker.out("run", "killed", "echo", "again") == "again"


def test_defect_4_output_without_a_terminal_is_exact(udocker):
    data = os.urandom(3_000_000) + "täglich ☕ 東京\n".encode() * 1000 + b"\xff\xfe\x00\r\n"
    done = run(udocker, "busybox", "cat", input=data, text=False)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == b""


def test_large_outputs_on_both_streams_are_whole(udocker):
    script = "head -c 20000000 /dev/zero; head -c 5000000 /dev/zero >&2"
    done = run(udocker, "busybox", "sh", "-c", script, text=False)
    assert (len(done.stdout), len(done.stderr)) == (20_000_000, 5_000_000)


def test_standard_input_ends_when_it_ends(udocker):
    assert run(udocker, "busybox", "sh", "-c", "cat; echo end", input="").stdout == "end\n"
    assert run(udocker, "busybox", "sh", "-c", "read a; echo $a; wc -c", input="one\ntwo").stdout == "one\n3\n"
    # Docker keeps it closed unless -i is given.
    assert udocker.docker("run", "--rm", "busybox", "wc", "-c", input="text").stdout == "0\n"
    assert udocker.docker("run", "--rm", "-i", "busybox", "wc", "-c", input="text").stdout == "4\n"


def test_a_reader_that_goes_away_ends_the_writer(udocker):
    process = udocker.start("run", "--rm", "busybox", "yes", stdout=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 141


def test_environment_is_docker_s(udocker):
    file = udocker.folder("environment") / "file"
    file.write_text("# comment\nFROM_FILE=file value \nBOTH=file\n\nTAKEN\n")
    done = run(
        udocker, "--env-file", file, "-e", "BOTH=line", "-e", "EMPTY=", "-e", "PASSED", "-e", "MISSING", "busybox",
        "env", env={"PASSED": "host", "TAKEN": "host too", "SECRET": "stays out", "LANG": "C"},
    )  # fmt: skip
    env = dict(line.split("=", 1) for line in done.stdout.splitlines())
    env.pop("SHLVL", None)
    assert env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
        "HOSTNAME": os.uname().nodename, "FROM_FILE": "file value ", "BOTH": "line", "EMPTY": "", "PASSED": "host",
        "TAKEN": "host too",
    }  # fmt: skip
    assert "SECRET=stays out" in run(udocker, "--hostenv", "busybox", "env", env={"SECRET": "stays out"}).stdout


def test_command_and_entrypoint(udocker):
    assert run(udocker, "--entrypoint", "/bin/echo", "busybox", "a", "b").stdout == "a b\n"
    assert run(udocker, "--entrypoint", "/bin/echo -n", "busybox", "a").stdout == "a"
    assert run(udocker, "--entrypoint=", "busybox", "echo", "c").stdout == "c\n"
    assert udocker.docker("run", "--rm", "--entrypoint", "/bin/echo -n", "busybox", "a").returncode == 127
    assert run(udocker, "busybox", input="echo from a shell; exit 3\n").stdout == "from a shell\n"


def test_working_directory(udocker):
    assert run(udocker, "-w", "/tmp", "busybox", "pwd").stdout == "/tmp\n"
    assert run(udocker, "--workdir=/made/for/it", "busybox", "pwd").stdout == "/made/for/it\n"


# Users


def test_issues_448_141_and_239_users_are_switched(udocker):
    assert run(udocker, "busybox", "id").stdout.startswith("uid=0(root) gid=0(root)")
    assert (
        run(udocker, "-u", "ann", "busybox", "sh", "-c", "id -u; id -g; echo $HOME").stdout == "1000\n1000\n/home/ann\n"
    )
    assert run(udocker, "--user=1234:77", "busybox", "sh", "-c", "id -u; id -g").stdout == "1234\n77\n"
    assert run(udocker, "-u", "nobody-knows", "busybox", "true").returncode == 125


def test_supplementary_groups_where_there_are_ids_for_them():
    with Program(subids=True) as udocker:
        assert run(udocker, "-u", "ann", "busybox", "id", "-G").stdout == "1000 1001\n"
        script = "echo eve:x:2000:2000::/home:/bin/sh >> /etc/passwd; chown eve /tmp; chmod 755 /tmp; exec sleep 1000"
        udocker.out("run", "-d", "--name=users", "busybox", "sh", "-c", script)
        until(lambda: udocker("exec", "-u", "eve", "users", "touch", "/tmp/hers").returncode == 0, "eve may write")
        assert udocker.out("exec", "users", "stat", "-c", "%U", "/tmp/hers") == "eve"
        assert udocker("exec", "-u", "ann", "users", "touch", "/tmp/other").returncode == 1
        assert udocker.out("exec", "users", "su", "eve", "-c", "id -u") == "2000"


def test_the_host_s_user_and_home(udocker):
    name, home = udocker.person.name, str(udocker.home)
    (udocker.home / "mine").write_text("content")
    os.chown(udocker.home / "mine", udocker.person.uid, udocker.person.gid)
    done = run(
        udocker,
        "--hostauth",
        "--bindhome",
        "busybox",
        "sh",
        "-c",
        "cat ~/mine; echo; echo $HOME; grep -c . /etc/passwd",
    )
    content, where, count = done.stdout.split()
    assert (content, where) == ("content", home)
    assert int(count) > 10
    assert run(udocker, "busybox", "grep", "-c", ".", "/etc/passwd").stdout == "2\n"
    assert f"{name}:x:" in run(udocker, f"--user={name}", "busybox", "cat", "/etc/passwd").stdout


# Files


def test_volumes(udocker):
    folder = udocker.folder("data")
    (folder / "file").write_text("of the host\n")
    (folder / "file").chmod(0o666)
    assert run(udocker, "-v", f"{folder}:/data", "busybox", "cat", "/data/file").stdout == "of the host\n"
    assert run(udocker, "-v", folder, "busybox", "cat", f"{folder}/file").stdout == "of the host\n"
    assert run(udocker, "-v", "./data:/data", "busybox", "cat", "/data/file").stdout == "of the host\n"
    assert run(udocker, "-v", f"{folder}/file:/etc/one", "busybox", "cat", "/etc/one").stdout == "of the host\n"
    assert run(udocker, "-v", f"{folder}:/data", "busybox", "touch", "/data/new").returncode == 0
    assert (folder / "new").stat().st_uid == udocker.person.uid
    read_only = run(udocker, "-v", f"{folder}:/data:ro", "busybox", "touch", "/data/other")
    assert read_only.returncode == 1
    assert "Read-only" in read_only.stderr
    mounted = ["--mount", f"type=bind,source={folder},target=/data,readonly"]
    assert run(udocker, *mounted, "busybox", "touch", "/data/other").returncode == 1
    assert run(udocker, "-v", f"{folder}:/data", "--novol", folder, "busybox", "ls", "/data").returncode == 1
    deeper = ["-v", f"{folder}:/a/b", "-v", f"{udocker.home}:/a"]
    assert run(udocker, *deeper, "busybox", "cat", "/a/b/file").stdout == "of the host\n"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "new"]


def test_a_named_volume_begins_with_what_the_image_has_there_and_stays(udocker):
    assert (
        run(udocker, "-v", "kept:/etc", "busybox", "sh", "-c", "echo new > /etc/new; grep -c . /etc/passwd").stdout
        == "2\n"
    )
    assert run(udocker, "-v", "kept:/data", "busybox", "cat", "/data/new").stdout == "new\n"
    assert (udocker.store / "volumes/kept/new").read_text() == "new\n"


def test_volumes_from_another_container(udocker):
    folder = udocker.folder("shared")
    udocker.out("create", "--name=owner", "-v", f"{folder}:/shared", "busybox")
    assert run(udocker, "--volumes-from", "owner", "busybox", "touch", "/shared/file").returncode == 0
    assert run(udocker, "--volumes-from", "owner:ro", "busybox", "touch", "/shared/other").returncode == 1
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_system_files_come_from_beside_the_container(udocker):
    script = "cat /etc/hosts; cat /etc/resolv.conf; hostname; cat /etc/hostname; echo more >> /etc/hosts"
    done = udocker(
        "run", "--name=files", "--add-host", "head:192.0.2.7", "--dns", "192.0.2.53", "--dns-search", "example.org",
        "--hostname", "node1", "busybox", "sh", "-c", script,
    )  # fmt: skip
    for line in ("192.0.2.7\thead", "127.0.0.1\tnode1", "nameserver 192.0.2.53", "search example.org"):
        assert line in done.stdout.splitlines()
    assert done.stdout.splitlines()[-2:] == ["node1", "node1"]
    # Of the image nothing is changed: the files are mounted where its own are, or would be.
    assert udocker.out("diff", "files") in ("", "C /etc")


def test_read_only_tmpfs_and_shared_memory(udocker):
    script = "touch /x; touch /tmp/x && echo tmp; df -k /dev/shm | tail -1 | awk '{print $2}'; mount | grep ' /tmp '"
    done = run(udocker, "--read-only", "--tmpfs", "/tmp:size=1m", "--shm-size", "4m", "busybox", "sh", "-c", script)
    assert "Read-only" in done.stderr
    assert done.stdout.split()[:2] == ["tmp", "4096"]
    assert "size=1024k" in done.stdout


def test_limits(udocker):
    done = run(
        udocker,
        "--ulimit",
        "nofile=64:128",
        "--cpuset-cpus",
        "0",
        "busybox",
        "sh",
        "-c",
        "ulimit -n; ulimit -Hn; nproc",
    )
    assert done.stdout == "64\n128\n1\n"


def test_location_runs_a_tree_that_is_no_container(udocker):
    tree = udocker.folder("tree")
    done = udocker("run", "--name=source", "busybox", "true")
    assert done.returncode == 0
    udocker.out("export", "-o", udocker.home / "tree.tar", "source")
    udocker.person.run(["tar", "xf", udocker.home / "tree.tar", "-C", tree, "--exclude=dev/*"], check=True)
    assert (
        udocker.out("run", f"--location={tree}", "tree", "/bin/sh", "-c", "echo here > /written; cat /written")
        == "here"
    )
    assert (tree / "written").read_text() == "here\n"
    assert (tree / "bin/busybox").exists()
    assert len(udocker.containers()) == 1  # udocker takes the first word for a container's name, and leaves it


def test_what_has_no_effect_is_taken(udocker):
    done = run(
        udocker, "--memory=1g", "--cap-drop=ALL", "--security-opt", "no-new-privileges", "busybox", "echo", "ran"
    )
    assert done.stdout == "ran\n"


# What is beside a running one


def test_udocker_s_second_run_in_the_same_container(udocker):
    first = udocker.start(
        "run",
        "--name=both",
        "busybox",
        "sh",
        "-c",
        "echo shared > /file; echo ready; sleep 1000",
        stdout=subprocess.PIPE,
    )
    first.stdout.readline()
    assert udocker.out("run", "both", "cat", "/file") == "shared"
    first.terminate()
    first.wait(60)


def test_issues_458_and_127_exec_into_a_container_in_the_foreground(udocker):
    process = udocker.start(
        "run", "--name=front", "-e", "A=of the run", "-w", "/tmp", "busybox", "sh", "-c", "echo ready; sleep 1000",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    assert udocker.out("exec", "front", "sh", "-c", "echo $A; pwd; id -u") == "of the run\n/tmp\n0"
    assert udocker.out(
        "exec", "-e", "A=own", "-u", "ann", "-w", "/etc", "front", "sh", "-c", "echo $A; pwd; id -u; echo $HOME"
    ) == ("own\n/etc\n1000\n/home/ann")
    data = os.urandom(200_000)
    assert udocker("exec", "-i", "front", "cat", input=data, text=False).stdout == data
    assert udocker("exec", "front", "sh", "-c", "exit 9").returncode == 9
    assert udocker("exec", "front", "no-such-program").returncode == 127
    assert "sleep 1000" in udocker.out("top", "front")
    udocker.out("exec", "-d", "front", "sh", "-c", "echo done > /detached")
    until(lambda: udocker("exec", "front", "cat", "/detached").stdout == "done\n", "what was detached ran")
    process.terminate()
    process.wait(60)
    assert udocker("exec", "front", "true").returncode == 1


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_files_are_copied_in_both_directions(udocker, running):
    udocker.out("run", "-d", "--name=copies", "busybox", "sleep", "1000")
    if not running:
        udocker.out("stop", "-t", "0", "copies")
    tree = udocker.folder("tree")
    (tree / "sub").mkdir()
    (tree / "sub/file").write_bytes(b"\x00binary\xff" * 100_000)
    (tree / "name with ä").write_text("x")
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o750)
    os.link(tree / "script", tree / "link")
    (tree / "away").symlink_to("/etc/passwd")
    for path in (tree / "sub", *tree.rglob("*")):
        os.chown(path, udocker.person.uid, udocker.person.gid, follow_symlinks=False)
    udocker.out("cp", tree, "copies:/new")
    udocker.out("cp", tree, "copies:/tmp")
    udocker.out("cp", f"{tree}/.", "copies:/root")
    udocker.out("cp", tree / "sub/file", "copies:/renamed")
    assert udocker("cp", tree, "copies:/no/such/folder").returncode == 1
    out = udocker.folder("out")
    for source, target in (("/new", out / "new"), ("/tmp/tree", out), ("/root/.", out / "root"), ("/renamed", out)):
        udocker.out("cp", f"copies:{source}", target)
    for found in (out / "new", out / "tree", out / "root"):
        assert (found / "sub/file").read_bytes() == (tree / "sub/file").read_bytes()
        assert (found / "name with ä").read_text() == "x"
        assert stat.S_IMODE((found / "script").stat().st_mode) == 0o750
        assert (found / "script").samefile(found / "link")
        assert os.readlink(found / "away") == "/etc/passwd"
    assert (out / "renamed").read_bytes() == (tree / "sub/file").read_bytes()
    done = udocker("cp", "copies:/new", "-", text=False)
    listing = subprocess.run(["tar", "t"], input=done.stdout, capture_output=True, check=True).stdout.decode()
    assert "new/sub/file" in listing
    assert udocker("cp", "-", "copies:/home", input=done.stdout, text=False).returncode == 0
    udocker.out("cp", "copies:/home/new/script", out / "through")
    assert (out / "through").read_text() == "#!/bin/sh\n"
    assert udocker("cp", "copies:/nothing", out).returncode == 1


def test_no_link_of_a_container_leads_a_copy_outside(udocker):
    outside = udocker.folder("outside")
    (outside / "secret").write_text("secret")
    script = f"ln -s {outside} /trap; mkdir /tree; ln -s {outside} /tree/sub; ln -s / /root/all; echo x > /file"
    udocker.out("run", "--name=hostile", "busybox", "sh", "-c", script)
    file = udocker.folder("own") / "file"
    file.write_text("from the host")
    os.chown(file, udocker.person.uid, udocker.person.gid)
    assert udocker("cp", file, "hostile:/trap/written").returncode == 1  # the container has no such folder
    udocker("cp", file, f"hostile:/root/all{outside}")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert udocker("cp", "hostile:/trap/secret", udocker.folder("taken")).returncode == 1
    # A target that holds the same link already: what is below it in the container does not go through it.
    target = udocker.folder("target")
    (target / "sub").symlink_to(outside)
    udocker.out("run", "hostile", "sh", "-c", "rm /tree/sub; mkdir /tree/sub; echo planted > /tree/sub/planted")
    done = udocker("cp", "hostile:/tree/.", target)
    assert done.returncode == 1
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_diff_and_commit(udocker):
    udocker.out("run", "--name=changed", "busybox", "sh", "-c", "echo new > /new; rm /etc/group; chmod 700 /home")
    found = udocker.out("diff", "changed").splitlines()
    assert {"A /new", "D /etc/group", "C /home"} <= set(found)
    udocker.out(
        "commit",
        "-m",
        "what was done",
        "-a",
        "Ann",
        "-c",
        "CMD cat /new",
        "-c",
        "ENV A=1 B='two words'",
        "changed",
        "mine:1",
    )
    assert udocker.out("run", "--rm", "mine:1") == "new"
    assert (
        udocker.out("run", "--rm", "mine:1", "sh", "-c", "test -e /etc/group || echo gone; echo $A $B")
        == "gone\n1 two words"
    )
    udocker.out("rmi", "mine:1")


def test_prune_takes_what_does_not_run(udocker):
    udocker.out("create", "--name=stopped", "busybox")
    udocker.out("create", "--name=kept", "busybox")
    udocker.out("protect", "kept")
    udocker.out("run", "-d", "--name=runs", "busybox", "sleep", "1000")
    udocker.docker("container", "prune", "-f")
    names = udocker.out("ps")
    assert "stopped" not in names
    assert "kept" in names
    assert "runs" in names


def test_a_plain_tree_for_scripts_that_look_into_root(udocker):
    udocker.out("run", "--name=looked", "busybox", "sh", "-c", "echo mine > /written; rm /etc/group")
    root = udocker.out("inspect", "-p", "looked")
    assert root == str(udocker.store / "containers" / os.readlink(udocker.store / "containers/looked") / "ROOT")
    assert udocker.person.run(["cat", f"{root}/written"]).stdout == "mine\n"
    assert udocker.person.run(["ls", f"{root}/etc"]).stdout.split() == ["passwd"] or "group" not in os.listdir(
        f"{root}/etc"
    )
    assert udocker.out("run", "looked", "cat", "/written") == "mine"


# What happens to whoever is killed, and at once


def test_twenty_commands_killed_at_random_leave_a_store_that_works(udocker):
    choose = random.Random(4)
    commands = [
        ["run", "--rm", "busybox", "sleep", "0.2"],
        ["run", "-d", "--name=NAME", "busybox", "sleep", "1000"],
        ["create", "--name=NAME", "busybox"],
        ["run", "--name=NAME", "busybox", "sh", "-c", "echo x > /file"],
    ]
    for number in range(20):
        command = [word.replace("NAME", f"n{number}") for word in commands[number % 4]]
        process = udocker.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(choose.uniform(0.01, 0.15))
        process.kill()
        process.wait(60)
    for name in choose.sample(range(20), 6):
        udocker("stop", "-t", "0", f"n{name}")
    monitors = [pid for pid, line in udocker.person.processes().items() if "n5" in line or "n9" in line]
    for pid in monitors:
        os.kill(pid, signal.SIGKILL)
    until(lambda: udocker("ps").returncode == 0, "ps works")
    for identifier in udocker.containers():
        state = json.loads(udocker.docker("inspect", identifier).stdout)[0]["State"]["Status"]
        assert state in ("created", "exited", "running"), state
        udocker.out("rm", "-f", identifier)
    assert udocker.docker("container", "prune", "-f").returncode == 0
    assert udocker.containers() == []
    assert udocker.out("run", "--rm", "busybox", "echo", "works") == "works"
    until(lambda: not [line for line in udocker.person.processes().values() if "sleep" in line], "nothing runs on")
    left = [path.name for path in (udocker.store / "tmp").iterdir()]
    assert left == [], left
    assert [path.name for path in (udocker.store / "containers").iterdir()] == []


def test_start_stop_and_rm_at_once_are_done_one_after_the_other(udocker):
    for _round in range(3):
        udocker.out("run", "-d", "--name=busy", "busybox", "sleep", "1000")
        commands = [["stop", "-t", "0", "busy"], ["start", "busy"], ["start", "busy"], ["stop", "-t", "0", "busy"],
                    ["rm", "-f", "busy"]]  # fmt: skip
        started = [udocker.start(*one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for one in commands]
        for process in started:
            text = process.communicate(timeout=60)[0]
            assert "Traceback" not in text, text
            assert "defect" not in text, text
        udocker("rm", "-f", "busy")
        assert udocker.containers() == []
    until(lambda: not [line for line in udocker.person.processes().values() if "sleep" in line], "nothing runs on")


# Where there are no user namespaces


def test_issues_144_243_and_105_nested_in_a_container(udocker):
    host = [word for path in ("/usr", "/lib", "/lib64") if os.path.exists(path) for word in ("-v", f"{path}:{path}:ro")]
    own = ["-v", f"{udocker.path}:/udocker", "-v", f"{udocker.home / image().name}:/image.tar", "--tmpfs", "/store"]
    script = """
        export UDOCKER_DIR=/store PATH=/usr/bin:/bin
        /udocker load -i /image.tar && /udocker run --rm busybox sh -c 'echo nested; exit 5'; echo $?
    """
    done = run(udocker, *host, *own, "busybox", "sh", "-c", script)
    assert done.stdout.splitlines()[-2:] == ["nested", "5"], done.stderr


@pytest.fixture(scope="module")
def denied():
    with Program(subids=False, deny=True, name="den") as made:
        yield made


def test_issues_144_243_and_105_inside_docker_with_namespaces_denied(denied):
    done = denied("run", "--rm", "-e", "A=1", "busybox", "sh", "-c", "echo $A; id -u; exit 4")
    assert (done.returncode, done.stdout) == (4, "1\n0\n"), done.stderr
    assert denied("run", "--rm", "busybox", "no-such-program").returncode == 127
    data = os.urandom(100_000)
    assert denied("run", "--rm", "busybox", "cat", input=data, text=False).stdout == data
    denied.out("run", "-d", "--name=back", "busybox", "sh", "-c", "echo started; sleep 1000")
    until(lambda: denied.out("logs", "back") == "started", "the log has its line")
    assert denied.out("exec", "back", "echo", "inside") == "inside"
    denied.out("stop", "-t", "1", "back")
    denied.out("rm", "back")
    until(lambda: not [line for line in denied.person.processes().values() if "sleep" in line], "nothing runs on")


def test_namespaces_denied_files_signals_and_copies(denied):
    folder = denied.folder("data")
    (folder / "file").write_text("of the host\n")
    os.chown(folder / "file", denied.person.uid, denied.person.gid)
    done = denied(
        "run", "--rm", "-v", f"{folder}:/data", "busybox", "sh", "-c", "cat /data/file; echo more > /data/new"
    )
    assert done.stdout == "of the host\n", done.stderr
    assert (folder / "new").read_text() == "more\n"
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = denied.start("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.read() == "got it\n"
    assert process.wait(60) == 9
    denied.out("create", "--name=copies", "busybox")
    denied.out("cp", folder, "copies:/tmp/new")
    assert denied.out("run", "copies", "cat", "/tmp/new/file") == "of the host"
    denied.out("run", "copies", "ln", "-s", str(folder), "/trap")
    assert denied("cp", folder / "file", "copies:/trap/planted").returncode == 1
    assert not (folder / "planted").exists()
    denied.out("cp", "copies:/tmp/new/file", denied.home / "back")
    assert (denied.home / "back").read_text() == "of the host\n"
    denied.out("rm", "copies")


def test_namespaces_denied_a_shell_on_a_terminal(denied):
    terminal = Terminal(denied, "run", "--rm", "-it", "busybox", "sh")
    terminal.expect("# ")
    terminal.type("stty size; exit 5\n")
    code, seen = terminal.end()
    assert code == 5
    assert b"31 97" in seen

# SPDX-License-Identifier: Apache-2.0
"""Modules, connection and role of the runtime, by real plays of a user without rights, here and over SSH."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ansible
import pytest
import yaml

import udocker_images
from udocker_people import Person
from udocker_program import Program

ROOT = Path(__file__).parents[3]
SITE = Path(ansible.__file__).parents[1]
PLAYBOOK = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'; main()"
SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def collections():
    """A copy of the collection: all plays of a test see one state of it, whatever is edited meanwhile."""
    Controller.collections = Path(tempfile.mkdtemp(prefix="collections-"))
    Controller.collections.chmod(0o755)
    source = ROOT / "collections/ansible_collections"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, Controller.collections / "ansible_collections", ignore=ignored)
    yield
    shutil.rmtree(Controller.collections)


class Play:
    """What a playbook did: status, output, and a count of tasks by host."""

    def __init__(self, done):
        self.status, self.output = done.returncode, done.stdout + done.stderr
        found = re.findall(r"^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", done.stdout, re.M)
        self.hosts = {host: dict(zip(("ok", "changed", "unreachable", "failed"), map(int, counts), strict=True))
                      for host, *counts in found}  # fmt: skip

    def shown(self, name):
        """What a task `debug: {var: NAME}` showed, by host."""
        pattern = rf'^ok: \[(\S+)\] => (\{{\n    "{re.escape(name)}": .*?\n\}})$'
        return {host: json.loads(text)[name] for host, text in re.findall(pattern, self.output, re.M | re.S)}


class Controller:
    """Runs plays as a person (None: as root), with this project's collection."""

    collections = None

    def __init__(self, folder, person=None):
        self.folder, self.person = Path(folder), person

    def __call__(self, tasks, *options, hosts="localhost,", good=True, **variables):
        playbook = self.folder / "play.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        return self.play(playbook, *options, hosts=hosts, good=good, **variables)

    def play(self, playbook, *options, hosts="localhost,", good=True, **variables):
        environment = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONPATH": f"{SITE}:{self.collections}",
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOST_KEY_CHECKING": "False",
        }  # fmt: skip
        arguments = ["-i", hosts, playbook, *options]
        if hosts == "localhost,":
            variables = {"ansible_connection": "ansible.builtin.local", **variables}
        arguments += ["-e", json.dumps(variables)]
        if self.person:
            # of the tests' version, so that it can import what they import
            python = Path(f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
            if not python.exists():
                pytest.skip(f"{python} is what a user without rights could run Ansible with")
            done = self.person.run([python, "-c", PLAYBOOK, *arguments], env=environment, cwd=ROOT, timeout=SECONDS)
        else:
            environment |= {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
            done = subprocess.run(
                [sys.executable, "-c", PLAYBOOK, *map(str, arguments)], env=environment, cwd=ROOT, text=True,
                capture_output=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        found = Play(done)
        assert (found.status == 0) == good, found.output[-6000:]
        return found


@pytest.fixture(scope="module")
def udocker():
    if os.geteuid() != 0:
        pytest.skip("users are made by root")
    with Program(subids=True, name="ans") as made:
        yield made


@pytest.fixture
def here(udocker):
    """The person runs Ansible on the machine that has the containers."""
    folder = udocker.folder("plays")
    yield Controller(folder, udocker.person)
    udocker.clear()


@pytest.fixture(scope="module")
def debian(udocker):
    """A Debian root, as an image of the person."""
    udocker.out("load", "-i", udocker.person.give(udocker_images.debian()), "debian:bookworm", timeout=120)
    return "debian:bookworm"


class Server:
    """A real sshd on loopback, which a person may log in to with a key."""

    def __init__(self, person):
        self.folder = Path(tempfile.mkdtemp(prefix="sshd-"))  # sshd looks at keys as whoever logs in
        self.admit(person)
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True, timeout=30)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        os.makedirs("/run/sshd", exist_ok=True)  # where sshd confines itself to
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.folder}/host\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/user.pub\nUsePAM no\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
        )
        self.folder.chmod(0o755)
        self.variables = {
            "ansible_port": self.port, "ansible_ssh_private_key_file": str(self.folder / "user"),
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_control_path_dir": str(self.folder / "control"), "ansible_ssh_user": person.name,
        }  # fmt: skip
        self.process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(self.folder / "sshd_config")])
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "sshd does not listen after 10 s"
                time.sleep(0.02)

    @staticmethod
    def admit(person):
        """Let a user log in whose account is locked for want of a password."""
        subprocess.run(["usermod", "--password", "*", person.name], check=True, timeout=30)

    def close(self):
        for path in (self.folder / "control").glob("*"):
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={path}", "x"], capture_output=True, check=False)
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def server(udocker):
    made = Server(udocker.person)
    yield made
    made.close()


# The connection

BRING = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-minimal python3-apt >/dev/null
"""
INSTALL = [
    {"name": "Bring Python", "ansible.builtin.raw": BRING},
    {"name": "Install", "ansible.builtin.apt": {"name": "hello"}},
    {"name": "Run", "ansible.builtin.command": "hello", "register": "said", "changed_when": False},
    {"name": "Show", "ansible.builtin.debug": {"var": "said.stdout"}},
]  # fmt: skip
CONNECTION = "dodas.cluster.udocker"


def test_a_play_installs_a_package_in_a_container_of_this_user(udocker, here, debian):
    udocker.out("create", "--name=work", debian)
    done = here(INSTALL, hosts="work,", ansible_connection=CONNECTION)
    assert done.shown("said.stdout") == {"work": "Hello, world!"}
    assert udocker.out("run", "work", "dpkg-query", "-W", "-f", "${Status}", "hello") == "install ok installed"
    again = here(INSTALL[1:], "--diff", hosts="work,", ansible_connection=CONNECTION)
    assert again.hosts["work"]["changed"] == 0


def test_a_play_installs_a_package_in_a_running_container_over_ssh(udocker, debian, server, tmp_path):
    udocker.out("run", "--detach", "--name=there", debian, "sleep", "1000")
    play = Controller(tmp_path)
    variables = {"ansible_connection": CONNECTION, "ansible_udocker_host": "127.0.0.1", **server.variables}
    try:
        done = play(INSTALL, hosts="there,", **variables)
        assert done.shown("said.stdout") == {"there": "Hello, world!"}
        assert udocker.out("exec", "there", "hello") == "Hello, world!"
        # what the task left running is still there with the next one
        background = [
            {"ansible.builtin.shell": "sleep 500 >/dev/null 2>&1 &"},
            {"ansible.builtin.raw": "grep -l sleep /proc/[0-9]*/comm | wc -l", "register": "count"},
            {"ansible.builtin.debug": {"var": "count.stdout"}},
        ]
        assert int(play(background, hosts="there,", **variables).shown("count.stdout")["there"]) == 2
    finally:
        udocker.clear()


FILES = [
    {"ansible.builtin.raw": "id -un; cat /file; stat -c '%U %s' /file 2>/dev/null | head -1", "register": "seen"},
    {"ansible.builtin.debug": {"var": "seen.stdout_lines"}},
]


@pytest.mark.parametrize("start", [False, True], ids=["created", "running"])
def test_files_of_any_size_and_content_go_in_and_out(udocker, here, start):
    udocker.out("create", "--name=box", "busybox", "sleep", "1000")
    if start:
        udocker.out("start", "box")
    content = bytes(range(256)) * 4 * 33 * 1024  # more than one chunk of the plugin
    source = here.folder / "source"
    source.write_bytes(content)
    # an action that needs no Python in the container
    plugin = (
        "import os, sys\n"
        "from ansible.playbook.play_context import PlayContext\n"
        "from ansible.plugins.loader import connection_loader, init_plugin_loader\n"
        "init_plugin_loader()\n"
        "context = PlayContext(); context.remote_addr = 'box'\n"
        f"connection = connection_loader.get('{CONNECTION}', context)\n"
        "connection.set_options(var_options={'ansible_host': 'box'})\n"
        "connection.put_file(sys.argv[1], '/tmp/a file')\n"
        "connection.put_file(os.devnull, '/tmp/empty')\n"
        "connection.fetch_file('/tmp/a file', sys.argv[2])\n"
        "connection.fetch_file('/tmp/empty', sys.argv[3])\n"
        "print(connection.exec_command('wc -c \"/tmp/a file\"; cat', in_data=bytes([0, 255, 10]))[1])\n"
    )
    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    environment = {"PYTHONPATH": f"{SITE}:{ROOT / 'collections'}", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = [python, "-c", plugin, source, here.folder / "target", here.folder / "empty"]
    done = udocker.person.run(command, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (here.folder / "target").read_bytes() == content
    assert (here.folder / "empty").read_bytes() == b""
    assert done.stdout.strip() == repr(f"{len(content)} /tmp/a file\n".encode() + bytes([0, 255, 10]))


def test_the_user_inside_is_the_one_that_is_asked_for(udocker, here):
    udocker.out("create", "--name=box", "busybox")
    tasks = [
        {"ansible.builtin.raw": "id -u; echo ~", "register": "who"},
        {"ansible.builtin.debug": {"var": "who.stdout_lines"}},
    ]
    assert here(tasks, hosts="box,", ansible_connection=CONNECTION).shown("who.stdout_lines")["box"] == ["0", "/root"]
    done = here(tasks, hosts="box,", ansible_connection=CONNECTION, ansible_user="ann")
    assert done.shown("who.stdout_lines")["box"] == ["1000", "/home/ann"]


def test_a_container_that_does_not_exist_is_unreachable_and_named(here):
    done = here([{"ansible.builtin.raw": "true"}], hosts="nobody,", good=False, ansible_connection=CONNECTION)
    assert done.hosts["nobody"]["unreachable"] == 1
    assert "container nobody on the controller" in done.output


# Modules


def container(**parameters):
    return {"dodas.cluster.udocker_container": parameters, "register": "found"}


SHOW = [{"ansible.builtin.debug": {"var": "found"}}]


def test_a_container_is_made_kept_changed_and_removed(udocker, here):
    asked = {"name": "kept", "image": "busybox", "command": ["sleep", "1000"], "env": {"LEVEL": 3, "TOKEN": "s3cret"}}
    checked = here([container(**asked), *SHOW], "--check", "--diff")
    assert checked.shown("found")["localhost"]["changed"] and udocker.containers() == []
    assert "+env: LEVEL=... TOKEN=..." in checked.output
    made = here([container(**asked), *SHOW], "--diff")
    assert made.shown("found")["localhost"]["container"]["State"]["Running"]
    assert udocker.out("exec", "kept", "sh", "-c", "echo $LEVEL $TOKEN") == "3 s3cret"
    [identifier] = udocker.containers()
    assert here([container(**asked)]).hosts["localhost"]["changed"] == 0
    changed = here([container(**{**asked, "env": {"LEVEL": 4, "TOKEN": "s3cret"}}), *SHOW], "--diff")
    assert changed.shown("found")["localhost"]["recreated"] == ["env"]
    assert "changed variables: LEVEL" in changed.output
    assert udocker.out("exec", "kept", "sh", "-c", "echo $LEVEL") == "4"
    [other] = udocker.containers()
    assert other != identifier
    stopped = here([container(name="kept", state="stopped"), container(name="kept", state="stopped"), *SHOW])
    assert stopped.hosts["localhost"]["changed"] == 1
    assert udocker.out("inspect", "--format={{.State.Status}}", "kept") == "exited"
    gone = here([container(name="kept", state="absent"), container(name="kept", state="absent")])
    assert gone.hosts["localhost"]["changed"] == 1 and udocker.containers() == []
    for play in (checked, made, changed):
        assert "s3cret" not in re.sub(r'"TOKEN=s3cret"', "", play.output), "only inspection shows it"


def test_a_command_is_waited_for_and_its_failure_has_its_last_lines(here):
    words = {"name": "once", "image": "busybox", "detached": False}
    done = here([container(**words, command=["sh", "-c", "echo out; echo err >&2"]), *SHOW])
    found = done.shown("found")["localhost"]
    assert (found["status"], found["stdout"], found["stderr"]) == (0, "out\n", "err\n")
    failed = here([container(**words, command=["sh", "-c", "echo dear me; exit 3"])], good=False)
    assert "container once ended with status 3: dear me" in failed.output
    at_once = {"name": "daemon", "image": "busybox", "command": ["sh", "-c", "echo no configuration; exit 78"]}
    failed = here([container(**at_once)], good=False)
    assert "container daemon ended at once with status 78; its last lines:\\nno configuration" in failed.output


def test_what_containers_log_is_returned(udocker, here):
    udocker.out(
        "run", "--detach", "--name=talker", "busybox", "sh", "-c", "for i in 1 2 3; do echo line $i; done; sleep 1000"
    )
    info = {"dodas.cluster.udocker_container_info": {"name": "talker", "logs": 2}, "register": "found", "retries": 20,
            "delay": 0.1, "until": "found.containers[0].Logs | length == 2"}  # fmt: skip
    [found] = here([info, *SHOW]).shown("found")["localhost"]["containers"]
    assert (found["Name"], found["Logs"]) == ("/talker", ["line 2", "line 3"])


def test_images_are_loaded_built_tagged_and_removed(udocker, here, tmp_path):
    archive = udocker.person.give(udocker_images.busybox(tmp_path, kind="docker", name="any:1"), "loaded.tar")
    context = udocker.folder("context")
    (context / "Containerfile").write_text("FROM localhost/loaded:1\nARG WHAT\nRUN echo $WHAT > /what\n")

    def image(**parameters):
        return {"dodas.cluster.udocker_image": parameters, "register": "found"}

    load = image(name="localhost/loaded:1", source="load", archive=str(archive), tags=["localhost/loaded:2"])
    checked = here([load], "--check", "--diff")
    assert checked.hosts["localhost"]["changed"] == 1 and "+localhost/loaded:2: (not known yet)" in checked.output
    assert "localhost/loaded" not in udocker.out("images")
    assert here([load, load]).hosts["localhost"]["changed"] == 1
    build = image(name="localhost/built:1", source="build", build={"path": str(context), "args": {"WHAT": "this"}})
    assert here([build, build]).hosts["localhost"]["changed"] == 1
    assert udocker.out("run", "--rm", "localhost/built:1", "cat", "/what") == "this"
    info = {"dodas.cluster.udocker_image_info": {}, "register": "found"}
    names = {one["name"] for one in here([info, *SHOW]).shown("found")["localhost"]["images"]}
    assert {"localhost/loaded:1", "localhost/loaded:2", "localhost/built:1"} <= names
    gone = image(name="localhost/built:1", state="absent")
    assert here([gone, gone]).hosts["localhost"]["changed"] == 1
    missing = image(name="localhost/other:1", source="load", archive="/nowhere.tar")
    assert "/nowhere.tar" in here([missing], good=False).output


# The role

ROLE = [{"ansible.builtin.include_role": {"name": "udocker"}}]


def test_a_user_gets_the_program_its_link_and_completion(tmp_path, server):
    with Person("new", subids=False) as person:
        play = Controller(tmp_path)
        server.admit(person)
        variables = {**server.variables, "ansible_ssh_user": person.name, "ansible_host": "127.0.0.1",
                     "udocker_docker_link": True, "udocker_config": {"timeout": 7}}  # fmt: skip
        checked = play(ROLE, "--check", "--diff", hosts="there,", **variables)
        assert checked.hosts["there"]["changed"] > 0 and not (person.home / ".local").exists()
        play(ROLE, hosts="there,", **variables)
        again = play(ROLE, "--diff", hosts="there,", **variables)
        assert again.hosts["there"]["changed"] == 0, again.output
        program = person.home / ".local/bin/udocker"
        assert (person.home / ".local/bin/docker").readlink() == Path("udocker")
        assert "udocker" in (person.home / ".local/share/bash-completion/completions/udocker").read_text()
        assert "timeout" in (person.home / ".udocker/udocker.conf").read_text()
        assert person.run([program, "--version"]).returncode == 0
        play(ROLE, hosts="there,", **variables, udocker_state="absent")
        assert not program.exists() and not (person.home / ".local/bin/docker").is_symlink()
        wrong = play(ROLE, hosts="there,", good=False, **variables, udocker_scope="site")
        assert f"udocker_scope is site, and tasks run as {person.name}" in wrong.output
        (person.home / ".local/bin/docker").write_text("another")
        wrong = play(ROLE, hosts="there,", good=False, **variables)
        assert f"{person.home}/.local/bin/docker is another program" in wrong.output

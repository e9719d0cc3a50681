# SPDX-License-Identifier: Apache-2.0
"""The podman engine with podman and systemd replaced by a stand-in; the real ones run in the end-to-end test."""

import contextlib
import copy
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.engine import app, podman
from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import parse

ME = pwd.getpwuid(os.geteuid()).pw_name


class Host:
    """A stand-in for podman and systemd on one host."""

    def __init__(self, folder):
        self.folder = folder
        self.image = "sha256:1"
        self.active = False
        self.running = ""  # the digest that the container was started with
        self.calls = []
        self.fail = ""

    def run(self, *command, timeout=60, check=True, missing_ok=False):
        self.calls.append(command)
        match command:
            case ["podman", "image", "inspect", *_]:
                return f"{self.image}\n" if self.image else ""
            case ["podman", "inspect", *_]:
                return f"running {self.running}\n" if self.active else "\n"
            case ["systemctl", "is-active", *_]:
                return "active\n" if self.active else "inactive\n"
            case ["systemctl", "restart", unit]:
                if self.fail:
                    raise podman.EngineError(self.fail)
                self.active = True
                text = (self.folder / "etc/systemd/system" / unit).read_text()
                self.running = re.search(r"dodas.digest=(\w+)", text).group(1)
            case ["systemctl", "disable", *_]:
                self.active = False
            case ["journalctl", *_]:
                return "squid: out of luck\n"
            case ["ss", *_]:
                return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return ""

    def did(self, *words):
        return any(command[: len(words)] == words for command in self.calls)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    found = Host(tmp_path)
    for folder in ("etc/systemd/system", "etc/dodas/apps", "run/dodas/apps"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(app, "run", found.run)
    monkeypatch.setattr(podman.host, "cgroups", lambda: {"version": "v2", "controllers": ["cpu", "memory", "pids"]})
    return found


def definition(tmp_path, **changes):
    return {
        "id": "squid",
        "env": {"TOKEN": "s3cret-of-env"},
        "container": {
            "docker": {"image": "localhost/dodas/squid:latest"},
            "volumes": [{"hostPath": str(tmp_path / "data"), "containerPath": "/data", "mode": "RW"}],
        },
        "healthChecks": [{"protocol": "COMMAND", "command": {"value": "true"}}],
        **changes,
    }


def files(tmp_path, content="port 3128\n", secret="s3cret-of-file"):
    return [
        {"path": str(tmp_path / "etc/squid.conf"), "content": content, "mode": "0644", "owner": ME},
        {"path": str(tmp_path / "etc/key"), "content": secret, "mode": "0600", "owner": ME},
    ]


@pytest.fixture
def make(tmp_path, monkeypatch):
    # the engine's own files belong to root, who may not be the one that runs the tests
    monkeypatch.setattr(podman.PodmanApp, "owner", ME)

    def made(content="port 3128\n", secret="s3cret-of-file", **changes):
        given = files(tmp_path, content, secret)
        return podman.PodmanApp(parse(definition(tmp_path, **changes)), given, root=tmp_path)

    return made


def up(app):
    plan = app.plan()
    app.apply(plan, 5)
    return plan


def unquote(line):
    """What systemd makes of a command line, written from systemd.service(5) and independent of the engine."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)
    result = []
    for quoted, plain in words:
        word = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r", "t": "\t"}.get(m[1], m[1]), quoted) or plain
        assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word), f"a variable is expanded: {word}"
        assert not re.search(r"(?<!%)(%%)*%(?!%)", word), f"a specifier is expanded: {word}"
        result.append(word.replace("$$", "$").replace("%%", "%"))
    return result


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_quoted_words_come_back(words):
    line = " ".join(podman._quote(word) for word in words)
    assert "\n" not in line
    assert unquote(line) == words


def test_the_unit_says_what_the_definition_says(machine, make, tmp_path):
    wild = "echo \"100 %\" '$HOME' \\ ; exit\nnext"
    parameters = [{"key": "device", "value": "/dev/fuse"}]
    docker = {"image": "localhost/dodas/squid:latest", "privileged": True, "parameters": parameters}
    volumes = [{"hostPath": "/a dir", "containerPath": "/b", "mode": "RO"}]
    app = make(cmd=wild, user="proxy", cpus=0.5, mem=64, container={"docker": docker, "volumes": volumes},
               dependencies=["/identity"], taskKillGracePeriodSeconds=7)  # fmt: skip
    unit = app.render()[-1]
    line = re.search(r"^ExecStart=(.*)$", unit.content, re.M).group(1)
    words = unquote(line)
    assert words[-3:] == ["/bin/sh", "-c", wild]
    for option in ("--user=proxy", "--cpus=0.5", "--memory=64m", "--privileged", "--device=/dev/fuse",
                   "--volume=/a dir:/b:ro", "--stop-timeout=7", "--pull=never", "--network=host"):  # fmt: skip
        assert option in words
    assert "After=network-online.target consul.service dodas-identity.service" in unit.content
    if shutil.which("systemd-analyze"):
        path = tmp_path / "dodas-squid.service"
        path.write_text(unit.content.replace("/usr/bin/podman", "/bin/true"))
        command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert str(path) not in done.stderr, "systemd finds something to say"


def test_no_limits_are_asked_for_where_they_do_not_work(machine, make, monkeypatch):
    monkeypatch.setattr(podman.host, "cgroups", lambda: {"version": "v1", "controllers": []})
    text = make().render()[-1].content
    assert "--cgroups=disabled" in text
    assert "--memory" not in text


def test_secrets_are_in_files_of_mode_600_only(machine, make, tmp_path):
    app = make()
    plan = app.plan()
    shown = json.dumps([one.diff() for one in plan["files"]])
    assert "s3cret" not in shown
    assert "port 3128" in shown
    app.apply(plan, 5)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "s3cret" in path.read_text():
            assert path.stat().st_mode & 0o777 == 0o600, path
    assert "s3cret" not in json.dumps(machine.calls)


def test_a_second_run_changes_nothing(machine, make, tmp_path):
    assert up(make())["restart"]
    assert machine.did("systemctl", "daemon-reload")
    assert (tmp_path / "data").is_dir()
    machine.calls.clear()
    again = up(make())
    assert again == {"files": [], "restart": False}
    assert not machine.did("systemctl", "restart")


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"TOKEN": "other"}},
        {"args": ["-N"]},
        {"mem": 129},
        {"labels": {"a": "b"}},
        {"healthChecks": []},
        {"content": "port 3129\n"},
        {"secret": "other"},
        {"image": "sha256:2"},
    ],
)
def test_any_change_restarts(machine, make, changes):
    up(make())
    machine.image = changes.pop("image", machine.image)
    plan = up(make(**changes))
    assert plan["restart"]
    assert up(make(**changes)) == {"files": [], "restart": False}


def test_the_order_of_files_and_of_fields_is_no_change(machine, make, tmp_path):
    first = make()
    given = definition(tmp_path)
    again = parse(dict(reversed(copy.deepcopy(given).items())))
    same = podman.PodmanApp(again, list(reversed(files(tmp_path))), root=tmp_path)
    first.render()
    same.render()
    assert first.digest == same.digest


def test_files_do_not_run_into_each_other_in_the_digest(machine, make, tmp_path):
    first, second = make(content="a\0b", secret="c"), make(content="a", secret="b\0c")
    first.render()
    second.render()
    assert first.digest != second.digest


def test_an_edited_file_is_put_back_and_the_app_restarted(machine, make, tmp_path):
    up(make())
    (tmp_path / "etc/squid.conf").write_text("port 1\n")
    plan = up(make())
    assert plan["restart"]
    assert [one.path.name for one in plan["files"]] == ["squid.conf"]


def test_an_edited_record_is_put_back_without_a_restart(machine, make, tmp_path):
    up(make())
    (tmp_path / "etc/dodas/apps/squid.json").write_text("{}")
    plan = up(make())
    assert not plan["restart"]
    assert [one.path.name for one in plan["files"]] == ["squid.json"]


def test_an_app_that_stopped_is_started(machine, make):
    up(make())
    machine.active = False
    assert up(make())["restart"]


def test_a_file_can_be_mounted_to_be_written(machine, make, tmp_path):
    (tmp_path / "data").write_text("a file")
    up(make())
    assert (tmp_path / "data").read_text() == "a file"


def test_without_the_image_nothing_is_touched(machine, make, tmp_path):
    machine.image = ""
    with pytest.raises(podman.EngineError, match="image localhost/dodas/squid:latest is not on this host"):
        make().plan()
    assert not (tmp_path / "etc/squid.conf").exists()


@contextlib.contextmanager
def listening():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_in_use_names_the_process_before_anything_is_written(machine, make, tmp_path):
    with listening() as port:
        app = make(portDefinitions=[{"port": port, "name": "proxy"}])
        who = rf"py\S* \(process {os.getpid()}\)" if shutil.which("ss") else "Address already in use"
        with pytest.raises(podman.EngineError, match=rf"app squid: port {port} \(proxy\) is in use by {who}"):
            up(app)
        assert not (tmp_path / "etc/squid.conf").exists()
        assert not machine.did("systemctl", "restart")


def test_an_apps_own_port_is_not_in_its_way_but_a_new_one_of_others_is(machine, make, tmp_path):
    with listening() as own, listening() as foreign:
        machine.active = True
        (tmp_path / "etc/dodas/apps/squid.json").write_text(json.dumps({"ports": [{"port": own}]}))
        up(make(portDefinitions=[{"port": own}]))
        with pytest.raises(podman.EngineError, match=f"port {foreign} "):
            up(make(portDefinitions=[{"port": own}, {"port": foreign}]))
        up(make(portDefinitions=[{"port": own}, {"port": foreign, "protocol": "udp"}]))


def test_a_start_that_fails_shows_the_log_and_is_tried_again(machine, make):
    machine.fail = "systemctl restart dodas-squid.service: failed"
    with pytest.raises(podman.EngineError, match="last log lines:\nsquid: out of luck"):
        up(make())
    machine.fail = ""
    assert up(make())["restart"]


def test_healthy_is_what_the_agent_saw_after_the_restart(machine, make, tmp_path):
    app = make()
    state = tmp_path / "run/dodas/apps/squid.json"
    app.restarted = time.time()
    state.write_text(json.dumps({"state": "passing", "checked": app.restarted - 1, "output": "healthy"}))
    with pytest.raises(podman.EngineError, match=r"app squid is not healthy after 0\.3 s"):
        app.wait_healthy(0.3)
    state.write_text(json.dumps({"state": "critical", "checked": app.restarted + 1, "output": "HTTP 503: sorry"}))
    with pytest.raises(podman.EngineError, match="HTTP 503: sorry\nsquid: out of luck"):
        app.wait_healthy(0.3)
    state.write_text(json.dumps({"state": "passing", "checked": app.restarted + 1, "output": "healthy"}))
    app.wait_healthy(0.3)
    state.unlink()
    with pytest.raises(podman.EngineError, match="the app agent has not looked at it"):
        app.wait_healthy(0.3)


def test_remove_leaves_volumes_and_nothing_else(machine, make, tmp_path):
    app = make()
    assert not app.exists()
    app.remove()
    assert machine.calls == []
    up(app)
    (tmp_path / "data/kept").touch()
    assert app.exists()
    app.remove()
    assert not app.exists()
    assert not machine.active
    assert (tmp_path / "data/kept").exists()
    assert list((tmp_path / "etc/systemd/system").iterdir()) + list((tmp_path / "etc/dodas/apps").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-program-here"], "no-such-program-here is not installed"),
        (["sh", "-c", "echo broken >&2; exit 3"], "broken"),
        (["sleep", "5"], "sleep 5: no answer in 0.1 s"),
    ],
)
def test_commands_that_fail(command, message):
    with pytest.raises(podman.EngineError, match=message):
        app.run(*command, timeout=0.1 if command[0] == "sleep" else 5)

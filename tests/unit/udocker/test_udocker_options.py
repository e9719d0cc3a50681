# SPDX-License-Identifier: Apache-2.0
"""What options become: volumes, ports, durations, names, commands, logs, keys. Nothing is run."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import containers, logs, options, ports, terminal
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store


@pytest.fixture
def container(tmp_path):
    store = Store(tmp_path / "store")
    record = {"id": containers.new_id(), "image": "", "engine": "overlay", "layers": [], "created": 1.0}
    made = containers.Container(store, record["id"], record, {})
    os.makedirs(made.directory)
    made.write_record()
    return made


def settings(**given):
    return dict(containers.OPTIONS, **given)


# Volumes


@pytest.mark.parametrize(
    ("text", "source", "target", "read_only"),
    [
        ("/tmp", "/tmp", "/tmp", False),
        ("/tmp:/data", "/tmp", "/data", False),
        ("/tmp:/data/", "/tmp", "/data", False),
        ("/tmp:/data:ro", "/tmp", "/data", True),
        ("/tmp:/data:rw,z", "/tmp", "/data", False),
        ("/tmp:ro", "/tmp", "/tmp", True),
        ("/tmp:/a//b/../c", "/tmp", "/a/c", False),
    ],
)
def test_a_volume_is_a_bind_mount(container, text, source, target, read_only):
    mount = options.volume(container, text, docker=False)
    assert (mount.kind, mount.source, mount.target, mount.read_only) == ("bind", source, target, read_only)


@pytest.mark.parametrize(
    "text", ["", ":/x", "/tmp:x", "/tmp:/", "/tmp:/a:ro:more", "/tmp:/a:fast", "/no/such:/a", "a b:/x"]
)
def test_a_volume_that_is_none(container, text):
    with pytest.raises(Error) as caught:
        options.volume(container, text, docker=False)
    assert caught.value.status == 125


def test_a_named_volume_is_a_folder_of_the_store(container):
    mount = options.volume(container, "name:/data", docker=False, live=False)
    assert mount.source == container.store.path("volumes", "name")


def test_what_lies_deeper_is_mounted_later_and_the_last_of_two_counts(container, tmp_path):
    given = settings(volume=["/tmp:/a/b", f"{tmp_path}:/a", "/tmp:/a"], nosysdirs=True)
    spec = options.build(container, ["true"], given, note=None, live=False)
    assert [(mount.target, mount.source) for mount in spec.mounts] == [("/a", "/tmp"), ("/a/b", "/tmp")]


def test_novol_leaves_out_what_would_be_shown(container):
    given = settings(volume=["/tmp:/a"], novol=["/tmp", "/etc/hosts", "/etc/resolv.conf"])
    spec = options.build(container, ["true"], given, note=None, live=False)
    assert spec.mounts == []


# Command and environment


@pytest.mark.parametrize(
    ("config", "argv", "more", "command"),
    [
        ({"Cmd": ["sh"]}, [], {}, ["sh"]),
        ({"Cmd": ["sh"]}, ["ls"], {}, ["ls"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, [], {}, ["e", "c"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, ["a"], {}, ["e", "a"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, [], {"entrypoint": "x"}, ["x"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, ["a"], {"entrypoint": ""}, ["a"]),
        ({}, ["a"], {"entrypoint": "x y"}, ["x", "y", "a"]),
        ({}, ["a"], {"entrypoint": "x y", "dialect": "docker"}, ["x y", "a"]),
        ({"Cmd": "ls -l"}, [], {}, ["ls", "-l"]),
    ],
)
def test_entrypoint_and_command_by_docker_s_rules(config, argv, more, command):
    assert options.command_of(config, argv, settings(**more), lambda text: None) == command


def test_no_command_at_all():
    said = []
    assert options.command_of({}, [], settings(), said.append) == options.SHELL
    assert said
    with pytest.raises(Error):
        options.command_of({}, [], settings(dialect="docker"), said.append)


def test_what_reaps_itself_is_process_1(container):
    assert options.build(container, ["/sbin/init"], settings(), None, live=False).init is False
    assert options.build(container, ["sh"], settings(), None, live=False).init is True
    assert options.build(container, ["sh"], settings(init=False), None, live=False).init is False


def test_environment_of_the_image_of_files_and_of_the_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOST", "of the host")
    monkeypatch.delenv("MISSING", raising=False)
    file = tmp_path / "env"
    file.write_text("A=file\n#no\n\n  B=two words \nHOST\n")
    given = settings(env=["A=line", "MISSING", "C="], env_file=[str(file)])
    env = options.environment({"Env": ["A=image", "PATH=/image", "MISSING=image"]}, given, None)
    wanted = {"A": "line", "B": "two words ", "C": "", "HOST": "of the host", "PATH": "/image"}
    assert {key: env.get(key) for key in (*wanted, "MISSING")} == {**wanted, "MISSING": None}
    file.write_text("not a name=x\n")
    with pytest.raises(Error, match="env:1"):
        options.environment({}, given, None)


def test_resolver(monkeypatch):
    text = options._resolv_conf(
        settings(dns=["192.0.2.1"], dns_search=["a.example", "b.example"], dns_option=["ndots:2"])
    )
    lines = [line for line in text.splitlines() if line.startswith(("nameserver", "search", "options", "domain"))]
    assert lines == ["nameserver 192.0.2.1", "search a.example b.example", "options ndots:2"]


# Numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("30", 30), ("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5s", 1.5), (2_000_000_000, 2)],
)
def test_durations(text, value):
    assert options.seconds(text, None) == value


@pytest.mark.parametrize("text", ["x", "1y", "s"])
def test_no_durations(text):
    with pytest.raises(Error):
        options.seconds(text, None)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1k", 1024), ("64m", 64 << 20), ("2G", 2 << 30), ("10kb", 10240)]
)
def test_sizes(text, value):
    assert options.size(text) == value


def test_restart_policies():
    assert containers.restart_policy("on-failure:3") == ("on-failure", 3)
    assert containers.restart_policy("") == ("no", 0)
    for text in ("sometimes", "always:3", "on-failure:x"):
        with pytest.raises(Error):
            containers.restart_policy(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080:80", [("tcp", "0.0.0.0", 8080, 80)]),
        ("80", [("tcp", "0.0.0.0", 0, 80)]),
        ("127.0.0.1:8080:80/udp", [("udp", "127.0.0.1", 8080, 80)]),
        ("127.0.0.1::80", [("tcp", "127.0.0.1", 0, 80)]),
        ("[::1]:8080:80", [("tcp", "::1", 8080, 80)]),
        ("8000-8001:80-81", [("tcp", "0.0.0.0", 8000, 80), ("tcp", "0.0.0.0", 8001, 81)]),
    ],
)
def test_ports(text, found):
    assert [(port.protocol, port.ip, port.host, port.inside) for port in ports.parse(text)] == found


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "0:80", "80:70000", "80/sctp", "8000-8002:80-81", "82-80"])
def test_no_ports(text):
    with pytest.raises(Error) as caught:
        ports.parse(text)
    assert caught.value.status == 125


# Who is alive


def test_a_process_is_told_from_another_of_the_same_number():
    own = containers.identity()
    assert containers.is_alive(own)
    assert not containers.is_alive(dict(own, start=own["start"] - 1))
    assert not containers.is_alive(dict(own, boot="another"))
    assert containers.is_alive(dict(own, boot="another", node="another")) is None
    assert containers.is_alive(dict(own, space="pid:[1]")) is None


def test_a_container_whose_keeper_is_gone_has_ended(container):
    keeper = containers.identity()
    container.write_state({"status": "running", "keeper": keeper})
    assert container.is_running()
    container.write_state({"status": "running", "keeper": dict(keeper, start=1)})
    assert (container.state()["status"], container.state()["code"]) == ("exited", 137)


def test_a_lock_is_waited_for_and_its_holder_named(container):
    held = pytest.raises(Error, match=f"start.*{os.getpid()}")
    with container.locked("start"), held, container.locked("remove", 0.05):
        pass
    with container.locked("remove", 0.05):
        pass


# Logs


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=50_000)), max_size=8))
def test_logs_give_back_the_same_bytes(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("log")
    writer = logs.Writer(str(folder / "log"))
    for stream, data in pieces:
        writer.write(stream, data)
    writer.close()

    class Container:
        name = "c"

        @staticmethod
        def path(name):
            return str(folder / name)

    found = {"stdout": b"", "stderr": b""}

    def take(stream, data):
        found[stream] += data

    logs.read(Container, take)
    for stream in found:
        assert found[stream] == b"".join(data for one, data in pieces if one == stream)


# Terminals


@pytest.mark.parametrize(
    ("keys", "typed", "passed", "detached"),
    [
        ("", b"abc", b"abc", False),
        ("", b"a\x10\x11b", b"a", True),
        ("", b"a\x10b", b"a\x10b", False),
        ("", b"\x10\x10\x11", b"\x10", True),
        ("ctrl-a,d", b"\x10\x11\x01d", b"\x10\x11", True),
    ],
)
def test_detach_keys(keys, typed, passed, detached):
    whole = terminal.DetachKeys(keys)
    assert (whole.feed(typed), whole.detached) == (passed, detached)
    apart = terminal.DetachKeys(keys)
    assert b"".join(apart.feed(bytes([byte])) for byte in typed if not apart.detached) == passed


@given(st.lists(st.tuples(st.sampled_from([b"i", b"o"]), st.binary(max_size=300))), st.integers(1, 50))
def test_frames_come_whole_however_they_are_cut(frames, size):
    stream = b"".join(terminal.frame(kind, content) for kind, content in frames)
    reader = terminal.Frames()
    found = [one for start in range(0, len(stream), size) for one in reader.feed(stream[start : start + size])]
    assert found == frames

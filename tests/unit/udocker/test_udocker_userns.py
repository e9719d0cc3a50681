# SPDX-License-Identifier: Apache-2.0
"""Maps of ids, users of a container, the filter that emulates root: what can be told without any namespace."""

import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import emulation, mounts, trees, userns, users
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.engines import process
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error

# Maps


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ann:100000:65536\n", [(100000, 65536)]),
        ("bob:1:2\nann:100000:65536\n1000:300000:10\n", [(100000, 65536), (300000, 10)]),
        ("ann:100000\nann:x:5\nann:5:0\n#ann:1:1\n ann:7:8 \n", [(7, 8)]),
        ("", []),
    ],
)
def test_ranges_of_further_ids(text, found):
    assert userns.parse_ranges(text, ("ann", "1000")) == found


def test_what_a_map_has():
    maps = userns.Maps("subids", [(0, 1000, 1), (1, 100000, 10)], [(0, 1000, 1), (1, 100000, 5)])
    assert maps.has(0, 0) and maps.has(10, 5)
    assert not maps.has(11, 0) and not maps.has(0, 6)


# Users

PASSWD = """root:x:0:0:root:/root:/bin/sh
web:x:33:34::/srv:/bin/sh
#old:x:5:5::/:
short:x:1
odd:x:-3:0::/:
12:x:77:77::/n:
"""
GROUP = "root:x:0:\nweb:x:34:\nmore:x:50:web,other\nlast:x:51:other,web\n"


def find(text, **files):
    content = {"/etc/passwd": PASSWD, "/etc/group": GROUP, **files}

    def read(path):
        if content[path] is None:
            raise FileNotFoundError(path)
        return content[path].encode()

    user = users.find(text, read)
    return user.uid, user.gid, user.groups, user.home


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, 0, [], "/root")),
        ("root", (0, 0, [], "/root")),
        ("web", (33, 34, [50, 51], "/srv")),
        ("33", (33, 34, [50, 51], "/srv")),
        ("web:more", (33, 50, [], "/srv")),
        ("33:7", (33, 7, [], "/srv")),
        ("1234", (1234, 0, [], "/")),
        ("1234:web", (1234, 34, [], "/")),
        ("12", (77, 77, [], "/n")),  # a name, although it looks like a number
    ],
)
def test_a_user_is_found_as_docker_finds_it(text, found):
    assert find(text) == found


def test_numbers_do_without_files():
    assert find("5:6", **{"/etc/passwd": None, "/etc/group": None}) == (5, 6, [], "/")
    assert find("", **{"/etc/passwd": None, "/etc/group": None}) == (0, 0, [], "/")


@pytest.mark.parametrize(
    "text", ["nobody", "old", "short", "odd", "-1", "4294967295", "web:nobody", "web:-1", "web:99999999999"]
)
def test_an_unknown_user_is_refused(text):
    with pytest.raises(Error) as caught:
        find(text)
    assert caught.value.status == 125


@given(st.text(max_size=200), st.text(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
def test_files_of_an_image_do_no_harm(passwd, group, text):
    passwd, group = (one.encode(errors="replace").decode() for one in (passwd, group))
    try:
        uid, gid, groups, _home = find(text, **{"/etc/passwd": passwd, "/etc/group": group})
    except Error:
        return
    assert all(0 <= number < 2**32 - 1 for number in (uid, gid, *groups))


# The filter

ALLOW, SUCCEED = emulation.ALLOW, emulation.SUCCEED
MINUS_ONE = 0xFFFFFFFF


def decide(machine, architecture, number, *arguments):
    """What the kernel would make of the filter: a simulation of its instructions."""
    data = {0: number, 4: architecture}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        data[16 + 8 * index] = value & 0xFFFFFFFF
    lines = emulation.program(machine)
    at = accumulator = steps = 0
    while True:
        code, true, false, k = lines[at]
        steps += 1
        at += 1
        if code == emulation.LOAD:
            accumulator = data[k]
        elif code == emulation.AND:
            accumulator &= k
        elif code == emulation.EQUAL:
            at += true if accumulator == k else false
        elif code == emulation.JUMP:
            at += k
        elif code == emulation.ANSWER:
            return k
        else:
            raise AssertionError(f"no such instruction: {code:#x}")


MACHINES = [(machine, name) for machine, names in emulation._RUNS.items() for name in names]


@pytest.mark.parametrize(("machine", "name"), MACHINES)
def test_what_the_kernel_grants_it_is_asked_for(machine, name):
    audit, numbers = emulation.ARCHITECTURES[name]
    for call, places in emulation._IDS.items():
        if call not in numbers:
            continue
        for value in (0, MINUS_ONE):
            arguments = [12345] * 6
            for place in places:
                arguments[place] = value
            expected = ALLOW if places else SUCCEED
            assert decide(machine, audit, numbers[call], *arguments) == expected, call
        for place in places:
            arguments = [0] * 6
            arguments[place] = 33
            assert decide(machine, audit, numbers[call], *arguments) == SUCCEED, call
    named = set(numbers.values())
    for number in range(600):
        if number not in named:
            assert decide(machine, audit, number, 33, 33, 33, 33) == ALLOW
    assert decide(machine, 0x12345678, numbers["fchown"], 1, 33, 33) == ALLOW  # of an architecture that is not known


@pytest.mark.parametrize(("machine", "name"), MACHINES)
def test_devices_are_not_made_and_all_else_is(machine, name):
    audit, numbers = emulation.ARCHITECTURES[name]
    for call, (mode, device) in emulation._MODES.items():
        if call not in numbers:
            continue
        for kind, number, expected in (
            (0o100644, 0, ALLOW), (0o010644, 5, ALLOW), (0o140644, 0, ALLOW), (0, 0, ALLOW),
            (0o020666, 0x103, SUCCEED), (0o060666, 0x800, SUCCEED), (0o020644, 0, ALLOW),
        ):  # fmt: skip
            arguments = [0] * 6
            arguments[mode], arguments[device] = kind, number
            assert decide(machine, audit, numbers[call], *arguments) == expected, (call, oct(kind))


def test_a_filter_is_made_of_whole_instructions():
    for machine in emulation._RUNS:
        lines = emulation.program(machine)
        content = emulation.assemble(lines)
        assert len(content) == 8 * len(lines) < 8 * 4096
        for index, (code, true, false, k) in enumerate(lines):
            for jump in (true, false, k if code == emulation.JUMP else 0):
                assert index + 1 + jump < len(lines) or code == emulation.ANSWER
            assert content[8 * index : 8 * index + 2] == code.to_bytes(2, "little")
            assert content[8 * index + 4 : 8 * index + 8] == k.to_bytes(4, "little")
    assert emulation.program("pdp11") is None


# Paths


def test_paths_are_walked_within_their_root(tmp_path):
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "file").write_text("in")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("out")
    for name, text in (
        ("absolute", "/a"), ("up", "../../../../a"), ("host", str(tmp_path / "outside")), ("loop", "loop"),
        ("a/back", "../file"), ("chain", "a/back"), ("dot", "./a/./b/.."), ("magic", "/proc/self/root"),
    ):  # fmt: skip
        (root / name).symlink_to(text)
    folder = os.open(root, os.O_RDONLY)

    def where(path, **options):
        found = mounts.resolve(folder, path, **options)
        try:
            return os.path.relpath(os.readlink(f"/proc/self/fd/{found}"), root)
        finally:
            os.close(found)

    before = len(os.listdir("/proc/self/fd"))
    assert where("/") == where("") == where("/../..") == "."
    assert where("absolute/b") == where("up/b") == where("/a//b/") == "a/b"
    assert where("chain") == "file" and where("dot") == "a"
    assert where("chain", follow=False) == "chain"
    assert where("host/file", make="file") == str(tmp_path / "outside/file").lstrip("/")
    assert where("magic/x/y", make="folder") == "proc/self/root/x/y"
    assert where("new/folder", make="folder") == "new/folder"
    assert (tmp_path / "outside/file").read_text() == "out"
    for path, number in (
        ("loop", errno.ELOOP), ("missing", errno.ENOENT), ("file/x", errno.ENOTDIR), ("missing/x", errno.ENOENT),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            mounts.resolve(folder, path)
        assert caught.value.errno == number, path
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(folder)


# Processes and trees


def test_lists_of_processors():
    assert process.parse_cpus("0-2,5, 7") == {0, 1, 2, 5, 7}
    for text in ("", "a", "1-", "-1", "1,,2", "2-x"):
        with pytest.raises(Error):
            process.parse_cpus(text)


def test_exit_codes():
    assert process.code_of(0) == 0 and process.code_of(5 << 8) == 5 and process.code_of(9) == 137


def test_a_process_is_told_by_its_start(tmp_path):
    running = {"pid": os.getpid(), "shown": os.getpid(), "start": process.started(os.getpid()), "engine": "overlay"}
    assert process.alive(running)
    assert not process.alive({**running, "start": running["start"] - 1})
    assert not process.alive(None) and process.started(2**22 + 1) is None
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process.started(child) is None  # it has ended, although nobody has looked
    os.waitpid(child, 0)
    assert process.remembered(tmp_path) is None
    (tmp_path / "running").write_text("what a crash left")
    assert process.remembered(tmp_path) is None


def test_sockets_and_pipes_are_deleted_like_files(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "socket"))
    (tree / "broken").symlink_to("nowhere")
    trees.remove(tree)
    assert not tree.exists()
    trees.remove(tmp_path / "missing/entirely")

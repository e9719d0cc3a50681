# SPDX-License-Identifier: Apache-2.0
"""Configuration files: whole or not at all, as asked for, and secrets unseen."""

import errno
import json
import os
import pwd
import subprocess
import sys
import threading

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile

ME = pwd.getpwuid(os.geteuid()).pw_name
root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts: needs root")


def test_a_file_is_made_with_its_directories_and_a_second_time_nothing_differs(tmp_path):
    one = ConfigFile(tmp_path / "a/b/c", "text äö\r\nnext\n", 0o640, ME)
    assert one.differs()
    os.umask(old := os.umask(0o077))
    one.write()
    assert os.umask(old) == old
    assert one.path.read_bytes() == "text äö\r\nnext\n".encode()
    assert one.path.stat().st_mode & 0o7777 == 0o640
    assert not one.differs(), "line ends are content"
    assert [path.name for path in one.path.parent.iterdir()] == ["c"]


@pytest.mark.parametrize("before", [b"old\n", b"new", b"new\r\n", b"\xff\xfe not text\n"])
def test_other_content_differs(tmp_path, before):
    path = tmp_path / "f"
    path.write_bytes(before)
    one = ConfigFile(path, "new\n", 0o644, ME)
    assert one.differs()
    assert one.diff()["after"] == "new\n"
    one.write()
    assert not one.differs()


def test_another_mode_differs(tmp_path):
    one = ConfigFile(tmp_path / "f", "x", 0o600, ME)
    one.write()
    one.path.chmod(0o644)
    assert one.differs()


@root
@pytest.mark.parametrize("wrong", [(1, 0), (0, 1)])
def test_another_owner_or_group_differs(tmp_path, wrong):
    one = ConfigFile(tmp_path / "f", "x", 0o640)
    one.write()
    os.chown(one.path, *wrong)
    assert one.differs()
    one.write()
    assert (one.path.stat().st_uid, one.path.stat().st_gid) == (0, 0)


@pytest.mark.parametrize(("mode", "before"), [(0o600, None), (0o600, 0o644), (0o644, 0o600), (0o400, 0o400)])
def test_what_others_cannot_read_is_not_shown(tmp_path, mode, before):
    path = tmp_path / "f"
    if before:
        path.write_text("s3cret-old")
        path.chmod(before)
    diff = ConfigFile(path, "s3cret-new", mode, ME).diff()
    assert "s3cret" not in json.dumps(diff)
    assert diff["after_header"] == str(path)
    assert diff["before"] != diff["after"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    texts = {letter * 300_000 for letter in "ab"}
    path = tmp_path / "f"
    path.write_text("a" * 300_000)
    ended = threading.Event()

    def write():
        while not ended.is_set():
            for text in texts:
                ConfigFile(path, text, 0o644, ME).write()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_text() for _ in range(300)} <= texts
    finally:
        ended.set()
        writer.join()


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space"):
        ConfigFile(path, "new", 0o644, ME).write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@root
def test_a_mounted_file_is_written_in_place(tmp_path):
    script = f"""
import pathlib
from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
one = ConfigFile(pathlib.Path({str(tmp_path / "resolv.conf")!r}), "new\\n", 0o640)
assert one.differs()
one.write()
assert not one.differs()
assert sorted(path.name for path in one.path.parent.iterdir()) == ["resolv.conf", "source"]
"""
    (tmp_path / "source").write_text("a longer old text\n")
    (tmp_path / "resolv.conf").write_text("")
    mount = f"mount --bind {tmp_path}/source {tmp_path}/resolv.conf && exec {sys.executable} -"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", mount]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=20, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    if "ermission" in done.stderr and "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "source").read_text() == "new\n"
    assert (tmp_path / "source").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "resolv.conf").read_text() == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "etc/x", "content": ""}, "etc/x: the path must be absolute"),
        ({"path": "/x", "content": "", "mode": "rw"}, "/x: mode 'rw' is not octal"),
        ({"path": "/x", "content": "", "mode": "0888"}, "/x: mode '0888' is not octal"),
        ({"path": "/x", "content": "", "mode": "420"}, "/x: mode '420' is not octal"),
        ({"path": "/x", "content": "", "mode": "0777777"}, "/x: mode '0777777' is not octal"),
    ],
)
def test_what_is_wrong_is_refused_with_the_path(given, message):
    with pytest.raises(ValueError, match=message):
        ConfigFile.parse(given)


def test_defaults():
    assert ConfigFile.parse({"path": "/x", "content": "y", "mode": None, "owner": None}).mode == 0o644


def test_an_owner_who_is_not_there_yet_differs_and_cannot_be_written(tmp_path):
    one = ConfigFile(tmp_path / "f", "x", 0o600, "nobody-of-that-name")
    one.path.write_text("x")
    assert one.differs()
    with pytest.raises(LookupError, match="there is no user nobody-of-that-name"):
        one.write()
    assert one.path.read_text() == "x"


def test_a_file_in_place_is_the_same_file_and_belongs_to_whoever_writes_it(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    before = path.stat().st_ino
    one = ConfigFile.parse({"path": str(path), "content": "127.9.8.10 front-1\n", "owner": "", "in_place": True})
    assert one.differs()
    one.write()
    assert not one.differs()
    assert (path.stat().st_ino, path.read_text()) == (before, "127.9.8.10 front-1\n")

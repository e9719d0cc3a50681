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

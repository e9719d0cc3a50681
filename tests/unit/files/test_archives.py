# SPDX-License-Identifier: Apache-2.0
"""Archives of programs: unpacked whole, or not there."""

import hashlib
import io
import os
import tarfile

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import archives

NONE = "sha256:" + "0" * 64


def packed(path, names, mode=0o755):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = 3, mode
            archive.addfile(entry, io.BytesIO(b"#!x"))
    return path


def sha256(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def unpacked(tmp_path):
    return archives.Unpacked(tmp_path / "opt/program")


def test_it_is_unpacked(tmp_path, unpacked):
    assert not unpacked.is_there()
    unpacked.unpack(packed(tmp_path / "a.tar.gz", ["top/bin/run", "top/share/text"]), 1, ["bin/run"], "a")
    assert unpacked.is_there()
    assert (unpacked.path / "bin/run").read_bytes() == b"#!x"
    assert unpacked.path.stat().st_mode & 0o777 == 0o755
    assert os.listdir(unpacked.path.parent) == ["program"]


def test_what_was_interrupted_is_removed(tmp_path, unpacked):
    (unpacked.path.parent / ".program.left/bin").mkdir(parents=True)
    unpacked.unpack(packed(tmp_path / "a.tar.gz", ["bin/run"]), 0, ["bin/run"], "a")
    assert os.listdir(unpacked.path.parent) == ["program"]


@pytest.mark.parametrize(
    ("names", "mode", "said"),
    [
        (["bin/other"], 0o755, "a.tar.gz: has no bin/run that can be executed"),
        (["bin/run"], 0o644, "has no bin/run"),
        ([], 0o755, "has no bin/run"),
    ],
)
def test_without_its_program_it_is_not_there(tmp_path, unpacked, names, mode, said):
    with pytest.raises(archives.ArchiveError, match=said):
        unpacked.unpack(packed(tmp_path / "a.tar.gz", names, mode), 0, ["bin/run"], "a.tar.gz")
    assert not unpacked.is_there() and os.listdir(unpacked.path.parent) == []


def test_what_is_no_archive_is_said(tmp_path, unpacked):
    (tmp_path / "a").write_bytes(b"<html>not found</html>")
    with pytest.raises(archives.ArchiveError, match="a: tar cannot unpack it: .*"):
        unpacked.unpack(tmp_path / "a", 0, [], "a")
    assert os.listdir(unpacked.path.parent) == []


def test_names_that_lead_out_stay_inside(tmp_path, unpacked):
    unpacked.unpack(packed(tmp_path / "a.tar.gz", ["/bin/run"]), 0, ["bin/run"], "a")
    with pytest.raises(archives.ArchiveError):
        archives.Unpacked(tmp_path / "opt/second").unpack(packed(tmp_path / "b.tar.gz", ["../../evil"]), 0, [], "b")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "opt/second").exists()


def test_another_checksum_is_named(tmp_path):
    archive = packed(tmp_path / "a.tar.gz", ["bin/run"])
    with archive.open("rb") as source, (tmp_path / "copy").open("wb") as target:
        archives.copy(source, target, sha256(archive), "a")
    assert (tmp_path / "copy").read_bytes() == archive.read_bytes()
    said = f"a: its checksum is {sha256(archive)}, and not {NONE}"
    with archive.open("rb") as source, pytest.raises(archives.ArchiveError, match=said):
        archives.copy(source, io.BytesIO(), NONE, "a")


@pytest.mark.parametrize("checksum", ["", "sha256:", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "A" * 64])
def test_a_checksum_that_is_none_is_refused(checksum):
    with pytest.raises(archives.ArchiveError, match="checksum"):
        archives.check(checksum)

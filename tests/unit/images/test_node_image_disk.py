# SPDX-License-Identifier: Apache-2.0
"""A disk made of a small folder, looked at with others' programs, and taken apart again. Needs root, as owners do."""

import json
import os
import shutil
import stat
import struct
import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import node_disk, node_root
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError

SECTOR = 512


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk as qcow2 and raw, made of `root`."""
    folder = tmp_path_factory.mktemp("disk")
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/shadow").write_text("secret\n")
    (root / "etc/shadow").chmod(0o640)
    os.chown(root / "etc/shadow", 0, 42)
    os.link(root / "etc/motd", root / "etc/issue")
    (root / "link").symlink_to("etc/motd")
    # what container images have where a file of the layer below is gone
    os.mknod(root / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(root / "etc", "trusted.overlay.opaque", b"y")
    (folder / "scratch").mkdir()
    qcow2, raw = folder / "disk.qcow2", folder / "raw"
    size = node_disk.make(root, folder / "scratch", qcow2)
    run("qemu-img", "convert", "-O", "raw", qcow2, raw)
    assert raw.stat().st_size == size * 2**20
    yield folder
    shutil.rmtree(folder)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_partitions(disk):
    table = json.loads(run("sfdisk", "--json", disk / "raw"))["partitiontable"]
    assert table["label"] == "gpt"
    assert [one["name"] for one in table["partitions"]] == ["bios", "efi", "root"]
    assert [one["start"] for one in table["partitions"]] == [2048, 4096, 133120]
    root = table["partitions"][-1]
    assert table["lastlba"] - (root["start"] + root["size"]) < 2048 * 2, "the last one reaches to the end"
    assert "No errors" in run("sfdisk", "--verify", disk / "raw")


def test_the_boot_sector_leads_to_grub(disk):
    with (disk / "raw").open("rb") as stream:
        sector = stream.read(SECTOR)
        assert sector[510:] == b"\x55\xaa"
        assert sector[0x1C2] == 0xEE, "the protective partition is still there"
        assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
        stream.seek(2048 * SECTOR)
        first = stream.read(SECTOR)
        start, length, segment = struct.unpack_from("<QHH", first, SECTOR - 12)
        assert (start, segment) == (2049, 0x820)
        core = stream.read(length * SECTOR)
    assert len(core) == length * SECTOR <= 2**20 - SECTOR
    assert core.strip(b"\0"), "and the rest of GRUB is where it looks for it"


def test_grub_for_uefi(disk):
    offset = 2 * 2**20
    run("dd", f"if={disk / 'raw'}", f"of={disk / 'esp'}", "bs=1M", f"skip={offset // 2**20}", "count=63", "status=none")
    run("mcopy", "-n", "-i", disk / "esp", "::/EFI/BOOT/BOOTX64.EFI", disk / "BOOTX64.EFI")
    program = (disk / "BOOTX64.EFI").read_bytes()
    assert program[:2] == b"MZ"
    assert b"search --no-floppy --set=root --label dodas-root" in program


def test_the_file_system_is_whole_and_has_its_label(disk):
    start, length = node_root.partition(disk / "raw")
    part = (f"skip={start // 2**20}", f"count={length // 2**20}", "conv=sparse", "status=none")
    run("dd", f"if={disk / 'raw'}", f"of={disk / 'ext4'}", "bs=1M", *part)
    run("e2fsck", "-fn", disk / "ext4")
    told = run("dumpe2fs", "-h", disk / "ext4")
    assert "Filesystem volume name:   dodas-root" in told
    assert "orphan_file" not in told, "which GRUB and older kernels do not know"
    assert "hello" in run("debugfs", "-R", "cat /etc/motd", disk / "ext4")


def test_it_can_be_taken_apart_with_all_that_files_are(disk, tmp_path):
    assert node_root.unpack(disk / "disk.qcow2", tmp_path / "root") == "mount"
    root = tmp_path / "root"
    assert (root / "etc/motd").read_text() == "hello\n"
    assert os.path.samefile(root / "etc/motd", root / "etc/issue")
    status = (root / "etc/shadow").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 42)
    assert os.readlink(root / "link") == "etc/motd"
    assert stat.S_ISCHR((root / "gone").stat().st_mode)
    assert (root / "gone").stat().st_rdev == 0
    assert os.getxattr(root / "etc", "trusted.overlay.opaque") == b"y"
    assert [path.name for path in tmp_path.iterdir()] == ["root"], "nothing else is left"
    assert str(tmp_path) not in run("mount")
    with pytest.raises(node_root.UnpackError, match="root: is not empty"):
        node_root.unpack(disk / "disk.qcow2", root)


def test_without_mounts_debugfs_serves(disk, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qemu-img", "dd", "unshare", "sh", "debugfs", "cp"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    assert node_root.unpack(disk / "disk.qcow2", tmp_path / "root") == "debugfs"
    status = (tmp_path / "root/etc/shadow").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 42)
    assert (tmp_path / "root/etc/motd").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has no GPT"), (b"x" * 4096, "has no GPT"), (None, "no partition is a root of Linux")],
)
def test_what_is_no_disk_of_linux_is_refused(tmp_path, content, message):
    path = tmp_path / "disk"
    if content is None:
        with path.open("wb") as stream:
            stream.truncate(16 * 2**20)
        subprocess.run(["sfdisk", "--quiet", path], input=b"label: gpt\ntype=uefi\n", check=True)
    else:
        path.write_bytes(content)
    with pytest.raises(node_root.UnpackError, match=message):
        node_root.partition(path)


def test_grub_that_does_not_fit_is_refused(tmp_path):
    with (tmp_path / "disk").open("w+b") as stream, pytest.raises(ImageError, match="room for 1048576"):
        node_disk._boot(stream, b"\0" * SECTOR, b"\0" * (2**20 + 1))


def test_room_counts_links_once_and_whole_blocks(tmp_path):
    (tmp_path / "root").mkdir()
    empty = node_disk._room(tmp_path / "root")
    assert empty == 768 * 2**20
    with (tmp_path / "root/large").open("wb") as stream:
        stream.truncate(2**30)
    for number in range(5):
        os.link(tmp_path / "root/large", tmp_path / f"root/{number}")
    assert empty + 2**30 <= node_disk._room(tmp_path / "root") < empty + 1.5 * 2**30

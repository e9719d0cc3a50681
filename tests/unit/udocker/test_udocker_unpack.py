# SPDX-License-Identifier: Apache-2.0
"""Layers are unpacked as they are, and what they must not do is refused or without effect."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import images, pack, streams, tar, trees, unpack
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from udocker_images import WHEN, base, compress, digest, layer, links, many_files, member, owned, whiteouts


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def unpacked(store):
    """Unpack members, or the bytes of a tar; returns the layer's folder."""

    def run(*members, **limits):
        content = members[0] if isinstance(members[0], bytes) else layer(*members)
        diff_id = unpack.layer(store, io.BytesIO(content), None, tar.Limits(**limits))
        assert os.listdir(store.path("tmp")) == []
        return store.layer(diff_id)

    return run


def facts(top):
    """All that can be seen of the files below a folder."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            path = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(path)
            content = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as source:
                    content = hashlib.sha256(source.read()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            owner = (status.st_uid, status.st_gid)
            found[os.path.relpath(path, top)] = (oct(status.st_mode), owner, status.st_mtime_ns, links, content)
    return found


def read(path):
    with open(path) as source:
        return source.read()


def extracted_by_tar(content, folder):
    folder.mkdir()
    options = ["--preserve-permissions", "--numeric-owner", "--delay-directory-restore"]
    command = ["tar", "--extract", *options, "--directory", str(folder)]
    subprocess.run(command, input=content, check=True)
    return facts(folder)


@pytest.mark.parametrize("content", [base, links, owned, lambda: many_files(300)])
def test_a_layer_is_what_tar_makes_of_it(unpacked, tmp_path, content):
    content = content()
    theirs = extracted_by_tar(content, tmp_path / "theirs")
    ours = facts(unpacked(content))
    # The top is in none of these tars.
    assert {path: fact for path, fact in ours.items() if path != "."} == {
        path: fact for path, fact in theirs.items() if path != "."
    }


def test_the_top_of_a_layer_has_its_mode_owner_and_time(unpacked):
    status = os.stat(unpacked(member("./", mode=0o555, uid=3, gid=4), member("./a", "1")))
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o555, 3, 4, WHEN)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_that_tarfile_writes(unpacked, tmp_path, format_):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        length = 50 if format_ == tarfile.USTAR_FORMAT else 200
        for info, content in (
            member(f"{'d' * length}/{'f' * 90}", "long"),
            member("link", linkname="t" * (99 if format_ == tarfile.USTAR_FORMAT else 300)),
            member("ümläut", "1", uid=0 if format_ == tarfile.USTAR_FORMAT else 3000000, mtime=WHEN + 1),
        ):
            archive.addfile(info, io.BytesIO(content))
    theirs = extracted_by_tar(target.getvalue(), tmp_path / "theirs")
    ours = facts(unpacked(target.getvalue()))
    assert {path for path in ours if path not in (".", "d" * length)} == {
        path for path in theirs if path not in (".", "d" * length)
    }
    for path in ("link", "ümläut", f"{'d' * length}/{'f' * 90}"):
        assert ours[path] == theirs[path]


def test_times_have_fractions_and_may_precede_the_epoch(unpacked):
    top = unpacked(
        member("fraction", "1", pax_headers={"mtime": "1600000000.123456789"}),
        member("old", "1", pax_headers={"mtime": "-5.5"}),
        member("late", "1", pax_headers={"mtime": "99999999999"}),
    )
    assert os.stat(f"{top}/fraction").st_mtime_ns == 1600000000123456789
    assert os.stat(f"{top}/old").st_mtime_ns == -5500000000
    assert os.stat(f"{top}/late").st_mtime > WHEN


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_in_all_formats(unpacked, tmp_path, version):
    path = tmp_path / "sparse"
    with open(path, "wb") as target:
        for number in range(40):  # more than fit into one header
            target.seek(number * 100_000)
            target.write(b"%d" % number * 600)
        target.truncate(5_000_000)
    form = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    command = ["tar", "--create", "--sparse", *form, "--directory", str(tmp_path), "sparse"]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(content) < 1_000_000
    made = f"{unpacked(content)}/sparse"
    with open(made, "rb") as ours, open(path, "rb") as theirs:
        assert ours.read() == theirs.read()
    assert os.stat(made).st_blocks * 512 < 1_000_000


SMALL = layer(member("etc/motd", random.Random(1).randbytes(60_000)), member("zeros", bytes(60_000)))
COMPRESSIONS = {
    "none": lambda content: content,
    "gzip": gzip.compress,
    "gzip in members": lambda content: b"".join(
        gzip.compress(content[at : at + 10_000]) for at in range(0, len(content), 10_000)
    ),
    "gzip with padding": lambda content: gzip.compress(content) + bytes(4096),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: compress(content, "zstd"),
}


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_compressions(store, how):
    assert unpack.layer(store, io.BytesIO(COMPRESSIONS[how](SMALL)), digest(SMALL)) == digest(SMALL)
    assert os.path.exists(f"{store.layer(digest(SMALL))}/etc/motd")


@pytest.mark.parametrize("how", [name for name in COMPRESSIONS if name not in ("none", "gzip with padding")])
@pytest.mark.parametrize("damage", ["cut off", "other bytes", "more"])
def test_damaged_streams(store, how, damage):
    content = bytearray(COMPRESSIONS[how](SMALL))
    if damage == "cut off":
        content = content[: len(content) * 3 // 4]
    elif damage == "other bytes":
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(64)
    else:
        content += b"something else"
    with pytest.raises(Error):
        unpack.layer(store, io.BytesIO(bytes(content)), digest(SMALL))
    assert not store.has_layer(digest(SMALL))
    assert os.listdir(store.path("tmp")) == []


def test_sources_are_paths_descriptors_and_objects(store, tmp_path):
    content = layer(member("a", "1"))
    path = tmp_path / "layer.tar"
    path.write_bytes(content)
    with open(path, "rb") as source:
        assert unpack.layer(store, source.fileno()) == unpack.layer(store, str(path)) == digest(content)
    with pytest.raises(Error, match=r"nothing.tar: No such file"):
        unpack.layer(store, str(tmp_path / "nothing.tar"))


def test_what_the_source_raises_is_raised(store):
    class Broken:
        def read(self, _size):
            raise ConnectionResetError("the registry has gone")

    with pytest.raises(ConnectionResetError):
        unpack.layer(store, Broken())
    assert os.listdir(store.path("layers")) == []


def test_a_layer_with_another_digest_does_not_appear(store):
    with pytest.raises(Error, match="is not what the image says"):
        unpack.layer(store, io.BytesIO(layer(member("a", "1"))), digest(b"another"))
    assert os.listdir(store.path("layers")) == []
    assert os.listdir(store.path("tmp")) == []


def test_nobody_else_gets_at_programs_with_setuid_bits(unpacked, store):
    unpacked(owned())
    assert stat.S_IMODE(os.stat(store.path("layers")).st_mode) == 0o700


# Whiteouts


def is_whiteout(path):
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_udocker_defect_3_whiteouts_at_the_root_of_a_layer(unpacked, tmp_path):
    lower, upper = map(unpacked, whiteouts())
    assert is_whiteout(f"{upper}/srv")
    assert is_whiteout(f"{upper}/drop")
    assert is_whiteout(f"{upper}/opt/a")
    assert trees.is_opaque(f"{upper}/opaque")
    trees.merge([lower, upper], str(tmp_path / "merged"))
    names = {path for path in facts(tmp_path / "merged") if path != "."}
    assert names == {"keep", "opaque", "opaque/above", "opt", "opt/b"}


def refuse(number):
    def call(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return call


def test_udocker_defect_3_where_the_kernel_has_no_whiteouts(unpacked, tmp_path, monkeypatch):
    """Linux before 5.8, and file systems without attributes."""
    monkeypatch.setattr(os, "mknod", refuse(errno.EPERM))
    monkeypatch.setattr(os, "setxattr", refuse(errno.ENOTSUP))
    first, second = whiteouts()
    folders = [unpacked(first), unpacked(second), unpacked(member("opt/"), member("opt/.wh.b"), member("srv/new", "1"))]
    assert os.path.isfile(f"{folders[1]}/.wh.srv")
    assert trees.is_opaque(f"{folders[1]}/opaque")
    known = unpack.summary(Store(str(tmp_path / "store")), digest(second))
    assert images._check_tree(folders[1], known) == []
    monkeypatch.undo()
    trees.merge(folders, str(tmp_path / "merged"))
    names = {path for path in facts(tmp_path / "merged") if path != "."}
    assert names == {"keep", "opaque", "opaque/above", "opt", "srv", "srv/new"}
    stream = io.BytesIO()
    pack.write_tree(stream, folders)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        assert set(archive.getnames()) - {"."} == names


def test_an_opaque_top_hides_all_lower_layers(unpacked):
    lowest = unpacked(member("a", "1"))
    lower = unpacked(member("b", "1"), member(".wh..wh..opq"))
    upper = unpacked(member("c", "1"))
    assert trees.visible([lowest, lower, upper]) == [lower, upper]
    assert trees.visible([lowest, upper]) == [lowest, upper]
    assert trees.visible([]) == []


def test_whiteouts_are_about_lower_layers(unpacked):
    top = unpacked(
        member("kept", "1"), member(".wh.kept"), member(".wh.later"), member("later", "2"),
        member("folder/"), member("folder/in", "3"), member(".wh.folder"), member(".wh.become"), member("become/"),
        member("become/in", "4"), member(".wh.deep"), member("deep/implied/in", "5"),
    )  # fmt: skip
    assert {"kept", "later", "folder/in", "become/in", "deep/implied/in"} <= set(facts(top))
    for name in ("folder", "become", "deep"):
        assert trees.is_opaque(f"{top}/{name}")


def test_marks_of_aufs_mean_nothing(unpacked):
    assert set(facts(unpacked(member(".wh..wh.plnk/"), member(".wh..wh.aufs"), member("a", "1")))) == {".", "a"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", ".wh.x/inside", "a/.wh.b/c"])
def test_whiteouts_of_nothing_are_refused(unpacked, name):
    with pytest.raises(Error, match="whiteout of nothing|can be named so"):
        unpacked(member(name))


def test_udocker_defect_2_only_the_top_dev_is_dropped(unpacked):
    top = unpacked(
        member("dev/"), member("dev/console", "1"), member("dev/sub/x", "1"),
        member("./dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("opt/app/dev/"), member("opt/app/dev/important.txt", "data"), member("devices", "1"),
    )  # fmt: skip
    found = set(facts(top)) - {"."}
    assert found == {"dev", "devices", "opt", "opt/app", "opt/app/dev", "opt/app/dev/important.txt"}


# What stands in the way


def test_later_entries_replace_earlier_ones(unpacked, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    top = unpacked(
        member("file/in", "1"), member("file", "now a file"),
        member("folder", "1"), member("folder/"), member("folder/in", "2"),
        member("swap", linkname=str(outside)), member("swap/in", "3"),
        member("again", "one"), member("again", "two"),
        member("to-link", "1"), member("to-link", linkname="again"),
        member("dir-link", linkname=str(outside)), member("dir-link/", mode=0o700),
    )  # fmt: skip
    found = facts(top)
    assert os.listdir(outside) == []
    assert read(f"{top}/file") == "now a file"
    assert read(f"{top}/swap/in") == "3"
    assert read(f"{top}/again") == "two"
    assert os.readlink(f"{top}/to-link") == "again"
    assert found["dir-link"][0] == oct(stat.S_IFDIR | 0o700)
    assert "file/in" not in found


def test_a_hard_link_to_what_is_replaced_keeps_it(unpacked):
    top = unpacked(
        member("a", "first"), member("b", kind=tarfile.LNKTYPE, linkname="./a"), member("a", "second"),
        member("c", kind=tarfile.LNKTYPE, linkname="/b"), member("s", linkname="/etc/passwd"),
        member("t", kind=tarfile.LNKTYPE, linkname="s"), member("a/", kind=tarfile.LNKTYPE, linkname="a"),
    )  # fmt: skip
    assert read(f"{top}/b") == read(f"{top}/c") == "first"
    assert read(f"{top}/a") == "second"
    assert os.readlink(f"{top}/t") == "/etc/passwd"
    assert os.lstat(f"{top}/c").st_ino == os.lstat(f"{top}/b").st_ino


def test_devices_are_recorded_and_not_made(unpacked, store):
    members = [
        member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), member("a", "1"),
        member("a", kind=tarfile.BLKTYPE, devmajor=8), member("not-a-whiteout", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE, mode=0o620),
    ]  # fmt: skip
    top = unpacked(*members)
    assert set(facts(top)) == {".", "pipe"}
    known = unpack.summary(store, digest(layer(*members)))
    assert known[b"null"][1:] == ["c", 0o644, 0, 0, 0, WHEN * 10**9, [1, 3]]
    assert known[b"a"][1] == "b"


def test_folders_that_a_layer_implies(unpacked):
    top = unpacked(member("tmp/x", "1"), member("var/tmp/x", "1"), member("root/x", "1"), member("usr/lib/x", "1"))
    modes = {name: stat.S_IMODE(os.stat(f"{top}/{name}").st_mode) for name in ("tmp", "var/tmp", "root", "usr/lib")}
    assert modes == {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "usr/lib": 0o755}


# Attributes


def test_attributes_of_an_image(unpacked):
    capability = b"\1\0\0\2\0\x20\0\0" + bytes(12)
    names = {
        "user.mine": "value", "user.overlay.opaque": "y", "user.overlay.redirect": "/etc", "user.overlay.metacopy": "",
        "trusted.overlay.opaque": "y", "user.containers.override_stat": "0:0:4755", "user.fuseoverlayfs.opaque": "y",
        "security.selinux": "x",
        "security.capability": capability.decode("latin-1"),
    }  # fmt: skip
    headers = {f"SCHILY.xattr.{name}": value for name, value in names.items()}
    top = unpacked(
        member("file", "1", pax_headers=headers, uid=7), member("folder/", pax_headers=headers), member("folder/x", "1")
    )
    for path in (f"{top}/file", f"{top}/folder"):
        assert set(os.listxattr(path)) == {"user.mine", "security.capability"}
        assert os.getxattr(path, "user.mine") == b"value"


# Limits


@pytest.mark.parametrize(
    ("limits", "members", "said"),
    [
        ({"entries": 10}, [member(f"{number}", "1") for number in range(11)], "entries=10"),
        ({"bytes": 20_000}, [member("a", bytes(30_000))], "bytes=20000"),
        ({"name": 50}, [member("a" * 51, "1")], "name=50"),
        ({"depth": 5}, [member("/".join("abcdef"), "1")], "depth=5"),
        ({"header": 1000}, [member("a", "1", pax_headers={"comment": "x" * 2000})], "header=1000"),
    ],
)
def test_limits(unpacked, limits, members, said):
    with pytest.raises(Error, match=f"{said}.*UDOCKER_LAYER_LIMITS"):
        unpacked(*members, **limits)


def test_limits_from_the_environment(monkeypatch):
    monkeypatch.setenv("UDOCKER_LAYER_LIMITS", "bytes=5, ratio=7")
    assert (tar.Limits().bytes, tar.Limits().ratio) == (5, 7)
    monkeypatch.setenv("UDOCKER_LAYER_LIMITS", "size=5")
    with pytest.raises(Error, match="size=5"):
        tar.Limits()


def test_a_bomb_is_noticed_by_its_ratio(store):
    piece = gzip.compress(bytes(1 << 24), 9)

    # 2 GiB of zeros, in 2 MiB
    content = gzip.compress(tar.header(b"zeros", b"0", size=1 << 31)) + piece * 128
    with pytest.raises(Error, match="ratio=50"):
        unpack.layer(store, io.BytesIO(content), None, tar.Limits(ratio=50, small=1 << 25))
    assert os.listdir(store.path("tmp")) == []


def test_the_tar_may_end_without_its_end(unpacked):
    content = layer(member("a", "1"))
    assert set(facts(unpacked(content[:1024]))) == {".", "a"}


@pytest.mark.parametrize("cut", [100, 512, 700, 1100])
def test_a_tar_that_is_cut_off(unpacked, cut):
    content = layer(member("a", b"1" * 3000))
    with pytest.raises(Error, match="ends too early"):
        unpacked(content[:cut])


def test_what_is_damaged_at_random_is_refused_or_stays_inside(store, tmp_path):
    """Nothing but Error is raised, and nothing outside is touched."""
    content = layer(
        member("a/b/c", "1" * 700), member("link", linkname="/tmp"), member("x" * 150, "1"),
        member("hard", kind=tarfile.LNKTYPE, linkname="a/b/c"), member("a/.wh.x"), member("big", "1", uid=10**8),
    )  # fmt: skip
    chance = random.Random(4)
    canary = tmp_path / "canary"
    canary.mkdir()
    before = facts(tmp_path / "canary"), sorted(os.listdir(tmp_path))
    outcomes = set()
    for _round in range(60):
        damaged = bytearray(content)
        at = chance.randrange(0, len(damaged) // 512) * 512
        for _byte in range(chance.randrange(1, 4)):
            damaged[min(at + chance.randrange(0, 512), len(damaged) - 1)] = chance.randrange(256)
        header = damaged[at : at + 512]
        if chance.random() < 0.8:  # with a checksum that is right again
            damaged[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
        try:
            unpack.layer(store, io.BytesIO(bytes(damaged)))
            outcomes.add("unpacked")
        except Error:
            outcomes.add("refused")
    assert outcomes == {"unpacked", "refused"}
    os.path.isdir(tmp_path / "store") and before[1].append("store")
    assert (facts(tmp_path / "canary"), sorted(os.listdir(tmp_path))) == (before[0], sorted(set(before[1])))


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"0000644\0", 0o644), (b"  644 \0 ", 0o644), (b"\0" * 8, 0), (b"\x80" + b"\0" * 6 + b"\xff", 255),
     (b"\xff" * 8, -1)],
)  # fmt: skip
def test_numbers_of_headers(text, value):
    assert tar.number(text) == value


@pytest.mark.parametrize("record", [b"5 a=\n", b"x a=b\n", b"6 a=b\nc", b"3 \n", b"999 a=b\n", b"6 a=b", b"4 a\n"])
def test_pax_records_that_are_none(record):
    try:
        assert tar.parse_pax(record) == {b"a": b""}
    except ValueError:
        return
    assert record == b"5 a=\n"


@pytest.mark.parametrize(
    "facts_",
    [
        {"name": b"a"}, {"name": b"d/", "kind": b"5", "mode": 0o1777}, {"name": b"x" * 101}, {"name": b"y" * 300},
        {"name": b"d" * 120 + b"/" + b"f" * 99}, {"name": b"l", "kind": b"2", "linkname": b"t" * 200},
        {"name": b"u", "uid": 3_000_000, "gid": 5_000_000, "mtime": -5, "size": 0},
        {"name": "ü".encode(), "xattrs": {"user.x": b"\0\n=\xff", "security.capability": b"1\n2"}},
    ],
)  # fmt: skip
def test_headers_are_written_as_tarfile_reads_them(facts_):
    content = tar.header(**{"kind": b"0", **facts_}) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        (info,) = archive
    assert os.fsencode(info.name) == facts_["name"].rstrip(b"/")
    assert os.fsencode(info.linkname) == facts_.get("linkname", b"")
    for name in ("uid", "gid", "mtime"):
        assert getattr(info, name) == facts_.get(name, 0)
    for name, value in facts_.get("xattrs", {}).items():
        assert info.pax_headers[f"SCHILY.xattr.{name}"].encode("utf-8", "surrogateescape") == value


@pytest.mark.parametrize("how", ["none", "gzip", "bzip2", "xz", "zstd"])
def test_compressions_are_known_by_their_first_bytes(how):
    assert streams.compression(COMPRESSIONS[how](SMALL)[:16]) == (None if how == "none" else how)


def test_verify_finds_what_has_changed_in_a_layer(store, unpacked):
    content = layer(
        member("d/"), member("d/file", "1"), member("link", linkname="x"), member(".wh.gone"), member("d/other", "22"),
        member("none", kind=tarfile.CHRTYPE, devmajor=1),
    )  # fmt: skip
    top = unpacked(content)
    known = unpack.summary(store, digest(content))

    def problems():
        return images._check_tree(top, known)

    assert problems() == []
    when = os.stat(f"{top}/d/file").st_mtime_ns
    with open(f"{top}/d/file", "w") as target:
        target.write("2")
    os.utime(f"{top}/d/file", ns=(when, when))
    os.unlink(f"{top}/gone")
    os.unlink(f"{top}/link")
    os.symlink("y", f"{top}/link")
    os.utime(top, ns=(0, 0))
    when = os.stat(f"{top}/d").st_mtime_ns
    os.unlink(f"{top}/d/other")
    open(f"{top}/d/more", "w").close()
    os.utime(f"{top}/d", ns=(when, when))
    assert sorted(problems()) == [
        "/d/file: holds something else", "/d/more: is not of the layer", "/d/other: is missing", "/gone: is missing",
        "/link: leads elsewhere",
    ]  # fmt: skip

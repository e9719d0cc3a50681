# SPDX-License-Identifier: Apache-2.0
"""What containers have changed becomes lists and layers; whole trees become tars; nothing that happens meanwhile
leads elsewhere."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import threading

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import layers, pack, trees, unpack, userns
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from udocker_images import digest, layer, member


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


LOWER = layer(
    member("etc/"), member("etc/kept", "1"), member("etc/changed", "1"), member("etc/gone", "1"), member("dir/"),
    member("dir/a", "1"), member("dir/b", "1"), member("again/"), member("again/old", "1"),
    member("link", linkname="x"), member("to-file/"), member("to-file/in", "1"), member("mode", "1"),
    member("same", "1"),
)  # fmt: skip
CHANGED = [
    ("A", "/added"), ("A", "/added/in"), ("C", "/etc"), ("C", "/etc/changed"), ("D", "/etc/gone"), ("D", "/dir"),
    ("C", "/link"), ("C", "/mode"), ("C", "/to-file"),
]  # fmt: skip


def change(root):
    """What a container did: the same for each kind of root."""
    os.mkdir(f"{root}/added")
    with open(f"{root}/added/in", "w") as target:
        target.write("new")
    with open(f"{root}/etc/changed", "w") as target:
        target.write("longer")
    os.unlink(f"{root}/etc/gone")
    shutil.rmtree(f"{root}/dir")
    os.unlink(f"{root}/link")
    os.symlink("y", f"{root}/link")
    os.chmod(f"{root}/mode", 0o4711)
    shutil.rmtree(f"{root}/to-file")
    with open(f"{root}/to-file", "w") as target:
        target.write("now a file")
    os.setxattr(f"{root}/added/in", "user.mine", b"\0binary\xff")


@pytest.fixture(params=["overlay", "tree"])
def changed(request, store, tmp_path):
    """(layers, folder, whole) of a container that has changed files."""
    lower = [store.layer(unpack.layer(store, io.BytesIO(LOWER)))]
    if request.param == "tree":
        trees.merge(lower, str(tmp_path / "root"))
        change(tmp_path / "root")
        return lower, str(tmp_path / "root"), True
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={lower[0]},upperdir={tmp_path}/upper,workdir={tmp_path}/work,userxattr"
    subprocess.run(["mount", "-t", "overlay", "overlay", tmp_path / "root", "-o", options], check=True)
    try:
        change(tmp_path / "root")
    finally:
        subprocess.run(["umount", tmp_path / "root"], check=True)
    return lower, str(tmp_path / "upper"), False


def seen(top):
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else None
            if os.path.isfile(path) and content is None:
                with open(path, "rb") as source:
                    content = source.read()
            attributes = None if os.path.islink(path) else {one: os.getxattr(path, one) for one in os.listxattr(path)}
            found[os.path.relpath(path, top)] = (status.st_mode, status.st_uid, content, attributes)
    return found


def test_a_list_of_changes(changed):
    assert sorted(userns.call(pack._diff, *changed)) == sorted(CHANGED)


def test_a_layer_of_changes_gives_the_same_tree_again(changed, store, tmp_path):
    lower, folder, whole = changed
    made = layers.from_tar(store, lambda stream: pack.write_changes(stream, lower, folder, whole))
    trees.merge([*lower, store.layer(made["diff_id"])], str(tmp_path / "again"))
    trees.merge([folder] if whole else [*lower, folder], str(tmp_path / "right"))
    assert seen(tmp_path / "again") == seen(tmp_path / "right")
    assert seen(tmp_path / "again")["added/in"][3] == {"user.mine": b"\0binary\xff"}


def test_the_same_changes_give_the_same_bytes(changed, store):
    lower, folder, whole = changed
    made = [layers.from_tar(store, lambda stream: pack.write_changes(stream, lower, folder, whole)) for _n in range(2)]
    assert made[0] == made[1]
    with open(store.blob(made[0]["digest"]), "rb") as blob:
        assert digest(blob.read()) == made[0]["digest"]


def test_a_folder_that_was_removed_and_made_again(store, tmp_path):
    lower = [store.layer(unpack.layer(store, io.BytesIO(LOWER)))]
    upper = tmp_path / "upper"
    (upper / "again").mkdir(parents=True)
    os.setxattr(upper / "again", "user.overlay.opaque", b"y")
    (upper / "again" / "new").touch()
    assert userns.call(pack._diff, lower, str(upper), False) == [("D", "/again"), ("A", "/again/new")]
    stream = io.BytesIO()
    pack.write_changes(stream, lower, str(upper), False)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        assert archive.getnames() == [".", "again", "again/.wh..wh..opq", "again/new"]


def test_what_engines_put_there_is_no_change(store, tmp_path):
    lower = [store.layer(unpack.layer(store, io.BytesIO(LOWER)))]
    upper = tmp_path / "upper"
    for name in ("dev/pts", "proc", "sys", "run/secrets", "etc"):
        (upper / name).mkdir(parents=True)
    for name in ("etc/hosts", "etc/resolv.conf", "etc/hostname", ".dockerenv", "dev/null", "run/own"):
        (upper / name).touch()
    shutil.copystat(f"{lower[0]}/etc", upper / "etc")
    assert userns.call(pack._diff, lower, str(upper), False) == [("C", "/run"), ("A", "/run/own")]


def test_hard_links_stay_together_and_sockets_are_left_out(store, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "b").write_text("content")
    os.link(root / "b", root / "a")
    os.mkfifo(root / "pipe")
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    stream = io.BytesIO()
    pack.write_tree(stream, [str(root)])
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        kinds = {info.name: (info.type, info.linkname) for info in archive}
    assert kinds == {".": (b"5", ""), "a": (b"0", ""), "b": (b"1", "a"), "pipe": (b"6", "")}


def test_owners_that_the_file_system_has_not_got(store, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").touch()
    os.setxattr(root / "file", unpack.OWNER, b"33:34:04755")
    stream = io.BytesIO()
    pack.write_tree(stream, [str(root)])
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        info = archive.getmember("file")
    assert (info.uid, info.gid, info.mode, info.pax_headers) == (33, 34, 0o4755, {})


def test_whoever_swaps_folders_for_links_gains_nothing(store, tmp_path):
    """A container that runs exchanges a folder with a link to the machine's files while it is packed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("TOPSECRET")
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file").write_text("harmless")
    (root / "link").symlink_to(secret)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(root / "folder", root / "aside")
            os.rename(root / "link", root / "folder")
            os.rename(root / "folder", root / "link")
            os.rename(root / "aside", root / "folder")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _round in range(100):
            stream = io.BytesIO()
            pack.write_tree(stream, [str(root)])
            assert b"TOPSECRET" not in stream.getvalue()
    finally:
        stop.set()
        thread.join()


def test_a_tree_that_is_deeper_than_paths_can_be(store, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _level in range(600):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    stream = io.BytesIO()
    pack.write_tree(stream, [str(root)])
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        assert len(archive.getmembers()) == 601
    trees.remove(str(root))

# SPDX-License-Identifier: Apache-2.0
"""Images as files, beside podman, skopeo and udocker 1.3.17: what they write is loaded, what is saved they take; and
what the store keeps of it, whoever is killed meanwhile."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import pytest

import ansible_collections.dodas.cluster.plugins.module_utils.udocker as library
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import (
    archives,
    containers,
    images,
    legacy,
    pack,
    trees,
    unpack,
)
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.reference import DEFAULT_REGISTRY as DEFAULT
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from udocker_images import base, busybox, compress, layer, links, many_files, member, oci, owned, stack, whiteouts
from udocker_people import Person

LIBRARY = pathlib.Path(library.__file__).parent
EXTRA = [*whiteouts(), links(), owned(), *stack(3)]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def layout(tmp_path):
    return str(busybox(tmp_path, extra=EXTRA, config={"Labels": {"a": "b"}}))


class Podman:
    """The podman of this machine, with storage of its own. Files of containers are changed through a mount: no
    container has to run, which not every host lets it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *arguments):
        options = ["--root", self.folder / "root", "--runroot", self.folder / "run", "--storage-driver", "overlay"]
        command = ["podman", *options, "--log-level", "error", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def podman():
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:  # it takes no path of more than 50 characters
        run = Podman(pathlib.Path(folder))
        yield run
        run("umount", "--all", "--force")
        run("rm", "--all", "--force")
        subprocess.run(["umount", f"{folder}/root/overlay"], capture_output=True)


def skopeo(*arguments):
    done = subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def udocker_1317(folder, *arguments):
    """udocker 1.3.17; the folder looks as if its tools were installed, which nothing here runs."""
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    (folder / "lib" / "VERSION").write_text("1.2.11\n")
    program = pathlib.Path(sys.executable).parent / "udocker"
    command = list(map(str, [program, "--allow-root", *arguments]))
    environment = {**os.environ, "UDOCKER_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tree_of(top):
    """What can be seen of a root file system, but for times of folders, which each who unpacks may set."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            if os.path.relpath(path, top).split("/")[0] in ("dev", "proc", "sys"):
                continue
            status = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else None
            if os.path.isfile(path) and content is None:
                with open(path, "rb") as source:
                    content = source.read()
            when = 0 if os.path.isdir(path) else int(status.st_mtime)
            found[os.path.relpath(path, top)] = (oct(status.st_mode), status.st_uid, status.st_gid, when, content)
    return found


def merged(store, image, folder):
    trees.merge([store.layer(one["diff_id"]) for one in image.layers], str(folder))
    return tree_of(folder)


# What others write


def foreign(kind, layout, folder, podman):
    """An archive of the layout's image by another program."""
    path = folder / f"{kind.replace(' ', '-')}.tar"
    if kind == "docker archive, skopeo":
        skopeo("copy", f"oci:{layout}:busybox:latest", f"docker-archive:{path}:busybox:latest")
    elif kind == "OCI archive, skopeo":
        skopeo("copy", f"oci:{layout}:busybox:latest", f"oci-archive:{path}:busybox:latest")
    elif kind == "OCI layout, zstd, skopeo":
        path = folder / "zstd"
        skopeo("copy", "--dest-compress-format", "zstd", "--dest-compress", f"oci:{layout}:busybox:latest",
               f"oci:{path}:busybox:latest")  # fmt: skip
    else:
        podman("pull", "--quiet", f"oci:{layout}:busybox:latest")
        name = podman("images", "--quiet").split()[0]
        podman("tag", name, DEFAULT + "/library/busybox:latest")
        form = "oci-archive" if "OCI" in kind else "docker-archive"
        podman("save", "--quiet", "--format", form, "--output", path, DEFAULT + "/library/busybox:latest")
    if "gzip" in kind:
        path = path.with_suffix(".tgz")
        path.write_bytes(gzip.compress((folder / f"{kind.replace(' ', '-')}.tar").read_bytes(), 1))
    return path


@pytest.mark.parametrize(
    "kind",
    ["docker archive, skopeo", "OCI archive, skopeo", "OCI layout, zstd, skopeo", "docker archive, podman",
     "OCI archive, podman", "docker archive, podman, gzip"],
)  # fmt: skip
def test_what_others_save_is_loaded(store, layout, tmp_path, podman, kind):
    (own,) = archives.load(store, layout)
    right = merged(store, own, tmp_path / "right")
    other = Store(str(tmp_path / "other"))
    path = foreign(kind, layout, tmp_path, podman)
    (image,) = archives.load(other, str(path))
    assert image.name == DEFAULT + "/library/busybox:latest"
    assert [one["diff_id"] for one in image.layers] == [one["diff_id"] for one in own.layers]
    assert merged(other, image, tmp_path / "loaded") == right
    assert images.configuration(other, image)["config"]["Labels"] == {"a": "b"}
    assert images.verify(other, image) == []
    with open(path if path.is_file() else os.devnull, "rb") as stream:  # also where it cannot be read twice
        if path.is_file():
            (again,) = archives.load(Store(str(tmp_path / "stream")), stream, name="piped:2")
            assert again.name == DEFAULT + "/library/piped:2"
    assert os.listdir(other.path("tmp")) == []


def test_a_name_can_be_given_and_an_archive_hold_several(store, tmp_path, layout):
    oci(layout, [base(), *stack(2)], name="registry.example.org:5000/group/other:3")
    found = {image.name for image in archives.load(store, layout)}
    assert found == {DEFAULT + "/library/busybox:latest", "registry.example.org:5000/group/other:3"}
    with pytest.raises(Error, match="holds 2 images: they cannot all be named mine"):
        archives.load(store, layout, name="mine")
    archives.save(store, sorted(found), str(tmp_path / "two.tar"))
    other = Store(str(tmp_path / "other"))
    assert {image.name for image in archives.load(other, str(tmp_path / "two.tar"))} == found


def test_the_platform_chooses(store, tmp_path):
    layout = oci(tmp_path / "layout", [base()], {"Cmd": ["amd"]}, platform="linux/amd64")
    oci(layout, [base()], {"Cmd": ["arm"]}, platform="linux/arm64")
    for platform, command in (("linux/amd64", "amd"), ("arm64", "arm")):
        (image,) = archives.load(store, str(layout), platform=platform)
        assert images.configuration(store, image)["config"]["Cmd"] == [command]
        assert image.platform.startswith("linux/" + command)
    with pytest.raises(NotFound, match="riscv64"):
        archives.load(store, str(layout), platform="linux/riscv64")


# What others read


@pytest.mark.parametrize("kind", ["docker", "oci"])
def test_what_is_saved_others_take(store, layout, tmp_path, podman, kind):
    (image,) = archives.load(store, layout)
    right = merged(store, image, tmp_path / "right")
    path = tmp_path / "saved.tar"
    archives.save(store, ["busybox"], str(path), kind)
    podman("load", "--quiet", "--input", path)
    name = podman("images", "--quiet").split()[0]
    podman("create", "--name", "theirs", name, "sh")
    assert tree_of(podman("mount", "theirs")) == right
    transport = {"docker": "docker-archive", "oci": "oci-archive"}[kind]
    facts = json.loads(skopeo("inspect", "--config", f"{transport}:{path}:busybox:latest"))
    assert facts["config"]["Labels"] == {"a": "b"}
    archives.save(store, ["busybox"], str(tmp_path / "again.tar"), kind)
    assert path.read_bytes() == (tmp_path / "again.tar").read_bytes()


def test_udocker_1317_takes_what_is_saved(store, layout, tmp_path):
    (image,) = archives.load(store, layout)
    archives.save(store, ["busybox"], str(tmp_path / "saved.tar"))
    udocker_1317(tmp_path / "old", "load", "-i", tmp_path / "saved.tar")
    identifier = udocker_1317(tmp_path / "old", "create", "busybox:latest").split()[-1]
    theirs = tree_of(tmp_path / "old" / "containers" / identifier / "ROOT")
    ours = merged(store, image, tmp_path / "right")
    # It neither knows whiteouts at the root of a layer nor opaque folders.
    assert set(ours) <= set(theirs)
    assert theirs["bin/busybox"][4] == ours["bin/busybox"][4]


def test_saving_does_not_leave_half_a_file(store, layout, tmp_path):
    (image,) = archives.load(store, layout)
    with open(store.blob(image.layers[0]["digest"]), "r+b") as blob:
        blob.seek(5000)
        blob.write(bytes(100))
    for kind in ("docker", "oci"):
        with pytest.raises(Error, match="damaged"):
            archives.save(store, ["busybox"], str(tmp_path / "saved.tar"), kind)
    assert not list(tmp_path.glob("saved*"))
    with pytest.raises(Error, match="No such file"):
        archives.save(store, ["busybox"], str(tmp_path / "nowhere" / "saved.tar"))


# Changes of containers, beside podman


CHANGES = {
    "files": "echo x >> /etc/passwd; rm /etc/group; echo 1 > /new; mkdir /root/d; echo 1 > /root/d/f; rm /bin/ls",
    "folders": "rm -rf /usr; mkdir /srv /opt/more; mkdir -p /var/a/b; rmdir /tmp",
    "again": "rm -rf /usr; mkdir /usr; echo 1 > /usr/q; rm -rf /var; ln -s home /var; rm /bin/ls; mkdir /bin/ls",
    "attributes": "chmod 700 /root; chmod 4755 /bin/busybox; chown 1:1 /etc/passwd; touch -d @1 /etc/os-release",
    "nothing": "mkdir /root/t; rmdir /root/t",
    "links": "ln /etc/passwd /etc/second; ln -s x /etc/l; rm /links/one; mv /links/two /links/three",
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_podman_diff_agrees(store, layout, tmp_path, podman, what):
    podman("pull", "--quiet", f"oci:{layout}:busybox:latest")
    podman("create", "--name", "theirs", podman("images", "--quiet").split()[0], "sh")
    run_in(podman("mount", "theirs"), CHANGES[what])
    podman("umount", "theirs")
    theirs = sorted(podman("diff", "theirs").splitlines())
    (image,) = archives.load(store, layout)
    container = containers.create(store, image, {"engine": "overlay"})
    folders = ":".join(reversed(container.layers))
    upper, work, root = (container.path(name) for name in ("upper", "work", "ROOT"))
    options = f"lowerdir={folders},upperdir={upper},workdir={work},userxattr"
    subprocess.run(["mount", "-t", "overlay", "overlay", root, "-o", options], check=True)
    try:
        run_in(root, CHANGES[what])
    finally:
        subprocess.run(["umount", root], check=True)
    assert sorted(f"{kind} {path}" for kind, path in pack.diff(container)) == theirs


def run_in(root, script):
    done = subprocess.run(["chroot", root, "/bin/busybox", "sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Root file systems


@pytest.mark.parametrize("form", ["plain", "gzip", "xz", "bzip2", "zstd"])
def test_a_root_file_system_becomes_an_image(store, tmp_path, form):
    content = layer(member("./", mode=0o755), member("./etc/"), member("./etc/motd", "hello", uid=3))
    made = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress, "zstd": lambda one: compress(one, "zstd"),
            "bzip2": __import__("bz2").compress}[form](content)  # fmt: skip
    (tmp_path / "root.tar").write_bytes(made)
    image = archives.import_(store, str(tmp_path / "root.tar"), "mine:1", "linux/arm64", {"Cmd": ["x"]}, "by hand")
    assert (image.name, image.platform) == (DEFAULT + "/library/mine:1", "linux/arm64")
    assert images.configuration(store, image)["config"] == {"Cmd": ["x"]}
    assert images.history(store, image)[0]["comment"] == "by hand"
    assert images.verify(store, image) == []
    archives.save(store, ["mine:1"], str(tmp_path / "saved.tar"), "oci")
    skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/saved.tar:mine:1")


def test_export_and_import_give_the_same_files(store, layout, tmp_path):
    (image,) = archives.load(store, layout)
    right = merged(store, image, tmp_path / "right")
    container = containers.create(store, image, {"name": "one"})
    archives.export(container, str(tmp_path / "root.tar"))
    archives.export(container, str(tmp_path / "clone.tar"), clone=True)
    again = archives.import_(store, str(tmp_path / "root.tar"), "again")
    assert merged(store, again, tmp_path / "again") == right
    clone = archives.import_container(store, str(tmp_path / "clone.tar"), "two", clone=True)
    assert clone.config()["Labels"] == {"a": "b"}
    assert (clone.image, clone.names()) == (container.image, ["two"])
    plain = archives.import_container(store, str(tmp_path / "root.tar"), "three")
    for number, made in enumerate((clone, plain)):
        trees.merge(made.layers, str(tmp_path / f"made{number}"))
        assert tree_of(tmp_path / f"made{number}") == right
    assert pack.diff(clone) == []


def test_a_clone_of_udocker_1317(store, layout, tmp_path):
    (_image,) = archives.load(store, layout)
    archives.save(store, ["busybox"], str(tmp_path / "saved.tar"))
    udocker_1317(tmp_path / "old", "load", "-i", tmp_path / "saved.tar")
    udocker_1317(tmp_path / "old", "create", "--name=first", "busybox:latest")
    udocker_1317(tmp_path / "old", "export", "--clone", "-o", tmp_path / "clone.tar", "first")
    clone = archives.import_container(store, str(tmp_path / "clone.tar"), "second", clone=True)
    assert clone.config()["Labels"] == {"a": "b"}
    assert os.path.exists(os.path.join(clone.layers[0], "bin/busybox"))
    archives.export(clone, str(tmp_path / "back.tar"), clone=True)
    udocker_1317(tmp_path / "old", "import", "--clone", "--name=third", tmp_path / "back.tar")
    assert "third" in udocker_1317(tmp_path / "old", "ps")


# Names, checks, removal


def test_an_image_is_looked_at(store, layout):
    (image,) = archives.load(store, layout)
    images.tag(store, image, "registry.example.org/mine:2")
    facts = images.inspect(store, images.find(store, image.config[7:19]))
    assert facts["RepoTags"] == ["busybox:latest", "registry.example.org/mine:2"]
    assert facts["Config"]["Labels"] == {"a": "b"}
    assert facts["RootFS"]["Layers"] == [one["diff_id"] for one in image.layers]
    assert (facts["Architecture"], facts["Os"]) == ("amd64", "linux")
    steps = images.history(store, image)
    assert len(steps) == len(image.layers)
    assert [step["size"] for step in steps] == [one["size"] for one in reversed(image.layers)]
    assert images.manifest(store, image)["layers"][0]["digest"] == image.layers[0]["digest"]
    with pytest.raises(NotFound, match="nothing:1"):
        images.find(store, "nothing:1")


def test_verify_names_what_is_damaged(store, layout):
    (image,) = archives.load(store, layout)
    assert images.verify(store, image) == []
    with open(store.blob(image.layers[1]["digest"]), "ab") as blob:
        blob.write(b"x")
    with open(os.path.join(store.layer(image.layers[0]["diff_id"]), "etc/passwd"), "a") as target:
        target.write("evil::0:0::/:/bin/sh\n")
    os.rename(store.layer(image.layers[2]["diff_id"]), store.path("layers", "moved"))
    problems = "\n".join(images.verify(store, image))
    assert re.search(f"blob {image.layers[1]['digest']} is damaged", problems)
    assert re.search(f"layer {image.layers[0]['diff_id']}: /etc/passwd: was changed|has", problems)
    assert re.search(f"layer {image.layers[2]['diff_id']} is missing", problems)
    assert problems.count("\n") == 2


def test_what_is_in_use_is_not_removed(store, layout):
    (image,) = archives.load(store, layout)
    images.protect(store, image.name)
    with pytest.raises(Error, match="protected"):
        images.remove(store, image)
    images.unprotect(store, image.name)
    container = containers.create(store, image, {"name": "user"})
    second = images.tag(store, image, "second")
    assert images.remove(store, second) == [("untagged", "second:latest")]
    with pytest.raises(Error, match=r"used by 1 containers \(user\)"):
        images.remove(store, image)
    assert ("untagged", "busybox:latest") in images.remove(store, image, force=True)
    assert all(os.path.isdir(folder) for folder in container.layers)
    assert images.prune(store)["layers"] == []
    containers.remove(container)
    assert len(images.prune(store)["layers"]) == len(image.layers)


def test_layers_are_kept_once_and_go_with_the_last(store, tmp_path, layout):
    oci(layout, [base(), *stack(2)], name="other:1")
    first, second = archives.load(store, layout)
    shared = {one["diff_id"] for one in first.layers} & {one["diff_id"] for one in second.layers}
    assert len(shared) >= 3
    used = {row["name"]: row for row in images.usage(store)["images"]}
    assert used[second.name]["unique"] == 0
    assert used[first.name]["unique"] + used[first.name]["shared"] == used[first.name]["size"]
    gone = {what for _how, what in images.remove(store, first)}
    assert not gone & shared
    assert images.verify(store, second) == []
    images.remove(store, second)
    assert os.listdir(store.path("layers")) == os.listdir(store.path("blobs", "sha256")) == []


def test_prune_says_and_removes_what_nothing_uses(store, layout, tmp_path):
    (image,) = archives.load(store, layout)
    store.remove_image(image.name)
    os.makedirs(store.path("tmp", "dead", "folder"))
    with store.temporary() as alive:
        (pathlib.Path(alive) / "file").touch()
        said = images.prune(store, dry_run=True, age=0)
        assert os.path.isdir(store.layer(image.layers[0]["diff_id"]))
        done = images.prune(store, age=0)
        assert said == done
        assert done["temporary"] == ["tmp/dead"]
        assert len(done["layers"]) == len(image.layers)
        assert len(done["blobs"]) == len(image.layers) + 2
        assert done["bytes"] > 2_000_000
        assert os.path.exists(alive)
    assert os.listdir(store.path("layers")) == []


# udocker 1.3.17's own folder


def test_images_and_containers_of_udocker_1317(layout, tmp_path):
    before = Store(str(tmp_path / "before"))
    archives.load(before, layout)
    archives.save(before, ["busybox"], str(tmp_path / "saved.tar"))
    folder = tmp_path / "old"
    udocker_1317(folder, "load", "-i", tmp_path / "saved.tar")
    udocker_1317(folder, "tag", "busybox:latest", "registry.example.org/mine:2")
    udocker_1317(folder, "protect", "registry.example.org/mine:2")
    identifier = udocker_1317(folder, "create", "--name=work", "busybox:latest").split()[-1]
    theirs = {path: path.lstat().st_mtime_ns for name in ("repos", "layers") for path in (folder / name).rglob("*")}

    store = Store(str(folder))
    names = {image.name: image for image in images.listed(store)}
    assert set(names) == {DEFAULT + "/library/busybox:latest", "registry.example.org/mine:2"}
    assert images.is_protected(store, "registry.example.org/mine:2")
    image = images.find(store, "busybox")
    assert [one["diff_id"] for one in image.layers] == [one["diff_id"] for one in before.images()[0].layers]
    assert images.configuration(store, image)["config"]["Labels"] == {"a": "b"}
    assert images.verify(store, image) == []
    container = containers.find(store, "work")
    assert (container.id, container.image) == (identifier, "busybox:latest")
    assert os.path.exists(container.path("ROOT/bin/busybox"))
    # What was removed here is gone here; udocker's files stay.
    images.remove(store, image)
    assert [one.name for one in images.listed(store)] == ["registry.example.org/mine:2"]
    with pytest.raises(NotFound):
        images.find(store, "busybox")
    assert images.prune(store, age=0)["layers"] == []
    now = {path: path.lstat().st_mtime_ns for name in ("repos", "layers") for path in (folder / name).rglob("*")}
    assert now.items() >= {path: when for path, when in theirs.items() if path.name != "layers"}.items()
    assert "busybox:latest" in udocker_1317(folder, "images")
    assert legacy.listed(store)[0].protected


# Whoever does it, whatever happens

LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from udocker import archives, images, pack, userns
from udocker.store import Store
store = Store(sys.argv[2])
archives.load(store, sys.argv[3])
print(userns.mapped(), images.verify(store, store.images()[0]))
if len(sys.argv) > 4:
    from udocker import containers
    container = containers.create(store, store.images()[0], {})
    archives.export(container, sys.argv[4])
    print(container.record["engine"], pack.diff(container))
"""


def equip(person, layout):
    """Give a person the library and an image; returns where the image is."""
    (person.home / "library").mkdir()
    person.give(LIBRARY, "library/udocker")
    return person.give(layout)


@pytest.mark.parametrize(
    ("subids", "deny", "mapped"), [(True, False, "subids"), (False, False, "one"), (False, True, "none")]
)
def test_owners_and_modes_come_back_whoever_has_them(tmp_path, layout, subids, deny, mapped):
    with Person("ida", subids=subids) as person:
        given = equip(person, layout)
        out = person.home / "root.tar"
        argv = [person.python, "-c", LOAD, person.home / "library", person.home / "store", given, out]
        done = person.run(argv, deny=deny)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == f"{mapped} []"
        assert second.endswith(" []")
        with tarfile.open(out) as archive:
            found = {info.name: (oct(info.mode), info.uid, info.gid) for info in archive}
    assert found["owned/setuid"] == ("0o4755", 0, 0)
    assert found["owned/daemon"] == ("0o644", 1, 1)
    assert found["owned/nobody"] == ("0o600", 65534, 65534)
    assert found["owned/closed"] == ("0o0", 0, 0)
    assert found["owned/shut"] == ("0o0", 0, 0)
    assert found["owned"] == ("0o2775", 0, 50)
    assert found["tmp"] == ("0o1777", 0, 0)


def test_whoever_is_killed_leaves_a_store_that_works(tmp_path):
    layout = busybox(tmp_path, extra=[many_files(800), *EXTRA])
    chance = random.Random(9)
    with Person("kay") as person:
        given = equip(person, layout)
        argv = [person.python, "-c", LOAD, person.home / "library", person.home / "store", given]
        began = time.monotonic()
        assert person.run(argv).returncode == 0
        whole = time.monotonic() - began
        clean = [person.python, "-c", CLEAN, person.home / "library", person.home / "store"]
        killed = 0
        for _round in range(20):
            assert person.run(clean, check=True).stdout == "[]\n"
            process = person.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=chance.uniform(0.05, whole))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
            # Nothing is there that is not whole, and the next one succeeds.
            done = person.run(argv)
            assert (done.returncode, done.stdout) == (0, "subids []\n"), done.stderr
        assert killed >= 10


CLEAN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from udocker import images
from udocker.store import Store
store = Store(sys.argv[2])
for image in store.images():
    images.remove(store, image)
images.prune(store, age=0)
folders = [store.path("tmp"), store.path("layers"), store.path("blobs", "sha256")]
print([name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)])
"""


def test_a_layer_of_a_user_is_what_the_image_says(tmp_path, layout):
    """The kernel's view: with further ids, files belong to whom the image says."""
    with Person("uma") as person:
        given = equip(person, layout)
        argv = [person.python, "-c", LOAD, person.home / "library", person.home / "store", given]
        person.run(argv, check=True)
        store = Store(str(person.home / "store"))
        folders = [store.layer(one["diff_id"]) for one in store.images()[0].layers]
        (folder,) = [one for one in folders if os.path.exists(f"{one}/owned")]
        first = person.uid
        further = int(re.search(rf"^{person.name}:(\d+):", pathlib.Path("/etc/subuid").read_text(), re.M).group(1))
        assert os.stat(f"{folder}/owned/setuid").st_uid == first
        assert os.stat(f"{folder}/owned/setuid").st_mode & 0o7777 == 0o4755
        assert os.stat(f"{folder}/owned/daemon").st_uid == further
        assert unpack.OWNER not in os.listxattr(f"{folder}/owned/daemon")

# SPDX-License-Identifier: Apache-2.0
"""Building images with a stand-in for podman; the real one runs in the end-to-end test."""

import contextlib
import os
import subprocess
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import build, builders
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import Image, ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError


class Podman:
    """A stand-in: a store of tags, and builds that are shell scripts by image."""

    def __init__(self, folder):
        self.home = self.images = folder
        self.store, self.calls, self.script, self.refuse = set(), [], {}, ""
        self.locked = False

    @contextlib.contextmanager
    def lock(self, _name):
        assert not self.locked
        self.locked = True
        try:
            yield
        finally:
            self.locked = False

    def json(self, *_arguments, store):
        assert store == "images"
        return [{"Names": [one], "Size": 7} for one in self.store] + [{"Names": None, "Size": 1}]

    def run(self, *arguments, store, timeout=60):
        self.calls.append(arguments)
        if self.refuse and arguments[0] == self.refuse:
            raise PodmanError(f"podman {arguments[0]}: no space left on device")
        if arguments[0] == "tag":
            self.store.add(arguments[2])
        if arguments[0] == "rmi":
            self.store.discard(arguments[-1])
        if arguments[0] == "save":
            Path(arguments[arguments.index("--output") + 1]).write_text("tar")
        return ""

    def command(self, *arguments, store):
        return ["sh", "-c", self.script.get(Path(arguments[-1]).name, "true")]

    def environment(self):
        return {}


@pytest.fixture
def podman(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: usage(10**11))
    return Podman(tmp_path)


def image(name, parent=None, **more):
    return Image(name, Path("containers", name), f"d-{name}", parent or "base", f"d-{parent or 'base'}", **more)


# base is in the store: a root needs mmdebstrap
FAMILY = [image("a"), image("b"), image("c", "a"), image("d", "c"), image("e")]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_parents_first_and_no_more_than_jobs_at_once(podman, tmp_path, jobs):
    events, lock = [], threading.Lock()

    def progress(name, seconds):
        with lock:
            events.append((name, seconds is None))

    podman.script = {one.name: "sleep 0.05" for one in FAMILY}
    took = build.build(podman, FAMILY, tmp_path, jobs, progress=progress)
    assert set(took) == {"a", "b", "c", "d", "e"}
    running, most, done = set(), 0, set()
    for name, starts in events:
        if starts:
            parent = next(one.parent for one in FAMILY if one.name == name)
            assert parent in done | {"base"}
            running.add(name)
        else:
            running.discard(name)
            done.add(name)
        most = max(most, len(running))
    assert most == jobs
    assert {one.reference for one in FAMILY} <= podman.store
    assert build.build(podman, FAMILY, tmp_path, jobs) == {}, "a second time there is nothing to do"


def test_only_what_is_missing_is_built(podman, tmp_path):
    podman.store |= {FAMILY[0].reference, FAMILY[1].reference}
    assert set(build.build(podman, FAMILY[:3], tmp_path)) == {"c"}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo fine; echo 'E: Unable to locate package x'; echo 'exit status 100'; exit 1", "E: Unable to locate"),
        ("echo one; echo 'the last line'; echo; exit 1", "the last line"),
        ("exit 1", "returned non-zero exit status 1"),
    ],
)
def test_a_failure_names_the_image_and_its_log_and_leaves_earlier_images(podman, tmp_path, script, message):
    podman.script = {"c": script}
    with pytest.raises(ImageError) as caught:
        build.build(podman, FAMILY, tmp_path, 1, log_dir=tmp_path / "log")
    assert str(caught.value).startswith("image c: ")
    assert message in str(caught.value)
    assert f"(log: {tmp_path}/log/image-c.log)" in str(caught.value)
    assert {FAMILY[0].reference, FAMILY[1].reference} <= podman.store
    assert FAMILY[2].reference not in podman.store
    assert not podman.locked
    podman.script = {}
    assert "a" not in build.build(podman, FAMILY, tmp_path)


def test_others_that_run_are_finished_when_one_fails(podman, tmp_path):
    podman.script = {"a": "exit 1", "b": "sleep 0.3"}
    with pytest.raises(ImageError, match="image a"):
        build.build(podman, FAMILY[:2], tmp_path, 2)
    assert FAMILY[1].reference in podman.store


def test_podmans_own_error_is_the_one_told(podman, tmp_path):
    podman.script, podman.refuse = {"a": "echo misleading"}, "tag"
    with pytest.raises(ImageError, match="image a: podman tag: no space left on device"):
        build.build(podman, FAMILY[:1], tmp_path)


def test_a_build_that_hangs_has_a_deadline(podman, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "TIMEOUT", 0.2)
    podman.script = {"a": "sleep 20"}
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"image a: not built after 0\.2 s"):
        build.build(podman, FAMILY[:1], tmp_path)
    assert time.monotonic() - start < 3


def test_preflight(podman, tmp_path, monkeypatch):
    root = Image("base", Path("x"), "d", suite="trixie", packages=["a"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="mmdebstrap is not installed: apt-get install mmdebstrap"):
        build.build(podman, [root], tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: usage(2**20 * 5))
    with pytest.raises(ImageError, match=f"{tmp_path}: 5 MB free, building images needs 3000 MB"):
        build.build(podman, [root], tmp_path)
    assert build.build(podman, [], tmp_path) == {}, "nothing to build needs nothing"
    assert build.debian_sources("trixie") == [], "without apt"


def test_prune_keeps_what_is_current(podman):
    current = {FAMILY[0].reference, "localhost/dodas/a:latest"}
    podman.store = current | {"localhost/dodas/a:old", "localhost/dodas/gone:latest", "registry.example/else:1"}
    assert sorted(build.prune(podman, FAMILY)) == ["localhost/dodas/a:old", "localhost/dodas/gone:latest"]
    assert podman.store == current | {"registry.example/else:1"}


def test_an_archive_is_made_once_for_the_same_content(podman, tmp_path):
    path, made = build.archive(podman, FAMILY[:2], tmp_path / "archives")
    assert made
    assert Path(path).read_text() == "tar"
    assert build.archive(podman, reversed(FAMILY[:2]), tmp_path / "archives") == (path, False)
    assert build.archive(podman, FAMILY[:1], tmp_path / "archives")[0] != path
    assert len(list((tmp_path / "archives").iterdir())) == 2


def test_archives_that_nobody_asked_for_go(podman, tmp_path):
    kept, forgotten = (Path(build.archive(podman, some, tmp_path)[0]) for some in (FAMILY[:1], FAMILY[:2]))
    for path in (kept, forgotten):
        os.utime(path, (0, 0))
    build.archive(podman, FAMILY[:1], tmp_path)
    build.archive(podman, FAMILY[:3], tmp_path)
    assert kept.exists() and not forgotten.exists()


def test_listing(podman):
    podman.store = {FAMILY[0].reference}
    assert [(one["name"], one["present"], one["size"]) for one in build.listing(podman, FAMILY[:2])] == [
        ("a", True, 7), ("b", False, 0)
    ]  # fmt: skip


def test_sources_are_debian_only(monkeypatch):
    listed = (
        "Debian stable bookworm http://m/debian/\n\nDocker CE x y http://d/\nDebian s bookworm-updates http://m/u/\n"
    )
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(build.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(build.subprocess, "run", lambda *_a, **_k: done)
    assert build.debian_sources("trixie") == ["deb http://m/debian/ trixie main"]

# SPDX-License-Identifier: Apache-2.0
"""The builder of images that is our own runtime: its store, its lock, and what it shares with stores of hosts."""

import json
import os
import subprocess
import sys

import pytest

import udocker_images
from ansible_collections.dodas.cluster.plugins.module_utils.images import build, builders
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import Image, ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import archives
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store


@pytest.fixture
def builder(tmp_path):
    """A builder that has the image `base`."""
    found = builders.Udocker(tmp_path / "store")
    archive = tmp_path / "base.tar"
    udocker_images.docker(archive, {"localhost/dodas/base:d-base": ([udocker_images.base()], None)})
    archives.load(found.store, str(archive))
    return found


def image(tmp_path, name, text):
    folder = tmp_path / "containers" / name
    folder.mkdir(parents=True)
    (folder / "Containerfile").write_text(text)
    return Image(name, folder, f"d-{name}", "base", "d-base")


def test_the_store_is_where_the_environment_says_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DODAS_IMAGES", str(tmp_path))
    assert builders.udocker_store() == tmp_path / "udocker"
    monkeypatch.delenv("DODAS_IMAGES")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert builders.udocker_store() == tmp_path / "cache/dodas/images/udocker"
    assert isinstance(builders.builder("udocker"), builders.Udocker)


def test_images_are_built_of_files_of_the_project_and_known_by_their_content(builder, tmp_path):
    (tmp_path / "src").write_text("of the project")
    one = image(tmp_path, "one", "FROM localhost/dodas/base\nCOPY --from=dodas src /src\nCMD x\n")
    assert [found["present"] for found in build.listing(builder, [one])] == [False]
    assert set(build.build(builder, [one], tmp_path)) == {"one"}
    assert build.build(builder, [one], tmp_path) == {}
    assert {one.reference, "localhost/dodas/one:latest"} <= set(build.present(builder))
    found = builder.store.image(one.reference)
    assert json.loads(builder.store.read_blob(found.config))["config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    with open(os.path.join(builder.store.layer(found.layers[-1]["diff_id"]), "src")) as source:
        assert source.read() == "of the project"


def test_a_failure_names_the_image_the_line_and_the_log(builder, tmp_path):
    one = image(tmp_path, "one", "FROM localhost/dodas/base\nCOPY missing /\n")
    with pytest.raises(ImageError) as caught:
        build.build(builder, [one], tmp_path)
    assert str(caught.value).startswith("image one: Error: ")
    assert "Containerfile:2: COPY: missing is not in the build's context" in str(caught.value)
    assert f"(log: {builder.folder}/log/image-one.log)" in str(caught.value)
    assert one.reference not in build.present(builder)


def test_another_stores_layers_are_the_same_files(builder, tmp_path):
    other = Store(str(tmp_path / "host"))
    for _again in range(2):
        builder.provide(["localhost/dodas/base:d-base"], other.root)
    found = other.image("localhost/dodas/base:d-base")
    assert found.layers == builder.store.image(found.name).layers
    assert other.has_layer(found.layers[0]["diff_id"])
    assert other.read_blob(found.config) == builder.store.read_blob(found.config)
    path = os.path.join(other.layer(found.layers[0]["diff_id"]), "bin/busybox")
    assert os.path.samefile(path, path.replace(str(other.root), builder.store.root))


def test_what_is_out_of_date_is_removed(builder, tmp_path):
    one = image(tmp_path, "one", "FROM localhost/dodas/base\nLABEL a=b\n")
    build.build(builder, [one], tmp_path)
    newer = Image("one", one.folder, "d-newer", "base", "d-base")
    base = Image("base", one.folder, "d-base")
    assert build.prune(builder, [newer, base]) == [one.reference]
    assert one.reference not in build.present(builder)


def test_archives_are_loaded_elsewhere(builder, tmp_path):
    one = image(tmp_path, "one", "FROM localhost/dodas/base\nLABEL a=b\n")
    build.build(builder, [one], tmp_path)
    path, made = build.archive(builder, [one], tmp_path / "archives")
    assert made
    other = Store(str(tmp_path / "other"))
    assert {found.name for found in archives.load(other, path)} == {one.reference, "localhost/dodas/one:latest"}


def test_who_builds_is_named_when_it_takes_too_long(builder):
    code = ("import fcntl, sys, os; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); f.truncate(0);"
            "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()")  # fmt: skip
    command = [sys.executable, "-c", code, str(builder.folder / "build.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        message = f"process {holder.pid} still builds images after 0.1 s"
        with pytest.raises(ImageError, match=message), builder.lock(0.1):
            pass
        holder.stdin.close()
    with builder.lock(0.1):
        pass

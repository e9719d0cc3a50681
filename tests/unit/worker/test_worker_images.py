# SPDX-License-Identifier: Apache-2.0
"""What a worker makes of the images that jobs name, and of the starter's command line."""

import io
import json
import os

import pytest

import udocker_images
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from dodas.worker import container, image
from udocker_program import program

STARTER = (
    "-s exec -S /tmp -W {scratch} --pwd {scratch} -B {scratch} -B /cvmfs:/cvmfs:ro --home {scratch} -C tiny:1 "
    "/bin/cat -n /etc/os-release"
)


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKER_IMAGES", str(tmp_path / "images"))
    return tmp_path / "images"


def test_the_starters_words_become_the_runtimes(tmp_path, images):
    words = STARTER.format(scratch=tmp_path).split()
    variables = {"SINGULARITYENV_A": "1", "SINGULARITYENV_LD_PRELOAD": "/x.so", "A": "1", "LD_PRELOAD": "/x.so"}
    made, environment = container.command(words, {"PATH": "/bin", **variables})
    assert made[-4:] == ["tiny:1", "/bin/cat", "-n", "/etc/os-release"]
    assert made[0] == "/usr/local/bin/udocker" and f"--repo={images / str(os.geteuid())}" in made
    options = set(made[made.index("run") : -4])
    assert {
        "--rm", "--interactive", "--pull=never", "--entrypoint=", f"--user={os.geteuid()}:{os.getegid()}",
        f"--workdir={tmp_path}", f"--volume={tmp_path}:{tmp_path}", "--volume=/cvmfs:/cvmfs:ro",
        f"--volume={tmp_path}/tmp:/tmp", "--env=A", "--env=LD_PRELOAD=/x.so", f"--env=HOME={tmp_path}",
    } <= options  # fmt: skip
    assert environment == {"PATH": "/bin", "A": "1"}
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_a_root_file_system_and_the_images_entry_point():
    made, _environment = container.command(["exec", "-C", "/cvmfs/unpacked/x", "/exit_37"], {})
    assert made[-3:] == ["--location=/cvmfs/unpacked/x", "", "/exit_37"]
    made, _environment = container.command(["run", "-C", "--entrypoint", "--network=none", "tiny:1", "more"], {})
    assert "--entrypoint=" not in made and "--network=none" in made


@pytest.mark.parametrize("words", [["exec"], ["exec", "--new", "tiny"], ["exec", "-S", "/tmp", "tiny"], ["exec", "-B"]])
def test_what_is_not_known_is_refused(words):
    with pytest.raises(container.UsageError):
        container.command(words, {})


def test_what_a_job_calls_its_image(tmp_path):
    (tmp_path / "image.tar").write_bytes(b"x" * 100)
    (tmp_path / "image.sif").write_bytes(b"#!/usr/bin/env run-singularity\nSIF_MAGIC\0" + b"x" * 100)
    (tmp_path / "tree").mkdir()
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout/oci-layout").touch()
    assert image.find("image.tar", tmp_path) == ("archive", str(tmp_path / "image.tar"))
    assert image.find("given/image.tar", tmp_path) == ("archive", str(tmp_path / "image.tar"))
    assert image.find("tree/", tmp_path) == ("tree", str(tmp_path / "tree"))
    assert image.find("oci:layout", tmp_path) == ("archive", str(tmp_path / "layout"))
    assert image.find("docker://image.tar", tmp_path) == ("registry", "image.tar")
    assert image.find("debian:12", tmp_path) == ("registry", "debian:12")
    for text, words in (("image.sif", "only Apptainer"), ("other.tar", "is not there"), ("/cvmfs/no", "is not there")):
        with pytest.raises(Error, match=words):
            image.find(text, tmp_path)


def test_an_archive_is_loaded_once_and_named_by_what_it_holds(tmp_path, images):
    cache = image.Cache(Store(images / "0"), 1 << 40, program())
    one = udocker_images.busybox(tmp_path, kind="docker", name="same:1")
    name = cache.get(one.name, tmp_path)
    assert name.startswith(image.LOADED)
    created = cache.store.image(name).created
    assert cache.get(one.name, tmp_path) == name and cache.store.image(name).created == created


def test_images_that_were_not_used_for_longest_go(tmp_path, images):
    names = []
    cache = image.Cache(Store(images / "0"), 1 << 40, program())
    for number in range(3):
        content = udocker_images.layer(udocker_images.member("big", os.urandom(1 << 20)))
        folder = tmp_path / str(number)
        folder.mkdir()
        archive = udocker_images.busybox(folder, kind="docker", name="any:1", extra=[content])
        names.append(cache.get(archive.name, folder))
        os.utime(cache._note(names[-1]), (number, number))
    os.utime(cache._note(names[0]), (9, 9))
    cache.limit = image._size(cache.store.root) - (1 << 19)
    cache._bound(names[2])
    assert {one.name for one in cache.store.images()} == {names[0], names[2]}
    cache.limit = 0
    cache._bound(names[2])
    assert [one.name for one in cache.store.images()] == [names[2]]


@pytest.mark.parametrize(
    ("ad", "answer"),
    [
        ("ClusterId = 1\n", None),
        ('ContainerImage = "no.tar"\n', "HookStatusMessage"),
        ('SingularityImage = "tree"\nContainerImage = "no.tar"\n', "JobImage"),
    ],
)
def test_the_hook_answers_with_an_image_or_a_reason(tmp_path, monkeypatch, capsys, ad, answer):
    (tmp_path / "tree").mkdir()
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(ad))
    status = image.main()
    name, _equals, text = capsys.readouterr().out.partition(" = ")
    assert (status, name) == (int(answer == "HookStatusMessage"), answer or "")
    if answer == "JobImage":
        assert json.loads(text) == str(tmp_path / "tree")
    if answer == "HookStatusMessage":
        assert json.loads(text).startswith("image no.tar: ")


def test_a_store_of_another_user_is_not_used(images):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    images.mkdir()
    (images / "0").mkdir(0o700)
    os.chown(images / "0", 12345, 12345)
    with pytest.raises(PermissionError, match="another user's"):
        container.store_of_user()

# SPDX-License-Identifier: Apache-2.0
"""Building disk images: what is checked before, what is named when a step fails, what is left out and what is kept.

A whole one is built in tests/integration/node_image.
"""

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman


@pytest.fixture
def one(tmp_path):
    """A disk image without container images."""
    folder = tmp_path / "nodes/debian-12"
    (folder / "root/etc").mkdir(parents=True)
    (folder / "root/etc/fstab").write_text("LABEL=dodas-root / ext4\n")
    (folder / "customize").write_text("true\n")
    return node.Node("debian-12", folder, "c0", "b0", "bookworm", ["curl"], {"bullseye": ["consul"]}, [], [])


@pytest.fixture
def build(tmp_path, monkeypatch, one):
    """Build it with programs of that folder before the others."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    podman = Podman(tmp_path / "home", tmp_path / "run", tmp_path / "images")

    def build(**scripts):
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        return node_build.build(one, tmp_path, tmp_path / "cache", podman)

    return build


def test_a_step_that_fails_is_named_with_its_reason_and_log_and_leaves_nothing(build, tmp_path):
    with pytest.raises(ImageError) as caught:
        build(mmdebstrap="echo one; echo 'E: Unable to locate package x'; echo last; exit 25")
    log = tmp_path / "cache/debian-12.log"
    assert str(caught.value) == (
        f"disk image debian-12: root file system: mmdebstrap: E: Unable to locate package x (log: {log})"
    )
    assert log.read_text().startswith("one\n")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["debian-12.log"]


def test_a_step_that_hangs_has_a_deadline(build, monkeypatch):
    monkeypatch.setattr(node_build, "TIMEOUT", 0.3)
    with pytest.raises(ImageError, match="root file system: mmdebstrap did not end in 0 s"):
        build(mmdebstrap="exec sleep 20")


def test_mmdebstrap_is_told_what_the_image_is_of(build, tmp_path):
    with pytest.raises(ImageError):
        build(mmdebstrap=f'printf "%s\\n" "$@" > {tmp_path}/told; exit 1')
    told = (tmp_path / "told").read_text().splitlines()
    assert "--include=curl,consul" in told
    assert told[told.index("bookworm") + 1].endswith("/root")
    assert any(line.startswith("deb ") and " bullseye " in line for line in told)


def test_preflight(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(node_build.shutil, "disk_usage", lambda _: usage(2**20 * 5))
    with pytest.raises(ImageError, match=f"{tmp_path}: 5 MB free, making a disk image needs 8000 MB"):
        node_build._preflight(tmp_path / "not/there")
    monkeypatch.setattr(node_build.platform, "machine", lambda: "riscv64")
    with pytest.raises(ImageError, match="are for x86_64, and this machine is riscv64"):
        node_build._preflight(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(node_build.os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="made by root: use sudo"):
        node_build._preflight(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(node_build.shutil, "which", lambda name, path: None if name == "mcopy" else name)
    with pytest.raises(ImageError, match="not installed: mcopy: apt-get install mmdebstrap qemu-utils"):
        node_build._preflight(tmp_path)


def keep(folder, name, age_days=0):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.qcow2"
    path.write_bytes(b"disk")
    deployment.write_json(path.with_suffix(".json"), {"size_mb": 1})
    at = time.time() - age_days * 86400
    os.utime(path, (at, at))
    return path


def test_what_is_there_is_not_built_again(build, tmp_path, one):
    path = keep(tmp_path / "cache", one.reference, age_days=6)
    found = build(mmdebstrap="exit 1")
    assert (found.path, found.size, found.manifest) == (path, 4, {"size_mb": 1})
    assert time.time() - path.stat().st_mtime < 60, "somebody asked for it"
    path.with_suffix(".json").unlink()
    assert node_build.present(one, tmp_path / "cache") is None, "one that was not made to the end"


def test_images_that_nobody_asked_for_go_when_another_is_built(build, tmp_path):
    old, young = (keep(tmp_path / "cache", name, days) for name, days in (("old", 8), ("young", 6)))
    with pytest.raises(ImageError):
        build(mmdebstrap="exit 1")
    assert not old.exists()
    assert not old.with_suffix(".json").exists()
    assert young.exists()


def test_what_a_killed_build_left_goes_with_the_next_one(build, tmp_path, one):
    cache, others = tmp_path / "cache", node_build._scratch_name(tmp_path / "elsewhere")
    cache.mkdir()
    left = [cache / f"{node_build._scratch_name(cache)}x", node_build.MEMORY / f"{node_build._scratch_name(cache)}x"]
    running = node_build.MEMORY / f"{others}x"
    for folder in [*left, running]:
        (folder / "root/etc").mkdir(parents=True)
    (cache / f".{one.reference}.partial").write_bytes(b"half")
    try:
        with pytest.raises(ImageError):
            build(mmdebstrap="exit 1")
        assert not any(folder.exists() for folder in left)
        assert running.exists()
        assert [path.name for path in cache.iterdir()] == ["debian-12.log"]
    finally:
        shutil.rmtree(running)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("DODAS_CACHE", "/elsewhere")
    assert node_build.cache() == Path("/elsewhere/nodes")
    monkeypatch.delenv("DODAS_CACHE")
    assert node_build.cache() == Path("/var/cache/dodas/nodes")


def test_nothing_of_the_build_and_no_hosts_identity_stays(tmp_path):
    gone = ["etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", "var/lib/dbus/machine-id",
            "var/lib/systemd/random-seed", "var/lib/cloud/instance/id", "var/log/apt/history.log", "var/log/dpkg.log",
            "var/lib/apt/lists/mirror_Packages", "etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/preferences.d/dodas",
            "etc/apt/sources.list.d/0000mirror.list", "etc/hostname", "root/.bash_history", "tmp/x"]  # fmt: skip
    kept = ["etc/ssh/sshd_config", "etc/ssh/sshd_config.d/dodas.conf", "etc/cloud/cloud.cfg", "var/lib/dpkg/status"]
    for name in [*gone, *kept, "etc/machine-id", "etc/apt/sources.list", "etc/resolv.conf"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("deb http://mirror.example.org/debian bookworm main\n")
    (tmp_path / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True)
    (tmp_path / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").write_text("force-unsafe-io\npath-exclude=/usr/share/man/*\n")
    node_build.clean(tmp_path)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert (tmp_path / "etc/apt/sources.list").read_text() == ""
    assert (tmp_path / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").read_text() == "path-exclude=/usr/share/man/*\n"
    assert os.readlink(tmp_path / "etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf"


def test_files_are_roots_with_plain_modes_whoever_has_them(one, tmp_path):
    source = one.folder / "root/etc/fstab"
    source.chmod(0o600)
    os.chown(source, 1234, 1234)
    shutil.copy(source, source.with_name("run"))
    source.with_name("run").chmod(0o700)
    node_build._stage(one.folder / "root", tmp_path / "staged")
    status = {path.name: path.stat() for path in (tmp_path / "staged/etc").iterdir()}
    assert {name: (one.st_mode & 0o777, one.st_uid) for name, one in status.items()} == {
        "fstab": (0o644, os.geteuid()), "run": (0o755, os.geteuid())
    }  # fmt: skip

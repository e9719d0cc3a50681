# SPDX-License-Identifier: Apache-2.0
"""The module program_archive through Ansible itself: an archive of the controller and one behind a URL."""

import hashlib
import os
import tarfile

import pytest


@pytest.fixture
def archive(tmp_path):
    program = tmp_path / "run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "program.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(program, "top/bin/run")
    return path


def test_it_is_unpacked_once(ansible, archive, tmp_path):
    checksum = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    given = {"checksum": checksum, "strip": 1, "programs": ["bin/run"]}

    def tasks(src, dest, **other):
        return ("dodas.cluster.program_archive", {"src": str(src), "dest": str(tmp_path / dest), **given, **other})

    done = ansible.play(
        tasks(archive, "opt/first"),
        tasks(archive, "opt/first"),
        tasks(f"file://{archive}", "opt/second"),
        tasks(archive, "opt/wrong", checksum="sha256:" + "0" * 64),
        tasks(archive, "opt/wrong", programs=["bin/other"]),
        tasks(tmp_path / "missing.tar.gz", "opt/wrong"),
        tasks(f"file://{tmp_path}/missing.tar.gz", "opt/wrong"),
        tasks(archive, "opt/wrong", checksum="x"),
    )
    assert [one["changed"] for one in done.results[:3]] == [True, False, True]
    messages = (
        f"{archive}: its checksum is {checksum}, and not sha256:000",
        f"{archive}: has no bin/other that can be executed",
        f"src: there is no file {tmp_path}/missing.tar.gz on the controller",
        "missing.tar.gz",
        "checksum: 'x' must be",
    )
    for result, said in zip(done.results[3:], messages, strict=True):
        assert result["failed"] and said in result["msg"], result
    assert sorted(os.listdir(tmp_path / "opt")) == ["first", "second"]
    assert os.access(tmp_path / "opt/first/bin/run", os.X_OK) and os.access(tmp_path / "opt/second/bin/run", os.X_OK)


def test_check_mode_unpacks_nothing(ansible, archive, tmp_path):
    given = {"src": str(archive), "checksum": "sha256:" + "0" * 64, "dest": str(tmp_path / "opt/first")}
    done = ansible.play(("dodas.cluster.program_archive", given), options=["--check"])
    assert done.results[0]["changed"] and not (tmp_path / "opt").exists()

# SPDX-License-Identifier: Apache-2.0
"""udocker 1.3.17's own shell tests, from its source distribution, with our program in the place of theirs.

The registries that they name cannot be had here: images of those names are in a registry on loopback, which the user's
udocker.conf says is to be asked. Java, redis and the index that is searched are stand-ins; Debian's root stands for
Ubuntu and CentOS, and its Python for the one of python:3-slim.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import udocker_images as images
from udocker_program import Program
from udocker_registry import Registry, Server

VERSION = "1.3.17"
VERDICT = re.compile(r"^\x1b\[[0-9;]+m\[(OK|FAIL)\]\x1b\[0m\s+(T\d+)", re.M)

# What fails, and why it is right so.
REFUSED = {
    "udocker_test.sh": {
        "T001": "looks for bin/proot-x86_64: no helper is installed or needed",
        "T002": "looks for bin/proot-x86_64: no helper is installed or needed",
    },
    "udocker_test-run.sh": {},
}
COUNT = {"udocker_test.sh": 53, "udocker_test-run.sh": 50}
JAVA = "#!/bin/sh\necho 'openjdk version \"1.8.0\" (stand-in)' >&2\n"
REDIS = "#!/bin/sh\necho 'Redis server v=7 (stand-in)'\n"
# Their script fetches two archives: the stand-in gives those that are beside it.
WGET = '#!/bin/sh\nfor last; do :; done\ncp "$(dirname "$0")/$(basename "$last")" .\n'


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The folder with their scripts."""
    folder = tmp_path_factory.mktemp("udocker-source")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-binary=:all:", "--no-build-isolation", f"udocker=={VERSION}", "--dest", folder],
        check=True, timeout=300,
    )  # fmt: skip
    with tarfile.open(folder / f"udocker-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"udocker-{VERSION}" / "utils"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with the images that they want."""
    folder = tmp_path_factory.mktemp("registry")
    debian = [Path(images.debian_root()).read_bytes()]
    python = [Path(images.debian_root(packages=("python3-minimal",))).read_bytes()]
    tiny = [images.base()]
    java = [*tiny, images.layer(images.member("bin/java", JAVA, mode=0o755))]
    redis = [*tiny, images.layer(images.member("bin/redis-server", REDIS, mode=0o755))]
    with Registry(folder / "served") as served:
        for name, layers in (
            ("library/ubuntu:22.04", debian),
            ("library/centos:7", debian),
            ("library/python:3-slim", python),
            ("library/openjdk:8-jdk-alpine", java),
            ("docker/library/redis:latest", redis),
        ):
            layout = images.oci(folder / name.replace("/", "_").replace(":", "_"), layers, name=name)
            served.put(layout, name, name)
        images.docker(folder / "centos7.tar", {"centos:7": (tiny, None)})
        served.archives = folder
        yield served


class Index(http.server.BaseHTTPRequestHandler):
    """Answers every search with one repository: a stand-in for an index."""

    def do_GET(self):
        content = json.dumps({
            "count": 1, "results": [{
                "repo_name": "gromacs/gromacs", "short_description": "a stand-in", "star_count": 3,
                "is_official": False,
            }],
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def udocker(registry, scripts):
    """The program of somebody whose configuration names the registry, with what the scripts need on PATH."""
    text = (scripts / "udocker_test.sh").read_text()
    (other,) = set(re.findall(r"^udocker pull (\S+?)/docker/library/redis;", text, re.M))
    with Server(Index) as index, Program(name="bob") as udocker:
        (udocker.store / "udocker.conf").write_text(
            "[DEFAULT]\n"
            f"dockerio_registry_url = {registry.url}\n"
            f"dockerio_index_url = {index.url}\n"
            f"docker_registries = {{'{other}': '{registry.url}'}}\n"
        )
        tools = udocker.folder("tools")
        (tools / "wget").write_text(WGET)
        (tools / "wget").chmod(0o755)
        shutil.copy(registry.archives / "centos7.tar", tools)
        (tools / "centos7.tar").chmod(0o644)
        udocker.out("create", "--name=c", "busybox")
        udocker.out("export", "--clone", "-o", tools / "centos7-cont.tar", "c")
        yield udocker


def verdicts(udocker, script, timeout):
    """{number of the test: whether it passed}, and all that was said."""
    path = f"{udocker.home}/tools:{udocker.person.environment['PATH']}"
    done = udocker.person.run(
        ["bash", udocker.person.give(script), udocker.path], env={"PATH": path}, timeout=timeout, text=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = done.stdout.decode("utf-8", "replace")
    return {number: verdict == "OK" for verdict, number in VERDICT.findall(said)}, said


@pytest.mark.parametrize("name", sorted(COUNT))
def test_their_own_tests_pass(udocker, scripts, name, record_property):
    found, said = verdicts(udocker, scripts / name, 1200)
    assert len(found) == COUNT[name], said
    failed = {number for number, passed in found.items() if not passed}
    print(f"{name}: {len(found) - len(failed)} of {len(found)} pass; refused: {sorted(REFUSED[name])}")
    record_property("passed", len(found) - len(failed))
    assert failed == set(REFUSED[name]), said

# SPDX-License-Identifier: Apache-2.0
"""That no silence counts as a refusal, and that the verifiers leave nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import verifiers
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
from verifiers_shapes import SHAPES, World

SHAPE = {shape.name: shape for shape in SHAPES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world of its own, with three credentials."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    folder = tmp_path_factory.mktemp("other") / "world"
    folder.mkdir()
    world = World(folder)
    for name in ("EEC", "proxy", "expired proxy"):
        files.write(folder / f"{name}.pem", SHAPE[name].make(world).pem)
    return folder


def path(name):
    return f"{verifiers.HERE}/{name}.pem"


@pytest.fixture(scope="module")
def box(folder):
    """A container in which no server was started."""
    box = verifiers.Box(folder)
    yield box
    box.stop()


@pytest.mark.parametrize("verifier", verifiers.VERIFIERS, ids=lambda one: one.name)
def test_a_server_that_is_not_there_does_not_refuse(box, verifier):
    servers = [one for one in verifiers.VERIFIERS if one.start is not verifiers.Verifier.start] + [verifiers.XrdHttp]
    with pytest.raises(verifiers.VerifierError, match=rf"^{verifier.name}: "):
        verifier(box).ask(path(verifier.good if verifier in servers else "nothing"))


def test_a_verifier_that_refuses_everything_is_not_believed(box):
    with pytest.raises(verifiers.VerifierError, match="OpenSSL: refuses a good credential"):
        verifiers.OpenSSL(box).judge(path("expired proxy"), path("expired proxy"))
    assert verifiers.OpenSSL(box).judge(path("expired proxy"), path("proxy")).letter == verifiers.REFUSED


def test_a_server_that_hangs_does_not_refuse(box):
    server = verifiers.Nginx(box)
    server.start()
    server.await_ready(path("EEC"))
    assert server.judge(path("proxy"), path("EEC")).letter == verifiers.REFUSED
    box.run("sh", "-c", "kill -STOP $(cat /run/nginx.pid)")
    with pytest.raises(verifiers.VerifierError, match=r"(?s)^nginx: .*timed out.*log: .*verify error"):
        server.judge(path("proxy"), path("EEC"))


class Namespaces:
    """What is in the namespaces of a process, and of those below it."""

    def __init__(self, pid):
        self.numbers = {os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in ("pid", "net", "mnt")}

    def processes(self):
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.numbers & {(process / "ns" / kind).stat().st_ino for kind in ("pid", "net", "mnt")}:
                    found.add(process.name)
            except OSError:
                continue
        return found

    def names(self):
        """Of those that are kept by a name."""
        return {one.name for one in Path("/run/netns").glob("*") if one.stat().st_ino in self.numbers}

    def assert_gone(self, podman):
        """Within seconds: processes end after the one that is waited for."""
        deadline = time.monotonic() + verifiers.SECONDS
        while found := self.processes() | self.names() | _processes_of(podman.home):
            assert time.monotonic() < deadline, f"left: {found}"
            time.sleep(0.05)


def _processes_of(folder):
    """Those that name a folder in their arguments."""
    found = set()
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in arguments.read_bytes():
                found.add(arguments.parent.name)
        except OSError:
            continue
    return found


def test_nothing_is_left(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "world", ignore=shutil.ignore_patterns("nginx*"))
    box = verifiers.Box(place)
    try:
        inside = Namespaces(box.pid)
        for verifier in (verifiers.Globus, verifiers.XRootD):
            server = verifier(box)
            server.start()
            server.await_ready(path("proxy"))
        assert len(inside.processes()) >= 3 and _processes_of(box.podman.home)
        assert str(box.podman.home) in Path("/proc/self/mounts").read_text(encoding="utf-8")
    finally:
        box.stop()
    inside.assert_gone(box.podman)
    assert str(box.podman.home) not in Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [place] and not box.podman.run_dir.exists()


KILLED = """
import sys, time
from pathlib import Path
import verifiers
print(verifiers.Box(Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


def test_a_killed_run_leaves_no_process(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    place = tmp_path / "world"
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([sys.executable, "-c", KILLED, place], stdout=subprocess.PIPE, env=environment)
    inside = Namespaces(int(run.stdout.readline()))
    assert inside.processes()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    podman = verifiers.Podman(verifiers.home_of(place))
    inside.assert_gone(podman)
    verifiers.remove_store(podman)

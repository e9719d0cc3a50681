# SPDX-License-Identifier: Apache-2.0
"""The worker's entry point and probe, with stand-ins for what they call, and their folders below one of the test."""

import os
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parents[3] / "containers/worker"
FOLDERS = {"/var/lib/dodas": "state", "/run/condor": "run", "/run/lock/condor": "lock", "/cvmfs": "cvmfs"}
# What is called notes its name and words.
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >> "FOLDER/calls"\n'
COMMANDS = {
    **dict.fromkeys(("worker-renew", "worker-probe", "worker-drain", "openssl", "curl"), NOTE),
    # it runs until it is told to end
    "condor_master": NOTE + "trap 'echo ended >> \"FOLDER/calls\"; exit 3' TERM\nwhile :; do sleep 0.05; done\n",
    # there is no user condor here
    "install": '#!/bin/bash\n[ "$2" != -o ] || set -- "$1" "${@:6}"\nexec /usr/bin/install "$@"\n',
    "mountpoint": '#!/bin/sh\n[ -e "$2" ]\n',
}


class Host:
    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.state = folder / "state/worker"
        self.bin.mkdir()
        for name, text in COMMANDS.items():
            self.put(name, text)

    def put(self, name, text):
        path = self.bin / name
        path.write_text(text.replace("FOLDER", str(self.folder)))
        path.chmod(0o755)

    def start(self, name, *words, **variables):
        text = (PROGRAMS / name).read_text()
        for old, new in FOLDERS.items():
            text = text.replace(old, f"{self.folder}/{new}")
        script = self.folder / "script"
        script.write_text(text)
        ours = {key: value for key, value in os.environ.items() if key != "MESOS_SANDBOX"}
        environment = {**ours, "PATH": f"{self.bin}:{os.environ['PATH']}", **variables}
        return subprocess.Popen(["sh", script, *words], env=environment, stdout=subprocess.PIPE, text=True)

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, call):
        deadline = time.monotonic() + 10
        while call not in self.calls():
            assert time.monotonic() < deadline, self.calls()
            time.sleep(0.02)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_daemons_start_after_the_proxy_and_the_probe(host):
    process = host.start("worker-entrypoint")
    host.wait("condor_master -f")
    assert host.calls() == ["worker-renew --once --deadline 60", "worker-probe --before-start", "condor_master -f"]
    assert {"log", "spool", "execute", "images"} == {path.name for path in host.state.iterdir()}
    assert not host.state.is_symlink()
    process.terminate()
    assert process.wait(10) == 3, "the daemons are the container's process"
    assert host.calls()[-1] == "ended" and not any("drain" in call for call in host.calls())


def test_without_its_needs_no_daemon_starts(host):
    host.put("worker-probe", "#!/bin/sh\necho 'squid: does not answer'\nexit 1\n")
    process = host.start("worker-entrypoint")
    assert process.wait(10) == 1 and not any("condor_master" in call for call in host.calls())
    assert process.stdout.read() == "squid: does not answer\n"


def test_it_can_be_stopped_while_it_waits_for_its_proxy(host):
    host.put("worker-renew", NOTE + "exec sleep 3\n")
    process = host.start("worker-entrypoint", WORKER_DRAIN_SECONDS="600")
    host.wait("worker-renew --once --deadline 60")
    process.terminate()
    assert process.wait(10) == 143 and not any("condor_master" in call for call in host.calls())


def test_instances_of_mesos_have_their_sandboxes(host):
    sandbox = host.folder / "sandbox"
    sandbox.mkdir(mode=0o750)
    process = host.start("worker-entrypoint", MESOS_SANDBOX=str(sandbox))
    host.wait("condor_master -f")
    assert host.state.resolve() == sandbox / "worker" and (sandbox / "worker/execute").is_dir()
    assert sandbox.stat().st_mode & 0o777 == 0o751, "jobs are other users"
    process.terminate()
    process.wait(10)


def test_a_folder_of_the_host_is_used_also_with_mesos(host):
    host.state.mkdir(parents=True)
    process = host.start("worker-entrypoint", MESOS_SANDBOX=str(host.folder))
    host.wait("condor_master -f")
    assert not host.state.is_symlink() and (host.state / "execute").is_dir()
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize(("drain", "said"), [(NOTE, ""), (NOTE + "exit 1\n", "jobs still run after 30 s\n")])
def test_jobs_may_end_before_the_daemons_do(host, drain, said):
    host.put("worker-drain", drain)
    process = host.start("worker-entrypoint", WORKER_DRAIN_SECONDS="30")
    host.wait("condor_master -f")
    process.terminate()
    assert process.wait(10) == 3
    assert host.calls()[-2:] == ["worker-drain 30", "ended"] and process.stdout.read() == said


def test_daemons_that_end_by_themselves_end_the_container(host):
    host.put("condor_master", "#!/bin/sh\nexit 44\n")
    assert host.start("worker-entrypoint", WORKER_DRAIN_SECONDS="30").wait(10) == 44


def test_the_probe_looks_at_the_repositories(host):
    host.bin.joinpath("worker-probe").unlink()
    (host.state / "execute").mkdir(parents=True)
    given = {
        "PROXY_SECONDS": "300", "X509_USER_PROXY": "/x", "HTTP_PROXY_URL": "http://squid:3128", "PROBE_URL": "http://a/b",
        "SCRATCH_MB": "0", "WORKER_CVMFS": "cms.cern.ch grid.cern.ch",
    }  # fmt: skip
    for name in ("cms.cern.ch", "grid.cern.ch"):
        process = host.start("worker-probe", "--before-start", **given)
        assert process.wait(10) == 1
        assert process.stdout.read().startswith(f"cvmfs: {host.folder}/cvmfs/{name} is not mounted")
        (host.folder / "cvmfs" / name).mkdir(parents=True)
    assert host.start("worker-probe", "--before-start", **given).wait(10) == 0
    host.put("ls", "#!/bin/sh\nexit 2\n")
    assert host.start("worker-probe", "--before-start", **given).wait(10) == 1

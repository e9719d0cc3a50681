# SPDX-License-Identifier: Apache-2.0
"""Jobs that name an image run in it, however they name it."""

import base64
import io
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from udocker_images import busybox

FOLDER = "/tmp/images"
STORE = "/var/lib/dodas/worker/images/2000"
TAG = "registry.invalid/group/tiny:1"
# Says what it runs in and as, and leaves a result; then ends as a command would that signal 9 ended.
JOB = """#!/bin/sh
. /etc/os-release
{ echo "$ID"; id -u; head -n 1 "$X509_USER_PROXY"; ls /etc/grid-security/certificates | wc -l; pwd; } > result
test "$(pwd)" = "$_CONDOR_SCRATCH_DIR" && test ! -e /usr/sbin/condor_startd && touch /written && kill -9 $$
"""
WAYS = {
    "archive": "universe = container\ncontainer_image = tiny.tar",
    "attribute": '+ContainerImage = "tiny.tar"\ntransfer_input_files = tiny.tar',
    "repository": f"universe = container\ncontainer_image = docker://{TAG}",
    "docker": f"universe = docker\ndocker_image = {TAG}",
}


def describe(name, way, job="job.sh"):
    return (
        f"{way}\nexecutable = {job}\nx509userproxy = proxy.pem\n"
        f"log = {name}.log\noutput = {name}.out\nerror = {name}.err\n"
        f'should_transfer_files = YES\ntransfer_output_remaps = "result = {name}.result"\n'
        "request_memory = 32\nrequest_disk = 32MB\nqueue\n"
    )


@pytest.fixture(scope="module")
def jobs(e2e, tmp_path_factory):
    """Submits jobs of a folder of the schedd that has the image, a proxy and programs: {name: HTCondor's number}."""
    image = busybox(tmp_path_factory.mktemp("image"), kind="docker", name="tiny:1").read_bytes()
    proxy = e2e.run("worker-1", "cat /var/lib/dodas/worker/proxy.pem")
    schedd = "podman exec -i -u dodas dodas-htcondor"
    files = {"tiny.tar": image, "proxy.pem": proxy, "job.sh": JOB, "long.sh": "#!/bin/sh\nexec sleep 4711\n"}
    e2e.run("front-1", f"{schedd} sh -c 'mkdir {FOLDER} && cd {FOLDER} && base64 -d | tar x'", packed(files))
    # as if it had been pulled
    load = f"install -d -m 700 {STORE} && base64 -d | tar xO | udocker --repo={STORE} load -i - {TAG}"
    workers = {re.search(r"worker-\d+", slot).group() for slot in e2e.slots()}
    with ThreadPoolExecutor() as pool:
        command = f"podman exec -i -u dodas dodas-worker sh -c '{load}'"
        list(pool.map(lambda host: e2e.run(host, command, packed({"tiny.tar": image})), workers))

    def submit(**described):
        names = {f"{name}.sub": text for name, text in described.items()}
        script = f"cd {FOLDER} && base64 -d | tar x; for one in {' '.join(names)}; do condor_submit -terse $one; done"
        found = e2e.run("front-1", f"{schedd} sh -c '{script}'", packed(names))
        return dict(zip(described, re.findall(r"^(\d+)\.0 - ", found, re.M), strict=True))

    yield submit
    e2e.condor(f"sh -c 'condor_rm -all; rm -rf {FOLDER}'")


def packed(files):
    """An archive in base64, since shells of hosts are given text."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600 if name.endswith(".pem") else 0o755
            archive.addfile(entry, io.BytesIO(content))
    return base64.encodebytes(target.getvalue()).decode()


def test_the_slots_say_that_they_run_images(e2e):
    said = e2e.condor("condor_status -const 'SlotType==\"Partitionable\"' -af HasContainer HasSingularity HasDockerURL "
                      "HasSandboxImage")  # fmt: skip
    assert set(said.split()) == {"true"}


def test_a_job_runs_in_its_image_however_it_names_it(e2e, jobs, eventually):
    numbers = jobs(**{name: describe(name, way) for name, way in WAYS.items()})
    queued = f"condor_q {' '.join(numbers.values())} -const 'JobStatus != 5' -af ClusterId"
    eventually(lambda: not e2e.condor(queued), 60, "they have ended")
    held = e2e.condor("condor_q -const 'JobStatus == 5' -af HoldReason")
    assert not held.strip(), held
    ended = e2e.condor(f"condor_history {' '.join(numbers.values())} -limit 4 -af ClusterId ExitCode ExitBySignal")
    assert {tuple(line.split()) for line in ended.splitlines()} == {(one, "137", "false") for one in numbers.values()}
    for name in WAYS:
        image, uid, proxy, authorities, scratch = e2e.condor(f"cat {FOLDER}/{name}.result").split("\n")[:5]
        assert (image, uid, proxy) == ("busybox", "2000", "-----BEGIN CERTIFICATE-----"), name
        assert int(authorities) > 0 and scratch.startswith("/var/lib/dodas/worker/execute/dir_")


def test_an_image_that_cannot_be_had_holds_the_job_and_is_named(e2e, jobs, eventually):
    way = "universe = docker\ndocker_image = 127.0.0.1:1/no/such:1"
    number = jobs(missing=describe("missing", way))["missing"]
    held = f"condor_q {number} -const 'JobStatus == 5' -af HoldReason"
    reason = eventually(lambda: e2e.condor(held), 30, "the job is held")
    assert "image docker://127.0.0.1:1/no/such:1: " in reason and "connect" in reason
    e2e.condor(f"condor_rm {number}")


def test_a_removed_job_leaves_no_process_and_no_container(e2e, jobs, eventually):
    number = jobs(long=describe("long", WAYS["archive"], job="long.sh"))["long"]
    [host] = eventually(lambda: e2e.running(number), 30, "the job runs")
    look = f"podman exec dodas-worker sh -c 'pgrep -xf \"sleep 4711\"; ls {STORE}/containers'"
    eventually(lambda: len(e2e.run(host, look, check=False).split()) == 2, 20, "its process runs in a container")
    e2e.condor(f"condor_rm {number}")
    eventually(lambda: not e2e.run(host, look, check=False).split(), 20, "process and container are gone")


def test_example(dodas, e2e, tmp_path):
    folder = tmp_path / "container"
    shutil.copytree(dodas.root / "examples/container", folder, ignore=shutil.ignore_patterns("results", "image.tar"))
    done = dodas("submit", str(folder), "--wait", "--name", "e2e", "--timeout", "120")
    assert "4 of 4 done" in done.stdout
    assert re.search(r"pi = 3\.1\d+ \+- 0\.00\d+, from 1200000 darts thrown in containers", done.stdout)

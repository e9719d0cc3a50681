# SPDX-License-Identifier: Apache-2.0
"""What is done to files: by others who may write beside them, by crashes, and by several who write at once."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from cryptography import x509

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, store
from identity_runtime import WORKER_SECRET
from service_runtime import ROOT, Credentials

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}


def python(script, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False, **options)


def settings(service, folder, **changes):
    """Configuration of a worker's daemon, for the client `worker` of the provider."""
    section = service.settings["issuers"][0]
    bundle = folder / "bundle.pem"
    with open(service.cafile) as ours, open(section["cafile"]) as theirs:
        bundle.write_text(ours.read() + theirs.read())
    secret = folder / "client.secret"
    secret.write_text(WORKER_SECRET)
    secret.chmod(0o600)
    config = {"issuer": section["issuer"], "client_id": "worker", "client_secret_file": str(secret),
              "audience": section["audience"], "scope": "x509", "credentials_url": service.url, "cafile": str(bundle),
              "output": str(folder / "proxy.pem"), **changes}  # fmt: skip
    path = folder / "renew.json"
    path.write_text(json.dumps(config))
    return path


def renew(path, *options, **more):
    command = [
        sys.executable,
        "-m",
        "dodas.credentials.renew",
        "--config",
        str(path),
        "--once",
        "--deadline",
        "5",
        *options,
    ]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False, **more)


def whole(data):
    """Whether it is a credential: a certificate with its own key and what signed it."""
    certificate, key, chain = files.load_credential(data)
    assert certificate.public_key().public_numbers() == key.public_key().public_numbers()
    assert chain
    return certificate


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# --- what stands at the place of the output


def at_output(kind, path, target):
    target.write_text("precious")
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target.parent / "absent")
    elif kind == "to-a-folder":
        path.symlink_to(target.parent)
    elif kind == "chain":
        (path.parent / "second").symlink_to(target)
        path.symlink_to("second")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/full")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # the path may be longer than a socket's address
            made.bind(path.name)
            os.chdir(here)


KINDS = ["symlink", "dangling", "to-a-folder", "chain", "loop", "device", "fifo", "folder", "socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_replaced(tmp_path, kind):
    path, target = tmp_path / "out" / "proxy.pem", tmp_path / "target"
    path.parent.mkdir()
    at_output(kind, path, target)
    before = os.lstat(path)
    with pytest.raises(FileExistsError):
        files.write(path, b"secret")
    assert target.read_text() == "precious" and os.lstat(path).st_ino == before.st_ino
    assert sorted(os.listdir(path.parent)) == sorted({path.name, *(["second"] if kind == "chain" else [])})


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder"])
def test_the_daemon_does_not_follow_what_stands_at_its_output(service, tmp_path, kind):
    path = settings(service, tmp_path)
    at_output(kind, tmp_path / "proxy.pem", tmp_path / "target")
    done = renew(path, "--deadline", "0")
    assert done.returncode == 1 and "not a regular file" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "target").read_text() == "precious" and not (tmp_path / "absent").exists()


def test_another_name_of_the_output_keeps_what_it_had(tmp_path):
    """A hard link that somebody made to the file does not get the next secret."""
    path, link = tmp_path / "proxy.pem", tmp_path / "link"
    files.write(path, b"old")
    os.link(path, link)
    files.write(path, b"new")
    assert (path.read_bytes(), link.read_bytes()) == (b"new", b"old")


def test_a_file_that_others_hold_open_or_may_read_is_not_written_into(tmp_path):
    path = tmp_path / "proxy.pem"
    path.write_bytes(b"x" * 100)
    path.chmod(0o666)
    with open(path, "rb") as held:
        files.write(path, b"new secret")
        assert held.read() == b"x" * 100
    assert mode(path) == 0o600


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_modes_whatever_the_umask(service, tmp_path, umask):
    path = settings(service, tmp_path, ca_output=str(tmp_path / "ca.pem"), ca_directory=str(tmp_path / "certificates"))
    done = renew(path, umask=umask) if umask < 0o200 or os.geteuid() == 0 else None
    if done is None:
        pytest.skip("directories of such a mode only root can use")
    assert done.returncode == 0, done.stderr
    assert mode(tmp_path / "proxy.pem") == 0o600 and mode(tmp_path / "ca.pem") == 0o644
    assert {mode(one) for one in (tmp_path / "certificates").iterdir()} == {0o644}
    whole((tmp_path / "proxy.pem").read_bytes())


@pytest.mark.parametrize("umask", [0o000, 0o027], ids=oct)
def test_state_is_private_whatever_the_umask(identity, tmp_path, umask):
    past = os.umask(umask)
    try:
        service = Credentials.__new__(Credentials)
        os.umask(past)
        Credentials.__init__(service, tmp_path / "service", identity)
        os.umask(umask)
        service.start()
    finally:
        os.umask(past)
    try:
        for folder, _folders, names in os.walk(service.state):
            assert mode(folder) == 0o700, folder
            for name in names:
                assert mode(os.path.join(folder, name)) & 0o077 == 0, (folder, name)
    finally:
        service.stop()


# --- crashes


CRASH = """
    import os, sys
    from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, store

    target, kind = sys.argv[1:]
    os.umask(0)
    os.makedirs(target)
    path = os.path.join(target, "value")

    def write(data):
        if kind == "file":
            files.write(path, data)
        else:
            kept = store.Sealed(store.Directory(target), [bytes(32)])
            store.update(kept, "value", lambda _old: data)

    def read():
        if kind == "file":
            return open(path, "rb").read()
        return store.Sealed(store.Directory(target), [bytes(32)]).read("value")[0]

    old, new = b"old" * 1000, b"new" * 1000
    write(old)
    OURS = ("files.py", "store.py", "contextlib.py")

    def run(limit):
        # Dies before the instruction (or line) of that number in the code that writes; returns how many there were.
        count = 0
        def trace(frame, event, _argument):
            nonlocal count
            if os.path.basename(frame.f_code.co_filename) not in OURS:
                return None
            frame.f_trace_opcodes = kind == "file"
            if event in ("opcode", "line", "return"):
                if count == limit:
                    os.kill(os.getpid(), 9)
                count += 1
            return trace
        sys.settrace(trace)
        try:
            write(new)
        finally:
            sys.settrace(None)
        return count

    total = run(-1)
    outcomes = {"old": 0, "new": 0}
    for limit in range(total):
        write(old)
        child = os.fork()
        if child == 0:
            run(limit)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (limit, status)
        found = read()
        assert found in (old, new), (limit, found[:20])
        outcomes["old" if found == old else "new"] += 1
        for name in os.listdir(target):
            mode = os.lstat(os.path.join(target, name)).st_mode & 0o777
            assert mode & 0o077 == 0, (limit, name, oct(mode))
        # What the dead one held is free again.
        write(new)
        assert read() == new, limit
    print(total, outcomes["old"], outcomes["new"])
"""


@pytest.mark.parametrize("kind", ["file", "store"])
def test_a_crash_at_any_instruction_leaves_the_old_or_the_new(tmp_path, kind):
    done = python(CRASH, tmp_path / "state", kind)
    assert done.returncode == 0, done.stderr
    total, old, new = map(int, done.stdout.split())
    assert total > 100 and old > 20 and new > 5 and old + new == total


@pytest.mark.parametrize("problem", ["disk-full", "no-permission", "file-too-large"])
def test_a_write_that_fails_leaves_the_old(tmp_path, problem):
    path = tmp_path / "proxy.pem"
    files.write(path, b"old")
    script = """
        import errno, os, resource, signal, sys
        from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
        path, problem = sys.argv[1:]
        def fail(*_):
            raise OSError({"disk-full": errno.ENOSPC, "no-permission": errno.EPERM}[problem], "as if")
        if problem == "file-too-large":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        elif problem == "disk-full":
            os.fsync = fail
        else:
            os.fchmod = fail
        try:
            files.write(path, b"n" * 1000)
        except OSError:
            sys.exit(3)
    """
    assert python(script, path, problem).returncode == 3
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["proxy.pem"]


# --- several at once


def test_concurrent_renewals_of_one_output(service, tmp_path):
    """Four daemons that think the same file is theirs: whoever reads it finds a whole credential at any time."""
    path = settings(service, tmp_path)
    output = tmp_path / "proxy.pem"
    assert renew(path).returncode == 0
    serials = {whole(output.read_bytes()).serial_number}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        script = """
            import sys
            from dodas.credentials import renew
            config = renew.Config.load(sys.argv[1])
            for _ in range(5):
                renew.renew(config)
        """
        running = [pool.submit(python, script, path) for _ in range(4)]
        while not all(one.done() for one in running):
            serials.add(whole(output.read_bytes()).serial_number)
            assert mode(output) == 0o600
            time.sleep(0.002)
    for one in running:
        assert one.result().returncode == 0, one.result().stderr
    assert len(serials) > 3
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


def test_a_daemon_that_is_killed_leaves_a_whole_file(service, tmp_path):
    path = settings(service, tmp_path)
    output = tmp_path / "proxy.pem"
    assert renew(path).returncode == 0
    script = """if True:
        import sys
        from dodas.credentials import renew
        config = renew.Config.load(sys.argv[1])
        print(1, flush=True)
        while True:
            renew.renew(config)
    """
    for pause in (0.02, 0.1, 0.2, 0.3):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE)
        process.stdout.read(2)
        time.sleep(pause)  # any moment will do
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        whole(output.read_bytes())
        assert mode(output) == 0o600


def test_two_instances_change_one_value(tmp_path):
    """Lost updates: 4 processes add to one number, each 25 times."""
    script = """
        import sys
        from ansible_collections.dodas.cluster.plugins.module_utils.x509 import store
        kept = store.Sealed(store.Directory(sys.argv[1]), [bytes(32)])
        for _ in range(25):
            store.update(kept, "number", lambda old: str(int(old or 0) + 1).encode(), tries=1000)
    """
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: python(script, tmp_path), range(4)))
    assert [one.returncode for one in done] == [0] * 4, done[0].stderr
    kept = store.Sealed(store.Directory(tmp_path), [bytes(32)])
    assert kept.read("number")[0] == b"100"


# --- a state that is not what it was


@pytest.fixture(scope="module")
def states(identity, tmp_path_factory, request_pem, forger):
    """Two deployments that have served, and stopped."""
    made = []
    for name in ("one", "two"):
        service = Credentials(tmp_path_factory.mktemp(name), identity)
        service.start()
        made.append((service, ask(service, forger, request_pem)))
        service.stop()
        shutil.copytree(service.state, service.directory / "saved")
    return made


def ask(service, forger, request_pem):
    """(status, CA's certificate, body)."""
    with service.client() as http:
        headers = {"Authorization": f"Bearer {forger.token()}"}
        answer = http.post("/v1/credentials", json={"csr": request_pem.decode()}, headers=headers)
        return answer.status_code, http.get("/v1/authority/ca.pem").text, answer.json()


def values(folder):
    """The files of a state that hold something, but for the log."""
    found = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if os.path.getsize(path) and "audit" not in path and ".lock" not in path)


def read(path):
    return Path(path).read_bytes()


def truncate(path, _other):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path, _other):
    os.truncate(path, 0)


def flip(path, _other):
    with open(path, "r+b") as stream:
        stream.seek(-20, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-20, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))


def of_another(path, other):
    shutil.copyfile(other, path)


def published(path, _other):
    os.chmod(path, 0o644)


DAMAGES = {"truncated": truncate, "empty": empty, "flipped": flip, "of-another": of_another, "readable": published}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_state_is_refused_or_does_no_harm(states, forger, request_pem, damage, number):
    """Each file of the state, damaged: the service says so and does not start, or it serves with the CA that it had."""
    (service, honest), (other, _) = states
    restore(service)
    ours, theirs = values(service.state), values(other.directory / "saved")
    if number >= len(ours):
        pytest.skip("the state has fewer files")
    path = ours[number]
    DAMAGES[damage](path, theirs[min(number, len(theirs) - 1)])
    harmless(service, honest, forger, request_pem)


def test_two_files_of_a_state_that_are_swapped(states, forger, request_pem):
    (service, honest), _ = states
    restore(service)
    first, second = values(service.state)[:2]
    one, two = read(first), read(second)
    Path(first).write_bytes(two)
    Path(second).write_bytes(one)
    harmless(service, honest, forger, request_pem)


def harmless(service, honest, forger, request_pem):
    try:
        service.start(seconds=10)
    except RuntimeError as error:
        assert service.process.poll() == 1, error
        said = service.log().splitlines()[-1]
        assert said.startswith("dodas credentials: "), said
        assert "Traceback" not in service.log()
        service.process = None
        return
    try:
        status, ca, body = ask(service, forger, request_pem)
        assert ca == honest[1]
        if status == 201:
            chain = x509.load_pem_x509_certificates(body["chain"].encode())
            chain[0].verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
        else:
            assert status == 503 and "PRIVATE" not in str(body)
    finally:
        service.stop()


def restore(service):
    shutil.rmtree(service.state)
    shutil.copytree(service.directory / "saved", service.state)
    (service.directory / "log").write_text("")


def test_the_state_of_another_deployment(states):
    (service, _), (other, _) = states
    restore(service)
    shutil.rmtree(service.state)
    shutil.copytree(other.directory / "saved", service.state)
    said = service.refuse()
    assert "Traceback" not in said and len(said.splitlines()) == 1
    restore(service)


@pytest.mark.parametrize("wrong", [bytes(32), None, b"short", b""], ids=["zeros", "other", "short", "empty"])
def test_a_wrong_state_key(states, wrong):
    (service, _), _ = states
    restore(service)
    name = "state.key"
    service.secret_file(name, os.urandom(32) if wrong is None else wrong)
    before = {path: read(path) for path in values(service.state)}
    try:
        said = service.refuse()
    finally:
        service.secret_file(name, service.state_key)
    assert "Traceback" not in said and len(said.splitlines()) == 1
    assert {path: read(path) for path in values(service.state)} == before


@pytest.mark.parametrize("name", ["state.key", "join.key"])
def test_keys_that_others_can_read_are_refused(states, name):
    (service, _), _ = states
    restore(service)
    path = service.config / name
    path.chmod(0o644)
    try:
        said = service.refuse()
    finally:
        path.chmod(0o600)
    assert "0600" in said and "Traceback" not in said


def test_nothing_secret_of_the_state_can_be_read_without_the_key(states):
    """At rest: no PEM, no JSON, nothing of a key."""
    for service, _ in states:
        for path in values(service.directory / "saved"):
            data = read(path)
            assert b"PRIVATE" not in data, path
            assert data.startswith((store.MAGIC, b"-----BEGIN CERTIFICATE-----", b"-----BEGIN X509 CRL-----")), path

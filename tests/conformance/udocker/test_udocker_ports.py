# SPDX-License-Identifier: Apache-2.0
"""Published ports (issue 450): from the host into a container's own network namespace, and a way out of it."""

import contextlib
import hashlib
import os
import socket
import stat
import threading
import urllib.request

import pytest

from ports import free_port
from udocker_program import Program, until

TUNNEL = "/dev/net/tun"
# busybox has no server for UDP: Python of the host, whose folders are shown to the container.
HOST = [word for path in ("/usr", "/lib", "/lib64") if os.path.exists(path) for word in ("-v", f"{path}:{path}:ro")]
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 53))
while True:
    data, address = s.recvfrom(65535)
    s.sendto(data[::-1], address)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["subids", "one-id"])
def udocker(request):
    with Program(subids=request.param, name="net") as made:
        yield made


@pytest.fixture(autouse=True)
def _clear(udocker):
    yield
    udocker.clear()


def get(port, path="/"):
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def web(udocker, name, port, *more):
    """A web server in a container that shows its /www, of which index.html has the container's name."""
    script = f"mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 80 -h /www"
    publish = f"127.0.0.1:{port}:80"
    return udocker("run", "-d", f"--name={name}", "--network=none", "-p", publish, *more, "busybox", "sh", "-c", script)


def test_issue_450_the_same_port_in_two_containers(udocker):
    ports = [free_port(), free_port()]
    for name, port in zip(("one", "two"), ports, strict=True):
        assert web(udocker, name, port).returncode == 0
        until(lambda port=port, name=name: get(port) == f"{name}\n".encode(), "it answers")
    assert f"80/tcp -> 127.0.0.1:{ports[0]}" in udocker.out("port", "one")
    assert f"127.0.0.1:{ports[1]}->80/tcp" in udocker.docker("ps").stdout
    udocker.out("stop", "-t", "1", "one")
    assert get(ports[0]) is None
    assert get(ports[1]) == b"two\n"
    udocker.out("start", "one")
    until(lambda: get(ports[0]) == b"one\n", "it answers again")


def test_large_answers_and_many_at_once_are_whole(udocker):
    port = free_port()
    folder = udocker.folder("www")
    data = os.urandom(5_000_000)
    (folder / "big").write_bytes(data)
    (folder / "big").chmod(0o644)
    assert web(udocker, "big", port, "-v", f"{folder}/big:/www/big").returncode == 0
    until(lambda: get(port), "it answers")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(hashlib.sha256(get(port, "/big") or b"").digest()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [hashlib.sha256(data).digest()] * 8


def test_a_half_closed_connection_stays_open_the_other_way(udocker):
    port = free_port()
    udocker.out(
        "run",
        "-d",
        "--name=half",
        "--network=none",
        "-p",
        f"127.0.0.1:{port}:7",
        "busybox",
        "nc",
        "-ll",
        "-p",
        "7",
        "-e",
        "sh",
        "-c",
        "cat; echo end",
    )

    def exchange():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(b"question " * 10_000)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer

    assert until(exchange, "it answers") == b"question " * 10_000 + b"end\n"


def test_udp(udocker):
    port = free_port()
    udocker.out(
        "run", "-d", "--name=dns", "--network=none", "-p", f"127.0.0.1:{port}:53/udp", *HOST, "busybox",
        "/usr/bin/python3", "-c", ECHO,
    )  # fmt: skip

    def ask(text):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(0.2)
            one.sendto(text, ("127.0.0.1", port))
            with contextlib.suppress(OSError):
                return one.recv(65535)

    until(lambda: ask(b"ready"), "it answers")
    assert ask(b"abc") == b"cba"
    assert ask(b"x" * 1400 + b"y") == b"y" + b"x" * 1400


def test_a_port_that_is_taken_is_named_before_anything_starts(udocker):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = udocker("run", "-d", "--rm", "--network=none", "-p", f"127.0.0.1:{port}:80", "busybox", "sleep", "1000")
    assert done.returncode == 125
    assert f"127.0.0.1:{port}/tcp" in done.stderr
    assert "in use" in done.stderr
    assert not udocker.containers()


def test_p_publishes_what_the_image_exposes_on_loopback_alone(udocker):
    udocker.out("create", "--name=base", "busybox")
    udocker.out("commit", "-c", "EXPOSE 80 53/udp", "base", "exposing:1")
    script = "mkdir /www; echo exposed > /www/index.html; exec httpd -f -p 80 -h /www"
    udocker.out("run", "-d", "-P", "--name=all", "--network=none", "exposing:1", "sh", "-c", script)
    shown = dict(line.split(" -> ") for line in udocker.out("port", "all").splitlines())
    assert set(shown) == {"80/tcp", "53/udp"}
    address, _colon, port = shown["80/tcp"].rpartition(":")
    assert address == "127.0.0.1"
    until(lambda: get(int(port)) == b"exposed\n", "it answers")
    udocker.out("rm", "-f", "all", "base")
    udocker.out("rmi", "exposing:1")


def test_with_the_host_s_network_the_same_port_is_there_already(udocker):
    port = free_port()
    done = udocker("run", "--rm", "-p", f"{port}:{port}", "busybox", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    inside = free_port()
    script = f"mkdir /www; echo moved > /www/index.html; exec httpd -f -p 127.0.0.1:{inside} -h /www"
    udocker.out("run", "-d", "--name=moved", "-p", f"127.0.0.1:{port}:{inside}", "busybox", "sh", "-c", script)
    until(lambda: get(port) == b"moved\n", "it answers at the other port")


def test_in_the_foreground(udocker):
    port = free_port()
    process = udocker.start(
        "run", "--rm", "--network=none", "-p", f"127.0.0.1:{port}:80", "busybox", "httpd", "-f", "-h", "/etc"
    )
    until(lambda: get(port, "/group"), "it answers")
    process.terminate()
    assert process.wait(60) == 143
    until(lambda: not udocker.containers(), "it goes")


def test_none_is_loopback_alone(udocker):
    done = udocker("run", "--rm", "--network=none", "busybox", "sh", "-c", "ip -o addr | awk '{print $2}' | sort -u")
    assert done.stdout == "lo\n"


def test_private_has_a_way_out_where_a_helper_can_make_one(udocker):
    mode = stat.S_IMODE(os.stat(TUNNEL).st_mode) if os.path.exists(TUNNEL) else None
    if mode is None:
        pytest.skip("this kernel has no tun")
    script = "ip route | grep -c default; cat /etc/resolv.conf"
    try:
        os.chmod(TUNNEL, 0o666)  # as most distributions have it
        done = udocker("run", "--rm", "--network=private", "busybox", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        count, name, server = done.stdout.split()[:3]
        assert (count, name) == ("1", "nameserver")
        assert server in ("10.0.2.3", "169.254.1.1")
        os.chmod(TUNNEL, 0o600)
        done = udocker("--debug", "run", "--rm", "--network=private", "busybox", "sh", "-c", script)
        assert done.stdout.split()[0] == "0"
        assert TUNNEL in done.stderr
    finally:
        os.chmod(TUNNEL, mode)

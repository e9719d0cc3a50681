# SPDX-License-Identifier: Apache-2.0
import importlib.util
import re
import subprocess
import sys

import pytest

import role_values
from ansible_runtime import Ansible
from balancer_runtime import DAEMON, GOOD, Balancer, Haproxy, Server
from consul_runtime import Consul


@pytest.fixture(scope="session")
def daemon():
    """The daemon as a module."""
    spec = importlib.util.spec_from_file_location("dodas_balancer", DAEMON)
    module = importlib.util.module_from_spec(spec)
    sys.modules["dodas_balancer"] = module  # dataclasses look there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


@pytest.fixture(scope="module")
def shared_consul(tmp_path_factory):
    with Consul(tmp_path_factory.mktemp("consul")) as consul:
        yield consul


@pytest.fixture
def consul(shared_consul):
    """A real Consul with access control; what a test registers in it goes with the test."""
    yield shared_consul
    shared_consul.start()
    for node in shared_consul.call("GET", "/v1/catalog/nodes"):
        if node["Node"].endswith("-apps"):
            shared_consul.call("PUT", "/v1/catalog/deregister", {"Node": node["Node"]})


@pytest.fixture
def haproxy(tmp_path):
    found = Haproxy(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def make_balancer(haproxy, consul):
    """Starts HAProxy and the daemon that leads it."""
    made = []

    def make(**options):
        if haproxy.process is None:
            haproxy.start()
        made.append(Balancer(haproxy, consul.port, consul.token_file("balancer"), **options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def make_server():
    made = []

    def make(name, **options):
        made.append(Server(name, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def files(tmp_path):
    """The files that the role writes, by the last part of their name."""

    def files(**variables):
        (tmp_path / "role").mkdir()
        names = [f"_load_balancer_{name}files" for name in ("", "unit_", "daemon_", "keepalived_")]
        shown = {"load_balancer_address_shown": {"stdout": "2: lo    inet 192.0.2.1/24 scope global lo"}}
        ansible = Ansible(tmp_path / "role")
        (found,) = role_values.evaluate(ansible, "load_balancer", [{**GOOD, **shown, **variables}], *names)
        files = [one for name in names for one in found[name]]
        return {one["path"].rpartition("load_balancer/")[2].rpartition("system/")[2]: one for one in files}

    return files


@pytest.fixture
def certificate(tmp_path):
    """A certificate for marathon.service.consul, and its key, in one file; it is its own authority."""
    path = tmp_path / "tls.pem"
    names = "subjectAltName=DNS:marathon.service.consul,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-days", "1", "-subj", "/CN=marathon", "-addext", names,
               "-keyout", tmp_path / "key.pem", "-out", tmp_path / "crt.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    path.write_text((tmp_path / "crt.pem").read_text() + (tmp_path / "key.pem").read_text())
    return path


@pytest.fixture
def base(tmp_path, certificate, files):
    """The base of HAProxy's configuration as the role writes it, for a process on loopback that is of no user."""

    def base(**variables):
        text = files(**variables)["haproxy.cfg"]["content"]
        text = re.sub(r"^    (user|group|chroot) .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("/run/dodas-haproxy", str(tmp_path)).replace("bind *:", "bind 127.0.0.1:")
        for name in ("/etc/dodas/load_balancer/tls.pem", "/etc/dodas/tls/ca.pem"):
            text = text.replace(name, str(certificate))
        return text

    return base


@pytest.fixture
def start(tmp_path):
    """Starts HAProxy with a base."""
    made = []

    def start(text):
        (tmp_path / "haproxy").mkdir()
        made.append(Haproxy(tmp_path / "haproxy", text))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()

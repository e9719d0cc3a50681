# SPDX-License-Identifier: Apache-2.0
"""What role load_balancer writes: HAProxy and keepalived take it, and what is wrong is refused by its variable."""

import base64
import json
import re
import ssl
import subprocess

import pytest

import role_runtime
import role_values
from agent_runtime import Server as AnyServer
from agent_runtime import eventually
from ansible_runtime import Ansible
from balancer_runtime import GOOD, ask
from ports import free_port

BAD = {
    "load_balancer_hosts": [[], ["front-2"], ["localhost", "front-2", "front-3"]],
    "load_balancer_addresses": [{"localhost": "192.0.2.1"}],
    "load_balancer_password": ["", "changeme", "ChangeMeChangeMe", "short-one", "with a space in it", "semi;colon;"],
    "load_balancer_user": ["", "a:b", "a b"],
    "load_balancer_tls_certificate": ["", "not one"],
    "load_balancer_tls_key": ["", "not one"],
    "load_balancer_virtual_address": ["", "192.0.2.2", "192.0.2.256", "192.0.2", "192.0.2.9/24", "2001:db8::1", "name"],
    "load_balancer_virtual_router": [0, 256],
    "load_balancer_health_port": [9090],
    "load_balancer_marathon_hosts": [["localhost"]],
    "load_balancer_mesos_hosts": [["localhost"]],
    "load_balancer_mesos_user": ["somebody"],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What preflight says of the good variables, and of each bad one among them."""
    cases = [GOOD, *({**GOOD, name: value} for name, value in CASES)]
    ansible = Ansible(tmp_path_factory.mktemp("role"))
    found = role_values.evaluate(ansible, "load_balancer", cases, "_load_balancer_wrong")
    return [one["_load_balancer_wrong"] or "" for one in found]


def test_what_is_right_is_not_refused(complaints):
    assert complaints[0] == ""


@pytest.mark.parametrize("i", range(len(CASES)), ids=[f"{name}={value}" for name, value in CASES])
def test_what_is_wrong_is_refused_by_its_variable(complaints, i):
    name, value = CASES[i]
    assert name in complaints[i + 1]
    if "password" in name and value:
        assert value not in complaints[i + 1]


def test_who_may_read_what(files):
    found = files()
    secret = {name for name, one in found.items() if one.get("mode") == "0600"}
    assert secret == {"haproxy.cfg", "tls.pem", "consul.token", "keepalived.conf"}
    told = [name for name in found if GOOD["load_balancer_password"] in found[name]["content"]]
    assert told == ["haproxy.cfg"]


def test_the_daemon_takes_its_settings(files, daemon):
    found = files(load_balancer_consul_token="secret-token", load_balancer_address="192.0.2.100")
    settings = daemon.Settings(**json.loads(found["balancer.json"]["content"]))
    assert (settings.address, settings.transparent) == ("192.0.2.100", True)
    assert settings.reserved == {"9090": "statistics", "9091": "health"}
    assert settings.token_file.endswith("/consul.token")
    assert "secret-token" not in found["balancer.json"]["content"]


def test_statistics_are_behind_a_password_and_tls_and_health_is_not(start, base, certificate):
    health, port = free_port(), free_port()
    haproxy = start(base(load_balancer_health_port=health, load_balancer_port=port))
    eventually(lambda: ask(health, "/health"))
    assert ask(health) == "HTTP 401"
    curl = ["curl", "--silent", "--noproxy", "*", "--cacert", certificate, "--resolve",
            f"marathon.service.consul:{port}:127.0.0.1", f"https://marathon.service.consul:{port}/"]  # fmt: skip

    def page(user=""):
        command = [*curl, "--config", "-"]
        return subprocess.run(command, input=user, capture_output=True, text=True, timeout=20, check=True).stdout

    assert "Statistics Report" in page(f'user = "dodas:{GOOD["load_balancer_password"]}"')
    assert "Statistics Report" not in page()
    assert ask(port) in (None, "HTTP 400")
    assert "WARNING" not in haproxy.log.read_text()


def test_only_a_leading_master_with_a_quorum_is_published(start, base):
    health, statistics, port = free_port(), free_port(), free_port()
    variables = {"load_balancer_mesos_hosts": ["master-1", "master-2"], "load_balancer_mesos_user": "ann",
                 "load_balancer_mesos_password": "sec ret:#'\"", "load_balancer_mesos_port": port,
                 "load_balancer_address": "127.0.0.1"}  # fmt: skip
    text = base(load_balancer_health_port=health, load_balancer_port=statistics, **variables)
    one, two = AnyServer(), AnyServer()
    asked = []
    for i, server in enumerate((one, two), 1):
        text = text.replace(f"server master-{i} 127.0.0.1:{port}", f"server master-{i} 127.0.0.1:{server.port}")
        handler = server.http.RequestHandlerClass

        def post(self, server=server):
            asked.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(b"{}")

        handler.do_POST = post
    one.status, one.body = 307, b"one"
    two.status, two.body = 200, b"two"
    try:
        start(text)
        eventually(lambda: ask(port) == "two")
        headers, body = asked[0]
        assert json.loads(body) == {"type": "GET_AGENTS"}
        assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode() == "ann:sec ret:#'\""
        assert (headers["Content-Type"], headers["Accept"]) == ("application/json", "application/json")
        one.status, two.status = 200, 503
        eventually(lambda: ask(port) == "one")
        one.status = 503
        eventually(lambda: ask(port) == "HTTP 503")
    finally:
        one.close()
        two.close()


def test_marathon_is_published_as_it_is_with_its_own_tls(start, base, certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    good, bad = AnyServer(tls), AnyServer()
    health, statistics, port = free_port(), free_port(), free_port()
    text = base(load_balancer_health_port=health, load_balancer_port=statistics, load_balancer_address="127.0.0.1",
                load_balancer_marathon_hosts=["master-1", "master-2"], load_balancer_marathon_port=port)  # fmt: skip
    for i, server in enumerate((bad, good), 1):
        text = text.replace(f"server master-{i} 127.0.0.1:{port}", f"server master-{i} 127.0.0.1:{server.port}")
    good.body = b"marathon"
    curl = ["curl", "--silent", "--noproxy", "*", "--cacert", certificate, "--resolve",
            f"marathon.service.consul:{port}:127.0.0.1", f"https://marathon.service.consul:{port}/v2/info"]  # fmt: skip

    def answers():
        return subprocess.run(curl, capture_output=True, text=True, timeout=20, check=False).stdout

    try:
        start(text)
        eventually(lambda: "/ping" in good.asked)
        # The other does not speak TLS, so it is found not to be Marathon.
        eventually(lambda: [answers() for _ in range(4)] == ["marathon"] * 4, 20)
        good.status = 401
        asked = len(good.asked)
        eventually(lambda: len(good.asked) > asked + 5)
        good.status = 200
        assert answers() == "marathon"
    finally:
        good.close()
        bad.close()


def test_keepalived_takes_its_configuration(files, tmp_path):
    conf = files(load_balancer_virtual_router=77)["keepalived.conf"]["content"]
    path = tmp_path / "keepalived.conf"
    path.write_text(conf.replace("user dodas-balancer", "user root"))
    path.chmod(0o600)
    command = ["keepalived", "--config-test", "--log-console", "--dont-fork", "--use-file", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    assert "Unknown keyword" not in said, said
    assert "virtual_router_id 77" in conf
    assert re.search(r"unicast_peer \{\s*192\.0\.2\.2\s*\}", conf)


def test_the_role_refuses_before_anything_changes(tmp_path):
    cases = {"localhost": {**GOOD, "load_balancer_password": "changeme"}}
    said = role_runtime.refusals(tmp_path, "load_balancer", cases)["localhost"]
    assert said.startswith("localhost: load_balancer_password: must be no default one")

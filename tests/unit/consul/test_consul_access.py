# SPDX-License-Identifier: Apache-2.0
"""What each token of role consul may do, and who gives them out: before a real Consul."""

import os
import secrets
import socket
import struct
import subprocess
import time
import uuid

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.consul import Access, ConsulError, Grant
from ansible_collections.dodas.cluster.plugins.module_utils.consul import Consul as Client
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import store
from ansible_runtime import Ansible
from consul_runtime import Consul, program

SERVICE = {"Name": "web", "Port": 80, "Check": {"CheckID": "app:web", "TTL": "30s", "Status": "critical"}}
READ = 'service_prefix "" { policy = "read" }\n'


@pytest.fixture(scope="module")
def consul(tmp_path_factory):
    with Consul(tmp_path_factory.mktemp("consul")) as running:
        yield running


def refused(consul, *arguments, **options):
    with pytest.raises(ConsulError) as caught:
        consul.call(*arguments, **options)
    return caught.value.status == 403


def a_record(port, name):
    """The answer's code and the number of addresses for an A record."""
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.sendto(question, ("127.0.0.1", port))
        _number, flags, _questions, answers, *_ = struct.unpack(">6H", asking.recv(1500)[:12])
    return flags & 0xF, answers


def test_who_has_no_token_reads_the_catalogue_and_nothing_else(consul):
    assert consul.call("GET", "/v1/catalog/nodes", token=None)[0]["Node"] == "server-1"
    assert a_record(consul.dns_port, "server-1.node.consul") == (0, 1)
    assert refused(consul, "PUT", "/v1/agent/service/register", SERVICE, token=None)
    assert refused(consul, "PUT", "/v1/kv/dodas/x", token=None)
    assert refused(consul, "GET", "/v1/kv/dodas/credentials/x", token=None)
    assert refused(consul, "PUT", "/v1/agent/leave", token=None)
    assert refused(consul, "PUT", "/v1/session/create", {}, token=None)
    assert refused(consul, "GET", "/v1/acl/tokens", token=None)


def test_the_app_agent_registers_apps(consul):
    consul.call("PUT", "/v1/agent/service/register?replace-existing-checks=true", SERVICE, token="app_agent")
    consul.call("PUT", "/v1/agent/check/update/app:web", {"Status": "passing"}, token="app_agent")
    assert consul.call("GET", "/v1/agent/checks", token="app_agent")["app:web"]["Status"] == "passing"
    assert a_record(consul.dns_port, "web.service.consul") == (0, 1)
    consul.call("PUT", "/v1/agent/service/deregister/web", token="app_agent")
    assert a_record(consul.dns_port, "web.service.consul")[1] == 0
    assert refused(consul, "PUT", "/v1/kv/dodas/x", token="app_agent")
    assert refused(consul, "PUT", "/v1/catalog/register", {"Node": "other", "Address": "10.0.0.1"}, token="app_agent")


def test_the_credentials_service_keeps_its_state(consul):
    state = store.Sealed(
        store.Consul(consul.url, "dodas/credentials", consul.tokens["credentials"]), [secrets.token_bytes(32)]
    )
    state.write("robots/a", b"one", None)
    assert state.read("robots/a")[0] == b"one"
    assert state.names("robots") == ["robots/a"]
    state.remove("robots/a")
    assert state.read("robots/a") == (None, None)
    with pytest.raises(store.StoreError, match="403"):
        store.Consul(consul.url, "dodas/other", consul.tokens["credentials"]).write("a", b"", None)
    with pytest.raises(store.StoreError, match="403"):
        store.Consul(consul.url, "dodas/credentials").read("robots/a")


def test_the_registrator_leads_and_writes_external_nodes(consul):
    session = consul.call("PUT", "/v1/session/create", {"TTL": "10s"}, token="registrator")["ID"]
    assert consul.call("PUT", f"/v1/kv/dodas/registrator/leader?acquire={session}", token="registrator") is True
    task = {"Node": "worker-1-apps", "Address": "10.0.0.9",
            "Service": {"ID": "web.1", "Service": "task", "Port": 31000},
            "Check": {"CheckID": "health:web.1", "ServiceID": "web.1", "Status": "passing"}}  # fmt: skip
    consul.call("PUT", "/v1/catalog/register", task, token="registrator")
    found = consul.call("GET", "/v1/health/service/task?passing", token="balancer")
    assert [(one["Node"]["Node"], one["Service"]["Port"]) for one in found] == [("worker-1-apps", 31000)]
    consul.call("PUT", "/v1/catalog/deregister", {"Node": "worker-1-apps"}, token="registrator")
    assert refused(consul, "PUT", "/v1/kv/dodas/credentials/x", token="registrator")
    assert refused(consul, "PUT", "/v1/catalog/register", task, token="balancer")


def test_root_of_a_host_has_the_command_line(consul):
    def run(*words, **environment):
        command = [program(), *words, f"-http-addr={consul.url}"]
        environment = {**os.environ, **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    with_token = {"CONSUL_HTTP_TOKEN_FILE": str(consul.token_file("agent"))}
    assert " alive " in run("members").stdout
    assert "Permission denied" in run("reload").stderr
    assert run("reload", **with_token).returncode == 0


def test_a_second_run_finds_nothing_to_do_and_what_others_made_stays(consul):
    consul.call("PUT", "/v1/acl/policy", {"Name": "theirs", "Rules": READ})
    consul.call("PUT", "/v1/acl/token", {"Description": "theirs", "Policies": [{"Name": "theirs"}]})
    assert consul.access().steps() == []
    access = Access(Client(consul.url, consul.tokens["management"]), [Grant("balancer", READ, str(uuid.uuid4()))])
    steps = access.steps()
    assert [one[0] for one in steps] == [
        "change policy dodas-balancer", "create the token of balancer", "remove an old token (dodas: balancer)"
    ]  # fmt: skip
    access.apply(steps)
    assert access.steps() == []
    assert refused(consul, "GET", "/v1/acl/token/self", token="balancer")
    consul.access().apply(consul.access().steps())  # as it was
    assert consul.call("GET", "/v1/acl/token/self", token="balancer")["Description"] == "dodas: balancer"
    assert "theirs" in [one["Description"] for one in consul.call("GET", "/v1/acl/tokens")]
    assert "theirs" in [one["Name"] for one in consul.call("GET", "/v1/acl/policies")]


def test_a_new_management_token_takes_the_place_of_the_old_one(tmp_path):
    with Consul(tmp_path) as consul:
        old, consul.tokens["management"] = consul.tokens["management"], str(uuid.uuid4())
        consul.agents[0].stop()
        consul.agents[0].configure(consul.agents, consul.tokens)
        consul.start()
        with pytest.raises(ConsulError):
            Client(consul.url, old).call("GET", "/v1/acl/tokens")
        assert consul.access().steps() == []


def test_the_module_shows_rules_and_no_token(consul, tmp_path):
    token = str(uuid.uuid4())
    parameters = {"url": consul.url, "token": consul.tokens["management"],
                  "grants": [{"name": "reader", "rules": READ, "token": token}]}  # fmt: skip
    look = ("dodas.cluster.consul_acl_info", {"url": consul.url, "token": consul.tokens["management"]})
    options = ["--check", "--diff", "-vvv"]
    would = Ansible(tmp_path).play(("dodas.cluster.consul_acl", parameters), look, options=options)
    assert would.results[0]["steps"] == ["create policy dodas-reader", "create the token of reader"]
    assert "dodas-reader" not in would.results[1]["policies"]
    done = Ansible(tmp_path).play(*[("dodas.cluster.consul_acl", parameters)] * 2, look, options=["--diff"])
    assert [one["changed"] for one in done.results] == [True, False, False]
    assert done.results[2]["policies"]["dodas-reader"] == READ
    assert {"description": "dodas: reader", "policies": ["dodas-reader"]} in done.results[2]["tokens"]
    for run in (would, done):
        assert READ.strip() in run.output
        assert token not in run.output and consul.tokens["management"] not in run.output


WRONG = {
    "'Reader' is no name of a grant": [("Reader", READ, str(uuid.uuid4()))],
    "reader: its token is no UUID": [("reader", READ, "changeme-0123")],
    "reader: is there twice": [("reader", READ, str(uuid.uuid4())), ("reader", READ, str(uuid.uuid4()))],
    "writer: its token is another's as well": [(one, READ, str(uuid.UUID(int=7))) for one in ("reader", "writer")],
    "create policy dodas-nonsense: ": [("nonsense", "nonsense {", str(uuid.uuid4()))],
}


def test_wrong_grants_are_named(consul, tmp_path):
    management = consul.tokens["management"]
    tasks = [
        ("dodas.cluster.consul_acl", {
            "url": consul.url, "token": management,
            "grants": [{"name": name, "rules": rules, "token": token} for name, rules, token in grants],
        })
        for grants in WRONG.values()
    ]  # fmt: skip
    done = Ansible(tmp_path).play(*tasks)
    for message, result in zip(WRONG, done.results, strict=True):
        assert result["failed"] and message in result["msg"]
    assert "changeme-0123" not in done.output


def test_who_is_waited_for_is_said(tmp_path):
    consul = Consul(tmp_path, servers=3)
    try:
        consul.agents[0].start()
        with pytest.raises(ConsulError) as caught:
            consul.access().wait(4)
    finally:
        consul.kill()
    message = str(caught.value)
    assert message.startswith("the management token is not taken after 4 s: ")
    assert "servers that have joined: none" in message
    assert not any(token in message for token in consul.tokens.values())


def test_a_server_says_who_it_is_before_the_tokens_are_given_out(tmp_path):
    consul = Consul(tmp_path)
    try:
        consul.agents[0].start()
        consul.access().wait(20)
        deadline = time.monotonic() + 12  # Consul tries again after 15 s at the earliest
        while not consul.call("GET", "/v1/catalog/nodes")[0]["TaggedAddresses"]:
            assert time.monotonic() < deadline, consul.log()
            time.sleep(0.2)
    finally:
        consul.kill()


def test_a_lost_server_takes_no_token_along(tmp_path):
    with Consul(tmp_path, servers=3) as consul:
        leader = consul.call("GET", "/v1/status/leader", token=None)
        lost = next(one for one in consul.agents if leader == f"127.0.0.1:{one.rpc_port}")
        left = next(one for one in consul.agents if one is not lost)
        lost.kill()
        consul.wait(left)
        assert consul.call("GET", "/v1/acl/token/self", token="credentials", agent=left)["Policies"]
        assert refused(consul, "PUT", "/v1/kv/dodas/x", token=None, agent=left)
        lost.start()
        consul.wait(lost)

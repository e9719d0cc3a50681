# SPDX-License-Identifier: Apache-2.0
"""The app agent: what it sees, what it restarts, and what Consul knows of it."""

import json
import socket
import ssl
import time
import types

import pytest

from agent_runtime import Server, eventually
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files
from ports import free_port


def http(**more):
    return {"protocol": "HTTP", **more}


def test_http_checks(agent, server):
    agent.app("web", http(path="/health"), port=server.port)
    agent.wait("web", "passing", "healthy")
    assert set(server.asked) == {"/health"}
    server.status, server.body = 503, b"no database\n"
    agent.wait("web", "critical", "HTTP 503: no database")
    server.status = 302
    agent.wait("web", "passing")
    server.close()
    agent.wait("web", "critical", f"HTTP port {server.port}: [Errno 111]")


def test_a_slow_answer_is_none(agent, server):
    server.delay = 5
    agent.app("web", http(timeout=0.2), port=server.port)
    agent.wait("web", "critical", "timed out")


@pytest.mark.parametrize(
    ("names", "state", "output"),
    [(["web.service.consul"], "passing", ""), (["other.service.consul"], "critical", "HTTPS port")],
)
def test_https_checks_prove_the_certificate(agent, tmp_path, names, state, output):
    ca = authority.Authority.open(tmp_path / "ca", "/DC=dodas/CN=test")
    key = csr.make_key()
    certificate = ca.issue_host(key.public_key(), names[0], names)
    (tmp_path / "host.pem").write_bytes(files.credential_pem(certificate, key))
    agent.ca_file.write_bytes(ca.ca_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "host.pem")
    server = Server(context)
    agent.app("web", {"protocol": "HTTPS"}, port=server.port)
    agent.wait("web", state, output)
    server.close()


def test_tcp_checks(agent):
    port = free_port()
    agent.app("squid", {"protocol": "TCP"}, port=port)
    agent.wait("squid", "critical", f"TCP port {port}: [Errno 111] Connection refused")
    with socket.create_server(("127.0.0.1", port)):
        agent.wait("squid", "passing")


@pytest.mark.parametrize(
    ("command", "state", "output"),
    [
        ("true", "passing", "healthy"),
        ("echo one; echo 'the last line' >&2; exit 3", "critical", "the last line"),
        ("exit 3", "critical", "exit status 3"),
        ("sleep 20", "critical", "no answer in 0.3 s"),
        ("sleep 20 & wait", "critical", "no answer in 0.3 s"),
        ("printf '\\377'; exit 1", "critical", "\ufffd"),
    ],
)
def test_command_checks(agent, command, state, output):
    agent.app("worker", {"protocol": "COMMAND", "command": command, "timeout": 0.3 if "sleep" in command else 5})
    agent.wait("worker", state, output)


def test_all_checks_must_hold_and_every_reason_is_said(agent, server):
    agent.app("web", http(), {"protocol": "COMMAND", "command": "echo a; false"},
              {"protocol": "COMMAND", "command": "echo b; false"}, port=server.port)  # fmt: skip
    agent.wait("web", "critical", "a; b")


def test_an_app_without_checks_is_healthy_while_it_runs(agent):
    agent.app("plain", active=False)
    agent.wait("plain", "critical", "not running")
    agent.unit("plain")
    agent.wait("plain", "passing")


def test_since_is_when_the_state_began_and_checked_goes_on(agent, server):
    agent.app("web", http(), port=server.port)
    first = agent.wait("web", "passing")
    later = eventually(lambda: (s := agent.state("web"))["checked"] > first["checked"] and s)
    assert later["since"] == first["since"]


def test_restart_after_as_many_failures_as_allowed(agent, server):
    agent.app("web", http(failures=5, interval=0.2), port=server.port)
    agent.wait("web", "passing")
    began = time.monotonic()
    server.status = 500
    eventually(lambda: agent.restarts == ["dodas-web.service"])
    # five failures lie four intervals apart
    assert 0.7 < time.monotonic() - began < 2


def test_a_short_failure_restarts_nothing_and_is_forgotten(agent, server):
    agent.app("web", http(failures=4, interval=0.3), port=server.port)
    for _ in range(4):
        server.status = 200
        agent.wait("web", "passing")
        server.status = 500
        agent.wait("web", "critical")
        time.sleep(0.2)
    assert agent.restarts == []


def test_failures_in_the_grace_period_do_not_count(agent, server):
    server.status = 500
    agent.app("web", http(failures=3, interval=0.2, grace=1), port=server.port, age=0)
    began = time.monotonic()
    eventually(lambda: agent.restarts)
    assert 1.2 < time.monotonic() - began < 2.5, "grace period, then three failures that lie two intervals apart"
    # the restarted app has a grace period of its own
    assert len(agent.restarts) == 1
    eventually(lambda: len(agent.restarts) == 2)
    assert time.monotonic() - began > 2.4


def test_the_grace_period_ends_when_the_app_is_healthy(agent, server):
    agent.app("web", http(failures=2, interval=0.1, grace=600), port=server.port, age=1)
    agent.wait("web", "passing")
    server.status = 500
    eventually(lambda: agent.restarts)


def test_only_checks_that_may_restart_do(agent, server):
    agent.app("web", http(failures=2), {"protocol": "COMMAND", "command": "false", "failures": 0}, port=server.port)
    agent.wait("web", "critical")
    time.sleep(0.6)
    assert agent.restarts == []


def test_what_does_not_run_is_left_to_systemd(agent, server):
    server.status = 500
    agent.app("web", http(failures=1), port=server.port, active=False)
    agent.wait("web", "critical", "not running")
    time.sleep(0.4)
    assert agent.restarts == []


def test_an_app_stays_watched_when_systemctl_does_not_work(agent, server):
    agent.app("web", http(), port=server.port)
    agent.wait("web", "passing")
    unit = agent.bin / "dodas-web.service"
    unit.write_text("ActiveState=active\nActiveEnterTimestampMonotonic=nonsense\n")
    eventually(lambda: "ValueError" in agent.log.read_text())
    agent.unit("web", active=False)
    agent.wait("web", "critical", "not running")


def test_state_files_are_whole_at_any_time(agent, server):
    agent.app("web", http(interval=0.01), port=server.port)
    agent.wait("web", "passing")
    path = agent.states / "web.json"
    ended = time.monotonic() + 1
    seen = set()
    while time.monotonic() < ended:
        seen.add(json.loads(path.read_text())["checked"])
    assert len(seen) > 5


def test_a_damaged_record_disturbs_no_other_app(agent, server):
    (agent.records / "bad.json").write_text("{")
    (agent.records / "poor.json").write_text("{}")
    agent.app("web", http(), port=server.port)
    agent.wait("web", "passing")
    assert agent.process.poll() is None
    assert "bad: its record cannot be used" in agent.log.read_text()
    assert "poor: its record cannot be used" in agent.log.read_text()


def test_a_changed_record_is_taken_over(agent, server):
    agent.app("web", http(path="/old"), port=server.port)
    agent.wait("web", "passing")
    agent.app("web", http(path="/new"), port=server.port)
    eventually(lambda: server.asked[-1] == "/new")
    time.sleep(0.3)
    assert server.asked[-1] == "/new"


def test_consul_knows_what_the_agent_sees(make_agent, any_consul, server):
    agent = make_agent(any_consul)
    agent.app("web", http(), port=server.port)
    eventually(lambda: any_consul.checks.get("app:web", {}).get("Status") == "passing")
    service = any_consul.names["web"]
    assert (service["Name"], service["Port"], service["Meta"]) == ("web", server.port, {"a": "b"})
    server.status, server.body = 503, b"sorry"
    eventually(lambda: (c := any_consul.checks["app:web"])["Status"] == "critical" and "sorry" in c["Output"])
    server.status = 200

    any_consul.stop()
    any_consul.start()
    eventually(lambda: any_consul.checks.get("app:web", {}).get("Status") == "passing")

    (agent.records / "web.json").unlink()
    eventually(lambda: any_consul.names == {})
    assert any_consul.checks == {}
    assert not (agent.states / "web.json").exists()


def test_an_app_that_goes_while_consul_or_the_agent_is_down_is_deregistered_later(make_agent, any_consul, server):
    agent = make_agent(any_consul)
    for name in ("web", "other"):
        agent.app(name, http(), port=server.port)
    eventually(lambda: set(any_consul.names) == {"web", "other"})
    agent.stop()
    (agent.records / "web.json").unlink()
    agent.start()
    eventually(lambda: set(any_consul.names) == {"other"})
    agent.wait("other", "passing")


def test_an_app_that_goes_during_its_check_does_not_come_back(agent, consul, server):
    server.delay = 0.6
    agent.app("web", http(), port=server.port)
    agent.wait("web", "passing")
    asked = len(server.asked)
    eventually(lambda: len(server.asked) > asked)
    (agent.records / "web.json").unlink()
    eventually(lambda: consul.names == {} and not (agent.states / "web.json").exists())
    time.sleep(0.9)
    assert consul.names == {}
    assert list(agent.states.glob("*.json")) == []


def test_states_of_an_earlier_life_are_not_believed(agent, server):
    agent.app("web", http(), port=server.port)
    agent.wait("web", "passing")
    agent.stop()
    (agent.records / "web.json").unlink()
    agent.start()
    eventually(lambda: not (agent.states / "web.json").exists())


def test_without_consul_apps_are_watched(make_agent, server):
    agent = make_agent(types.SimpleNamespace(port=free_port()))
    agent.app("web", http(), port=server.port)
    agent.wait("web", "passing")

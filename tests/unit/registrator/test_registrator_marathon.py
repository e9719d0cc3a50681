# SPDX-License-Identifier: Apache-2.0
"""What the registrator does with odd answers of Marathon: servers of the test's own say them."""

import http.server
import json
import threading

import pytest

from consul_runtime import Consul, policies
from registrator_runtime import Registrator, eventually, library

registrator = library()


class Server:
    """Answers each path with what `answers` has for it: (status, body, headers)."""

    def __init__(self):
        self.answers, self.asked = {}, []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = self.path.partition("?")[0]
                server.asked.append((path, self.headers.get("Authorization")))
                status, body, headers = server.answers.get(path, (503, b"no leader", {}))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": len(body)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def says(self, path, value, status=200, **headers):
        self.answers[path] = (status, json.dumps(value).encode(), headers)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    one = Server()
    yield one
    one.close()


@pytest.fixture
def leader():
    one = Server()
    yield one
    one.close()


def test_one_that_answers_is_asked_first_afterwards(server, leader):
    leader.says("/v2/apps", {"apps": []})
    marathon = registrator.Marathon(["http://127.0.0.1:1", server.url, leader.url])
    assert marathon.get("/v2/apps") == {"apps": []}
    marathon.get("/v2/apps")
    assert len(server.asked) == 1
    assert len(leader.asked) == 2


def test_when_none_answers_each_has_its_reason(server):
    marathon = registrator.Marathon([server.url, "http://127.0.0.1:1"])
    with pytest.raises(registrator.Trouble) as said:
        marathon.get("/v2/apps")
    assert "HTTP 503: no leader" in str(said.value)
    assert "http://127.0.0.1:1: " in str(said.value)


def test_a_redirect_to_the_leader_is_followed_with_the_password(server, leader):
    server.says("/v2/apps", {}, 307, Location=f"{leader.url}/v2/apps")
    leader.says("/v2/apps", {"apps": [1]})
    marathon = registrator.Marathon([server.url], user="ann", password="secret")
    assert marathon.get("/v2/apps") == {"apps": [1]}
    assert leader.asked == [("/v2/apps", "Basic YW5uOnNlY3JldA==")]


@pytest.mark.parametrize("location", ["https://127.0.0.1:1/v2/apps", "file:///etc/passwd", "", "http:///x"])
def test_a_redirect_elsewhere_is_not(server, location):
    server.says("/v2/apps", {}, 307, Location=location)
    with pytest.raises(registrator.Trouble, match="not asked|HTTP 307"):
        registrator.Marathon([server.url]).get("/v2/apps")


def test_redirects_in_a_circle_end(server, leader):
    server.says("/v2/apps", {}, 307, Location=f"{leader.url}/v2/apps")
    leader.says("/v2/apps", {}, 307, Location=f"{server.url}/v2/apps")
    with pytest.raises(registrator.Trouble, match="HTTP 307"):
        registrator.Marathon([server.url]).get("/v2/apps")
    assert len(server.asked) + len(leader.asked) == 3


def test_what_is_no_json_is_trouble(server):
    server.answers["/v2/apps"] = (200, b"<html>", {})
    with pytest.raises(registrator.Trouble, match="/v2/apps"):
        registrator.Marathon([server.url]).get("/v2/apps")


TASK = {"id": "odd.1", "host": "127.0.0.1", "ports": [1], "state": "TASK_RUNNING"}
APP = {"id": "/dodas/odd", "version": "1", "tasks": [TASK]}


def test_an_answer_without_apps_removes_nothing(server, make, catalogue):
    server.says("/v2/apps", {"apps": [APP]})
    server.says("/v2/leader", {"leader": "127.0.0.1:8080"})
    one = make({"urls": [server.url]})
    catalogue.wait("odd", "passing")
    for nonsense in ({"message": "hello"}, ["apps"], None, 5, {"apps": "none"}):
        server.says("/v2/apps", nonsense)
        asked = len(server.asked)
        eventually(lambda asked=asked: len(server.asked) > asked + 3)
        assert catalogue.instances("odd") == [("server-1-apps", "passing")]
    assert one.says("the answer has no apps")
    assert one.process.poll() is None
    forget(server, catalogue)


def test_that_nothing_runs_any_more_must_be_said_for_a_while(server, make, catalogue):
    server.says("/v2/apps", {"apps": [APP]})
    server.says("/v2/leader", {"leader": "127.0.0.1:8080"})
    one = make({"urls": [server.url]})
    catalogue.wait("odd", "passing")
    server.says("/v2/apps", {"apps": []})
    eventually(lambda: one.says("nothing runs any more"))
    server.says("/v2/apps", {"apps": [APP]})
    asked = len(server.asked)
    eventually(lambda: len(server.asked) > asked + 4)
    assert not one.says("gone")
    forget(server, catalogue)


def test_what_consul_refuses_stops_nothing_else(server, tmp_path):
    rules = policies()["registrator"] + 'service "bad" { policy = "deny" }'
    bad = {**APP, "id": "/dodas/bad", "tasks": [{**TASK, "id": "bad.1"}]}
    server.says("/v2/apps", {"apps": [bad, APP]})
    server.says("/v2/leader", {"leader": "127.0.0.1:8080"})
    with Consul(tmp_path, uses={"registrator": rules}) as consul:
        one = Registrator(tmp_path, consul, {"urls": [server.url]}).start()
        try:
            eventually(lambda: one.says("bad.1: Consul: PUT /v1/catalog/register: HTTP 403"))
            eventually(lambda: consul.call("GET", "/v1/health/service/odd?passing") != [])
            assert consul.call("GET", "/v1/catalog/service/bad") == []
            asked = len(server.asked)
            eventually(lambda: len(server.asked) > asked + 4)
            assert one.log.read_text().count("HTTP 403") == 1, "what stays so is said once"
        finally:
            one.stop()


def forget(server, catalogue):
    """Leave the catalogue as it was."""
    server.says("/v2/apps", {"apps": []})
    catalogue.wait("odd", seconds=10)


@pytest.fixture
def servers(tmp_path):
    with Consul(tmp_path, servers=3) as consul:
        yield consul


def healthy(consul, name):
    """Statuses of a service's instances, asked at a server that runs."""
    alive = next(one for one in consul.agents if one.process)
    found = consul.call("GET", f"/v1/health/service/{name}", agent=alive)
    return [check["Status"] for one in found for check in one["Checks"]]


def lose(consul, agent):
    """Kill a server of Consul, and wait until the others have a leader."""
    agent.kill()
    consul.wait(next(one for one in consul.agents if one.process))


def test_what_is_on_a_dead_host_is_critical_also_without_marathon(server, servers, tmp_path):
    server.says("/v2/apps", {"apps": [{**APP, "tasks": [{**TASK, "host": "server-3"}]}]})
    server.says("/v2/leader", {"leader": "127.0.0.1:8080"})
    one = Registrator(tmp_path, servers, {"urls": [server.url]}).start()
    try:
        eventually(lambda: healthy(servers, "odd") == ["passing"], 20)
        lose(servers, servers.agents[2])
        eventually(lambda: healthy(servers, "odd") == ["critical"], 30)
        servers.agents[2].start()
        eventually(lambda: healthy(servers, "odd") == ["passing"], 30)
        server.answers.clear()
        lose(servers, servers.agents[2])
        eventually(lambda: healthy(servers, "odd") == ["critical"], 30)
        assert one.says("HTTP 503")
    finally:
        one.stop()


def test_a_server_of_consul_may_be_lost(server, servers, tmp_path):
    server.says("/v2/apps", {"apps": [APP]})
    server.says("/v2/leader", {"leader": "127.0.0.1:8080"})
    leader = servers.call("GET", "/v1/status/leader")
    lost = next(one for one in servers.agents if leader.endswith(f":{one.rpc_port}"))
    kept = next(one for one in servers.agents if one is not lost)
    one = Registrator(tmp_path, servers, {"urls": [server.url]}, url=kept.url).start()
    try:
        eventually(lambda: healthy(servers, "odd") == ["passing"], 20)
        lose(servers, lost)
        server.says("/v2/apps", {"apps": [APP, {**APP, "id": "/dodas/new", "tasks": [{**TASK, "id": "new.1"}]}]})
        eventually(lambda: healthy(servers, "new") == ["passing"], 30)
        assert healthy(servers, "odd") == ["passing"]
    finally:
        one.stop()


def test_the_lock_is_one_processes(consul):
    client = registrator.Consul(consul.url, consul.tokens["registrator"])
    first, second = (registrator.Lock(client, "dodas/registrator/test", name) for name in ("a", "b"))
    first.acquire()
    assert first.held
    thread = threading.Thread(target=second.acquire, daemon=True)
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    assert not second.held
    first.release()
    assert not first.held
    thread.join(15)
    assert second.held
    client.put(f"/v1/session/destroy/{second.session}")
    second.renew()
    assert not second.held


def test_a_lock_that_was_not_renewed_is_not_ours(consul, monkeypatch):
    lock = registrator.Lock(registrator.Consul(consul.url, consul.tokens["registrator"]), "dodas/registrator/old", "a")
    lock.acquire()
    now = registrator.time.monotonic()
    monkeypatch.setattr(registrator.time, "monotonic", lambda: now + registrator.SESSION_TTL)
    assert not lock.held
    monkeypatch.undo()
    lock.release()


def test_a_token_without_rights_is_said(consul):
    lock = registrator.Lock(registrator.Consul(consul.url, consul.tokens["balancer"]), "dodas/registrator/no", "a")
    with pytest.raises(registrator.Refused, match="HTTP 403"):
        lock.acquire()

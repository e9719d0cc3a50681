# SPDX-License-Identifier: Apache-2.0
"""The daemon between a real Consul and a real HAProxy, with requests on loopback."""

import contextlib
import json
import socket
import subprocess
import threading
import time

import agent_runtime
import registrator_runtime
from agent_runtime import eventually
from balancer_runtime import ROLE, Balancer, Haproxy, ask, deregister, register
from ports import free_port


def publish(consul, app, server, port, **options):
    """Register `server` as an instance of `app`, which is published on `port`."""
    register(consul, app, server.port, {"HAPROXY_0_PORT": str(port), **options.pop("meta", {})}, **options)


def test_an_app_comes_and_goes(make_balancer, consul, make_server):
    balancer, server, port = make_balancer(), make_server("one"), free_port()
    assert ask(port) is None
    publish(consul, "web", server, port)
    # The issue's own deadline for an app to be found.
    eventually(lambda: ask(port) == "one", 5)
    eventually(lambda: balancer.published() == {port: ["web"]})
    deregister(consul, "web", server.port)
    eventually(lambda: ask(port) is None, 5)
    eventually(lambda: balancer.status == {"published": [], "refused": {}, "error": ""})
    log = balancer.log.read_text()
    assert f"web port {port}: 127.0.0.1:{server.port}\n" in log
    assert f"web port {port}: gone\n" in log


def test_an_app_without_the_label_is_not_published(make_balancer, consul, make_server):
    balancer, port = make_balancer(), free_port()
    publish(consul, "inside", make_server("inside"), port, meta={"HAPROXY_GROUP": "internal"})
    publish(consul, "web", make_server("one"), other := free_port())
    eventually(lambda: ask(other) == "one")
    eventually(lambda: balancer.published() == {other: ["web"]})
    assert ask(port) is None


def test_only_who_is_named_may_connect(make_balancer, consul, make_server):
    make_balancer()
    one, two, three = (make_server(name) for name in ("one", "two", "three"))
    ports = [free_port() for _ in range(3)]
    publish(consul, "named", one, ports[0], meta={"HAPROXY_0_CLIENTS": "192.0.2.0/24,127.0.0.0/8"})
    publish(consul, "others", two, ports[1], meta={"HAPROXY_0_CLIENTS": "192.0.2.0/24"})
    meta = {"HAPROXY_0_CLIENTS": "192.0.2.0/24", "HAPROXY_0_MODE": "http"}
    publish(consul, "pages", three, ports[2], meta=meta)
    eventually(lambda: [ask(port) for port in ports] == ["one", None, "HTTP 403"])


def test_an_instance_that_is_not_healthy_gets_no_requests(make_balancer, consul, make_server):
    make_balancer()
    one, two, port = make_server("one"), make_server("two"), free_port()
    publish(consul, "web", one, port)
    publish(consul, "web", two, port, status="critical", host="worker-2")
    eventually(lambda: ask(port) == "one")
    publish(consul, "web", two, port, host="worker-2")
    eventually(lambda: {ask(port) for _ in range(4)} == {"one", "two"})
    publish(consul, "web", one, port, status="critical")
    eventually(lambda: {ask(port) for _ in range(4)} == {"two"})
    publish(consul, "web", two, port, status="critical", host="worker-2")
    eventually(lambda: ask(port) is None)
    publish(consul, "web", one, port)
    eventually(lambda: ask(port) == "one")


def test_an_instance_that_dies_is_left_before_consul_knows(make_balancer, consul, make_server):
    make_balancer()
    one, two, port = make_server("one"), make_server("two"), free_port()
    for server in (one, two):
        publish(consul, "web", server, port)
    eventually(lambda: {ask(port) for _ in range(4)} == {"one", "two"})
    one.close()
    assert {ask(port) for _ in range(20)} == {"two"}


def test_no_request_is_lost_while_instances_change(make_balancer, consul, make_server):
    make_balancer()
    stays, port = make_server("stays"), free_port()
    publish(consul, "web", stays, port)
    eventually(lambda: ask(port) == "stays")
    answers, ended = [], threading.Event()

    def clients():
        while not ended.is_set():
            answers.append(ask(port))

    threads = [threading.Thread(target=clients) for _ in range(3)]
    for one in threads:
        one.start()
    try:
        for i in range(4):
            server = make_server(f"extra-{i}")
            publish(consul, "web", server, port)
            eventually(lambda server=server: server.asked)
            deregister(consul, "web", server.port)
            asked = -1
            while asked != len(server.asked):  # it gets no more
                asked = len(server.asked)
                time.sleep(0.5)
    finally:
        ended.set()
        for one in threads:
            one.join()
    assert None not in answers
    assert {one for one in answers if one.startswith("extra")} == {f"extra-{i}" for i in range(4)}


def test_a_transfer_outlives_a_change(make_balancer, consul, make_server):
    make_balancer()
    server, port, other = make_server("slow", parts=30), free_port(), free_port()
    publish(consul, "web", server, port)
    eventually(lambda: ask(port) == "slow")
    found = []
    transfer = threading.Thread(target=lambda: found.append(ask(port, "/slow", seconds=20)))
    transfer.start()
    eventually(lambda: "/slow" in server.asked)
    publish(consul, "more", make_server("more"), other)
    eventually(lambda: ask(other) == "more")
    assert transfer.is_alive(), "it ended before the change"
    transfer.join()
    assert found == ["\n".join(["slow"] * 30)]


def test_hosts_share_a_port_by_http(make_balancer, consul, make_server):
    balancer, port = make_balancer(), free_port()
    a, b = make_server("a"), make_server("b")
    publish(consul, "a", a, port, meta={"HAPROXY_0_MODE": "http", "HAPROXY_0_VHOST": "a.example,www.a.example"})
    publish(consul, "b", b, port, meta={"HAPROXY_0_VHOST": "B.example"})
    eventually(lambda: balancer.published() == {port: ["a", "b"]})
    eventually(lambda: ask(port, host="b.example:80") == "b")
    assert ask(port, host="WWW.a.example") == "a"
    assert ask(port, host="c.example") == "HTTP 503"
    assert a.headers[-1]["x-forwarded-for"] == "127.0.0.1"


def test_two_apps_on_one_port(make_balancer, consul, make_server):
    balancer, port = make_balancer(), free_port()
    old, new = make_server("old"), make_server("new")
    publish(consul, "z-old", old, port)
    eventually(lambda: ask(port) == "old")
    publish(consul, "a-new", new, port)
    reason = f"not published: port {port} is that of z-old, which is older"
    eventually(lambda: balancer.status["refused"] == {f"a-new port {port}": reason})
    assert f"a-new port {port}: {reason}\n" in balancer.log.read_text()
    assert ask(port) == "old"
    # The older one's instances are replaced, so they are newer than the other's.
    publish(consul, "z-old", old, port, task="second")
    deregister(consul, "z-old", old.port)
    balancer.stop()
    balancer.start()
    eventually(lambda: f"a-new port {port}" in balancer.status["refused"])
    assert ask(port) == "old"
    deregister(consul, "z-old", old.port, task="second")
    eventually(lambda: ask(port) == "new")
    eventually(lambda: balancer.status["refused"] == {})


def test_a_wrong_label_disturbs_nobody_else(make_balancer, consul, make_server):
    balancer, port = make_balancer(), free_port()
    publish(consul, "bad", make_server("bad"), "80\n    server evil 127.0.0.1:1")
    publish(consul, "web", make_server("one"), port)
    eventually(lambda: ask(port) == "one")
    eventually(lambda: balancer.status["refused"].get("bad", "").startswith("not published: HAPROXY_0_PORT: "))
    assert "evil" not in balancer.haproxy.apps


def test_a_port_of_another_program_is_left_to_it(make_balancer, consul, make_server):
    balancer, port = make_balancer(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        publish(consul, "late", make_server("late"), taken)
        publish(consul, "web", make_server("one"), port)
        eventually(lambda: ask(port) == "one")
        reason = f"not published: port {taken} is used by another program on this host"
        eventually(lambda: balancer.status["refused"] == {f"late port {taken}": reason})
    eventually(lambda: ask(taken) == "late")


def test_a_port_that_haproxy_cannot_have_leaves_the_last_good_configuration(make_balancer, consul, make_server):
    # Another program may come between the daemon's look and HAProxy's.
    balancer, port = make_balancer(patch="daemon.is_free = lambda address, port: True; daemon.RELOAD = 2"), free_port()
    publish(consul, "good", make_server("good"), port)
    eventually(lambda: ask(port) == "good")
    before = balancer.haproxy.apps
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        publish(consul, "late", make_server("late"), taken)
        eventually(lambda: "the last good configuration stays" in balancer.status["error"], 20)
        assert balancer.haproxy.apps == before
        eventually(lambda: ask(port) == "good")
    eventually(lambda: ask(taken) == "late", 20)
    eventually(lambda: balancer.status["error"] == "")


def test_a_configuration_that_haproxy_refuses_leaves_the_last_good_one(make_balancer, consul, make_server):
    balancer, port, other = make_balancer(), free_port(), free_port()
    publish(consul, "web", make_server("one"), port)
    eventually(lambda: ask(port) == "one")
    before, base = balancer.haproxy.apps, balancer.haproxy.base.read_text()
    balancer.haproxy.base.write_text(base + "nonsense here\n")
    publish(consul, "more", make_server("more"), other)
    eventually(lambda: "unknown keyword 'nonsense'" in balancer.status["error"])
    assert (balancer.haproxy.apps, ask(port), ask(other)) == (before, "one", None)
    assert "(balancer): the last good configuration stays: " in balancer.log.read_text()
    balancer.haproxy.base.write_text(base)
    eventually(lambda: ask(other) == "more")
    eventually(lambda: balancer.status["error"] == "")


def test_nothing_changes_while_consul_is_away(make_balancer, consul, make_server):
    balancer, port, other = make_balancer(), free_port(), free_port()
    publish(consul, "web", make_server("one"), port)
    eventually(lambda: ask(port) == "one" and balancer.published() == {port: ["web"]})
    consul.agents[0].kill()
    eventually(lambda: "Consul" in balancer.status["error"])
    assert balancer.published() == {port: ["web"]}
    balancer.stop()
    balancer.start()
    time.sleep(1)
    assert ask(port) == "one"
    assert balancer.published() == {port: ["web"]}
    consul.start()
    publish(consul, "more", make_server("more"), other)
    eventually(lambda: ask(other) == "more", 20)
    eventually(lambda: balancer.status["error"] == "")
    assert ask(port) == "one"


def test_haproxy_may_start_later_or_anew(haproxy, make_balancer, consul, make_server):
    haproxy.process = "not yet"  # so that it is not started
    balancer, port = make_balancer(), free_port()
    publish(consul, "web", make_server("one"), port)
    eventually(lambda: "HAProxy does not run" in balancer.status["error"])
    eventually(lambda: f"bind 127.0.0.1:{port}" in haproxy.apps)
    haproxy.process = None
    haproxy.start()
    eventually(lambda: ask(port) == "one")
    eventually(lambda: balancer.status["error"] == "" and balancer.published() == {port: ["web"]})
    haproxy.stop()
    assert ask(port) is None
    haproxy.start()
    eventually(lambda: ask(port) == "one")


def test_without_rights_nothing_is_read_and_the_token_is_not_shown(make_balancer, tmp_path):
    balancer = make_balancer()
    eventually(lambda: balancer.status["error"] == "")
    balancer.stop()
    token = "11111111-2222-3333-4444-555555555555"
    (tmp_path / "wrong.token").write_text(token)
    settings = json.loads(balancer.settings.read_text())
    balancer.settings.write_text(json.dumps({**settings, "token_file": str(tmp_path / "wrong.token")}))
    balancer.start()
    eventually(lambda: "HTTP 403" in balancer.status["error"] and "ACL not found" in balancer.status["error"])
    shown = balancer.log.read_text() + json.dumps(balancer.status) + balancer.haproxy.apps
    assert token not in shown


def test_two_balancers_decide_the_same(make_balancer, consul, make_server, tmp_path):
    first, port, other = make_balancer(), free_port(), free_port()
    publish(consul, "old", make_server("old"), port)
    publish(consul, "new", make_server("new"), port)
    publish(consul, "web", make_server("one"), other)
    eventually(lambda: len(first.published()) == 2)
    (tmp_path / "second").mkdir()
    # On one machine only one of them can have the ports, so this one writes what it would do.
    haproxy = Haproxy(tmp_path / "second")
    second = Balancer(haproxy, consul.port, consul.token_file("balancer"), patch="daemon.is_free = lambda *_: True")
    second.start()
    try:
        eventually(lambda: haproxy.apps)
        assert haproxy.apps == first.haproxy.apps
    finally:
        second.stop()


def test_what_the_registrator_writes_is_what_the_balancer_reads(make_balancer, consul, make_server):
    balancer, server, port, named = make_balancer(), make_server("one"), free_port(), free_port()
    app = {
        "id": "/dodas/web",
        "labels": {"HAPROXY_GROUP": "external", "HAPROXY_1_PORT": str(named), "HAPROXY_1_VHOST": "a.example"},
        "portDefinitions": [{"port": port}, {"port": 0}, {"port": 0}],
    }
    task = {"id": "dodas_web.1", "ports": [server.port, server.port, server.port]}
    body = registrator_runtime.library().registration(
        app, task, "web", ("server-1", "127.0.0.1"), "2026-01-01T00:00:00Z", ("passing", "healthy")
    )
    consul.call("PUT", "/v1/catalog/register", body, token="registrator")
    eventually(lambda: balancer.published() == {port: ["web"], named: ["web"]})
    eventually(lambda: ask(port) == "one" and ask(named, host="a.example") == "one")
    assert ask(named) == "HTTP 503"


def test_the_health_of_haproxy_is_asked_on_the_host(haproxy):
    def check(port):
        done = subprocess.run([ROLE / "files/balancer-health", str(port)], capture_output=True, timeout=10, check=False)
        return done.returncode == 0

    assert not check(haproxy.health)
    haproxy.start()
    assert check(haproxy.health)
    haproxy.stop()
    assert not check(haproxy.health)
    with contextlib.closing(agent_runtime.Server()) as server:
        assert check(server.port)
        server.status = 503
        assert not check(server.port)


def test_who_accepts_and_says_nothing_is_not_healthy():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [ROLE / "files/balancer-health", str(silent.getsockname()[1])]
        assert subprocess.run(command, timeout=10, check=False).returncode != 0

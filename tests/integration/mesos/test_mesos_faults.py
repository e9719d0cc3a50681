# SPDX-License-Identifier: Apache-2.0
"""What breaks, how long it takes until the rest has noticed, and that no job is lost by it."""

import concurrent.futures
import json
import time
import urllib.request

import pytest

# On a host: asks for something again and again, and says how long at most it got no answer.
ASK = """
import json, socket, sys, time

what, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])

def proxy():
    with socket.create_connection((address, 3128), timeout=0.3) as connection:
        connection.settimeout(1)
        connection.sendall(b"GET http://conditions.service.consul:8088/health HTTP/1.0\\r\\n\\r\\n")
        answer = connection.recv(12)
    if not answer.endswith(b"200"):
        raise OSError("answered " + repr(answer))

def name():
    socket.getaddrinfo(address, 80)

began = last = time.monotonic()
gap, asked, failed = 0, 0, []
while time.monotonic() < began + seconds:
    asked += 1
    try:
        {"proxy": proxy, "name": name}[what]()
    except OSError as exc:
        failed.append(str(exc))
    else:
        now = time.monotonic()
        gap, last = max(gap, now - last), now
    time.sleep(0.05)
print(json.dumps({"gap": max(gap, time.monotonic() - last), "asked": asked, "failed": len(failed), "why": failed[:3]}))
"""
LARGE = "/var/lib/dodas/conditions/large"


def seconds_since(began):
    return time.monotonic() - began


@pytest.fixture
def asking(cms):
    """Starts a loop of questions on a host; its result says how they were answered."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def ask(host, what, address, seconds):
            command = f"python3 - {what} {address} {seconds}"
            answer = pool.submit(lambda: json.loads(cms.run(host, command, data=ASK)))
            time.sleep(3)  # it is there when the fault comes
            return answer

        yield ask


@pytest.mark.nightly
def test_zookeeper_s_leader_is_killed(cms, tmp_path, eventually, measured):
    def is_a(role, host):
        ask = f"exec 3<>/dev/tcp/{cms.addresses[host]}/2181 && echo srvr >&3 && grep ^Mode <&3"
        return role in cms.run(host, ask, check=False)

    def leader():
        return next((host for host in cms.masters if is_a("leader", host)), None)

    first = leader()
    with cms.nothing_lost(tmp_path):
        began = time.monotonic()
        cms.kill(first, "dodas-zookeeper")
        try:
            second = eventually(leader, 60, "another leads")
            measured("ZooKeeper's leader killed: another leads", seconds_since(began))
            assert second != first
            eventually(cms.is_complete, 120, "the cluster is complete")
            measured("ZooKeeper's leader killed: status is complete", seconds_since(began))
        finally:
            cms.start(first, "dodas-zookeeper")
    eventually(lambda: is_a("follower", first), 60, "it follows")


@pytest.mark.nightly
def test_the_leading_master_is_killed(cms, tmp_path, eventually, measured):
    first = cms.leader()
    with cms.nothing_lost(tmp_path):
        began = time.monotonic()
        cms.kill(first, "dodas-mesos-master")
        try:
            eventually(lambda: cms.leader() not in (None, first), 60, "another leads")
            measured("Mesos' leader killed: another leads", seconds_since(began))
            eventually(lambda: all(map(cms.agent, cms.agents)), 60, "the agents are with it")
            measured("Mesos' leader killed: it has the agents", seconds_since(began))
            eventually(cms.is_complete, 120, "the cluster is complete")
            assert cms.status()["mesos"]["quorum"] == {"masters": 3, "needed": 2, "alive": 2, "ok": True}
        finally:
            cms.start(first, "dodas-mesos-master")
    eventually(lambda: cms.mesos()["quorum"]["alive"] == 3, 60, "it is back")


def test_two_of_three_masters_are_gone(cms, tmp_path, eventually, measured):
    first = cms.leader()
    gone = [first, next(host for host in cms.masters if host != first)]
    left = next(host for host in cms.masters if host not in gone)
    with cms.nothing_lost(tmp_path):
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda host: cms.kill(host, "dodas-mesos-master"), gone))
        try:
            found = cms.status()
            measured("two of three masters gone: status says so", seconds_since(began))
            assert found["mesos"]["quorum"] == {"masters": 3, "needed": 2, "alive": 1, "ok": False}
            assert not found["complete"]
            with urllib.request.urlopen(f"http://{cms.addresses[left]}:5050/health", timeout=5) as answer:
                assert answer.status == 200  # which is why it is not what status asks
            shown = cms.dodas("status", "--name", cms.name, status=1, TERM="dumb", COLUMNS="200").stdout
            assert "1 of 3 alive, 2 needed" in shown
        finally:
            began = time.monotonic()
            for host in gone:
                cms.start(host, "dodas-mesos-master")
        eventually(lambda: cms.leader() and all(map(cms.agent, cms.agents)), 120, "one leads, with the agents")
        measured("two masters back: one leads, with the agents", seconds_since(began))
        eventually(cms.is_complete, 120, "the cluster is complete")


@pytest.mark.nightly
def test_an_agent_is_killed_and_comes_back_with_more(cms, tmp_path, eventually, measured):
    before, containers = cms.agent("agent-2"), cms.apps("agent-2")
    with cms.nothing_lost(tmp_path, seconds=60):
        began = time.monotonic()
        cms.kill("agent-2", "dodas-mesos-agent")
        eventually(lambda: cms.agent("agent-2") is None, 90, "the master has noticed")
        measured("agent killed: the master has noticed", seconds_since(began))
        assert cms.apps("agent-2") == containers  # they go on
        found = cms.status()
        assert not found["complete"] and found["mesos"]["missing"] == ["agent-2.node.consul"]
        began = time.monotonic()
        assert cms.up("-p", "agent_cpus=9")["complete"]
        measured("up brings the agent back, with one CPU more", seconds_since(began))
    after = cms.agent("agent-2")
    assert after["id"] == before["id"] and after["resources"]["cpus"] == 9


@pytest.mark.nightly
def test_agents_that_have_less_come_back_as_others(cms, measured):
    before = {host: cms.agent(host)["id"] for host in cms.agents}
    fewer = int(cms.agent("agent-1")["resources"]["cpus"]) - 1
    found = cms.up("-p", f"agent_cpus={fewer}")
    measured("up makes both agents smaller, one after the other", found["seconds"])
    assert found["complete"] and len(found["slots"]) == 2
    for host in cms.agents:
        assert cms.agent(host)["id"] != before[host] and cms.agent(host)["resources"]["cpus"] == fewer


def test_squid_is_killed_in_the_middle_of_a_transfer(cms, eventually, measured):
    fetch = (f"curl --silent --fail --proxy http://{cms.virtual_address()}:3128 http://conditions.service.consul:8088/large"
             " --output /tmp/large")  # fmt: skip
    kill = "podman kill --signal KILL $(podman ps --quiet --filter label=dodas.app=squid)"
    cms.run("agent-1", f"head -c 64M /dev/urandom > {LARGE}")
    try:
        right = cms.run("agent-1", f"sha256sum < {LARGE}")
        [host] = set(cms.tasks("/dodas/squid").values())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            broken = pool.submit(cms.run, "master-1", f"{fetch} --limit-rate 2M; echo $?; stat --format %s /tmp/large")
            time.sleep(4)
            began = time.monotonic()
            cms.run(host, kill)
            status, size = broken.result().split()
        assert status != "0" and 0 < int(size) < 64 * 2**20  # who was served is told
        whole = f"{fetch} && sha256sum < /tmp/large"
        eventually(lambda: cms.run("master-1", whole, check=False) == right, 120, "the file can be fetched")
        measured("squid killed in a transfer: the file is fetched anew", seconds_since(began))
        eventually(cms.is_complete, 120, "the cluster is complete")
    finally:
        cms.run("agent-1", f"rm -f {LARGE}")
        cms.run("master-1", "rm -f /tmp/large")


@pytest.mark.nightly
def test_a_balancer_is_killed(cms, tmp_path, asking, measured):
    first = cms.holder()
    second = next(host for host in cms.balancers if host != first)
    with cms.nothing_lost(tmp_path):
        answers = asking("agent-1", "proxy", cms.virtual_address(), 20)
        cms.dodas.podman("kill", f"dodas-{cms.name}-{first}")  # as when its power fails
        found = answers.result()
        failed = f"{found['failed']} of {found['asked']} failed"
        measured(f"balancer killed: longest time without an answer ({failed})", found["gap"])
        assert found["gap"] < 3, found
        assert f" {cms.virtual_address()}/" in cms.run(second, "ip -4 -oneline address")
        began = time.monotonic()
        assert cms.up()["complete"]
        measured("up starts the balancer again", seconds_since(began))
    assert cms.holder() == second  # who has the address keeps it


def test_a_consul_server_is_lost(cms, tmp_path, asking, eventually, measured):
    address = json.loads(cms.run("agent-1", "curl --silent http://127.0.0.1:8500/v1/status/leader")).partition(":")[0]
    first = next(host for host in cms.masters if cms.addresses[host] == address)
    with cms.nothing_lost(tmp_path):
        answers = asking("agent-2", "name", "squid.service.consul", 25)
        cms.kill(first, "consul")
        try:
            found = answers.result()
            failed = f"{found['failed']} of {found['asked']} failed"
            measured(f"Consul's leader killed: longest time without a name ({failed})", found["gap"])
            assert found["gap"] < 25
            probes = {one["name"]: one for one in cms.status()["probes"] if not one["ok"]}
            assert "consul" in probes
        finally:
            began = time.monotonic()
            cms.start(first, "consul")
        eventually(cms.is_complete, 120, "the cluster is complete")
        measured("Consul's server back: status is complete", seconds_since(began))


@pytest.mark.nightly
def test_the_registry_is_down_during_a_scale(cms, eventually, measured):
    """Agents have the image; only one that nobody has yet has to wait, and Marathon says for what."""
    image = cms.marathon("/v2/apps/dodas/worker")["app"]["container"]["docker"]["image"]
    new = image.rpartition(":")[0] + ":new"
    push = f"podman push --quiet --authfile /etc/dodas/registry/auth.json {new}"
    host = next(iter(cms.tasks("/dodas/worker").values()))
    cms.run(host, f"podman tag {image} {new} && {push} && podman untag {new} {new}")
    docker = {"image": new, "parameters": [{"key": "entrypoint", "value": "/bin/sh"}]}
    app = {"id": "/guest/late", "cpus": 0.1, "mem": 64, "args": ["-c", "exec sleep 1000"], "maxLaunchDelaySeconds": 5,
           "container": {"type": "DOCKER", "docker": docker}, "networks": [{"mode": "host"}]}  # fmt: skip
    cms.kill("balancer-1", "dodas-registry")
    try:
        found = cms.scale(4)
        measured("scale from 2 to 4 workers without the registry", found["seconds"])
        assert found["complete"] and len(found["slots"]) == 4
        cms.marathon("/v2/apps", "POST", app)

        def late():
            shown = {one["id"]: one for one in cms.status()["marathon"]["apps"]}["/guest/late"]
            return "registry.service.consul" in " ".join(shown["reasons"])

        eventually(late, 60, "status says what the app waits for")
    finally:
        began = time.monotonic()
        cms.start("balancer-1", "dodas-registry")
    eventually(lambda: cms.marathon("/v2/apps/guest/late")["app"]["tasksRunning"] == 1, 120, "it runs")
    measured("registry back: what waited for its image runs", seconds_since(began))
    cms.marathon("/v2/apps/guest/late", "DELETE")
    assert cms.scale(2)["complete"]

# SPDX-License-Identifier: Apache-2.0
"""A cloud that refuses, fails, forgets and is slow, a client that dies, and what it then says and leaves."""

from __future__ import annotations

import json
import random
import threading

import pytest

import openstack_faults as faults
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import Busy, OpenStackError, Quota
from openstack_clients import SETTINGS, hosts

OWN = {key: value for key, value in SETTINGS.items() if key != "network"}
TWO, THREE = hosts(workers=1), hosts(workers=2)
CREATING = ("POST compute /servers$", "POST network /ports$", "POST network /security-groups$")
SEED = 20261123


# What the cloud has no room for


def test_a_quota_is_checked_before_anything_is_made(make, reality, compute_quota):
    deployment = make("quota")
    compute_quota(instances=len(list(reality.connection.compute.servers())) + 2)
    with pytest.raises(Quota, match="instances") as refused:
        deployment.up(THREE)
    assert "3" in str(refused.value)
    assert deployment.calls["POST compute"] <= 1  # what keeps a second run out
    assert deployment.calls["POST network"] == 0
    assert reality.of(deployment) == []


def test_a_quota_is_exceeded_in_the_middle(make, reality, compute_quota):
    """Somebody else takes what was free when it was checked. Later the rest is made, and nothing twice."""
    deployment = make("middle")
    compute_quota(instances=len(list(reality.connection.compute.servers())) + 2)
    with pytest.raises(OpenStackError, match=r"(?i)quota"):
        deployment.up(THREE, quota_check=False)
    # nova counts again after it has made one too many, which is in ERROR then
    before = {host: one for host, one in reality.servers(deployment).items() if one.status != "ERROR"}
    assert len(before) <= 2
    compute_quota(instances=200)
    deployment.up(THREE)
    after = reality.whole(deployment, THREE)
    assert {host: server.id for host, server in before.items()}.items() <= {h: s.id for h, s in after.items()}.items()


def test_no_host_has_room(make, reality, admin, compute_quota):
    compute_quota(cores=-1)
    flavor = admin.compute.create_flavor(name="t-giant", vcpus=4000, ram=512, disk=5)
    deployment = make("giant")
    try:
        with pytest.raises(OpenStackError, match="worker-1.*No valid host") as refused:
            deployment.up(TWO, flavor={"front": "m1.tiny", "worker": "t-giant"}, quota_check=False)
        assert "front-1" not in str(refused.value)
        deployment.up(TWO)
        reality.whole(deployment, TWO)
    finally:
        admin.compute.delete_flavor(flavor)


def test_a_server_that_fails_to_build(make_faulty, faulty, reality, admin):
    """It is in ERROR by the time that somebody asks how it is: another one is made in its place."""
    deployment = make_faulty("error")
    failed = []

    def harm():
        for server in reality.servers(deployment).values():
            admin.compute.wait_for_server(server, interval=0.2, wait=60)
            admin.compute.reset_server_state(server, "error")
            failed.append(server.id)

    fault = faulty.fault(r"GET compute /servers\?", faults.hook(harm))
    deployment.up(hosts(workers=0))
    assert fault.hits == 1
    servers = reality.whole(deployment, hosts(workers=0))
    assert servers["front-1"].id not in failed


def test_no_floating_ip_is_left(make, reality, admin):
    """A pool of two: the router has one, somebody else the other."""
    deployment = make("pool", settings=OWN)
    pool = admin.network.create_network(
        name=f"{deployment.cloud}-pool", is_router_external=True, provider_network_type="local"
    )
    taken = []
    try:
        admin.network.create_subnet(
            network_id=pool.id, ip_version=4, cidr="192.0.2.0/29", gateway_ip="192.0.2.1", is_dhcp_enabled=False,
            allocation_pools=[{"start": "192.0.2.2", "end": "192.0.2.3"}],
        )  # fmt: skip
        taken.append(admin.network.create_ip(floating_network_id=pool.id))
        with pytest.raises(OpenStackError, match=pool.name) as refused:
            deployment.up(hosts(workers=0), external_network=pool.name)
        assert "floating" in str(refused.value).lower()
        admin.network.delete_ip(taken.pop())
        told = deployment.up(hosts(workers=0), external_network=pool.name)
        assert told["front-1"]["public_address"] in ("192.0.2.2", "192.0.2.3")
        reality.whole(deployment, hosts(workers=0))
    finally:
        deployment.down()
        for ip in taken:
            admin.network.delete_ip(ip)
        admin.network.delete_network(pool)


# What the API answers for a while


def test_busy_services(make_faulty, faulty, reality):
    deployment = make_faulty("busy")
    faulty.fault("GET", faults.status(503, retry_after=1), skip=1)
    made = [faulty.fault(pattern, faults.status(503, html=True), times=2) for pattern in CREATING]
    made.append(faulty.fault("GET compute /servers/detail", faults.status(429, retry_after=1), times=2, skip=1))
    made.append(faulty.fault("POST compute /servers$", faults.status(429, retry_after=1)))
    deployment.up(TWO)
    assert all(fault.hits for fault in made)
    reality.whole(deployment, TWO)
    faulty.fault("DELETE", faults.status(503, retry_after=1), times=3)
    faulty.fault("DELETE network", faults.status(409), times=2)
    deployment.down()
    assert reality.of(deployment) == []


def test_retry_after_is_heeded(make_faulty, faulty):
    """Whoever is told to come back in 2 s does not come earlier."""
    deployment = make_faulty("later")
    times = []

    def note(exchange):
        times.append(faults.time.monotonic())
        (faults.pass_on if len(times) > 1 else faults.status(429, retry_after=2))(exchange)

    faulty.fault("POST compute /servers$", note, times=2)
    deployment.up(hosts(workers=0))
    assert times[1] - times[0] >= 2


def test_a_service_that_never_comes_back(make_faulty, faulty, reality):
    deployment = make_faulty("never")
    faulty.fault("POST network /ports", faults.status(503), times=float("inf"))
    with pytest.raises(OpenStackError, match="network: (POST|GET) /ports"):
        deployment.up(hosts(workers=0), timeout=15)
    faulty.clear()
    deployment.down()
    assert reality.of(deployment) == []


@pytest.mark.parametrize("fault", [faults.reset, faults.lost, faults.cut], ids=["reset", "lost", "cut"])
def test_connections_that_break(make_faulty, faulty, reality, fault):
    """The first creation of each kind breaks: whether it was done or not, it is there once in the end."""
    deployment = make_faulty("broken")
    faulty.fault("GET compute /servers/detail", fault, skip=1)
    broken = [faulty.fault(pattern, fault) for pattern in CREATING]
    deployment.up(TWO)
    assert all(one.hits for one in broken)
    reality.whole(deployment, TWO)
    faulty.fault("DELETE", fault, times=2)
    deployment.down()
    assert reality.of(deployment) == []


@pytest.mark.nightly
@pytest.mark.parametrize("fault", [faults.lost, faults.status(503), faults.status(500)], ids=["lost", "503", "500"])
def test_each_change_fails_once(make_faulty, faulty, reality, fault):
    """One call after the other is the one that goes wrong: done in the end, or an error and then done."""
    number, hit = 0, True
    while hit:
        deployment = make_faulty("each", settings=OWN)
        faulty.clear()
        one = faulty.fault("*", _changes_only(fault), skip=number)
        try:
            deployment.up(TWO)
        except OpenStackError:
            deployment.up(TWO)
        reality.whole(deployment, TWO)
        deployment.down()
        assert reality.of(deployment) == [], f"after fault {number}"
        hit, number = one.hits, number + 1


def _changes_only(fault):
    """The fault, for calls that change something; the others pass."""

    def act(exchange):
        (faults.pass_on if exchange.command == "GET" else fault)(exchange)

    return act


def test_slow_services(make_faulty, faulty, reality):
    deployment = make_faulty("slow")
    faulty.fault("POST compute /servers$", faults.slow(3), times=2)
    faulty.fault("GET compute", faults.slow(2), times=2)
    deployment.up(TWO)
    reality.whole(deployment, TWO)


def test_a_deadline_names_what_it_waited_for(make_faulty, faulty, reality):
    """A server that stays in BUILD."""
    deployment = make_faulty("late")

    def building(exchange):
        code, headers, content = exchange.forward()
        document = json.loads(content)
        if "status=ACTIVE" in exchange.target:
            document["servers"].clear()
        for server in document["servers"]:
            server.update({"status": "BUILD", "OS-EXT-STS:task_state": "spawning"})
        exchange.reply(code, json.dumps(document).encode(), headers)

    faulty.fault("GET compute /servers", building, times=float("inf"))
    with pytest.raises(OpenStackError, match=r"(?s)front-1 is BUILD"):
        deployment.up(hosts(workers=0), timeout=20)
    faulty.clear()
    deployment.up(hosts(workers=0))
    reality.whole(deployment, hosts(workers=0))


def test_the_token_expires_in_the_middle(make_faulty, faulty, reality):
    deployment = make_faulty("token")
    expiry = faulty.fault("POST compute /servers$", faults.hook(faulty.expire, then=faults.status(401)), skip=1)
    deployment.up(THREE)
    assert expiry.hits == 1
    assert 2 <= faulty.count("POST identity /auth/tokens$") <= 4
    reality.whole(deployment, THREE)


def test_a_login_that_fails(make_faulty, faulty):
    deployment = make_faulty("login")
    faulty.fault("POST identity /auth/tokens", faults.status(401, message="The request you have made ..."), times=9)
    with pytest.raises(OpenStackError, match="demo"):
        deployment.plan(TWO)
    assert faulty.count("POST identity /auth/tokens") == 1


# A client that dies


def _killed(deployment, faulty, action, wanted, number, done):
    """Run a client that is killed at call `number`; returns whether that call came."""
    faulty.clear()
    started, ready = [], threading.Event()

    def process():
        ready.wait(20)
        return started[0]

    fault = faulty.fault("*", faults.kill(process, done), skip=number)
    started.append(deployment.process(action, wanted))
    ready.set()
    output, _errors = started[0].communicate(timeout=240)
    faulty.clear()
    if not fault.hits:
        assert "result" in json.loads(output)
    return fault.hits


def _kill_and_go_on(deployment, faulty, reality, number, done):
    """Kill `up` at a call, sometimes a second time; then either finish it or take it away, and both work."""
    killed = _killed(deployment, faulty, "up", TWO, number, done)
    if number % 3 == 0:
        _killed(deployment, faulty, "down", TWO, number // 2, not done)
    if number % 2:
        deployment.up(TWO)
        reality.whole(deployment, TWO)
    if number % 5 == 0:
        _killed(deployment, faulty, "down", TWO, number // 2, done)
    deployment.down()
    assert reality.of(deployment) == [], f"killed at call {number} ({'done' if done else 'not done'})"
    return killed


@pytest.mark.parametrize(("number", "done"), [(11, True), (14, False), (17, True)])
def test_a_client_is_killed(make_faulty, faulty, reality, number, done):
    _kill_and_go_on(make_faulty("kill"), faulty, reality, number, done)


@pytest.mark.nightly
def test_a_client_is_killed_20_times(make_faulty, faulty, reality):
    """At random calls of making a cluster with a network of its own."""
    choice = random.Random(SEED)
    deployment = make_faulty("calls", settings=OWN)
    deployment.up(TWO)
    calls = len(faulty.calls)
    deployment.down()
    killed = 0
    for number in [choice.randrange(calls) for _ in range(20)]:
        done = choice.random() < 0.5
        killed += _kill_and_go_on(make_faulty("kills", settings=OWN), faulty, reality, number, done)
    assert killed == 20


# Two clients


def test_two_runs_at_once(make_faulty, faulty, reality):
    """The one that came first goes on; the other one says so at once, and changes nothing."""
    deployment = make_faulty("two")
    reached, go_on = threading.Event(), threading.Event()

    def stop():
        reached.set()
        assert go_on.wait(60)

    faulty.fault("POST compute /servers$", faults.hook(stop))
    first = deployment.process("up", TWO)
    try:
        assert reached.wait(60)
        with pytest.raises(Busy, match=deployment.uuid):
            deployment.up(TWO)
        assert deployment.calls["POST network"] == 0
        with pytest.raises(Busy, match=deployment.uuid):
            deployment.down()
    finally:
        go_on.set()
        output, _errors = first.communicate(timeout=240)
    assert "result" in json.loads(output)
    reality.whole(deployment, TWO)


def test_two_runs_started_together(make, reality):
    """Nobody says who is first: one wins, and what is there is there once."""
    deployment = make("race")
    runs = [deployment.process("up", TWO) for _ in range(2)]
    answers = [json.loads(run.communicate(timeout=240)[0]) for run in runs]
    won = [answer for answer in answers if "result" in answer]
    lost = [answer for answer in answers if "error" in answer]
    assert len(won) + len(lost) == 2
    assert won
    assert [answer["kind"] for answer in lost] == ["Busy"] * len(lost)
    reality.whole(deployment, TWO)


# What is asked for wrongly


WRONG = {
    "image": ({"image": "debian-21"}, ["image", "debian-21", "debian-12"]),
    "flavor": ({"flavor": "m1.tinny"}, ["flavor", "m1.tinny", "m1.tiny"]),
    "flavor of a node": ({"flavor": {"front": "m1.tiny", "worker": "m1.smal"}}, ["m1.smal", "m1.small"]),
    "network": ({"network": "shard"}, ["network", "shard", "shared"]),
    "external network": ({**OWN, "network": None, "external_network": "publik"}, ["publik", "public"]),
    "zone": ({"availability_zone": "novva"}, ["zone", "novva", "nova"]),
    "key": ({"authorized_keys": ["ssh-ed25519 this-is-no-key"]}, ["authorized_keys"]),
    "setting": ({"flavour": "m1.tiny"}, ["flavour", "flavor"]),
    "cidr": ({"network": None, "cidr": "10.88.0.0/33"}, ["cidr", "10.88.0.0/33"]),
    "port": ({"open_ports": [{"port": 70000}]}, ["open_ports", "70000"]),
    "expiry": ({"expires": "soon"}, ["expires", "soon"]),
    "node of a flavor": ({"flavor": {"wroker": "m1.tiny", "front": "m1.tiny"}}, ["wroker", "worker"]),
    "floating IPs": ({"floating_ips": "fornt"}, ["floating_ips", "front"]),
    "anti-affinity": ({"anti_affinity": "hrad"}, ["anti_affinity", "hard"]),
}


@pytest.fixture(scope="module")
def nothing(make_once):
    return make_once("wrong")


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_refused_before_anything_is_made(nothing, reality, case):
    settings, words = WRONG[case]
    settings = {**nothing.settings, **settings}
    nothing.calls = None
    with pytest.raises((OpenStackError, ValueError)) as refused:
        nothing.cluster().apply(
            nothing.wanted(TWO, **{key: value for key, value in settings.items() if value is not None}), str, 60
        )
    for word in words:
        assert word in str(refused.value)
    assert nothing.calls is None or nothing.calls["POST network"] + nothing.calls["POST compute"] <= 1
    assert reality.of(nothing) == []


def test_a_cloud_that_is_not_in_the_file(nothing):
    with pytest.raises(OpenStackError, match="demmo.*demo"):
        type(nothing)(nothing.clouds, nothing.name, cloud="demmo").plan(TWO)


def test_a_wrong_password(nothing, tmp_path):
    clouds = tmp_path / "clouds.yaml"
    document = faults.yaml.safe_load(nothing.clouds.read_text())
    document["clouds"]["demo"]["auth"]["password"] = "canary-of-a-password"
    clouds.write_text(faults.yaml.safe_dump(document))
    with pytest.raises(OpenStackError) as refused:
        type(nothing)(clouds, nothing.name).plan(TWO)
    assert "canary" not in str(refused.value)
    assert "demo" in str(refused.value)


def test_a_cloud_that_is_not_there(nothing, tmp_path):
    clouds = tmp_path / "clouds.yaml"
    document = faults.yaml.safe_load(nothing.clouds.read_text())
    document["clouds"]["demo"]["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    clouds.write_text(faults.yaml.safe_dump(document))
    with pytest.raises(OpenStackError, match="127.0.0.1:9"):
        type(nothing)(clouds, nothing.name).login(timeout=2)

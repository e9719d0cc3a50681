# SPDX-License-Identifier: Apache-2.0
"""The testbed itself: what a test relies on when it takes the testbed for a cloud."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import keystoneauth1.exceptions
import openstack.exceptions
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

import identity_flows
from identity_runtime import AUDIENCE, OTHER_AUDIENCE, Identity
from openstack_testbed import PROGRAM, Testbed

sys.path.append(str(PROGRAM.parent))
from testbed_openstack.place import Place, TestbedError
from testbed_openstack.processes import Processes, start_time

DEADLINE = 180  # s
SERVICES = {"mariadb", "keystone", "placement", "glance", "neutron", "nova"}


def refusal(connection, path=None):
    """HTTP status with which a login, or a request to nova, is refused."""
    with pytest.raises(keystoneauth1.exceptions.HttpError) as refused:
        if path is None:
            connection.session.get_token()
        else:
            connection.session.get(connection.compute.get_endpoint() + path)
    return refused.value.http_status


def until(question, what, seconds=DEADLINE):
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.3)
    return answer


@pytest.fixture
def name():
    return f"testbed-{secrets.token_hex(4)}"


@pytest.fixture
def demo(testbed):
    return testbed.connection("demo")


@pytest.fixture
def network(demo, name):
    """A network with a subnet; whatever else is on it goes with it."""
    network = demo.network.create_network(name=name)
    subnet = demo.network.create_subnet(name=name, network_id=network.id, ip_version=4, cidr="192.168.90.0/24")
    yield network
    for server in demo.compute.servers(name=f"^{name}"):
        demo.compute.delete_server(server)
    until(lambda: not list(demo.compute.servers(name=f"^{name}")), "servers go")
    for address in demo.network.ips(description=name):
        demo.network.delete_ip(address)
    for router in demo.network.routers(name=name):
        with contextlib.suppress(openstack.exceptions.HttpException):
            demo.network.remove_interface_from_router(router, subnet=subnet)
        demo.network.delete_router(router)
    for port in demo.network.ports(network_id=network.id):
        demo.network.delete_port(port)
    demo.network.delete_network(network)


def create(demo, name, network, **more):
    image, flavor = demo.image.find_image("debian-12"), demo.compute.find_flavor("m1.tiny")
    return demo.compute.create_server(
        name=name, image_id=image.id, flavor_id=flavor.id, networks=[{"uuid": network.id}], **more
    )


def settled(demo, name):
    """The servers of this name, when none is being made."""

    def look():
        servers = list(demo.compute.servers(name=f"^{name}"))
        return servers if all(server.status not in ("BUILD", "DELETED") for server in servers) else None

    return until(look, f"servers {name} are made")


# ---- what it holds


def test_all_services_live_and_are_small(testbed):
    status = testbed.status()
    assert {one["name"] for one in status["services"]} == SERVICES
    assert all(one["alive"] for one in status["services"])
    assert 0 < sum(one["memory_mb"] for one in status["services"]) < 2000


def test_secrets_are_the_owners(testbed):
    for file in [testbed.clouds_file, testbed.state / "secrets.json", *(testbed.state / "etc").iterdir()]:
        assert file.stat().st_mode & 0o077 == 0, file
    passwords = Place.load(testbed.state).secrets().values()
    arguments = [Path(f"/proc/{one['pid']}/cmdline").read_text() for one in testbed.status()["services"]]
    assert not [text for text in arguments for password in passwords if password in text]


def test_catalogue(demo):
    flavors = {one.name: (one.vcpus, one.ram, one.disk) for one in demo.compute.flavors()}
    assert flavors["m1.tiny"] == (1, 512, 5) and flavors["m1.large"] == (4, 4096, 40)
    image = demo.image.find_image("debian-12")
    assert (image.status, image.os_distro, image.os_version) == ("active", "debian", "12")
    networks = {one.name: one for one in demo.network.networks()}
    assert networks["public"].is_router_external and not networks["shared"].is_router_external
    assert networks["shared"].is_shared
    assert [zone.name for zone in demo.compute.availability_zones()] == ["nova"]


def test_users_are_apart(testbed, demo, network, name):
    other = testbed.connection("other")
    assert other.network.find_network(network.id) is None
    with pytest.raises(openstack.exceptions.HttpException) as refusal:
        other.network.delete_network(network.id, ignore_missing=False)
    assert refusal.value.status_code in (403, 404)
    with pytest.raises(openstack.exceptions.ForbiddenException):
        demo.compute.create_flavor(name=name, ram=1, vcpus=1, disk=1)
    assert testbed.connection("admin").network.find_network(network.id)


# ---- servers


def test_life_of_a_server(demo, network, name):
    public = demo.network.find_network("public")
    router = demo.network.create_router(name=name, external_gateway_info={"network_id": public.id})
    (subnet,) = network.subnet_ids or [one.id for one in demo.network.subnets(network_id=network.id)]
    demo.network.add_interface_to_router(router, subnet=subnet)
    ports = [{"network_id": network.id, "name": name, "tags": ["a", "b=c"]} for _ in range(3)]
    ports = demo.network.post("/ports", json={"ports": ports}).json()["ports"]
    assert all(sorted(port["tags"]) == ["a", "b=c"] for port in ports)
    image, flavor = demo.image.find_image("debian-12"), demo.compute.find_flavor("m1.tiny")
    body = {
        "name": name, "imageRef": image.id, "flavorRef": flavor.id, "networks": [{"port": ports[0]["id"]}],
        "tags": ["mine"], "metadata": {"k": "v"},
    }  # fmt: skip
    answer = demo.compute.post("/servers", json={"server": body}, microversion="2.52")
    assert answer.status_code == 202, answer.text
    (server,) = settled(demo, name)
    assert server.status == "ACTIVE" and server.metadata == {"k": "v"}
    (address,) = server.addresses[name]
    assert address["addr"] == ports[0]["fixed_ips"][0]["ip_address"]
    assert address["OS-EXT-IPS-MAC:mac_addr"] == ports[0]["mac_address"]

    floating = demo.network.create_ip(floating_network_id=public.id, port_id=ports[0]["id"], description=name)
    until(
        lambda: floating.floating_ip_address
        in [one["addr"] for one in demo.compute.get_server(server.id).addresses[name]],
        "nova shows the floating IP",
    )
    demo.compute.delete_server(server.id)
    until(lambda: demo.compute.find_server(server.id) is None, "the server goes")
    assert demo.network.get_port(ports[0]["id"]).device_id == ""


def test_many_at_once(demo, network, name):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create(demo, f"{name}-{number}", network), range(12)))
    servers = settled(demo, name)
    assert [server.status for server in servers] == ["ACTIVE"] * 12
    addresses = {server.addresses[name][0]["addr"] for server in servers}
    assert len(addresses) == 12


def test_each_host_takes_one_of_a_group(testbed, demo, network, name):
    """Hosts are real to the scheduler: a group that is kept apart has room for as many as there are."""
    hosts = testbed.status()["hosts"]
    group = demo.compute.create_server_group(name=name, policy="anti-affinity")
    try:
        for number in range(hosts + 1):
            create(demo, f"{name}-{number}", network, scheduler_hints={"group": group.id})
            settled(demo, f"{name}-{number}")
        states = [server.status for server in settled(demo, name)]
        assert sorted(states) == ["ACTIVE"] * hosts + ["ERROR"]
        (failed,) = [server for server in settled(demo, name) if server.status == "ERROR"]
        assert "No valid host" in demo.compute.get_server(failed.id).fault["message"]
    finally:
        demo.compute.delete_server_group(group)


def test_quota_is_kept(testbed, demo, network, name):
    admin = testbed.connection("admin")
    used = len(list(demo.compute.servers()))
    before = admin.compute.get_quota_set(demo.current_project_id).instances
    admin.compute.update_quota_set(demo.current_project_id, instances=used + 1)
    try:
        create(demo, f"{name}-1", network)
        with pytest.raises(openstack.exceptions.ForbiddenException, match="Quota exceeded"):
            create(demo, f"{name}-2", network)
    finally:
        admin.compute.update_quota_set(demo.current_project_id, instances=before)
        settled(demo, name)


def test_metadata_of_a_server(testbed, demo, network, name):
    data = base64.b64encode(b"#cloud-config\n{}\n").decode()
    create(demo, name, network, user_data=data)
    (server,) = settled(demo, name)
    secret = Place.load(testbed.state).secrets()["metadata"]

    def ask(path, key):
        headers = {
            "X-Instance-ID": server.id,
            "X-Tenant-ID": demo.current_project_id,
            "X-Instance-ID-Signature": hmac.new(key.encode(), server.id.encode(), hashlib.sha256).hexdigest(),
            "X-Forwarded-For": server.addresses[name][0]["addr"],
        }
        request = urllib.request.Request(testbed.url("metadata") + path, headers=headers)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).read()

    assert json.loads(ask("/openstack/latest/meta_data.json", secret))["uuid"] == server.id
    assert ask("/openstack/latest/user_data", secret) == base64.b64decode(data)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask("/openstack/latest/meta_data.json", "guessed")


# ---- logins


def test_application_credential_is_restricted(testbed, demo, name):
    user = demo.current_user_id
    rules = [{"service": "compute", "method": "GET", "path": "/v2.1/servers"}]
    made = demo.identity.create_application_credential(user, name, access_rules=rules)
    try:
        auth = {
            "auth_url": testbed.auth_url,
            "application_credential_id": made.id,
            "application_credential_secret": made.secret,
        }
        limited = openstack.connection.Connection(
            auth_type="v3applicationcredential", auth=auth, region_name="RegionOne"
        )
        assert limited.session.get(limited.compute.get_endpoint() + "/servers").status_code == 200
        assert refusal(limited, "/flavors") == 401
    finally:
        demo.identity.delete_application_credential(user, made.id)
    again = openstack.connection.Connection(auth_type="v3applicationcredential", auth=auth, region_name="RegionOne")
    assert refusal(again) in (401, 404)


@pytest.fixture(scope="module")
def identity(testbed, tmp_path_factory):
    """The tests' provider, whose tokens the testbed takes when they are for it and of the group /cms."""
    with contextlib.ExitStack() as stack:
        service = Identity(tmp_path_factory.mktemp("identity"))
        stack.callback(service.stop)
        service.start()
        testbed.trust(
            service.url, service.config / "cert.pem",
            "--oidc-audience", AUDIENCE, "--oidc-group", "/cms", "--oidc-provider", "tests",
        )  # fmt: skip
        yield service


def with_token(testbed, token, provider="tests"):
    return testbed.connection("demo-oidc", auth={"access_token": token, "identity_provider": provider})


@pytest.fixture(scope="module")
def token(identity):
    with identity.client() as http:
        return identity_flows.device_tokens(http, resource=AUDIENCE)["access_token"]


def test_token_of_the_provider(testbed, demo, token):
    connection = with_token(testbed, token)
    assert connection.current_project_id == demo.current_project_id
    assert connection.current_user_id != demo.current_user_id
    assert connection.compute.find_flavor("m1.tiny")


def test_token_of_somebody_without_the_group(testbed, identity):
    with identity.client() as http:
        answer = identity_flows.worker(http, resource=AUDIENCE)
    assert refusal(with_token(testbed, answer.json()["access_token"])) in (401, 403)


@pytest.mark.parametrize("change", ["signature", "expired", "audience", "issuer", "none", "hmac"])
def test_forged_tokens(testbed, identity, token, change):
    header, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    key, algorithm = RSAKey.generate_key(2048, {"kid": "x"}), "RS256"
    if change == "signature":
        forged = f"{header}.{body}.{signature[:-8]}AAAAAAA_"
    elif change == "none":
        empty = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        forged = f"{empty}.{body}."
    elif change == "hmac":
        start = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
        with identity.client() as http:
            known = json.dumps(http.get("/jwks").json()["keys"][0]).encode()
        code = hmac.new(known, f"{start}.{body}".encode(), hashlib.sha256).digest()
        forged = f"{start}.{body}.{base64.urlsafe_b64encode(code).decode().rstrip('=')}"
    else:
        claims |= {
            "expired": {"exp": int(time.time()) - 3600},
            "audience": {"aud": "https://elsewhere.example.org"},
            "issuer": {"iss": "https://elsewhere.example.org"},
        }[change]
        forged = jwt.encode({"alg": algorithm, "kid": "x"}, claims, key)
    assert refusal(with_token(testbed, forged)) == 401


def test_token_for_another_audience(testbed, identity):
    """Signed by the provider itself."""
    with identity.client() as http:
        answer = identity_flows.device_tokens(http, resource=OTHER_AUDIENCE)
    assert refusal(with_token(testbed, answer["access_token"])) == 401


def test_claims_in_headers_are_no_claims(testbed, identity):
    """Only the validated token's claims reach keystone."""
    url = f"{testbed.auth_url}/OS-FEDERATION/identity_providers/tests/protocols/openid/auth"
    headers = {"OIDC-sub": "eve", "OIDC-iss": identity.url, "OIDC-wlcg.groups": "/cms", "Remote-User": "eve"}
    request = urllib.request.Request(url, method="POST", headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


def test_unknown_provider(testbed, token):
    assert refusal(with_token(testbed, token, provider="nobody")) == 401


# ---- its program


def test_running_testbed_is_left_alone(testbed):
    before = testbed.status()
    done = testbed.run("up", check=False)
    assert done.returncode == 1 and "a testbed runs in" in done.stderr
    assert [one["pid"] for one in testbed.status()["services"]] == [one["pid"] for one in before["services"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--compute", "vmware"], "no driver vmware"),
        (["up", "--hosts", "0"], "--hosts: at least 1"),
        (["up", "--public", "203.0.113.0"], "--public"),
        (["up", "--shared", "198.18.1.0"], "--shared"),
        (["status"], "no testbed in"),
        (["oidc", "--oidc-issuer", "https://issuer.example.org"], "no testbed in"),
    ],
)
def test_wrong_use(tmp_path, arguments, message):
    done = Testbed(tmp_path / "new").run(*arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    for command in ("up", "down"):
        done = Testbed(tmp_path).run(command, check=False)
        assert done.returncode == 1 and "no testbed" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years"


@pytest.fixture
def processes(tmp_path):
    (tmp_path / "logs").mkdir()
    place = Place(state=tmp_path, cache=tmp_path, key="abcd", compute="fake", hosts=1, ports={})
    found = Processes(place)
    yield found
    found.stop()


def test_death_is_told_with_its_reason(processes):
    processes.start("nova", ["sh", "-c", "echo no cell is mapped; exit 3"], dict(os.environ))

    def died():
        try:
            processes.check()
        except TestbedError as error:
            return str(error)

    message = until(died, "the death is seen", 20)
    assert message.startswith("nova died") and "no cell is mapped" in message


def test_children_of_a_dead_process_are_stopped(processes, tmp_path):
    pids = tmp_path / "pids"
    processes.start("neutron", ["sh", "-c", f"sleep 600 & echo $! > {pids}; exit 0"], dict(os.environ))
    until(lambda: pids.exists() and pids.read_text().strip() and not processes.alive("neutron"), "the parent ends", 20)
    child = int(pids.read_text())
    assert start_time(child)
    processes.stop(2)
    until(lambda: not start_time(child), "the child ends", 20)


def test_number_of_another_process_is_left_alone(processes):
    innocent = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        known = {"nova": {"pid": innocent.pid, "start": start_time(innocent.pid) - 1}}
        processes.file.write_text(json.dumps(known))
        assert not processes.alive("nova")
        processes.stop(1)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


# ---- whole lives of it


def listening(ports):
    found = []
    for port in ports:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


def belonging(state):
    """Processes with the folder in their environment or their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if bytes(state) in text and int(folder.name) != os.getpid():
            found.append((folder.name, (folder / "cmdline").read_text().replace("\0", " ")))
    return found


@pytest.mark.nightly
def test_two_beside_each_other_and_a_crash():
    """Each has its own users and servers; one dies in part, and goes, and the other one does not notice."""
    with tempfile.TemporaryDirectory(prefix="ostb-") as folder:
        one, two = (Testbed(Path(folder, name)) for name in ("one", "two"))
        try:
            one.up(hosts=1)
            two.up(hosts=2)
            assert one.auth_url != two.auth_url
            one.connection().network.create_network(name="only-here")
            assert two.connection().network.find_network("only-here") is None
            (nova,) = [service for service in one.status()["services"] if service["name"] == "nova"]
            os.kill(nova["pid"], signal.SIGKILL)
            until(lambda: not next(s for s in one.status()["services"] if s["name"] == "nova")["alive"], "nova is dead")
            assert one.run("status", check=False).returncode == 1
            ports = Place.load(one.state).ports.values()
            one.down()
            assert not one.state.exists() and belonging(one.state) == [] and listening(ports) == []
            assert two.run("status").returncode == 0
            assert two.connection().network.find_network("public")
            one.up(hosts=1)  # a new one where another was: nothing of that is left
            assert one.connection().network.find_network("only-here") is None
        finally:
            one.down()
            two.down()


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_start_leaves_nothing(number):
    with tempfile.TemporaryDirectory(prefix="ostb-") as folder:
        testbed = Testbed(Path(folder, "state"))
        start = subprocess.Popen([PROGRAM, "up", "--state", testbed.state], stderr=subprocess.PIPE, text=True)
        until(lambda: (testbed.state / "logs" / "keystone.out").exists() or start.poll() is not None, "it starts")
        start.send_signal(number)
        start.communicate(timeout=DEADLINE)
        assert start.returncode in (130, -signal.SIGKILL)
        if number == signal.SIGKILL:  # nobody could tidy up: `down` does
            testbed.down()
            assert not testbed.state.exists()
        assert belonging(testbed.state) == []
        testbed.down()

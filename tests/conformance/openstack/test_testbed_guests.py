# SPDX-License-Identifier: Apache-2.0
"""The testbed's guests as a user of the cloud has them: three servers with floating IPs, and what becomes of them."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import ipaddress
import json
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from openstack_testbed import Testbed, testbed_fixture

sys.path.append(str(Path(__file__).parents[2] / "testbeds/openstack"))
from testbed_openstack import guests_library, guests_machine, guests_root, network
from testbed_openstack.place import Place
from testbed_openstack.processes import Processes

pytestmark = pytest.mark.nightly
testbed = testbed_fixture(compute="guests")
DEADLINE = 180  # seconds for anything of a guest
COUNT = 3


def test_a_range_with_the_mirror_in_it_is_refused(tmp_path):
    (source,) = guests_library.debian_sources(guests_root.SUITE) or pytest.skip("this machine has no Debian mirror")
    try:
        mirror = socket.gethostbyname(urllib.parse.urlsplit(source.split()[1]).hostname)
    except OSError as error:
        pytest.skip(f"this machine reaches its mirror by a proxy: {error}")
    cidr = ipaddress.ip_network(f"{mirror}/24", strict=False)
    for option in ("public", "shared"):
        state = tmp_path / option
        done = Testbed(state).run("up", "--compute", "guests", f"--{option}", str(cidr), check=False)
        assert done.returncode == 1 and f"--{option} gives it another range" in done.stderr and mirror in done.stderr
        assert "Traceback" not in done.stderr and not state.exists()


class Guest:
    """A server, and a shell on it by SSH, whose host key was known before it was there."""

    def __init__(self, folder, server, address):
        self.folder, self.server, self.address = folder, server, address

    def try_run(self, command, timeout=60):
        options = [f"UserKnownHostsFile={self.folder}/known_hosts", "StrictHostKeyChecking=yes", "ConnectTimeout=5"]
        ssh = ["ssh", "-F", "none", "-i", str(self.folder / "id"), *(f"-o{one}" for one in (*options, "BatchMode=yes"))]
        return subprocess.run(
            [*ssh, f"root@{self.address}", command], capture_output=True, text=True, timeout=timeout, check=False
        )

    def run(self, command, timeout=60):
        done = self.try_run(command, timeout)
        assert done.returncode == 0, f"{self.server.name}: {command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def wait(self, command="cloud-init status --wait >/dev/null; cloud-init status"):
        """Until SSH answers and the command succeeds; returns what it printed."""
        deadline = time.monotonic() + DEADLINE
        while True:
            done = self.try_run(command, DEADLINE)
            if done.returncode == 0:
                return done.stdout.strip()
            if time.monotonic() > deadline:
                said = done.stderr + done.stdout
                pytest.fail(f"{self.server.name}: no success of {command!r} in {DEADLINE} s: {said}")
            time.sleep(0.5)

    def reaches(self, address, port):
        program = f"import socket; print(socket.create_connection(({address!r}, {port}), 2).recv(4))"
        return self.try_run(f"python3 -c {shlex.quote(program)}").returncode == 0


class Project:
    """Networks and servers of one test run; `remove` takes them away again."""

    def __init__(self, cloud, folder):
        self.cloud, self.folder, self.tag = cloud, folder, secrets.token_hex(3)
        self.undo = contextlib.ExitStack()
        self.image, self.flavor = cloud.image.find_image("debian-12"), cloud.compute.find_flavor("m1.small")
        self.public = cloud.network.find_network("public")
        (folder / "known_hosts").touch()
        self.key = self.keygen("id")

    def keygen(self, name):
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        return path.read_text(), path.with_name(f"{name}.pub").read_text().strip()

    def network(self):
        net = self.cloud.network
        self.net = net.create_network(name=f"guests-{self.tag}")
        self.undo.callback(net.delete_network, self.net)
        self.subnet = net.create_subnet(network_id=self.net.id, ip_version=4, cidr="10.88.0.0/24", name=self.net.name)
        router = net.create_router(name=self.net.name, external_gateway_info={"network_id": self.public.id})
        self.undo.callback(net.delete_router, router)
        net.add_interface_to_router(router, self.subnet.id)
        self.undo.callback(net.remove_interface_from_router, router, self.subnet.id)
        self.group = net.create_security_group(name=self.net.name)
        self.undo.callback(net.delete_security_group, self.group)
        self.rule(protocol="tcp", port_range_min=22, port_range_max=22)
        self.rule(remote_group_id=self.group.id)

    def rule(self, **rule):
        make = self.cloud.network.create_security_group_rule
        return make(security_group_id=self.group.id, direction="ingress", ethertype="IPv4", **rule)

    def server(self, name, image=None):
        """A server with a floating IP, known by the key that its user data has."""
        net = self.cloud.network
        private, public = self.keygen(name)
        user_data = {
            "disable_root": False,
            "ssh_authorized_keys": [self.key[1]],
            "ssh_deletekeys": True,
            "ssh_keys": {"ed25519_private": private, "ed25519_public": public},
            "runcmd": ["echo done > /root/user-data"],
        }
        port = net.create_port(network_id=self.net.id, security_groups=[self.group.id])
        self.undo.callback(net.delete_port, port)
        floating = net.create_ip(floating_network_id=self.public.id, port_id=port.id)
        self.undo.callback(net.delete_ip, floating)
        server = self.cloud.compute.create_server(
            name=name, image_id=(image or self.image).id, flavor_id=self.flavor.id, networks=[{"port": port.id}],
            user_data=base64.b64encode(f"#cloud-config\n{json.dumps(user_data)}".encode()).decode(),
        )  # fmt: skip
        self.undo.callback(self.delete, server)
        with (self.folder / "known_hosts").open("a") as stream:
            stream.write(f"{floating.floating_ip_address} {public}\n")
        guest = Guest(self.folder, server, floating.floating_ip_address)
        guest.port = port
        return guest

    def status(self, guest, status):
        """Wait until the server has a status."""
        wait = self.cloud.compute.wait_for_server
        return wait(guest.server, status=status, failures=[], interval=0.5, wait=DEADLINE)

    def delete(self, server):
        self.cloud.compute.delete_server(server, ignore_missing=True)
        self.cloud.compute.wait_for_delete(server, interval=0.5, wait=DEADLINE)

    def remove(self):
        self.undo.close()


@pytest.fixture(scope="module")
def place(testbed):
    return Place.load(testbed.state)


@pytest.fixture(scope="module")
def project(testbed, tmp_path_factory):
    made = Project(testbed.connection("demo"), tmp_path_factory.mktemp("guests"))
    try:
        made.network()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def guests(project):
    """Three servers, asked for at once, when their first boot is over."""
    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        made = list(pool.map(project.server, [f"guest-{number}" for number in range(COUNT)]))
        list(pool.map(Guest.wait, made))
    return made


def test_first_boot_is_over_and_nothing_failed(guests):
    for guest in guests:
        assert guest.run("cloud-init status") == "status: done"
        assert guest.run("cat /root/user-data; hostname") == f"done\n{guest.server.name}"
        assert guest.run("systemctl is-system-running --wait") == "running"


def test_interface_is_what_neutron_says(guests, project):
    mtu = project.cloud.network.get_network(project.net).mtu
    for guest in guests:
        (link,) = json.loads(guest.run("ip -json address show eth0"))
        assert (link["address"], link["mtu"]) == (guest.port.mac_address, mtu)
        addresses = [one["local"] for one in link["addr_info"] if one["family"] == "inet"]
        assert addresses == [one["ip_address"] for one in guest.port.fixed_ips]


def test_packages_come_from_the_mirror(guests):
    assert "Err:" not in guests[0].run("apt-get update", timeout=DEADLINE)


def test_metadata_service_knows_who_asks(guests):
    for guest in guests:
        found = json.loads(guest.run("curl -sS --max-time 60 http://169.254.169.254/openstack/latest/meta_data.json"))
        assert found["uuid"] == guest.server.id


def test_security_group_from_outside_and_from_within(guests, project):
    first, second = guests[:2]
    inside = first.port.fixed_ips[0]["ip_address"]
    serve = "import socket; s = socket.create_server(('', 8000))\nwhile True: s.accept()[0].sendall(b'here')"
    first.run(f"systemd-run --unit served python3 -c {shlex.quote(serve)}")
    wait_until(lambda: second.reaches(inside, 8000), "a member of the group reaches port 8000")
    assert not outside_reaches(first.address, 8000)
    rule = project.rule(protocol="tcp", port_range_min=8000, port_range_max=8000)
    wait_until(lambda: outside_reaches(first.address, 8000), "a new rule opens port 8000")
    project.cloud.network.delete_security_group_rule(rule)
    wait_until(lambda: not outside_reaches(first.address, 8000), "its removal closes port 8000")


def test_kernel_variables_are_the_machines(guests):
    before = Path("/proc/sys/vm/swappiness").read_text()
    assert guests[0].try_run("sysctl -w vm.swappiness=7").returncode != 0
    assert Path("/proc/sys/vm/swappiness").read_text() == before
    assert guests[0].try_run("echo 1 > /proc/sys/net/ipv4/ip_forward").returncode != 0


def test_containers_run_in_a_guest(guests):
    guest = guests[1]
    packages = "podman crun busybox-static"
    guest.run("apt-get update", timeout=DEADLINE)
    install = f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages}"
    guest.run(install, timeout=DEADLINE)
    guest.run("mkdir -p /r/bin && cp /bin/busybox /r/bin/sh && tar -C /r -c . | podman import - example.org/small:1")
    run = "podman run --rm --network=host --cgroups=disabled --ulimit=host example.org/small:1 sh -c"
    assert guest.run(f"{run} 'echo inner' 2>&1").splitlines()[-1] == "inner"


def test_power_cycle_keeps_the_disk_and_loses_the_memory(guests, project):
    guest = guests[2]
    guest.run("touch /root/disk /run/memory")
    project.cloud.compute.stop_server(guest.server)
    project.status(guest, "SHUTOFF")
    assert guest.try_run("true").returncode == 255
    project.cloud.compute.start_server(guest.server)
    project.status(guest, "ACTIVE")
    guest.wait("test -e /root/disk && test ! -e /run/memory")


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_reboot_starts_everything_anew(guests, project, kind):
    guest = guests[2]
    guest.run("touch /run/memory")
    project.cloud.compute.reboot_server(guest.server, kind)
    guest.wait("test -e /root/disk && test ! -e /run/memory")
    project.status(guest, "ACTIVE")


def test_console_tells_of_the_boot(guests, project):
    said = project.cloud.compute.get_server_console_output(guests[0].server)["output"]
    assert "Reached target" in said


def test_guests_outlive_nova(guests, project, place):
    guest = guests[0]
    guest.run("touch /run/memory")
    processes = Processes(place)
    pid = processes.known()["nova"]["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")[:-1]
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
    wait_until(lambda: not processes.alive("nova"), "nova is gone")
    assert guest.run("ls /run/memory") == "/run/memory"
    processes.start("nova", command, dict(one.split("=", 1) for one in variables))
    wait_until(lambda: answers(project, guest), "nova answers again")
    project.status(guest, "ACTIVE")
    assert guest.run("ls /run/memory") == "/run/memory"
    project.cloud.compute.reboot_server(guest.server, "HARD")
    guest.wait("test ! -e /run/memory")
    project.status(guest, "ACTIVE")


def test_deleted_guest_leaves_nothing(project, place):
    guest = project.server("gone")
    guest.wait()
    machine = guests_machine.Guests(place)
    assert guest.server.id in machine.states()
    project.delete(guest.server)
    assert guest.server.id not in machine.states()
    assert not (machine.disks / guest.server.id).exists()
    assert machine.namespace(guest.server.id) not in network.present("ostb-")
    assert guest.server.id not in Path("/proc/self/mounts").read_text()
    assert guest.try_run("true").returncode == 255


def test_image_without_a_root_cannot_boot(project, tmp_path):
    image = upload(project, tmp_path / "empty", bytes(1 << 20), "raw")
    guest = project.server("rootless", image)
    project.status(guest, "ERROR")


def test_uploaded_disk_boots(project, place, tmp_path):
    root = (place.state / "guests" / "root").resolve()
    raw, disk, extra = tmp_path / "disk.raw", tmp_path / "disk.qcow2", tmp_path / "root"
    shell(f"mkdir {extra} && cp -a {root}/. {extra} && echo uploaded > {extra}/etc/origin")
    shell(f"truncate -s 1500M {raw} && echo ',,4f68bce3-e8cd-4db1-96e7-fbcaf984b709' | sfdisk -q -X gpt {raw}")
    shell(f"mkfs.ext4 -q -F -E offset=1048576 -d {extra} {raw} 1400M && qemu-img convert -O qcow2 {raw} {disk}")
    raw.unlink()
    guest = project.server("uploaded", upload(project, disk, None, "qcow2"))
    assert guest.wait("cat /etc/origin") == "uploaded"


def upload(project, path, content, kind):
    if content is not None:
        path.write_bytes(content)
    about = {"disk_format": kind, "container_format": "bare"}
    image = project.cloud.create_image(path.name, filename=str(path), wait=True, **about)
    project.undo.callback(project.cloud.image.delete_image, image.id)
    return image


def answers(project, guest):
    with contextlib.suppress(Exception):
        return project.cloud.compute.get_server(guest.server) is not None
    return False


def outside_reaches(address, port):
    program = f"import socket; print(socket.create_connection(({address!r}, {port}), 2).recv(4))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def shell(script):
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def wait_until(holds, what):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"not in {DEADLINE} s: {what}"
        time.sleep(0.2)

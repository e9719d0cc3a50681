#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The library beside a loop of openstack.cloud's modules and 20 threads of the SDK's create_server: one table.

All work on one testbed (nova's fake servers) in one run, each on a network and a security group of its own that are
there before the clock starts, and reach the same: ACTIVE servers, each on a port of its own with that group, key and
tags. (The loop's ports have no tags: its module sets none.) The loop is measured with a few servers, and its time per
server counts. API calls of the peers are counted by a proxy, apart from the clock, with a few servers.
Use a quiet machine. Run it with: tests/setup tests/bench/openstack/run.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openstack
from rich.console import Console
from rich.table import Table

from openstack_clients import PUBLIC_KEY, Deployment, Reality, hosts
from openstack_faults import FaultyCloud
from openstack_testbed import Testbed

THREADS = 20
FEW = 3
CARRIER = "ansible==12.3.0"  # carries openstack.cloud
TAGS = ["bench", "bench:run=1"]
IMAGE, FLAVOR = "debian-12", "m1.tiny"

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Ports
      openstack.cloud.port:
        cloud: demo
        name: "{prefix}-{{{{ item }}}}"
        network: "{network}"
        security_groups: ["{group}"]
      loop: "{{{{ range({count}) | list }}}}"
    - name: Servers
      openstack.cloud.server:
        cloud: demo
        name: "{prefix}-{{{{ item }}}}"
        image: {image}
        flavor: {flavor}
        nics: [{{port-name: "{prefix}-{{{{ item }}}}"}}]
        key_name: "{key}"
        tags: {tags}
        auto_ip: false
        timeout: 300
      loop: "{{{{ range({count}) | list }}}}"
"""


class Peers:
    """What the peers find: a network, a group and a key. connection: of the SDK."""

    def __init__(self, connection, name):
        self.connection, self.name = connection, name
        network = connection.network
        self.network = network.create_network(name=name)
        network.create_subnet(network_id=self.network.id, ip_version=4, cidr="10.99.0.0/22", name=name)
        self.group = network.create_security_group(name=name)
        network.create_security_group_rule(security_group_id=self.group.id, direction="ingress",
                                           remote_group_id=self.group.id)  # fmt: skip
        self.key = connection.compute.create_keypair(name=name, public_key=PUBLIC_KEY).name

    def clean(self):
        """Take away every server and port on the network, and then the rest."""
        self.empty()
        network = self.connection.network
        network.delete_network(self.network)
        network.delete_security_group(self.group)
        self.connection.compute.delete_keypair(self.key)

    def empty(self):
        servers = [s for s in self.connection.compute.servers() if s.name.startswith(self.name)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.connection.compute.delete_server, servers))
        for server in servers:
            self.connection.compute.wait_for_delete(server, interval=0.5, wait=300)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.connection.network.delete_port,
                          self.connection.network.ports(network_id=self.network.id)))  # fmt: skip


def threads(connection, peers, count):
    """The SDK from 20 threads that share a connection; the quickest way to wait that it has."""
    image = connection.image.find_image(IMAGE, ignore_missing=False).id
    flavor = connection.compute.find_flavor(FLAVOR, ignore_missing=False).id

    def one(number):
        name = f"{peers.name}-{number}"
        port = connection.network.create_port(
            name=name, network_id=peers.network.id, security_group_ids=[peers.group.id]
        )
        connection.network.set_tags(port, TAGS)
        server = connection.compute.create_server(
            name=name, image_id=image, flavor_id=flavor, networks=[{"port": port.id}], key_name=peers.key, tags=TAGS
        )
        return connection.compute.wait_for_server(server, interval=1, wait=900)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(count)))


def loop(peers, count, collections, clouds, scratch):
    """openstack.cloud, a task for all ports and one for all servers."""
    play = Path(scratch, "loop.yml")
    values = {"prefix": peers.name, "network": peers.name, "group": peers.name, "key": peers.key, "tags": TAGS}
    play.write_text(PLAY.format(count=count, image=IMAGE, flavor=FLAVOR, **values), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "OS_CLIENT_CONFIG_FILE": str(clouds),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    done = subprocess.run(["ansible-playbook", "-i", "localhost,", "-c", "local", str(play)], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"the loop failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def collection(folder):
    """Where the collection openstack.cloud is; fetched once."""
    folder = Path(folder)
    if not (folder / "ansible_collections/openstack/cloud/MANIFEST.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                            "--no-deps", "--dest", scratch, CARRIER], check=True)  # fmt: skip
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                prefix = "ansible_collections/openstack/cloud/"
                archive.extractall(folder, [name for name in archive.namelist() if name.startswith(prefix)])
        # The SDK of today does not import this by itself; the collection takes it as there.
        base = folder / prefix / "plugins/module_utils/openstack.py"
        text = base.read_text(encoding="utf-8")
        base.write_text(text.replace("import importlib\n", "import importlib\nimport openstack.version\n", 1))
    return folder


def complete(connection, prefix, count):
    """End the bench unless there are so many ACTIVE servers, each with a port of its own, a group and tags."""
    servers = [server for server in connection.compute.servers() if server.name.startswith(prefix)]
    ports = {port.device_id: port for port in connection.network.ports(device_owner="compute:nova")}
    for server in servers:
        if server.status != "ACTIVE" or not server.tags or not ports[server.id].security_group_ids:
            sys.exit(f"{server.name} is {server.status}, with tags {server.tags}")
    if len(servers) != count:
        sys.exit(f"{prefix}: {len(servers)} servers instead of {count}")


@contextlib.contextmanager
def clock(figures, name):
    print(f"{name} ...", file=sys.stderr)
    start = time.monotonic()
    yield
    figures[name] = time.monotonic() - start


def ours(testbed, reality, figures, count):
    """A life of a deployment with `count` servers."""
    deployment = Deployment(
        testbed.clouds_file,
        "bench",
        settings={"image": IMAGE, "flavor": FLAVOR, "cidr": "10.98.0.0/22", "floating_ips": "none"},
    )
    wanted = hosts(workers=count - 1)
    try:
        # The peers find their network; ours comes with one host, which is not counted.
        deployment.up(wanted[:1])
        with clock(figures, "create"):
            deployment.up(hosts(workers=count))
        figures["calls"] = sum(deployment.calls.values())
        complete(reality.connection, "bench-", count + 1)
        with clock(figures, "no change"):
            deployment.up(hosts(workers=count))
        figures["no change: calls"] = sum(deployment.calls.values())
        figures["no change: changing calls"] = deployment.changes()
        before = {server.id for server in reality.servers(deployment).values()}
        with clock(figures, "one more"):
            deployment.up(hosts(workers=count + 1))
        after = {server.id for server in reality.servers(deployment).values()}
        figures["one more: calls"] = sum(deployment.calls.values())
        figures["one more: servers touched"] = len(after ^ before)
        deployment.up(wanted)
        with clock(figures, "teardown"):
            deployment.down()
        figures["teardown: calls"] = sum(deployment.calls.values())
        figures["left over"] = len(reality.of(deployment))
        with clock(figures, "create from nothing"):
            deployment.up(wanted)
        figures["create from nothing: calls"] = sum(deployment.calls.values())
    finally:
        deployment.down()
    return figures


def peer(testbed, name, count, make):
    """(seconds for `count` servers, API calls a server)"""
    connection = testbed.connection("demo")
    peers = Peers(connection, name)
    try:
        figures = {}
        with clock(figures, f"{name}: {count} servers"):
            make(connection, peers, count, testbed.clouds_file)
        complete(connection, name, count)
        peers.empty()
        with FaultyCloud(testbed.auth_url) as proxy, tempfile.TemporaryDirectory() as scratch:
            clouds = proxy.clouds_file(testbed.clouds_file, Path(scratch, "clouds.yaml"))
            through = openstack.connection.Connection(
                config=openstack.config.OpenStackConfig(config_files=[str(clouds)], load_envvars=False).get_one("demo")
            )
            make(through, peers, FEW, clouds)
            calls = len(proxy.calls) / FEW
        return figures.popitem()[1], calls
    finally:
        peers.clean()


def rows(figures, options, loop_seconds, loop_calls, thread_seconds, thread_calls):
    """[(what, ours, loop, threads, target, reached)]"""
    n = options.servers
    per_loop = loop_seconds / options.loop
    table = [
        ("create: seconds", figures["create"], per_loop * n, thread_seconds, None, None),
        ("create: seconds a server", figures["create"] / n, per_loop, thread_seconds / n, None, None),
        ("times as fast as the loop", per_loop * n / figures["create"], None, None, ">= 5", lambda v: v >= 5),
        ("times as fast as the threads", thread_seconds / figures["create"], None, None, ">= 2", lambda v: v >= 2),
        ("API calls a server", figures["calls"] / n, loop_calls, thread_calls, "<= 3", lambda v: v <= 3),
        ("create from nothing, network too: seconds", figures["create from nothing"], None, None, None, None),
        ("create from nothing: API calls", figures["create from nothing: calls"], None, None, None, None),
        ("no change: seconds", figures["no change"], None, None, "< 5", lambda v: v < 5),
        ("no change: API calls", figures["no change: calls"], None, None, "< 10", lambda v: v < 10),
        ("no change: calls that change", figures["no change: changing calls"], None, None, "0", lambda v: v == 0),
        ("one more: seconds", figures["one more"], None, None, None, None),
        ("one more: servers touched", figures["one more: servers touched"], None, None, "1", lambda v: v == 1),
        ("one more: API calls", figures["one more: calls"], None, None, None, None),
        ("teardown: seconds", figures["teardown"], None, None, "< 30", lambda v: v < 30),
        ("teardown: API calls", figures["teardown: calls"], None, None, None, None),
        ("teardown: left over", figures["left over"], None, None, "0", lambda v: v == 0),
    ]
    return [(*row[:5], row[5](row[1]) if row[5] else None) for row in table]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--loop", type=int, default=10, help="how many servers the loop makes")
    cache = Path(os.environ.get("DODAS_CACHE") or "/var/cache/dodas")
    parser.add_argument("--collections", type=Path, metavar="DIR", default=cache / "collections" / CARRIER,
                        help="where the collection openstack.cloud is, or is put")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    collections = collection(options.collections)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        state = os.environ.get("OPENSTACK_TESTBED")
        testbed = Testbed(state or Path(scratch, "testbed"))
        if not state:
            stack.callback(testbed.down)
            testbed.up()
        reality = Reality(testbed.connection("demo"))
        _enough(testbed, reality)
        thread_figures = peer(testbed, "threads", options.servers, lambda c, p, n, _clouds: threads(c, p, n))
        figures = ours(testbed, reality, {}, options.servers)
        loop_figures = peer(
            testbed, "loop", options.loop, lambda _c, p, n, clouds: loop(p, n, collections, clouds, scratch)
        )
    table = Table("", "ours", f"loop of openstack.cloud ({options.loop} measured)", f"SDK, {THREADS} threads", "target",
                  "", title=f"{options.servers} servers")  # fmt: skip
    result = rows(figures, options, *loop_figures, *thread_figures)
    for what, *values, target, reached in result:
        cells = ["-" if v is None else str(v) if isinstance(v, int) else f"{v:.2f}" for v in values]
        table.add_row(what, *cells, target or "", {None: "", True: "reached", False: "MISSED"}[reached])
    Console(width=140).print(table)
    if options.json:
        names = ("ours", "loop", "threads", "target", "reached")
        document = {what: dict(zip(names, values, strict=True)) for what, *values in result}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(row[-1] is False for row in result))


def _enough(testbed, reality):
    """Quotas that are not in anybody's way."""
    project = reality.connection.current_project_id
    admin = testbed.connection("admin")
    admin.compute.update_quota_set(project, instances=1000, cores=-1, ram=-1, server_groups=100,
                                   server_group_members=1000)  # fmt: skip
    admin.network.update_quota(project, ports=2000, floating_ips=-1, networks=100, subnets=100, security_groups=100,
                               security_group_rules=2000)  # fmt: skip


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""All of nova in one process: conductor, scheduler, computes and both APIs, so that no message broker is needed."""

import nova.monkey_patch  # noqa: I001  before all else

import copy
import importlib
import shlex
import socket
import sys
import time
import urllib.request

import eventlet
import nova.conf
import nova.virt
import os_brick
import os_vif
from nova import config, context, objects, service, utils
from nova.compute import manager
from nova.compute import rpcapi as compute_rpcapi
from nova.conductor import rpcapi as conductor_rpcapi
from nova.network import neutron
from nova.objects import host_mapping
from nova.scheduler import rpcapi as scheduler_rpcapi
from neutronclient.v2_0 import client
from oslo_log import log as logging
from oslo_privsep import priv_context
from oslo_service import service as launcher

from testbed_openstack.place import Place

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


def await_services(place, seconds=120):
    """Computes end at once when they cannot log in."""
    deadline = time.monotonic() + seconds
    for name in ("keystone", "placement"):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", place.ports[name]), 1):
                    pass
                urllib.request.urlopen(place.url(name) + "/", timeout=10).close()
                break
            except OSError as error:
                if getattr(error, "code", None) == 300:  # keystone lists its versions so
                    break
                if time.monotonic() > deadline:
                    raise SystemExit(f"nova: {name} does not answer at {place.url(name)}: {error}") from None
                time.sleep(0.2)


def register(place):
    """Let nova find this package's driver, and let several hosts share one process."""
    module = importlib.import_module(f"testbed_openstack.{place.compute}")
    sys.modules["nova.virt.testbed"] = nova.virt.testbed = module
    # Each would look for an identity of its own in the one state_path.
    manager.ComputeManager._ensure_existing_node_identity = lambda self, ref: None


def remember_networks(seconds=10):
    """nova asks for a server's network seven times as administrator; neutron, the slowest here, answers one of them."""
    ask, answers = client.Client.show_network, {}

    def show_network(self, network, **parameters):
        if self.httpclient.auth is not neutron._ADMIN_AUTH:
            return ask(self, network, **parameters)
        key, now = (network, repr(sorted(parameters.items()))), time.monotonic()
        if key not in answers or answers[key][0] < now:
            for old in [one for one, (end, _) in answers.items() if end < now]:
                del answers[old]
            answers[key] = now + seconds, ask(self, network, **parameters)
        return copy.deepcopy(answers[key][1])

    client.Client.show_network = show_network


def map_hosts(place):
    """Computes take servers once their hosts are mapped to the cell; say when all of them do."""
    admin = context.get_admin_context()
    while len(objects.HostMappingList.get_all(admin)) < place.hosts:
        host_mapping.discover_hosts(admin, by_service=True)
        time.sleep(0.3)
    (place.state / "nova" / "ready").touch()


def main():
    place = Place.load()
    register(place)
    remember_networks()
    config.parse_args(sys.argv)
    logging.setup(CONF, "nova")
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    objects.register_all()
    os_brick.setup(CONF)
    os_vif.initialize()
    objects.Service.enable_min_version_cache()
    await_services(place)

    conductor = service.Service.create(binary="nova-conductor", topic=conductor_rpcapi.RPC_TOPIC, host="conductor")
    run = launcher.launch(CONF, conductor, restart_method="mutate")
    run.launch_service(
        service.Service.create(binary="nova-scheduler", topic=scheduler_rpcapi.RPC_TOPIC, host="scheduler")
    )
    for number in range(place.hosts):
        name = f"host{number + 1}"
        run.launch_service(
            service.Service.create(binary="nova-compute", topic=compute_rpcapi.RPC_TOPIC, host=name)
        )
    for api in ("osapi_compute", "metadata"):
        run.launch_service(service.WSGIService(api, use_ssl=False), workers=1)
    eventlet.spawn(map_hosts, place)
    run.wait()


if __name__ == "__main__":
    main()

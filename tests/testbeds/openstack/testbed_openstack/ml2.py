# SPDX-License-Identifier: Apache-2.0
"""neutron's mechanism driver: binds each port at once, without an agent, and lets a module render what changes.

With the compute driver `guests`, the module `network` makes the machine's networking as neutron's tables say.
"""

import os

import eventlet
from neutron_lib import constants, context
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins import constants as plugins
from neutron_lib.plugins import directory
from neutron_lib.plugins.ml2 import api
from oslo_log import log as logging

from testbed_openstack.place import Place

LOG = logging.getLogger(__name__)
CHANGING = (
    resources.NETWORK, resources.SUBNET, resources.PORT, resources.ROUTER, resources.ROUTER_INTERFACE,
    resources.ROUTER_GATEWAY, resources.FLOATING_IP, resources.SECURITY_GROUP, resources.SECURITY_GROUP_RULE,
)  # fmt: skip


class Driver(api.MechanismDriver):
    """Binds all ports as type `other`, and they are active."""

    @property
    def connectivity(self):
        return portbindings.CONNECTIVITY_L2

    def initialize(self):
        place = Place.load()
        if place.compute == "guests":
            from testbed_openstack import network

            self._renderer = Renderer(place, network.apply)

    def bind_port(self, context):
        segment = context.segments_to_bind[0]
        details = {portbindings.CAP_PORT_FILTER: True}
        context.set_binding(segment[api.ID], portbindings.VIF_TYPE_OTHER, details, status=constants.PORT_STATUS_ACTIVE)


class Renderer:
    """Calls `apply(place, view)` after each change, one call at a time, and again when one has failed."""

    PAUSE = 0.1  # s in which more changes may come
    AGAIN = 2.0  # s

    def __init__(self, place, apply):
        self._place, self._apply = place, apply
        self._pid, self._changed = None, None
        for resource in CHANGING:
            for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
                registry.subscribe(self.changed, resource, event)
        registry.subscribe(self.changed, resources.PROCESS, events.AFTER_INIT)

    def changed(self, resource, event, trigger, payload=None):
        if self._pid != os.getpid():  # neutron's server makes its API's process after this driver
            self._pid, self._changed = os.getpid(), eventlet.Event()
            eventlet.spawn(self._run)
        if not self._changed.ready():
            self._changed.send()

    def _run(self):
        while True:
            self._changed.wait()
            eventlet.sleep(self.PAUSE)
            self._changed = eventlet.Event()
            try:
                self._apply(self._place, view())
            except Exception:
                LOG.exception("the machine is not as neutron's tables say; again in %s s", self.AGAIN)
                eventlet.sleep(self.AGAIN)
                if not self._changed.ready():
                    self._changed.send()


def view():
    """All of neutron's tables that networking is made from, as its API shows them to an administrator."""
    admin = context.get_admin_context()
    core, routers = directory.get_plugin(), directory.get_plugin(plugins.L3)
    return {
        "networks": core.get_networks(admin),
        "subnets": core.get_subnets(admin),
        "ports": core.get_ports(admin),
        "routers": routers.get_routers(admin),
        "floatingips": routers.get_floatingips(admin),
        "security_groups": core.get_security_groups(admin),
    }

# SPDX-License-Identifier: Apache-2.0
"""How the things of a deployment are called in a cloud."""

from __future__ import annotations


class Names:
    """The names of deployment `name` with `uuid`."""

    def __init__(self, name, uuid):
        self.prefix = f"dodas-{name}"
        self.deployment = name
        self.uuid = uuid

    def server(self, host):
        return f"{self.deployment}-{host}"

    def port(self, host):
        return f"{self.prefix}-{host}"

    def shared(self, address):
        return f"{self.prefix}-shared-{address}"

    def volume(self, host, index):
        return f"{self.prefix}-{host}-{index}"

    def group(self, key):
        """A security group: of all `hosts`, or of the `front`."""
        return f"{self.prefix}-{key}"

    def server_group(self, node, policy):
        return f"{self.prefix}-{node}-{policy}-{self.uuid}"

    @property
    def network(self):
        """Also of the subnet and the router."""
        return self.prefix

    @property
    def interface(self):
        """The router's port on the network."""
        return f"{self.prefix}-router"

    @property
    def keypair(self):
        return f"{self.prefix}-{self.uuid}"

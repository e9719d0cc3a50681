# SPDX-License-Identifier: Apache-2.0
"""Where a deployment's issuer and credentials service are, and how this machine reaches them."""

from __future__ import annotations

import contextlib
import dataclasses
import socket

IDENTITY = "identity.service.consul"
CREDENTIALS = "credentials.service.consul"
IDENTITY_PORT, CREDENTIALS_PORT = 8443, 8444
EVALUATION_ISSUER = f"https://{IDENTITY}:{IDENTITY_PORT}"
CREDENTIALS_URL = f"https://{CREDENTIALS}:{CREDENTIALS_PORT}"
PORTS = {IDENTITY: IDENTITY_PORT, CREDENTIALS: CREDENTIALS_PORT}
PATIENCE = 2  # seconds until an instance must have answered


@dataclasses.dataclass(frozen=True)
class Services:
    """issuer: URL; own_iam: whether it is the site's own, and not the evaluation provider; credentials: URL, which is
    also the audience of tokens; authority: file of the CA that signed the cluster's web servers; resolve: {name:
    address} of those names that only the cluster knows; instances: {host: address} of the credentials service."""

    issuer: str
    own_iam: bool
    credentials: str
    authority: str
    resolve: dict
    instances: dict

    @property
    def at_issuer(self):
        """Options for requests to the issuer, as web.fetch takes them."""
        return {"cafile": None if self.own_iam else self.authority, "resolve": self.resolve}

    @property
    def at_credentials(self):
        """Options for requests to the credentials service."""
        return {"cafile": self.authority, "resolve": self.resolve}


def of(deployment, entry=None):
    """The Services of a deployment. Raises InputError for a source that cannot be read, DodasError without a way there.

    entry: what gives the address of a host instead of the deployment's own `entry`.
    """
    entry = entry or deployment.entry
    groups = deployment.groups()
    own = deployment.variable("identity_issuer", "identity", "credentials")
    asked = {CREDENTIALS: "credentials", **({} if own else {IDENTITY: "identity"})}
    hosts = {name: groups.get(group, ()) for name, group in asked.items()}
    entries = {host: entry(host, PORTS.values()) for one in hosts.values() for host in one}
    found = {name: {host: entries[host] for host in one if entries[host]} for name, one in hosts.items()}
    resolve = {name: _one_that_answers(list(found[name].values()), PORTS[name]) for name in found if found[name]}
    instances = found[CREDENTIALS]
    if not all(deployment.place(host).keeps_apps for host in instances):
        instances = {host: address for host, address in instances.items() if address == resolve[CREDENTIALS]}
    return Services(
        issuer=own or EVALUATION_ISSUER,
        own_iam=bool(own),
        credentials=CREDENTIALS_URL,
        authority=str(deployment.directory / "pki" / "ca.pem"),
        resolve=resolve,
        instances=instances,
    )


def _one_that_answers(addresses, port):
    """Of several hosts where a service may be one where it is; of one, that one."""
    for address in addresses if len(addresses) > 1 else ():
        with contextlib.suppress(OSError), socket.create_connection((address, port), PATIENCE):
            return address
    return addresses[0]

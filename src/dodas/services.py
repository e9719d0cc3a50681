# SPDX-License-Identifier: Apache-2.0
"""Where a deployment's issuer and credentials service are, and how this machine reaches them."""

from __future__ import annotations

import dataclasses

IDENTITY = "identity.service.consul"
CREDENTIALS = "credentials.service.consul"
EVALUATION_ISSUER = f"https://{IDENTITY}:8443"
CREDENTIALS_URL = f"https://{CREDENTIALS}:8444"


@dataclasses.dataclass(frozen=True)
class Services:
    """issuer: URL; own_iam: whether it is the site's own, and not the evaluation provider; credentials: URL, which is
    also the audience of tokens; resolve: {name: address} of those names that only the cluster knows."""

    issuer: str
    own_iam: bool
    credentials: str
    authority: str
    resolve: dict

    @property
    def at_issuer(self):
        """Options for requests to the issuer, as web.fetch takes them."""
        return {"cafile": None if self.own_iam else self.authority, "resolve": self.resolve}

    @property
    def at_credentials(self):
        """Options for requests to the credentials service."""
        return {"cafile": self.authority, "resolve": self.resolve}


def of(deployment):
    """The Services of a deployment. Raises InputError where its source cannot be read."""
    groups, addresses = deployment.groups(), deployment.addresses()
    first = {name: hosts[0] for name, hosts in groups.items() if hosts}
    found = {name: addresses.get(first.get(group)) for name, group in
             ((IDENTITY, "identity"), (CREDENTIALS, "credentials"))}  # fmt: skip
    own = deployment.variable("identity_issuer", "identity", "credentials")
    return Services(
        issuer=own or EVALUATION_ISSUER,
        own_iam=bool(own),
        credentials=CREDENTIALS_URL,
        authority=str(deployment.directory / "pki" / "ca.pem"),
        resolve={name: address for name, address in found.items() if address},
    )

# SPDX-License-Identifier: Apache-2.0
"""A person's browser, on a machine whose /etc/hosts knows the cluster's names."""

from __future__ import annotations

import ssl

import httpcore
import httpx


class _Hosts(httpcore.NetworkBackend):
    """Connects to the addresses given for some names; certificates are still checked against the names."""

    def __init__(self, hosts: dict[str, str]):
        self._hosts = hosts
        self._backend = httpcore.SyncBackend()

    def connect_tcp(self, host, *arguments, **options):
        return self._backend.connect_tcp(self._hosts.get(host, host), *arguments, **options)


def browser(url: str, hosts: dict[str, str], cafile: str) -> httpx.Client:
    """A client for a site, with cookies; hosts: {name: address}; cafile: the authority that was imported."""
    context = ssl.create_default_context(cafile=str(cafile))
    client = httpx.Client(base_url=url, trust_env=False, timeout=20, verify=context)
    client._transport._pool = httpcore.ConnectionPool(ssl_context=context, network_backend=_Hosts(hosts))
    return client

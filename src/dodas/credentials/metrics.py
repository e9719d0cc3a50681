# SPDX-License-Identifier: Apache-2.0
"""What /metrics shows."""

from __future__ import annotations

import typing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if typing.TYPE_CHECKING:
    from dodas.credentials.service import Service

PREFIX = "dodas_credentials"


class Metrics:
    """Counts of one service."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests_total",
            "Requests for credentials by kind and outcome",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "Time to answer a request for credentials",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=self.registry,
        )
        self._gauge("ca_remaining_seconds", "Until the CA ends", service.authority.remaining)
        self._gauge("crl_remaining_seconds", "Until the revocation list ends", service.authority.crl_remaining)
        self._gauge("healthy", "1 while what is served lasts", lambda: float(service.health()[0]))
        self._gauge("delegations", "Delegations that are held", lambda: service.delegations.health()["delegations"])
        renewals = Gauge(
            f"{PREFIX}_delegation_renewals", "Renewals of delegations", ("outcome",), registry=self.registry
        )
        for outcome in service.delegations.renewals:
            renewals.labels(outcome).set_function(lambda outcome=outcome: service.delegations.renewals[outcome])
        age = Gauge(
            f"{PREFIX}_jwks_age_seconds",
            "Since the keys of an issuer were fetched; NaN: never",
            ("issuer",),
            registry=self.registry,
        )
        for issuer in service.verifier.status():
            age.labels(issuer).set_function(lambda issuer=issuer: _age(service.verifier.status()[issuer]))

    def _gauge(self, name: str, text: str, function) -> None:
        Gauge(f"{PREFIX}_{name}", text, registry=self.registry).set_function(function)


def _age(status: dict) -> float:
    return float("nan") if status["jwks_age"] is None else status["jwks_age"]

# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with Mesos. No message holds a secret."""

from __future__ import annotations


class MesosError(Exception):
    """Mesos could not be made to do it; the message names the master or the agent, and the reason."""


class NoLeader(MesosError):
    """No master answered as the leader before the deadline; the message names each with its last problem."""


class Denied(MesosError):
    """The master wants a principal and a secret (401), these are wrong, or they may not do that (403)."""


class Refused(MesosError):
    """The leader refused a request; the message has its words."""

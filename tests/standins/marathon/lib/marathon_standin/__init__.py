# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Marathon: its REST API and its way to start, watch and replace apps, on the stand-in for Mesos."""

VERSION = "1.11.24"  # of the Marathon whose answers these are
BUILD = "dodas stand-in, not Marathon"

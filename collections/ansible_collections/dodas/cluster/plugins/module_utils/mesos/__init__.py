# SPDX-License-Identifier: Apache-2.0
"""Mesos: who leads, which agents there are and what they have, and how an agent leaves. Standard library only."""

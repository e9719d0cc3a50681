# SPDX-License-Identifier: Apache-2.0
"""A real OpenStack on one machine, for tests: what starts it, and its drivers for nova, neutron and keystone."""

# SPDX-License-Identifier: Apache-2.0
"""Engines give a container its root file system and start processes in it."""

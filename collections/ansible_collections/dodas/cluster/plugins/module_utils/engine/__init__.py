# SPDX-License-Identifier: Apache-2.0
"""Engines keep the containers of apps running. An app is a Marathon app definition, whatever the engine."""

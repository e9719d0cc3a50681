# SPDX-License-Identifier: Apache-2.0
"""Marathon's REST API: a client, app definitions, deployments. Runs on managed hosts: standard library only."""

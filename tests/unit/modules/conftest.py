# SPDX-License-Identifier: Apache-2.0
"""Ansible, and a provider."""

import pytest

from ansible_runtime import Ansible
from identity_runtime import Identity

AGENT_SECRET = "agent-secret-0123456789"


@pytest.fixture(scope="module")
def ansible(tmp_path_factory):
    return Ansible(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    running = Identity(tmp_path_factory.mktemp("identity"))
    grants = ["device_code", "refresh_token"]
    scopes = ["openid", "offline_access", "x509", "wlcg.groups"]
    # oidc-agent has clients with secrets only
    running.settings["clients"].append({"id": "agent", "grants": grants, "scopes": scopes})
    running.secrets["agent"] = AGENT_SECRET
    running.start()
    yield running
    running.stop()

# SPDX-License-Identifier: Apache-2.0
"""What role consul refuses before it touches the host."""

import uuid

import yaml

from consul_runtime import ROOT, policies
from role_runtime import refusals

GOOD = {
    "consul_servers": ["front-1"],
    "consul_addresses": {"front-1": "192.0.2.1"},
    "consul_gossip_key": "bm90IGEgc2VjcmV0",
    "consul_tokens": {name: str(uuid.uuid4()) for name in ("management", "agent", "dns")},
}
WRONG_TOKENS = {
    "missing": ({"dns": None}, "there twice: dns"),
    "default": ({"agent": "changeme"}, "there twice: agent"),
    "zeros": ({"dns": "00000000-0000-0000-0000-000000000002"}, "there twice: dns"),
    "unknown": ({"balancr": str(uuid.uuid4())}, "there twice: balancr"),
    "twice": ({"balancer": GOOD["consul_tokens"]["dns"]}, "there twice: balancer"),
}


def test_what_is_refused_is_named(tmp_path):
    cases = {
        "two-servers": {**GOOD, "consul_servers": ["front-1", "front-2"]},
        "half-tls": {**GOOD, "consul_tls_certificate": "something"},
        "no-archive": {**GOOD, "consul_source": "archive"},
    }
    for name, (tokens, _message) in WRONG_TOKENS.items():
        given = {key: value for key, value in {**GOOD["consul_tokens"], **tokens}.items() if value}
        cases[name] = {**GOOD, "consul_tokens": given}
    said = refusals(tmp_path, "consul", cases)
    assert "group consul has 2" in said["two-servers"]
    assert "consul_tls_certificate and consul_tls_key together" in said["half-tls"]
    assert "consul_archive_checksum" in said["no-archive"]
    for name, (_tokens, message) in WRONG_TOKENS.items():
        assert said[name].endswith(message), (name, said[name])
        assert not any(token in said[name] for token in cases[name]["consul_tokens"].values())


def test_tokens_and_policies_have_the_same_uses():
    described = yaml.safe_load((ROOT / "roles/consul/meta/argument_specs.yml").read_text())
    text = described["argument_specs"]["main"]["options"]["consul_tokens"]["description"]
    assert [name for name in policies() if name not in text] == []

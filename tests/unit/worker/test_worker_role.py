# SPDX-License-Identifier: Apache-2.0
"""Role worker: which pool a worker joins and as what, several on one host, and what is refused."""

import re

import pytest

import role_values
from ansible_collections.dodas.cluster.plugins.module_utils.engine import definition
from ansible_runtime import Ansible

GIVEN = {
    "worker_condor_host": "front-1.node.consul", "worker_pool_domain": "tier3.dodas",
    "worker_hostname": "worker-1.node.consul", "worker_http_proxy": "http://squid.service.consul:3128",
    "worker_probe_url": "http://conditions.service.consul:8088/health", "worker_deployment": "tier3",
    "worker_join_key": "A" * 43 + "=", "worker_credentials_url": "https://credentials.service.consul:8444",
}  # fmt: skip
SSL = {
    "worker_outside_host": "pool.example.org:9620", "worker_outside_ccb": "ccb.example.org:9618",
    "worker_outside_ca": "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
    "worker_outside_mapping": [
        {"subject": r"/DC=org/DC=example/CN=pool\\.example\\.org", "identity": "condor@pool"},
        {"subject": "/DC=org/DC=example/CN=schedd[0-9]+", "identity": "schedd@pool"},
    ],
}  # fmt: skip
TOKEN = {
    "worker_outside_host": "pool.example.org", "worker_outside_ccb": "ccb.example.org:9618",
    "worker_outside_authentication": "idtokens", "worker_outside_token": "eyJ.secret.x",
}  # fmt: skip
NAMES = ("_worker_app", "_worker_files", "_worker_wrong")


REFUSED = [
    ({"worker_outside_ccb": "a:1"}, "worker_outside_ccb is given, and worker_outside_host is empty"),
    ({"worker_outside_token": "eyJ"}, "worker_outside_token is given, and worker_outside_host is empty"),
    ({**SSL, "worker_outside_ca": ""}, "worker_outside_ca is empty"),
    ({**SSL, "worker_outside_mapping": []}, "worker_outside_mapping is empty"),
    ({**SSL, "worker_outside_token": "eyJ"}, "worker_outside_token is given, and is of no use"),
    ({**TOKEN, "worker_outside_token": ""}, "worker_outside_token is empty"),
    ({**TOKEN, "worker_outside_ca": "/x"}, "worker_outside_ca is given, and is of no use"),
    ({**SSL, "worker_outside_host": "a b"}, "worker_outside_host: a b is no host"),
    ({**SSL, "worker_outside_ccb": "a:b"}, "worker_outside_ccb: a:b is no host"),
    ({**SSL, "worker_outside_ca": "x"}, "worker_outside_ca is neither a path nor PEM"),
    ({**SSL, "worker_outside_mapping": [{"subject": "/CN=a b", "identity": "a@b"}]}, "worker_outside_mapping[0]"),
    ({**SSL, "worker_outside_mapping": [{"subject": "/CN=a", "identity": "a"}]}, "worker_outside_mapping[0]"),
    ({"worker_instances": 2}, "worker_instances is 2"),
    ({"worker_cvmfs_repositories": ["a.b"]}, "worker_cvmfs is empty"),
    ({"worker_siteconf": "x"}, "worker_siteconf: x"),
    ({"worker_cms_site": 'a"; b'}, "worker_cms_site"),
]
CASES = {
    "own": {},
    "certificates": SSL,
    "directory": {**SSL, "worker_outside_ca": "/cvmfs/grid.cern.ch/etc/grid-security/certificates"},
    "without_ccb": {**SSL, "worker_outside_ccb": ""},
    "token": {**TOKEN, "worker_outside_host": "a.example.org:9620?sock=collector, b.example.org"},
    "site": {
        "worker_cms_site": "T3_IT_Dodas", "worker_cvmfs": "/cvmfs", "worker_siteconf": "/etc/cvmfs/SITECONF",
        "worker_cvmfs_repositories": ["cms.cern.ch", "grid.cern.ch"],
    },
    "several": {"worker_sandbox": True, "worker_instances": 4, "worker_drain_seconds": 600},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the role makes of each case, by its name or its place in the list."""
    ansible = Ansible(tmp_path_factory.mktemp("ansible"), ANSIBLE_ROLES_PATH="roles")
    every = {**CASES, **{i: case for i, (case, _words) in enumerate(REFUSED)}}
    given = [{**GIVEN, **case} for case in every.values()]
    return dict(zip(every, role_values.evaluate(ansible, "worker", given, *NAMES), strict=True))


def files(shown):
    return {one["path"].rpartition("/")[2]: one for one in shown["_worker_files"]}


def settings(shown):
    """What a file of HTCondor says, as far as it is one name and a value a line; later ones count."""
    text = files(shown)["condor_config"]["content"]
    return dict(re.findall(r"^(\w+) *= *(.*)$", text, re.M))


def test_a_worker_of_the_clusters_own_pool(made):
    shown = made["own"]
    found = settings(shown)
    assert (found["CONDOR_HOST"], found["START"], found["TRUST_UID_DOMAIN"]) == ("front-1.node.consul", "True", "True")
    assert (found["SHARED_PORT_PORT"], found["STARTD_NAME"]) == ("9618", "localhost")
    assert found["AUTH_SSL_CLIENT_CAFILE"] == "/etc/dodas/tls/ca.pem"
    assert not {"CCB_ADDRESS", "CERTIFICATE_MAPFILE", "CMSSite", "SEC_TOKEN_DIRECTORY"} & set(found)
    assert set(files(shown)) == {"condor_config", "renew.json", "join_key", "udocker.conf", "registries.pem"}
    app = definition.parse(shown["_worker_app"])
    assert ("/var/lib/dodas/worker", "/var/lib/dodas/worker", "RW") in app.volumes
    assert (app.ports, app.kill_grace, app.env["WORKER_DRAIN_SECONDS"]) == ([("startd", 9618, "tcp")], 10, "0")


def test_an_outside_pool_by_certificates(made):
    one, other = made["certificates"], made["directory"]
    found = settings(one)
    assert settings(made["without_ccb"])["CCB_ADDRESS"] == "$(COLLECTOR_HOST)"
    assert (found["CONDOR_HOST"], found["CCB_ADDRESS"]) == ("pool.example.org:9620", "ccb.example.org:9618")
    assert found["TRUST_UID_DOMAIN"] == "False", "its users are nobody here"
    assert found["ALLOW_DAEMON"].endswith(", condor@pool, schedd@pool")
    assert found["AUTH_SSL_CLIENT_CAFILE"] == "/etc/dodas/worker/outside.pem"
    assert files(one)["outside.pem"]["content"] == SSL["worker_outside_ca"]
    lines = files(one)["mapfile"]["content"].splitlines()
    assert lines[1:] == ["SSL ^/DC=org/DC=example/CN=schedd[0-9]+$ schedd@pool", "FS (.*) \\1"]
    assert settings(other)["AUTH_SSL_CLIENT_CADIR"] == "/cvmfs/grid.cern.ch/etc/grid-security/certificates"
    assert "AUTH_SSL_CLIENT_CAFILE" not in settings(other)


def test_an_outside_pool_by_a_token(made):
    shown = made["token"]
    found = settings(shown)
    assert found["SEC_DEFAULT_AUTHENTICATION_METHODS"] == found["SEC_CLIENT_AUTHENTICATION_METHODS"] == "FS, IDTOKENS"
    assert found["SEC_TOKEN_DIRECTORY"] == "/etc/dodas/worker/tokens" and "CERTIFICATE_MAPFILE" not in found
    token = files(shown)["outside"]
    assert (token["path"], token["mode"]) == ("/etc/dodas/worker/tokens/outside", "0600")
    assert "secret" not in str(shown["_worker_app"]) and "secret" not in files(shown)["condor_config"]["content"]


def test_a_site_of_cms(made):
    shown = made["site"]
    found = settings(shown)
    assert found["GLIDEIN_Site"] == '"T3_IT_Dodas"'
    assert found["START"] == "stringListMember($(GLIDEIN_Site), TARGET.DESIRED_Sites) =?= True"
    assert "CMSSite" in found["STARTD_ATTRS"] and found["CMSSite"] == "$(GLIDEIN_Site)"
    assert "/etc/cvmfs/SITECONF" in found["SINGULARITY_BIND_EXPR"]
    app = definition.parse(shown["_worker_app"])
    assert app.env["WORKER_CVMFS"] == "cms.cern.ch grid.cern.ch"
    assert {("/cvmfs", "/cvmfs", "RO"), ("/etc/cvmfs/SITECONF", "/etc/cvmfs/SITECONF", "RO")} <= set(app.volumes)


def test_several_on_a_host(made):
    shown = made["several"]
    found = settings(shown)
    assert found["SHARED_PORT_PORT"] == "$ENV(PORT0)"
    assert found["STARTD_NAME"] == found["MASTER_NAME"] == "localhost-$ENV(PORT0)@$(NETWORK_HOSTNAME)"
    app = shown["_worker_app"]
    assert (app["instances"], app["taskKillGracePeriodSeconds"], app["portDefinitions"][0]["port"]) == (4, 610, 0)
    assert all(one["containerPath"] != "/var/lib/dodas/worker" for one in app["container"]["volumes"])


def test_what_fits_together_is_not_refused(made):
    assert {name: made[name]["_worker_wrong"] for name in CASES if made[name]["_worker_wrong"]} == {}


@pytest.mark.parametrize(("place", "words"), [(i, words) for i, (_case, words) in enumerate(REFUSED)])
def test_what_does_not_fit_together_is_named(made, place, words):
    wrong = made[place]["_worker_wrong"] or ""
    assert words in wrong
    assert "eyJ" not in wrong, "a token is no word of an error"

# SPDX-License-Identifier: Apache-2.0
"""What a site can get wrong about a Mesos cluster: refused before anything starts, naming the variable."""

import json

import pytest

from ansible_runtime import Ansible

NAME = "nope"
CHECKSUM = f"sha256:{64 * '0'}"
# Good ones, so that the bad one is what is refused.
SOURCES = {
    "mesos_source": "archive", "mesos_archive": "/mesos.tar.gz", "mesos_archive_checksum": CHECKSUM,
    "marathon_source": "archive", "marathon_archive": "/marathon.tar.gz", "marathon_archive_checksum": CHECKSUM,
}  # fmt: skip
REPOSITORY = {"cvmfs_repositories": '["cms.cern.ch"]'}
WITHOUT_KEYS = {"cern.ch": {"servers": ["http://front-1/cvmfs/@fqrn@"]}}


@pytest.fixture
def template(dodas):
    return dodas.root / "templates/cms-mesos.yaml"


@pytest.fixture
def refused(dodas, template, tmp_path):
    """Runs `up`, which must refuse; what it said on standard error."""

    def refused(inputs, variables=None, source=template):
        options = [word for name, value in inputs.items() for word in ("-p", f"{name}={value}")]
        if variables:
            path = tmp_path / "variables.json"
            path.write_text(json.dumps(variables), encoding="utf-8")
            options += ["--vars", str(path)]
        done = dodas("up", str(source), "--yes", "--name", NAME, *options, status=None)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    yield refused
    assert NAME not in [one["name"] for one in dodas.json("list")]
    assert not (dodas.home / "deployments" / NAME).exists()
    assert not (dodas.home / "local/storage").exists()  # no container, no volume


@pytest.mark.parametrize(
    ("name", "value"),
    [("masters", 2), ("masters", 4), ("masters", 0), ("agents", 0), ("balancers", 3), ("workers", -1),
     ("cvmfs_quota_mb", 999), ("mesos_source", "git")],
)  # fmt: skip
def test_a_value_that_its_input_does_not_take(refused, name, value):
    error = refused({**SOURCES, name: value})
    assert str(value) in error and len(error.splitlines()) == 1
    assert name in error or name.split("_", 1)[1] in error


@pytest.mark.parametrize(
    ("inputs", "variables", "reason"),
    [
        ({}, {"load_balancer_password": "ChangeMeChangeMe"}, "load_balancer_password: must be no default one"),
        ({}, {"marathon_http_password": "changeme"}, "marathon_http_password: must be no default one"),
        ({}, {"registry_password": "password"}, "registry_password: must be no default one"),
        ({}, {"mesos_operator_secret": "secret"}, "mesos_operator_secret: must be no default one"),
        ({"worker_cpus": 8, "agent_cpus": 4}, {}, "worker_cpus is 8, and no agent offers more than 4"),
        ({"worker_memory_mb": 8192, "agent_memory_mb": 4096}, {}, "worker_memory_mb is 8192, and no agent offers more"),
        ({"cvmfs_repositories": '["sft.example.org"]'}, {}, "cvmfs_repositories: there is no key for sft.example.org"),
        (REPOSITORY, {"cvmfs_origins": WITHOUT_KEYS}, "cvmfs_origins[cern.ch] has no keys"),
        (REPOSITORY, {"cvmfs_proxies": []}, "cvmfs_proxies is empty"),
        (REPOSITORY, {"cvmfs_proxies": [""]}, "cvmfs_proxies: ''"),
        (REPOSITORY, {"cvmfs_quota_mb": 500}, "cvmfs_quota_mb is 500"),
        ({"mesos_archive_checksum": "md5:0"}, {}, "mesos_archive_checksum"),
        ({"mesos_source": "package"}, {}, "mesos_key_checksum"),
        ({"condor_host": "collector.example.org"}, {}, "worker_outside_ca is empty"),
        ({"squid_cache_mb": 64}, {}, "squid_cache_mb: must be larger than squid_memory_mb"),
    ],
)  # fmt: skip
def test_variables_that_make_no_cluster(refused, inputs, variables, reason):
    assert reason in refused({**SOURCES, **inputs}, variables)


def test_two_apps_on_one_port(refused, template, tmp_path):
    text, right = template.read_text(encoding="utf-8"), "        cache_mb: { get_input: squid_cache_mb }\n"
    assert right in text
    source = tmp_path / "site.yaml"
    source.write_text(text.replace(right, f"{right}        port: 8088\n"), encoding="utf-8")
    assert "squid_port and conditions_port are both 8088" in refused(SOURCES, source=source)


APP = {"id": "/site/cache", "cmd": "exec cache", "cpus": 2, "mem": 64, "portDefinitions": [{"port": 3128}]}
AGENT = {"hostname": "agent-1", "resources": {"cpus": 4, "mem": 1024}}


@pytest.mark.parametrize(
    ("apps", "reason"),
    [
        ([{**APP, "constraints": [["hostname", "UNIQ"]]}],
         "app /site/cache: constraints[0]: unknown operator 'UNIQ': there are UNIQUE"),
        (['{"id": "/site/cache", "cmd": "exec cache",}'], "JSON, line 1, column 43: trailing comma"),
        ([APP, {**APP, "id": "/site/door"}], "app /site/door: service port 3128 is that of app /site/cache"),
        ([{**APP, "cpus": 8}], "app /site/cache: cpus: no agent has 8 cpus: the largest, agent-1, has 4"),
        ([{**APP, "instance": 2}], "app /site/cache: instance: unknown field; did you mean instances?"),
    ],
)  # fmt: skip
def test_definitions_are_refused_before_marathon_is_asked(apps, reason, tmp_path):
    nobody = {"urls": ["http://127.0.0.1:1"], "agents": [AGENT], "timeout": 5}
    result = Ansible(tmp_path).play(("dodas.cluster.marathon_app", {**nobody, "apps": apps})).results[0]
    assert result["failed"] and reason in result["msg"]

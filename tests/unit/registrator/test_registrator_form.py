# SPDX-License-Identifier: Apache-2.0
"""What of an app and its tasks is written into Consul's catalogue."""

import json

import pytest

from registrator_runtime import library

registrator = library()
HOSTS = registrator.Hosts({"worker-1": "10.0.0.11", "worker-2": "10.0.0.12"})


def app(*tasks, name="/dodas/squid", **more):
    return {"id": name, "version": "2026-01-01T00:00:00.000Z", "labels": {}, "tasks": list(tasks), **more}


def task(name="squid.1", host="worker-1.node.consul", **more):
    return {"id": name, "host": host, "state": "TASK_RUNNING", "ports": [31000], **more}


def written(*apps, known=None, hosts=HOSTS, reserved=()):
    return registrator.registrations(apps, hosts, known or {}, reserved)


def one(*apps, **more):
    return next(iter(written(*apps, **more).values()))


def status(*apps, **more):
    check = one(*apps, **more)["Check"]
    return check["Status"], check["Output"]


def test_a_task_is_a_service_on_a_node_of_its_host_apps():
    labels = {"HAPROXY_GROUP": "external,internal", "HAPROXY_0_PORT": "80", "a.b": "no key for Consul", "consul-x": "1"}
    definitions = [{"port": 3128, "name": "proxy"}, {"port": 0}]
    found = written(app(task(ports=[31000, 31005]), labels=labels, portDefinitions=definitions))
    assert found == {("worker-1-apps", "squid.1"): {
        "Node": "worker-1-apps", "Address": "10.0.0.11", "NodeMeta": {"managed-by": "dodas-registrator"},
        "Service": {
            "ID": "squid.1", "Service": "squid", "Address": "10.0.0.11", "Port": 31000,
            "Tags": ["app", "external", "internal"],
            "Meta": {"HAPROXY_GROUP": "external,internal", "HAPROXY_0_PORT": "80", "app": "/dodas/squid",
                     "task": "squid.1", "host": "worker-1", "ports": "31000,31005", "service_ports": "3128,0",
                     "since": "2026-01-01T00:00:00.000Z"},
        },
        "Check": {"CheckID": "health:squid.1", "Name": "health", "ServiceID": "squid.1", "Status": "passing",
                  "Output": "runs, and has no health check"},
    }}  # fmt: skip


def test_what_consul_would_refuse_of_labels_is_left_out():
    labels = {f"label{i:02}": "x" for i in range(80)} | {"long": "x" * 513, "app": "not this"}
    meta = one(app(task(), labels=labels))["Service"]["Meta"]
    assert len(meta) == 64
    assert "long" not in meta
    assert meta["app"] == "/dodas/squid"


@pytest.mark.parametrize(
    ("labels", "names"),
    [({}, {"squid"}), ({"consul": "proxy"}, {"proxy"}), ({"consul": ""}, set()), ({"consul": "a.b"}, set()),
     ({"consul": "Proxy"}, set()), ({"consul": "-a"}, set()), ({"consul": "marathon"}, set()),
     ({"consul": "x" * 64}, set())],
)  # fmt: skip
def test_the_name_is_the_last_part_of_the_id_or_what_the_label_says(labels, names):
    found = written(app(task(), labels=labels), reserved=["marathon"])
    assert {entry["Service"]["Service"] for entry in found.values()} == names


@pytest.mark.parametrize(
    ("definition", "ports"),
    [({"container": {"portMappings": [{"containerPort": 80, "servicePort": 8080}, {"containerPort": 81}]}}, "8080,0"),
     ({"container": {"docker": {"portMappings": [{"servicePort": 9}]}}}, "9"), ({"container": None}, ""), ({}, "")],
)  # fmt: skip
def test_service_ports_are_those_of_the_definition(definition, ports):
    assert one(app(task(), **definition))["Service"]["Meta"]["service_ports"] == ports


def test_a_task_without_ports_is_known_all_the_same():
    assert one(app(task(ports=[])))["Service"]["Port"] == 0


@pytest.mark.parametrize(
    "state", ["TASK_STAGING", "TASK_STARTING", "TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_LOST", "TASK_GONE"]
)
def test_what_does_not_run_is_not_there(state):
    assert written(app(task(state=state))) == {}


CHECKED = {"healthChecks": [{"protocol": "MESOS_TCP"}]}
ALIVE, DEAD = {"alive": True}, {"alive": False, "lastFailureCause": "connection refused"}


@pytest.mark.parametrize(
    ("checks", "state", "expected"),
    [({}, {}, ("passing", "runs, and has no health check")),
     (CHECKED, {}, ("critical", "was not checked yet")),
     (CHECKED, {"healthCheckResults": [ALIVE]}, ("passing", "healthy")),
     (CHECKED, {"healthCheckResults": [DEAD]}, ("critical", "connection refused")),
     (CHECKED, {"healthCheckResults": [{"alive": False}]}, ("critical", "unhealthy")),
     ({"healthChecks": [{}, {}]}, {"healthCheckResults": [ALIVE]}, ("critical", "was not checked yet")),
     ({"healthChecks": [{}, {}]}, {"healthCheckResults": [ALIVE, DEAD]}, ("critical", "connection refused")),
     (CHECKED, {"healthCheckResults": [ALIVE], "state": "TASK_KILLING"}, ("critical", "is being stopped")),
     (CHECKED, {"healthCheckResults": [ALIVE], "state": "TASK_UNREACHABLE"},
      ("critical", "its host is not reached by Mesos"))],
)  # fmt: skip
def test_health_is_marathons(checks, state, expected):
    assert status(app(task(**state), **checks)) == expected


def test_a_marathon_that_knows_no_results_yet_changes_none():
    healthy = app(task(healthCheckResults=[ALIVE]), **CHECKED)
    known = written(healthy)
    fresh = app(task(healthCheckResults=[]), **CHECKED)
    assert written(fresh, known=known) == known
    assert status(fresh) == ("critical", "was not checked yet")


def test_tasks_on_a_dead_host_are_critical():
    hosts = registrator.Hosts(HOSTS.addresses, dead=["worker-1"])
    assert status(app(task()), hosts=hosts) == ("critical", "worker-1 does not answer Consul")
    assert status(app(task(host="worker-2")), hosts=hosts)[0] == "passing"


@pytest.mark.parametrize(
    ("host", "place"),
    [("worker-1", ("worker-1", "10.0.0.11")), ("worker-1.node.consul", ("worker-1", "10.0.0.11")),
     ("10.0.0.12", ("worker-2", "10.0.0.12")), ("10.0.0.99", ("ip-10-0-0-99", "10.0.0.99")),
     ("localhost", ("localhost", "127.0.0.1")), ("nobody.invalid", None)],
)  # fmt: skip
def test_hosts_are_found_by_name_and_address(host, place):
    assert HOSTS.find(host) == place


def test_a_task_whose_host_cannot_be_found_any_more_stays_as_it_was():
    known = written(app(task()))
    assert written(app(task(host="nobody.invalid")), known=known) == known
    assert written(app(task(host="nobody.invalid"))) == {}


def test_since_is_when_the_app_came_first():
    known = written(app(task("squid.1")))
    later = app(task("squid.2"), version="2026-02-02T00:00:00.000Z")
    assert one(later, known=known)["Service"]["Meta"]["since"] == "2026-01-01T00:00:00.000Z"
    assert one(later)["Service"]["Meta"]["since"] == "2026-02-02T00:00:00.000Z"


def test_a_configuration_that_others_can_read_is_refused(tmp_path, capsys, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({}))
    path.chmod(0o640)
    monkeypatch.setattr("sys.argv", ["dodas_registrator.py", str(path)])
    with pytest.raises(SystemExit) as ended:
        registrator.main()
    assert ended.value.code == 2
    assert "config.json: others may read it" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""The stand-in for Marathon before a foreign client (PyPI's `marathon`), and before what Marathon's API documents.

DODAS_MARATHON_URL=http[s]://USER:PASSWORD@HOST:PORT runs what is no matter of this cluster's agents with a real
Marathon instead, one for these tests alone: in the end all its apps are removed.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from marathon import MarathonClient
from marathon.exceptions import ConflictError, MarathonHttpError, NotFoundError
from marathon.models import MarathonApp, MarathonGroup, MarathonHealthCheck

from identity_runtime import make_certificate
from mesos_runtime import STANDINS, Agent, Marathon, Masters, Zookeeper, call, freeze, thaw, wait_for
from ports import free_port

# The client was written for a Python that had this name.
collections.Iterable = collections.abc.Iterable

FOLDER = STANDINS / "marathon"
sys.path.insert(0, str(FOLDER / "lib"))

from marathon_standin import offers  # noqa: E402

SLEEP = "exec sleep 600"
SERVE = "exec python3 -m http.server --bind 127.0.0.1 $PORT0"
REAL = os.environ.get("DODAS_MARATHON_URL", "")


class Real:
    """A real Marathon, as far as tests use what mesos_runtime.Marathon has."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.credentials = (parts.username, parts.password) if parts.username else None
        self.url = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        self.urls = [self.url]

    def call(self, path, method=None, body=None):
        return call(self.url + path, method, body, credentials=self.credentials)


@pytest.fixture(scope="module")
def cluster():
    """ZooKeeper, a master and two agents."""
    if REAL:
        pytest.skip("needs agents of its own")
    with (
        Zookeeper() as zookeeper,
        Masters(zookeeper, 1) as masters,
        Agent(masters, attributes="rack:one;zone:a", resources="cpus:4;mem:2000;disk:500;ports:[31000-31099]"),
        Agent(masters, attributes="rack:two", resources="cpus:2;mem:1000;disk:500;ports:[31100-31199]"),
    ):
        yield zookeeper, masters


@pytest.fixture(scope="module")
def marathon(request):
    if REAL:
        yield Real(REAL)
        return
    with Marathon(*request.getfixturevalue("cluster")) as found:
        yield found


@pytest.fixture
def client(marathon):
    """The foreign client; afterwards nothing is left of what a test did with it."""
    found = MarathonClient(marathon.urls, *(marathon.credentials or ()), timeout=20)
    yield found
    for one in found.list_deployments():
        with contextlib.suppress(MarathonHttpError):
            found.delete_deployment(one.id, force=True)
    found.delete_group("/", force=True)
    wait_for(lambda: not found.list_deployments() and not found.list_tasks(), "all tasks are gone", 60)


def finish(client, deadline=60):
    """Wait until no deployment is under way."""
    wait_for(lambda: not client.list_deployments(), "the deployments end", deadline)


def tasks(client, app_id):
    """The ids of an app's running tasks."""
    return {one.id for one in client.list_tasks(app_id) if one.state == "TASK_RUNNING"}


def sleeper(**more):
    return MarathonApp(**{"cmd": SLEEP, "cpus": 0.1, "mem": 16, "instances": 1, **more})


def post(marathon, value, path="/v2/apps", method="POST"):
    return marathon.call(path, method, value if isinstance(value, bytes) else json.dumps(value).encode())


def minimal(**more):
    return {"id": "/app", "cmd": SLEEP, "cpus": 0.1, "mem": 16, **more}


def follow(marathon):
    """A list that grows by each event, as the foreign client understands it."""
    seen, stream = [], MarathonClient(marathon.urls, *(marathon.credentials or ()))

    def read():
        with contextlib.suppress(OSError, ValueError):  # when the instance ends
            for event in stream.event_stream():
                seen.append(event)

    threading.Thread(target=read, daemon=True).start()
    wait_for(lambda: seen, "the stream is attached")
    return seen


# What an app goes through


def test_an_app_is_started_scaled_changed_and_removed(client):
    app = client.create_app("/one/app", sleeper(instances=2, labels={"owner": "ann"}))
    assert (app.id, app.instances, len(app.deployments)) == ("/one/app", 2, 1)
    finish(client)
    found = client.get_app("/one/app", embed_tasks=True, embed_counts=True)
    assert (found.tasks_running, found.tasks_staged, len(found.tasks)) == (2, 0, 2)
    assert all(one.started_at and one.staged_at and one.slave_id and one.host for one in found.tasks)
    first = tasks(client, "/one/app")

    client.scale_app("/one/app", instances=3)
    finish(client)
    assert first < tasks(client, "/one/app")
    scaled = client.get_app("/one/app")
    assert scaled.version_info.last_scaling_at > scaled.version_info.last_config_change_at

    client.scale_app("/one/app", delta=-2)
    finish(client)
    [left] = tasks(client, "/one/app")
    assert left in first  # the youngest go first

    assert client.update_app("/one/app", MarathonApp(env={"A": "b"}))["deploymentId"]
    finish(client)
    assert left not in tasks(client, "/one/app")
    assert client.get_app("/one/app").env == {"A": "b"}
    assert client.get_app("/one/app").labels == {"owner": "ann"}  # what an update does not name stays

    assert len(client.list_versions("/one/app")) == 4
    oldest = client.list_versions("/one/app")[-1]
    assert client.get_version("/one/app", oldest).instances == 2
    client.rollback_app("/one/app", oldest)
    finish(client)
    assert client.get_app("/one/app").env == {} and len(tasks(client, "/one/app")) == 2

    client.delete_app("/one/app")
    finish(client)
    with pytest.raises(NotFoundError, match="App '/one/app' does not exist"):
        client.get_app("/one/app")
    assert client.list_tasks() == []


def test_an_update_that_changes_nothing_restarts_nothing(client, marathon):
    value = minimal(instances=2, portDefinitions=[{"port": 0}], healthChecks=[], labels={})
    post(marathon, value)
    finish(client)
    before, version = tasks(client, "/app"), client.get_app("/app").version
    answer = post(marathon, value, "/v2/apps/app", "PUT")
    assert answer.status == 200 and set(answer.json) == {"version", "deploymentId"}
    finish(client)
    assert tasks(client, "/app") == before
    assert client.get_app("/app").version == version


def test_a_restart_replaces_all_tasks(client):
    client.create_app("/app", sleeper(instances=2))
    finish(client)
    before = tasks(client, "/app")
    assert client.restart_app("/app")["deploymentId"]
    finish(client)
    after = tasks(client, "/app")
    assert len(after) == 2 and not before & after


def test_what_marathon_fills_in(client, marathon):
    post(marathon, {"id": "squid", "container": {"docker": {"image": "none/such"}}, "instances": 0,
                    "healthChecks": [{"protocol": "MESOS_HTTP", "path": "/"}, {"protocol": "HTTP"}]})  # fmt: skip
    finish(client)
    app = marathon.call("/v2/apps/squid").json["app"]
    [port] = app["portDefinitions"]
    assert 10000 <= port["port"] < 20000
    version = app["version"]
    assert app == {
        "id": "/squid", "acceptedResourceRoles": ["*"], "backoffFactor": 1.15, "backoffSeconds": 1, "cpus": 1,
        "container": {"type": "DOCKER", "volumes": [], "docker": {
            "image": "none/such", "forcePullImage": False, "parameters": [], "privileged": False}},
        "disk": 0, "executor": "", "gpus": 0, "instances": 0, "killSelection": "YOUNGEST_FIRST", "labels": {},
        "maxLaunchDelaySeconds": 300, "mem": 128, "networks": [{"mode": "host"}],
        "portDefinitions": [{"port": port["port"], "name": "default", "protocol": "tcp"}], "requirePorts": False,
        "role": "*", "unreachableStrategy": {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0},
        "upgradeStrategy": {"maximumOverCapacity": 1, "minimumHealthCapacity": 1}, "version": version,
        "versionInfo": {"lastScalingAt": version, "lastConfigChangeAt": version},
        "healthChecks": [
            {"protocol": "MESOS_HTTP", "path": "/", "portIndex": 0, "gracePeriodSeconds": 300, "intervalSeconds": 60,
             "maxConsecutiveFailures": 3, "timeoutSeconds": 20, "delaySeconds": 15, "ipProtocol": "IPv4"},
            {"protocol": "HTTP", "portIndex": 0, "gracePeriodSeconds": 300, "intervalSeconds": 60,
             "maxConsecutiveFailures": 3, "timeoutSeconds": 20, "delaySeconds": 15, "ignoreHttp1xx": False},
        ],
        "tasksStaged": 0, "tasksRunning": 0, "tasksHealthy": 0, "tasksUnhealthy": 0, "deployments": [], "tasks": [],
    }  # fmt: skip


def test_deprecated_fields_become_their_successors(client, marathon):
    post(marathon, minimal(ports=[0, 8080], instances=0))
    found = client.get_app("/app")
    assert [one.port for one in found.port_definitions][1] == 8080
    docker = {"image": "none", "network": "BRIDGE", "portMappings": [{"containerPort": 80}]}
    post(marathon, minimal(id="/bridge", container={"docker": docker}, instances=0))
    app = marathon.call("/v2/apps/bridge").json["app"]
    assert app["networks"] == [{"mode": "container/bridge"}]
    [mapping] = app["container"]["portMappings"]
    assert (mapping["hostPort"], mapping["containerPort"]) == (0, 80) and 10000 <= mapping["servicePort"] < 20000
    assert "network" not in app["container"]["docker"] and "portDefinitions" not in app


def test_a_task_knows_its_ports_and_its_app(cluster, client):
    client.create_app("/dodas/app", sleeper(env={"MINE": "x"}, port_definitions=[
        {"port": 3128, "name": "proxy"}, {"port": 0}]))  # fmt: skip
    finish(client)
    [task] = client.list_tasks("/dodas/app")
    assert len(task.ports) == 2 and all(31000 <= port < 31200 for port in task.ports)
    assert task.service_ports[0] == 3128 and task.app_id == "/dodas/app"
    pids = subprocess.run(["pgrep", "-f", "sleep 600"], capture_output=True, text=True, check=True).stdout.split()
    found = [text for pid in pids if f"MESOS_TASK_ID={task.id}" in (text := environment_of(pid))]
    assert found, "the task's process"
    seen = dict(line.split("=", 1) for line in found[0].split("\0") if "=" in line)
    assert seen["PORT0"] == seen["PORT"] == seen["PORT_PROXY"] == seen["PORT_3128"] == str(task.ports[0])
    assert seen["PORTS"] == ",".join(str(port) for port in task.ports)
    assert (seen["MARATHON_APP_ID"], seen["MARATHON_APP_RESOURCE_CPUS"]) == ("/dodas/app", "0.1")
    assert (seen["MINE"], seen["HOST"]) == ("x", "127.0.0.1")


def environment_of(pid):
    with contextlib.suppress(OSError):
        return Path("/proc", pid, "environ").read_text(errors="replace")
    return ""


def test_require_ports_takes_the_ports_that_are_asked_for(cluster, client):
    client.create_app("/app", sleeper(require_ports=True, port_definitions=[{"port": 31150}]))
    finish(client)
    [task] = client.list_tasks("/app")
    assert task.ports == [31150]


def test_lists_are_filtered(client):
    client.create_app("/a/one", sleeper(instances=0, labels={"tier": "front", "x": "1"}))
    client.create_app("/a/two", sleeper(instances=0, cmd="exec sleep 601", labels={"tier": "back"}))

    def ids(**given):
        return [one.id for one in client.list_apps(**given)]

    assert ids(app_id="one") == ["/a/one"] and ids(cmd="601") == ["/a/two"]
    assert ids(label="tier==front") == ids(label="x") == ids(label="tier in (front, side)") == ["/a/one"]
    assert ids(label="tier!=front") == ids(label="tier notin (front)") == ["/a/two"]
    assert ids(label="tier==front,tier==back") == []


def test_updates_are_partial_or_whole(client, marathon):
    post(marathon, minimal(instances=0, env={"A": "1"}, labels={"owner": "ann"}))
    finish(client)
    version = client.get_app("/app").version

    assert post(marathon, {"env": {"B": "2"}}, "/v2/apps/app", "PATCH").status == 200
    finish(client)
    app = client.get_app("/app")
    assert (app.env, app.labels, app.instances) == ({"B": "2"}, {"owner": "ann"}, 0)
    whole = {"cmd": SLEEP, "instances": 0}
    assert post(marathon, whole, "/v2/apps/app?partialUpdate=false", "PUT").status == 200
    finish(client)
    app = client.get_app("/app")
    assert (app.env, app.labels, app.cpus, app.mem) == ({}, {}, 1, 128)

    answer = post(marathon, {"version": version, "instances": 2}, "/v2/apps/app", "PUT")
    assert answer.status == 422 and "'version' field may only be combined" in answer.text
    assert post(marathon, {"version": "2001-01-01T00:00:00.000Z"}, "/v2/apps/app", "PUT").status == 404
    assert post(marathon, {"version": version}, "/v2/apps/app", "PUT").status == 200
    assert client.get_app("/app").env == {"A": "1"}


def test_several_apps_are_one_deployment(client, marathon):
    post(marathon, minimal(id="/there", instances=0))
    finish(client)
    answer = post(marathon, [minimal(id="/new"), {"id": "/there", "instances": 1}], "/v2/apps", "PUT")
    assert answer.status == 200
    [deployment] = client.list_deployments()
    assert (deployment.id, set(deployment.affected_apps)) == (answer.json["deploymentId"], {"/new", "/there"})
    assert answer.headers["Marathon-Deployment-Id"] == deployment.id
    finish(client)
    assert {one.app_id for one in client.list_tasks()} == {"/new", "/there"}
    assert post(marathon, [{"id": "/none", "instances": 1}], "/v2/apps", "PATCH").status == 404
    assert post(marathon, [{"instances": 1}], "/v2/apps", "PUT").json["details"][0]["path"] == "(0)/id"
    # One that is wrong refuses all.
    wrong = [{"id": "/new", "instances": 3}, {"id": "/there", "cpus": -1}]
    assert post(marathon, wrong, "/v2/apps", "PUT").status == 422
    assert client.get_app("/new").instances == 1


def test_what_is_embedded(client, marathon):
    client.create_app("/in/app", sleeper())
    finish(client)
    [app] = marathon.call("/v2/apps?embed=apps.taskStats&embed=apps.tasks").json["apps"]
    assert app["taskStats"]["totalSummary"]["stats"]["counts"] == {
        "staged": 0, "running": 1, "healthy": 0, "unhealthy": 0}  # fmt: skip
    assert app["tasks"][0]["appId"] == "/in/app" and "tasksRunning" not in app
    [app] = marathon.call("/v2/apps").json["apps"]
    assert app["tasksRunning"] == 1 and app["deployments"] == [] and "tasks" not in app
    assert client.get_app("/in/app", embed_task_stats=True).task_stats.total_summary.stats.counts.running == 1
    assert [one["id"] for one in marathon.call("/v2/apps/in/*").json["*"]] == ["/in/app"]
    [group] = marathon.call("/v2/groups?embed=group.groups&embed=group.apps.counts").json["groups"]
    assert group["apps"][0]["tasksRunning"] == 1
    assert marathon.call("/v2/groups?embed=group.apps").json["groups"] == []
    assert marathon.call("/v2/tasks?status=staging").json == {"tasks": []}
    assert len(marathon.call("/v2/tasks?status=running").json["tasks"]) == 1


# What is refused


@pytest.mark.parametrize(
    ("value", "path", "status"),
    [
        ({"cmd": SLEEP}, "/id", 400),
        (minimal(cpus="1"), "/cpus", 400),
        (minimal(instances=1.5), "/instances", 400),
        (minimal(healthChecks=[{"protocol": "SMOKE"}]), "/healthChecks(0)/protocol", 400),
        (minimal(container={"docker": {}}), "/container/docker/image", 400),
        (minimal(upgradeStrategy={"minimumHealthCapacity": 1}), "/upgradeStrategy/maximumOverCapacity", 400),
        (minimal(id="/Bad_Id"), "/id", 422),
        (minimal(instances=-1), "/instances", 422),
        (minimal(upgradeStrategy={"minimumHealthCapacity": 2, "maximumOverCapacity": 0}),
         "/upgradeStrategy/minimumHealthCapacity", 422),
        (minimal(constraints=[["hostname", "NEAR"]]), "/constraints(0)", 422),
        (minimal(constraints=[["hostname", "UNIQUE", "x"]]), "/constraints(0)", 422),
        (minimal(constraints=[["hostname", "LIKE", "("]]), "/constraints(0)", 422),
        (minimal(constraints=[["hostname", "MAX_PER"]]), "/constraints(0)", 422),
        ({"id": "/app"}, "/", 422),
        (minimal(args=["a"]), "/", 422),
        (minimal(healthChecks=[{"protocol": "HTTP", "portIndex": 3}]), "/healthChecks(0)", 422),
        (minimal(portDefinitions=[{"port": 80}, {"port": 80}]), "/portDefinitions", 422),
        (minimal(secrets={"a": {"source": "b"}}), "/secrets", 422),
        (minimal(container={"docker": {"image": "x"}, "volumes": [{"containerPath": "/x", "mode": "RW"}]}),
         "/container/volumes(0)/hostPath", 422),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path(marathon, value, path, status):
    answer = post(marathon, value)
    assert (answer.status, [one["path"] for one in answer.json["details"]]) == (status, [path])
    assert answer.json["message"] == ("Invalid JSON" if status == 400 else "Object is not valid")
    assert all(one["errors"] and isinstance(one["errors"][0], str) for one in answer.json["details"])
    assert marathon.call("/v2/apps").json == {"apps": []}


@pytest.mark.parametrize("text", [b'{"id": "/app", "cmd": "x y",}', b'{"id": "/app", "cpus": NaN}', b"", b"[]", b"{"])
def test_json_is_strict(marathon, text):
    assert post(marathon, text).status == 400


def test_an_app_is_created_once(client, marathon):
    client.create_app("/app", sleeper(instances=0))
    with pytest.raises(ConflictError, match=r"An app with id \[/app\] already exists."):
        client.create_app("/app", sleeper(instances=0))
    answer = post(marathon, minimal(id="/app/below"))
    assert answer.status == 422 and "same identifier" in answer.json["details"][0]["errors"][0]


def test_what_is_not_there(client, marathon):
    for path, message in (
        ("/v2/apps/none", "App '/none' does not exist"), ("/v2/apps/none/tasks", "App '/none' does not exist"),
        ("/v2/apps/none/versions", "App '/none' does not exist"), ("/v2/groups/none", "Group '/none' does not exist"),
    ):  # fmt: skip
        answer = marathon.call(path)
        assert (answer.status, answer.json) == (404, {"message": message})
    answer = marathon.call("/v2/deployments/none", "DELETE")
    assert (answer.status, answer.json) == (404, {"message": "DeploymentPlan none does not exist"})
    assert marathon.call("/v2/apps/none", "PATCH", {"instances": 1}).status == 404
    assert marathon.call("/v2/nothing").status == 404
    assert marathon.call("/v2/info", "POST", {}).status == 405


def test_the_id_in_the_url_wins(client, marathon):
    answer = post(marathon, minimal(id="/other", instances=0), "/v2/apps/mine", "PUT")
    assert answer.status == 201
    assert [one.id for one in client.list_apps()] == ["/mine"]


# Deployments


def test_a_deployment_locks_its_apps(client, marathon):
    client.create_app("/big", sleeper(cpus=64))
    wait_for(lambda: client.list_queue(), "it waits for an offer")
    [stuck] = client.list_deployments()
    assert (stuck.affected_apps, stuck.current_step, stuck.total_steps) == (["/big"], 2, 2)
    assert [one.action for one in stuck.current_actions] == ["ScaleApplication"]
    answer = post(marathon, {"cpus": 32}, "/v2/apps/big", "PUT")
    assert (answer.status, answer.json["deployments"]) == (409, [{"id": stuck.id}])
    assert answer.json["message"].startswith("App is locked by one or more deployments.")
    client.update_app("/big", MarathonApp(cpus=0.1), force=True)
    finish(client)
    assert len(tasks(client, "/big")) == 1


def test_a_deployment_is_rolled_back_or_only_ended(client):
    client.create_app("/app", sleeper(env={"A": "1"}))
    finish(client)
    before = tasks(client, "/app")
    deployment = client.update_app("/app", MarathonApp(cpus=64))["deploymentId"]
    assert client.delete_deployment(deployment)["deploymentId"] != deployment
    finish(client)
    assert client.get_app("/app").cpus == 0.1 and client.get_app("/app").env == {"A": "1"}
    assert len(tasks(client, "/app")) == 1

    deployment = client.update_app("/app", MarathonApp(cpus=64))["deploymentId"]
    assert client.delete_deployment(deployment, force=True) == {}
    finish(client)
    assert client.get_app("/app").cpus == 64
    assert len(tasks(client, "/app")) == 1 and before  # a mix of old and new stays

    client.create_app("/new", sleeper(cpus=64))
    [deployment] = client.list_deployments()
    client.delete_deployment(deployment.id)
    finish(client)
    assert [one.id for one in client.list_apps()] == ["/app"]


def test_a_restart_without_room_is_ended(cluster, client):
    client.create_app("/app", sleeper(cpus=3))
    finish(client)
    before = tasks(client, "/app")
    deployment = client.restart_app("/app")["deploymentId"]
    wait_for(lambda: client.list_queue(), "there is no room for a second one")
    assert client.delete_deployment(deployment)["deploymentId"]
    finish(client)
    assert tasks(client, "/app") == before and client.list_queue() == []


def test_the_queue_says_why_nothing_starts(cluster, client, marathon):
    client.create_app("/big", sleeper(cpus=64, mem=50))
    client.create_app("/there", sleeper(constraints=[["rack", "LIKE", "nine"]]))

    def reasons():
        found = {one.app.id: one for one in client.list_queue(embed_last_unused_offers=True)}
        ready = set(found) == {"/big", "/there"} and all(len(one.last_unused_offers) == 2 for one in found.values())
        return found if ready else None

    found = wait_for(reasons, "both apps were offered both agents")
    big = found["/big"]
    assert (big.count, big.delay.overdue) == (1, True)
    assert {tuple(one["reason"]) for one in big.last_unused_offers} == {("InsufficientCpus",)}
    cpus = {resource["scalar"] for one in big.last_unused_offers for resource in one["offer"]["resources"]
            if resource["name"] == "cpus"}  # fmt: skip
    assert cpus == {2, 4}
    summary = {one["reason"]: (one["declined"], one["processed"]) for one in
               big.processed_offers_summary["rejectSummaryLastOffers"]}  # fmt: skip
    assert summary["InsufficientCpus"] == (2, 2) and summary["InsufficientMemory"] == (0, 0)
    assert summary["UnfulfilledConstraint"] == (0, 2)
    assert {tuple(one["reason"]) for one in found["/there"].last_unused_offers} == {("UnfulfilledConstraint",)}
    assert client.list_queue()[0].last_unused_offers is None


def test_an_upgrade_keeps_the_capacity_that_it_promises(client, marathon):
    check = MarathonHealthCheck(protocol="MESOS_HTTP", path="/", interval_seconds=1, grace_period_seconds=30,
                                delay_seconds=0)  # fmt: skip
    client.create_app("/web", sleeper(
        cmd=SERVE, instances=3, health_checks=[check], port_definitions=[{"port": 0}],
        upgrade_strategy={"minimumHealthCapacity": 0.6, "maximumOverCapacity": 0.4}))  # fmt: skip
    finish(client)
    assert client.get_app("/web").tasks_healthy == 3
    before, seen, ended = tasks(client, "/web"), [], threading.Event()

    def watch():
        while not ended.wait(0.02):
            seen.append([one["healthCheckResults"][0]["alive"] if "healthCheckResults" in one else False
                         for one in marathon.call("/v2/apps/web/tasks").json["tasks"]
                         if one["state"] != "TASK_KILLING"])  # fmt: skip

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.update_app("/web", MarathonApp(env={"NEW": "1"}))
        finish(client)
    finally:
        ended.set()
        watcher.join()
    assert not before & tasks(client, "/web")
    assert min(sum(one) for one in seen) >= 2 and max(len(one) for one in seen) <= 4


def test_what_never_gets_healthy_holds_the_deployment(client, marathon):
    seen = follow(marathon)
    check = MarathonHealthCheck(protocol="COMMAND", command="false", interval_seconds=1,
                                grace_period_seconds=0, max_consecutive_failures=2, delay_seconds=0)  # fmt: skip
    client.create_app("/ill", sleeper(health_checks=[check]))
    failure = wait_for(lambda: client.get_app("/ill", embed_last_task_failure=True).last_task_failure, "it is killed")
    assert failure.app_id == "/ill" and failure.task_id
    assert client.list_deployments()
    wait_for(lambda: "unhealthy_instance_kill_event" in [one.event_type for one in seen], "the event of it")
    assert "failed_health_check_event" in [one.event_type for one in seen]


def test_what_fails_is_left_alone_for_longer_and_longer(client, marathon):
    client.create_app("/fails", sleeper(cmd="exit 3", backoff_seconds=2, backoff_factor=10))

    def delays():  # none while one of its tasks is running
        return [one.delay.time_left_seconds for one in client.list_queue()]

    wait_for(lambda: max(delays(), default=0) > 3, "the second delay", 30)
    assert client.get_app("/fails", embed_last_task_failure=True).last_task_failure.state == "TASK_FAILED"
    client.reset_delay("/fails")
    wait_for(lambda: max(delays(), default=0) <= 2, "a new start")
    assert marathon.call("/v2/queue/none/delay", "DELETE").status == 404


def test_groups_start_in_the_order_of_their_dependencies(client, marathon):
    check = {"protocol": "MESOS_HTTP", "intervalSeconds": 1, "delaySeconds": 0, "gracePeriodSeconds": 30}
    group = {"id": "/dodas", "apps": [
        minimal(id="worker", dependencies=["front"]),
        minimal(id="front", dependencies=["/dodas/store"], cmd=SERVE, healthChecks=[check]),
        minimal(id="store"),
    ]}  # fmt: skip
    answer = post(marathon, group, "/v2/groups", "PUT")
    assert answer.status == 200
    steps = [[(one.action, one.app) for one in step.actions] for step in client.list_deployments()[0].steps]
    apps = ("/dodas/front", "/dodas/store", "/dodas/worker")
    assert steps == [
        [("StartApplication", one) for one in apps],
        [("ScaleApplication", "/dodas/store")], [("ScaleApplication", "/dodas/front")],
        [("ScaleApplication", "/dodas/worker")],
    ]  # fmt: skip
    finish(client)
    found = client.get_group("/dodas")
    assert [one.id for one in found.apps] == ["/dodas/worker", "/dodas/front", "/dodas/store"]
    started = {one.app_id: one.started_at for one in client.list_tasks()}
    assert started["/dodas/store"] < started["/dodas/front"] < started["/dodas/worker"]

    client.scale_group("/dodas", 2)
    finish(client)
    assert {one.instances for one in client.list_apps()} == {2}
    versions = marathon.call("/v2/groups/dodas/versions").json
    post(marathon, {"id": "/dodas", "apps": group["apps"][2:]}, "/v2/groups", "PUT")
    finish(client)
    assert [one.id for one in client.list_apps()] == ["/dodas/store"]
    post(marathon, {"version": versions[0]}, "/v2/groups/dodas", "PUT")
    finish(client)
    assert {one.id: one.instances for one in client.list_apps()} == dict.fromkeys(apps, 2)
    client.delete_group("/dodas")
    finish(client)
    assert client.list_apps() == []


def test_groups_are_refused_as_a_whole(client, marathon):
    answer = post(marathon, {"id": "/a", "apps": [minimal(id="/b/app")]}, "/v2/groups", "PUT")
    assert (answer.status, answer.json["details"]) == (422, [{"path": "/apps(0)/id", "errors": [
        "identifier /b/app is not child of /a. Hint: use relative paths."]}])  # fmt: skip
    apps = [minimal(id="x", dependencies=["y"]), minimal(id="y", dependencies=["x"])]
    answer = post(marathon, {"id": "/a", "apps": apps}, "/v2/groups", "PUT")
    assert answer.status == 422 and "cyclic" in answer.text
    assert client.list_apps() == []
    client.create_group(MarathonGroup(id="/a", apps=[sleeper(id="/a/app", instances=0)]))
    with pytest.raises(ConflictError, match="already created"):
        client.create_group(MarathonGroup(id="/a"))


def test_a_dry_run_changes_nothing(client, marathon):
    answer = post(marathon, {"id": "/a", "apps": [minimal(id="app")]}, "/v2/groups?dryRun=true", "PUT")
    assert [[one["action"] for one in step["actions"]] for step in answer.json["steps"]] == [
        ["StartApplication"], ["ScaleApplication"]]  # fmt: skip
    assert client.list_apps() == [] and client.list_deployments() == []


# Tasks


def test_tasks_are_killed_and_replaced_or_not(client):
    client.create_app("/app", sleeper(instances=2))
    finish(client)
    first, second = sorted(tasks(client, "/app"))
    assert client.kill_task("/app", first).id == first
    wait_for(lambda: first not in tasks(client, "/app") and len(tasks(client, "/app")) == 2, "it is replaced")
    client.kill_given_tasks([second], scale=True)
    finish(client)
    assert client.get_app("/app").instances == 1 and second not in tasks(client, "/app")
    with pytest.raises(NotFoundError, match="Task 'none' does not exist"):
        client.kill_task("/app", "none")
    assert len(client.kill_tasks("/app")) == 1


def test_the_oldest_go_first_where_an_app_says_so(client):
    client.create_app("/app", sleeper(kill_selection="OLDEST_FIRST"))
    finish(client)
    [oldest] = tasks(client, "/app")
    client.scale_app("/app", 3)
    finish(client)
    client.scale_app("/app", 2)
    finish(client)
    assert oldest not in tasks(client, "/app")


def test_a_task_has_time_to_end(client):
    cmd = "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done"
    client.create_app("/app", sleeper(cmd=cmd, task_kill_grace_period_seconds=30))
    finish(client)
    [task] = tasks(client, "/app")
    client.kill_task("/app", task)
    seen = wait_for(lambda: [one for one in client.list_tasks("/app") if one.state == "TASK_KILLING"], "it is stopped")
    assert seen[0].id == task
    wait_for(lambda: tasks(client, "/app") and task not in tasks(client, "/app"), "it is replaced")


@pytest.mark.parametrize(
    ("constraint", "racks", "waiting"),
    [
        (["rack", "UNIQUE"], ["one", "two"], 1),
        (["rack", "CLUSTER", "two"], ["two", "two", "two"], 0),
        (["rack", "GROUP_BY", "2"], None, 0),
        (["rack", "LIKE", "o.*"], ["one", "one", "one"], 0),
        (["rack", "UNLIKE", "o.*"], ["two", "two", "two"], 0),
        (["zone", "UNLIKE", "a"], ["two", "two", "two"], 0),
        (["rack", "MAX_PER", "1"], ["one", "two"], 1),
        (["rack", "IS", "one"], ["one", "one", "one"], 0),
    ],
)
def test_constraints(client, cluster, constraint, racks, waiting):
    client.create_app("/app", sleeper(instances=3, constraints=[constraint]))
    listed = call(f"{cluster[1].leader().url}/standin/agents").json
    agents = {one["id"]: one["attributes"]["rack"] for one in listed}
    wait_for(lambda: len(tasks(client, "/app")) == 3 - waiting, "what fits runs")
    found = sorted(agents[one.slave_id] for one in client.list_tasks("/app"))
    if racks is None:
        assert sorted(map(found.count, ("one", "two"))) == [1, 2]
    else:
        assert found == racks
    assert sum(one.count for one in client.list_queue()) == waiting


@pytest.mark.parametrize(
    ("constraint", "there", "takes"),
    [
        (["rack", "UNIQUE"], [], "abc"), (["rack", "UNIQUE"], "ab", "c"), (["hostname", "UNIQUE"], "a", "bcd"),
        (["rack", "CLUSTER"], [], "abc"), (["rack", "CLUSTER"], "bb", "b"), (["rack", "CLUSTER", "c"], "a", "c"),
        (["rack", "GROUP_BY"], "a", "abc"), (["rack", "GROUP_BY"], "aab", "bc"), (["rack", "GROUP_BY", "3"], "ab", "c"),
        (["rack", "GROUP_BY", "2"], "ab", "abc"), (["rack", "MAX_PER", "2"], "aab", "bc"),
        (["rack", "LIKE", "[ab]"], [], "ab"), (["rack", "LIKE", "rack"], [], ""),
        (["rack", "UNLIKE", "[ab]"], [], "cd"),
        (["rack", "IS", "a"], [], "a"), (["slots", "IS", "1.5"], [], "a"), (["slots", "LIKE", ".*"], [], "abc"),
        (["nothing", "LIKE", ".*"], [], ""), (["nothing", "UNLIKE", ".*"], [], "abcd"),
    ],
)  # fmt: skip
def test_where_the_next_task_may_go(constraint, there, takes):
    """Agents a, b and c are in racks of these names with 1.5, 2 and 3 slots; d is in none."""
    agents = {name: {"hostname": name, "attributes": {"rack": name, "slots": slots}}
              for name, slots in (("a", 1.5), ("b", 2.0), ("c", 3))}  # fmt: skip
    agents["d"] = {"hostname": "d", "attributes": {}}
    placed = [agents[name] for name in there]
    assert "".join(name for name, agent in agents.items() if offers.fulfils(constraint, agent, placed)) == takes


# Events


def test_events_are_told_as_they_happen(client, marathon):
    seen = follow(marathon)
    client.create_app("/app", sleeper())
    finish(client)
    client.delete_app("/app")
    finish(client)
    wait_for(lambda: [one.event_type for one in seen].count("deployment_success") == 2, "both deployments were told")
    kinds = [one.event_type for one in seen]
    assert kinds[0] == "event_stream_attached"
    assert {"api_post_event", "group_change_success", "deployment_info", "deployment_step_success",
            "instance_changed_event", "app_terminated_event"} <= set(kinds)  # fmt: skip
    states = [one.task_status for one in seen if one.event_type == "status_update_event"]
    assert states == ["TASK_STAGING", "TASK_RUNNING", "TASK_KILLED"]
    info = next(one for one in seen if one.event_type == "deployment_info")
    assert [action.app for step in info.plan.steps for action in step.actions] == ["/app", "/app"]


def test_events_are_filtered_and_their_plans_shortened(cluster, client, marathon):
    connection = http.client.HTTPConnection(marathon.url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/v2/events?event_type=deployment_info&plan-format=light")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type").startswith("text/event-stream")
    client.create_app("/app", sleeper(instances=0))
    lines = iter(answer.readline, b"")
    assert next(line for line in lines if line.strip()) == b"event: deployment_info\r\n"
    event = json.loads(next(lines).removeprefix(b"data: "))
    connection.close()
    assert set(event["plan"]) == {"id", "steps", "version"}


# The instance itself


def test_what_an_instance_says_of_itself(cluster, client, marathon):
    info = client.get_info()
    assert info.elected and info.leader == f"127.0.0.1:{marathon[0].port}" and info.framework_id
    assert "stand-in" in info.buildref and info.version.startswith("1.")
    assert client.get_leader() == {"leader": info.leader}
    assert client.ping() == b"pong"
    assert client.get_metrics()["gauges"]["marathon.apps.active.gauge"] == {"value": 0}
    done = subprocess.run([sys.executable, FOLDER / "bin/marathon", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and "stand-in" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--master=zk://127.0.0.1:1/mesos", "--nonsense=1"], "Unknown option 'nonsense'"),
        ([], "Required option 'master' not found"),
        (["--master=x:1", "--http_port=many"], "Bad arguments for option 'http_port'"),
        (["--master=x:1", "--disable_http"], "Neither HTTP nor HTTPS"),
        (["--master=x:1", "--http_credentials=onlyname"], "USER:PASSWORD"),
    ],
)
def test_wrong_flags_are_fatal(words, message):
    environment = {**os.environ, "MARATHON_UNHEARD_OF": "x"}
    done = subprocess.run([sys.executable, FOLDER / "bin/marathon", *words], capture_output=True, text=True,
                          env=environment, timeout=30)  # fmt: skip
    assert done.returncode == 1 and message in done.stderr


def test_flags_come_from_the_environment_too(cluster, tmp_path):
    zookeeper, masters = cluster
    port = free_port()
    environment = {
        **os.environ, "MARATHON_MASTER": masters.zk, "MARATHON_ZK": zookeeper.url("environment"),
        "MARATHON_HTTP_PORT": str(port), "MARATHON_HTTP_ADDRESS": "127.0.0.1", "MARATHON_HOSTNAME": "127.0.0.1",
        "MARATHON_FRAMEWORK_NAME": "named", "MARATHON_HTTP_CREDENTIALS": "ann:word of ann",
    }  # fmt: skip
    words = [sys.executable, FOLDER / "bin/marathon", "--framework_name", "named-by-a-flag"]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    try:
        url, login = f"http://127.0.0.1:{port}", ("ann", "word of ann")
        info = wait_for(lambda: call(f"{url}/v2/info", credentials=login).json, "it answers")
        config = info["marathon_config"]
        assert (config["framework_name"], config["hostname"]) == ("named-by-a-flag", "127.0.0.1")
        assert call(f"{url}/v2/info").status == 401
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_https_and_credentials(cluster, tmp_path):
    make_certificate(tmp_path)
    secret = "secret of the keystore"
    store = tmp_path / "keystore.p12"
    subprocess.run(["openssl", "pkcs12", "-export", "-in", tmp_path / "cert.pem", "-inkey", tmp_path / "key.pem",
                    "-out", store, "-passout", "stdin"], input=secret + "\n", text=True, check=True)  # fmt: skip
    zookeeper, masters = cluster
    tls = (tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "cert.pem")
    with Marathon(zookeeper, masters, count=2, credentials="ann:word of ann", zk=zookeeper.url("secure"),
                  tls=tls) as marathon:  # fmt: skip
        for program in marathon.programs:  # one of them passes it on
            assert marathon.call("/v2/apps", program=program).json == {"apps": []}
        found = MarathonClient(marathon.urls, username="ann", password="word of ann", verify=str(tmp_path / "cert.pem"))
        assert found.get_leader()["leader"].startswith("127.0.0.1:")
        for path in ("/v2/apps", "/ping", "/v2/events"):
            marathon.credentials = None
            answer = marathon.call(path)
            assert answer.status == 401 and answer.headers["WWW-Authenticate"] == 'Basic realm="Mesosphere"'
            marathon.credentials = ("ann", "another")
            assert marathon.call(path).status == 401
    with Marathon(zookeeper, masters, zk=zookeeper.url("secure"), tls=tls, ssl_keystore_path=store,
                  ssl_keystore_password=secret) as marathon:  # fmt: skip
        assert marathon.call("/v2/apps").json == {"apps": []}


def test_another_instance_takes_over(cluster):
    zookeeper, masters = cluster
    with Marathon(zookeeper, masters, count=3, zk=zookeeper.url("many"), zk_session_timeout=5000) as marathon:
        client = MarathonClient(marathon.urls, timeout=20)
        leader = marathon.leader()
        follower = next(one for one in marathon.programs if one is not leader)
        answer = marathon.call("/v2/apps", "POST", minimal(instances=2), program=follower)
        assert answer.status == 201 and answer.headers["X-Marathon-Leader"] == leader.url
        finish(client)
        before, framework = tasks(client, "/app"), client.get_info().framework_id
        answer = marathon.call("/v2/events", program=follower)
        assert (answer.status, answer.headers["Location"]) == (302, f"{leader.url}/v2/events")
        client.create_app("/big", sleeper(cpus=64))
        [deployment] = client.list_deployments()

        leader.kill()
        answer = marathon.call("/v2/apps", program=follower)  # its session is not over
        assert (answer.status, answer.json) == (502, {"message": "Connection to leader refused."})
        wait_for(lambda: marathon.leading() not in (None, leader), "another one leads", 30)
        assert tasks(client, "/app") == before
        assert [one.id for one in client.list_deployments()] == [deployment.id]
        assert client.get_info().framework_id == framework
        client.update_app("/big", MarathonApp(cpus=0.1), force=True)
        finish(client)
        assert tasks(client, "/app") == before and len(tasks(client, "/big")) == 1

        second = marathon.leader()
        assert client.delete_leader() == {"message": "Leadership abdicated"}
        assert second.wait() == 105
        wait_for(lambda: marathon.leading() not in (None, second), "the third one leads", 30)
        assert tasks(client, "/app") == before
        client.delete_group("/", force=True)
        finish(client)


def test_a_leader_that_slept_ends_when_it_wakes(cluster):
    zookeeper, masters = cluster
    with Marathon(zookeeper, masters, count=2, zk=zookeeper.url("asleep")) as marathon:
        client = MarathonClient(marathon.urls, timeout=20)
        client.create_app("/app", sleeper())
        finish(client)
        before, leader = tasks(client, "/app"), marathon.leader()
        other = next(one for one in marathon.programs if one is not leader)
        freeze(leader)
        try:
            wait_for(lambda: marathon.call("/v2/info", program=other, timeout=3).status == 200, "the other one leads")
            waking = MarathonClient([other.url], timeout=20)
            waking.scale_app("/app", 2)
            finish(waking)
        finally:
            thaw(leader)
        assert leader.wait() in (101, 103)
        assert len(tasks(waking, "/app")) == 2 and before < tasks(waking, "/app")
        waking.delete_group("/", force=True)
        finish(waking)


def test_an_instance_that_loses_zookeeper_ends(cluster):
    with Zookeeper() as zookeeper, Marathon(zookeeper, cluster[1]) as marathon:
        zookeeper[0].kill()
        assert marathon[0].wait(30) in (101, 103)


def test_without_zookeeper_it_does_not_start(cluster, tmp_path):
    words = ["--master=x:1", "--zk=zk://127.0.0.1:1/marathon", "--http_port=0", "--http_address=127.0.0.1",
             "--zk_connection_timeout=2000"]  # fmt: skip
    process = subprocess.Popen([sys.executable, FOLDER / "bin/marathon", *words], stdout=subprocess.DEVNULL)
    try:
        assert process.wait(60) == 100
    finally:
        process.kill()


# Mesos


def test_the_framework_proves_who_it_is(cluster, tmp_path):
    credentials, secret = tmp_path / "credentials.json", tmp_path / "secret"
    credentials.write_text(json.dumps({"credentials": [{"principal": "marathon", "secret": "word of marathon"}]}))
    login = {"mesos_authentication_principal": "marathon", "mesos_authentication_secret_file": secret}
    flags = {"credentials": credentials, "authenticate_frameworks": True}
    with Zookeeper() as zookeeper, Masters(zookeeper, 1, **flags) as masters, Agent(masters):
        for word in ("another word", "word of marathon\n"):
            secret.write_text(word)
            with Marathon(zookeeper, masters, **login) as marathon:
                wait_for(lambda marathon=marathon: "status 401" in marathon[0].output(), "Mesos refuses")
                assert marathon.call("/v2/info").json["frameworkId"] is None
                assert word.strip() not in marathon[0].output()
        secret.write_text("word of marathon")
        with Marathon(zookeeper, masters, **login) as marathon:
            client = MarathonClient(marathon.urls, timeout=20)
            client.create_app("/app", sleeper())
            finish(client)
            [framework] = call(f"{masters.leader().url}/frameworks").json["frameworks"]
            assert (framework["id"], framework["principal"]) == (client.get_info().framework_id, "marathon")
            assert framework["active"] and framework["name"] == "marathon"


def test_tasks_outlive_leaders_of_zookeeper_and_mesos():
    with Zookeeper(3) as zookeeper, Masters(zookeeper, 3) as masters, Agent(masters), Marathon(
        zookeeper, masters, zk_session_timeout=6000
    ) as marathon:
        client = MarathonClient(marathon.urls, timeout=20)
        client.create_app("/app", sleeper(instances=2))
        finish(client)
        before = tasks(client, "/app")
        next(one for one in zookeeper.programs if "Mode: leader" in zookeeper.word(one, b"srvr")).kill()
        client.scale_app("/app", 3)
        finish(client)
        masters.leader().kill()
        client.scale_app("/app", 4)
        finish(client)
        after = tasks(client, "/app")
        assert len(after) == 4 and before < after
        assert marathon.alive


# Agents


def test_tasks_of_an_agent_that_is_gone_are_started_elsewhere(cluster):
    zookeeper, masters = cluster
    with (
        Marathon(zookeeper, masters, zk=zookeeper.url("lost")) as marathon,
        Agent(masters, attributes="rack:three") as agent,
    ):
        client = MarathonClient(marathon.urls, timeout=20)
        client.create_app("/app", sleeper(constraints=[["rack", "LIKE", "three|one"]], instances=1))
        finish(client)
        client.update_app("/app", MarathonApp(instances=8))
        finish(client)
        lost = {one.id for one in client.list_tasks("/app") if one.slave_id == agent.id}
        assert lost
        agent.program.signal(signal.SIGUSR1)  # it unregisters
        wait_for(lambda: not lost & tasks(client, "/app") and len(tasks(client, "/app")) == 8, "they are replaced", 60)
        client.delete_group("/", force=True)
        finish(client)


def test_tasks_that_cannot_be_reached_wait_as_long_as_they_may():
    flags = {"agent_ping_timeout": "1secs", "max_agent_ping_timeouts": 2}
    with Zookeeper() as zookeeper, Masters(zookeeper, 1, **flags) as masters, Agent(masters) as agent, Marathon(
        zookeeper, masters
    ) as marathon:
        client = MarathonClient(marathon.urls, timeout=20)
        client.create_app("/kept", sleeper(unreachable_strategy="disabled"))
        patient = {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 600}
        client.create_app("/moved", sleeper(unreachable_strategy=patient))
        finish(client)
        [kept], [moved] = tasks(client, "/kept"), tasks(client, "/moved")

        def states(app_id):
            return {one.id: one.state for one in client.list_tasks(app_id)}

        with Agent(masters):
            agent.program.kill()
            wait_for(lambda: states("/kept") == {kept: "TASK_UNREACHABLE"}, "it is out of reach", 60)
            wait_for(lambda: sorted(states("/moved").values()) == ["TASK_RUNNING", "TASK_UNREACHABLE"], "one more runs")
            agent.start()
            wait_for(lambda: states("/kept") == {kept: "TASK_RUNNING"}, "it is back")
            wait_for(lambda: len(states("/moved")) == 1 and "TASK_RUNNING" in states("/moved").values(), "one goes")
            assert moved in states("/moved")  # the youngest went
            client.delete_group("/", force=True)
            finish(client)


# The archive


def test_the_archive_runs_and_is_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        subprocess.run([sys.executable, FOLDER / "build.py", tmp_path / f"{name}.tar.gz"], check=True)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    subprocess.run(["tar", "-xzf", tmp_path / "one.tar.gz", "-C", tmp_path], check=True)
    # Without site packages: what it needs is in it.
    program = [sys.executable, "-I", "-S", tmp_path / "bin/marathon"]
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert "stand-in" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The registrator between Marathon (a stand-in) and Consul (a real one with access control)."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from registrator_runtime import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the stand-in's agent runs tasks as root")


@pytest.fixture
def app(cluster):
    """Starts apps, which end with the test."""
    started = []

    def start(name, **more):
        started.append(name)
        cluster.run(name, **more)

    yield start
    for name in started:
        cluster.remove(name)
    eventually(lambda: cluster.marathon.call("/v2/deployments").json == [], 20)


def checked(path):
    """A health check that holds while a file is there."""
    at_once = {"delaySeconds": 0, "gracePeriodSeconds": 0, "intervalSeconds": 1}
    command = {"value": f"test -e {path}"}
    return [{"protocol": "COMMAND", "command": command, "timeoutSeconds": 5, "maxConsecutiveFailures": 0, **at_once}]


def test_an_app_comes_is_scaled_and_goes(cluster, make, app, catalogue):
    make(cluster.settings)
    app("web", labels={"HAPROXY_GROUP": "external"}, portDefinitions=[{"port": 8088}])
    catalogue.wait("web", "passing", seconds=15)
    entry = catalogue.entries("web")[0]
    task = cluster.tasks("web")[0]
    assert (entry["ServiceID"], entry["ServicePort"]) == (task["id"], task["ports"][0])
    assert entry["ServiceMeta"]["service_ports"] == "8088"
    assert entry["ServiceTags"] == ["app", "external"]
    cluster.change("web", instances=3)
    eventually(lambda: len([one for one in cluster.tasks("web") if one["state"] == "TASK_RUNNING"]) == 3, 20)
    catalogue.wait("web", "passing", "passing", "passing")
    cluster.remove("web")
    eventually(lambda: cluster.marathon.call("/v2/apps/dodas/web").status == 404, 20)
    catalogue.wait("web")
    assert catalogue.consul.call("GET", "/v1/catalog/node/server-1-apps", token=None) is None


def test_health_is_followed(cluster, make, app, catalogue, tmp_path):
    flag = tmp_path / "healthy"
    make(cluster.settings)
    app("checked", healthChecks=checked(flag))
    catalogue.wait("checked", "critical", seconds=15)

    def alive():
        return [one["alive"] for one in cluster.tasks("checked")[0].get("healthCheckResults", [])]

    flag.touch()
    eventually(lambda: alive() == [True])
    catalogue.wait("checked", "passing")
    flag.unlink()
    eventually(lambda: alive() == [False])
    catalogue.wait("checked", "critical")
    assert catalogue.instances("checked", passing=True) == []


def test_consuls_own_agents_leave_the_apps_alone(cluster, make, app, catalogue, consul):
    one = make(cluster.settings)
    app("kept")
    catalogue.wait("kept", "passing", seconds=15)
    one.stop()
    consul.agents[0].stop()
    consul.agents[0].start()  # it compares all it knows with the catalogue
    consul.wait()
    eventually(lambda: catalogue.instances("consul") != [], 20)
    assert catalogue.instances("kept") == [("server-1-apps", "passing")]


def test_what_went_while_nobody_looked_is_removed_later(cluster, make, app, catalogue):
    one = make(cluster.settings)
    app("early")
    app("other")
    catalogue.wait("early", "passing", seconds=15)
    assert one.stop() == 0
    cluster.remove("early")
    eventually(lambda: cluster.marathon.call("/v2/apps/dodas/early").status == 404, 20)
    assert catalogue.instances("early") == [("server-1-apps", "passing")]
    one.start()
    catalogue.wait("early")
    catalogue.wait("other", "passing")


def test_without_marathon_everything_stays(cluster, make, app, catalogue):
    one = make(cluster.settings)
    app("steady")
    catalogue.wait("steady", "passing", seconds=15)
    for program in cluster.marathon:
        program.kill()
    try:
        eventually(lambda: one.says("Marathon does not answer: "))
        time.sleep(3)  # several rounds
        assert catalogue.instances("steady") == [("server-1-apps", "passing")]
    finally:
        for program in cluster.marathon:
            program.start()
        cluster.marathon.ready()
    eventually(lambda: one.log.read_text().rstrip().endswith("Marathon and Consul answer"), 20)
    assert catalogue.instances("steady") == [("server-1-apps", "passing")]
    assert not one.says(": steady: gone")
    app("after")
    catalogue.wait("after", "passing", seconds=15)


def test_another_marathon_takes_over(cluster, make, app, catalogue):
    one = make(cluster.settings)
    app("before")
    catalogue.wait("before", "passing", seconds=15)
    dead = cluster.marathon.leader()
    dead.kill()
    try:
        cluster.marathon.leader()
        assert catalogue.instances("before") == [("server-1-apps", "passing")]
        app("since")
        catalogue.wait("since", "passing", seconds=15)
        assert not one.says(": before: gone")
    finally:
        dead.start()
        cluster.marathon.ready()


def test_one_registrator_leads_and_another_takes_over(cluster, make, app, catalogue):
    first = make(cluster.settings)
    eventually(lambda: first.says("leads"))
    second = make(cluster.settings, "master-2")
    eventually(lambda: second.says("stands by, master-1 leads"))
    assert first.stop() == 0
    eventually(lambda: second.says("\nleads"))
    app("next")
    catalogue.wait("next", "passing", seconds=15)


def test_a_killed_registrator_leads_again_at_once(cluster, make):
    one = make(cluster.settings)
    eventually(lambda: one.says("leads"))
    one.stop(signal.SIGKILL)
    one.log.write_text("")
    one.start()
    eventually(lambda: one.says("leads"), 8)  # Consul would need 10 s and more to take the lock from the dead


def test_the_lock_of_a_dead_one_is_given_to_another(cluster, make):
    first = make(cluster.settings)
    eventually(lambda: first.says("leads"))
    second = make(cluster.settings, "master-2")
    eventually(lambda: second.says("stands by"))
    first.stop(signal.SIGKILL)
    eventually(lambda: second.says("\nleads"), 35)  # twice the session's life, as Consul documents, and the delay


def test_consul_may_come_back_later(cluster, make, app, catalogue, consul):
    one = make(cluster.settings)
    eventually(lambda: one.says("leads"))
    consul.agents[0].kill()
    app("meanwhile")
    eventually(lambda: one.says("Consul: "))
    consul.agents[0].start()
    consul.wait()
    catalogue.wait("meanwhile", "passing", seconds=40)
    assert one.process.poll() is None


def test_the_leading_marathon_has_a_tag(cluster, make, consul):
    service = {"ID": "marathon", "Port": 8443, "Meta": {"scheme": "https"}}
    own = {**service, "Name": "marathon", "Tags": ["a"], "EnableTagOverride": True}
    consul.call("PUT", "/v1/agent/service/register", {**own, "Token": consul.tokens["agent"]})
    service = {**service, "Service": "marathon", "Tags": ["leader", "b"]}
    other = {"Node": "master-9", "Address": "10.9.9.9", "Service": {**service, "EnableTagOverride": True}}
    foreign = {"Node": "master-8", "Address": "10.9.9.8", "Service": service}
    for body in (other, foreign):
        consul.call("PUT", "/v1/catalog/register", body)

    def tags():
        found = consul.call("GET", "/v1/catalog/service/marathon")
        return {one["Node"]: one["ServiceTags"] for one in found}

    try:
        make(cluster.settings)
        eventually(lambda: tags() == {"server-1": ["a", "leader"], "master-9": ["b"], "master-8": ["leader", "b"]})
        found = consul.call("GET", "/v1/catalog/service/marathon?tag=leader")
        mine = next(one for one in found if one["Node"] == "server-1")
        assert (mine["ServicePort"], mine["ServiceMeta"]) == (8443, {"scheme": "https"})
    finally:
        for name in ("master-9", "master-8"):
            consul.call("PUT", "/v1/catalog/deregister", {"Node": name})
        consul.call("PUT", "/v1/agent/service/deregister/marathon")


def test_it_tells_consul_how_it_is(cluster, make, consul):
    body = {"Name": "registrator", "Token": consul.tokens["agent"],
            "Check": {"CheckID": "service:registrator", "TTL": "30s"}}  # fmt: skip
    consul.call("PUT", "/v1/agent/service/register", body)
    try:
        make(cluster.settings)

        def check():
            return consul.call("GET", "/v1/agent/checks")["service:registrator"]

        eventually(lambda: check()["Status"] == "passing" and check()["Output"].startswith("leads: "), 15)
    finally:
        consul.call("PUT", "/v1/agent/service/deregister/registrator")


def test_a_wrong_password_is_said_and_not_shown(cluster, make):
    one = make({**cluster.settings, "password": "not-the-password"})
    eventually(lambda: one.says("HTTP 401"))
    command = Path(f"/proc/{one.process.pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{one.process.pid}/environ").read_bytes()
    config = json.loads(one.config.read_text())
    for secret in ("not-the-password", config["consul"]["token"]):
        assert not one.says(secret)
        assert secret.encode() not in command + environment


def test_a_certificate_of_others_is_not_believed(cluster, make, tmp_path):
    (tmp_path / "other.pem").write_bytes(Path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
    one = make({**cluster.settings, "ca_file": str(tmp_path / "other.pem")})
    eventually(lambda: one.says("certificate verify failed"))

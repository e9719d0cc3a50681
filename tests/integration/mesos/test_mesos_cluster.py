# SPDX-License-Identifier: Apache-2.0
"""Status, jobs, up again, apps and their definitions, scale, the way in through the balancers, and a new image."""

import json
import re
import shutil
import time

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, fields

APPS = ("conditions", "credentials", "htcondor", "identity", "squid", "worker")
# On a master: seconds from when Marathon says that an app is healthy, or gone, to when Consul does.
FOLLOW = """
import json, subprocess, sys, time

app, what = sys.argv[1:]
name = app.rpartition("/")[2]
with open("/etc/dodas/marathon/api") as stream:
    login = 'user = "' + stream.read().strip() + '"'

def ask(*command, **options):
    done = subprocess.run(["curl", "--silent", *command], stdout=subprocess.PIPE, text=True, **options)
    return json.loads(done.stdout or "{}")

def marathon():
    url = "https://marathon.service.consul:8443/v2/apps" + app
    return ask("--cacert", "/etc/dodas/tls/ca.pem", "--config", "-", url, input=login).get("app") or {}

def consul(path):
    return len(ask("http://127.0.0.1:8500/v1/" + path))

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "not within 60 s"
        time.sleep(0.1)
    return time.monotonic()

if what == "comes":
    first = until(lambda: marathon().get("tasksHealthy") == 1)
    then = until(lambda: consul("health/service/" + name + "?passing") == 1)
else:
    first = until(lambda: not marathon())
    then = until(lambda: consul("catalog/service/" + name) == 0)
print(then - first)
"""


def test_status_says_how_everything_is(cms):
    found = cms.status()
    assert found["complete"] and found["errors"] == [] and all(probe["ok"] for probe in found["probes"])
    mesos = found["mesos"]
    assert mesos["leader"] in {one["address"] for one in mesos["masters"]}
    assert sorted(one["state"] for one in mesos["masters"]) == ["following", "following", "leading"]
    assert mesos["quorum"] == {"masters": 3, "needed": 2, "alive": 3, "ok": True}
    assert [one["hostname"] for one in mesos["agents"]] == [f"{host}.node.consul" for host in cms.agents]
    for agent in mesos["agents"]:
        assert agent["active"] and agent["resources"]["cpus"] == 8 and agent["resources"]["mem"] == 8192
        assert {"cpus", "mem"} <= agent["offered"].keys()
    assert 0 < sum(agent["used"]["cpus"] for agent in mesos["agents"]) < 16
    assert [one["name"] for one in mesos["frameworks"]] == ["marathon"]
    ids = {one["id"]: one for one in found["marathon"]["apps"]}
    assert sorted(ids) == [f"/dodas/{name}" for name in APPS]
    assert {name: one["instances"] for name, one in ids.items() if one["instances"] != 1} == {"/dodas/worker": 2}
    for one in ids.values():
        assert one["tasksHealthy"] == one["tasksRunning"] == one["instances"] and one["reasons"] == [], one
    assert len(found["slots"]) == 2


def test_status_is_readable(cms):
    text = cms.dodas("status", "--name", cms.name, TERM="dumb", COLUMNS="200").stdout
    assert "3 of 3 alive, 2 needed" in text and "leading" in text
    assert re.search(r"agent-1.node.consul +active +[\d.]+ of 8 used +[\d.]+ of 8192 MB used", text)
    assert re.search(r"/dodas/worker +2 of 2 +2", text)


def test_jobs_fit_a_boson(dodas, cms, tmp_path):
    folder = tmp_path / "dimuon"
    shutil.copytree(dodas.root / "examples/dimuon", folder, ignore=shutil.ignore_patterns("results", "*.png"))
    done = dodas("submit", str(folder), "--wait", "--name", cms.name, "--timeout", "240")
    assert "18 of 18 done" in done.stdout
    assert abs(float(re.search(r"m\(Z\) = ([\d.]+) ", done.stdout).group(1)) - 91.19) < 0.2
    through = [path.read_text(encoding="utf-8") for path in (folder / "results").glob("job_*.out")]
    assert len(through) == 18 and all("squid" in one for one in through)


def test_up_a_second_time_changes_nothing(dodas, cms):
    before = cms.tasks()
    began = time.monotonic()
    done = dodas("up", "--name", cms.name, timeout=600)
    print(f"second up: {time.monotonic() - began:.1f} s")
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0"], done.stdout
    assert cms.tasks() == before


def test_definitions_have_documented_fields_only(cms):
    """Marathon's answer, without what is only in answers, is a definition that our strict reader takes."""
    answered = {name for name, rule in fields.APP.items() if isinstance(rule, str)}
    for app in cms.marathon("/v2/apps")["apps"]:
        assert app.keys() <= fields.APP.keys(), app["id"]
        ours = {name: value for name, value in app.items() if name not in answered}
        assert apps.parse(json.dumps(ours))["id"] == app["id"]
        image = app["container"]["docker"]["image"]
        assert re.fullmatch(r"registry\.service\.consul:5000/dodas/[a-z]+:[0-9a-f]{8,}", image)


def test_no_secret_is_in_a_definition(cms):
    told = json.dumps([cms.marathon("/v2/groups"), cms.marathon("/v2/apps?embed=apps.tasks"), cms.marathon("/v2/info")])
    uses = ("agent", "operator", "marathon", "keystore", "api", "registry", "statistics", "router")
    secrets = [value for value in cms.secrets.values() if isinstance(value, str)] + [cms.password(use) for use in uses]
    # and whatever looks like one in files that only root may read
    command = "find /etc/dodas -type f -perm 0600 -exec cat {} +"
    files = [path.read_text(encoding="utf-8") for path in cms.pki.glob("*.key")]
    files += [cms.run(host, command) for host in cms.agents]
    secrets += [word for text in files for word in re.findall(r"(?<![\w+/=])[A-Za-z0-9+=][\w+/=]{19,}", text)]
    assert len(secrets) > 50
    assert [len(one) for one in secrets if one in told] == []


def test_apps_come_to_consul_and_go_with_marathon(cms, eventually, measured):
    image = cms.marathon("/v2/apps/dodas/worker")["app"]["container"]["docker"]["image"]
    docker = {"image": image, "parameters": [{"key": "entrypoint", "value": "/bin/sh"}]}
    app = {
        "id": "/guest/web", "cpus": 0.1, "mem": 64, "args": ["-c", "exec python3 -m http.server $PORT0"],
        "container": {"type": "DOCKER", "docker": docker}, "networks": [{"mode": "host"}],
        "portDefinitions": [{"port": 0, "name": "http"}],
        "healthChecks": [{"protocol": "MESOS_HTTP", "path": "/", "portIndex": 0, "gracePeriodSeconds": 30,
                          "delaySeconds": 0, "intervalSeconds": 1, "timeoutSeconds": 2}],
    }  # fmt: skip
    cms.marathon("/v2/apps", "POST", app)
    comes = float(cms.run("master-1", "python3 - /guest/web comes", data=FOLLOW))
    [service] = json.loads(cms.run("agent-2", "curl --silent http://127.0.0.1:8500/v1/catalog/service/web"))
    url = f"http://web.service.consul:{service['ServicePort']}/"
    assert "200 OK" in cms.run("agent-2", f"curl --silent --head {url}")
    cms.marathon("/v2/apps/guest/web", "DELETE")
    goes = float(cms.run("master-1", "python3 - /guest/web goes", data=FOLLOW))
    measured("Consul knows an app after Marathon finds it healthy", comes)
    measured("Consul has forgotten an app after Marathon has", goes)
    assert comes < 5 and goes < 5
    eventually(lambda: not cms.tasks("/guest/web"), 30, "its container has ended")


def test_squid_is_behind_the_virtual_address(cms):
    command = (f"curl --silent --include --proxy http://{cms.virtual_address()}:3128 "
               "http://conditions.service.consul:8088/health")  # fmt: skip
    first, second = (cms.run("master-1", command) for _ in range(2))
    assert " 200 " in first.splitlines()[0]
    assert re.search("(?im)^(x-cache: |cache-status: [^;]*; *)hit", second), second


def test_statistics_are_behind_a_password(cms):
    address, url = cms.virtual_address(), "https://load-balancer.service.consul:9090/"
    command = (f"curl --silent --cacert /etc/dodas/tls/ca.pem --resolve load-balancer.service.consul:9090:{address} "
               f"--output /dev/null --write-out '%{{http_code}}' ")  # fmt: skip
    assert cms.run("master-1", command + url) == "401"
    config = f'user = "dodas:{cms.password("statistics")}"\n'
    assert cms.run("master-1", f"{command} --config - {url}", data=config) == "200"


def test_six_workers_run_six_jobs(cms, tmp_path, eventually, measured):
    before = cms.tasks()
    found = cms.scale(6)
    measured("scale from 2 to 6 workers", found["seconds"])
    assert found["complete"] and len(found["slots"]) == 6
    after = cms.tasks()
    assert before.items() <= after.items() and len(after) == len(before) + 4  # what ran is as it was
    batch = cms.submit(tmp_path / "sleep", jobs=6, seconds=20)
    cms.all_run(batch, 6)
    eventually(lambda: cms.finished(batch) == 6, 90, "all jobs ended well")


def test_workers_that_go_finish_their_jobs(cms, tmp_path, measured):
    with cms.nothing_lost(tmp_path, jobs=6, seconds=30):
        found = cms.scale(2)
        measured("scale from 6 to 2 workers, whose jobs had up to 30 s to go", found["seconds"])
        assert found["complete"] and len(found["slots"]) == 2


@pytest.fixture
def next_image(cms):
    """Another image of the worker, in the cluster's registry."""
    image = cms.marathon("/v2/apps/dodas/worker")["app"]["container"]["docker"]["image"]
    other = image.rpartition(":")[0] + ":next"
    local = "localhost/" + image.partition("/")[2]
    cms.run(
        "balancer-1",
        f"printf 'FROM {local}\\nLABEL next=1\\n' | podman build --quiet --tag {other} - && "
        f"podman push --quiet --authfile /etc/dodas/registry/auth.json {other} && podman rmi {other}",
    )
    return other


@pytest.mark.nightly
def test_another_image_of_the_worker_loses_no_job(cms, next_image, tmp_path, measured):
    definitions = cms.marathon("/v2/apps")["apps"]
    images = {one["id"].rpartition("/")[2]: one["container"]["docker"]["image"] for one in definitions}
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"dodas_registry_images": {**images, "worker": next_image}}), encoding="utf-8")
    before = cms.tasks("/dodas/worker"), cms.tasks()
    with cms.nothing_lost(tmp_path, jobs=4, seconds=20):
        found = cms.up("--vars", str(variables))
        measured("up that replaces both workers' image while jobs of 20 s run", found["seconds"])
        assert found["complete"] and len(found["slots"]) == 2
    workers = cms.tasks("/dodas/worker")
    assert len(workers) == 2 and not workers.keys() & before[0].keys()
    assert {one: host for one, host in before[1].items() if one not in before[0]}.items() <= cms.tasks().items()
    assert cms.marathon("/v2/apps/dodas/worker")["app"]["container"]["docker"]["image"] == next_image
    assert cms.up()["complete"]  # back to the image that the project makes

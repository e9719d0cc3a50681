# SPDX-License-Identifier: Apache-2.0
"""The stand-in of Mesos does what was seen of a real one: its answers' fields, and how it behaves when parts fail.

With DODAS_MESOS_ARCHIVE the real one has to pass the same tests, but for those that ask what only the stand-in answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from mesos_runtime import (
    REAL,
    STANDINS,
    Agent,
    Masters,
    Zookeeper,
    call,
    free_port,
    real_environment,
    standin,
    wait_for,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT.parent / "shared" / "fixtures" / "mesos"
SHAPES = json.loads((STANDINS / "mesos" / "shapes.json").read_text())
V1 = ("GET_AGENTS", "GET_MASTER", "GET_STATE")
standin_only = pytest.mark.skipif(bool(REAL), reason="only the stand-in takes tasks without a framework")
SLEEP = {"cmd": "echo started; exec sleep 600", "cpus": 0.5, "mem": 64}


@pytest.fixture(scope="module")
def zookeeper():
    with Zookeeper() as server:
        yield server


@pytest.fixture
def path(zookeeper):
    """ZooKeeper for one test: what others have left there is gone."""
    client = KazooClient(zookeeper.hosts)
    client.start()
    if client.exists("/mesos"):
        client.delete("/mesos", recursive=True)
    yield client
    client.stop()
    client.close()


def subscribe(master, name="tests", **more):
    return call(f"{master.url}/standin/frameworks", body={"name": name, **more}).json["id"]


def launch(agent, framework, name, definition, ports=(), env=None):
    body = {"id": name, "framework_id": framework, "app_id": f"/dodas/{name}", "definition": definition,
            "ports": list(ports), "env": env or {}}  # fmt: skip
    return call(f"{agent.url}/standin/tasks", body=body)


def task(agent, name):
    return next(one for one in agent.tasks() if one["id"] == name)


def wait_state(agent, name, state):
    return wait_for(lambda: (one := task(agent, name))["state"] == state and one, f"{name} is {state}")


def slaves(master):
    return call(f"{master.url}/slaves").json["slaves"]


def metrics(program):
    return call(f"{program.url}/metrics/snapshot").json


# Shapes


def differences(record, value, where):
    """What is missing in an answer, or is not in a real one's."""
    if isinstance(value, list):
        return [each for one in value for each in differences(record, one, f"{where}[]")]
    shape = SHAPES["records"][record]
    found = [f"{where}.{name} is missing" for name in shape["required"] if name not in value]
    known = {*shape["required"], *shape.get("optional", ())}
    found += [f"{where}.{name} is not known" for name in value if name not in known]
    for name, part in shape.get("parts", {}).items():
        if name in value:
            found += differences(part, value[name], f"{where}.{name}")
    return found


def answers(master, agent):
    """{name in shapes.json: answer} of a master and an agent."""
    found = {f"master {name}": call(master.url + name).json
             for name in ("/state", "/slaves", "/tasks", "/frameworks", "/flags", "/version")}  # fmt: skip
    found.update({f"master {kind}": call(f"{master.url}/api/v1", body={"type": kind}).json for kind in V1})
    found["agent /state"] = call(f"{agent.url}/state").json
    for kind in ("GET_STATE", "GET_CONTAINERS"):
        found[f"agent {kind}"] = call(f"{agent.url}/api/v1", body={"type": kind}).json
    return found


@standin_only
def test_answers_have_the_fields_of_real_ones(path, zookeeper):
    with Masters(zookeeper) as masters, Agent(masters, attributes="rack:r1;level:3") as agent:
        master = masters.leader()
        framework = subscribe(master)
        gone = subscribe(master)
        assert launch(agent, framework, "stays", SLEEP, [31000]).status == 201
        assert launch(agent, framework, "ends", {"cmd": "true", "cpus": 0.1, "mem": 32}).status == 201
        wait_state(agent, "stays", "TASK_RUNNING")
        wait_state(agent, "ends", "TASK_FINISHED")
        assert call(f"{master.url}/standin/frameworks/{gone}", "DELETE").status == 200
        wait_for(lambda: len(call(f"{master.url}/tasks").json["tasks"]) == 2, "the master knows both tasks")
        found = answers(master, agent)
        assert set(found) == set(SHAPES["answers"])
        assert [each for name, one in found.items() for each in differences(SHAPES["answers"][name], one, name)] == []
        assert set(metrics(master)) >= set(SHAPES["metrics"])
        assert set(found["master /flags"]["flags"]) >= set(SHAPES["flags"]["master"]) - {"cluster", "log_dir"}
        given = {"attributes", "log_dir"}
        assert set(found["agent /state"]["flags"]) >= set(SHAPES["flags"]["agent"]) - given
        assert found["master /version"]["build_user"] == "stand-in"
        shown = found["master /slaves"]["slaves"][0]
        assert shown["attributes"] == {"rack": "r1", "level": 3.0}
        assert shown["resources"]["ports"] == "[31000-31099]"
        assert shown["used_resources"] == {"cpus": 0.5, "disk": 0.0, "gpus": 0.0, "mem": 64.0, "ports": "[31000-31000]"}
        states = {one["id"]: one["state"] for one in found["master /tasks"]["tasks"]}
        assert states == {"stays": "TASK_RUNNING", "ends": "TASK_FINISHED"}


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded answers are not here")
def test_shapes_are_those_of_recorded_answers():
    names = {name.replace("/", "").replace(" ", "_"): record for name, record in SHAPES["answers"].items()}
    names = {
        **{name.replace("master_GET", "master_v1_GET").replace("agent_GET", "agent_v1_GET"): record
           for name, record in names.items()},
        "top_flags": "flags", "top_version": "version",
    }  # fmt: skip
    compared, found = 0, []
    for file in sorted(RECORDED.glob("*/*.json")):
        if file.stem in names and file.stat().st_size:
            compared += 1
            found += differences(names[file.stem], json.loads(file.read_text()), f"{file.parent.name}/{file.stem}")
    assert compared > 20
    assert found == []


# Masters


def test_followers_send_to_the_leader(path, zookeeper):
    with Masters(zookeeper, 3) as masters, Agent(masters) as agent:
        leader = masters.leader()
        names = sorted(name for name in path.get_children("/mesos") if name.startswith("json.info_"))
        assert len(names) == 3
        assert all(len(name) == len("json.info_") + 10 and name[-10:].isdigit() for name in names)
        info = json.loads(path.get(f"/mesos/{names[0]}")[0])
        assert info["address"] == {"hostname": "127.0.0.1", "ip": "127.0.0.1", "port": leader.port}
        assert info["pid"] == f"master@127.0.0.1:{leader.port}"
        assert info["ip"] == 16777343
        assert info["version"] == call(f"{leader.url}/version").json["version"]
        for program in masters:
            assert metrics(program)["master/elected"] == float(program is leader)
            assert metrics(program)["registrar/log/ensemble_size"] == 3.0
            if program is leader:
                continue
            for where in ("/state", "/slaves", "/tasks", "/frameworks"):
                answer = call(program.url + where)
                assert (answer.status, answer.text) == (307, "")
                assert answer.headers["Location"] == f"//127.0.0.1:{leader.port}{where}"
            assert masters.v1("GET_AGENTS", program=program).status == 307
            for where in ("/health", "/flags", "/version", "/metrics/snapshot"):
                assert call(program.url + where).status == 200
            assert call(f"{program.url}/health").text == ""
        assert [one["id"] for one in slaves(leader)] == [agent.id]


@standin_only
def test_leader_killed(path, zookeeper):
    with Masters(zookeeper, 3) as masters, Agent(masters) as agent:
        old, identity = masters.leader(), agent.id
        framework = subscribe(old)
        assert launch(agent, framework, "stays", SLEEP).status == 201
        started = wait_state(agent, "stays", "TASK_RUNNING")["started"]
        old.kill()
        leader = masters.leader()
        assert leader is not old
        wait_for(lambda: [one["id"] for one in slaves(leader) if one["active"]] == [identity], "the agent is back")
        shown = call(f"{leader.url}/frameworks").json["frameworks"]
        assert [(one["id"], one["recovered"]) for one in shown] == [(framework, True)]
        assert [one["id"] for one in shown[0]["tasks"]] == ["stays"]
        body = {"name": "tests", "id": framework}
        assert call(f"{leader.url}/standin/frameworks", body=body).json == {"id": framework}
        shown = call(f"{leader.url}/frameworks").json["frameworks"][0]
        assert (shown["recovered"], shown["connected"], shown["name"]) == (False, True, "tests")
        assert task(agent, "stays")["started"] == started
        old.start()
        wait_for(lambda: call(f"{old.url}/state").status == 307, "the old leader follows")


def test_survivor_without_quorum_is_elected_and_cannot_recover(path, zookeeper):
    with Masters(zookeeper, 3, registry_fetch_timeout="8secs") as masters:
        leader = masters.leader()
        survivor, other = (program for program in masters if program is not leader)
        leader.kill()
        other.kill()
        wait_for(lambda: metrics(survivor)["master/elected"], "the survivor is elected")
        assert call(f"{survivor.url}/health").status == 200
        assert call(f"{survivor.url}/slaves").json == {"slaves": [], "recovered_slaves": []}
        assert call(f"{survivor.url}/state").json["leader"] == f"master@127.0.0.1:{survivor.port}"
        answer = masters.v1("GET_AGENTS", program=survivor)
        assert (answer.status, answer.text) == (503, "Master has not finished recovery")
        assert metrics(survivor)["registrar/log/ensemble_size"] == 1.0
        assert survivor.wait() == -signal.SIGABRT
        assert "Failed to perform fetch within 8secs" in survivor.output()


def test_survivor_recovers_when_another_one_comes_back(path, zookeeper):
    with Masters(zookeeper, 3) as masters, Agent(masters) as agent:
        leader, identity = masters.leader(), agent.id
        survivor, other = (program for program in masters if program is not leader)
        leader.kill()
        other.kill()
        wait_for(lambda: metrics(survivor)["master/elected"], "the survivor is elected")
        assert masters.v1("GET_AGENTS", program=survivor).status == 503
        other.start()
        wait_for(lambda: masters.v1("GET_AGENTS", program=survivor).status == 200, "it recovers")
        wait_for(lambda: [one["id"] for one in slaves(survivor)] == [identity], "the agent is back")


def test_leader_whose_followers_are_gone_goes_on_until_it_has_to_write(path, zookeeper):
    with Masters(zookeeper, 3, registry_store_timeout="2secs") as masters, Agent(masters) as agent:
        leader = masters.leader()
        for program in masters:
            if program is not leader:
                program.kill()
        wait_for(lambda: metrics(leader)["registrar/log/ensemble_size"] == 1.0, "the replicas are gone")
        answer = masters.v1("GET_AGENTS", program=leader)
        assert [one["agent_info"]["id"]["value"] for one in answer.json["get_agents"]["agents"]] == [agent.id]
        agent.program.signal(signal.SIGUSR1)
        assert leader.wait() == -signal.SIGABRT
        assert "Failed to perform store within 2secs" in leader.output()


def test_registry_survives_all_masters(path, zookeeper):
    with Masters(zookeeper, 3) as masters, Agent(masters) as agent:
        identity = agent.id
        agent.program.kill()
        for program in masters:
            program.stop()
        for program in masters:
            program.start()
        leader = masters.leader()
        assert [one["id"] for one in call(f"{leader.url}/slaves").json["recovered_slaves"]] == [identity]
        agent.start()
        wait_for(lambda: [one["id"] for one in slaves(leader)] == [identity], "the agent is back")


def test_first_start_waits_for_the_whole_ensemble(path, zookeeper):
    masters = Masters(zookeeper, 3)
    try:
        masters[0].start()
        masters[1].start()
        first, second = masters[0], masters[1]
        wait_for(lambda: metrics(first)["master/elected"] + metrics(second)["master/elected"], "one is elected")
        assert {metrics(first)["registrar/log/recovered"], metrics(second)["registrar/log/recovered"]} == {0.0}
        masters[2].start()
        masters.leader()
    finally:
        masters.__exit__()


def test_zookeeper_is_gone():
    with Zookeeper() as own, Masters(own, 2, 1) as masters:
        leader = masters.leader()
        follower = next(program for program in masters if program is not leader)
        own[0].kill()
        assert leader.wait() == 1
        assert "Lost leadership" in leader.output()
        wait_for(lambda: call(f"{follower.url}/state").status == 503, "the follower knows no leader")
        assert call(f"{follower.url}/health").status == 200
        own[0].start()
        assert masters.leader() is follower


def test_leader_of_zookeeper_is_gone():
    with Zookeeper(3) as own, Masters(own, 3) as masters, Agent(masters) as agent:
        masters.leader()
        identity = agent.id
        next(program for program in own if "Mode: leader" in own.word(program, b"srvr")).kill()
        wait_for(lambda: all("Mode: " in own.word(program, b"srvr") for program in own.alive), "ZooKeeper serves")

        def back():
            for program in [program for program in masters if not program.running]:
                program.start()  # as its unit does: who has lost the leadership ends
            return [one["id"] for one in slaves(masters.leader()) if one["active"]] == [identity]

        wait_for(back, "the agent is registered")
        assert masters.v1("GET_AGENTS").status == 200


# Flags

MASTER = {"ip": "127.0.0.1", "work_dir": "work", "zk": "zk://127.0.0.1:1/mesos", "quorum": 1}
AGENT = {"ip": "127.0.0.1", "work_dir": "work", "master": "127.0.0.1:1", "launcher": "posix",
         "systemd_enable_support": False, "runtime_dir": "run"}  # fmt: skip


def end(program, tmp_path, environment=None, **flags):
    """(status, what it says) of a program that ends by itself."""
    known = {"mesos-master": MASTER, "mesos-agent": AGENT, "mesos-execute": {}}[program]
    given = {name: value for name, value in {"port": free_port(), **known, **flags}.items() if value is not None}
    if program == "mesos-execute":
        del given["port"]
    done = subprocess.run(
        standin(program, **given), capture_output=True, text=True, timeout=30, cwd=tmp_path,
        env={**os.environ, **real_environment(), **(environment or {})},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


REFUSED = [
    ("mesos-master", {"unknown": "x"}, 1, "Failed to load unknown flag 'unknown'"),
    ("mesos-master", {"work_dir": None}, 1, "--work_dir"),
    ("mesos-master", {"quorum": None}, 1, "--quorum"),
    ("mesos-master", {"quorum": 0}, 1, "--quorum"),
    ("mesos-master", {"zk": "127.0.0.1:2181"}, 1, "zk://"),
    ("mesos-master", {"zk_session_timeout": "10"}, 1, "zk_session_timeout"),
    ("mesos-master", {"hostname_lookup": "maybe"}, 1, "hostname_lookup"),
    ("mesos-agent", {"unknown": "x"}, 1, "Failed to load unknown flag 'unknown'"),
    ("mesos-agent", {"work_dir": None}, 1, "'work_dir' is required"),
    ("mesos-agent", {"master": None}, 1, "--master"),
    ("mesos-agent", {"isolation": "posix"}, 1, "Unknown or unsupported isolator 'posix'"),
    ("mesos-agent", {"containerizers": "docker", "docker": "no-such-program"}, 1, "no-such-program"),
    ("mesos-agent", {"attributes": "rack"}, -signal.SIGABRT, "Invalid attribute key:value pair 'rack'"),
    ("mesos-agent", {"isolation": "cgroups/cpu,cgroups/mem"}, -signal.SIGABRT, "'linux' launcher"),
    ("mesos-agent", {"systemd_enable_support": True, "systemd_runtime_directory": "/nowhere"}, 1, "systemd"),
    ("mesos-agent", {"resources": "cpus"}, 1, "resource 'cpus'"),
    ("mesos-execute", {"name": "x", "command": "true"}, 1, "'master' is required"),
]


@pytest.mark.parametrize(("program", "flags", "status", "text"), REFUSED)
def test_flags_refused(tmp_path, program, flags, status, text):
    found, said = end(program, tmp_path, **flags)
    assert found == status, said
    assert text in said


@pytest.mark.parametrize("text", ["ann secret-of-ann\n", "{}", '{"credentials": [{"secret": "secret-of-ann"}]}'])
def test_credentials_that_are_no_json_of_theirs(tmp_path, text):
    file = tmp_path / "credentials"
    file.write_text(text)
    status, said = end("mesos-master", tmp_path, credentials=file)
    assert status == 1
    assert str(file) in said
    assert "secret-of-ann" not in said


def test_unknown_variables_are_ignored_and_known_ones_read(tmp_path):
    status, said = end("mesos-master", tmp_path, {"MESOS_NOT_A_FLAG": "1", "MESOS_QUORUM": "none"}, quorum=None)
    assert status == 1
    assert "'quorum'" in said
    assert "not_a_flag" not in said.lower()


@standin_only
def test_hybrid_control_groups_are_refused(tmp_path):
    for hybrid, text in ((True, "hybrid"), (False, "controller 'memory' is not available")):
        root = tmp_path / str(hybrid)
        root.mkdir()
        (root / "unified").mkdir() if hybrid else (root / "cgroup.controllers").write_text("cpu pids\n")
        status, said = end(
            "mesos-agent", tmp_path, launcher="linux", isolation="cgroups/cpu,cgroups/mem", cgroups_hierarchy=root
        )
        assert status == 1
        assert text in said


@standin_only
@pytest.mark.parametrize("program", ["mesos-master", "mesos-agent", "mesos-execute"])
def test_version(tmp_path, program):
    done = subprocess.run([*standin(program), "--version"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "mesos 1.12.0 (stand-in)\n"


# Who may ask


@pytest.fixture
def credentials(tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"credentials": [
        {"principal": "ann", "secret": "word-of-ann"}, {"principal": "agent", "secret": "word-of-agent"},
    ]}))  # fmt: skip
    return file


def one_credential(tmp_path, principal, secret):
    file = tmp_path / f"{principal}.json"
    file.write_text(json.dumps({"principal": principal, "secret": secret}))
    return file


def test_http_authentication(path, zookeeper, credentials):
    acls = {"view_flags": [{"principals": {"values": ["agent"]}, "flags": {"type": "NONE"}}]}
    with Masters(
        zookeeper, authenticate_http_readonly=True, authenticate_http_readwrite=True, credentials=credentials,
        acls=json.dumps(acls), asks=("ann", "word-of-ann"),
    ) as masters:  # fmt: skip
        url = masters.leader().url
        assert [call(url + where).status for where in ("/health", "/version")] == [200, 200]
        for where in ("/state", "/slaves", "/flags", "/metrics/snapshot", "/maintenance/status", "/api/v1"):
            answer = call(url + where, body={"type": "GET_AGENTS"} if where == "/api/v1" else None)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith('Basic realm="mesos-master-')
        assert call(f"{url}/state", credentials=("ann", "wrong")).status == 401
        assert call(f"{url}/state", credentials=("ann", "word-of-ann")).status == 200
        assert masters.v1("GET_AGENTS", ("ann", "word-of-ann")).status == 200
        assert call(f"{url}/flags", credentials=("ann", "word-of-ann")).status == 200
        assert call(f"{url}/flags", credentials=("agent", "word-of-agent")).status == 403


@standin_only
def test_frameworks_authenticate(path, zookeeper, credentials):
    with Masters(zookeeper, authenticate_frameworks=True, credentials=credentials) as masters:
        where = f"{masters.leader().url}/standin/frameworks"
        assert call(where, body={"name": "tests", "principal": "ann"}).status == 401
        assert call(where, body={"name": "tests"}, credentials=("ann", "wrong")).status == 401
        right = ("ann", "word-of-ann")
        assert call(where, body={"name": "tests", "principal": "agent"}, credentials=right).status == 403
        assert call(where, body={"name": "tests", "principal": "ann"}, credentials=right).status == 200
        assert call(f"{masters.leader().url}/standin/agents").status == 401


def test_agents_authenticate(path, zookeeper, credentials, tmp_path):
    with Masters(zookeeper, authenticate_agents=True, credentials=credentials) as masters:
        with Agent(masters, credential=one_credential(tmp_path, "agent", "word-of-agent")) as agent:
            assert [one["id"] for one in slaves(masters.leader())] == [agent.id]
        with Agent(masters, wait=False, credential=one_credential(tmp_path, "agent", "wrong")) as agent:
            assert agent.program.wait() == 1
            assert "refused authentication" in agent.program.output()
        with Agent(masters, wait=False) as agent:
            wait_for(lambda: agent.program.answers("/health").status == 200, "the agent answers")
            with pytest.raises(TimeoutError):
                wait_for(lambda: agent.id, "", 2)
            assert agent.program.running
            assert metrics(masters.leader())["master/slaves_connected"] == 0.0


@standin_only
def test_agent_asks_who_asks(path, zookeeper, credentials):
    with (
        Masters(zookeeper) as masters,
        Agent(
            masters, wait=False, http_credentials=credentials, authenticate_http_readonly=True,
            authenticate_http_readwrite=True,
        ) as agent,
    ):  # fmt: skip
        offer = wait_for(lambda: call(f"{masters.leader().url}/standin/agents").json, "the agent is registered")[0]
        assert call(f"{agent.url}/health").status == 200
        assert call(f"{agent.url}/state").status == 401
        assert call(f"{agent.url}/standin/tasks").status == 401
        assert call(f"{agent.url}/state", credentials=("ann", "word-of-ann")).status == 200
        assert call(f"{agent.url}/standin/tasks", credentials=("ann", "word-of-ann")).status == 200
        token = {"Authorization": f"Bearer {offer['token']}"}
        assert call(f"{agent.url}/standin/tasks", headers=token).json == []
        assert call(f"{agent.url}/standin/tasks", headers={"Authorization": "Bearer x"}).status == 401


# Agents


def test_paths_of_an_agent(path, zookeeper):
    with Masters(zookeeper) as masters, Agent(masters) as agent:
        assert call(f"{agent.url}/slave(1)/state").json["id"] == call(f"{agent.url}/state").json["id"]
        assert call(f"{agent.url}/slave/state").status == 404
        assert call(f"{agent.url}/api/v1", body={"type": "GET_METRICS"}).status == 400
        assert masters.v1("GET_METRICS").status == 400
        assert call(f"{masters.leader().url}/api/v1").status == 405
        assert call(f"{masters.leader().url}/api/v1", body=b"{", headers={"Content-Type": "text/plain"}).status == 415
        assert masters.v1("NOT_A_CALL").status == 400
        assert masters.v1("GET_METRICS", get_metrics={}).status == 200


def test_changed_agent(path, zookeeper):
    with Masters(zookeeper) as masters, Agent(masters, resources="cpus:2;mem:512;disk:1;ports:[31000-31009]") as agent:
        identity = agent.id
        latest = agent.program.folder / "work" / "meta" / "slaves" / "latest"
        assert latest.resolve().name == identity
        agent.program.stop()
        agent.start()
        assert agent.id == identity
        agent.program.stop()

        agent.set(resources="cpus:4;mem:512;disk:1;ports:[31000-31009]")
        agent.program.start()
        assert agent.program.wait() == 1
        assert "Incompatible agent info" in agent.program.output()
        assert f"rm -f {latest}" in agent.program.output()

        agent.set(reconfiguration_policy="additive", attributes="rack:r1")
        agent.start()
        assert agent.id == identity
        wait_for(lambda: slaves(masters.leader())[0]["resources"]["cpus"] == 4, "the master knows it")
        assert slaves(masters.leader())[0]["attributes"] == {"rack": "r1"}
        agent.program.stop()

        agent.set(resources="cpus:4;mem:256;disk:1;ports:[31000-31009]")
        agent.program.start()
        assert agent.program.wait() == 1
        latest.unlink()
        agent.start()
        assert agent.id != identity
        wait_for(lambda: [one["id"] for one in slaves(masters.leader())] == [agent.id], "the old one is gone")
        assert metrics(masters.leader())["master/slave_removals/reason_registered"] == 1.0


@standin_only
def test_terminated_agent_is_disconnected_then_unreachable(path, zookeeper):
    with (
        Masters(zookeeper, agent_ping_timeout="1secs", max_agent_ping_timeouts=7) as masters,
        Agent(masters) as agent,
    ):
        master, identity = masters.leader(), agent.id
        framework = subscribe(master)
        assert launch(agent, framework, "stays", SLEEP).status == 201
        started = wait_state(agent, "stays", "TASK_RUNNING")["started"]
        agent.program.signal(signal.SIGTERM)
        assert agent.program.wait() == 0
        wait_for(lambda: metrics(master)["master/slaves_disconnected"] == 1.0, "it is disconnected")
        assert [(one["id"], one["active"]) for one in slaves(master)] == [(identity, False)]
        wait_for(lambda: metrics(master)["master/slaves_unreachable"] == 1.0, "it is unreachable")
        assert slaves(master) == []
        shown = call(f"{master.url}/frameworks").json["frameworks"][0]
        assert [(one["id"], one["state"]) for one in shown["unreachable_tasks"]] == [("stays", "TASK_UNREACHABLE")]
        agent.start()
        wait_for(lambda: [one["id"] for one in slaves(master)] == [identity], "it is back")
        assert task(agent, "stays")["started"] == started
        assert call(f"{master.url}/frameworks").json["frameworks"][0]["unreachable_tasks"] == []
        assert metrics(master)["master/slaves_unreachable"] == 0.0


@standin_only
def test_agent_that_unregisters(path, zookeeper):
    with Masters(zookeeper) as masters, Agent(masters) as agent:
        master, identity = masters.leader(), agent.id
        assert launch(agent, subscribe(master), "stays", SLEEP).status == 201
        wait_state(agent, "stays", "TASK_RUNNING")
        agent.program.signal(signal.SIGUSR1)
        assert agent.program.wait() == 0
        assert slaves(master) == []
        assert metrics(master)["master/slave_removals/reason_unregistered"] == 1.0
        assert not os.path.lexists(agent.program.folder / "work" / "meta" / "slaves" / "latest")
        agent.start()
        assert agent.id != identity
        assert agent.tasks() == []


# Tasks


@pytest.fixture
def cluster(path, zookeeper):
    with Masters(zookeeper) as masters, Agent(masters) as agent:
        yield masters, agent, None if REAL else subscribe(masters.leader())


@standin_only
def test_task_finds_its_environment(cluster):
    _masters, agent, framework = cluster
    definition = {"cmd": "env; pwd; echo wrong >&2", "cpus": 0.1, "mem": 32, "version": "v1", "env": {"FROM": "app"}}
    assert launch(agent, framework, "env", definition, [31005, 31006], {"MORE": "two\nlines"}).status == 201
    done = wait_state(agent, "env", "TASK_FINISHED")
    assert (done["message"], done["ports"]) == ("Command exited with status 0", [31005, 31006])
    sandbox = next((agent.program.folder / "work").glob("slaves/*/frameworks/*/executors/env/runs/latest"))
    said = (sandbox / "stdout").read_text()
    for line in ("HOST=127.0.0.1", "PORT=31005", "PORT0=31005", "PORT1=31006", "PORTS=31005,31006", "FROM=app",
                 "MARATHON_APP_ID=/dodas/env", "MARATHON_APP_VERSION=v1", "MARATHON_APP_RESOURCE_CPUS=0.1",
                 "MARATHON_APP_RESOURCE_MEM=32.0", "MESOS_TASK_ID=env", "MORE=two",
                 f"MESOS_SANDBOX={sandbox.resolve()}"):  # fmt: skip
        assert f"{line}\n" in said
    assert said.splitlines()[-1] == str(sandbox.resolve())
    assert (sandbox / "stderr").read_text() == "wrong\n"


@standin_only
@pytest.mark.parametrize(("command", "state", "message"), [
    ("exit 3", "TASK_FAILED", "Command exited with status 3"),
    ("kill -9 $$", "TASK_FAILED", "Command terminated with signal Killed"),
])  # fmt: skip
def test_task_that_fails(cluster, command, state, message):
    _masters, agent, framework = cluster
    assert launch(agent, framework, "fails", {"cmd": command, "cpus": 0.1, "mem": 32}).status == 201
    assert wait_state(agent, "fails", state)["message"] == message


@standin_only
def test_resources_are_given_once(cluster):
    masters, agent, framework = cluster
    assert launch(agent, framework, "one", {**SLEEP, "cpus": 1.5}, [31000]).status == 201
    for ports, definition, text in (
        ([31000], SLEEP, "ports: 31000"), ([40000], SLEEP, "ports: 40000"), ([], {**SLEEP, "cpus": 1}, "cpus: 1"),
        ([], {**SLEEP, "mem": 10000}, "mem: 10000"),
    ):  # fmt: skip
        answer = launch(agent, framework, "two", definition, ports)
        assert answer.status == 409
        assert answer.json["message"].startswith(text)
    assert launch(agent, framework, "one", SLEEP).status == 409

    def used():
        return [one for one in call(f"{masters.leader().url}/standin/agents").json if one["used"]["cpus"]]

    offer = wait_for(used, "the master knows what is used")[0]
    assert offer["used"]["ports"] == [31000]
    assert offer["resources"]["ports"] == [[31000, 31099]]
    assert call(f"{agent.url}/standin/tasks/one", "DELETE").status == 202
    assert wait_state(agent, "one", "TASK_KILLED")["message"] == "Killed by its framework"
    assert launch(agent, framework, "two", {**SLEEP, "cpus": 2}, [31000]).status == 201


@standin_only
def test_grace_when_killed(cluster):
    _masters, agent, framework = cluster
    stays = {"cmd": "trap 'echo asked' TERM; echo started; while :; do sleep 0.1; done", "cpus": 0.1, "mem": 32}
    assert launch(agent, framework, "stays", stays).status == 201
    work = agent.program.folder / "work"
    sandbox = wait_for(lambda: list(work.glob("slaves/**/runs/latest")), "it has a sandbox")[0]
    wait_for(lambda: (sandbox / "stdout").read_text() == "started\n", "it runs")
    assert call(f"{agent.url}/standin/tasks/stays?grace=1", "DELETE").status == 202
    wait_state(agent, "stays", "TASK_KILLED")
    assert (sandbox / "stdout").read_text() == "started\nasked\n"
    assert call(f"{agent.url}/standin/tasks/unknown", "DELETE").status == 404


@standin_only
def test_restarted_agent_knows_how_its_tasks_ended(cluster):
    _masters, agent, framework = cluster
    file = agent.program.folder / "go"
    waits = {"cmd": f"while [ ! -e {file} ]; do sleep 0.1; done; exit 4", "cpus": 0.1, "mem": 32}
    assert launch(agent, framework, "ends", waits).status == 201
    assert launch(agent, framework, "stays", SLEEP).status == 201
    for name in ("ends", "stays"):
        wait_state(agent, name, "TASK_RUNNING")
    records = list((agent.program.folder / "work" / "meta" / "slaves" / "latest" / "tasks").glob("*.json"))
    assert {record.stat().st_mode & 0o777 for record in records} == {0o600}
    agent.program.kill()
    file.touch()
    wait_for(lambda: list((agent.program.folder / "work").glob("slaves/**/runs/*.status")), "it has ended")
    agent.start()
    assert wait_state(agent, "ends", "TASK_FAILED")["message"] == "Command exited with status 4"
    assert task(agent, "stays")["state"] == "TASK_RUNNING"
    assert call(f"{agent.url}/standin/tasks/stays", "DELETE").status == 202
    wait_state(agent, "stays", "TASK_KILLED")


HTTP = "exec python3 -c 'import http.server as h, os; os.chdir(os.environ[\"ROOT\"]); " \
       "h.ThreadingHTTPServer((\"127.0.0.1\", int(os.environ[\"PORT0\"])), h.SimpleHTTPRequestHandler)" \
       ".serve_forever()'"  # fmt: skip


@standin_only
@pytest.mark.parametrize("protocol", ["MESOS_HTTP", "HTTP", "MESOS_TCP", "TCP", "COMMAND"])
def test_health_checks(cluster, tmp_path, protocol):
    _masters, agent, framework = cluster
    (tmp_path / "health").write_text("fine\n")
    check = {"protocol": protocol, "path": "/health", "portIndex": 0, "command": {"value": "test -e $ROOT/health"},
             "gracePeriodSeconds": 60, "intervalSeconds": 0.2, "timeoutSeconds": 5,
             "maxConsecutiveFailures": 2}  # fmt: skip
    port = free_port()
    agent.program.stop()
    agent.set(resources=f"cpus:2;mem:512;disk:1;ports:[{port}-{port}]", reconfiguration_policy="additive")
    (agent.program.folder / "work" / "meta" / "slaves" / "latest").unlink()
    agent.start()
    definition = {"cmd": HTTP, "cpus": 0.1, "mem": 32, "healthChecks": [check], "env": {"ROOT": str(tmp_path)}}
    assert launch(agent, framework, "web", definition, [port]).status == 201
    wait_for(lambda: task(agent, "web")["healthy"] is True, "it is healthy")
    if protocol in ("TCP", "MESOS_TCP"):
        return  # it fails only with the task itself
    (tmp_path / "health").unlink()
    done = wait_state(agent, "web", "TASK_KILLED")
    assert done["message"].startswith("Killed after 2 consecutive failures of a health check: ")
    assert done["healthy"] is False


@standin_only
def test_failures_in_the_grace_period_do_not_count(cluster):
    _masters, agent, framework = cluster
    never = {"protocol": "COMMAND", "command": {"value": "echo not yet; false"}, "intervalSeconds": 0.1,
             "timeoutSeconds": 5, "maxConsecutiveFailures": 2}  # fmt: skip
    patient = {**SLEEP, "healthChecks": [{**never, "gracePeriodSeconds": 60}]}
    strict = {**SLEEP, "healthChecks": [{**never, "gracePeriodSeconds": 0}]}
    lenient = {**SLEEP, "healthChecks": [{**never, "gracePeriodSeconds": 0, "maxConsecutiveFailures": 0}]}
    for name, definition in (("patient", patient), ("strict", strict), ("lenient", lenient)):
        assert launch(agent, framework, name, definition).status == 201
    assert "exited with status 1: not yet" in wait_state(agent, "strict", "TASK_KILLED")["message"]
    wait_for(lambda: task(agent, "lenient")["healthy"] is False, "lenient is unhealthy")
    assert task(agent, "lenient")["state"] == "TASK_RUNNING"
    one = task(agent, "patient")
    assert (one["state"], one["healthy"]) == ("TASK_RUNNING", None)
    assert "not yet" in one["health_output"]


@standin_only
def test_framework_that_goes_takes_its_tasks_along(cluster):
    masters, agent, framework = cluster
    assert launch(agent, framework, "stays", SLEEP).status == 201
    wait_state(agent, "stays", "TASK_RUNNING")
    url = masters.leader().url
    wait_for(lambda: call(f"{url}/tasks").json["tasks"], "the master knows the task")
    assert call(f"{url}/standin/frameworks/{framework}", "DELETE").status == 200
    wait_state(agent, "stays", "TASK_KILLED")
    assert call(f"{url}/standin/frameworks", body={"name": "tests", "id": framework}).status == 403
    assert [one["id"] for one in call(f"{url}/frameworks").json["completed_frameworks"]] == [framework]


# Maintenance


def test_maintenance_of_a_machine(cluster):
    masters, agent, _framework = cluster
    url = masters.leader().url
    machine = {"hostname": "127.0.0.1", "ip": "127.0.0.1"}
    window = {"machine_ids": [machine], "unavailability": {"start": {"nanoseconds": 0}}}
    assert call(f"{url}/maintenance/schedule").json == {}
    for one, text in ((machine, "is not in DRAINING mode"), ({"ip": "10.0.0.1"}, "not part of a maintenance schedule")):
        answer = call(f"{url}/machine/down", body=[one])
        assert answer.status == 400
        assert text in answer.text
    for wrong in ({"windows": [{"machine_ids": [], "unavailability": {"start": {"nanoseconds": 0}}}]},
                  {"windows": [{"machine_ids": [machine]}]}, {"windows": [window, window]},
                  {"windows": [{**window, "machine_ids": [{"ip": "300.1.1.1"}]}]}):  # fmt: skip
        assert call(f"{url}/maintenance/schedule", body=wrong).status == 400
    assert call(f"{url}/maintenance/schedule", body={"windows": [window]}).status == 200
    assert call(f"{url}/maintenance/schedule").json == {"windows": [window]}
    assert call(f"{url}/maintenance/status").json == {"draining_machines": [{"id": machine}]}
    if not REAL:
        assert [one["active"] for one in call(f"{url}/standin/agents").json] == [False]
    assert call(f"{url}/machine/up", body=[machine]).status == 400
    assert call(f"{url}/machine/down", body=[machine]).status == 200
    assert agent.program.wait() == 0
    assert call(f"{url}/maintenance/status").json == {"down_machines": [machine]}
    assert slaves(masters.leader()) == []
    assert call(f"{url}/maintenance/schedule", body={"windows": []}).status == 400
    agent.program.start()
    assert agent.program.wait() == 0
    assert "DOWN" in agent.program.output()
    assert call(f"{url}/machine/up", body=[machine]).status == 200
    assert call(f"{url}/maintenance/status").json == {}
    agent.start()
    assert len(slaves(masters.leader())) == 1
    if not REAL:
        assert [one["active"] for one in call(f"{url}/standin/agents").json] == [True]


@standin_only
def test_draining(cluster):
    masters, agent, framework = cluster
    master, identity = masters.leader(), {"value": agent.id}
    assert masters.v1("DRAIN_AGENT", drain_agent={"agent_id": {"value": "nobody"}}).status == 400
    assert masters.v1("DRAIN_AGENT").status == 400
    assert masters.v1("DRAIN_AGENT", drain_agent={"agent_id": identity, "max_grace_period": "1secs"}).status == 400
    assert launch(agent, framework, "stays", {**SLEEP, "taskKillGracePeriodSeconds": 300}).status == 201
    wait_state(agent, "stays", "TASK_RUNNING")
    wait_for(lambda: call(f"{master.url}/tasks").json["tasks"], "the master knows the task")
    drain = {"agent_id": identity, "max_grace_period": {"nanos": 500000000}}
    assert masters.v1("DRAIN_AGENT", drain_agent=drain).status == 200
    wait_state(agent, "stays", "TASK_KILLED")

    def drained():
        one = slaves(master)[0]
        return one["drain_info"]["state"] == "DRAINED" and one

    shown = wait_for(drained, "it is drained")
    assert (shown["active"], shown["deactivated"]) == (False, True)
    assert differences("agent_whole", shown, "agent") == []
    one = masters.v1("GET_AGENTS").json["get_agents"]["agents"][0]
    assert differences("v1_agent", one, "agent") == []
    assert one["drain_info"] == {
        "state": "DRAINED", "config": {"mark_gone": False, "max_grace_period": {"nanoseconds": 500000000}}
    }  # fmt: skip
    assert launch(agent, framework, "more", SLEEP).status == 409
    assert masters.v1("REACTIVATE_AGENT", reactivate_agent={"agent_id": identity}).status == 200
    wait_for(lambda: slaves(master)[0]["active"], "it is active")
    wait_for(lambda: launch(agent, framework, "more", SLEEP).status == 201, "it takes tasks")
    assert masters.v1("DEACTIVATE_AGENT", deactivate_agent={"agent_id": identity}).status == 200
    wait_for(lambda: not slaves(master)[0]["active"], "it is not active")
    assert task(agent, "more")["state"] in ("TASK_STAGING", "TASK_RUNNING")


def test_agent_marked_gone_never_comes_back(cluster):
    masters, agent, _framework = cluster
    drain = {"agent_id": {"value": agent.id}, "mark_gone": True}
    assert masters.v1("DRAIN_AGENT", drain_agent=drain).status == 200
    assert agent.program.wait() == 0
    assert slaves(masters.leader()) == []
    assert "gone" in agent.program.output()


# mesos-execute


def execute(masters, **flags):
    return subprocess.run(
        standin("mesos-execute", master=masters.zk, **flags),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **real_environment()},
    )


def test_execute(cluster):
    masters, _agent, _framework = cluster
    done = execute(masters, name="hello", command="echo hello $FOO", env='{"FOO": "bar"}', resources="cpus:0.1;mem:32")
    assert done.returncode == 0
    assert "Received status update TASK_FINISHED for task 'hello'" in done.stdout
    done = execute(masters, name="fails", command="exit 7")
    assert done.returncode == 0
    assert "update TASK_FAILED for task 'fails'\n  message: 'Command exited with status 7'" in done.stdout
    shown = call(f"{masters.leader().url}/frameworks").json["completed_frameworks"]
    assert [one["name"] for one in shown] == ["mesos-execute instance"] * 2


def test_execute_waits_for_resources_that_nobody_has(cluster):
    masters, _agent, _framework = cluster
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run(
            standin("mesos-execute", master=masters.zk, name="big", command="true", resources="cpus:100;mem:32"),
            capture_output=True, timeout=4, check=False, env={**os.environ, **real_environment()},
        )  # fmt: skip
    assert b"Submitted" not in caught.value.stdout


# The archive


@standin_only
def test_archive(tmp_path):
    build = [sys.executable, str(STANDINS / "mesos" / "build.py")]
    for name in ("one", "two"):
        subprocess.run([*build, str(tmp_path / f"{name}.tar.gz")], check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as tar:
        names = set(tar.getnames())
        tar.extractall(tmp_path / "tree", filter="data")
    assert {"bin/mesos-master", "bin/mesos-agent", "bin/mesos-execute", "lib", "libexec/mesos", "share/mesos"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("/")]
    for program in sorted((tmp_path / "tree" / "bin").iterdir()):
        assert program.stat().st_mode & 0o777 == 0o755
        for python in pythons():
            # Without anything that is installed for this Python: all it needs is in the archive.
            words = [python, "-I", "-S", "-B", str(program), "--version"]
            assert "stand-in" in subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


def pythons():
    """This Python, and the oldest that hosts have where it can be had."""
    found = [sys.executable]
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        old = shutil.which("python3.9")
        if old and not subprocess.run([old, "--version"], capture_output=True, timeout=20, check=False).returncode:
            found.append(old)
    return found

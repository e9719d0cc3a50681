# SPDX-License-Identifier: Apache-2.0
"""The modules through Ansible itself, on the stand-ins."""

import json

import pytest

from ansible_runtime import Ansible

SECRET = "hunter2-hunter2"
APP = {"id": "/modules/a", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16, "env": {"PASSWORD": SECRET}}


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """(Ansible, parameters that lead to Marathon)"""
    folder = tmp_path_factory.mktemp("marathon-modules")
    path = folder / "credentials"
    path.write_text(":".join(cluster.marathon.credentials))
    path.chmod(0o600)
    return Ansible(folder), {"urls": cluster.marathon.urls, "credentials_file": str(path), "timeout": 120}


def app(connection, *apps, **more):
    return "dodas.cluster.marathon_app", {**connection, "apps": list(apps), **more}


def group(connection, **more):
    return "dodas.cluster.marathon_group", {**connection, **more}


def info(connection, **more):
    return "dodas.cluster.marathon_app_info", {**connection, **more}


def test_from_nothing_to_nothing(place):
    ansible, connection = place
    as_json = json.dumps({"id": "/modules/b", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16})
    done = ansible.play(
        app(connection, APP, as_json),
        app(connection, APP, as_json),
        info(connection, ids=["/modules"]),
        app(connection, {**APP, "instances": 2}),
        app(connection, {"id": "/modules/a"}, state="restarted"),
        app(connection, {"id": "/modules/none"}, state="restarted"),
        info(connection, ids=["/modules/a"], environment=True),
        app(connection, {"id": "/modules/a"}, {"id": "/modules/b"}, {"id": "/modules/c"}, state="absent"),
        app(connection, {"id": "/modules/a"}, {"id": "/modules/b"}, state="absent"),
    )
    first, second, seen, scaled, restarted, failed, open_, removed, nothing = done.results
    assert [one["action"] for one in first["changes"]] == ["created", "created"], first
    assert len(first["deployments"]) == 1
    assert not second["changed"], second
    assert second["deployments"] == []
    assert [(one["id"], one["tasksRunning"], one["reasons"]) for one in seen["apps"]] == [
        ("/modules/a", 1, []), ("/modules/b", 1, [])]  # fmt: skip
    assert seen["apps"][0]["env"] == {"PASSWORD": "(hidden)"}
    assert seen["leader"]
    assert seen["version"]
    assert scaled["changes"] == [{"id": "/modules/a", "action": "scaled", "fields": ["instances"]}]
    assert restarted["changes"][0]["action"] == "restarted"
    assert failed["msg"] == "cannot be restarted, since they are not there: /modules/none"
    assert open_["apps"][0]["env"] == {"PASSWORD": SECRET}
    assert len(open_["apps"][0]["tasks"]) == 2
    assert [one["id"] for one in removed["changes"]] == ["/modules/a", "/modules/b"]
    assert not nothing["changed"]


def test_check_mode_changes_nothing_and_no_output_has_secrets(place):
    ansible, connection = place
    changed = {**APP, "env": {"PASSWORD": SECRET + "2", "MODE": "x"}}
    ansible.play(app(connection, APP))
    try:
        done = ansible.play(
            app(connection, changed, {"id": "/modules/new", "cmd": "true"}),
            app(connection, {"id": "/modules/a"}, state="restarted"),
            app(connection, {"id": "/modules/a"}, state="absent"),
            group(connection, id="/modules", apps=[]),
            group(connection, id="/modules", state="absent"),
            info(connection, ids=["/modules"]),
            options=["--check", "--diff", "-vvv"],
        )
        present, restarted, absent, emptied, gone, seen = done.results
        assert present["changes"] == [
            {"id": "/modules/a", "action": "changed", "fields": ["env"]},
            {"id": "/modules/new", "action": "created", "fields": ["cmd", "id"]},
        ]
        assert present["diff"][0]["after"]["env"] == {"PASSWORD": "(hidden, another)", "MODE": "(hidden)"}
        assert restarted["changed"] and absent["changed"] and emptied["changed"] and gone["changed"]
        assert [one["id"] for one in emptied["changes"]] == ["/modules/a"]
        assert [(one["id"], one["instances"], len(one["tasks"])) for one in seen["apps"]] == [("/modules/a", 1, 1)]
        # the playbook that Ansible shows at -vvv is ours, the results are the modules'
        assert SECRET not in json.dumps(done.results)
        assert SECRET not in done.output
    finally:
        ansible.play(app(connection, {"id": "/modules/a"}, state="absent"))


def test_groups(place):
    ansible, connection = place
    one = {**APP, "id": "a"}
    other = {"id": "b", "cmd": "exec sleep 1000", "cpus": 0.1, "mem": 16, "dependencies": ["a"]}
    done = ansible.play(
        group(connection, id="/grouped", apps=[one, other]),
        group(connection, id="grouped", apps=[one, json.dumps(other)]),
        group(connection, id="/grouped", groups=[{"id": "deep", "apps": [one]}]),
        group(connection, id="/grouped", apps=[one]),
        group(connection, id="/grouped", state="absent"),
        group(connection, id="/grouped", state="absent"),
    )
    made, same, more, smaller, removed, nothing = done.results
    assert [one["action"] for one in made["changes"]] == ["created", "created", "created"], made
    assert not same["changed"], same
    assert [one["id"] for one in more["changes"]] == ["/grouped/deep/a", "/grouped"]
    assert smaller["changes"] == [{"id": "/grouped/b", "action": "removed", "fields": []}]
    assert {one["id"] for one in removed["changes"]} == {"/grouped", "/grouped/a", "/grouped/deep/a"}
    assert not nothing["changed"]


def test_what_is_late_is_explained_and_rolled_back(place):
    ansible, connection = place
    brief = {**connection, "timeout": 5}
    done = ansible.play(
        app(brief, {**APP, "cpus": 4}, rollback_on_failure=True),
        info(connection, ids=["/modules"]),
        app(brief, {**APP, "cpus": 4}, wait=False),
        app(brief, {**APP, "cpus": 0.1}),
        info(connection, ids=["/modules"]),
        app(connection, {**APP, "cpus": 0.1}, force=True),
        app(connection, {"id": "/modules/a"}, state="absent"),
    )
    late, empty, sent, locked, waiting, forced, removed = done.results
    assert "no offer has 4 cpus: the largest has 2 (" in late["msg"]
    assert late["msg"].endswith(". It was rolled back")
    assert empty["apps"] == []
    assert sent["changed"]
    assert f"still locked by deployment {sent['deployments'][0]} of" in locked["msg"]
    (app_there,) = waiting["apps"]
    assert app_there["reasons"][0] == "0 of 1 instances run"
    assert app_there["reasons"][1].startswith("no offer has 4 cpus: the largest has 2 (")
    assert [one["id"] for one in waiting["deployments"]] == sent["deployments"]
    assert forced["changed"], forced
    assert removed["changed"], removed


def test_wrong_parameters_are_one_clear_line_before_anything_changes(place):
    ansible, connection = place
    agents = [{"hostname": "worker-1", "resources": {"cpus": 2, "mem": 512, "disk": 500}}]
    nobody = {**connection, "credentials_file": "/nowhere/credentials"}
    wrong = [
        (app(connection, {**APP, "instance": 2}), "app /modules/a: instance: unknown field; did you mean instances?"),
        (app(connection, '{"id": "/modules/a", "cmd": "x",}'), "trailing comma"),
        (app(connection, {**APP, "cpus": 3}, agents=agents), "cpus: no agent has 3 cpus: the largest, worker-1, has 2"),
        (app(connection, {**APP, "dependencies": ["/x"]}), "app /modules/a: dependencies[0]: there is no app /x"),
        (app(connection, {"id": "/"}, state="absent"), "the root is no app"),
        (app(connection, {}, state="absent"), "app definition.id: is missing"),
        (group(connection, id="/modules", groups=[{"id": "a", "scaleBy": 2}]), "group /modules: groups[0].scaleBy: "),
        (info(connection, ids=["A b"]), "each part must be"),
        (app(nobody, APP), "/nowhere/credentials: cannot be read"),
        (app({**connection, "urls": ["http://front-1:8080"]}, APP), "by https only"),
        (app({"urls": connection["urls"]}, APP), "wants a user name and a password"),
        (app({"urls": ["http://127.0.0.1:9"], "timeout": 1}, APP), "no Marathon answered within 1 s: http://127.0.0.1:9"),
    ]
    done = ansible.play(*(task for task, _message in wrong), info(connection, ids=["/modules"]))
    *failures, seen = done.results
    for (_task, message), failed in zip(wrong, failures, strict=True):
        assert failed["failed"], message
        assert message in failed["msg"], (message, failed["msg"])
    assert seen["apps"] == []


def test_force_ends_what_locks_an_app_that_is_as_it_shall_be(place):
    ansible, connection = place
    large = {"id": "/modules/large", "cmd": "exec sleep 1000", "cpus": 1000, "mem": 16}
    done = ansible.play(
        app(connection, large, wait=False),
        app(connection, large, wait=False, force=True),
        info(connection, ids=["/modules"]),
        group(connection, id="/modules", apps=[], force=True),
    )
    first, second, seen, _removed = done.results
    assert len(first["deployments"]) == 1
    assert not second["changed"]
    assert first["deployments"][0] not in [one["id"] for one in seen["deployments"]], seen["deployments"]

# SPDX-License-Identifier: Apache-2.0
"""Probes: they hold, or say why not, in time."""

import time

import pytest

from agent_runtime import Server
from ansible_collections.dodas.cluster.plugins.module_utils import probes


def sh(script, **more):
    return {"name": "one", "command": ["sh", "-c", script], **more}


@pytest.mark.parametrize(
    ("probe", "ok", "output"),
    [
        (sh("echo first; echo second"), True, "first"),
        (sh("true"), True, "ok"),
        (sh("echo '3 hosts'", expect=r"(\d+) hosts"), True, "3"),
        (sh("echo a; echo 'n = 7'", expect=r"^n = (\d+)$"), True, "7"),
        (sh("echo here", expect="(there)?"), True, "here"),
        (sh("echo '2 hosts'", expect="3 hosts"), False, "expected 3 hosts, got 2 hosts"),
        (sh("true", expect="x"), False, "expected x, got nothing"),
        (sh("echo ignored; echo one >&2; echo 'last error' >&2; exit 3"), False, "last error"),
        (sh("echo 'only output'; exit 3"), False, "only output"),
        (sh("exit 3"), False, "exit status 3"),
        (sh("kill -9 $$"), False, "exit status -9"),
        (sh(r"printf '\377\376'"), True, "��"),
        (sh("true", expect="("), False, "expect is no regular expression"),
        (
            {"name": "x", "command": ["no-such-program-here"]},
            False,
            "No such file or directory: 'no-such-program-here'",
        ),
        (sh("cat"), True, "ok"),
    ],
)
def test_what_a_probe_finds(probe, ok, output):
    (found,) = probes.run([probe], 0)
    assert found["ok"] is ok
    assert found["output"].endswith(output) if ok or "No such" in output else output in found["output"]


def test_results_keep_names_details_and_order():
    found = probes.run([sh("echo 1", detail="d"), sh("false")], 0)
    assert [(one["name"], one["ok"], one["detail"]) for one in found] == [("one", True, "d"), ("one", False, "")]


def test_it_is_tried_until_it_holds_and_each_holds_once(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "PAUSE", 0.01)
    count = tmp_path / "count"
    grows = sh(f"echo x >> {count}; test $(wc -l < {count}) -ge 3 && echo there")
    once = sh(f"echo x >> {tmp_path / 'once'}")
    found = probes.run([grows, once], 10)
    assert [one["ok"] for one in found] == [True, True]
    assert (tmp_path / "once").read_text() == "x\n"


@pytest.mark.parametrize("script", ["sleep 30", "sleep 30 & wait", "(sleep 30) | cat"])
def test_the_deadline_holds_whatever_hangs(monkeypatch, script):
    monkeypatch.setattr(probes, "SHORTEST", 0.1)
    start = time.monotonic()
    found = probes.run([sh(script), sh(script), sh("echo fine")], 1)
    assert time.monotonic() - start < 3
    assert [one["ok"] for one in found] == [False, False, True]
    assert found[0]["output"] == "sh: no answer in 1 s"


def test_the_last_error_is_the_one_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "PAUSE", 0.01)
    flag = tmp_path / "flag"
    changes = sh(f"test -e {flag} && echo 'second reason' >&2 || echo 'first reason' >&2; touch {flag}; exit 1")
    (found,) = probes.run([changes], 0.3)
    assert found["output"] == "second reason"


@pytest.fixture
def web():
    one = Server()
    yield one
    one.close()


def url(web, path="/health", **more):
    return {"name": "one", "url": f"http://web.service.consul:{web.port}{path}",
            "resolve": {"web.service.consul": "127.0.0.1"}, **more}  # fmt: skip


def test_a_url_is_asked_under_its_name_and_answers_with_headers_and_body(web):
    (found,) = probes.run([url(web, expect="(fine)")], 0)
    assert (found["ok"], found["output"]) == (True, "fine")
    (found,) = probes.run([url(web, expect="(?i)^server: (Base)")], 0)
    assert (found["ok"], found["output"]) == (True, "Base")
    web.status, web.body = 503, b"no database\n"
    (found,) = probes.run([url(web)], 0)
    assert (found["ok"], found["output"]) == (False, "HTTP 503: no database")
    assert set(web.asked) == {"/health"}


def test_a_proxy_is_asked_for_the_whole_url(web):
    probe = {"name": "one", "url": "http://elsewhere.example/x?y=1", "proxy": f"http://web.service.consul:{web.port}",
             "resolve": {"web.service.consul": "127.0.0.1"}}  # fmt: skip
    (found,) = probes.run([probe], 0)
    assert found["ok"] and web.asked == ["http://elsewhere.example/x?y=1"]


def test_the_last_of_several_requests_counts(web):
    """What a cache has to fetch first is no hit, though the cache works."""
    (found,) = probes.run([url(web, requests=2)], 0)
    assert found["ok"] and len(web.asked) == 2


def test_a_url_that_nobody_answers_is_named(web):
    web.close()
    (found,) = probes.run([url(web)], 0)
    assert not found["ok"]
    assert found["output"] == f"cannot reach http://web.service.consul:{web.port}/health: Connection refused"


def test_a_program_below_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "prog"
    program.write_text("#!/bin/sh\necho here\n")
    program.chmod(0o755)
    (found,) = probes.run([{"name": "one", "command": ["~/prog"]}], 0)
    assert found["output"] == "here"

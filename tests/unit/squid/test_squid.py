# SPDX-License-Identifier: Apache-2.0
"""The configuration of role squid in a real squid: what is fetched once, who is asked, and what is refused."""

import contextlib
import http.client
import re
import threading

import pytest

import role_runtime
import role_values
from agent_runtime import eventually
from ansible_collections.dodas.cluster.plugins.module_utils.engine import definition
from ansible_runtime import Ansible
from ports import free_port
from squid_runtime import Origin, Squid

LOOPBACK = {"squid_address": "127.0.0.1", "squid_nameservers": [], "squid_loopback": ["127.0.0.0/8"],
            "squid_cache_mb": 128, "squid_memory_mb": 16}  # fmt: skip


@pytest.fixture
def origin():
    with contextlib.closing(Origin()) as found:
        yield found


@pytest.fixture
def make_squid(tmp_path):
    """Starts squids, one for each set of variables, on one port that they all have."""
    made = []

    def make(*cases):
        port = free_port()
        more = {"squid_port": port, "squid_sibling_port": free_port()}
        cases = [{**LOOPBACK, **more, "squid_safe_ports": ["1024-65535"], **case} for case in cases]
        (tmp_path / "role").mkdir()
        values = role_values.evaluate(Ansible(tmp_path / "role"), "squid", cases, "_squid_files")
        for case, value in zip(cases, values, strict=True):
            (file,) = value["_squid_files"]
            made.append(Squid(file["content"], case["squid_address"], port))
            made[-1].start()
        return made

    yield make
    for one in made:
        one.remove()


def test_the_host_says_who_is_asked_for_names_and_who_may_ask(tmp_path):
    def host(*nameservers):
        return {"squid_host": {"host": {"nameservers": list(nameservers), "network": "198.51.100.0/24"}}}

    consul, resolved, plain = host("127.0.0.1", "192.0.2.1"), host("127.0.0.53"), host("192.0.2.1", "192.0.2.2")
    given = {**consul, "squid_nameservers": ["192.0.2.3"], "squid_clients": ["192.0.2.0/24"], "squid_own_network": True}
    cases = [consul, resolved, plain, given]
    found = role_values.evaluate(Ansible(tmp_path), "squid", cases, "_squid_nameservers", "_squid_clients")
    assert [one["_squid_nameservers"] for one in found] == [["127.0.0.1"], ["127.0.0.53"], [], ["192.0.2.3"]]
    assert "198.51.100.0/24" not in found[0]["_squid_clients"]
    assert found[3]["_squid_clients"] == ["192.0.2.0/24", "198.51.100.0/24"]


def test_a_large_object_is_fetched_once(make_squid, origin):
    # More than squid's own limit of 4 MB for what is on disk, and than what goes to memory.
    (squid,) = make_squid({})
    url = origin.url("/6000000-large")
    for _ in range(3):
        status, body = squid.get(url)
        assert (status, len(body)) == (200, 6000000)
    assert origin.asked == {"/6000000-large": 1}
    eventually(lambda: squid.log.count("TCP_HIT/200") == 2)


def test_what_is_larger_than_the_limit_is_not_kept(make_squid, origin):
    (squid,) = make_squid({"squid_object_mb": 1})
    for _ in range(2):
        assert squid.get(origin.url("/2000000-large"))[0] == 200
    assert origin.asked == {"/2000000-large": 2}


def test_many_ask_for_one_file_and_it_is_fetched_once(make_squid, origin):
    (squid,) = make_squid({})
    found = []
    threads = [threading.Thread(target=lambda: found.append(squid.get(origin.url("/slow")))) for _ in range(8)]
    threads[0].start()
    eventually(lambda: origin.asked)
    for one in threads[1:]:
        one.start()
    for one in threads:
        one.join()
    assert [(status, len(body)) for status, body in found] == [(200, 2**20)] * 8
    assert origin.asked == {"/slow": 1}


def test_what_a_client_gave_up_is_fetched_to_the_end(make_squid, origin):
    (squid,) = make_squid({})
    connection = http.client.HTTPConnection("127.0.0.1", squid.port, timeout=10)
    connection.request("GET", origin.url("/slow"))
    connection.getresponse().read(1000)
    connection.close()
    assert squid.get(origin.url("/slow"))[0] == 200
    assert origin.asked == {"/slow": 1}


def test_programs_say_how_long_their_answers_hold(make_squid, origin):
    (squid,) = make_squid({})
    for path in ("/Frontier?query=a", "/unsaid?query=a"):
        for _ in range(2):
            assert squid.get(origin.url(path))[0] == 200
    assert origin.asked == {"/Frontier?query=a": 1, "/unsaid?query=a": 2}


@pytest.mark.parametrize(
    ("destinations", "taken", "refused"),
    [
        ([], ["127.0.0.1", "localhost"], []),
        (["localhost"], ["localhost"], ["127.0.0.1"]),
        (["127.0.0.1"], ["127.0.0.1"], ["localhost", "127.0.0.2"]),
        (["127.0.0.0/30"], ["127.0.0.1", "localhost"], ["127.0.0.9"]),
        ([".example", "127.0.0.8/29"], [], ["localhost", "127.0.0.1", "example.org"]),
    ],
)
def test_only_servers_that_are_named_are_asked(make_squid, destinations, taken, refused):
    (squid,) = make_squid({"squid_destinations": destinations})
    with contextlib.closing(Origin("0.0.0.0")) as origin:
        for host in taken:
            assert squid.get(origin.url("/100", host))[0] == 200
        before = dict(origin.asked)
        for host in refused:
            assert squid.get(origin.url("/100-refused", host))[0] == 403
        assert origin.asked == before


def test_its_counters_are_shown_on_the_host_only(make_squid, origin):
    (squid,) = make_squid({"squid_clients": ["127.0.0.0/8"]})
    for _ in range(4):
        squid.get(origin.url("/100"))
    status, body = squid.get("/squid-internal-mgr/counters")
    assert status == 200
    assert re.search(rb"^client_http.hits = 3$", body, re.MULTILINE), body
    assert squid.get("/squid-internal-mgr/counters", source="127.0.0.2")[0] == 403
    assert squid.get(origin.url("/100"), source="127.0.0.2")[0] == 200


def test_who_is_no_client_gets_nothing(make_squid, origin):
    (squid,) = make_squid({"squid_clients": ["127.0.0.1/32"]})
    assert squid.get(origin.url("/100"))[0] == 200
    assert squid.get(origin.url("/100"), source="127.0.0.2")[0] == 403


def test_siblings_have_what_one_of_them_fetched(make_squid, origin):
    one, two = make_squid(
        {"squid_siblings": ["127.0.0.2"]}, {"squid_address": "127.0.0.2", "squid_siblings": ["127.0.0.1"]}
    )
    assert one.get(origin.url("/5000000-a"))[0] == 200
    status, body = two.get(origin.url("/5000000-a"))
    assert (status, len(body)) == (200, 5000000)
    assert origin.asked == {"/5000000-a": 1}
    # Each keeps a copy, and needs no other.
    one.kill()
    assert two.get(origin.url("/5000000-a"))[0] == 200
    assert two.get(origin.url("/100-b"))[0] == 200
    assert origin.asked == {"/5000000-a": 1, "/100-b": 1}


BAD = {
    "squid_cache_mb": [64, 50000],
    "squid_mem_mb": [128],
    "squid_memory_mb": [2000],
    "squid_memory_object_kb": [10**6],
    "squid_destinations": [["a b"], [".a.example", "http://a.example/"], ["a\nhttp_access allow all"], [""]],
    "squid_siblings": [["localhost"], ["192.0.2.1", "192.0.2.1"]],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


def test_what_is_wrong_is_refused_by_its_variable(tmp_path):
    cases = [{}, *({name: value} for name, value in CASES)]
    values = role_values.evaluate(Ansible(tmp_path), "squid", cases, "_squid_wrong")
    found = [one["_squid_wrong"] or "" for one in values]
    assert found[0] == ""
    for (name, value), complaint in zip(CASES, found[1:], strict=True):
        assert name in complaint, f"{name}={value}: {complaint!r}"


def test_its_definition_is_one_of_marathons(tmp_path):
    labels = {"HAPROXY_GROUP": "external", "HAPROXY_0_PORT": "3128"}
    variables = {"squid_labels": labels, "squid_shutdown_lifetime": 5}
    (found,) = role_values.evaluate(Ansible(tmp_path), "squid", [variables], "_squid_app")
    app = definition.parse(found["_squid_app"])
    assert (app.labels, app.kill_grace, app.ports) == (labels, 15, [("proxy", 3128, "tcp")])


def test_the_role_refuses_before_anything_changes(tmp_path):
    cases = {"front-1": {"squid_cache_mb": 20, "squid_siblings": ["front-1"]}}
    said = role_runtime.refusals(tmp_path, "squid", cases)["front-1"]
    assert said.startswith("front-1: squid_cache_mb: must be larger than squid_memory_mb")
    assert "; squid_siblings: must be other hosts" in said

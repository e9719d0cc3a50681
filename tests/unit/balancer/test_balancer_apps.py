# SPDX-License-Identifier: Apache-2.0
"""What labels mean, who gets a port, and what HAProxy is told; HAProxy itself judges that."""

import socket
import subprocess
import threading

import pytest

from balancer_runtime import BASE

EXTERNAL = {"HAPROXY_GROUP": "external"}


def instance(port=31000, address="10.0.0.5", created=7, status="passing", **meta):
    return {
        "Node": {"Node": "worker-1-apps", "Address": "10.0.0.9"},
        "Service": {"Service": "squid", "Port": port, "Address": address, "CreateIndex": created,
                    "Meta": {**EXTERNAL, **meta}},
        "Checks": [{"Status": "passing"}, {"Status": status}],
    }  # fmt: skip


@pytest.fixture
def one(daemon):
    def one(app, port, since=1, **more):
        return daemon.Published(app, more.pop("index", 0), port, since=("later", since), **more)

    return one


def test_an_app_has_the_ports_of_its_definition(daemon):
    found = daemon.published("squid", [instance(ports="31000,31001", service_ports="3128,8088")], "external")
    assert [(one.port, one.mode, one.servers) for one in found] == [
        (3128, "tcp", (("10.0.0.5", 31000),)),
        (8088, "tcp", (("10.0.0.5", 31001),)),
    ]


def test_without_a_definition_the_port_is_that_in_consul(daemon):
    (found,) = daemon.published("squid", [instance(3128)], "external")
    assert (found.port, found.servers) == (3128, (("10.0.0.5", 3128),))


def test_a_port_that_is_another_each_time_is_published_where_a_label_names_it(daemon):
    labels = {"ports": "31000,31001,31002", "service_ports": "0,0,0", "HAPROXY_1_PORT": "80"}
    (found,) = daemon.published("web", [instance(**labels)], "external")
    assert (found.index, found.port, found.servers) == (1, 80, (("10.0.0.5", 31001),))


def test_labels_say_port_mode_and_hosts(daemon):
    labels = {"HAPROXY_0_PORT": "80", "HAPROXY_0_MODE": "http", "HAPROXY_0_VHOST": "B.example, a.example"}
    (found,) = daemon.published("web", [instance(**labels)], "external")
    assert (found.port, found.mode, found.hosts) == (80, "http", ("a.example", "b.example"))


def test_a_label_says_who_may_connect(daemon):
    labels = {"HAPROXY_0_CLIENTS": "192.0.2.0/24, 10.0.0.0/8,2001:db8::/32"}
    (found,) = daemon.published("squid", [instance(**labels)], "external")
    assert found.clients == ("10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32")
    assert daemon.published("squid", [instance()], "external")[0].clients == ()


def test_a_virtual_host_is_one_of_http(daemon):
    (found,) = daemon.published("web", [instance(HAPROXY_0_VHOST="a.example")], "external")
    assert found.mode == "http"


@pytest.mark.parametrize("groups", ["", "internal", "external2", "internal,other"])
def test_only_apps_of_the_group_are_published(daemon, groups):
    assert daemon.published("squid", [instance(HAPROXY_GROUP=groups)], "external") == []


def test_an_app_may_be_in_several_groups(daemon):
    assert daemon.published("squid", [instance(HAPROXY_GROUP="internal,external")], "external")


def test_what_is_critical_gets_no_connections(daemon):
    entries = [instance(31000), instance(31001, status="critical"), instance(31002, status="warning")]
    (found,) = daemon.published("squid", entries, "external")
    assert [port for _address, port in found.servers] == [31000, 31002]


def test_an_instance_without_an_address_is_on_its_node(daemon):
    (found,) = daemon.published("squid", [instance(address="")], "external")
    assert found.servers == (("10.0.0.9", 31000),)


def test_the_newest_instance_says_what_the_labels_are(daemon):
    entries = [instance(created=9, HAPROXY_0_PORT="81"), instance(31001, created=8, HAPROXY_0_PORT="80")]
    (found,) = daemon.published("web", entries, "external")
    assert (found.port, len(found.servers)) == (81, 2)
    entries = [instance(created=9, HAPROXY_GROUP=""), instance(31001, created=8)]
    assert daemon.published("web", entries, "external") == []


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"HAPROXY_0_PORT": "0"}, "HAPROXY_0_PORT: '0' is no port"),
        ({"HAPROXY_0_PORT": "65536"}, "HAPROXY_0_PORT: '65536' is no port"),
        ({"HAPROXY_0_PORT": "80\n    server evil 10.6.6.6:80"}, "HAPROXY_0_PORT: .* is no port"),
        ({"HAPROXY_0_MODE": "udp"}, "HAPROXY_0_MODE: 'udp' is neither"),
        ({"HAPROXY_0_MODE": "http\n"}, "HAPROXY_0_MODE"),
        ({"HAPROXY_0_MODE": "tcp", "HAPROXY_0_VHOST": "a.example"}, "HAPROXY_0_VHOST: 'tcp' is the mode"),
        ({"HAPROXY_0_VHOST": "a.example } or { always_true"}, "HAPROXY_0_VHOST: .* is no host's name"),
        ({"HAPROXY_0_VHOST": "a.example\nbind *:22"}, "HAPROXY_0_VHOST: .* is no host's name"),
        ({"HAPROXY_0_VHOST": "a.example:80"}, "HAPROXY_0_VHOST: .* is no host's name"),
        ({"HAPROXY_0_CLIENTS": "10.0.0.0/8, all"}, "HAPROXY_0_CLIENTS: 'all' is no network"),
        ({"HAPROXY_0_CLIENTS": "10.0.0.1/8"}, "HAPROXY_0_CLIENTS: '10.0.0.1/8' is no network"),
        ({"HAPROXY_0_CLIENTS": "fe80::%a }\nbind :22/64"}, "HAPROXY_0_CLIENTS: .* is no network"),
        ({"HAPROXY_1_PORT": "80"}, "HAPROXY_1_.*: the app has 1 ports"),
        ({"ports": "31000,x", "service_ports": "80,81"}, "ports: 'x' is no port"),
        ({"service_ports": "0"}, "HAPROXY_0_PORT: is missing"),
        ({"service_ports": "0", "HAPROXY_0_VHOST": "a.example"}, "HAPROXY_0_PORT: '0' is no port"),
    ],
)
def test_wrong_labels_are_refused_by_name(daemon, labels, reason):
    with pytest.raises(daemon.Refused, match=reason):
        daemon.published("web", [instance(**labels)], "external")


@pytest.mark.parametrize("name", ["a b", "a\nbackend b", "-a", "ä", "a" * 129])
def test_a_name_that_haproxy_does_not_take_is_refused(daemon, name):
    with pytest.raises(daemon.Refused, match="is no name for HAProxy"):
        daemon.published(name, [instance()], "external")


@pytest.mark.parametrize("address", ["10.0.0.5 backup", "10.0.0.5\n", "a/b"])
def test_an_address_that_is_none_is_refused(daemon, address):
    with pytest.raises(daemon.Refused, match="address: .* is no address"):
        daemon.published("web", [instance(address=address)], "external")


def test_the_older_of_two_keeps_a_port(daemon, one):
    old, new = one("old", 80, 5), one("new", 80, 9)
    given, refused = daemon.assign([new, old], {}, {}, lambda _port: True)
    assert given == {80: [old]}
    assert refused == {new: "port 80 is that of old, which is older"}


def test_who_has_a_port_keeps_it(daemon, one):
    # Its instances were all started anew, so Consul has known the other for longer.
    holder, other = one("holder", 80, 9), one("other", 80, 5)
    given, refused = daemon.assign([other, holder], {80: "holder"}, {}, lambda _port: False)
    assert given == {80: [holder]}
    assert list(refused) == [other]


def test_the_time_when_an_app_came_counts_before_consuls_index(daemon):
    old = instance(created=90, since="2026-11-01T00:00:00Z")
    new = instance(created=80, since="2026-11-02T00:00:00Z")
    wanted = [daemon.published(name, [entry], "external")[0] for name, entry in (("new", new), ("old", old))]
    given, _refused = daemon.assign(wanted, {}, {}, lambda _port: True)
    assert [one.app for one in given[31000]] == ["old"]


def test_hosts_share_a_port(daemon, one):
    a = one("a", 80, 1, mode="http", hosts=("a.example",))
    b = one("b", 80, 2, mode="http", hosts=("b.example",))
    thief = one("thief", 80, 3, mode="http", hosts=("a.example", "c.example"))
    plain = one("plain", 80, 4)
    given, refused = daemon.assign([plain, thief, b, a], {}, {}, lambda _port: True)
    assert given == {80: [a, b]}
    assert refused[thief] == "host a.example on port 80 is that of a"
    assert "which is older" in refused[plain]


def test_ports_of_the_balancer_and_of_other_programs_are_not_given(daemon, one):
    a, b, c = one("a", 9090), one("b", 22), one("c", 80)
    given, refused = daemon.assign([a, b, c], {}, {9090: "statistics"}, lambda port: port != 22)
    assert given == {80: [c]}
    assert refused[a] == "port 9090 is the balancer's own: statistics"
    assert refused[b] == "port 22 is used by another program on this host"


def test_a_port_is_free_where_nobody_listens(daemon):
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        assert not daemon.is_free("127.0.0.2", port)
        assert not daemon.is_free("*", port)
        assert daemon.is_free("127.0.0.3", port)
        # Another balancer may have the address at the moment.
        assert daemon.is_free("192.0.2.1", port)
    assert daemon.is_free("127.0.0.2", port)
    with socket.create_server(("0.0.0.0", 0)) as other:
        assert not daemon.is_free("192.0.2.1", other.getsockname()[1])


def test_haproxy_takes_what_is_rendered(daemon, one, tmp_path):
    many = tuple(("10.0.0.5", 31000 + i) for i in range(300))
    given = {
        80: [one("a.b-c", 80, mode="http", hosts=("a.example", "b.example"), servers=many), one("d", 80, mode="http",
                                                                                              hosts=("d.example",))],
        3128: [one("squid", 3128, servers=(("worker-1.node.consul", 3128), ("10.0.0.7", 3128)))],
        8088: [one("empty", 8088, index=2)],
        8089: [one("some", 8089, clients=("10.0.0.0/8", "2001:db8::/32"))],
        8090: [one("others", 8090, mode="http", clients=("10.0.0.5",))],
    }  # fmt: skip
    base, apps = tmp_path / "base.cfg", tmp_path / "apps.cfg"
    base.write_text(BASE.format(folder=tmp_path, health=9091))
    for options in ({}, {"address": "192.0.2.1", "transparent": True}):
        apps.write_text(daemon.render(given, **options))
        done = subprocess.run(
            ["haproxy", "-c", "-f", base, "-f", apps], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
        # A name that nobody knows yet leaves the others alone.
        assert all("could not resolve address 'worker-1.node.consul'" in line for line in warnings), warnings


def test_who_has_a_port_is_read_from_the_configuration(daemon, one, tmp_path):
    haproxy = daemon.Haproxy("", tmp_path, "")
    (tmp_path / "apps").mkdir()
    assert haproxy.held() == {}
    old, new = (one(name, 80, mode="http", hosts=(f"{name}.example",)) for name in ("z", "a"))
    haproxy.path.write_text(daemon.render({80: [old, new], 81: [one("s_1", 81, index=12)]}))
    assert haproxy.held() == {80: "z", 81: "s_1"}


class Master:
    """A stand-in for the master process of HAProxy 2.7 and later: it answers `reload` when it knows how that ended."""

    def __init__(self, path, *answers):
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(path))
        self.server.listen()
        threading.Thread(target=self._serve, args=(answers,), daemon=True).start()

    def _serve(self, answers):
        for answer in answers:
            connection, _ = self.server.accept()
            with connection:
                connection.makefile().read()
                connection.sendall(answer.encode())


@pytest.mark.parametrize("answer", ["Success=1\n--\n[NOTICE]   (7) : Loading success.\n", "Success=1\n"])
def test_a_newer_haproxy_says_that_it_has_reloaded(daemon, tmp_path, answer):
    Master(tmp_path / "master", "7 worker 0\n", answer)
    daemon.Haproxy("", tmp_path, str(tmp_path / "master"))._reload()


def test_a_newer_haproxy_says_why_it_has_not(daemon, tmp_path):
    alert = "[ALERT]    (7) : Starting frontend port_80: cannot bind socket (Address already in use) [0.0.0.0:80]"
    Master(tmp_path / "master", "7 worker 0\n", f"Success=0\n--\n[NOTICE]   (7) : x\n{alert}\n")
    with pytest.raises(daemon.Rejected, match="^Starting frontend port_80: cannot bind socket"):
        daemon.Haproxy("", tmp_path, str(tmp_path / "master"))._reload()

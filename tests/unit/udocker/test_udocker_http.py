# SPDX-License-Identifier: Apache-2.0
"""Requests: connections that are kept, redirects, retries, proxies' lists, certificates, what is never sent or said."""

import email.utils
import socket
import ssl
import threading
import time

import pytest

import udocker_faults as faults
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import http
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from udocker_registry import Authority

SECRET = "Bearer of-secrets"


@pytest.fixture
def server():
    with faults.Faulty() as faulty:
        yield faulty


@pytest.fixture
def other():
    with faults.Faulty() as faulty:
        yield faulty


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def secure(authority):
    with faults.Faulty(tls=authority.server_context()) as faulty:
        yield faulty


@pytest.fixture
def client():
    made = http.Client(environ={}, pause=0.001)
    yield made
    made.close()


def trusting(authority, tmp_path, *hosts, **more):
    for host in hosts:
        authority.trust(tmp_path, host)
    return http.Client(environ={}, pause=0.001, certificates=[tmp_path], **more)


def read(client, url, **more):
    with client.request("GET", url, **more) as response:
        return response.status, response.read(1 << 20)


# Connections


def test_a_connection_is_kept(server, client):
    for _request in range(5):
        assert read(client, f"{server.url}/v2/") == (200, b"{}")
    assert len({peer for *_request, peer in server.requests}) == 1


def test_what_is_not_read_costs_a_connection_and_no_more(server, client):
    server.fault("/big", faults.instead(b"x" * 1_000_000))
    client.request("GET", f"{server.url}/big").close()
    assert read(client, f"{server.url}/v2/") == (200, b"{}")


def test_a_kept_connection_that_the_server_has_closed(server, client):
    """Is no failure of the server, and no attempt is counted."""
    once = http.Client(environ={}, attempts=1)
    assert read(once, f"{server.url}/v2/")[0] == 200
    server.fault("/v2/", faults.reset)
    assert read(once, f"{server.url}/v2/")[0] == 200
    assert len(server.requests) == 3


def test_answers_are_bounded(server, client):
    server.fault("/long", faults.instead(b"x" * 1000))
    with client.request("GET", f"{server.url}/long") as response, pytest.raises(Error, match="longer than 999 bytes"):
        response.read(999)


def test_nobody_listens(client):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(http.Unreachable, match=f"cannot connect to 127.0.0.1:{port}: connection refused"):
            client.request("GET", f"http://127.0.0.1:{port}/")


def test_a_server_that_never_answers_is_waited_for_in_vain_only_so_long(server):
    go_on = threading.Event()
    server.fault("/v2/", lambda handler: go_on.wait(20))
    patient = http.Client(environ={}, stall=0.2, attempts=1)
    begun = time.monotonic()
    with pytest.raises(http.Unreachable, match="/v2/: no answer in time"):
        patient.request("GET", f"{server.url}/v2/")
    assert time.monotonic() - begun < 5
    go_on.set()


def test_stop_ends_what_is_under_way(server, client):
    go_on, begun, failures = threading.Event(), threading.Event(), []

    def act(handler):
        begun.set()
        go_on.wait(20)

    server.fault("/v2/", act, times=9)

    def ask():
        try:
            client.request("GET", f"{server.url}/v2/")
        except Error as exc:
            failures.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(10)
    client.stop()
    thread.join(10)
    go_on.set()
    assert isinstance(failures[0], http.Unreachable)


# Retries


@pytest.mark.parametrize("action", [faults.reset, faults.status(503), faults.status(429), faults.status(502)])
def test_what_may_pass_is_tried_again(server, client, action):
    server.fault("/v2/", action, times=2)
    assert read(client, f"{server.url}/v2/") == (200, b"{}")
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405])
def test_what_will_not_pass_is_not(server, client, code):
    server.fault("/v2/", faults.status(code), times=9)
    assert read(client, f"{server.url}/v2/")[0] == code
    assert len(server.requests) == 1


def test_after_the_last_attempt_the_answer_is_what_it_is(server, client):
    server.fault("/v2/", faults.status(503), times=99)
    assert read(client, f"{server.url}/v2/")[0] == 503
    assert len(server.requests) == http.ATTEMPTS
    server.fault("/reset", faults.reset, times=99)
    with pytest.raises(http.Unreachable, match="/reset: "):
        client.request("GET", f"{server.url}/reset")


def test_retry_after(server, client):
    server.fault("/v2/", faults.status(429, {"Retry-After": "1"}))
    begun = time.monotonic()
    assert read(client, f"{server.url}/v2/")[0] == 200
    assert time.monotonic() - begun >= 1


def test_retry_after_hours_is_the_users_to_decide(server, client):
    later = email.utils.formatdate(time.time() + 7200, usegmt=True)
    server.fault("/v2/", faults.status(429, {"Retry-After": later}), times=9)
    assert read(client, f"{server.url}/v2/")[0] == 429
    assert len(server.requests) == 1


def test_a_body_is_sent_anew(server, client):
    server.fault("/token", lambda handler: handler.reply(200, handler.body), method="POST")
    server.fault("/token", faults.status(503), method="POST")
    with client.request("POST", f"{server.url}/token", body=b"all of it") as response:
        assert response.read(100) == b"all of it"


# Redirects


def test_redirects_are_followed_and_authorization_stays(server, other, client):
    server.fault("/blob", faults.redirect(f"{other.url}/v2/?signed=1"))
    assert read(client, f"{server.url}/blob", headers={"Authorization": SECRET, "Range": "bytes=5-"}) == (200, b"{}")
    assert server.asked("/blob")[0]["Authorization"] == SECRET
    assert "Authorization" not in other.asked("/v2/")[0]
    assert other.asked("/v2/")[0]["Range"] == "bytes=5-"


def test_authorization_goes_on_to_the_same_host_only_until_it_was_left(server, other, client):
    server.fault("/one", faults.redirect("/two"))
    server.fault("/two", faults.redirect(f"{other.url}/three"))
    other.fault("/three", faults.redirect(f"{server.url}/v2/"))
    assert read(client, f"{server.url}/one", headers={"authorization": SECRET})[0] == 200
    sent = {path: any(name.lower() == "authorization" for name in headers) for _how, path, headers, _peer in
            server.requests + other.requests}  # fmt: skip
    assert sent == {"/one": True, "/two": True, "/three": False, "/v2/": False}


def test_redirects_in_a_circle(server, client):
    server.fault("/a", faults.redirect("/a"), times=99)
    with pytest.raises(http.Unreachable, match="more than 10 redirects"):
        client.request("GET", f"{server.url}/a")


def test_from_https_to_plain_http_is_refused(server, secure, authority, tmp_path):
    secure.fault("/blob", faults.redirect(f"{server.url}/v2/?key=of-secrets"))
    client = trusting(authority, tmp_path, secure.host)
    with pytest.raises(http.Unreachable, match="from https to plain http: refused") as error:
        client.request("GET", f"{secure.url}/blob", {"Authorization": SECRET})
    assert not server.requests
    assert "of-secrets" not in str(error.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1/x", "https://:1/"])
def test_redirects_to_other_than_http(server, client, url):
    server.fault("/a", faults.redirect(url), times=9)
    with pytest.raises(http.Unreachable, match="no http or https address|what is no address"):
        client.request("GET", f"{server.url}/a")


def test_plain_http_only_on_loopback(client):
    with pytest.raises(http.Unreachable, match="plain http is for loopback; --insecure allows"):
        client.request("GET", "http://192.0.2.1/v2/")


# Certificates


def test_certificates_of_a_folder_as_docker_has_it(secure, authority, tmp_path, client):
    with pytest.raises(http.Unreachable, match=f"certificate of {secure.host} is not trusted"):
        client.request("GET", f"{secure.url}/v2/")
    assert read(trusting(authority, tmp_path, secure.host), f"{secure.url}/v2/")[0] == 200


def test_certificates_in_the_users_configuration(secure, authority, tmp_path):
    authority.trust(tmp_path / "containers" / "certs.d", secure.host)
    client = http.Client(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert read(client, f"{secure.url}/v2/")[0] == 200


def test_certificates_of_a_file(secure, authority, monkeypatch):
    assert read(http.Client(environ={}, ca_file=str(authority.ca)), f"{secure.url}/v2/")[0] == 200
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    assert read(http.Client(environ={}), f"{secure.url}/v2/")[0] == 200


def test_a_name_that_is_not_in_the_certificate(secure, authority):
    client = http.Client(environ={}, ca_file=str(authority.ca))
    port = secure.host.rpartition(":")[2]
    with pytest.raises(http.Unreachable, match="is not trusted"):
        client.request("GET", f"https://127.1:{port}/v2/")  # another name of the same address


def test_insecure_for_all_or_for_a_host(secure):
    assert read(http.Client(environ={}, insecure=True), f"{secure.url}/v2/")[0] == 200
    assert read(http.Client(environ={}, insecure=[secure.host]), f"{secure.url}/v2/")[0] == 200
    with pytest.raises(http.Unreachable, match="not trusted"):
        http.Client(environ={}, insecure=["127.0.0.1:1"]).request("GET", f"{secure.url}/v2/")


def test_a_client_certificate(authority, tmp_path):
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca)
    with faults.Faulty(tls=context) as strict:
        client = trusting(authority, tmp_path, strict.host, attempts=1)
        with pytest.raises(http.Unreachable):
            read(client, f"{strict.url}/v2/")
        (tmp_path / strict.host / "client.cert").write_bytes(authority.certificate.read_bytes())
        (tmp_path / strict.host / "client.key").write_bytes(authority.key.read_bytes())
        assert read(trusting(authority, tmp_path, strict.host), f"{strict.url}/v2/")[0] == 200


def test_tls_where_there_is_none(server, client):
    with pytest.raises(http.Unreachable):
        client.request("GET", f"https://{server.host}/v2/", retry=False)


# Proxies: which; how is tested with real ones


@pytest.mark.parametrize(
    "entry, host, port, bypassed",
    [
        ("*", "registry.test", 443, True),
        ("", "registry.test", 443, False),
        ("test", "registry.test", 443, True),
        ("registry.test", "registry.test", 443, True),
        (".registry.test", "registry.test", 443, True),
        ("*.registry.test", "a.registry.test", 443, True),
        ("registry.test", "a.registry.test", 443, True),
        ("registry.test", "otherregistry.test", 443, False),
        ("REGISTRY.test", "Registry.TEST", 443, True),
        ("registry.test:5000", "registry.test", 5000, True),
        ("registry.test:5000", "registry.test", 443, False),
        ("a.test, b.test registry.test", "registry.test", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:80", "10.1.2.3", 443, False),
        ("10.1.2", "10.1.2.3", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("[fd00::1]:80", "fd00::1", 443, False),
        ("10.0.0.0/8", "ten.test", 443, False),
    ],
)
def test_no_proxy(entry, host, port, bypassed):
    assert http.bypasses(entry, host, port) is bypassed


def proxy(environ, scheme="https", host="registry.test", **more):
    found = http.Client(environ=environ, **more)._proxy(scheme, host, 443)
    return found and str(found)


def test_proxies_of_the_environment():
    assert proxy({}) is None
    assert proxy({"https_proxy": "http://p.test:3128"}) == "http://p.test:3128"
    assert proxy({"HTTPS_PROXY": "p.test:8080"}) == "http://p.test:8080"
    assert proxy({"http_proxy": "http://p.test"}) is None
    assert proxy({"http_proxy": "http://p.test"}, scheme="http") == "http://p.test:3128"
    assert proxy({"all_proxy": "socks5h://p.test"}) == "socks5h://p.test:1080"
    assert proxy({"https_proxy": "http://a.test", "no_proxy": "registry.test"}) is None
    assert proxy({"https_proxy": "http://a.test", "NO_PROXY": "other.test"}) == "http://a.test:3128"


def test_a_header_of_cgi_is_no_proxy():
    environ = {"HTTP_PROXY": "http://evil.test", "REQUEST_METHOD": "GET"}
    assert proxy(environ, scheme="http") is None


def test_loopback_is_reached_directly_unless_a_proxy_was_named():
    assert proxy({"https_proxy": "http://p.test"}, host="127.0.0.1") is None
    assert proxy({"https_proxy": "http://p.test"}, host="localhost") is None
    assert proxy({}, host="127.0.0.1", proxy="socks4a://q.test:1") == "socks4a://q.test:1"
    assert proxy({"https_proxy": "http://p.test"}, proxy="http://q.test:1") == "http://q.test:1"


@pytest.mark.parametrize("url", ["gopher://p.test", "http://", "https://p.test", "socks5://u:of-secrets@:1"])
def test_what_is_no_proxy(url):
    with pytest.raises(Error, match="is no proxy") as error:
        http.Client(proxy=url)
    assert "of-secrets" not in str(error.value)


def test_errors_show_no_secrets(server, other):
    """Neither what is in front of @, nor what is in a query, nor the proxy's password."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        proxy = f"http://joe:of-secrets@127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(http.Unreachable) as error:
            http.Client(proxy=proxy, environ={}).request("GET", "https://u:of-secrets@registry.test/x?sig=of-secrets")
    assert "of-secrets" not in str(error.value)
    assert "registry.test" in str(error.value)

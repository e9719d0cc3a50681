# SPDX-License-Identifier: Apache-2.0
"""Requests that web servers stumble over: on the wire, byte by byte, and too slowly."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import json
import socket
import ssl
import time
import warnings
import zlib

import pytest

from forgery import Relay, connect, raw, receive, statuses
from service_runtime import Credentials

PATIENCE = 15  # seconds after which a connection that does nothing must be gone


def cases(**named):
    return [pytest.param(case, id=name) for name, case in named.items()]


@pytest.fixture(scope="module")
def wire(service, request_pem, honest_token):
    """Build a request by hand: wire(line, headers, body) -> bytes; wire.send(bytes) -> what comes back."""

    class Wire:
        token = honest_token
        body = json.dumps({"csr": request_pem.decode(), "kind": "proxy"}).encode()

        @staticmethod
        def __call__(line=b"POST /v1/credentials HTTP/1.1", headers=(), body=None, close=True):
            body = Wire.body if body is None else body
            lines = [line, b"Host: x", *headers]
            if close:
                lines.append(b"Connection: close")
            return b"\r\n".join(lines) + b"\r\n\r\n" + body

        @staticmethod
        def usual(**changes):
            found = {
                "authorization": b"Authorization: Bearer " + Wire.token.encode(),
                "type": b"Content-Type: application/json",
                "length": b"Content-Length: %d" % len(Wire.body),
            }
            return [line for line in {**found, **changes}.values() if line is not None]

        @staticmethod
        def send(data, seconds=10):
            return raw(service, data, seconds)

    return Wire()


def none_issued(answer):
    assert b"BEGIN CERTIFICATE" not in answer, answer[:300]
    assert all(status < 200 or status >= 300 for status in statuses(answer)), answer[:300]
    assert not any(status >= 500 for status in statuses(answer)), answer[:300]
    return True


def test_honest_requests_by_hand_pass(wire):
    assert statuses(wire.send(wire(headers=wire.usual()))) == [201]
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(wire.body), wire.body)
    headers = wire.usual(length=b"Transfer-Encoding: chunked")
    assert statuses(wire.send(wire(headers=headers, body=body))) == [201]


# --- methods and addresses


@pytest.mark.parametrize(
    "method",
    [
        "GET",
        "HEAD",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "CONNECT",
        "PROPFIND",
        "post",
        "P\xd6ST",
        "POSTPOST",
        "X" * 5000,
        "PRI",
        "",
    ],
    ids=lambda method: ascii(method)[:12],
)
def test_methods(wire, method):
    line = method.encode("latin-1") + b" /v1/credentials HTTP/1.1"
    assert none_issued(wire.send(wire(line, wire.usual())))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_methods_that_override(wire, method):
    """The real method counts, whatever a header or the query says."""
    headers = [b"X-HTTP-Method-Override: POST", b"X-Method-Override: POST"]
    line = method.encode() + b" /v1/credentials?_method=POST HTTP/1.1"
    assert none_issued(wire.send(wire(line, [*wire.usual(), *headers])))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/credentials/",
        "/v1/credentials/..",
        "/v1//credentials",
        "//v1/credentials",
        "/V1/CREDENTIALS",
        "/v1/credentials%00",
        "/v1/credentials;x=1",
        "/v1/credentials/../../etc/passwd",
        "/v1/authority/../../../etc/passwd",
        "/v1/authority/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/v1/authority/..%2fca.key",
        "/v1/authority/..%5cca.key",
        "/v1/authority/ca.key",
        "/authority/ca.key",
        "/state/ca.key",
        "/robots",
        "/audit.log",
        "/config.yaml",
        "/.env",
        "/.git/config",
        "/docs",
        "/openapi.json",
        "/v1/authority/ca.pem%2f..%2f..%2fca.key",
        "/v1/authority/\xe4",
        "*",
        "v1/credentials",
        "http://evil.example/v1/credentials/x",
        "/" + "a" * 10000,
        "/%",
        "/%zz",
        "/v1/credentials HTTP/1.1 X",
        "\\v1\\credentials",
    ],
    ids=lambda path: ascii(path)[:50],
)
def test_paths(wire, path):
    for method in (b"GET", b"POST"):
        line = method + b" " + path.encode("latin-1") + b" HTTP/1.1"
        answer = wire.send(wire(line, wire.usual()))
        assert none_issued(answer)
        assert b"PRIVATE" not in answer and b"root:" not in answer and b"Traceback" not in answer


@pytest.mark.parametrize(
    "query",
    [
        "kind=host",
        "kind=eec",
        "lifetime=-1",
        "kind=proxy&kind=host",
        "csr=x",
        "policy=limited&subject=/CN=admin",
        "delegation=../../ca.key",
        "a" * 8000,
        "&".join(f"a{n}=1" for n in range(2000)),
        "%00",
        "%ff%fe",
        "kind=proxy%00",
        "kind[]=proxy",
        "lifetime=1e3",
    ],
    ids=lambda query: query[:30],
)
def test_queries(wire, service, request_pem, query):
    """With a body that is nothing but the request, the query says the rest."""
    headers = wire.usual(type=b"Content-Type: application/pkcs10", length=b"Content-Length: %d" % len(request_pem))
    line = b"POST /v1/credentials?" + query.encode() + b" HTTP/1.1"
    assert none_issued(wire.send(wire(line, headers, request_pem)))


@pytest.mark.parametrize(
    "version", [b"HTTP/3", b"HTTP/1.1.1", b"http/1.1", b"HTTP/11", b"HTTQ/1.1", b"", b"HTTP/1.1\0"]
)
def test_versions(wire, version):
    assert none_issued(wire.send(wire(b"POST /v1/credentials " + version, wire.usual())))


def test_http2_preface(wire):
    assert none_issued(wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64)))


# --- headers


@pytest.mark.parametrize(
    "build",
    cases(
        two_right=lambda w: [f"Authorization: Bearer {w.token}"] * 2,
        right_and_wrong=lambda w: [f"Authorization: Bearer {w.token}", "Authorization: Bearer x"],
        wrong_and_right=lambda w: ["Authorization: Bearer x", f"Authorization: Bearer {w.token}"],
        empty_and_right=lambda w: ["Authorization:", f"Authorization: Bearer {w.token}"],
        basic_and_right=lambda w: ["Authorization: Basic eDp5", f"Authorization: Bearer {w.token}"],
        case=lambda w: ["authorization: x", f"AUTHORIZATION: Bearer {w.token}"],
        comma=lambda w: [f"Authorization: Bearer x, Bearer {w.token}"],
        folded=lambda w: ["Authorization: Bearer", f"\t{w.token}x"],
        space_before_colon=lambda w: [f"Authorization : Bearer {w.token}"],
        no_colon=lambda w: [f"Authorization Bearer {w.token}"],
        underscore=lambda w: [f"Authorization_: Bearer {w.token}"],
        nul=lambda w: [f"Authorization: Bearer {w.token}\0"],
        inner_nul=lambda w: [f"Authorization: Bearer\0{w.token}"],
        bare_cr=lambda w: [f"Authorization: Bearer {w.token}\rX: y"],
        tab=lambda w: [f"Authorization: Bearer\t{w.token}"],
        no_space=lambda w: [f"Authorization: Bearer{w.token}"],
        vertical_tab=lambda w: [f"Authorization: Bearer \x0b{w.token}"],
        no_break_space=lambda w: [f"Authorization: Bearer \xa0{w.token}"],
        next_line=lambda w: [f"Authorization: Bearer {w.token}\x85"],
        scheme=lambda w: [f"Authorization: Token {w.token}"],
        scheme_prefix=lambda w: [f"Authorization: Bearer2 {w.token}"],
        proxy=lambda w: [f"Proxy-Authorization: Bearer {w.token}"],
        forwarded=lambda w: [
            "X-Forwarded-User: worker",
            "X-Remote-User: worker",
            "Remote-User: alice",
            "X-Forwarded-For: 127.0.0.1",
        ],
        client_certificate=lambda w: [
            "X-SSL-Client-S-DN: /DC=dodas/CN=admin",
            "X-SSL-Client-Verify: SUCCESS",
            "SSL_CLIENT_S_DN: x",
        ],
        websocket=lambda w: [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: eA==",
            "Sec-WebSocket-Version: 13",
        ],
        h2c=lambda w: [
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
            "Connection: Upgrade, HTTP2-Settings",
        ],
        trailer=lambda w: ["Trailer: Authorization"],
    ),
)
def test_authorization_headers(wire, build):
    lines = [line.encode("latin-1") for line in build(wire)]
    answer = wire.send(wire(headers=[*wire.usual(authorization=None), *lines]))
    assert none_issued(answer)
    assert wire.token.encode() not in answer


def test_authorization_in_a_trailer(wire):
    body = b"%x\r\n%s\r\n0\r\nAuthorization: Bearer %s\r\n\r\n" % (len(wire.body), wire.body, wire.token.encode())
    headers = wire.usual(authorization=b"Trailer: Authorization", length=b"Transfer-Encoding: chunked")
    assert none_issued(wire.send(wire(headers=headers, body=body)))


@pytest.mark.parametrize(
    "headers",
    cases(
        many=[b"X-%d: y" % n for n in range(20000)],
        long=[b"X: " + b"y" * 200_000],
        long_name=[b"X" * 200_000 + b": y"],
        bad_name=[b"X\x00Y: z"],
        bad_value=[b"X: \x00"],
        only_colon=[b": x"],
        bare_lf=[b"X: y\nAuthorization: z"],
    ),
)
def test_headers(wire, headers):
    started = time.monotonic()
    assert none_issued(wire.send(wire(headers=[*headers, *wire.usual(authorization=None)])))
    assert time.monotonic() - started < 5


def test_nothing_sent_comes_back_in_a_header(wire):
    """No answer can be split, for no answer repeats what was asked."""
    line = b"GET /v1/%0d%0aSet-Cookie:%20x=y HTTP/1.1"
    answer = wire.send(wire(line, [b"X-Request-Id: abc\t", b"Origin: https://evil.example"], b""))
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head and b"evil.example" not in head and b"abc" not in head
    assert b"server:" not in head


# --- bodies: their length, their form


def smuggled(wire):
    """An inner request that would be served if the body's end is seen too early."""
    return wire(headers=wire.usual())


FRAMES = cases(
    cl_and_te=lambda w: ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"0\r\n\r\n" + smuggled(w)),
    te_and_cl=lambda w: ([b"Transfer-Encoding: chunked", b"Content-Length: 4"], b"0\r\n\r\n" + smuggled(w)),
    te_twice=lambda w: ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], b"0\r\n\r\n" + smuggled(w)),
    te_list=lambda w: ([b"Transfer-Encoding: chunked, identity", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_unknown=lambda w: ([b"Transfer-Encoding: xchunked", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_space=lambda w: ([b"Transfer-Encoding : chunked", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_tab=lambda w: ([b"Transfer-Encoding:\tchunked\x0b", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_nul=lambda w: ([b"Transfer-Encoding: chunked\0", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_quoted=lambda w: ([b'Transfer-Encoding: "chunked"', b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    te_gzip=lambda w: ([b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5"], b"0\r\n\r\n" + smuggled(w)),
    two_lengths=lambda w: ([b"Content-Length: 0", b"Content-Length: %d" % len(smuggled(w))], smuggled(w)),
    list_of_lengths=lambda w: ([b"Content-Length: 0, %d" % len(smuggled(w))], smuggled(w)),
    plus=lambda w: ([b"Content-Length: +%d" % len(w.body)], w.body),
    negative=lambda w: ([b"Content-Length: -1"], w.body),
    hexadecimal=lambda w: ([b"Content-Length: 0x%x" % len(w.body)], w.body),
    underscore=lambda w: ([b"Content-Length: 1_0"], w.body),
    wide=lambda w: (["Content-Length: \uff11\uff10".encode()], w.body),
    huge=lambda w: ([b"Content-Length: 1" + b"0" * 400], w.body),
    large=lambda w: ([b"Content-Length: 1073741824"], bytes(200_000)),
    long=lambda w: ([b"Content-Length: 1000000"], bytes(1_000_000)),
    none=lambda w: ([], w.body),
    chunk_garbage=lambda w: ([b"Transfer-Encoding: chunked"], b"zz\r\n" + w.body),
    chunk_negative=lambda w: ([b"Transfer-Encoding: chunked"], b"-1\r\n" + w.body),
    chunk_huge=lambda w: ([b"Transfer-Encoding: chunked"], b"f" * 40 + b"\r\n" + w.body),
    chunk_long_size=lambda w: ([b"Transfer-Encoding: chunked"], b"0" * 100_000 + b"\r\n"),
    chunk_extension=lambda w: ([b"Transfer-Encoding: chunked"], b"1;" + b"x" * 100_000 + b"\r\na\r\n0\r\n\r\n"),
    chunk_no_crlf=lambda w: ([b"Transfer-Encoding: chunked"], b"1\r\naXX\r\n0\r\n\r\n"),
    chunk_lf=lambda w: ([b"Transfer-Encoding: chunked"], b"%x\n%s\n0\n\n" % (len(w.body), w.body)),
    chunk_prefix=lambda w: ([b"Transfer-Encoding: chunked"], b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(w.body), w.body)),
    chunk_space=lambda w: ([b"Transfer-Encoding: chunked"], b" %x \r\n%s\r\n0\r\n\r\n" % (len(w.body) + 1, w.body)),
    many_chunks=lambda w: ([b"Transfer-Encoding: chunked"], b"1\r\n \r\n" * 40_000 + b"0\r\n\r\n"),
)


@pytest.mark.parametrize("frame", FRAMES)
def test_frames(wire, service, frame):
    """However a body is framed, at most one request of the bytes is understood, and the strange ones not at all."""
    headers, body = frame(wire)
    count = len([line for line in service.audit() if line["decision"] == "issued"])
    answer = wire.send(wire(headers=[*wire.usual(length=None), *headers], body=body, close=False), seconds=1)
    assert none_issued(answer)
    assert len(statuses(answer)) <= 1
    assert len([line for line in service.audit() if line["decision"] == "issued"]) == count


BOMB = b'{"csr": "' + b"A" * 20_000_000 + b'"}'


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        pytest.param("gzip", gzip.compress, id="gzip"),
        pytest.param("deflate", zlib.compress, id="deflate"),
        pytest.param("gzip, gzip", lambda data: gzip.compress(gzip.compress(data)), id="double"),
        pytest.param("br", gzip.compress, id="br"),
    ],
)
def test_compressed_bodies(order, refused, honest_token, service, request_pem, coding, pack):
    """Nothing is unpacked: neither a bomb nor an honest order."""
    honest = json.dumps({"csr": request_pem.decode()}).encode()
    before = resident(service)
    for body in (pack(BOMB), pack(honest)):
        response = order(honest_token, body=body, headers={"Content-Encoding": coding})
        assert refused(response)
    assert resident(service) - before < 10


def resident(service):
    """MB."""
    with open(f"/proc/{service.process.pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def test_pipelined_requests_each_need_a_token(wire):
    first = wire(headers=wire.usual(), close=False)
    second = wire(headers=wire.usual(authorization=None))
    assert statuses(wire.send(first + second)) == [201, 401]


# --- below HTTP


def test_plain_http(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain:
        plain.sendall(b"GET /v1/authority HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in receive(plain)[:20]


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_tls(service, version):
    context = service.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old is the point
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\xff\xff" + bytes(1000), bytes(1 << 16), b"\x80\x80" + bytes(200)],
    ids=["record", "zeros", "sslv2"],
)
def test_garbage_instead_of_tls(service, data):
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain:
        with contextlib.suppress(OSError):
            plain.sendall(data)
        assert b"HTTP" not in receive(plain)


def test_a_certificate_of_a_stranger_is_not_needed_and_not_believed(service, wire):
    """The web server asks for no client certificate: what a client shows has no meaning."""
    assert none_issued(wire.send(wire(headers=wire.usual(authorization=None))))


# --- many, and slow


@pytest.fixture(scope="module")
def slow(service, wire):
    """Clients that take their time, begun at once: how many seconds the service stood each of them."""

    def watch(first, drip):
        started = time.monotonic()
        with connect(service, PATIENCE + 5) as connection:
            try:
                connection.sendall(first)
                while time.monotonic() - started < PATIENCE + 5:
                    connection.settimeout(1)
                    try:
                        data = connection.recv(65536)
                        if not data:
                            break
                        assert b"201 Created" not in data
                    except TimeoutError:
                        if drip:
                            connection.sendall(drip)
            except OSError:
                pass
        return time.monotonic() - started

    head = wire(headers=wire.usual(length=b"Content-Length: 1000"), body=b"", close=False)
    chunked = wire(headers=wire.usual(length=b"Transfer-Encoding: chunked"), body=b"", close=False)
    stranger = wire(headers=[b"Content-Length: 1000"], body=b"", close=False)
    answered = wire(b"GET /health HTTP/1.1", body=b"", close=False)
    kinds = {
        "silent": (b"", b""),
        "half a line": (b"POST /v1/cred", b""),
        "slow line": (b"POST /", b"a"),
        "slow headers": (b"POST /v1/credentials HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"),
        "slow blank lines": (b"", b"\r\n"),
        "no body": (head, b""),
        "slow body": (head, b"{"),
        "slow chunks": (chunked, b"1\r\n{\r\n"),
        "body of a stranger": (stranger, b"{"),
        "idle after an answer": (answered, b""),
        "slow second request": (answered, b"G"),
    }
    pool = concurrent.futures.ThreadPoolExecutor(len(kinds))
    yield {name: pool.submit(watch, *kind) for name, kind in kinds.items()}
    pool.shutdown()


def test_honest_requests_pass_while_many_connections_say_nothing(service, order, honest_token, slow):
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=5))
        started = time.monotonic()
        with service.client() as fresh:
            assert fresh.get("/v1/authority/ca.pem").status_code == 200
        assert order(honest_token).status_code == 201
        assert time.monotonic() - started < 5


def test_unknown_keys_do_not_storm_the_provider(identity, forger, tmp_path, request_pem):
    """500 tokens with 500 names of keys: the provider is asked a few times, not 500."""
    relay = Relay(identity.port)
    service = Credentials(tmp_path / "service", identity)
    service.settings["issuers"][0]["jwks_uri"] = f"https://127.0.0.1:{relay.port}/jwks"
    service.start()
    try:
        with service.client() as client:

            def ask(token):
                headers = {"Authorization": f"Bearer {token}"}
                return client.post("/v1/credentials", json={"csr": request_pem.decode()}, headers=headers).status_code

            assert ask(forger.token()) == 201
            assert relay.connections >= 1
            tokens = [forger.with_header(kid=f"unknown-{n}") for n in range(500)]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                assert set(pool.map(ask, tokens)) == {401}
            assert relay.connections <= 5
            assert ask(forger.token()) == 201
    finally:
        service.stop()
        relay.close()


def test_strangers_do_not_fill_the_audit_log(service, order):
    """A thousand refusals of one kind are a few lines."""
    before = len(service.audit())
    for _ in range(300):
        assert order("a.b.c").status_code == 401
    assert len(service.audit()) - before < 30


@pytest.mark.parametrize(
    "kind",
    ["silent", "half a line", "slow line", "slow headers", "slow blank lines", "no body", "slow body", "slow chunks",
     "body of a stranger", "idle after an answer", "slow second request"],
)  # fmt: skip
def test_slow_clients_are_hung_up_on(slow, kind):
    assert slow[kind].result() < PATIENCE

# SPDX-License-Identifier: Apache-2.0
"""The client before servers that do what Marathon does when its leader changes, and worse."""

import datetime
import http.server
import ipaddress
import json
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import client as client_module
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.client import Deadline, Marathon, read_credentials
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import (
    Denied,
    Invalid,
    Locked,
    MarathonError,
    NotFound,
    Unclear,
    Unreachable,
)
from ports import free_port

OK = {"deploymentId": "d-1", "version": "v"}


class Scripted:
    """A server that gives `answers` one after another, the last one for ever; an answer is (status, body, headers), or
    "close" for none at all. asked: [(method, path, headers, body)]."""

    def __init__(self, *answers, tls=None):
        self.answers, self.asked = list(answers), []
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                scripted.asked.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
                given = scripted.answers.pop(0) if len(scripted.answers) > 1 else scripted.answers[0]
                if given == "close":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, answer, headers = given
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_exception):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def gives(status, body=None, **headers):
    return status, {} if body is None else body, headers


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(client_module, "PAUSE", 0.02)


def test_a_request_as_marathon_takes_it():
    with Scripted(gives(200, OK)) as server:
        marathon = Marathon([server.url + "/"], credentials="ann:word")
        assert marathon.put_apps([{"id": "/a"}], force=True) == "d-1"
        assert marathon.delete_app("/dodas/squid") == "d-1"
    (method, path, headers, body), (deleted, where, _headers, none) = server.asked
    assert (method, path, body) == ("PUT", "/v2/apps?force=true&partialUpdate=false", [{"id": "/a"}])
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic YW5uOndvcmQ="
    assert (deleted, where, none) == ("DELETE", "/v2/apps/dodas/squid?force=false", None)


def test_filters_and_embeds():
    with Scripted(gives(200, {"apps": [1]})) as server:
        assert Marathon([server.url]).apps(embed=("counts", "tasks"), label="a==b", id="") == [1]
    assert server.asked[0][1] == "/v2/apps?label=a%3D%3Db&embed=apps.counts&embed=apps.tasks"


def test_no_leader_is_waited_for():
    no_leader = gives(503, {"message": "Could not determine the current leader"})
    with Scripted(no_leader, gives(502, b"<html>"), "close", gives(200, {"leader": "front-1:8443"})) as server:
        assert Marathon([server.url]).leader() == "front-1:8443"
    assert len(server.asked) == 4


def test_a_redirect_leads_to_the_leader_with_the_body():
    with Scripted(gives(200, OK)) as leader:
        follower = Scripted(gives(307, {}, Location=f"{leader.url}/v2/apps?partialUpdate=false"))
        with follower:
            assert Marathon([follower.url]).put_apps([{"id": "/a"}]) == "d-1"
    assert leader.asked[0][0] == "PUT"
    assert leader.asked[0][3] == [{"id": "/a"}]


def test_redirects_in_a_circle_end_at_the_deadline():
    with Scripted("close") as server:
        server.answers = [gives(307, {}, Location=server.url + "/v2/info")]
        with pytest.raises(Unreachable, match="one redirect after another"):
            Marathon([server.url], timeout=0.2).info()


def test_another_endpoint_is_asked_and_remembered():
    dead = f"http://127.0.0.1:{free_port()}"
    with Scripted(gives(200, {"version": "1"})) as server:
        marathon = Marathon([dead, server.url], timeout=20)
        assert marathon.info() == {"version": "1"}
        assert marathon.urls == [server.url, dead]


def test_an_endpoint_that_comes_back_is_found():
    port = free_port()
    marathon = Marathon([f"http://127.0.0.1:{port}"], timeout=30)
    answered = []
    thread = threading.Thread(target=lambda: answered.append(marathon.info()))
    thread.start()
    time.sleep(0.2)
    server = Scripted(gives(200, {"version": "1"}))
    server.server.server_close()
    server.server.socket = socket.create_server(("127.0.0.1", port))
    with server:
        thread.join(30)
    assert answered == [{"version": "1"}]


def test_the_deadline_names_each_endpoint_and_its_problem():
    dead = f"http://127.0.0.1:{free_port()}"
    with Scripted(gives(503)) as server, pytest.raises(Unreachable) as caught:
        Marathon([dead, server.url], timeout=0.3).info()
    message = str(caught.value)
    assert message.startswith("no Marathon answered within 0.3 s: ")
    assert f"{dead}: Connection refused" in message
    assert f"{server.url}: HTTP status 503" in message


def test_a_server_that_says_nothing_is_left_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unreachable, match="timed out"):
            Marathon([url], timeout=0.3).info()


def test_half_an_answer_is_no_answer():
    with Scripted((200, b'{"version": ', {"Content-Length": 500}), gives(200, {"version": "1"})) as server:
        assert Marathon([server.url]).info() == {"version": "1"}


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (401, b"<html>", Denied, "wants a user name and a password"),
        (403, {"message": "Not Authorized to perform this action!"}, Denied, "may not do that: Not Authorized"),
        (404, {"message": "no group"}, NotFound, "no group"),
        (500, {"message": "oops"}, MarathonError, "HTTP status 500: oops"),
        (400, {"message": "Invalid JSON", "details": [{"path": "/cpus", "errors": ["error.expected.jsnumber"]}]},
         Invalid, "Invalid JSON: /cpus: error.expected.jsnumber"),
        (422, {"message": "Object is not valid", "details": [{"path": "(1)/upgradeStrategy", "errors": ["a", "b"]},
                                                             {"errors": ["c"]}]},
         Invalid, "Object is not valid: app /b /upgradeStrategy: a; app /b /upgradeStrategy: b; /: c"),
        (409, {"message": "An app with id [/x] already exists."}, MarathonError, "already exists"),
    ],
)  # fmt: skip
def test_refusals_are_told_with_their_fields(status, body, error, message):
    with Scripted(gives(status, body)) as server, pytest.raises(error) as caught:
        Marathon([server.url]).put_apps([{"id": "/a"}, {"id": "/b"}])
    assert message in str(caught.value)
    assert len(server.asked) == 1


def test_a_lock_names_its_deployments():
    answer = gives(409, {"message": "App is locked", "deployments": [{"id": "d-7"}]})
    with Scripted(answer) as server, pytest.raises(Locked) as caught:
        Marathon([server.url]).put_apps([])
    assert caught.value.deployments == ["d-7"]


def test_what_is_not_there_is_none():
    with Scripted(gives(404, {"message": "App '/x' does not exist"})) as server:
        marathon = Marathon([server.url])
        assert marathon.app("/x") is None
        assert marathon.group("/x") is None
        assert marathon.delete_app("/x") is None
        assert marathon.delete_group("/x") is None
        assert marathon.roll_back("d-1") is None
        assert marathon.leader() == ""


def test_another_server_is_not_taken_for_marathon():
    other = gives(200, b"<html>It works!</html>")
    with Scripted(other) as server, pytest.raises(MarathonError, match=r"is this Marathon\?"):
        Marathon([server.url]).info()


def test_a_restart_whose_answer_is_lost_is_not_done_twice():
    done = gives(200, {"app": {"version": "2", "deployments": [{"id": "d-2"}]}})
    with Scripted(gives(200, {"app": {"version": "1"}}), "close", done) as server:
        assert Marathon([server.url]).restart_app("/a") == "d-2"
    assert [one[0] for one in server.asked] == ["GET", "POST", "GET"]


def test_a_restart_that_was_not_done_is_asked_for_again():
    before = gives(200, {"app": {"version": "1"}})
    with Scripted(before, "close", before, gives(200, OK)) as server:
        assert Marathon([server.url]).restart_app("/a") == "d-1"
    assert [one[0] for one in server.asked] == ["GET", "POST", "GET", "POST"]


def test_requests_that_must_not_be_repeated_are_not():
    with Scripted("close") as server, pytest.raises(Unclear):
        Marathon([server.url]).request("POST", "/v2/apps/a/restart", again=False)
    assert len(server.asked) == 1


# Trust


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) of 127.0.0.1 and marathon.invalid, which is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "marathon")])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("marathon.invalid")]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / "crt.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return folder / "crt.pem", folder / "key.pem"


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_tls_with_the_right_authority(tls, certificate):
    with Scripted(gives(200, {"version": "1"}), tls=tls) as server:
        marathon = Marathon([server.url], cafile=certificate[0], credentials="ann:word")
        assert marathon.info() == {"version": "1"}


def test_a_name_with_an_address_is_not_looked_up_and_its_certificate_is_of_the_name(tls, certificate):
    with Scripted(gives(200, {"version": "1"}), tls=tls) as server:
        port = server.url.rpartition(":")[2]
        known = {"marathon.invalid": "127.0.0.1", "other.invalid": "127.0.0.1"}
        given = {"cafile": certificate[0], "credentials": "ann:word", "resolve": known}
        assert Marathon([f"https://marathon.invalid:{port}"], **given).info() == {"version": "1"}
        with pytest.raises(Denied, match="not valid for 'other.invalid'"):
            Marathon([f"https://other.invalid:{port}"], **given).info()


def test_a_server_that_is_not_trusted_gets_no_password(tls):
    untrusted = pytest.raises(Denied, match="its certificate is not trusted: self")
    with Scripted(gives(200), tls=tls) as server, untrusted:
        Marathon([server.url], credentials="ann:word").info()
    assert server.asked == []


def test_no_redirect_leads_away_from_tls(tls, certificate):
    with Scripted(gives(200)) as clear:
        server = Scripted(gives(307, {}, Location=clear.url), tls=tls)
        with server, pytest.raises(Denied, match="which is not https"):
            Marathon([server.url], cafile=certificate[0], credentials="ann:word").info()
    assert clear.asked == []


@pytest.mark.parametrize(
    ("urls", "more", "message"),
    [
        ([], {}, "no URL of Marathon is given"),
        (["front-1:8080"], {}, "front-1:8080: must be an http or https URL"),
        (["https://ann:word@front-1"], {}, "front-1: must be an http or https URL without a user name"),
        (["http://front-1:8080"], {"credentials": "ann:word"}, "http://front-1:8080: a password is sent by https only"),
        (["https://front-1"], {"cafile": "/nowhere/ca.pem"}, "/nowhere/ca.pem: cannot be read"),
    ],
)
def test_wrong_connections_are_refused_before_anything_is_sent(urls, more, message):
    with pytest.raises(MarathonError) as caught:
        Marathon(urls, **more)
    assert message in str(caught.value)
    assert "word@" not in str(caught.value)


def test_credentials_are_read_from_a_file_of_ones_own(tmp_path):
    path = tmp_path / "credentials"
    path.write_text("ann:a:b\n")
    path.chmod(0o600)
    assert read_credentials(path) == "ann:a:b"


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [("ann:word", 0o644, "everybody can read"), ("word", 0o600, "one line"), ("ann:\n", 0o600, "one line"),
     ("a:b\nc:d", 0o600, "one line"), ("", 0o600, "one line")],
)  # fmt: skip
def test_other_files_are_refused_without_showing_them(tmp_path, text, mode, message):
    path = tmp_path / "credentials"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(MarathonError) as caught:
        read_credentials(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(MarathonError, match="No such file"):
        read_credentials(tmp_path / "none")


def test_a_deadline_inside_another():
    with Scripted(gives(200, {"version": "1"})) as server:
        marathon = Marathon([server.url], timeout=0)
        assert not marathon.deadline.left()
        with marathon.within(30):
            assert marathon.deadline.left() > 20
            marathon.info()
        assert not marathon.deadline.left()


def test_a_deadline_that_passed_is_not_slept_beyond():
    assert not Deadline(0).pause(1000)

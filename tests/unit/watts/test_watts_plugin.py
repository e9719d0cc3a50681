# SPDX-License-Identifier: Apache-2.0
"""Ours as a plugin of a WaTTS elsewhere: started as WaTTS starts one, against the real service."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import identity_flows as flows
from dodas.credentials import plugins
from identity_runtime import Identity
from service_runtime import Credentials

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "dodas.credentials.plugin"]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'collections'}:{ROOT / 'src'}", "PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "identity").mkdir()
    identity = Identity(folder / "identity")
    identity.start()
    running = Credentials(folder / "service", identity)
    try:
        running.start()
        with identity.client() as http:
            running.token = flows.device_tokens(http)["access_token"]
            running.worker = flows.worker(http).json()["access_token"]
        yield running
    finally:
        running.stop()
        identity.stop()


@pytest.fixture
def settings(service):
    return {"url": service.url, "cafile": service.cafile, "lifetime": "900"}


def start(request, *options, by_argument=False):
    """(answer, all that it wrote) of one start. request: an object, or bytes as they are."""
    text = request
    if not isinstance(request, bytes):
        text = base64.urlsafe_b64encode(json.dumps(request).encode()).rstrip(b"=")
    command = [*COMMAND, *options, *([text.decode()] if by_argument else [])]
    data = b"" if by_argument else text
    done = subprocess.run(command, input=data, capture_output=True, env=ENVIRONMENT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), (done.stdout + done.stderr).decode()


def order(service, settings, action="request", **changes):
    return {
        "watts_version": "1.0.0",
        "action": action,
        "conf_params": settings,
        "params": {},
        "cred_state": "undefined",
        "user_info": {"iss": "https://iam/", "sub": "alice"},
        "additional_logins": [],
        "watts_userid": "x",
        "access_token": service.token,
        **changes,
    }


def revoked(service, certificate):
    with service.client() as http:
        crl = x509.load_pem_x509_crl(http.get("/v1/authority").json()["crl"].encode())
    return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def failed(answer):
    assert set(answer) == {"result", "user_msg", "log_msg"}
    assert answer["result"] == "error"
    return answer["user_msg"], answer["log_msg"]


@pytest.mark.parametrize("by_argument", [True, False])
def test_what_it_takes(by_argument):
    answer, _ = start({"watts_version": "1.0.0", "action": "parameter"}, by_argument=by_argument)
    known = plugins.parse("parameter", json.dumps(answer).encode())
    assert [one.name for one in known.conf_params] == ["url", "cafile", "lifetime"]
    assert all(one.type == "string" for one in known.conf_params)
    assert (known.request_params, known.features) == ([[]], {"stdin": True})


@pytest.mark.parametrize("by_argument", [True, False])
def test_a_credential_and_its_end(service, settings, by_argument):
    answer, _ = start(order(service, settings), by_argument=by_argument)
    names = [entry["name"] for entry in answer["credential"]]
    assert names == ["Certificate", "Private Key", "Passphrase (for Private Key)", "CA Certificate"]
    certificate, key, passphrase, ca = (entry["value"] for entry in answer["credential"])
    certificate, ca = (x509.load_pem_x509_certificate(pem.encode()) for pem in (certificate, ca))
    certificate.verify_directly_issued_by(ca)
    loaded = serialization.load_pem_private_key(key.encode(), passphrase.encode())
    assert loaded.public_key() == certificate.public_key()
    with pytest.raises((TypeError, ValueError)):
        serialization.load_pem_private_key(key.encode(), None)
    lasts = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()
    assert 300 < lasts <= 900 + 300
    state = x509.load_der_x509_certificate(base64.b64decode(answer["state"]))
    assert state == certificate
    assert plugins.parse("request", json.dumps(answer).encode())
    assert not revoked(service, certificate)
    again, _ = start(order(service, settings, "revoke", cred_state=answer["state"]), by_argument=by_argument)
    assert again == {"result": "ok"}
    assert revoked(service, certificate)


def test_what_conf_params_leave_out_is_in_a_file(service, settings, tmp_path):
    path = tmp_path / "plugin.yaml"
    path.write_text(json.dumps(settings))
    empty = {"url": "", "cafile": "", "lifetime": ""}  # as WaTTS sends what nobody configured
    answer, _ = start(order(service, empty), "--config", str(path))
    assert answer["result"] == "ok"
    for text in ("[]", "{", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        assert failed(start(order(service, empty), "--config", str(path))[0])[0] == "this service is not set up"
    assert failed(start(order(service, empty), "--config", "/nowhere")[0])[1] == "/nowhere: FileNotFoundError"


def test_our_own_service_can_run_it(service, settings):
    """Both ends of the protocol are ours here; each was held against the protocol by itself before."""
    command = ["/usr/bin/env", f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}", *COMMAND]
    section = plugins.ServiceSection(id="x", command=command, parameters=settings, pass_access_token=True)
    plugin = plugins.Plugin(section)
    user = plugins.tokens.Token(
        issuer="https://i/", subject="a", client=None, scopes=(), groups=(), issued=0, expires=0, claims={}
    )
    issued = plugin.request(user, service.token, {})
    assert issued.credential[0].name == "Certificate"
    plugin.revoke(user, service.token, issued.state)


BROKEN = {
    "no token": ({"access_token": None}, "no access token: tell WaTTS to pass it to the plugin"),
    "an empty token": ({"access_token": ""}, "no access token: tell WaTTS to pass it to the plugin"),
    "no configuration": ({"conf_params": {}}, "conf_params lacks url"),
    "a list": ({"conf_params": []}, "conf_params lacks url"),
    "a lifetime in words": ({"conf_params": {"url": "https://127.0.0.1:1", "lifetime": "long"}}, "lifetime must be"),
    "nobody there": ({"conf_params": {"url": "https://127.0.0.1:1"}}, "https://127.0.0.1:1/v1/credentials"),
    "not https": ({"conf_params": {"url": "http://192.0.2.1"}}, "must be an https URL"),
    "another action": ({"action": "delete"}, "unknown action"),
    "no action": ({"action": None}, "unknown action"),
    "revoke nothing": ({"action": "revoke"}, "cred_state is no certificate"),
    "revoke null": ({"action": "revoke", "cred_state": None}, "cred_state is no certificate"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_in_the_answer(service, settings, name):
    changes, expected = BROKEN[name]
    answer, said = start(order(service, settings, **changes))
    assert expected in failed(answer)[1]
    assert service.token not in said


def test_what_the_service_refuses(service, settings):
    answer, said = start(order(service, settings, access_token=service.worker))
    user, log = failed(answer)
    assert user == "the credentials service gives nothing: access_denied"
    assert "403" in log and service.worker not in said
    answer, said = start(order(service, settings, access_token="not.a.token"))
    assert failed(answer)[0] == "the credentials service gives nothing: invalid_token"
    assert "not.a.token" not in said


@pytest.mark.parametrize(
    "request_", [b"", b"!", b"AAAA", base64.urlsafe_b64encode(b"[]"), base64.urlsafe_b64encode(b"[" * 90000)]
)
def test_requests_that_are_none(request_):
    assert failed(start(request_)[0])[1] == "the request is no JSON object in base64url"


def test_padding_and_line_ends_do_no_harm():
    text = base64.urlsafe_b64encode(json.dumps({"action": "parameter", "": ">>>???"}).encode())
    for one in (text, text.rstrip(b"="), text.rstrip(b"=") + b"\n", text + b"===="):
        assert start(one)[0]["result"] == "ok"

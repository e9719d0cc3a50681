# SPDX-License-Identifier: Apache-2.0
import base64
import concurrent.futures
import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, names, proxies
from dodas.credentials import config as configuration
from dodas.credentials import requests, server


def audit(running):
    text = (Path(running.service.config.state_dir) / "audit.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def load(answer):
    return x509.load_pem_x509_certificate(answer["certificate"].encode())


def test_proxy(running, provider, request_key, request_pem, openssl_accepts, tmp_path):
    status, headers, answer = running.post(provider.token(), request_pem)
    assert (status, headers["Cache-Control"]) == (201, "no-store")
    assert set(answer) == {"certificate", "chain", "kind", "subject", "not_after", "serial"}
    running.service.authority.install(tmp_path / "certificates")
    assert openssl_accepts(answer["certificate"] + answer["chain"], tmp_path / "certificates")
    proxy = load(answer)
    assert proxy.public_key() == request_key.public_key()
    assert proxies.proxy_info(proxy) == proxies.ProxyInfo("inherit-all", 0)
    assert (answer["subject"], answer["serial"]) == (names.slash(proxy.subject), str(proxy.serial_number))
    [line] = audit(running)
    assert (line["decision"], line["rule"], line["serial"]) == ("issued", "workers", answer["serial"])
    assert (line["sub"], line["client"], line["not_after"]) == ("worker", "127.0.0.1", answer["not_after"])


def test_one_eec_stands_behind_the_proxies_of_a_name(running, provider, request_pem, configured):
    answers = [running.post(provider.token(), request_pem)[2] for _ in range(3)]
    assert len({answer["chain"] for answer in answers}) == 1
    assert len({answer["serial"] for answer in answers}) == 3
    [path] = (Path(configured["state_dir"]) / "robots").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    robot = x509.load_pem_x509_certificate(answers[0]["chain"].encode())
    running.service.authority.revoke(robot.serial_number)
    assert running.post(provider.token(), request_pem)[2]["chain"] != answers[0]["chain"]


def test_eec_host_and_lifetimes(running, provider, request_pem):
    token = provider.token(sub="alice", client_id="ui", **{"wlcg.groups": ["/cms"]})
    status, _, answer = running.post(token, request_pem, "eec", lifetime=120)
    assert (status, answer["chain"]) == (201, "")
    assert answer["subject"].startswith("/DC=dodas/O=tier3/OU=people/CN=alice ")
    life = load(answer).not_valid_after_utc.timestamp() - time.time()
    assert 100 < life <= 120
    # no later than the token, where the rule says so
    _, _, answer = running.post(token, request_pem, "eec", lifetime=10**6)
    assert load(answer).not_valid_after_utc.timestamp() - time.time() <= 600
    _, _, answer = running.post(token, request_pem, "proxy")
    assert load(answer).not_valid_after_utc.timestamp() - time.time() <= 600
    # no longer than the rule allows
    _, _, answer = running.post(provider.token(), request_pem, lifetime=10**6)
    assert 3500 < load(answer).not_valid_after_utc.timestamp() - time.time() <= 3600
    status, _, answer = running.post(provider.token(sub="xrootd", client_id=None), request_pem, "host")
    alternative = load(answer).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["xrootd.node.consul"]


def test_pkcs10_body(running, provider, request_pem):
    der = x509.load_pem_x509_csr(request_pem).public_bytes(Encoding.DER)
    for body in (der, request_pem):
        headers = {"Authorization": f"Bearer {provider.token()}", "Content-Type": "application/pkcs10"}
        status, _, answer = running.call("/v1/credentials?kind=proxy&lifetime=300", body, headers)
        assert status == 201, answer
        assert load(json.loads(answer)).not_valid_after_utc.timestamp() - time.time() <= 300


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"exp": 1}, 401, "expired"),
        ({"aud": "https://other"}, 401, "audience"),
        ({"iss": "https://evil.example"}, 401, "unknown_issuer"),
        ({"client_id": "other"}, 403, "no_rule"),
        ({"scope": None}, 401, "missing_claim"),
    ],
)
def test_tokens_that_do_not_do(running, provider, request_pem, changes, status, reason):
    token = provider.token(**changes)
    said, headers, answer = running.post(token, request_pem)
    assert (said, answer["reason"]) == (status, reason)
    if status == 401:
        assert (
            headers["WWW-Authenticate"]
            == f'Bearer realm="dodas", error="invalid_token", error_description="{reason}"'
        )
    else:
        assert answer["rules"] == {"workers": "client", "people": "group", "hosts": "kind"}
    assert audit(running)[-1]["reason"] == reason
    everything = json.dumps(answer) + json.dumps(audit(running)) + str(headers)
    assert not any(part in everything for part in token.split("."))


def test_no_token_and_other_schemes(running, request_pem):
    status, headers, _ = running.call("/v1/credentials", b"{}")
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="dodas"')
    for value in ("Basic dXNlcjpwYXNz", "Bearer", "Bearer x"):
        assert running.call("/v1/credentials", b"{}", {"Authorization": value})[0] == 401


def test_required_scope(configured, start, provider, request_pem):
    configured["issuers"][0]["required_scope"] = "tts:x509"
    running = start()
    status, headers, answer = running.post(provider.token(), request_pem)
    assert (status, answer["error"]) == (403, "insufficient_scope")
    assert "insufficient_scope" in headers["WWW-Authenticate"]
    assert running.post(provider.token(scope="tts:x509"), request_pem)[0] == 201


def test_bad_orders(running, provider, request_pem):
    token = {"Authorization": f"Bearer {provider.token()}"}
    text = request_pem.decode()
    as_json = {**token, "Content-Type": "application/json"}
    for body in (
        b"",
        b"[]",
        b"{",
        b'{"csr": 1}',
        json.dumps({"csr": text, "kind": "ca"}).encode(),
        json.dumps({"csr": text, "lifetime": "1"}).encode(),
        json.dumps({"csr": text, "lifetime": -1}).encode(),
        json.dumps({"csr": text, "subject": "/CN=root"}).encode(),
        json.dumps({"csr": text, "kind": []}).encode(),
        json.dumps({"csr": text * 2}).encode(),
        json.dumps({"csr": "é€"}).encode(),
    ):
        assert running.call("/v1/credentials", body, as_json)[0] == 400, body
    assert running.call("/v1/credentials", b"x" * 40000, as_json)[0] == 413
    assert running.call("/v1/credentials", b"x", {**token, "Content-Type": "text/plain"})[0] == 415
    assert running.call("/v1/credentials")[0] == 405
    _, _, answer = running.post(provider.token(), csr.make(csr.make_key())[:-60])
    assert answer["reason"] == "bad_csr"


def raw(running, data):
    """Send bytes, and say how long until the service hangs up."""
    context = ssl.create_default_context(cafile=running.cafile)
    address = ("localhost", running.service.config.listen.port)
    with (
        socket.create_connection(address, timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        started = time.monotonic()
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
        return received, time.monotonic() - started


def test_slow_clients_are_hung_up_on(monkeypatch, start, provider):
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    monkeypatch.setattr(requests, "BODY_SECONDS", 1)
    running = start()
    head = f"POST /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {provider.token()}\r\n"
    body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    for data in ("", "POST /v1", head, "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
        assert raw(running, data.encode())[1] < 5, data
    received, seconds = raw(running, (head + body).encode())
    assert received.startswith(b"HTTP/1.1 408")
    assert seconds < 5


def test_key_rotation_and_outage(running, provider, request_pem, no_cooldown):
    assert running.post(provider.token(), request_pem)[0] == 201
    provider.rotate()
    assert running.post(provider.token(), request_pem)[0] == 201
    provider.stop()
    assert running.post(provider.token(), request_pem)[0] == 201
    old = provider.token()
    provider.rotate()
    status, _, answer = running.post(provider.token(), request_pem)
    assert (status, answer["reason"]) == (401, "unknown_key")
    assert running.post(old, request_pem)[0] == 201
    health = json.loads(running.call("/health")[2])
    assert health["issuers"][provider.issuer]["last_error"]
    provider.start()
    assert running.post(provider.token(), request_pem)[0] == 201


def test_provider_down_from_the_start(start, provider, request_pem, no_cooldown):
    provider.stop()
    running = start()
    status, headers, answer = running.post(provider.token(), request_pem)
    assert (status, answer["reason"]) == (503, "keys_unavailable")
    assert headers["Retry-After"]
    assert running.call("/health")[0] == 200
    provider.start()
    assert running.post(provider.token(), request_pem)[0] == 201


def test_concurrent_requests(running, provider, request_pem):
    def order(number):
        token = provider.token(sub=f"p{number % 4}", client_id=None, **{"wlcg.groups": ["/cms"]})
        return running.post(token, request_pem)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(order, range(48)))
    assert {status for status, _, _ in answers} == {201}
    assert len({answer["serial"] for _, _, answer in answers}) == 48
    assert len({answer["chain"] for _, _, answer in answers}) == 4
    assert len(audit(running)) == 48


def test_restart_keeps_the_authority_and_the_robots(start, provider, request_pem):
    first = start()
    before = first.post(provider.token(), request_pem)[2]
    first.stop()
    second = start()
    assert second.service.authority.certificate == first.service.authority.certificate
    assert second.post(provider.token(), request_pem)[2]["chain"] == before["chain"]


def test_robots_of_another_authority_are_replaced(
    start, configured, provider, request_pem, openssl_accepts, tmp_path
):
    first = start()
    first.post(provider.token(), request_pem)
    first.stop()
    for name in ("ca.key", "ca.pem", "crl.pem"):
        (Path(configured["state_dir"]) / name).unlink()
    second = start()
    answer = second.post(provider.token(), request_pem)[2]
    second.service.authority.install(tmp_path / "certificates")
    assert openssl_accepts(answer["certificate"] + answer["chain"], tmp_path / "certificates")


def test_robot_is_renewed_at_half_its_life(running, provider, request_pem, monkeypatch):
    import datetime as dt

    from dodas.credentials import robots

    before = running.post(provider.token(), request_pem)[2]["chain"]
    real = robots.utcnow
    monkeypatch.setattr(robots, "utcnow", lambda: real() + dt.timedelta(seconds=3000))
    assert running.post(provider.token(), request_pem)[2]["chain"] == before
    monkeypatch.setattr(robots, "utcnow", lambda: real() + dt.timedelta(seconds=4000))
    assert running.post(provider.token(), request_pem)[2]["chain"] != before


def test_authority_documents(running, tmp_path, provider, request_pem, openssl_accepts):
    from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority

    shown = json.loads(running.call("/v1/authority")[2])
    assert shown["ca"].encode() == running.call("/v1/authority/ca.pem")[2]
    folder = tmp_path / "certificates"
    authority.install(
        folder, shown["ca"].encode(), shown["crl"].encode(), shown["signing_policy"], shown["hashes"]
    )
    answer = running.post(provider.token(), request_pem)[2]
    assert openssl_accepts(answer["certificate"] + answer["chain"], folder)


@pytest.mark.parametrize(("what", "left"), [("remaining", 3599), ("crl_remaining", 168 * 900 - 1)])
def test_health_turns(running, monkeypatch, what, left):
    status, _, body = running.call("/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    monkeypatch.setattr(running.service.authority, what, lambda: left)
    status, _, body = running.call("/health")
    assert status == 503
    assert "end" in json.loads(body)["status"]


def test_metrics(running, provider, request_pem):
    running.post(provider.token(), request_pem)
    running.post(provider.token(exp=1), request_pem)
    text = running.call("/metrics")[2].decode()
    assert 'dodas_credentials_requests_total{kind="proxy",outcome="issued"} 1.0' in text
    assert 'dodas_credentials_requests_total{kind="unknown",outcome="expired"} 1.0' in text
    assert "dodas_credentials_ca_remaining_seconds" in text
    assert f'dodas_credentials_jwks_age_seconds{{issuer="{provider.issuer}"}}' in text


def test_strangers_cannot_fill_the_audit_log(running):
    for _ in range(50):
        running.call("/v1/credentials", b"{}", {"Authorization": "Bearer x.y.z"})
    assert len(audit(running)) < 10


def test_missing_certificate_is_said_in_one_line(configured, tmp_path):
    configured["listen"]["certfile"] = str(tmp_path / "missing.pem")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configured))
    command = [sys.executable, "-m", "dodas.credentials", "--config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert str(tmp_path / "missing.pem") in result.stderr


def test_as_a_process(configured, tmp_path, provider, pki):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configured))
    command = [sys.executable, "-m", "dodas.credentials", "--config", str(path)]
    assert subprocess.run([*command, "--check"], timeout=30, check=False).returncode == 0
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "CA /DC=dodas/O=tier3/CN=dodas online CA until" in line
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", configured["listen"]["port"]), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(port=1), "port"),
        (lambda c: c["listen"].update(port="x"), "listen.port"),
        (lambda c: c["issuers"][0].update(issuer="http://identity.example"), "https"),
        (lambda c: c["issuers"].append(c["issuers"][0]), "twice"),
        (lambda c: c["rules"][0].update(dn="/DC=other/CN={hash}"), "not below"),
        (lambda c: c["rules"][0].update(issuer="https://other"), "not among"),
        (lambda c: c["rules"][0].update(lifetime=1), "workers"),
        (lambda c: c.update(deployment="a/b"), "deployment"),
        (lambda c: c.pop("rules"), "rules"),
    ],
)
def test_bad_configurations(configured, tmp_path, change, message):
    change(configured)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configured))
    with pytest.raises(configuration.ConfigError, match=message) as caught:
        configuration.load(path)
    assert str(path) in str(caught.value)


def test_base64_of_secrets_is_nowhere(running, provider, request_pem, caplog):
    token = provider.token()
    running.post(token, request_pem)
    signature = token.rpartition(".")[2]
    assert signature not in caplog.text
    assert base64.b64encode(signature.encode()).decode() not in caplog.text

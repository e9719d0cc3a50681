# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
import types

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, files, join, proxies, web
from dodas.credentials import renew

SECRET = "s3cret+of/the:worker"  # what the stand-in provider knows


@pytest.fixture
def settings(tmp_path, provider, configured, pki):
    """The worker's configuration, as a mapping; save() writes it."""
    configured["issuers"][0]["audience"] = f"https://localhost:{configured['listen']['port']}"
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "secret").chmod(0o600)
    return {
        "issuer": provider.issuer,
        "client_id": "worker",
        "client_secret_file": str(tmp_path / "secret"),
        "credentials_url": f"https://localhost:{configured['listen']['port']}",
        "cafile": str(pki / "ca" / "ca.pem"),
        "scope": "x509",
        "lifetime": 300,
        "output": str(tmp_path / "proxy.pem"),
        "ca_output": str(tmp_path / "online.pem"),
        "ca_directory": str(tmp_path / "certificates"),
    }


@pytest.fixture
def save(tmp_path, settings):
    def write(**changes):
        path = tmp_path / "renew.json"
        path.write_text(json.dumps({**settings, **changes}))
        return str(path)

    return write


def run(path, *options, timeout=60):
    command = [sys.executable, "-m", "dodas.credentials.renew", "--config", path, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_once_and_check(settings, save, start, tmp_path, openssl_accepts):
    start()
    result = run(save(), "--check")
    assert (result.returncode, result.stdout) == (1, f"{settings['output']}: no credential\n")
    before = os.umask(0)
    try:
        result = run(save(), "--once")
    finally:
        os.umask(before)
    assert result.returncode == 0, result.stderr
    proxy = tmp_path / "proxy.pem"
    assert stat.S_IMODE(proxy.stat().st_mode) == 0o600
    assert openssl_accepts(proxy.read_text(), tmp_path / "certificates")
    assert (tmp_path / "online.pem").read_text().startswith("-----BEGIN CERTIFICATE")
    assert SECRET not in result.stderr + result.stdout
    assert run(save(), "--check", "--min-seconds", "100").returncode == 0
    result = run(save(), "--check")
    assert result.returncode == 1
    assert result.stdout.count("\n") == 1
    content = proxy.read_bytes()
    assert run(save(), "--once").returncode == 0
    assert proxy.read_bytes() == content  # it holds one that lasts


def test_a_host_signs_its_own_token(settings, save, configured, start, tmp_path):
    secret = bytes(range(32))
    files.write(tmp_path / "join.key", base64.b64encode(secret))
    files.write(tmp_path / "join_key", base64.b64encode(join.derive(secret, "worker-1")))
    url = settings["credentials_url"]
    configured["join"] = {"secret_file": str(tmp_path / "join.key"), "audience": url}
    rule = {"issuer": "urn:dodas:tier3", "dn": "/DC=dodas/O=tier3/OU=workers/CN={sub} {hash}", "lifetime": 3600}
    configured["rules"].insert(0, {"name": "joined", "kinds": ["proxy"], **rule})
    start()
    for name in ("issuer", "client_id", "client_secret_file", "scope"):
        del settings[name]
    settings.update(join_key_file=str(tmp_path / "join_key"), deployment="tier3", host="worker-1")
    result = run(save(), "--once")
    assert result.returncode == 0, result.stderr
    assert "/OU=workers/CN=worker-1 " in run(save(), "--check").stdout
    (tmp_path / "proxy.pem").unlink()
    result = run(save(host="worker-2"), "--once", "--deadline", "1")
    assert result.returncode == 1 and "invalid_token, signature" in result.stderr


def test_once_waits_for_the_service(settings, save, start, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "dodas.credentials.renew", "--config", save(), "--once", "--deadline", "60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "no credential yet" in process.stderr.readline()
        start()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert (tmp_path / "proxy.pem").exists()


def test_once_gives_up_and_names_the_url(settings, save, provider):
    started = time.monotonic()
    result = run(save(), "--once", "--deadline", "2")
    assert (result.returncode, time.monotonic() - started < 15) == (1, True)
    assert settings["credentials_url"] in result.stderr
    provider.stop()
    result = run(save(), "--once", "--deadline", "0")
    assert provider.issuer in result.stderr


def test_wrong_secret_is_in_no_error(save, start, tmp_path):
    start()
    (tmp_path / "secret").write_text("wrongsecret")
    result = run(save(), "--once", "--deadline", "0")
    assert result.returncode == 1
    assert "HTTP status 401: invalid_client" in result.stderr
    assert "wrongsecret" not in result.stderr and "Basic" not in result.stderr


def test_refusal_of_the_service_is_told(save, start, configured):
    configured["rules"] = configured["rules"][1:]
    start()
    result = run(save(), "--once", "--deadline", "0")
    assert "/v1/credentials: HTTP status 403: access_denied, no_rule" in result.stderr


def test_symlink_at_the_output(save, start, tmp_path):
    start()
    (tmp_path / "precious").write_text("x")
    (tmp_path / "proxy.pem").symlink_to(tmp_path / "precious")
    result = run(save(), "--once", "--deadline", "0")
    assert result.returncode == 1
    assert "not a regular file" in result.stderr
    assert (tmp_path / "precious").read_text() == "x"


def test_keeps_renewing_through_an_outage(
    settings, save, start, configured, provider, monkeypatch, no_cooldown
):
    """Provider and service go away and come back, the provider with new keys; the proxy never lapses."""
    configured["rules"][0]["lifetime"] = 60
    running = start()
    config = renew.Config.load(save(lifetime=12))
    seen, lapses, moments = set(), 0, []

    def sleep(seconds):
        """The steps of the test happen in the pauses of the loop."""
        nonlocal lapses, running
        time.sleep(min(seconds, 0.2))
        held = renew.inspect(config)
        lapses += held is None or held.remaining <= 0
        seen.add(held.subject)
        if len(seen) == 2 and not moments:
            provider.stop()
            running.stop()
            moments.append(time.monotonic())
        elif len(moments) == 1 and time.monotonic() > moments[0] + 4:
            provider.rotate()
            provider.start()
            running = start()
            moments.append(time.monotonic())
        elif len(seen) >= 4:
            raise KeyboardInterrupt
        assert time.monotonic() < begin + 90

    begin = time.monotonic()
    monkeypatch.setattr(renew, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    monkeypatch.setattr(renew, "RETRY_MOST", 1.0)
    with pytest.raises(KeyboardInterrupt):
        renew.keep(config)
    assert (lapses, len(moments)) == (0, 2)


@pytest.mark.parametrize("hanging", [False, True])
def test_sigterm_is_prompt(save, start, hanging, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        if hanging:  # a server that accepts and says nothing
            path = save(issuer=None, token_url=f"https://127.0.0.1:{silent.getsockname()[1]}/token")
        else:
            start()
            path = save()
        process = subprocess.Popen(
            [sys.executable, "-m", "dodas.credentials.renew", "--config", path],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if hanging:
                silent.settimeout(20)
                connection, _ = silent.accept()
            else:
                assert "holds /DC=dodas" in process.stderr.readline()
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - started < 2
            if hanging:
                connection.close()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    assert not list(tmp_path.glob(".*tmp"))


def test_due_at_half_life(ca_credential):
    held = proxies.inspect(ca_credential)
    assert 290 < renew.due_in(held) <= 300
    assert renew.due_in(held, 1.0) < 1
    assert renew.due_in(None) == 0


@pytest.fixture
def ca_credential(tmp_path, request_key):
    from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority

    ca = authority.Authority.open(tmp_path / "other", "/DC=dodas/O=x/CN=ca")
    return files.credential_pem(
        ca.issue_eec(request_key.public_key(), "/DC=dodas/O=x/CN=y", 600), request_key
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_url": "https://x"}, "one of join_key_file, issuer and token_url"),
        ({"issuer": None}, "one of join_key_file, issuer and token_url"),
        ({"join_key_file": "/etc/dodas/worker/join_key"}, "deployment is missing"),
        (
            {"join_key_file": "/x", "deployment": "tier3", "host": "worker-1"},
            "issuer has no meaning with join_key_file",
        ),
        ({"delegation": "0123"}, "delegation has no meaning without join_key_file"),
        ({"client_id": None}, "client_id is missing"),
        ({"lifetime": "12h"}, "lifetime must be of type int"),
        ({"colour": "blue"}, "colour"),
        ({"owner": "nobody-of-this-name"}, "nobody-of-this-name"),
    ],
)
def test_bad_configurations(save, change, message):
    result = run(save(**change), "--once")
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_urls_must_be_secure(provider, pki):
    for url in ("http://identity.example/", "file:///etc/passwd", "ftp://x/", "https://user:pw@x/"):
        with pytest.raises(web.WebError, match="https") as caught:
            web.fetch(url)
        assert "pw@" not in str(caught.value)
    with pytest.raises(web.WebError, match="302"):
        web.fetch(provider.issuer + "/redirect", cafile=str(pki / "ca" / "ca.pem"))
    with pytest.raises(web.WebError, match="larger"):
        web.fetch(provider.issuer + "/jwks", cafile=str(pki / "ca" / "ca.pem"), limit=10)
    with pytest.raises(web.WebError, match="certificate"):
        web.fetch(provider.issuer + "/jwks")


def test_a_certificate_for_another_key_is_refused(running, provider, monkeypatch, request_pem):
    answer = running.post(provider.token(), request_pem)[2]
    monkeypatch.setattr(web, "fetch_json", lambda *_args, **_options: answer)
    with pytest.raises(client.ClientError, match="another key"):
        client.request_credential(running.url, "token")


def test_client_needs_no_joserfc():
    code = (
        "import sys; sys.modules['joserfc'] = None;"
        "from ansible_collections.dodas.cluster.plugins.module_utils.x509 import "
        "authority, client, csr, files, proxies;"
        "import dodas.credentials.renew"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)

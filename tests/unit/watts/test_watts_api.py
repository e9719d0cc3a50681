# SPDX-License-Identifier: Apache-2.0
"""The addresses of WaTTS: the real service, tokens of the real provider, and clients as they were in 2016."""

import concurrent.futures
import json
import re
import subprocess
import sys
import urllib.parse

import pytest
from cryptography import x509

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files, names, store
from identity_runtime import PASSWORD, Identity, scrypt
from service_runtime import Credentials

USERS = {"alice": ["/cms"], "bob": ["/atlas"], "carol": ["/cms"], "dora": ["/cms"], "eve": ["/cms"]}
ORDER = {"service_id": "x509", "params": {}}
NAMES = ["Certificate", "Private Key", "Passphrase (for Private Key)", "CA Certificate"]
PLUGIN = f"""#!{sys.executable} -I
import base64, json, os, sys
text = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()
request = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
STATE = os.path.dirname(os.path.abspath(sys.argv[0])) + "/vault-state"
param = {{"key": "word", "name": "Word", "description": "d", "type": "textarea", "mandatory": True}}
if request["action"] == "parameter":
    out = {{"result": "ok", "conf_params": [], "request_params": [[param], []], "version": "1",
            "features": {{"stdin": True}}}}
elif request["action"] == "request":
    word = request["params"].get("word", "canary-plugin-secret")
    if word == "refuse":
        out = {{"result": "error", "user_msg": "not this word", "log_msg": "somebody said refuse"}}
    elif word == "login":
        out = {{"result": "oidc_login", "provider": "egi", "msg": "log in there too"}}
    elif word == "break":
        out = "broken"
    else:
        open(STATE, "a").write("made\\n")
        out = {{"result": "ok", "credential": [{{"name": "Word", "type": "text", "value": word}}], "state": "s1"}}
else:
    if os.path.exists(STATE + "-locked"):
        out = {{"result": "error", "user_msg": "not now", "log_msg": "locked"}}
    else:
        open(STATE, "a").write("revoked " + request["cred_state"] + "\\n")
        out = {{"result": "ok"}}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("watts")


@pytest.fixture(scope="module")
def identity(folder):
    (folder / "identity").mkdir()
    users = [{"name": name, "groups": groups, "scrypt": scrypt(PASSWORD)} for name, groups in USERS.items()]
    running = Identity(folder / "identity", users=users)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def service(folder, identity):
    vault = folder / "vault"
    vault.write_text(PLUGIN)
    vault.chmod(0o755)
    services = [
        {"id": "x509", "description": "X.509 certificate", "limit": 3, "parameters": {"lifetime": 1800}},
        {"id": "forgetful", "limit": 100, "parameters": {"delete": "forget"}},
        {"id": "vault", "description": "A word", "command": [str(vault)], "limit": 100},
        {"id": "broken", "command": ["/nowhere/plugin"]},
        {"id": "atlas", "command": [str(vault)], "groups": ["/atlas"]},
    ]
    running = Credentials(folder / "service", identity, debug=True, services=services)
    running.settings["issuers"][0]["id"] = "iam"
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def tokens(identity):
    """An access token of each person."""
    found = {}
    for name in USERS:
        with identity.client() as http:
            device = flows.start_device(http)
            flows.approve(http, flows.sign_in(http, flows.open_login(http, device), name=name))
            found[name] = flows.poll(http, device).json()["access_token"]
    return found


@pytest.fixture
def watts(service, tokens):
    """(person) -> a client of WaTTS that follows nothing by itself."""
    opened = []

    def client(person="alice", token=None):
        headers = {"Authorization": f"Bearer {token or tokens[person]}"}
        opened.append(service.client(headers=headers))
        return opened[-1]

    yield client
    for one in opened:
        for listed in one.get("/api/v2/iam/credential").json().get("credential_list", []):
            one.delete(f"/api/v2/iam/credential/{listed['cred_id']}")
        one.close()


def order(http, **changes):
    """The credential, by POST and GET."""
    answer = http.post("/api/v2/iam/credential", json={**ORDER, **changes})
    assert answer.status_code == 303, answer.text
    found = http.get(answer.headers["location"])
    assert found.status_code == 200, found.text
    return found.json()["credential"]


def listed(http):
    return [one["cred_id"] for one in http.get("/api/v2/iam/credential").json()["credential_list"]]


def crl(service):
    with service.client() as http:
        return x509.load_pem_x509_crl(http.get("/v1/authority").json()["crl"].encode())


def test_the_proxy_manager_of_2016(service, tokens, tmp_path):
    """Its steps: POST, the path of the header location, GET, entries 0 to 2, DELETE, and a proxy."""
    headers = {"Authorization": f"Bearer {tokens['alice']}"}
    url = f"{service.url}/api/v2/iam/credential"
    command = ["curl", "-sS", "--cacert", service.cafile, "-D", str(tmp_path / "headers"), "-o", str(tmp_path / "body")]
    command += ["-H", f"Authorization: {headers['Authorization']}", "-H", "Content-Type: application/json"]
    data = json.dumps({"service_id": "forgetful"})
    subprocess.run([*command, "-d", data, url], check=True, timeout=60)
    lines = (tmp_path / "headers").read_text().split("\n")
    assert " 303 " in lines[0]
    (location,) = [line for line in lines if "location" in line]
    redirect = service.url + urllib.parse.urlsplit(location.strip().split()[1]).path
    with service.client(headers=headers) as http:
        found = http.get(redirect)
        found.raise_for_status()
        credential = found.json()["credential"]
        certificate, key, passphrase = (credential["entries"][n]["value"] for n in range(3))
        assert http.delete(f"{url}/{credential['id']}").json() == {"result": "ok"}
    for name, text in (("usercert.crt", certificate), ("userkey.key", key)):
        files.write(tmp_path / name, text.encode())
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    with service.client() as http:
        online = http.get("/v1/authority").json()
    for name in online["hashes"]:
        for suffix, field in (("0", "ca"), ("r0", "crl"), ("signing_policy", "signing_policy")):
            (certificates / f"{name}.{suffix}").write_text(online[field])
    proxy = tmp_path / "proxy.pem"
    init = ["voms-proxy-init", "-rfc", "-q", "-pwstdin", "-valid", "0:10", "-certdir", certificates, "-out", proxy]
    init += ["-cert", tmp_path / "usercert.crt", "-key", tmp_path / "userkey.key"]
    subprocess.run(init, input=passphrase + "\n", text=True, check=True, timeout=60, capture_output=True)
    verify = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-x509_strict", "-CApath", certificates]
    done = subprocess.run([*verify, "-untrusted", proxy, proxy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_curl_that_follows(service, tokens):
    command = ["curl", "-sS", "-L", "--cacert", service.cafile, "-H", f"Authorization: Bearer {tokens['alice']}"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps({**ORDER, "service_id": "forgetful"})]
    url = f"{service.url}/api/v2/iam/credential"
    done = subprocess.run([*command, url], check=True, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout)
    assert (answer["result"], [entry["name"] for entry in answer["credential"]["entries"]]) == ("ok", NAMES)
    gone = ["curl", "-sS", "-X", "DELETE", *command[3:7], f"{url}/{answer['credential']['id']}"]
    assert json.loads(subprocess.run(gone, check=True, capture_output=True, timeout=60).stdout) == {"result": "ok"}


def test_the_entries(service, watts, tmp_path):
    http = watts()
    entries = order(http)["entries"]
    assert [entry["name"] for entry in entries] == NAMES
    assert [entry["type"] for entry in entries] == ["textfile", "textfile", "text", "textfile"]
    for entry, name in zip(entries, ("cert", "key", "passphrase", "ca"), strict=True):
        (tmp_path / name).write_text(entry["value"])
    certificate = x509.load_pem_x509_certificate(entries[0]["value"].encode())
    assert certificate.public_key().key_size == 2048
    assert names.slash(certificate.subject).startswith("/DC=dodas/O=test/OU=people/CN=")
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert 600 < lasts.total_seconds() <= 1800 + 300
    assert entries[1]["value"].startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert len(entries[2]["value"]) >= 32
    read = ["openssl", "pkey", "-in", tmp_path / "key", "-passin", f"file:{tmp_path / 'passphrase'}", "-pubout"]
    public = subprocess.run(read, check=True, capture_output=True, timeout=30).stdout
    of = ["openssl", "x509", "-in", tmp_path / "cert", "-noout", "-pubkey"]
    assert subprocess.run(of, check=True, capture_output=True, timeout=30).stdout == public
    verify = ["openssl", "verify", "-CAfile", tmp_path / "ca", tmp_path / "cert"]
    assert subprocess.run(verify, capture_output=True, timeout=30, check=False).returncode == 0
    again = order(http)["entries"]
    assert all(again[n]["value"] != entries[n]["value"] for n in range(3))


def test_delete_revokes(service, watts):
    http = watts()
    credential = order(http)
    serial = x509.load_pem_x509_certificate(credential["entries"][0]["value"].encode()).serial_number
    assert crl(service).get_revoked_certificate_by_serial_number(serial) is None
    address = f"/api/v2/iam/credential/{credential['id']}"
    assert http.delete(address).json() == {"result": "ok"}
    assert crl(service).get_revoked_certificate_by_serial_number(serial) is not None
    assert http.delete(address).status_code == 404


def test_providers_and_services(service, watts, identity):
    with service.client() as http:
        found = http.get("/api/v2/oidcp").json()["openid_provider_list"]
        assert found == [{"id": "iam", "issuer": identity.url, "desc": identity.url, "ready": True}]
        assert http.get("/api/v2/iam/service").status_code == 401
    http = watts()
    order(http)
    services = {one["id"]: one for one in http.get("/api/v2/iam/service").json()["service_list"]}
    assert list(services) == ["x509", "forgetful", "vault", "broken", "atlas"]
    x = services["x509"]
    assert (x["description"], x["enabled"], x["authorized"]) == ("X.509 certificate", True, True)
    assert (x["cred_count"], x["cred_limit"], x["limit_reached"], x["params"]) == (1, 3, False, [[]])
    assert [[param["key"] for param in group] for group in services["vault"]["params"]] == [["word"], []]
    assert (services["broken"]["enabled"], services["atlas"]["authorized"]) == (False, False)
    theirs = {one["id"]: one["authorized"] for one in watts("bob").get("/api/v2/iam/service").json()["service_list"]}
    assert theirs == {"x509": False, "forgetful": False, "vault": True, "broken": True, "atlas": True}


def test_the_list_shows_what_one_has_and_no_secret(watts):
    http, other = watts("alice"), watts("carol")
    credential = order(http)
    (entry,) = http.get("/api/v2/iam/credential").json()["credential_list"]
    assert set(entry) == {"cred_id", "service_id", "ctime", "interface"}
    assert (entry["cred_id"], entry["service_id"]) == (credential["id"], "x509")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", entry["ctime"])
    assert listed(other) == []
    assert other.delete(f"/api/v2/iam/credential/{credential['id']}").status_code == 404
    assert listed(http) == [credential["id"]]


def test_a_limit_for_each_user_and_service(watts):
    http = watts("dora")
    made = [order(http)["id"] for _ in range(3)]
    answer = http.post("/api/v2/iam/credential", json=ORDER)
    assert (answer.status_code, answer.json()["result"], answer.json()["reason"]) == (403, "error", "limit")
    assert answer.json()["user_msg"] == "you have 3 credentials: revoke one"
    order(http, service_id="forgetful")
    order(watts("carol"))
    assert http.delete(f"/api/v2/iam/credential/{made[0]}").status_code == 200
    order(http)


def test_the_limit_holds_for_requests_at_once(watts):
    http = watts("eve")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: http.post("/api/v2/iam/credential", json=ORDER).status_code, range(8))
        assert sorted(answers) == [303] * 3 + [403] * 5
    assert len(listed(http)) == 3


def test_a_credential_is_had_once_and_by_its_owner(watts, service):
    http, other = watts("alice"), watts("carol")
    address = http.post("/api/v2/iam/credential", json=ORDER).headers["location"]
    assert other.get(address).status_code == 404
    with service.client() as nobody:
        assert nobody.get(address).status_code == 401
    assert http.get(address).status_code == 200
    again = http.get(address)
    assert (again.status_code, again.json()["result"]) == (404, "error")


def test_of_many_who_ask_at_once_one_gets_it(watts):
    http = watts()
    address = http.post("/api/v2/iam/credential", json=ORDER).headers["location"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: http.get(address).status_code, range(8)))
    assert statuses == [200] + [404] * 7


@pytest.mark.parametrize("key", ["x", "9999999999." + "0" * 64, "0000000000." + "0" * 64, "%2e%2e", "a" * 5000])
def test_addresses_that_nobody_gave(watts, key):
    assert watts().get(f"/api/v2/iam/credential_data/{key}").status_code == 404


def test_neither_key_nor_passphrase_is_kept(watts, service):
    """The state is sealed; with its key, what waits cannot be read without the address, and then it is gone."""
    kept = store.Sealed(store.Directory(service.state), [service.state_key])
    http = watts("carol")
    before = set(kept.names("watts-data"))
    address = http.post("/api/v2/iam/credential", json=ORDER).headers["location"]
    (waiting,) = set(kept.names("watts-data")) - before
    assert address.rpartition(".")[2] not in waiting
    inner, _ = kept.read(waiting)
    for word in (b"PRIVATE", b"Certificate", b"entries"):
        assert word not in inner
    credential = http.get(address).json()["credential"]
    assert waiting not in kept.names("watts-data")
    everything = b"".join(kept.read(name)[0] for name in kept.names("watts"))
    assert credential["id"].encode() in everything
    for entry in credential["entries"]:
        assert entry["value"].encode() not in everything
    assert b"PRIVATE" not in everything


def test_no_secret_is_in_the_log(watts, service, tokens):
    http = watts()
    credential = order(http)
    order(http, service_id="vault")
    http.delete(f"/api/v2/iam/credential/{credential['id']}")
    said = service.log() + json.dumps(service.audit())
    assert "POST /api/v2/iam/credential" in said or "Bearer" not in said
    for secret in (tokens["alice"], credential["entries"][2]["value"], "canary-plugin-secret", "PRIVATE KEY"):
        assert secret not in said


def test_a_plugin_as_a_service(watts, folder):
    http = watts()
    state = folder / "vault-state"
    before = state.read_text() if state.exists() else ""
    credential = order(http, service_id="vault", params={"word": "open sesame"})
    assert credential["entries"] == [{"name": "Word", "type": "text", "value": "open sesame"}]
    lock = folder / "vault-state-locked"
    lock.touch()
    try:
        answer = http.delete(f"/api/v2/iam/credential/{credential['id']}")
    finally:
        lock.unlink()
    assert (answer.status_code, answer.json()["user_msg"]) == (403, "not now")
    assert listed(http) == [credential["id"]]
    assert http.delete(f"/api/v2/iam/credential/{credential['id']}").status_code == 200
    assert listed(http) == []
    assert state.read_text() == before + "made\nrevoked s1\n"


@pytest.mark.parametrize(
    ("params", "status", "expected"),
    [
        ({"word": "refuse"}, 403, {"result": "error", "user_msg": "not this word", "reason": "refused"}),
        ({"word": "break"}, 503, {"result": "error", "reason": "plugin"}),
        ({"other": "x"}, 400, {"result": "error", "reason": "params"}),
        (
            {"word": "login"},
            403,
            {"result": "oidc_login", "oidc_login": {"provider": "egi", "msg": "log in there too"}},
        ),
    ],
)
def test_what_plugins_answer_comes_through(watts, service, params, status, expected):
    http = watts()
    answer = http.post("/api/v2/iam/credential", json={"service_id": "vault", "params": params})
    assert answer.status_code == status
    assert expected.items() <= answer.json().items()
    assert "somebody said" not in answer.text
    assert listed(http) == []


def test_a_plugin_that_is_not_there(watts):
    answer = watts().post("/api/v2/iam/credential", json={"service_id": "broken"})
    assert (answer.status_code, answer.json()["user_msg"]) == (503, "the service for this credential does not work")


def test_who_may_not(watts, service, tokens, identity):
    assert watts("bob").post("/api/v2/iam/credential", json=ORDER).json()["reason"] == "not_allowed"
    assert watts().post("/api/v2/iam/credential", json={"service_id": "atlas"}).json()["reason"] == "not_allowed"
    assert watts().post("/api/v2/iam/credential", json={"service_id": "nothing"}).status_code == 404
    assert watts().get("/api/v2/other/credential").status_code == 404
    host = service.client(headers={"Authorization": f"Bearer {service.join_token()}"})
    with host as http:
        answer = http.post("/api/v2/iam/credential", json=ORDER)
        assert (answer.status_code, answer.json()["reason"]) == (403, "other_provider")
    with service.client() as http:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {tokens['alice']}"}):
            for method, path in (("GET", "service"), ("POST", "credential"), ("DELETE", "credential/1")):
                answer = http.request(method, f"/api/v2/iam/{path}", headers=headers)
                assert (answer.status_code, answer.json()["result"]) == (401, "error")


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (json.dumps(ORDER), "text/plain", 400),
        (json.dumps(ORDER), "application/x-www-form-urlencoded", 400),
        (json.dumps(ORDER), None, 400),
        ("", "application/json", 400),
        ("{", "application/json", 400),
        ("[]", "application/json", 400),
        ("null", "application/json", 400),
        ("{}", "application/json", 400),
        ('{"service_id": 1}', "application/json", 400),
        ('{"service_id": "x509", "params": []}', "application/json", 400),
        ('{"service_id": "x509", "params": {"a": {}}}', "application/json", 400),
        ('{"service_id": "x509", "params": {"a": "b"}}', "application/json", 400),
        ('{"service_id": "x509", "lifetime": 1}', "application/json", 400),
        ("[" * 30000, "application/json", 400),
        ("x" * 40000, "application/json", 413),
    ],
)
def test_bad_requests(watts, body, media_type, status):
    http = watts()
    headers = {"Content-Type": media_type} if media_type else {}
    answer = http.post("/api/v2/iam/credential", content=body, headers=headers)
    assert (answer.status_code, answer.json()["result"]) == (status, "error")
    assert listed(http) == []


def test_good_requests_in_other_words(watts):
    http = watts()
    for body, media_type in (
        ('{"service_id": "forgetful"}', "application/json"),
        ('{"service_id": "forgetful", "params": null}', "application/json; charset=utf-8"),
        ('{"service_id": "forgetful", "params": {}}', "Application/JSON"),
    ):
        answer = http.post("/api/v2/iam/credential", content=body, headers={"Content-Type": media_type})
        assert (answer.status_code, answer.content) == (303, b"")


def test_records_outlive_a_restart(watts, service):
    http = watts()
    credential = order(http)
    address = http.post("/api/v2/iam/credential", json=ORDER).headers["location"]
    service.kill()
    service.start()
    again = watts()
    assert credential["id"] in listed(again)
    assert again.get(address).status_code == 200

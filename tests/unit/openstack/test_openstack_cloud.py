# SPDX-License-Identifier: Apache-2.0
"""Logins, and requests that outlive a cloud's bad moments, before a small HTTP server that has them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud as clouds
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, OpenStackError, Quota

RESET = "the connection breaks"


class Server(ThreadingHTTPServer):
    """Gives `answers` {"GET /path": [(status, body, headers) or RESET, ...]} in turn; the last one stays."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers = {}
        self.asked = []
        self.logins = []
        self.project = {"id": "project", "name": "p", "domain": {"id": "default", "name": "Default"}}
        self.catalogue = {"compute": "/nova/v2.1", "network": "/neutron", "image": "/glance"}

    def token(self):
        endpoint = {"interface": "public", "region": "one", "region_id": "one"}
        catalogue = [
            {"type": kind, "name": kind, "id": kind, "endpoints": [{**endpoint, "id": kind, "url": self.url + path}]}
            for kind, path in self.catalogue.items()
        ]
        token = {"methods": ["password"], "user": {"id": "user", "name": "me", "domain": {"id": "d", "name": "D"}}}
        token |= {"expires_at": "2099-01-01T00:00:00.000000Z", "issued_at": "2020-01-01T00:00:00.000000Z"}
        token |= {"roles": [{"id": "r", "name": "member"}], "catalog": catalogue}
        return {"token": token | ({"project": self.project} if self.project else {})}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = f"{self.command} {self.path}"
        self.server.asked.append(what)
        if what in ("POST /v3/auth/tokens", "POST /v3/OS-FEDERATION/identity_providers/iam/protocols/openid/auth"):
            self.server.logins.append(self.headers.get("Authorization") or json.loads(body))
            self.send(201, self.server.token(), {"X-Subject-Token": f"token-{len(self.server.logins)}"})
            return
        answers = self.server.answers.get(what) or self.server.answers.get(what.partition("?")[0])
        if not answers:
            self.send(404, {"itemNotFound": {"message": f"nothing at {self.path}"}})
            return
        one = answers.pop(0) if len(answers) > 1 else answers[0]
        if one == RESET:
            self.close_connection = True
            self.connection.close()
            return
        status, content, *headers = one
        if callable(status):
            status, content = status(self.headers)
        self.send(status, content, *headers)

    def send(self, status, content, headers=None):
        data = json.dumps(content).encode() if content is not None else b""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def site(server, tmp_path, monkeypatch):
    """clouds.yaml of the server; returns its entries to change."""
    for name in ("OS_CLOUD", "OS_AUTH_URL", "DODAS_ACCESS_TOKEN", "DODAS_ACCESS_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    login = {"auth_url": f"{server.url}/v3", "username": "me", "password": "p", "project_name": "p"}
    domains = {"user_domain_name": "Default", "project_domain_name": "Default"}
    entry = {"auth_type": "v3password", "auth": {**login, **domains}, "region_name": "one"}
    project = {"project_name": "p", "project_domain_name": "Default"}
    token = {"auth_url": f"{server.url}/v3", "identity_provider": "iam", "protocol": "openid", **project}
    entries = {"site": entry, "federated": {"auth_type": "v3oidcaccesstoken", "auth": token, "region_name": "one"}}

    def write():
        (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": entries}), encoding="utf-8")

    write()
    return entries, write


@pytest.fixture
def cloud(site):
    return clouds.connect("site", timeout=20)


def test_a_login_and_its_calls_are_counted(server, cloud):
    server.answers["GET /nova/v2.1/servers"] = [(200, {"servers": []})]
    assert cloud.list("compute", "/servers", "servers") == []
    assert cloud.calls == {"POST identity": 1, "GET compute": 1}
    assert (cloud.project_id, cloud.user_id, cloud.region, cloud.roles) == ("project", "user", "one", ["member"])
    assert cloud.has("network") and not cloud.has("volume")


def test_addresses_get_their_version(server, cloud):
    assert cloud.endpoint("network") == f"{server.url}/neutron/v2.0"
    assert cloud.endpoint("image") == f"{server.url}/glance/v2"
    assert clouds._versioned("compute", "http://nova/v2/abc", "p") == "http://nova/v2.1/abc"
    assert clouds._versioned("compute", "http://nova", "p") == "http://nova/v2.1"
    assert clouds._versioned("volume", "http://cinder", "p") == "http://cinder/v3/p"
    with pytest.raises(OpenStackError, match="cloud site has no service volume in its catalogue"):
        cloud.endpoint("volume")


SOON = {"Retry-After": "0"}


@pytest.mark.parametrize("trouble", [(503, None, SOON), (429, {}, SOON), (502, None), RESET])
def test_what_fails_for_a_moment_is_asked_again(server, cloud, trouble):
    server.answers["GET /nova/v2.1/limits"] = [trouble, trouble, (200, {"ok": True})]
    assert cloud.get("compute", "/limits") == {"ok": True}
    server.answers["DELETE /nova/v2.1/servers/1"] = [trouble, (204, None)]
    assert cloud.delete("compute", "/servers/1") is None


def test_what_fails_for_good_is_said_with_its_reason(server, cloud):
    server.answers["GET /nova/v2.1/limits"] = [(503, {"error": {"message": "closed today"}})]
    with pytest.raises(ApiError, match="compute: GET /limits: 503: closed today"):
        cloud.request("GET", "compute", "/limits", patience=0.2)
    server.answers["GET /nova/v2.1/limits"] = [(400, {"badRequest": {"message": "no such thing"}})]
    with pytest.raises(ApiError, match="400: no such thing") as told:
        cloud.get("compute", "/limits")
    assert told.value.status == 400 and told.value.service == "compute"


def test_the_deadline_ends_it(server, site):
    server.answers["GET /nova/v2.1/limits"] = [(503, {"error": {"message": "closed today"}})]
    with pytest.raises(ApiError, match="closed today|the time is over"):
        clouds.connect("site", timeout=0.5).get("compute", "/limits")
    server.answers["POST /nova/v2.1/servers"] = [(503, {"error": {"message": "closed today"}})]
    with pytest.raises(ApiError, match="closed today"):
        clouds.connect("site", timeout=1.2).post("compute", "/servers", {}, find=lambda: None)


@pytest.mark.parametrize("trouble", [RESET, (504, None)])
def test_a_post_whose_answer_is_lost_is_looked_for_first(server, cloud, trouble, monkeypatch):
    monkeypatch.setattr(cloud, "pause", lambda seconds: None)
    server.answers["POST /nova/v2.1/servers"] = [trouble, (202, {"server": {"id": "second"}})]
    assert cloud.post("compute", "/servers", {}, find=lambda: {"server": {"id": "first"}})["server"]["id"] == "first"
    server.answers["POST /nova/v2.1/servers"] = [trouble, (202, {"server": {"id": "second"}})]
    assert cloud.post("compute", "/servers", {}, find=lambda: None)["server"]["id"] == "second"
    server.answers["POST /nova/v2.1/servers"] = [trouble]
    with pytest.raises(clouds.Unclear):
        cloud.post("compute", "/servers", {})


def test_conflicts_are_waited_for_where_that_helps(server, cloud):
    conflict = (409, {"NeutronError": {"type": "NetworkInUse", "message": "in use"}})
    server.answers["DELETE /neutron/v2.0/networks/1"] = [conflict, (204, None)]
    cloud.delete("network", "/networks/1", conflict=True)
    server.answers["DELETE /neutron/v2.0/networks/1"] = [conflict]
    with pytest.raises(ApiError, match="409: in use"):
        cloud.delete("network", "/networks/1")


def test_what_is_gone_already_is_removed(cloud):
    assert cloud.delete("compute", "/servers/1") is None


@pytest.mark.parametrize(
    "answer",
    [
        (403, {"forbidden": {"message": "Quota exceeded for instances: Requested 1, but already used 10 of 10"}}),
        (409, {"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['port']."}}),
        (413, {"overLimit": {"message": "VolumeLimitExceeded: Maximum number of volumes exceeded for quota"}}),
    ],
)
def test_quotas_are_told_apart(server, cloud, answer):
    server.answers["POST /nova/v2.1/servers"] = [answer]
    with pytest.raises(Quota):
        cloud.post("compute", "/servers", {}, find=lambda: None)


def test_a_policy_is_no_quota(server, cloud):
    server.answers["POST /nova/v2.1/servers"] = [(403, {"forbidden": {"message": "Policy doesn't allow it"}})]
    with pytest.raises(ApiError) as told:
        cloud.post("compute", "/servers", {})
    assert not isinstance(told.value, Quota)


def test_pages_are_followed(server, cloud):
    following = [{"rel": "next", "href": "http://elsewhere/v2.1/servers?marker=1&limit=1"}]
    server.answers["GET /nova/v2.1/servers"] = [(200, {"servers": [{"id": "1"}], "servers_links": following})]
    server.answers["GET /nova/v2.1/servers?marker=1&limit=1"] = [(200, {"servers": [{"id": "2"}]})]
    assert [one["id"] for one in cloud.list("compute", "/servers", "servers")] == ["1", "2"]
    server.answers["GET /glance/v2/images"] = [(200, {"images": [{"id": "1"}], "next": "/v2/images?marker=1"})]
    server.answers["GET /glance/v2/images?marker=1"] = [(200, {"images": [{"id": "2"}]})]
    assert len(cloud.list("image", "/images", "images")) == 2


def test_a_token_that_is_refused_is_renewed(server, cloud, monkeypatch):
    def first_is_over(headers):
        return (401, {"error": {"message": "over"}}) if headers["X-Auth-Token"] == "token-1" else (200, {"ok": 1})

    server.answers["GET /nova/v2.1/limits"] = [(first_is_over, None)]
    assert cloud.get("compute", "/limits") == {"ok": 1}
    monkeypatch.setattr(cloud, "pause", lambda seconds: None)
    server.answers["GET /nova/v2.1/limits"] = [(401, {"error": {"message": "over"}})]
    with pytest.raises(OpenStackError, match="cloud site takes the login no longer"):
        cloud.get("compute", "/limits")


def test_an_access_token_is_read_anew_for_each_login(server, site, tmp_path, monkeypatch):
    with pytest.raises(OpenStackError, match="cloud federated takes access tokens .* set DODAS_ACCESS_TOKEN"):
        clouds.connect("federated")
    path = tmp_path / "token"
    path.write_text("first\n", encoding="utf-8")
    monkeypatch.setenv("DODAS_ACCESS_TOKEN_FILE", str(path))
    server.answers["GET /nova/v2.1/limits"] = [(401, {"error": {"message": "over"}}), (200, {"ok": 1})]
    cloud = clouds.connect("federated")
    path.write_text("second\n", encoding="utf-8")
    assert cloud.get("compute", "/limits") == {"ok": 1}
    assert [one for one in server.logins if isinstance(one, str)] == ["Bearer first", "Bearer second"]


def test_one_error_ends_what_is_done_at_once(cloud):
    done = []

    def work(number):
        if number == 3:
            raise ApiError("three")
        done.append(number)
        return number

    with pytest.raises(ApiError, match="three"):
        cloud.each(work, range(1000))
    assert len(done) < 1000
    assert cloud.each(lambda number: number * 2, range(50)) == [number * 2 for number in range(50)]


def test_wrong_names_and_logins_are_told(server, site, monkeypatch, tmp_path):
    entries, write = site
    with pytest.raises(OpenStackError, match=r"cloud stie is not in clouds.yaml \(.*\); did you mean site\?"):
        clouds.connect("stie")
    with pytest.raises(OpenStackError, match=r"no cloud was named .*; there is federated, site"):
        clouds.connect()
    with pytest.raises(OpenStackError, match=r"cloud site.*egion two.* one"):
        clouds.connect("site", region="two")
    server.project = None
    with pytest.raises(OpenStackError, match="cloud site: the login has no project"):
        clouds.connect("site")
    entries["site"]["auth"]["auth_url"] = f"{server.url}/other"
    write()
    with pytest.raises(OpenStackError, match="cloud site: .*/other has no keystone"):
        clouds.connect("site")
    (tmp_path / "clouds.yaml").write_text("clouds: [", encoding="utf-8")
    with pytest.raises(OpenStackError, match="cloud site is not in clouds.yaml .no file of that name could be read"):
        clouds.connect("site")


def test_secrets_are_in_no_error(server, site):
    entries, write = site
    entries["site"]["auth"] |= {"auth_url": "http://127.0.0.1:1/v3", "password": "swordfish"}
    write()
    with pytest.raises(OpenStackError, match="no login at") as told:
        clouds.connect("site", timeout=0.5)
    assert "swordfish" not in str(told.value)

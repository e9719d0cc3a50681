# SPDX-License-Identifier: Apache-2.0
"""Logging in by the device flow, keeping the login fresh, and giving it up."""

import json
import os
import signal
import stat
import time

import pytest

import identity_flows as flows
from dodas import login


def events(process):
    return [json.loads(line) for line in process.stdout.read().splitlines()]


def test_login_as_a_person_sees_it(site):
    process = site.start("login")
    shown = []
    while not shown or not shown[-1].startswith("waiting until"):
        shown.append(process.stdout.readline())
    text = "".join(shown)
    code = text.split("user_code=")[1].split()[0]
    assert f"that it shows the code  {code}" in text
    assert f"echo {site.address} identity.service.consul >> /etc/hosts" in text
    site.approve({"user_code": code})
    assert process.wait(20) == 0, process.stderr.read()
    assert "logged in as alice (/cms, /cms/uscms)" in process.stdout.read()


def test_login_in_json_shows_no_token(site):
    process = site.start("login", "--json")
    device = json.loads(process.stdout.readline())
    assert device["event"] == "verification"
    assert device["verification_uri_complete"].endswith(device["user_code"])
    site.approve(device)
    (done,) = events(process)
    assert process.wait(20) == 0
    assert done["event"] == "done" and done["subject"] == "alice" and done["groups"] == ["/cms", "/cms/uscms"]
    path = site.folder / "login.json"
    held = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert held["access_token"] not in str(done) and held["refresh_token"] not in str(done)


def test_denied_login_keeps_nothing(site):
    process = site.start("login", "--json")
    site.cancel(json.loads(process.stdout.readline()))
    assert events(process) == [{"event": "failed", "error": "access_denied"}]
    assert process.wait(20) == 1
    assert process.stderr.read() == "dodas: denied: somebody chose Cancel on the page\n"
    assert not (site.folder / "login.json").exists()


def test_interrupted_login_ends_with_130(site):
    process = site.start("login", "--json")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert events(process) == [{"event": "failed", "error": "interrupted"}]
    assert process.wait(20) == 130
    assert process.stderr.read() == "dodas: interrupted: nothing was kept\n"


def test_code_that_nobody_uses_expires(site):
    document, device = login.start(site.deployment)
    device["expires_in"] = 1
    with pytest.raises(login.LoginError, match=r"expired; \./dodas login gives another") as caught:
        login.finish(site.deployment, document, device)
    assert caught.value.code == "expired_token"


def test_client_that_the_provider_does_not_know_is_named(site):
    assert "does not know the client nobody" in site.run("login", "--client-id", "nobody", status=1).stderr


def test_new_login_ends_the_one_before(logged_in):
    before = login.held(logged_in.deployment)
    logged_in.log_in()
    logged_in.edit_login(refresh_token=before["refresh_token"], expires=0)
    with pytest.raises(login.NoLogin, match="has ended at the provider"):
        login.access_token(logged_in.deployment)


def test_damaged_login_is_replaced(site):
    (site.folder / "login.json").write_text("{")
    (site.folder / "login.json").chmod(0o600)
    assert "login makes it anew" in site.run("token", "show", status=1).stderr
    site.log_in()
    site.run("token", "show")


def test_fresh_token_is_not_refreshed(logged_in):
    held = login.held(logged_in.deployment)
    assert login.access_token(logged_in.deployment) == held["access_token"]
    assert login.held(logged_in.deployment) == held


@pytest.mark.parametrize("left", [59, 30, -100])
def test_token_that_is_about_to_end_is_refreshed(logged_in, left):
    before = login.held(logged_in.deployment)
    logged_in.edit_login(expires=time.time() + left)
    token = login.access_token(logged_in.deployment)
    after = login.held(logged_in.deployment)
    assert token == after["access_token"] != before["access_token"]
    assert after["refresh_token"] != before["refresh_token"]
    assert after["expires"] > time.time() + 500


def test_a_tenth_of_a_long_life_is_little(logged_in):
    before = login.held(logged_in.deployment)
    logged_in.edit_login(issued=time.time() - 9500, expires=time.time() + 500)
    assert login.access_token(logged_in.deployment) != before["access_token"]


def test_processes_do_not_spend_one_refresh_token_twice(logged_in):
    logged_in.edit_login(expires=time.time())
    before = logged_in.identity.log().count('"refresh_token"')
    processes = [logged_in.start("token", "show", "--raw") for _ in range(4)]
    said = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} == {0}, said
    assert len({out for out, _ in said}) == 1
    assert logged_in.identity.log().count('"refresh_token"') == before + 1
    assert login.access_token(logged_in.deployment) == said[0][0].strip()


def test_rotated_token_is_written_before_the_access_token_is_handed_out(logged_in, monkeypatch):
    logged_in.edit_login(expires=time.time())
    before = login.held(logged_in.deployment)["refresh_token"]

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(login.files, "write", full)
    with pytest.raises(OSError, match="No space"):
        login.access_token(logged_in.deployment)
    assert login.held(logged_in.deployment)["refresh_token"] == before


def test_provider_that_is_away_does_not_matter_while_the_token_lasts(logged_in):
    held = login.held(logged_in.deployment)
    logged_in.identity.stop()
    try:
        logged_in.edit_login(expires=time.time() + 20)
        assert login.access_token(logged_in.deployment) == held["access_token"]
        logged_in.edit_login(expires=time.time() - 1)
        assert "could not be refreshed" in logged_in.run("token", "show", status=1).stderr
    finally:
        logged_in.identity.restart()
    logged_in.run("token", "show")


def test_logout_revokes(logged_in):
    held = login.held(logged_in.deployment)
    assert logged_in.run("logout").stdout == "logged out of test\n"
    assert not (logged_in.folder / "login.json").exists()
    with logged_in.browser() as http:
        assert flows.refresh(http, held["refresh_token"]).json()["error"] == "invalid_grant"
    assert "nobody is logged in to test: ./dodas login" in logged_in.run("logout", status=1).stderr


def test_logout_without_the_provider_says_so(logged_in):
    logged_in.identity.stop()
    try:
        assert "logged out here, but" in logged_in.run("logout", status=1).stderr
    finally:
        logged_in.identity.restart()
    assert not (logged_in.folder / "login.json").exists()


def test_token_show(logged_in):
    held = login.held(logged_in.deployment)
    shown = logged_in.run("token", "show").stdout
    assert "subject  : alice" in shown and "audience : https://credentials.service.consul:8444" in shown
    found = logged_in.json("token", "show")
    assert found["scopes"] == ["wlcg", "wlcg.groups"] and 500 < found["timeleft"] <= 600 and found["renews"]
    raw = logged_in.run("token", "show", "--raw").stdout
    assert raw == held["access_token"] + "\n"
    assert held["access_token"] not in shown + json.dumps(found)
    logged_in.run("token", "show", "--raw", "--json", status=2)


def test_files_keep_their_mode_whatever_the_umask(site):
    before = os.umask(0)
    try:
        site.log_in()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((site.folder / name).stat().st_mode) for name in ("login.json", "login.lock")] == [0o600] * 2

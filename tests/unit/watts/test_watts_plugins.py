# SPDX-License-Identifier: Apache-2.0
"""Plugins of WaTTS that this service runs: a good one, and every way to be a bad one."""

import base64
import concurrent.futures
import json
import logging
import threading
import time

import pytest
from pydantic import ValidationError

from ansible_collections.dodas.cluster.plugins.module_utils.x509.tokens import Token
from dodas.credentials import plugins

ACCESS_TOKEN = "eyJhbGciOi.canary-access-token.c2lnbmF0dXJl"
USER = Token(
    issuer="https://iam.example.org/",
    subject="alice",
    client="web",
    scopes=("x509",),
    groups=("/cms",),
    issued=0,
    expires=2**32,
    claims={"iss": "https://iam.example.org/", "sub": "alice", "email": "alice@example.org", "act": "not passed on"},
)
READ = """
import base64, json, sys
text = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()
how = "argv" if len(sys.argv) > 1 else "stdin"
request = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
PARAMETERS = {
    "result": "ok", "version": "1", "developer_email": "me@example.org", "features": FEATURES,
    "conf_params": [{"name": "prefix", "type": "string", "default": "W_"}], "request_params": SETS,
}
if request["action"] == "parameter":
    assert how == "argv" and set(request) == {"watts_version", "action"}
    print(json.dumps(PARAMETERS))
    raise SystemExit
"""
GOOD = """
with open(LOG, "a") as log:
    log.write(json.dumps([how, request]) + "\\n")
if request["action"] == "request":
    entry = {"name": "Password", "type": "text", "value": "canary-credential", "more": "ignored"}
    print(json.dumps({"result": "ok", "credential": [entry], "state": "state 1"}))
else:
    print(json.dumps({"result": "ok"}))
"""
ENTRY = {"name": "Password", "type": "text", "value": "x"}
ISSUED = {"result": "ok", "credential": [ENTRY], "state": "1"}


@pytest.fixture
def make(program, tmp_path):
    """(what it does after the action parameter, options of the section) -> Plugin."""

    def plugin(text, features=None, sets=None, **options):
        features = {"stdin": True} if features is None else features
        start = f"FEATURES, SETS, LOG = {features!r}, {sets or [[]]!r}, {str(tmp_path / 'log')!r}\n"
        path = program(start + READ + text)
        return plugins.Plugin(plugins.ServiceSection(id="test", command=[path], **options))

    return plugin


@pytest.fixture
def seen(tmp_path):
    """What the good plugin was asked."""
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def problem(plugin, caplog, params=None):
    """(reason, what the user reads, log) of a request that fails."""
    with caplog.at_level(logging.DEBUG), pytest.raises(plugins.PluginError) as caught:
        plugin.request(USER, ACCESS_TOKEN, params or {})
    assert ACCESS_TOKEN not in str(caught.value) + caplog.text
    return caught.value.reason, str(caught.value), caplog.text


def with_timeout(plugin, seconds):
    """What it takes is known already: that may have taken longer."""
    plugin.parameters()
    plugin.section = plugin.section.model_copy(update={"timeout": seconds})
    return plugin


def test_a_good_plugin(make, seen):
    plugin = make(GOOD, parameters={"prefix": "X_", "more": 1}, pass_access_token=True)
    issued = plugin.request(USER, ACCESS_TOKEN, {})
    assert [entry.model_dump(exclude_none=True) for entry in issued.credential] == [
        {"name": "Password", "type": "text", "value": "canary-credential"}
    ]
    plugin.revoke(USER, ACCESS_TOKEN, issued.state)
    (how, asked), (_, revoked) = seen()
    assert how == "stdin"
    identity = {"issuer": "https://iam.example.org/", "subject": "alice"}
    userid = asked.pop("watts_userid")
    assert json.loads(base64.urlsafe_b64decode(userid + "==")) == identity
    assert asked == {
        "watts_version": "1.0.0",
        "action": "request",
        "conf_params": {"prefix": "X_", "more": 1},
        "params": {},
        "cred_state": "undefined",
        "access_token": ACCESS_TOKEN,
        "user_info": {"iss": USER.issuer, "sub": "alice", "email": "alice@example.org"},
        "additional_logins": [],
    }
    assert (revoked["action"], revoked["cred_state"]) == ("revoke", "state 1")


def test_the_access_token_is_passed_on_where_configured_only(make, seen):
    plugin = make(GOOD)
    plugin.request(USER, ACCESS_TOKEN, {})
    plugin.revoke(USER, ACCESS_TOKEN, "1")
    assert [("access_token" in asked, asked["conf_params"]) for _, asked in seen()] == [(False, {"prefix": "W_"})] * 2


@pytest.mark.parametrize(
    ("configured", "features", "expected"),
    [
        ("stdin", {}, "stdin"),
        ("argv", {"stdin": True}, "argv"),
        ("auto", {"stdin": True}, "stdin"),
        ("auto", {"stdin": False}, "argv"),
        ("auto", {}, "argv"),
        ("auto", {"stdin": "yes"}, "argv"),
    ],
)
def test_how_it_gets_its_request(make, seen, configured, features, expected):
    make(GOOD, features=features, input=configured).request(USER, ACCESS_TOKEN, {})
    assert seen()[0][0] == expected


def test_what_is_too_long_for_an_argument(make, seen, caplog):
    params = {"key": "x" * 100_000}
    sets = [[{"key": "key", "name": "n", "description": "", "type": "textarea", "mandatory": True}]]
    make(GOOD, features={}, sets=sets, input="auto").request(USER, ACCESS_TOKEN, params)
    assert seen()[0][0] == "stdin"
    reason, said, _ = problem(make(GOOD, sets=sets, input="argv"), caplog, params)
    assert (reason, said) == ("request_too_large", "the request is larger than the plugin can take")


def test_nothing_secret_is_in_the_arguments_by_default(make, tmp_path):
    """As everybody on the host sees them."""
    plugin = make(
        f"""
open({str(tmp_path / "cmdline")!r}, "w").write(open("/proc/self/cmdline").read() + open("/proc/self/environ").read())
print(json.dumps({ISSUED!r}))
""",
        pass_access_token=True,
    )
    plugin.request(USER, ACCESS_TOKEN, {})
    visible = (tmp_path / "cmdline").read_text()
    assert "program-" in visible
    assert ACCESS_TOKEN not in visible
    assert not any(len(word) > 200 for word in visible.split("\0"))


def test_a_request_is_one_of_the_sets_of_parameters(make, seen, caplog):
    sets = [
        [
            {"key": "pub_key", "name": "n", "description": "d", "type": "textarea", "mandatory": True},
            {"key": "comment", "name": "n", "description": "d", "type": "textarea", "mandatory": False},
        ],
        [],
    ]
    plugin = make(GOOD, sets=sets)
    for params in ({}, {"pub_key": "k"}, {"pub_key": "k", "comment": "c"}):
        plugin.request(USER, ACCESS_TOKEN, params)
    assert [asked["params"] for _, asked in seen()] == [{}, {"pub_key": "k"}, {"pub_key": "k", "comment": "c"}]
    for params in ({"comment": "c"}, {"other": "x"}, {"pub_key": "k", "other": "x"}):
        assert problem(plugin, caplog, params)[0] == "params"
    assert len(seen()) == 3


def test_a_login_elsewhere_is_passed_on(make, caplog):
    plugin = make("""print(json.dumps({"result": "oidc_login", "provider": "egi", "msg": "log in\\nthere"}))""")
    with pytest.raises(plugins.LoginNeeded) as caught:
        plugin.request(USER, ACCESS_TOKEN, {})
    assert (caught.value.provider, str(caught.value)) == ("egi", "log in there")


def test_the_user_and_the_log_each_get_their_message(make, caplog):
    said = {"result": "error", "user_msg": "sorry, no", "log_msg": "alice\n is barred"}
    plugin = make(f"print(json.dumps({said!r}))")
    reason, user, log = problem(plugin, caplog)
    assert (reason, user) == ("refused", "sorry, no")
    assert "plugin test: request: it says: alice is barred" in log
    assert "barred" not in user and "sorry" not in log


def test_messages_are_bounded_and_hold_no_control_characters_and_no_token(make, caplog):
    plugin = make(
        """
bad = "\\x1b[31m\\u202e\\x00 " + request["access_token"] + " " + text + "\\r\\nERROR forged" + "x" * 5000
print(json.dumps({"result": "error", "user_msg": bad, "log_msg": bad}))
""",
        pass_access_token=True,
    )
    _, user, log = problem(plugin, caplog)
    for message in (user, log.split("it says: ")[1].rstrip("\n")):
        assert message.startswith("[31m [...] [...] ERROR forgedxxx")
        assert message.isprintable()
        assert len(message) == 500
    assert len(log.splitlines()) == 1


def test_what_a_plugin_gives_is_in_no_log(make, caplog):
    plugin = make("print('canary-stderr', file=sys.stderr)\n" + GOOD, pass_access_token=True)
    with caplog.at_level(logging.DEBUG):
        plugin.request(USER, ACCESS_TOKEN, {})
    for secret in (ACCESS_TOKEN, "canary-credential", "canary-stderr"):
        assert secret not in caplog.text


ANSWERS = {
    "nothing": (b"", "it answered nothing"),
    "spaces": (b" \n", "it answered nothing"),
    "no JSON": (b"secret-stuff", "its answer is not JSON"),
    "cut off": (json.dumps(ISSUED)[:-1].encode(), "its answer is not JSON"),
    "trailing garbage": (json.dumps(ISSUED).encode() + b" x", "its answer is not JSON"),
    "two answers": (json.dumps(ISSUED).encode() * 2, "its answer is not JSON"),
    "Python": (repr(ISSUED).encode(), "its answer is not JSON"),
    "a NUL": (json.dumps(ISSUED).encode() + b"\0", "its answer is not JSON"),
    "NaN": (b'{"result": "ok", "credential": [], "state": NaN}', "its answer is not JSON"),
    "deep": (b"[" * 200_000, "its answer is not JSON"),
    "a huge number": (b'{"result": ' + b"9" * 5000 + b"}", "its answer is not JSON"),
    "no UTF-8": (b'{"result": "error", "user_msg": "\xff", "log_msg": ""}', "its answer is not UTF-8"),
    "UTF-16": (json.dumps(ISSUED).encode("utf-16"), "its answer is not UTF-8"),
    "a key twice": (b'{"result": "error", "result": "ok", "credential": [], "state": ""}', "a key twice"),
    "a key twice, below": (b'{"result": "ok", "credential": [{"name": "a", "name": "b"}], "state": ""}', "a key twice"),
    "a list": (b"[]", "its answer is not an object"),
    "text": (b'"ok"', "its answer is not an object"),
    "null": (b"null", "its answer is not an object"),
    "no result": ({"credential": [], "state": ""}, "result"),
    "an unknown result": (ISSUED | {"result": "fine"}, "result"),
    "result of another type": (ISSUED | {"result": True}, "result"),
    "no state": ({"result": "ok", "credential": []}, "state: missing"),
    "no credential": ({"result": "ok", "state": "1"}, "credential: missing"),
    "a number as state": (ISSUED | {"state": 17}, "state: string_type"),
    "null as state": (ISSUED | {"state": None}, "state: string_type"),
    "a NUL in state": (ISSUED | {"state": "a\0b"}, "state: value_error"),
    "half a character": (b'{"result": "ok", "credential": [], "state": "\\ud800"}', "state: string_unicode"),
    "a large state": (ISSUED | {"state": "x" * 9000}, "state: string_too_long"),
    "credential an object": (ISSUED | {"credential": ENTRY}, "credential: list_type"),
    "credential text": (ISSUED | {"credential": "secret-stuff"}, "credential: list_type"),
    "many entries": (ISSUED | {"credential": [ENTRY] * 101}, "credential: too_long"),
    "an entry that is text": (ISSUED | {"credential": ["secret-stuff"]}, "credential.0: model_type"),
    "an entry without value": (ISSUED | {"credential": [{"name": "a", "type": "text"}]}, "credential.0.value: missing"),
    "the second entry": (ISSUED | {"credential": [ENTRY, {}]}, "credential.1.name: missing"),
    "a value that is no text": (ISSUED | {"credential": [ENTRY | {"value": 1}]}, "credential.0.value: string_type"),
    "a NUL in a value": (ISSUED | {"credential": [ENTRY | {"value": "\0"}]}, "credential.0.value: value_error"),
    "no name": (ISSUED | {"credential": [ENTRY | {"name": ""}]}, "credential.0.name: string_too_short"),
    "an unknown type": (ISSUED | {"credential": [ENTRY | {"type": "html"}]}, "credential.0.type: literal_error"),
    "rows as text": (ISSUED | {"credential": [ENTRY | {"rows": "3"}]}, "credential.0.rows: int_type"),
    "a path to save as": (ISSUED | {"credential": [ENTRY | {"save_as": "../x"}]}, "credential.0.save_as"),
    "error without messages": ({"result": "error"}, "user_msg: missing"),
    "error with a list": ({"result": "error", "user_msg": [], "log_msg": ""}, "user_msg: string_type"),
    "a login without provider": ({"result": "oidc_login", "msg": ""}, "provider: missing"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_bad_answer(make, caplog, name, tmp_path):
    said, expected = ANSWERS[name]
    answer = tmp_path / "answer"
    answer.write_bytes(said if isinstance(said, bytes) else json.dumps(said).encode())
    _, user, log = problem(make(f"sys.stdout.buffer.write(open({str(answer)!r}, 'rb').read())"), caplog)
    assert user == "the service for this credential does not work"
    assert expected in log
    assert "secret-stuff" not in log


def test_bad_answers_to_revoke(make):
    for said, good in (({"result": "ok"}, True), (ISSUED, True), ({"result": "oidc_login"}, False), ({}, False)):
        plugin = make(f"print(json.dumps({said!r}))")
        if good:
            plugin.revoke(USER, ACCESS_TOKEN, "1")
        else:
            with pytest.raises(plugins.PluginError):
                plugin.revoke(USER, ACCESS_TOKEN, "1")


BAD = {
    "status": (f"print(json.dumps({ISSUED!r})); raise SystemExit(4)", "it ended with status 4"),
    "signal": ("import os; os.kill(os.getpid(), 11)", "it ended with signal 11"),
    "an exception": ("raise RuntimeError(text)", "it ended with status 1"),
    "hangs": ("import time; time.sleep(600)", "did not end in 1 s"),
    "huge output": ("while True: print('x' * 65536)", "wrote more than 1048576 bytes"),
    "stderr for ever": ("while True: sys.stderr.write('x' * 65536)", "did not end in 1 s"),
    "closes and hangs": ("import os, time; os.close(1); os.close(2); time.sleep(600)", "did not end in 1 s"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_end(make, caplog, name):
    text, expected = BAD[name]
    plugin = with_timeout(make(text, pass_access_token=True), 1 if "1 s" in expected else 30)
    started = time.monotonic()
    _, user, log = problem(plugin, caplog)
    assert time.monotonic() - started < 10
    assert user == "the service for this credential does not work"
    assert expected in log


def test_a_flood_on_stderr_does_no_harm(make):
    plugin = make(f"sys.stderr.write('x' * 5_000_000); print(json.dumps({ISSUED!r}))")
    assert plugin.request(USER, ACCESS_TOKEN, {}).state == "1"


def test_a_grandchild_that_holds_the_pipe(make):
    plugin = make(f"import subprocess; subprocess.Popen(['sleep', '600']); print(json.dumps({ISSUED!r}))")
    started = time.monotonic()
    assert plugin.request(USER, ACCESS_TOKEN, {}).state == "1"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("shebang", "mode", "expected"),
    [
        (None, None, "is not there"),
        ("#!/bin/sh", 0o644, "may not be executed"),
        ("#!/nowhere/python", 0o755, "the interpreter in its first line is missing"),
    ],
)
def test_a_plugin_that_cannot_be_started(tmp_path, caplog, shebang, mode, expected):
    path = tmp_path / "plugin"
    if shebang:
        path.write_text(shebang + "\n")
        path.chmod(mode)
    plugin = plugins.Plugin(plugins.ServiceSection(id="test", command=[str(path)]))
    _, user, log = problem(plugin, caplog)
    assert user == "the service for this credential does not work"
    assert expected in log


def test_what_it_takes_is_asked_once_and_a_broken_one_not_all_the_time(program, tmp_path, caplog, monkeypatch):
    path = program(f"echo >> {tmp_path}/count; cat {tmp_path}/answer", "#!/bin/sh")
    plugin = plugins.Plugin(plugins.ServiceSection(id="test", command=[path]))
    for _ in range(3):
        assert problem(plugin, caplog)[1] == "the service for this credential does not work"
    good = {"result": "ok", "conf_params": [], "request_params": [], "version": "1"}
    (tmp_path / "answer").write_text(json.dumps(good))
    monkeypatch.setattr(plugin, "_broken_until", 0)
    assert plugin.parameters() == plugin.parameters()
    assert (tmp_path / "count").read_text() == "\n\n"


PARAMETERS = {"result": "ok", "conf_params": [], "request_params": [[]], "version": "1"}


@pytest.mark.parametrize(
    "change",
    [
        {"conf_params": {}},
        {"conf_params": [{"name": "Bad Name", "type": "string"}]},
        {"request_params": [{}]},
        {"request_params": [[{"key": "a"}]]},
        {"version": 1},
        {"result": "error", "user_msg": "", "log_msg": ""},
        {"features": []},
    ],
)
def test_bad_parameters(program, caplog, change):
    path = program(f"print({json.dumps(PARAMETERS | change)!r})")
    with pytest.raises(plugins.PluginError):
        plugins.Plugin(plugins.ServiceSection(id="test", command=[path])).parameters()


def test_parallel_runs_are_bounded(make, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "_running", threading.BoundedSemaphore(2))
    plugin = make(
        f"""
import os, time
mine = {str(tmp_path)!r} + "/run-" + str(os.getpid())
open(mine, "w").close()
count = len([n for n in os.listdir({str(tmp_path)!r}) if n.startswith("run-")])
time.sleep(0.2)
os.unlink(mine)
print(json.dumps({{"result": "ok", "credential": [], "state": str(count)}}))
"""
    )
    plugin.parameters()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        states = [future.state for future in pool.map(lambda _: plugin.request(USER, ACCESS_TOKEN, {}), range(6))]
    assert max(map(int, states)) == 2


def test_who_must_wait_too_long_is_told(make, monkeypatch, caplog):
    semaphore = threading.BoundedSemaphore(1)
    monkeypatch.setattr(plugins, "_running", semaphore)
    plugin = with_timeout(make(GOOD), 0.2)
    with semaphore:
        assert problem(plugin, caplog)[:2] == ("busy", "too many requests at a time: try again")


@pytest.mark.parametrize(
    "section",
    [
        {"id": "../x"},
        {"id": ""},
        {"id": "a", "command": []},
        {"id": "a", "command": ["relative"]},
        {"id": "a", "command": "/bin/sh -c x"},
        {"id": "a", "input": "file"},
        {"id": "a", "timeout": 0},
        {"id": "a", "limit": 0},
        {"id": "a", "parameters": {"lifetime": "1"}},
        {"id": "a", "parameters": {"kind": "proxy"}},
        {"id": "a", "parameters": {"delete": "both"}},
        {"id": "a", "unknown": 1},
    ],
)
def test_sections_that_are_refused(section):
    plugins.ServiceSection(id="a", command=["/bin/true"], parameters={"kind": "x"}, groups=["/cms"])
    with pytest.raises(ValidationError):
        plugins.ServiceSection(**section)


def test_a_user_of_hostile_name_is_data(make, seen):
    hostile = "'; touch /tmp/x; $(id) \n\u202e" + "é" * 1000
    user = Token(
        issuer="https://i/", subject=hostile, client=None, scopes=(), groups=(), issued=0, expires=0, claims={}
    )
    make(GOOD).request(user, ACCESS_TOKEN, {})
    assert seen()[0][1]["user_info"]["sub"] == hostile

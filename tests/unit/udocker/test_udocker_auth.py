# SPDX-License-Identifier: Apache-2.0
"""Who we are to a registry: challenges as they are written, files of credentials, helpers, tokens that end."""

import base64
import json
import os
import stat
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import udocker_faults as faults
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import auth, http, registry
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.reference import CREDENTIALS_KEY, ENDPOINT
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.reference import DEFAULT_REGISTRY as HUB
from udocker_registry import Authority

# The machine may be busy.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SECRET = "hunter-2, with: a colon"


def encoded(user, password):
    return base64.b64encode(f"{user}:{password}".encode()).decode()


# Challenges


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], []),
        (["Basic realm=\"x\""], [("basic", {"realm": "x"})]),
        (["Basic"], [("basic", {})]),
        (["bearer Realm=plain,service=s"], [("bearer", {"realm": "plain", "service": "s"})]),
        (['Bearer realm="a\\"b\\\\c"'], [("bearer", {"realm": 'a"b\\c'})]),
        (['Bearer realm="x" , service="y"  ,scope = "z"'], [("bearer", {"realm": "x", "service": "y", "scope": "z"})]),
        (['Negotiate, Basic realm="a, b", Bearer realm="c"'],
         [("negotiate", {}), ("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})]),
        (['Basic realm="a"', 'Bearer realm="b"'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (['Bearer realm="never ends'], [("bearer", {"realm": "never ends"})]),
        ([",,  ,Basic"], [("basic", {})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
    ],
)  # fmt: skip
def test_challenges(values, expected):
    assert auth.challenges(values) == expected


def test_auth_fields_which_udocker_split_on_commas():
    """udocker 1.3.17 took `push"` for a field of its own."""
    value = 'Bearer realm="https://auth.test/token",service="a, b",scope="repository:x:pull,push",error="invalid_token"'
    assert auth.challenges([value]) == [
        (
            "bearer",
            {
                "realm": "https://auth.test/token",
                "service": "a, b",
                "scope": "repository:x:pull,push",
                "error": "invalid_token",
            },
        )
    ]


@unhurried
@given(st.lists(st.text(st.characters(codec="latin-1"), max_size=40), max_size=3))
def test_any_header_is_read_to_its_end(values):
    auth.challenges(values)


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


@unhurried
@given(st.dictionaries(names, st.text(st.characters(codec="ascii"), max_size=30)))
def test_quoted_strings_hold_anything(fields):
    quoted = ", ".join('{}="{}"'.format(k, v.replace("\\", "\\\\").replace('"', '\\"')) for k, v in fields.items())
    assert auth.challenges([f"Bearer {quoted}"]) == [("bearer", fields)]


# Where credentials are


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def credentials(home):
    return auth.Credentials(str(home / "store" / "keystore"), {"PATH": os.environ["PATH"]})


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def docker_config(home, **content):
    write(home / ".docker" / "config.json", content)


@pytest.mark.parametrize(
    "key, name",
    [
        ("registry.test", "registry.test"),
        ("https://registry.test", "registry.test"),
        ("https://registry.test/v2/", "registry.test"),
        ("registry.test:5000", "registry.test:5000"),
        ("http://registry.test:5000/v1/", "registry.test:5000"),
        (CREDENTIALS_KEY, HUB),
        (HUB, HUB),
        (f"https://{ENDPOINT}", HUB),
    ],
)
def test_keys_of_dockers_configuration(home, credentials, key, name):
    docker_config(home, auths={"other.test": {"auth": encoded("x", "y")}, key: {"auth": encoded("ann", SECRET)}})
    login = credentials.find(name, "team/app")
    assert (login.user, login.password) == ("ann", SECRET)
    assert credentials.find("else.test") is None


def test_docker_config_and_others_have_their_places(home, tmp_path):
    files = ["named.json", "docker/config.json", "run/containers/auth.json", "x/containers/auth.json"]
    for number, path in enumerate(files):
        write(tmp_path / path, {"auths": {f"r{number}.test": {"auth": encoded("u", str(number))}}})
    write(tmp_path / "keys", {"https://k.test": {"auth": encoded("u", "k"), "email": ""}})
    environ = {
        "REGISTRY_AUTH_FILE": str(tmp_path / "named.json"), "DOCKER_CONFIG": str(tmp_path / "docker"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_CONFIG_HOME": str(tmp_path / "x"),
        "UDOCKER_KEYSTORE": str(tmp_path / "keys"),
    }  # fmt: skip
    found = auth.Credentials(None, environ)
    assert [found.find(f"r{number}.test").password for number in range(4)] == ["0", "1", "2", "3"]
    assert found.find("k.test").password == "k"


def test_the_longest_name_of_podmans_file(home, credentials):
    write(home / ".config" / "containers" / "auth.json", {"auths": {
        "r.test": {"auth": encoded("all", "1")}, "r.test/team": {"auth": encoded("team", "2")},
        "r.test/team/app": {"auth": encoded("app", "3")},
    }})  # fmt: skip
    assert credentials.find("r.test", "else/app").user == "all"
    assert credentials.find("r.test", "team/other").user == "team"
    assert credentials.find("r.test", "team/app").user == "app"
    assert credentials.find("r.test", "team/apple").user == "team"


def test_other_forms_of_an_entry(home, credentials):
    docker_config(home, auths={
        "a.test": {"username": "ann", "password": SECRET}, "b.test": {"auth": encoded("", ""), "identitytoken": "it"},
        "c.test": {"registrytoken": "rt"}, "d.test": {}, "e.test": None, "f.test": {"auth": "%%%"},
    })  # fmt: skip
    assert credentials.find("a.test").password == SECRET
    assert credentials.find("b.test").identity_token == "it"
    assert credentials.find("c.test").registry_token == "rt"
    assert credentials.find("d.test") is None and credentials.find("e.test") is None
    with pytest.raises(Error, match="an entry `auth` is not what it should be"):
        credentials.find("f.test")


def test_a_broken_file_is_named(home, credentials):
    path = home / ".docker" / "config.json"
    path.parent.mkdir()
    path.write_text('{"auths": {"a.test": {"auth": "of-secrets"')
    with pytest.raises(Error, match="config.json is no JSON") as error:
        credentials.find("a.test")
    assert "of-secrets" not in str(error.value)


def helper(home, monkeypatch, name, script):
    """A credential helper in PATH that logs how it is called, as docker-credential-pass is one."""
    folder = home / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f'#!/bin/sh\necho "$@" >> {home}/calls\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


STORE = """case $1 in
get) read -r url; test -e {0}/kept && cat {0}/kept || {{ echo "credentials not found in native keychain"; exit 1; }};;
store) cat > {0}/kept;;
erase) read -r url; rm -f {0}/kept; echo "$url" > {0}/erased;;
esac"""


def test_credential_helpers(home, credentials, monkeypatch):
    answer = json.dumps({"ServerURL": "a.test", "Username": "ann", "Secret": SECRET})
    helper(home, monkeypatch, "one", f"read -r url; echo $url > {home}/url; echo '{answer}'")
    helper(home, monkeypatch, "all", "echo 'credentials not found in native keychain'; exit 1")
    docker_config(home, credHelpers={"a.test": "one"}, credsStore="all", auths={"b.test": {"auth": encoded("b", "2")}})
    assert credentials.find("a.test").password == SECRET
    assert (home / "url").read_text() == "a.test\n"
    assert credentials.find("b.test").password == "2"  # the helper has nothing: the file may
    assert (home / "calls").read_text().split() == ["get", "get"]


def test_a_helper_gives_an_identity_token(home, credentials, monkeypatch):
    helper(home, monkeypatch, "one", """cat > /dev/null; echo '{"Username": "<token>", "Secret": "it"}'""")
    docker_config(home, credHelpers={CREDENTIALS_KEY: "one"})
    assert credentials.find(HUB).identity_token == "it"


@pytest.mark.parametrize(
    "script, match",
    [
        ("echo of-secrets; exit 3", "docker-credential-one get failed with status 3"),
        ("echo of-secrets", "answers with other than credentials"),
        ("echo '[\"of-secrets\"]'", "answers with other than credentials"),
    ],
)
def test_helpers_that_fail_tell_no_secrets(home, credentials, monkeypatch, script, match):
    helper(home, monkeypatch, "one", f"cat > /dev/null; {script}")
    docker_config(home, credsStore="one")
    with pytest.raises(Error, match=match) as error:
        credentials.find("a.test")
    assert "of-secrets" not in str(error.value)


def test_a_helper_that_is_missing_or_elsewhere(home, credentials):
    docker_config(home, credHelpers={"a.test": "absent", "b.test": "../../bin/sh"})
    with pytest.raises(Error, match="docker-credential-absent, which the configuration names, cannot be run"):
        credentials.find("a.test")
    with pytest.raises(Error, match="is no name of a credential helper"):
        credentials.find("b.test")


# Login and logout


def test_what_is_kept_is_kept_for_us_alone(home, credentials):
    mask = os.umask(0)
    try:
        kept = credentials.keep("registry.test:5000", auth.Login("ann", SECRET))
    finally:
        os.umask(mask)
    assert kept == str(home / "store" / "keystore")
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(kept)).st_mode) == 0o700
    assert credentials.find("registry.test:5000").password == SECRET
    assert os.listdir(home / "store") == ["keystore"]


def test_the_keystore_is_udockers(home, credentials):
    """Both programs read what the other has kept."""
    write(home / "store" / "keystore", {f"https://{ENDPOINT}": {"auth": encoded("old", "1"), "email": ""}})
    assert credentials.find(HUB).user == "old"
    credentials.keep(HUB, auth.Login("new", "2"))
    credentials.keep("r.test", auth.Login("r", "3"))
    entries = json.loads((home / "store" / "keystore").read_text())
    # It looks for a URL, and then for the same without https://.
    assert entries[ENDPOINT]["auth"] == encoded("new", "2")
    assert entries["r.test"]["auth"] == encoded("r", "3")
    assert f"https://{ENDPOINT}" not in entries


def test_logout(home, credentials):
    for name in ("a.test", "b.test", HUB):
        credentials.keep(name, auth.Login("ann", SECRET))
    assert credentials.forget("a.test") == 1
    assert credentials.forget("a.test") == 0
    assert credentials.find("a.test") is None and credentials.find("b.test") is not None
    assert credentials.forget() == 2
    assert SECRET not in (home / "store" / "keystore").read_text()
    assert credentials.find(HUB) is None


def test_login_and_logout_with_the_helper_of_dockers_configuration(home, credentials, monkeypatch):
    helper(home, monkeypatch, "keys", STORE.format(home))
    docker_config(home, credsStore="keys")
    assert credentials.keep("r.test", auth.Login("ann", SECRET)) == "helper keys"
    assert json.loads((home / "kept").read_text()) == {"ServerURL": "r.test", "Username": "ann", "Secret": SECRET}
    assert credentials.find("r.test").password == SECRET
    assert not (home / "store").exists()
    assert SECRET not in (home / "calls").read_text()
    assert credentials.forget("r.test") == 1
    assert (home / "erased").read_text() == "r.test\n"
    assert credentials.forget("r.test") == 0


# Tokens


class Realm:
    """A registry that wants tokens, and its server of tokens, both in one stand-in; `answer` makes what it says."""

    def __init__(self, faulty):
        self.faulty, self.valid, self.count = faulty, set(), 0
        self.answer = lambda token: {"token": token, "expires_in": 300}
        self.challenge = f'Bearer realm="{faulty.url}/token",service="s",scope="repository:x:pull"'
        faulty.fault("^/token", self.token, times=999)
        faulty.fault("^/token", self.token, times=999, method="POST")
        faulty.fault("^/v2/", self.guard, times=999)

    def token(self, handler):
        self.count += 1
        token = f"token-{self.count}"
        self.valid.add(token)
        handler.reply(200, json.dumps(self.answer(token)).encode())

    def guard(self, handler):
        kind, _space, token = handler.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer" and token in self.valid:
            handler.reply(200, token.encode())
        else:
            handler.reply(401, b"{}", {"WWW-Authenticate": self.challenge})


@pytest.fixture
def realm():
    with faults.Faulty() as faulty:
        yield Realm(faulty)


def endpoint(realm, login=None):
    return registry.Endpoint(http.Client(environ={}, pause=0.001), realm.faulty.url, lambda: login)


def ask(place, scopes=("repository:x:pull",)):
    with place.request("GET", "x", scopes) as response:
        return response.status, response.read(100).decode()


def test_a_token_is_used_for_as_long_as_it_lives(realm):
    place = endpoint(realm)
    assert [ask(place) for _request in range(3)] == [(200, "token-1")] * 3
    assert len(realm.faulty.requests) == 1 + 1 + 3


def test_tokens_called_access_token_which_udocker_did_not_take(realm):
    realm.answer = lambda token: {"access_token": token}
    assert ask(endpoint(realm)) == (200, "token-1")


def test_a_token_is_renewed_before_it_ends(realm, monkeypatch):
    place, now = endpoint(realm), [1000.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    assert ask(place) == (200, "token-1")
    now[0] += 200
    assert ask(place) == (200, "token-1")
    now[0] += 80
    asked = len(realm.faulty.requests)
    assert ask(place) == (200, "token-2")
    assert len(realm.faulty.requests) == asked + 2  # no request was refused for it


def test_a_token_that_ended_early_is_renewed(realm):
    place = endpoint(realm)
    assert ask(place) == (200, "token-1")
    realm.valid.clear()
    assert ask(place) == (200, "token-2")


def test_each_scope_has_its_token(realm):
    place = endpoint(realm)
    assert ask(place, ("repository:x:pull",)) == (200, "token-1")
    assert ask(place, ("repository:y:pull", "repository:x:pull,push")) == (200, "token-2")
    assert ask(place, ("repository:x:pull",)) == (200, "token-1")
    path = realm.faulty.requests[-3][1]
    assert "scope=repository%3Ax%3Apull%2Cpush&scope=repository%3Ay%3Apull" in path


def test_user_and_password_go_to_the_realm_alone(realm):
    assert ask(endpoint(realm, auth.Login("ann", SECRET)))[0] == 200
    for _how, path, headers, _peer in realm.faulty.requests:
        basic = headers.get("Authorization", "").startswith("Basic")
        assert basic == path.startswith("/token")
    assert "account=ann" in realm.faulty.requests[1][1]


def test_an_identity_token_is_posted(realm):
    assert ask(endpoint(realm, auth.Login(identity_token="it-1")))[0] == 200
    how, path, headers, _peer = realm.faulty.requests[1]
    assert (how, path) == ("POST", "/token")  # in the body, not in what logs show
    assert "Authorization" not in headers


def test_a_registrys_own_token_is_sent_as_it_is(realm):
    realm.valid.add("mine")
    assert ask(endpoint(realm, auth.Login(registry_token="mine"))) == (200, "mine")


def test_basic(realm):
    realm.challenge = 'Basic realm="a, b"'
    place = endpoint(realm, auth.Login("ann", SECRET))
    assert ask(place)[0] == 401  # it takes no such thing, and is asked no more than this
    sent = [headers.get("Authorization") for _how, _path, headers, _peer in realm.faulty.requests]
    assert sent == [None, f"Basic {encoded('ann', SECRET)}"]


def test_without_a_login_basic_is_not_answered(realm):
    realm.challenge = 'Basic realm="x"'
    assert ask(endpoint(realm))[0] == 401
    assert len(realm.faulty.requests) == 1


@pytest.mark.parametrize("token", ["", 5, "a\r\nX: y", "caf\u00e9", None])
def test_tokens_that_are_none(realm, token):
    realm.answer = lambda _token: {"token": token}
    with pytest.raises(Error, match="without a token"):
        ask(endpoint(realm))


@pytest.mark.parametrize("answer", [{}, [], {"token": "t", "expires_in": "x"}])
def test_answers_without_a_token(realm, answer):
    realm.answer = lambda token: answer
    with pytest.raises(Error, match="without a token|other than a token"):
        ask(endpoint(realm))


def test_a_denied_token_says_who_was_denied_and_tells_no_secret(realm):
    realm.faulty.fault("^/token", faults.status(401), times=9)
    with pytest.raises(auth.Denied, match="ann .from a file.: log in again") as error:
        ask(endpoint(realm, auth.Login("ann", SECRET, source="a file")))
    assert SECRET not in str(error.value) and encoded("ann", SECRET) not in str(error.value)
    assert SECRET not in repr(auth.Login("ann", SECRET, "it", "rt"))


def test_another_host_that_asks_for_a_password_after_a_redirect_gets_none(realm):
    with faults.Faulty() as other:
        other.fault("^/blob", faults.status(401, {"WWW-Authenticate": f'Bearer realm="{other.url}/token"'}))
        realm.faulty.fault("^/v2/x", faults.redirect(f"{other.url}/blob"), times=9)
        assert ask(endpoint(realm, auth.Login("ann", SECRET)))[0] == 401
        assert [path for _how, path, _headers, _peer in other.requests] == ["/blob"]


def test_no_password_goes_from_https_to_a_realm_without(tmp_path, realm):
    authority = Authority(tmp_path / "ca")
    with faults.Faulty(tls=authority.server_context()) as secure:
        secure.fault("^/v2/", faults.status(401, {"WWW-Authenticate": realm.challenge}), times=9)
        client = http.Client(environ={}, ca_file=str(authority.ca))
        place = registry.Endpoint(client, secure.url, lambda: auth.Login("ann", SECRET))
        with pytest.raises(http.Unreachable, match="without TLS: refused"):
            ask(place)
    assert not realm.faulty.requests


def test_many_threads_ask_for_one_token(realm):
    place, answers = endpoint(realm), []
    threads = [threading.Thread(target=lambda: answers.append(ask(place))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [(200, "token-1")] * 8

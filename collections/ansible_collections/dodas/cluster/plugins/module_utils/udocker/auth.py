# SPDX-License-Identifier: Apache-2.0
"""Who we are to a registry: challenges, tokens, and where credentials are kept.

No error of this module holds a password or a token.
"""

import base64
import contextlib
import json
import os
import threading
import time

from .errors import Error
from .http import Unreachable, basic, origin, shown
from .reference import ALIASES, CREDENTIALS_KEY, DEFAULT_REGISTRY, ENDPOINT

LIFETIME = 60.0  # seconds that a token lives that does not say
ANSWER = 1 << 20  # bytes that a token server may answer with
HELPER_WAIT = 60.0
CLIENT_ID = "udocker"


class Login:
    """What proves who somebody is: user and password, or an identity token, or a registry's own token."""

    __slots__ = ("identity_token", "password", "registry_token", "source", "user")

    def __init__(self, user="", password="", identity_token="", registry_token="", source=""):
        self.user = user
        self.password = password
        self.identity_token = identity_token
        self.registry_token = registry_token
        self.source = source  # where it was found: a file, a helper

    def __repr__(self):
        return f"Login({self.user!r} from {self.source})"


# Challenges (RFC 9110, 11.6.1)


def challenges(values):
    """[(scheme in lower case, {parameter: value})] of WWW-Authenticate headers; quoted strings may hold commas."""
    found = []
    for value in values:
        rest = value.strip()
        while rest:
            word, rest = _token(rest)
            if not word:
                rest = rest[1:].lstrip(", \t") if rest else rest
                continue
            if rest.startswith("=") and found:
                content, rest = _value(rest[1:].lstrip())
                found[-1][1].setdefault(word.lower(), content)
            else:
                found.append((word.lower(), {}))
            rest = rest.lstrip(", \t")
    return found


def _token(text):
    end = 0
    while end < len(text) and (text[end].isalnum() or text[end] in "!#$%&'*+-.^_`|~"):
        end += 1
    return text[:end], text[end:].lstrip(" \t")


def _value(text):
    if not text.startswith('"'):
        end = 0
        while end < len(text) and text[end] not in ", \t":
            end += 1
        return text[:end], text[end:]
    content, index = [], 1
    while index < len(text) and text[index] != '"':
        if text[index] == "\\" and index + 1 < len(text):
            index += 1
        content.append(text[index])
        index += 1
    return "".join(content), text[index + 1 :]


class Authorizer:
    """Answers the challenges of one registry, and keeps its tokens for as long as they live. Thread-safe."""

    def __init__(self, client, registry, find):
        """find: a function without arguments that returns the Login, or None; called when it is first asked for."""
        self.client = client
        self.registry = registry
        self._find = find
        self._login = None
        self._looked = False
        self._lock = threading.RLock()
        self._basic = None
        self._bearer = None
        self._tokens = {}
        self.offline = False  # ask for an identity token as well, to keep it in place of the password
        self.identity_token = ""

    @property
    def login(self):
        with self._lock:
            if not self._looked:
                self._login = self._find()
                self._looked = True
            return self._login

    def header(self, scopes):
        """The value of Authorization for a request that needs `scopes`, or None if nothing was asked for yet."""
        with self._lock:
            if self._bearer is None:
                return self._basic
            token, until = self._tokens.get(frozenset(scopes), (None, 0.0))
            if token is None or time.monotonic() > until:
                token = self._renew(self._bearer, frozenset(scopes))
            return f"Bearer {token}"

    def answer(self, response, scopes, sent):
        """Take up the challenge of a 401; returns whether the request is worth sending again.

        sent: the Authorization that the refused request carried: one that is newer already is worth a try
        """
        offered = challenges(response.headers.get_all("WWW-Authenticate") or [])
        with self._lock:
            current = None
            if self._basic is not None:
                current = self._basic
            elif self._bearer is not None:
                current = f"Bearer {self._tokens.get(frozenset(scopes), ('', 0))[0]}"
            if current != sent and current != "Bearer ":
                return True
            for scheme, fields in offered:
                if scheme == "bearer" and fields.get("realm"):
                    realm, behalf = fields["realm"], response.url
                    secure = behalf.startswith("https:") and not self.client.is_insecure(*origin(behalf)[1:])
                    if secure and not realm.startswith("https:"):
                        raise Unreachable(f"{self.registry} sends us to {shown(realm)}, without TLS: refused")
                    wanted = frozenset(scopes) | frozenset((fields.get("scope") or "").split())
                    self._bearer = {"realm": realm, "service": fields.get("service", ""), "behalf": behalf}
                    token = self._renew(self._bearer, wanted)
                    self._tokens[frozenset(scopes)] = self._tokens[wanted]
                    return f"Bearer {token}" != sent
            for scheme, _fields in offered:
                login = self.login if scheme == "basic" else None
                if login is not None and login.user:
                    self._basic = basic(login.user, login.password)
                    return self._basic != sent
        return False

    def _renew(self, bearer, scopes):
        login = self.login
        if login is not None and login.registry_token:
            token, lifetime = login.registry_token, LIFETIME
        else:
            token, lifetime = self._fetch(bearer, sorted(scopes), login)
        # A little early, since the request must still arrive.
        self._tokens[scopes] = (token, time.monotonic() + max(lifetime * 0.9 - 1, 1.0))
        return token

    def _fetch(self, bearer, scopes, login):
        from urllib.parse import urlencode

        realm, service = bearer["realm"], bearer["service"]
        if login is not None and login.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": login.identity_token}
            return self._post(bearer, scopes, form, login)
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if self.offline:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        headers = {}
        if login is not None and login.user:
            query.append(("account", login.user))
            headers["Authorization"] = basic(login.user, login.password)
        url = realm + ("&" if "?" in realm else "?") + urlencode(query) if query else realm
        with self.client.request("GET", url, headers, behalf=bearer["behalf"]) as response:
            if response.status in (404, 405) and headers:
                form = {"grant_type": "password", "username": login.user, "password": login.password}
                return self._post(bearer, scopes, form, login)
            return self._token_of(response, realm, login)

    def _post(self, bearer, scopes, form, login):
        from urllib.parse import urlencode

        form = {**form, "service": bearer["service"], "client_id": CLIENT_ID, "scope": " ".join(scopes)}
        headers, body = {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(form).encode()
        with self.client.request("POST", bearer["realm"], headers, body, behalf=bearer["behalf"]) as response:
            return self._token_of(response, bearer["realm"], login)

    def _token_of(self, response, realm, login):
        where = shown(realm)
        if response.status in (400, 401, 403):
            who = f"{login.user or 'the identity token'} (from {login.source})" if login else "without a login"
            raise Denied(f"{where} gives no token for {self.registry}, {who}: log in again")
        if response.status != 200:
            raise Unreachable(f"{where} gives no token for {self.registry}: it answers {response.status}")
        try:
            answer = json.loads(response.read(ANSWER))
            token = answer.get("token") or answer.get("access_token")
            lifetime = float(answer.get("expires_in") or LIFETIME)
            if self.offline:
                self.identity_token = str(answer.get("refresh_token") or "")
        except (ValueError, TypeError, AttributeError):
            raise Unreachable(f"{where} answers with other than a token") from None
        if not isinstance(token, str) or not token.isprintable() or not token.isascii() or not token:
            raise Unreachable(f"{where} answers without a token")
        return token, lifetime


class Denied(Error):
    """The registry, or the server that gives its tokens, does not let us."""


# Where credentials are kept


class Credentials:
    """What the user has logged in to, for this program and for others.

    keystore: udocker's file; environ: of the process. Files are read in this order: $REGISTRY_AUTH_FILE, the keystore,
    podman's auth.json, Docker's config.json with its helpers.
    """

    def __init__(self, keystore=None, environ=None):
        self.environ = os.environ if environ is None else environ
        self.keystore = self.environ.get("UDOCKER_KEYSTORE") or keystore

    def find(self, registry, repository=""):
        """The Login for a repository of a registry, or None; raises Error when a file or a helper is unusable."""
        for path in self._files():
            login = self._from_file(path, registry, repository)
            if login is not None:
                return login
        return None

    def keep(self, registry, login):
        """Keep a login: with the helper that Docker's configuration names, else in the keystore (mode 0600)."""
        helper = self._helper(_load(self.docker_config), registry)
        if helper:
            secret = login.identity_token or login.password
            user = "<token>" if login.identity_token else login.user
            request = {"ServerURL": _server(registry), "Username": user, "Secret": secret}
            _ask_helper(helper, "store", json.dumps(request))
            return f"helper {helper}"
        auth = base64.b64encode(f"{login.user}:{login.password}".encode()).decode("ascii")
        entry = {"auth": auth, "email": ""}
        if login.identity_token:
            entry["identitytoken"] = login.identity_token
        name = ENDPOINT if registry == DEFAULT_REGISTRY else registry

        def change(entries):
            for key in [key for key in entries if host_of(key) == registry]:
                del entries[key]
            entries[name] = entry

        self._change_keystore(change)
        return self.keystore

    def forget(self, registry=None):
        """Remove the login of a registry (None: all) from the keystore and from its helper; returns how many went."""
        gone = []

        def change(entries):
            gone.extend(key for key in entries if registry is None or host_of(key) == registry)
            for key in gone:
                del entries[key]

        if os.path.exists(self.keystore):
            self._change_keystore(change)
        config = _load(self.docker_config)
        if registry is not None:
            helper = self._helper(config, registry)
            if helper and _ask_helper(helper, "get", _server(registry)) is not None:
                _ask_helper(helper, "erase", _server(registry))
                gone.append(registry)
        return len(gone)

    @property
    def docker_config(self):
        folder = self.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
        return os.path.join(folder, "config.json")

    def _files(self):
        named = self.environ.get("REGISTRY_AUTH_FILE")
        if named:
            yield named
        if self.keystore:
            yield self.keystore
        runtime = self.environ.get("XDG_RUNTIME_DIR")
        if runtime:
            yield os.path.join(runtime, "containers", "auth.json")
        home = self.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        yield os.path.join(home, "containers", "auth.json")
        yield self.docker_config

    def _from_file(self, path, registry, repository):
        config = _load(path)
        # udocker's keystore is what the others hold below "auths".
        entries = config if path == self.keystore else config.get("auths") or {}
        if path != self.keystore:
            helper = self._helper(config, registry)
            if helper:
                login = _from_helper(helper, _server(registry))
                if login is not None:
                    return login
        wanted = f"{registry}/{repository}".rstrip("/")
        keys = {host_of(key): entry for key, entry in entries.items() if isinstance(entry, dict)}
        while wanted:
            if wanted in keys:
                login = _from_entry(keys[wanted], path)
                if login is not None:
                    return login
            wanted = wanted.rpartition("/")[0]
        return None

    @staticmethod
    def _helper(config, registry):
        helpers = config.get("credHelpers") or {}
        for key, name in helpers.items():
            if host_of(key) == registry:
                return name
        return config.get("credsStore") or None

    def _change_keystore(self, change):
        import fcntl

        folder = os.path.dirname(self.keystore)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        temporary = f"{self.keystore}.{os.getpid()}"
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            entries = _load(self.keystore)
            change(entries)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(target, "w", encoding="utf-8") as stream:
                json.dump(entries, stream)
            os.replace(temporary, self.keystore)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.close(holder)


def _load(path):
    try:
        with open(path, encoding="utf-8") as source:
            content = json.load(source)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        raise Error(f"{path} cannot be read: it holds credentials") from None
    except ValueError:
        raise Error(f"{path} is no JSON: repair or remove it") from None
    return content if isinstance(content, dict) else {}


def host_of(key):
    """host[/path] that a location or a key of a file of credentials stands for; URLs stand for their host."""
    name = key.split("://", 1)[-1]
    host, _slash, path = name.partition("/")
    if host.lower() in ALIASES:
        host = DEFAULT_REGISTRY
    if "://" in key or path.strip("/") in ("v1", "v2", ""):
        return host.lower()
    return f"{host.lower()}/{path}".rstrip("/")


def _server(registry):
    """What helpers call a registry."""
    return CREDENTIALS_KEY if registry == DEFAULT_REGISTRY else registry


def _from_entry(entry, source):
    user, password = entry.get("username") or "", entry.get("password") or ""
    if entry.get("auth"):
        try:
            text = base64.b64decode(entry["auth"].strip(), validate=True).decode()
        except (ValueError, AttributeError):
            raise Error(f"{source}: an entry `auth` is not what it should be: log in again") from None
        user, _colon, password = text.rstrip("\0").partition(":")
    login = Login(user, password, entry.get("identitytoken") or "", entry.get("registrytoken") or "", source)
    return login if login.user or login.identity_token or login.registry_token else None


def _from_helper(helper, server):
    answer = _ask_helper(helper, "get", server)
    if answer is None:
        return None
    try:
        answer = json.loads(answer)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise Error(f"docker-credential-{helper} answers with other than credentials") from None
    if user == "<token>":
        return Login(identity_token=secret, source=f"docker-credential-{helper}")
    return Login(user, secret, source=f"docker-credential-{helper}") if user else None


def _ask_helper(helper, action, text):
    """What a credential helper prints, or None if it has nothing for us. Its input goes through a pipe."""
    import subprocess

    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise Error(f"{program} is no name of a credential helper")
    try:
        done = subprocess.run(
            [program, action], input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=HELPER_WAIT, check=False,
        )  # fmt: skip
    except OSError as exc:
        raise Error(f"{program}, which the configuration names, cannot be run: {exc.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Error(f"{program} {action} did not end within {HELPER_WAIT:.0f} s") from None
    if done.returncode:
        if action == "get" and b"not found" in done.stdout:
            return None
        raise Error(f"{program} {action} failed with status {done.returncode}: run it by hand to see why")
    return done.stdout.decode("utf-8", "replace")

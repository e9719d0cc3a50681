# SPDX-License-Identifier: Apache-2.0
"""The client of a registry (OCI distribution, Docker registry v2): manifests, blobs, tags, search, login."""

import json

from . import manifests
from .auth import Authorizer, Credentials, Denied, Login, host_of
from .errors import Error, NotFound
from .http import Client, Unreachable, is_loopback, join, origin, shown
from .reference import DEFAULT_REGISTRY, ENDPOINT, INDEX, check_digest

PAGE = 100
PAGES = 10000
LIST_BYTES = 16 << 20


class Endpoint:
    """One place that speaks the protocol: a registry, or a mirror of it.

    location: host[:port][/prefix], or the same as a URL; without a scheme it is https, and on loopback or where it is
    insecure plain http when that is what is spoken there
    """

    def __init__(self, client, location, find):
        self.client = client
        self.location = location.rstrip("/")
        self.authorizer = Authorizer(client, location, find)
        self._base = self.location if "://" in location else None

    @property
    def base(self):
        """The URL in front of /v2/."""
        if self._base is None:
            base = f"https://{self.location}"
            _scheme, host, port = origin(base)
            if is_loopback(host) or self.client.is_insecure(host, port):
                base = self._speaks(base)
            self._base = base
        return self._base

    def _speaks(self, base):
        try:
            self.client.request("GET", f"{base}/v2/", retry=False).close()
        except Unreachable as exc:
            plain = f"http://{self.location}"
            if "certificate" in str(exc):
                raise
            try:
                self.client.request("GET", f"{plain}/v2/").close()
            except Unreachable as second:
                raise second from exc
            return plain
        return base

    def url(self, path):
        """The URL of what is at `path` below /v2/; one that is a URL already stays."""
        if "://" in path:
            return path
        scheme, _slashes, rest = self.base.partition("://")
        host, _slash, prefix = rest.partition("/")
        return f"{scheme}://{host}/v2/{prefix + '/' if prefix else ''}{path}"

    def request(self, method, path, scopes=(), headers=None, body=None, retry=True):
        """The Response to a request, authorized for `scopes` as the registry asks."""
        url = self.url(path)
        ours = origin(url) == origin(self.base)
        for _attempt in range(3):
            authorization = self.authorizer.header(scopes) if ours else None
            sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
            response = self.client.request(method, url, sent, body, retry, self.base)
            # What another host asks for, to which we were sent, is not for it to have.
            if response.status != 401 or not ours or origin(response.url) != origin(url):
                break
            if not self.authorizer.answer(response, scopes, authorization):
                break
            response.close()
        return response


class Registry:
    """What can be asked of a registry. Safe to share between threads.

    mirrors: locations that are asked first for what is only read, in this order
    location: where it is asked, if not at its name
    credentials: auth.Credentials, or the auth.Login to use
    """

    def __init__(self, host, client=None, credentials=None, mirrors=(), location=None):
        self.host = host
        self.client = client or Client()
        self.credentials = Credentials() if credentials is None else credentials
        self.endpoint = self._endpoint(location or (ENDPOINT if host == DEFAULT_REGISTRY else host), known=True)
        self._mirrors = [self._endpoint(mirror) for mirror in mirrors]
        self._down = set()
        self.repository = ""

    def _endpoint(self, location, known=False):
        """An Endpoint with the credentials for its own host; known: those that were given are meant for it."""

        def find():
            if isinstance(self.credentials, Login):
                return self.credentials if known else None
            return self.credentials.find(host_of(location).partition("/")[0], self.repository)

        return Endpoint(self.client, _without_version(location), find)

    def close(self):
        self.client.close()

    # Reading

    def manifest(self, repository, target):
        """The manifests.Manifest of a tag or digest; raises NotFound, Error."""
        where = self._where(repository, target)
        headers = {"Accept": ", ".join(manifests.ACCEPTED)}

        def fetch(endpoint):
            with self._read(endpoint, "GET", repository, f"manifests/{target}", where, headers) as response:
                content = response.read(manifests.MANIFEST_BYTES)
                digest = target if ":" in target else _digest_of(response)
                return manifests.parse(content, where, response.headers.get("Content-Type", ""), digest)

        return self._first(fetch)

    def digest(self, repository, target):
        """The digest of what a tag stands for, or None if the registry says it only with the whole manifest."""
        headers = {"Accept": ", ".join(manifests.ACCEPTED)}
        where = self._where(repository, target)

        def ask(endpoint):
            with self._read(endpoint, "HEAD", repository, f"manifests/{target}", where, headers) as response:
                return _digest_of(response)

        return self._first(ask)

    def blob(self, repository, digest, start=0, mirrors=True):
        """The Response that holds a blob from byte `start` on, or the whole (status 200, not 206)."""
        where = f"{self.host}/{repository}: blob {digest}"
        headers = {"Range": f"bytes={start}-"} if start else None

        def fetch(endpoint):
            return self._read(endpoint, "GET", repository, f"blobs/{digest}", where, headers)

        return self._first(fetch, mirrors)

    def small_blob(self, repository, descriptor, limit=manifests.CONFIG_BYTES):
        """The verified content of a small blob."""
        from .store import hash_of

        digest, size = descriptor["digest"], descriptor["size"]
        where = f"{self.host}/{repository}: blob {digest}"

        def fetch(endpoint):
            with self._read(endpoint, "GET", repository, f"blobs/{digest}", where) as response:
                content = response.read(limit)
            if len(content) != size:
                raise Unreachable(f"{where} has {len(content)} bytes, the manifest says {size}: refused")
            if hash_of(digest, content) != digest:
                raise Unreachable(f"{where} is not what its digest says: refused")
            return content

        return self._first(fetch)

    def tags(self, repository):
        """The tags of a repository, page by page (a generator)."""
        where = f"{self.host}/{repository}"
        return self._pages(f"{repository}/tags/list?n={PAGE}", "tags", _pull_scope(repository), where)

    def catalog(self):
        """The repositories of a registry that tells them (a generator)."""
        where = f"the catalogue of {self.host}"
        return self._pages(f"_catalog?n={PAGE}", "repositories", ("registry:catalog:*",), where)

    def _pages(self, path, key, scopes, where):
        endpoint = self.endpoint
        for _page in range(PAGES):
            with endpoint.request("GET", path, scopes) as response:
                _check(response, where)
                found = _json(response, where).get(key) or []
                for name in found:
                    yield str(name)
                path = _next(response)
            if not path:
                return
            if origin(path) != origin(endpoint.base):
                raise Error(f"{where}: its next page is said to be at {shown(path)}: refused")
        raise Error(f"{where}: more than {PAGES} pages: refused")

    def search(self, term, index=None):
        """{name, description, official, stars} of the repositories that fit `term` (a generator).

        index: location that is searched instead, as the default registry has one
        """
        location = index or (INDEX if self.host == DEFAULT_REGISTRY else None)
        endpoint = self._endpoint(location) if location else self.endpoint
        for find in (_search_v2, _search_v1):
            found = find(endpoint, term)
            first = next(found, False)
            if first is not None:
                if first is not False:
                    yield first
                yield from found
                return
        if index or self.host == DEFAULT_REGISTRY:
            raise Error(f"{location} cannot be searched")
        for name in self.catalog():
            if term.lower() in name:
                yield {"name": f"{self.host}/{name}", "description": "", "official": False, "stars": 0}

    # Writing

    def has_blob(self, repository, digest):
        with self.endpoint.request("HEAD", f"{repository}/blobs/{digest}", push_scope(repository)) as response:
            if response.status == 404:
                return False
            _check(response, f"{self.host}/{repository}: blob {digest}")
            return True

    def start_upload(self, repository, digest, source=None):
        """Begin to send a blob, or have it mounted from repository `source`; returns where to, None if mounted."""
        path = f"{repository}/blobs/uploads/"
        scopes = push_scope(repository)
        if source:
            path += f"?mount={digest}&from={source}"
            scopes += _pull_scope(source)
        with self.endpoint.request("POST", path, scopes, {"Content-Length": "0"}, b"") as response:
            if response.status == 201:
                return None
            _check(response, f"{self.host}/{repository}", (202,))
            return _location(response)

    def send(self, repository, location, body, start, length, where):
        """Send `length` bytes from `start` on; returns where to go on. body: a function that opens them."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        if start:
            headers["Content-Range"] = f"{start}-{start + length - 1}"
        request = self.endpoint.request("PATCH", location, push_scope(repository), headers, body, retry=False)
        with request as response:
            _check(response, where, (202, 201, 204))
            return _location(response)

    def sent(self, repository, location, where):
        """(how many bytes of an upload have arrived, where to go on)."""
        with self.endpoint.request("GET", location, push_scope(repository)) as response:
            _check(response, where, (204, 202, 200))
            last = response.headers.get("Range", "").rpartition("-")[2]
            return (int(last) + 1 if last.isdigit() and int(last) else 0), _location(response)

    def finish_upload(self, repository, location, digest, where):
        url = location + ("&" if "?" in location else "?") + f"digest={digest}"
        request = self.endpoint.request("PUT", url, push_scope(repository), {"Content-Length": "0"}, b"")
        with request as response:
            _check(response, where, (201, 204, 202))
            _same_digest(response, digest, where)

    def put_manifest(self, repository, target, content, media_type, digest):
        where = self._where(repository, target)
        path, headers = f"{repository}/manifests/{target}", {"Content-Type": media_type}
        with self.endpoint.request("PUT", path, push_scope(repository), headers, content) as response:
            _check(response, where, (201, 202, 200))
            _same_digest(response, digest, where)

    # One request

    def _where(self, repository, target):
        return f"{self.host}/{repository}{'@' if ':' in target else ':'}{target}"

    def _read(self, endpoint, method, repository, path, where, headers=None):
        response = endpoint.request(method, f"{repository}/{path}", _pull_scope(repository), headers)
        try:
            _check(response, where, (200, 206) if headers and "Range" in headers else (200,))
        except BaseException:
            response.close()
            raise
        return response

    def _first(self, action, mirrors=True):
        """What `action` returns for the first place that has it."""
        for mirror in self._mirrors if mirrors else ():
            if mirror in self._down:
                continue
            try:
                return action(mirror)
            except NotFound:
                continue
            except Unreachable:
                self._down.add(mirror)
            except Error:
                continue
        return action(self.endpoint)


def connect(reference, store=None, **access):
    """The Registry that a Reference is of.

    store: whose folder holds the keystore, and whose `access` holds for what is not said here
    access: mirrors: {registry: [location, ...]}, asked before it; locations: {registry: location}, asked in its place;
    keystore: path; credentials: an auth.Login, or (user, password), else what the user has logged in to; the rest as
    http.Client takes it
    """
    access = dict(store.access if store else {}, **access)
    mirrors, locations = access.pop("mirrors", None) or {}, access.pop("locations", None) or {}
    credentials, keystore = access.pop("credentials", None), access.pop("keystore", None)
    client = Client(**access)
    if isinstance(credentials, tuple):
        credentials = Login(*credentials, source="the command line")
    if credentials is None:
        credentials = Credentials(keystore or (store.path("keystore") if store else None))
    host = reference.registry
    registry = Registry(host, client, credentials, mirrors.get(host, ()), locations.get(host))
    registry.repository = reference.repository
    return registry


def client(store):
    """A Client that reaches hosts as `store.access` says, for what is no registry."""
    access = dict(store.access)
    for name in ("mirrors", "locations", "credentials", "keystore"):
        access.pop(name, None)
    return Client(**access)


def login(host, user, password, credentials, client=None, location=None):
    """Verify user and password with a registry, then keep them; returns (where, whether the registry asked for them).

    An identity token, where the registry gives one, is kept in place of the password. Raises Denied, Error.
    """
    who = Login(user, password, source="this login")
    registry = Registry(host, client, who, location=location)
    endpoint = registry.endpoint
    endpoint.authorizer.offline = True
    with endpoint.request("GET", "") as response:
        if response.status in (401, 403):
            raise Denied(f"{host} knows no such user and password")
        _check(response, host)
        asked = endpoint.authorizer.header(()) is not None
    token = endpoint.authorizer.identity_token
    if token:
        who = Login(user, "", token)
    return credentials.keep(host, who), asked


def _without_version(location):
    """A location as people write it, without the version of the interface at its end."""
    location = location.rstrip("/")
    return location[: -len("/v1")] if location.endswith(("/v1", "/v2")) else location


def push_scope(repository):
    return (f"repository:{repository}:pull,push",)


def _pull_scope(repository):
    return (f"repository:{repository}:pull",)


# Answers


def _check(response, where, good=(200,)):
    """Raise what the registry said, unless the status is one of `good`."""
    if response.status in good:
        return
    said = _said(response)
    if response.status == 401:
        raise Denied(f"{where}: the registry wants a login{said}: log in to it")
    if response.status == 403:
        raise Denied(f"{where}: not allowed{said}")
    if response.status == 404:
        raise NotFound(f"{where}: not found{said}")
    if response.status == 429:
        after = response.headers.get("Retry-After", "")
        raise Unreachable(f"{where}: the registry has had too many requests{f', for {after} s' if after else ''}{said}")
    if response.status >= 500:
        raise Unreachable(f"{where}: the registry fails with {response.status}{said}")
    raise Error(f"{where}: the registry answers {response.status}{said}")


def _said(response):
    """What a registry says of an error, as text for an error of ours."""
    try:
        errors = json.loads(response.read(1 << 16))["errors"]
        texts = [f"{error.get('message') or error.get('code')}" for error in errors]
    except (Error, ValueError, KeyError, TypeError, AttributeError):
        return ""
    text = "".join(char if char.isprintable() else " " for char in "; ".join(texts))
    return f" ({text[:200]})" if text else ""


def _json(response, where):
    try:
        content = json.loads(response.read(LIST_BYTES))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Error(f"{where}: the answer is no JSON object")
    return content


def _digest_of(response):
    digest = response.headers.get("Docker-Content-Digest")
    try:
        check_digest(digest or "")
    except Error:
        return None
    return digest


def _same_digest(response, digest, where):
    said = _digest_of(response)
    if said is not None and said != digest:
        raise Error(f"{where}: the registry has kept {said}, and was sent {digest}")


def _location(response):
    location = response.headers.get("Location")
    if not location:
        raise Error(f"{shown(response.url)}: the registry does not say where to go on")
    return join(response.url, location)


def _next(response):
    """The URL of the next page (RFC 8288), or None."""
    for value in response.headers.get_all("Link") or []:
        url, _end, parameters = value.strip().partition(">")
        if url.startswith("<") and "next" in parameters.replace('"', " ").replace("=", " ").split():
            return join(response.url, url[1:])
    return None


# Search: generators whose first value is None where this interface is not to be had


def _search_v2(endpoint, term):
    from urllib.parse import urlencode

    query = urlencode({"query": term or "*", "page_size": PAGE})
    return _results(endpoint, f"{endpoint.base}/v2/search/repositories?{query}", "v2")


def _search_v1(endpoint, term):
    from urllib.parse import urlencode

    return _results(endpoint, f"{endpoint.base}/v1/search?{urlencode({'q': term, 'n': PAGE})}", "v1")


def _results(endpoint, url, version):
    first = url
    for page in range(1, PAGES):
        with endpoint.request("GET", url) as response:
            try:
                answer = json.loads(response.read(LIST_BYTES)) if response.status == 200 else None
            except ValueError:
                answer = None
            if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
                if page == 1:
                    yield None
                return
        for entry in answer["results"]:
            yield {
                "name": entry.get("name") or entry.get("repo_name") or "",
                "description": entry.get("description") or entry.get("short_description") or "",
                "official": bool(entry.get("is_official")),
                "stars": int(entry.get("star_count") or 0),
            }
        more = answer.get("next") if version == "v2" else page < int(answer.get("num_pages") or 1)
        if not answer["results"] or not more:
            return
        url = f"{first}&page={page + 1}"

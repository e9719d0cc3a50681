# SPDX-License-Identifier: Apache-2.0
"""One login to a cloud, and plain JSON requests that outlive its bad moments.

The services' addresses are those of the login's catalogue, so that nothing has to be discovered; requests go over one
pool of connections, a bounded number at once, and are counted.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import (
    ApiError,
    OpenStackError,
    Quota,
    nearest,
)

try:
    import requests
    from keystoneauth1 import exceptions as ksa
    from keystoneauth1 import session as ksa_session

    from openstack import config as sdk_config
    from openstack import exceptions as sdk_exceptions

    MISSING = None
except ImportError as exc:
    MISSING = str(exc)

WORKERS = 12  # requests at once
MICROVERSION = "2.67"  # of nova: tags at creation, flavors in servers, types of boot volumes; since 2018
REQUEST_TIMEOUT = 120  # seconds for one answer
PATIENCE = 240  # seconds for which one request is repeated
REFUSALS = 2  # of a token that is renewed each time
TRANSIENT = (429, 500, 502, 503, 504)
# Service types of the catalogue, by our names for them.
SERVICES = {
    "compute": ("compute",),
    "network": ("network",),
    "image": ("image",),
    "volume": ("block-storage", "volumev3", "block-store"),
    "identity": ("identity",),
}


_QUOTA = re.compile(r"quota (has been )?(exceeded|met)|exceed\w* .*quota|OverQuota", re.I)


class Unclear(ApiError):
    """Nobody knows whether a request that makes something was carried out."""


def clouds():
    """The names in clouds.yaml."""
    return sorted(_configuration().get_cloud_names())


def connect(name=None, region=None, auth=None, access_token=None, timeout=None):
    """Log in once: `name` of clouds.yaml, or $OS_CLOUD, or OS_* variables; `auth` adds to what they say.

    `access_token`, text or a callable, is for clouds that take tokens of an identity provider; without it they are
    those of $DODAS_ACCESS_TOKEN, or of the file $DODAS_ACCESS_TOKEN_FILE. `timeout`: seconds for everything that is
    done with the Cloud. Raises OpenStackError.
    """
    configuration = _configuration()
    known = configuration.get_cloud_names()
    if name and name not in known:
        where = configuration.config_filename or "no file of that name could be read"
        raise OpenStackError(f"cloud {name} is not in clouds.yaml ({where}){nearest(name, known)}")
    if not name and not os.environ.get("OS_CLOUD") and not os.environ.get("OS_AUTH_URL") and not auth:
        raise OpenStackError(f"no cloud was named (--cloud NAME, OS_CLOUD or OS_AUTH_URL){nearest('', known)}")
    options = {"cloud": name, "region_name": region}
    try:
        first = configuration.get_one(validate=False, **options)
        given = dict(auth or {})
        token = _token_source(access_token)
        federated = "accesstoken" in str(first.config.get("auth_type", "")).replace("_", "")
        if federated:
            if token is None and not first.config.get("auth", {}).get("access_token"):
                raise OpenStackError(
                    f"cloud {name or first.name} takes access tokens of an identity provider: "
                    "set DODAS_ACCESS_TOKEN or DODAS_ACCESS_TOKEN_FILE"
                )
            if token:
                given["access_token"] = token()
        config = configuration.get_one(auth=given, **options) if given else configuration.get_one(**options)
        plugin = config.get_auth()
    except (sdk_exceptions.SDKException, ksa.ClientException) as exc:
        raise OpenStackError(f"cloud {name or 'of the environment'}: {exc}") from exc
    if federated and token:
        plugin.get_unscoped_auth_ref = _fresh(plugin, token)
    return Cloud(config, plugin, timeout)


def _configuration():
    if MISSING:
        raise OpenStackError(f"the Python library openstacksdk is needed: {MISSING}")
    try:
        return sdk_config.OpenStackConfig()
    except Exception as exc:  # YAML errors of several kinds
        raise OpenStackError(f"clouds.yaml cannot be read: {exc}") from exc


def _token_source(given):
    """A callable that returns the access token as it is now, or None without one."""
    if callable(given):
        return given
    if given or os.environ.get("DODAS_ACCESS_TOKEN"):
        return lambda: given or os.environ["DODAS_ACCESS_TOKEN"]
    path = os.environ.get("DODAS_ACCESS_TOKEN_FILE")
    if not path:
        return None

    def read():
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise OpenStackError(f"DODAS_ACCESS_TOKEN_FILE: {exc}") from exc

    return read


def _fresh(plugin, token):
    """Logins of `plugin` with the token of that moment: it may have been renewed since the last one."""
    login = plugin.get_unscoped_auth_ref

    def fresh(session, **options):
        plugin.access_token = token()
        return login(session, **options)

    return fresh


class Cloud:
    """A cloud that somebody is logged in to.

    `calls` counts requests, such as {"GET compute": 3}. `deadline` is a time of time.monotonic() or None.
    """

    def __init__(self, config, plugin, timeout=None):
        self.name = config.name or "envvars"
        self.calls = Counter()
        self.deadline = time.monotonic() + timeout if timeout else None
        self._counting = threading.Lock()
        self._gate = threading.BoundedSemaphore(WORKERS)
        self._plugin = plugin
        self._endpoints = {}
        verify, cert = config.get_requests_verify_args()
        pool = requests.Session()
        for scheme in ("http://", "https://"):
            pool.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=WORKERS))
        pool.hooks["response"].append(self._count)
        self._session = ksa_session.Session(
            auth=plugin, session=pool, verify=verify, cert=cert, timeout=REQUEST_TIMEOUT, app_name="dodas"
        )
        access = self._login(config)
        self.region = config.region_name or None
        self.project_id = access.project_id
        self.user_id = access.user_id
        self.user_name = access.username
        self.roles = list(access.role_names)
        self.auth_url = config.config.get("auth", {}).get("auth_url")
        self._find_endpoints(config, access)

    def has(self, service):
        """Whether the cloud has the service."""
        return service in self._endpoints

    def endpoint(self, service):
        """The service's address, with its version. Raises OpenStackError."""
        if service not in self._endpoints:
            raise OpenStackError(f"cloud {self.name} has no service {service} in its catalogue")
        return self._endpoints[service]

    def get(self, service, path, **query):
        """The JSON of an answer."""
        return self.request("GET", service, path, query=query)

    def list(self, service, path, key, **query):
        """All things of a listing, page by page."""
        found = []
        page = self.get(service, path, **query)
        while True:
            found += page[key]
            links = page.get(f"{key}_links") or []
            following = next((link["href"] for link in links if link.get("rel") == "next"), page.get("next"))
            if not following or not page[key]:
                return found
            # the link may name a host that only the cloud knows
            page = self.request("GET", service, path, more=following.partition("?")[2])

    def post(self, service, path, body, find=None, **options):
        """Make something. When the cloud's answer was lost, `find` returns what was made, or None if nothing was.

        Raises Unclear without `find`.
        """
        until = time.monotonic() + self.left(PATIENCE)
        while True:
            try:
                return self.request("POST", service, path, body, **options)
            except Unclear as exc:
                # what took too long may still be under way
                for pause in (1, 5, 15) if exc.status == 504 else (1,):
                    if find is None or time.monotonic() + pause > until:
                        raise
                    self.pause(pause)
                    found = find()
                    if found is not None:
                        return found

    def put(self, service, path, body, **options):
        return self.request("PUT", service, path, body, **options)

    def delete(self, service, path, **options):
        """Remove something; that it is gone already is as good."""
        try:
            return self.request("DELETE", service, path, **options)
        except ApiError as exc:
            if exc.status == 404:
                return None
            raise

    def send(self, service, path, stream, timeout=3600):
        """PUT what an open file holds, once: who repeats it begins the file again. Raises ApiError."""
        what = f"{service}: PUT {path}"
        headers = {"Content-Type": "application/octet-stream"}
        options = {"headers": headers, "raise_exc": False, "timeout": self.left(timeout), "log": False}
        options["allow_reauth"] = False  # after a new login it would send what is left of the file: nothing
        try:
            answer = self._session.request(self.endpoint(service) + path, "PUT", data=stream, **options)
        except ksa.ClientException as exc:
            raise ApiError(f"{what}: {_cause(exc)}", service) from exc
        if answer.status_code >= 400:
            raise ApiError(f"{what}: {_message(answer)}", service, answer.status_code)

    def each(self, function, items):
        """function(item) for each item, several at once; the results in order.

        The first error is raised when what is under way has ended; what has not begun does not begin any more.
        """
        items = list(items)
        if len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(WORKERS, len(items))) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
            for future in futures:
                if not future.cancelled() and future.exception():
                    raise future.exception()
            return [future.result() for future in futures]

    def left(self, limit=None):
        """Seconds until the deadline, at most `limit`; 0 when it is over."""
        left = max(0.0, self.deadline - time.monotonic()) if self.deadline else float("inf")
        return left if limit is None else min(left, limit)

    def pause(self, seconds):
        """Wait, but not beyond the deadline."""
        time.sleep(self.left(seconds))

    def request(self, method, service, path, body=None, query=None, more="", conflict=False, patience=PATIENCE):
        """The JSON of the cloud's answer, or None when it has none.

        Repeats what the cloud cannot answer at the moment, with `conflict` also what something else is in the way of.
        Raises Quota, ApiError, and for a POST whose answer was lost Unclear.
        """
        url = self.endpoint(service) + path
        if more:
            url += f"?{more}"
        until = time.monotonic() + self.left(patience)
        pause, refused = 0.3, 0
        while True:
            try:
                return self._once(method, service, path, url, body, query)
            except ApiError as exc:
                status = exc.status
                if status == 401:  # another thread may be getting the new token
                    refused += 1
                    if refused > REFUSALS:
                        raise OpenStackError(f"{exc}: cloud {self.name} takes the login no longer") from exc
                    self.pause(refused)
                    continue
                if isinstance(exc, Quota):
                    raise
                if method == "POST" and status in (0, 500, 502, 503, 504):
                    raise Unclear(str(exc), service, status) from exc
                if status == 500:
                    until = min(until, time.monotonic() + 30)
                again = status == 0 or status in TRANSIENT or (status == 409 and conflict)
                if not again or time.monotonic() >= until:
                    raise
                self.pause(exc.retry_after or random.uniform(pause / 2, pause))
            pause = min(pause * 2, 10)

    def _once(self, method, service, path, url, body, query):
        what = f"{service}: {method} {path}"
        timeout = self.left(REQUEST_TIMEOUT)
        if timeout <= 0:
            raise ApiError(f"{what}: the time is over", service)
        headers = {"Accept": "application/json"}
        if service == "compute":
            headers["OpenStack-API-Version"] = f"compute {MICROVERSION}"
        try:
            with self._gate:
                answer = self._session.request(
                    url,
                    method,
                    json=body,
                    params=query,
                    headers=headers,
                    raise_exc=False,
                    timeout=timeout,
                    log=False,  # bodies have user data
                )
        except ksa.ConnectTimeout as exc:
            raise ApiError(f"{what}: no answer in {timeout:.0f} s", service, 504) from exc
        except ksa.ConnectionError as exc:
            raise ApiError(f"{what}: no answer: {_cause(exc)}", service) from exc
        except (ksa.Unauthorized, ksa.NotFound, ksa.Forbidden) as exc:
            raise OpenStackError(f"cloud {self.name} takes the login no longer: {exc.message}") from exc
        except ksa.HttpError as exc:  # of keystone, when a new token is needed
            raise ApiError(f"{what}: no new login: {exc.message}", service, exc.http_status) from exc
        except ksa.ClientException as exc:
            raise OpenStackError(f"cloud {self.name}: {exc}") from exc
        status = answer.status_code
        if status < 400:
            return answer.json() if answer.content else None
        message = _message(answer)
        if status in (403, 409, 413) and _QUOTA.search(message):
            raise Quota(f"{what}: {message}", service, status)
        raise ApiError(f"{what}: {message}", service, status, _retry_after(answer))

    def _count(self, answer, **_):
        url = answer.request.url
        matches = [(len(known), service) for service, known in self._endpoints.items() if url.startswith(known)]
        with self._counting:
            self.calls[f"{answer.request.method} {max(matches)[1] if matches else 'identity'}"] += 1

    def _login(self, config):
        auth_url = config.config.get("auth", {}).get("auth_url", "")
        until = time.monotonic() + self.left(30)
        while True:
            try:
                access = self._plugin.get_access(self._session)
                break
            except (ksa.Unauthorized, ksa.NotFound, ksa.BadRequest, ksa.Forbidden) as exc:
                what = "has no keystone" if isinstance(exc, ksa.NotFound) else "refused the login"
                raise OpenStackError(f"cloud {self.name}: {auth_url} {what}: {exc.message}") from exc
            except (ksa.ClientException, sdk_exceptions.SDKException) as exc:
                status = getattr(exc, "http_status", 0)
                if time.monotonic() > until or not (status in TRANSIENT or isinstance(exc, ksa.ConnectionError)):
                    raise OpenStackError(f"cloud {self.name}: no login at {auth_url}: {_cause(exc)}") from exc
                time.sleep(1)
        if not access.project_id:
            raise OpenStackError(f"cloud {self.name}: the login has no project: set project_name (or OS_PROJECT_NAME)")
        return access

    def _find_endpoints(self, config, access):
        catalogue = access.service_catalog
        regions = {one["region_id"] for several in catalogue.get_endpoints().values() for one in several}
        if self.region and regions and self.region not in regions:
            raise OpenStackError(f"cloud {self.name} has no region {self.region}{nearest(self.region, regions)}")
        found = {}
        for service, types in SERVICES.items():
            for kind in types:
                url = config.get_endpoint(kind) or _url_for(catalogue, kind, config.get_interface(kind), self.region)
                if url:
                    found[service] = _versioned(service, url.rstrip("/"), self.project_id)
                    break
        found.setdefault("identity", _versioned("identity", (self.auth_url or "").rstrip("/"), self.project_id))
        self._endpoints = found


def _url_for(catalogue, kind, interface, region):
    try:
        return catalogue.url_for(service_type=kind, interface=interface, region_name=region)
    except ksa.CatalogException:
        return None


def _versioned(service, url, project_id):
    """The address with the version whose requests we know; catalogues have it with and without one."""
    has_version = re.search(r"/v\d+(\.\d+)?(/|$)", url)
    if service == "compute":
        return re.sub(r"/v2(?=/|$)", "/v2.1", url) if has_version else f"{url}/v2.1"
    if has_version:
        return url
    return url + {"network": "/v2.0", "image": "/v2", "volume": f"/v3/{project_id}", "identity": "/v3"}[service]


def _retry_after(answer):
    """Seconds that the cloud asks for, at most a minute."""
    value = answer.headers.get("Retry-After", "")
    return min(60.0, max(0.2, float(value))) if re.fullmatch(r"\d{1,5}(\.\d+)?", value) else None


def _message(answer):
    """What the cloud says is wrong, as one line."""
    try:
        body = answer.json()
        inner = next(iter(body.values()))
        text = inner.get("message") or str(inner) if isinstance(inner, dict) else str(inner)
        if isinstance(inner, dict) and "quota" in str(inner.get("type", "")).lower():
            text = f"{inner['type']}: {text}"
    except (ValueError, AttributeError, StopIteration):
        text = re.sub(r"<[^>]*>", " ", answer.text)
    return f"{answer.status_code}: {' '.join(text.split())[:500] or answer.reason}"


def _cause(error):
    """The last part of a chain of errors that begins with addresses and objects."""
    text = str(error)
    match = re.search(r"\[Errno [^]]*\] [^'\")]*|timed out|Connection \w+[^'\")]*|RemoteDisconnected[^)]*", text)
    return match[0] if match else text[:300]

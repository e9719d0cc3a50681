# SPDX-License-Identifier: Apache-2.0
"""One HTTPS request by the standard library: no redirects, bounded in time and size, errors name the URL."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class WebError(OSError):
    """A request that failed. status: the HTTP status or None; body: what came with it, not in the message."""

    def __init__(self, url, problem, status=None, body=b""):
        super().__init__(f"{url}: {problem}")
        self.url = url
        self.problem = problem
        self.status = status
        self.body = body


class _Https(urllib.request.HTTPSHandler):
    """Connects to the addresses given for some names; certificates are still checked against the names."""

    def __init__(self, context, resolve):
        super().__init__(context=context)
        self._resolve = resolve or {}

    def https_open(self, req):
        def connection(host, **options):
            made = http.client.HTTPSConnection(host, **options)
            made._create_connection = self._connect
            return made

        return self.do_open(connection, req, context=self._context)

    def _connect(self, address, *options, **more):
        host, port = address
        return socket.create_connection((self._resolve.get(host, host), port), *options, **more)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args):
        return None


def check_url(url):
    """The URL itself. Raises WebError unless it is https, or http to this machine."""
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not secure or not parts.hostname or parts.username is not None:
        raise WebError(url.split("@")[-1], "must be an https URL without a user name")
    return url


def fetch(
    url, data=None, headers=None, cafile=None, timeout=10.0, limit=256 * 1024, method=None, resolve=None
):
    """The body (bytes) of a 2xx answer to method; default: GET, or POST where data (bytes) is given.

    cafile: PEM file of the authorities to trust, None for the system's. timeout: seconds for the whole
    answer. limit: bytes of the answer at most. resolve: {name: address}, for names that only the cluster knows.
    Raises WebError.
    """
    check_url(url)
    deadline = time.monotonic() + timeout
    try:
        handlers = [_Https(ssl.create_default_context(cafile=cafile), resolve), _NoRedirects]
        if urllib.parse.urlsplit(url).hostname in (*LOOPBACK, *(resolve or ())):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy of the environment can reach these
        opener = urllib.request.build_opener(*handlers)
        request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
        with opener.open(request, timeout=timeout) as response:
            return _read(response, url, deadline, limit)
    except urllib.error.HTTPError as error:
        with error:
            body = _read(error, url, deadline, limit) if error.fp else b""
        raise WebError(url, f"HTTP status {error.code}", error.code, body) from None
    except urllib.error.URLError as error:
        raise WebError(url, str(error.reason)) from error
    except WebError:
        raise
    except FileNotFoundError as error:
        raise WebError(url, f"the file of authorities is missing: {cafile}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WebError(url, str(error) or type(error).__name__) from error


def _read(response, url, deadline, limit):
    body = bytearray()
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > limit:
            raise WebError(url, f"the answer is larger than {limit} bytes")
        if time.monotonic() > deadline:
            raise WebError(url, "the answer took too long")
    return bytes(body)


def fetch_json(url, **options):
    """The JSON object of an answer; options as fetch. Raises WebError."""
    body = fetch(url, **options)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WebError(url, "the answer is not JSON") from error
    if not isinstance(document, dict):
        raise WebError(url, "the answer is not a JSON object")
    return document


def discovered(issuer, name, optional=False, **options):
    """An address that an issuer's discovery document gives, such as ``jwks_uri``; it must be on the issuer's own host.

    optional: None where there is none. Raises WebError.
    """
    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
    document = fetch_json(url, **options)
    address = document.get(name)
    if document.get("issuer") != issuer:
        raise WebError(url, "the document is of another issuer")
    if address is None and optional:
        return None
    if not isinstance(address, str) or _origin(address) != _origin(issuer):
        raise WebError(url, f"{name} is on another host, or none: set the issuer's own if it is meant")
    return address


def _origin(url):
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()

# SPDX-License-Identifier: Apache-2.0
"""HTTP for registries: connections that are kept, proxies, certificates, redirects, retries.

Import it where a registry is talked to, not before: what it imports in turn takes longer than to start a container.
"""

import contextlib
import http.client
import os
import socket
import threading
import time
from urllib.parse import quote, unquote, urljoin, urlsplit

from .errors import Error

CONNECT = 15.0  # seconds until a connection must stand
STALL = 60.0  # seconds in which at least one byte must come
ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; each later one doubles it
LONGEST_PAUSE = 60.0
REDIRECTS = 10
BLOCK = 1 << 18

_RETRIED = (408, 429, 500, 502, 503, 504)
_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
# Where distributions keep their certificates, should the interpreter look elsewhere.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Unreachable(Error):
    """No answer, or none that can be trusted: another mirror may give one."""


class NotSecure(Unreachable):
    """What listens there does not speak TLS."""


class Client:
    """Sends requests; safe to share between threads.

    proxy: URL (http, socks4, socks4a, socks5, socks5h; with user:password) instead of what the environment says
    insecure: True, or the hosts (host, host:port) whose certificates are not verified and that may use plain http
    certificates: folders like /etc/docker/certs.d besides the usual ones; ca_file: of CAs trusted everywhere
    connect, stall: seconds; attempts: how often a request is sent at most; pause: seconds before the second time
    """

    def __init__(self, proxy=None, insecure=False, certificates=(), environ=None, **limits):
        self.environ = os.environ if environ is None else environ
        self.proxy = _Proxy(proxy) if proxy else None
        self.insecure = insecure
        self.certificates = list(certificates)
        self.ca_file = limits.pop("ca_file", None)
        self.connect = limits.pop("connect", CONNECT)
        self.stall = limits.pop("stall", STALL)
        self.attempts = limits.pop("attempts", ATTEMPTS)
        self.pause = limits.pop("pause", PAUSE)
        if limits:
            raise TypeError(f"unknown: {', '.join(limits)}")
        self._lock = threading.Lock()
        self._idle = {}
        self._busy = set()
        self._contexts = {}
        self._stopped = threading.Event()

    def request(self, method, url, headers=None, body=None, retry=True, behalf=None):
        """Send a request, and again where that may help; returns the Response, whatever its status.

        body: bytes, or a function that opens what is sent anew. Redirects of GET and HEAD are followed, and
        `Authorization` goes to no other host than the one that was asked. behalf: the URL of a registry whose
        certificates are trusted for this host, too, as for where it has tokens and blobs. Raises Unreachable.
        """
        behalf = origin(behalf or url)[1:]
        headers = dict(headers or {})
        for attempt in range(1, self.attempts + 1):
            last = not retry or attempt == self.attempts
            wait = self.pause * 2 ** (attempt - 1)
            try:
                response = self._follow(method, url, headers, body, behalf)
            except _Broken as exc:
                if last:
                    raise Unreachable(str(exc)) from exc
            else:
                if last or response.status not in _RETRIED:
                    return response
                asked = _retry_after(response.headers.get("Retry-After"))
                if asked is not None and asked > LONGEST_PAUSE:
                    return response
                response.close()
                wait = min(max(asked or 0.0, wait), LONGEST_PAUSE)
            if self._stopped.wait(wait):
                raise Unreachable("stopped")
        raise AssertionError("the last attempt returns or raises")

    def stop(self):
        """Make every request that is under way fail now."""
        self._stopped.set()
        with self._lock:
            for sock in self._busy:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def is_insecure(self, host, port):
        if isinstance(self.insecure, bool):
            return self.insecure
        return any(name in (host, f"{host}:{port}", f"[{host}]:{port}") for name in self.insecure)

    # One request

    def _follow(self, method, url, headers, body, behalf):
        for _hop in range(REDIRECTS):
            response = self._send(method, url, headers, body, behalf)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD") or not location:
                return response
            response.close()
            target = join(url, location)
            before, after = origin(url), origin(target)
            if before[0] == "https" and after[0] == "http" and not self.is_insecure(*behalf):
                raise Unreachable(f"{shown(url)} sends us from https to plain http: refused")
            if before != after:
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise Unreachable(f"{shown(url)}: more than {REDIRECTS} redirects")

    def _send(self, method, url, headers, body, behalf):
        scheme, host, port = origin(url)
        parts = urlsplit(url)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{parts.query}" if parts.query else "")
        if scheme == "http" and not (is_loopback(host) or self.is_insecure(host, port) or self.is_insecure(*behalf)):
            raise Unreachable(f"{shown(url)}: plain http is for loopback; --insecure allows it elsewhere")
        proxy = self._proxy(scheme, host, port)
        key = (scheme, host, port, behalf, proxy.url if proxy else None)
        headers = {"User-Agent": "udocker", **headers}
        if proxy and scheme == "http" and proxy.scheme == "http":
            path = f"http://{netloc(scheme, host, port)}{path}"
            if proxy.authorization:
                headers["Proxy-Authorization"] = proxy.authorization
        headers["Host"] = netloc(scheme, host, port)
        while True:
            if self._stopped.is_set():
                raise Unreachable("stopped")
            connection, used = self._connection(key, proxy)
            opened = body() if callable(body) else body
            try:
                connection.request(method, path, opened, headers)
                answer = connection.getresponse()
                return Response(self, url, key, connection, answer)
            except (OSError, http.client.HTTPException) as exc:
                early = _early_answer(connection, exc)
                if early is not None:
                    return Response(self, url, key, connection, early)
                self._discard(connection)
                # A kept connection may have been closed meanwhile: that says nothing about the server. Of an upload,
                # part may have arrived: its sender has to ask how far it came.
                if used and not callable(body) and isinstance(exc, (ConnectionError, http.client.BadStatusLine)):
                    continue
                raise _failure(f"{method} {shown(url)}", exc) from exc
            except BaseException:
                self._discard(connection)
                raise
            finally:
                if callable(body):
                    opened.close()

    # Connections

    def _connection(self, key, proxy):
        with self._lock:
            if self._idle.get(key):
                connection = self._idle[key].pop()
                self._busy.add(connection.sock)
                return connection, True
        scheme, host, port, behalf, _proxy = key
        connection = http.client.HTTPConnection(host, port, blocksize=BLOCK)
        connection.auto_open = False
        connection.sock = self._open(scheme, host, port, behalf, proxy)
        with self._lock:
            self._busy.add(connection.sock)
        if self._stopped.is_set():  # meanwhile
            self._discard(connection)
            raise Unreachable("stopped")
        return connection, False

    def _open(self, scheme, host, port, behalf, proxy):
        where = netloc(scheme, host, port)
        try:
            if proxy is None:
                sock = socket.create_connection((host, port), self.connect)
            else:
                sock = proxy.open(scheme, host, port, self.connect)
        except OSError as exc:
            through = f" through the proxy {proxy}" if proxy else ""
            raise _failure(f"cannot connect to {where}{through}", exc) from exc
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                sock = self._secure(sock, host, port, behalf)
            sock.settimeout(self.stall)
            return sock
        except BaseException:
            sock.close()
            raise

    def _secure(self, sock, host, port, behalf):
        import ssl

        where = netloc("https", host, port)
        try:
            return self._context((host, port), behalf).wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as exc:
            raise Unreachable(
                f"the certificate of {where} is not trusted ({exc.verify_message}): "
                f"put its CA into ~/.config/containers/certs.d/{where}/ca.crt, or use --insecure"
            ) from exc
        except ssl.SSLError as exc:
            if exc.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
                raise NotSecure(f"{where} does not speak TLS") from exc
            raise Unreachable(f"{where}: TLS failed: {exc.reason or exc}") from exc
        except OSError as exc:
            raise _failure(f"{where}: TLS failed", exc) from exc

    def _context(self, *hosts):
        import ssl

        with self._lock:
            context = self._contexts.get(hosts)
        if context is not None:
            return context
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        paths = ssl.get_default_verify_paths()
        if not paths.cafile and not paths.capath:
            for bundle in filter(os.path.exists, _BUNDLES):
                context.load_verify_locations(bundle)
                break
        if any(self.is_insecure(*host) for host in hosts):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        paths = [self.ca_file] if self.ca_file else []
        for host in dict.fromkeys(hosts):
            for folder in self._folders(*host):
                paths += [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        for path in paths:
            try:
                if path.endswith(".cert"):
                    context.load_cert_chain(path, path[: -len("cert")] + "key")
                elif path.endswith(".crt") or path == self.ca_file:
                    context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as exc:
                raise Error(f"{path}: {exc}") from exc
        with self._lock:
            self._contexts[hosts] = context
        return context

    def _folders(self, host, port):
        """The folders with a host's certificates, in the layout that Docker and podman share."""
        home = self.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        roots = ["/etc/docker/certs.d", "/etc/containers/certs.d"]
        roots += [os.path.join(home, name, "certs.d") for name in ("docker", "containers")]
        names = [f"{host}:{port}"] + ([host] if port == 443 else [])
        for root in roots + self.certificates:
            for name in names:
                folder = os.path.join(root, name)
                if os.path.isdir(folder):
                    yield folder

    def _proxy(self, scheme, host, port):
        """The proxy for a host, or None. That of the environment is never asked for what is on loopback."""
        environ = self.environ
        proxy = self.proxy
        if proxy is None:
            if is_loopback(host):
                return None
            names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"]
            if "REQUEST_METHOD" in environ:  # a CGI program, where this variable is the header `Proxy:`
                names.remove("HTTP_PROXY") if "HTTP_PROXY" in names else None
            value = next((environ[name] for name in names if environ.get(name)), None)
            if not value:
                return None
            proxy = _Proxy(value)
        if bypasses(environ.get("no_proxy") or environ.get("NO_PROXY") or "", host, port):
            return None
        return proxy

    def _keep(self, key, connection):
        with self._lock:
            self._busy.discard(connection.sock)
            if connection.sock is not None and not self._stopped.is_set():
                self._idle.setdefault(key, []).append(connection)
                return
        connection.close()

    def _discard(self, connection):
        with self._lock:
            self._busy.discard(connection.sock)
        connection.close()


class Response:
    """An answer: `status`, `headers` (looked up in any case), `url` (after redirects), and the body, once."""

    def __init__(self, client, url, key, connection, answer):
        self.url = url
        self.status = answer.status
        self.headers = answer.headers
        self._client = client
        self._key = key
        self._connection = connection
        self._answer = answer
        self._done_if_read()

    @property
    def length(self):
        """Bytes of the body as the server announced them, or None."""
        value = self.headers.get("Content-Length", "")
        return int(value) if value.isdigit() else None

    def readinto(self, buffer):
        """Fill `buffer` with what comes next; returns how many bytes, 0 at the end. Raises Unreachable."""
        if self._connection is None:
            return 0
        before = self._answer.length
        try:
            count = self._answer.readinto(buffer)
        except (OSError, ValueError, http.client.HTTPException) as exc:
            self.close()
            raise Unreachable(str(_failure(shown(self.url), exc))) from exc
        if not count and before:
            self.close()
            raise Unreachable(f"{shown(self.url)}: the connection ended {before} bytes early")
        self._done_if_read()
        return count

    def read(self, limit):
        """The whole body; raises Error when it is longer than `limit` bytes."""
        content = bytearray()
        buffer = bytearray(min(BLOCK, limit + 1))
        while True:
            count = self.readinto(buffer)
            if not count:
                return bytes(content)
            content += memoryview(buffer)[:count]
            if len(content) > limit:
                self.close()
                raise Error(f"{shown(self.url)}: the answer is longer than {limit} bytes: refused")

    def close(self):
        """Give up the rest. A short one is read, since the connection is worth more."""
        if self._connection is None:
            return
        if self._answer.length is not None and self._answer.length <= 1 << 14:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._answer.read()
                self._done_if_read()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._client._discard(connection)

    def _done_if_read(self):
        if self._answer.isclosed() and self._connection is not None:
            connection, self._connection = self._connection, None
            if self._answer.will_close:
                self._client._discard(connection)
            else:
                self._client._keep(self._key, connection)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


class _Proxy:
    """Where a proxy is, and who we are there; as text it has no password."""

    def __init__(self, url):
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self.scheme, self.host, self.port = parts.scheme.lower(), parts.hostname, parts.port
        except ValueError:
            self.host = None
        if not self.host or self.scheme not in _PORTS or self.scheme == "https":
            known = ", ".join(name for name in _PORTS if name != "https")
            raise Error(f"{shown(url)} is no proxy: {known}://[user:password@]host[:port] are")
        self.url = url
        self.port = self.port or (3128 if self.scheme == "http" else 1080)
        self.user = unquote(parts.username or "")
        self.password = unquote(parts.password or "")

    def __str__(self):
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}"

    @property
    def authorization(self):
        return basic(self.user, self.password) if self.user else None

    def open(self, scheme, host, port, timeout):
        """A socket that leads to host and port, or to the proxy itself for plain http; raises OSError, Error."""
        sock = socket.create_connection((self.host, self.port), timeout)
        try:
            if self.scheme != "http":
                from . import socks

                socks.connect(sock, self.scheme, host, port, self.user, self.password)
            elif scheme == "https":
                self._tunnel(sock, f"{_bracketed(host)}:{port}")
            return sock
        except BaseException:
            sock.close()
            raise

    def _tunnel(self, sock, target):
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "User-Agent: udocker"]
        if self.authorization:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = http.client.HTTPResponse(sock, method="CONNECT")
        try:
            answer.begin()
            if answer.status == 407:
                raise Unreachable(f"the proxy {self} wants another user and password")
            if answer.status != 200:
                raise Unreachable(f"the proxy {self} does not connect to {target}: {answer.status} {answer.reason}")
        except http.client.HTTPException as exc:
            raise Unreachable(f"the proxy {self} does not speak HTTP") from exc
        finally:
            answer.close()


class _Broken(Exception):
    """A failure that another attempt may not meet."""


def _failure(what, exc):
    """The exception for a failed attempt: _Broken if one more is worth it, else Unreachable."""
    if isinstance(exc, (Error, _Broken)):
        return exc
    if isinstance(exc, socket.gaierror):
        kind = _Broken if exc.errno == socket.EAI_AGAIN else Unreachable
        return kind(f"{what}: {exc.strerror}")
    if isinstance(exc, socket.timeout):
        return _Broken(f"{what}: no answer in time")
    if isinstance(exc, http.client.InvalidURL):
        return Unreachable(f"{what}: the address holds what an address cannot")
    if isinstance(exc, http.client.HTTPException):
        return _Broken(f"{what}: the connection ended too early, or this is no HTTP")
    if isinstance(exc, ConnectionRefusedError):
        return Unreachable(f"{what}: connection refused")
    if isinstance(exc, OSError):
        return _Broken(f"{what}: {exc.strerror or exc}")
    return _Broken(f"{what}: {type(exc).__name__}")


def _early_answer(connection, exc):
    """What a server said that closed before it had read our body (too large, not allowed), or None."""
    if not isinstance(exc, (BrokenPipeError, ConnectionResetError)) or connection.sock is None:
        return None
    try:
        answer = http.client.HTTPResponse(connection.sock)
        answer.begin()
        answer.will_close = True
        return answer if answer.status >= 400 else None
    except (OSError, http.client.HTTPException):
        return None


def bypasses(no_proxy, host, port):
    """Whether the list `no_proxy` (hosts, domains, addresses, networks, each with :port or not; *) names a host."""
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    host = host.lower().rstrip(".")
    for entry in no_proxy.replace(",", " ").split():
        if entry == "*":
            return True
        name, entry_port = _split_port(entry)
        if entry_port and entry_port != str(port):
            continue
        if address is not None:
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(name, strict=False):
                    return True
            continue
        name = name.lower().strip(".")
        if name.startswith("*."):
            name = name[2:]
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


def _split_port(entry):
    if entry.startswith("["):
        name, _bracket, port = entry[1:].partition("]")
        return name, port.lstrip(":")
    name, _colon, port = entry.partition(":")
    return (entry, "") if ":" in port else (name, port)


def is_loopback(host):
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def netloc(scheme, host, port):
    """host[:port] as in a URL."""
    return _bracketed(host) + ("" if port == _PORTS.get(scheme) else f":{port}")


def _bracketed(host):
    return f"[{host}]" if ":" in host else host


def origin(url):
    """(scheme, host, port) of a URL; raises Unreachable."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise Unreachable(f"{shown(url)} is no http or https address")
    return parts.scheme, host, port or _PORTS[parts.scheme]


def join(url, location):
    """The URL that `location`, absolute or not, is at `url`; raises Unreachable."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise Unreachable(f"{shown(url)} sends us to what is no address") from None


def shown(url):
    """A URL as an error may show it: a query can hold signatures, and what is before @ a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "what is no URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def basic(user, password):
    """The value of an Authorization header."""
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def _retry_after(value):
    """Seconds that a Retry-After header asks for (a number, or a date), or None."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None

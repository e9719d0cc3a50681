# SPDX-License-Identifier: Apache-2.0
"""The client's side of SOCKS 4, 4a and 5 (RFC 1928, RFC 1929): enough to connect."""

import socket
import struct

from .errors import Error

_REFUSALS = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "it cannot connect",
    8: "it does not know this kind of address",
    91: "refused or failed",
    92: "it could not ask who we are",
    93: "it holds us for somebody else",
}


def connect(sock, scheme, host, port, user="", password=""):
    """Ask the proxy at the other end of `sock` to connect to host and port; raises OSError, Error.

    scheme: with socks4 and socks5 names are looked up here, with socks4a and socks5h by the proxy
    """
    if scheme in ("socks4", "socks4a"):
        _connect4(sock, scheme == "socks4a", host, port, user)
    else:
        _connect5(sock, scheme == "socks5h", host, port, user, password)


def _connect4(sock, remote, host, port, user):
    try:
        address, name = socket.inet_aton(host), b""
    except OSError:
        if remote:
            address, name = b"\0\0\0\1", _name(host) + b"\0"  # an address that cannot be: the name follows
        else:
            address, name = socket.inet_aton(_look_up(host, port, socket.AF_INET)[0]), b""
    sock.sendall(struct.pack(">BBH", 4, 1, port) + address + user.encode() + b"\0" + name)
    zero, code = struct.unpack(">BB6x", _read(sock, 8))
    if zero != 0:
        raise Error("the proxy does not speak SOCKS 4")
    if code != 90:
        raise _refused(host, port, code)


def _connect5(sock, remote, host, port, user, password):
    methods = b"\x00\x02" if user else b"\x00"
    sock.sendall(bytes([5, len(methods)]) + methods)
    version, method = _read(sock, 2)
    if version != 5:
        raise Error("the proxy does not speak SOCKS 5")
    if method == 2 and user:
        name, secret = user.encode(), password.encode()
        if max(len(name), len(secret)) > 255:
            raise Error("SOCKS takes users and passwords of 255 bytes at most")
        sock.sendall(bytes([1, len(name)]) + name + bytes([len(secret)]) + secret)
        if _read(sock, 2)[1] != 0:
            raise Error("the SOCKS proxy wants another user and password")
    elif method != 0:
        raise Error("the SOCKS proxy wants a user and a password")
    sock.sendall(b"\x05\x01\x00" + _address5(remote, host, port) + struct.pack(">H", port))
    _version, code, _reserved, kind = _read(sock, 4)
    if code != 0:
        raise _refused(host, port, code)
    length = {1: 4, 4: 16}.get(kind) or _read(sock, 1)[0]
    _read(sock, length + 2)


def _address5(remote, host, port):
    for kind, family in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        try:
            return bytes([kind]) + socket.inet_pton(family, host)
        except OSError:
            pass
    if remote:
        name = _name(host)
        return bytes([3, len(name)]) + name
    address, family = _look_up(host, port)
    return bytes([1 if family == socket.AF_INET else 4]) + socket.inet_pton(family, address)


def _look_up(host, port, family=0):
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
    return found[4][0], found[0]


def _name(host):
    name = host.encode("idna")
    if len(name) > 255:
        raise Error(f"{host[:40]}... is too long for a name")
    return name


def _read(sock, count):
    content = b""
    while len(content) < count:
        more = sock.recv(count - len(content))
        if not more:
            raise ConnectionResetError("the SOCKS proxy ended the connection")
        content += more
    return content


def _refused(host, port, code):
    return Error(f"the SOCKS proxy did not connect to {host}:{port}: {_REFUSALS.get(code, f'code {code}')}")

# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to ports of a container, and a way out of its network namespace where there is one.

A proxy of this user's listens on the host and connects in the container's namespace: a socket stays in the namespace
in which it was made, so the listening ones are made first, and a port that is taken is told before anything starts.
"""

import errno
import os

from .errors import Error

BUFFER = 1 << 18  # bytes that wait in one direction of a connection
IDLE = 60.0  # seconds after which an exchange over UDP is forgotten
HELPER = 10.0  # seconds that the helper for the way out may take
LOOPBACK = "127.0.0.1"
TUNNEL = "/dev/net/tun"
SLIRP_DNS, PASTA_DNS = "10.0.2.3", "169.254.1.1"


class Port:
    """One port: protocol, ip and host (number) on the host, inside (number), the socket that listens or None."""

    __slots__ = ("host", "inside", "ip", "protocol", "socket")

    def __init__(self, protocol, ip, host, inside):
        self.protocol, self.ip, self.host, self.inside = protocol, ip, host, inside
        self.socket = None


def wanted(container, options):
    """The Ports that --publish and --publish-all ask for; raises Error."""
    found = []
    for text in options["publish"]:
        found.extend(parse(text))
    if options["publish_all"]:
        exposed = [*(container.config().get("ExposedPorts") or {}), *options["expose"]]
        taken = {(port.protocol, port.inside) for port in found}
        for text in dict.fromkeys(exposed):
            number, protocol = _protocol(str(text), str(text))
            for inside in _range(number, str(text)):
                if (protocol, inside) not in taken:
                    # Nobody named these ports: the network does not see them.
                    found.append(Port(protocol, LOOPBACK, 0, inside))
    return found


def parse(text):
    """The Ports of "[IP:][HOST:]CONTAINER[/tcp|udp]", where HOST and CONTAINER may be ranges; raises Error."""
    rest, protocol = _protocol(text, text)
    ip = "0.0.0.0"
    if rest.startswith("["):
        ip, _bracket, rest = rest[1:].partition("]")
        parts = rest.lstrip(":").split(":")
    else:
        parts = rest.split(":")
        if len(parts) == 3:
            ip = parts.pop(0) or ip
    if len(parts) > 2 or not parts[-1]:
        raise Error(f"--publish {text}: [IP:]HOST:CONTAINER[/udp] is expected", 125)
    inside = _range(parts[-1], text)
    host = _range(parts[0], text) if len(parts) == 2 and parts[0] else [0] * len(inside)
    if len(host) != len(inside):
        raise Error(f"--publish {text}: {len(host)} ports of the host for {len(inside)} of the container", 125)
    return [Port(protocol, ip, *pair) for pair in zip(host, inside)]


def _protocol(text, what):
    rest, _slash, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp"):
        raise Error(f"--publish {what}: tcp and udp can be published", 125)
    return rest, protocol


def _range(text, what):
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or not 0 < int(first) <= int(last or first) < 65536:
        raise Error(f"--publish {what}: {text!r} is no port: 1 to 65535 are", 125)
    return list(range(int(first), int(last or first) + 1))


def publish(container, options, note):
    """Listen on what is asked for; a Published. Raises Error that names a port that is taken."""
    from .options import network_of

    network = network_of(options)
    published = Published(wanted(container, options), network)
    try:
        for port in published.ports:
            if network == "host" and port.host in (0, port.inside):
                port.host = port.inside
                note(f"port {port.inside}/{port.protocol} of the container is the host's own: nothing to publish")
            else:
                port.socket = _listen(port)
                port.host = port.socket.getsockname()[1]
    except BaseException:
        published.forget()
        raise
    if network == "private":
        published.find_way_out(note)
    return published


def _listen(port):
    import socket

    family = socket.AF_INET6 if ":" in port.ip else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    listener = socket.socket(family, kind)
    try:
        if port.protocol == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((port.ip, port.host))
        if port.protocol == "tcp":
            listener.listen(128)
    except OSError as exc:
        listener.close()
        where = f"{port.ip}:{port.host}/{port.protocol}"
        if exc.errno == errno.EADDRINUSE:
            raise Error(f"port {where} is in use on this host: choose another one with --publish", 125) from None
        if exc.errno == errno.EACCES:
            raise Error(f"port {where} is for root alone on this host: choose one above 1023", 125) from None
        raise Error(f"port {where} cannot be published: {exc.strerror}", 125) from None
    except OverflowError as exc:
        listener.close()
        raise Error(f"port {port.host}: {exc}", 125) from None
    listener.setblocking(False)
    return listener


def visible(running):
    """The pid of a process of a container (Running.as_dict()) whose namespaces this user may see: not its first."""
    from .engines.process import children

    for pid in (running["shown"], *children(running["shown"])):
        try:
            os.readlink(f"/proc/{pid}/ns/net")
            return pid
        except OSError:
            pass
    return running["shown"]


class Published:
    """What one container has published; lives in its monitor, while the container may start again and again."""

    def __init__(self, ports, network):
        self.ports = ports
        self.network = network
        self.children = []
        self.helper = None  # (program, path) of the way out

    def descriptors(self):
        return [port.socket.fileno() for port in self.ports if port.socket]

    def forget(self):
        """Close it here: the monitor has it."""
        for port in self.ports:
            if port.socket:
                port.socket.close()

    def find_way_out(self, note):
        from .userns import program

        missing = "neither pasta nor slirp4netns is installed"
        for name in ("pasta", "slirp4netns"):
            path = program(name)
            if path and os.access(TUNNEL, os.R_OK | os.W_OK):
                self.helper = (name, path)
                return
            if path:
                missing = f"{TUNNEL}, which {name} needs, cannot be opened by this user"
        note(f"--network private: nothing outside can be reached: {missing}")

    def nameserver(self):
        """Where the container asks for names, when it has a way out."""
        return {"pasta": PASTA_DNS, "slirp4netns": SLIRP_DNS}.get(self.helper and self.helper[0])

    def connect(self, running):
        """Make the way out of a container whose command has not been executed yet; raises Error."""
        self._end()
        if not self.helper:
            return
        name, path = self.helper
        pid = running.shown
        reader, writer = os.pipe()
        if name == "pasta":
            argv = [
                path, "--config-net", "--foreground", "--quiet", "--no-map-gw", "--dns-forward", PASTA_DNS,
                "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", str(pid),
            ]  # fmt: skip
        else:
            argv = [
                path, "--configure", "--mtu=65520", "--disable-host-loopback", f"--ready-fd={writer}",
                f"--userns-path=/proc/{pid}/ns/user", "--netns-type=path", f"/proc/{pid}/ns/net", "tap0",
            ]  # fmt: skip
        os.set_inheritable(writer, True)
        child = os.fork()
        if not child:
            import signal

            from . import linux

            try:
                linux.prctl(linux.PR_SET_PDEATHSIG, 9)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta refuses what Python leaves it
                linux.close_from(3, [writer])
                os.execv(path, argv)
            finally:
                os._exit(127)
        os.close(writer)
        self.children.append(child)
        try:
            self._await(name, child, reader, f"/proc/{pid}/net/route")
        finally:
            os.close(reader)

    def _await(self, name, child, reader, routes):
        """Wait until slirp4netns says that it is ready, or pasta has set the container's first route."""
        import select
        import time

        end = time.monotonic() + HELPER
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG)[0]:
                self.children.remove(child)
                raise Error(f"{name} could not connect the container's network", 125)
            if name == "slirp4netns":
                if select.select([reader], [], [], 0.01)[0] and os.read(reader, 1):
                    return
            else:
                time.sleep(0.005)
                try:
                    with open(routes, encoding="ascii") as source:
                        if len(source.read().splitlines()) > 1:
                            return
                except OSError:
                    pass
        raise Error(f"{name} did not connect the container's network within {HELPER:g} s", 125)

    def serve(self, running):
        """Lead what is published to a container that was started; what `docker inspect` says of its ports."""
        listening = [port for port in self.ports if port.socket]
        if listening:
            child = os.fork()
            if not child:
                _become_proxy(listening, visible(running.as_dict()), self.network != "host")
            self.children.append(child)
        found = {}
        for port in self.ports:
            binding = {"HostIp": port.ip, "HostPort": str(port.host)}
            found.setdefault(f"{port.inside}/{port.protocol}", []).append(binding)
        return found

    def _end(self):
        for child in self.children:
            try:
                os.kill(child, 9)
            except OSError:
                pass
            try:
                os.waitpid(child, 0)
            except OSError:
                pass
        self.children = []

    def ended(self):
        """The container has ended: nobody is led there until it is started again."""
        self._end()

    def close(self):
        self._end()
        self.forget()


def _become_proxy(ports, pid, elsewhere):
    """The proxy's life: in the container's network namespace, with the sockets that listen on the host."""
    import signal

    from . import linux

    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, 9)
        signal.set_wakeup_fd(-1)
        linux.close_from(3, [port.socket.fileno() for port in ports])
        if elsewhere:
            user, network = (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("user", "net"))
            linux.setns(user, linux.CLONE_NEWUSER)
            linux.setns(network, linux.CLONE_NEWNET)
            os.close(user)
            os.close(network)
        _more_descriptors()
        _Proxy(ports).run()
    finally:
        os._exit(1)


def _more_descriptors():
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Proxy:
    def __init__(self, ports):
        import selectors

        self.selector = selectors.DefaultSelector()
        self.exchanges = {}  # (port, client's address): _Exchange
        for port in ports:
            take = self._accept if port.protocol == "tcp" else self._datagram
            self.selector.register(port.socket, selectors.EVENT_READ, (take, port))

    def run(self):
        import time

        swept = time.monotonic()
        while True:
            for key, events in self.selector.select(IDLE / 2):
                take, argument = key.data
                take(argument, events)
            if time.monotonic() - swept > IDLE / 2:
                swept = time.monotonic()
                for exchange in list(self.exchanges.values()):
                    if swept - exchange.used > IDLE:
                        exchange.close()

    def _accept(self, port, _events):
        import socket
        import time

        try:
            client, _address = port.socket.accept()
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.05)  # until one of the others has ended
            return
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.connect_ex((LOOPBACK, port.inside))
        _Pair(self.selector, client, server)

    def _datagram(self, port, _events):
        import socket

        while True:
            try:
                data, address = port.socket.recvfrom(65535)
            except OSError:
                return
            exchange = self.exchanges.get((port, address))
            if exchange is None:
                server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                server.setblocking(False)
                server.connect((LOOPBACK, port.inside))
                exchange = self.exchanges[port, address] = _Exchange(self, port, address, server)
            exchange.send(data)


class _Exchange:
    """Datagrams between one client and the container."""

    def __init__(self, proxy, port, address, server):
        import selectors

        self.proxy, self.port, self.address, self.server = proxy, port, address, server
        self.used = 0.0
        proxy.selector.register(server, selectors.EVENT_READ, (self._receive, None))

    def send(self, data):
        import time

        self.used = time.monotonic()
        try:
            self.server.send(data)
        except OSError:
            pass  # datagrams may be lost

    def _receive(self, _argument, _events):
        import time

        self.used = time.monotonic()
        try:
            self.port.socket.sendto(self.server.recv(65535), self.address)
        except OSError:
            pass

    def close(self):
        self.proxy.selector.unregister(self.server)
        self.server.close()
        del self.proxy.exchanges[self.port, self.address]


class _Pair:
    """A connection of a client, and the one to the container that belongs to it."""

    def __init__(self, selector, client, server):
        self.selector = selector
        self.other = {client: server, server: client}
        self.waiting = {client: bytearray(), server: bytearray()}  # to be written to it
        self.ended = set()  # said that no more comes
        self.shut = set()  # were told so
        self.connected = False
        self.events = {}
        self._watch()

    def _watch(self):
        import selectors

        server = list(self.other)[1]
        for one, peer in self.other.items():
            events = 0
            if self.waiting[one] or (one is server and not self.connected):
                events |= selectors.EVENT_WRITE
            if one not in self.ended and len(self.waiting[peer]) < BUFFER and (self.connected or one is not server):
                events |= selectors.EVENT_READ
            if events != self.events.get(one, 0):
                if not self.events.get(one):
                    self.selector.register(one, events, (self._turn, one))
                elif not events:
                    self.selector.unregister(one)
                else:
                    self.selector.modify(one, events, (self._turn, one))
                self.events[one] = events

    def _turn(self, one, events):
        import selectors
        import socket

        server = list(self.other)[1]
        try:
            if events & selectors.EVENT_WRITE:
                if one is server and not self.connected:
                    failed = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if failed:
                        raise OSError(failed, os.strerror(failed))
                    self.connected = True
                if self.waiting[one]:
                    del self.waiting[one][: one.send(self.waiting[one])]
            if events & selectors.EVENT_READ and one not in self.ended:
                data = one.recv(BUFFER // 4)
                if data:
                    peer = self.other[one]
                    self.waiting[peer] += data
                    if self.connected:
                        del self.waiting[peer][: peer.send(self.waiting[peer])]
                else:
                    self.ended.add(one)
            for ended in self.ended:
                peer = self.other[ended]
                if not self.waiting[peer] and peer not in self.shut and (self.connected or peer is not server):
                    peer.shutdown(socket.SHUT_WR)
                    self.shut.add(peer)
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if len(self.shut) == 2:
            self._close()
        else:
            self._watch()

    def _close(self):
        for one in self.other:
            if self.events.get(one):
                self.selector.unregister(one)
            one.close()
        self.events.clear()

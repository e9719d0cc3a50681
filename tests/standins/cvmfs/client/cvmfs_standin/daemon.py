# SPDX-License-Identifier: Apache-2.0
"""cvmfs2: mounts a repository and serves it until it is unmounted."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import socket
import sys
import syslog
import threading
import time
from pathlib import Path

from cvmfs_standin import VERSION, fuse, options, store


class MountError(Exception):
    """Why a repository is not mounted, as the client says it."""


class Tree:
    """A repository for the kernel; counts what goes wrong."""

    def __init__(self, repository, point):
        self.repository, self.point = repository, point
        self.owner = (os.geteuid(), os.getegid())
        self.started, self.failed = time.time(), 0
        self.lock = threading.RLock()

    def entry(self, path):
        with self.lock:
            return self.repository.entry(path)

    def children(self, path):
        with self.lock:
            return self.repository.children(path)

    def content(self, path):
        digest = (self.entry(path) or [None])[0]
        if digest is None:
            raise OSError(errno.EISDIR, "no file")
        try:
            with self.lock:
                self.repository.opened += 1
                return self.repository.read(digest)
        except (store.Failure, OSError) as exc:
            self.failed += 1
            log(self.repository.name, str(exc))
            raise OSError(errno.EIO, str(exc)) from exc

    def space(self):
        """Bytes of the cache that are used and free."""
        limit = int(self.repository.parameters.get("CVMFS_QUOTA_LIMIT", 4000)) << 20
        used = self.repository.cached()
        return used, max(limit - used, 0)

    def attributes(self, path):
        if path:
            return {}
        one, network = self.repository, self.repository.network
        values = {
            "fqrn": one.name, "version": VERSION, "revision": one.fields["S"], "root_hash": one.fields["C"],
            "pid": os.getpid(), "uptime": int((time.time() - self.started) / 60), "host": network.server,
            "proxy": network.proxy, "nioerr": self.failed, "nopen": one.opened, "ndiropen": 0, "usedfd": 0,
            "useddirp": 0, "maxfd": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "nclg": 1, "expires": 4,
            "timeout": network.timeout[False], "timeout_direct": network.timeout[True], "rx": network.received >> 10,
            "speed": 0, "ndownload": network.fetched, "hitrate": 100 * one.hits // max(one.hits + network.fetched, 1),
        }  # fmt: skip
        return {f"user.{name}": str(value) for name, value in values.items()}

    def talk(self, command):
        """What is answered to a command of cvmfs_talk."""
        one = self.repository
        if command in ("remount", "remount sync"):
            try:
                with self.lock:
                    return "New revision applied" if one.load() else "Catalog up to date"
            except (store.Failure, OSError) as exc:
                log(one.name, str(exc))
                return "Failed"
        if command == "reload":
            with self.lock:
                one.configure(options.read(one.name))
            return "OK"
        if command == "cache size":
            used = one.cached()
            return f"Current cache size is {used >> 20}MB ({used} Bytes), pinned: 0MB (0 Bytes)"
        if command == "proxy info":
            return f"Active proxy: [0] {one.network.proxy}"
        if command == "host info":
            return f"Active host 0: {one.network.server}"
        known = {"revision": one.fields["S"], "mountpoint": self.point, "pid": str(os.getpid()), "version": VERSION}
        return known.get(command, f"unknown command {command}")

    def listen(self, path):
        """Answer on the socket at `path`."""
        Path(path).unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen(1)

        def answer():
            while True:
                with server.accept()[0] as connection:
                    command = connection.recv(1024).rstrip(bytes(1)).decode()
                    connection.sendall(f"{self.talk(command)}\n".encode())

        threading.Thread(target=answer, daemon=True).start()


def log(name, text):
    syslog.openlog("cvmfs2")
    syslog.syslog(syslog.LOG_ERR, f"({name}) {text}")


def become(user):
    """Be that user alone; with the group fuse where there is one."""
    about = pwd.getpwnam(user)
    groups = [one.gr_gid for one in grp.getgrall() if one.gr_name == "fuse"]
    os.setgroups(groups)
    os.setegid(about.pw_gid)
    os.seteuid(about.pw_uid)
    return about


def mount(name, point):
    """Mount repository `name` and leave a process behind that serves it; raises MountError."""
    parameters = options.read(name)
    wanted = int(parameters.get("CVMFS_NFILES", 131072))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    except (ValueError, OSError) as exc:
        raise MountError("Failed to set maximum number of open files, insufficient permissions") from exc
    about = become(parameters.get("CVMFS_USER", "cvmfs"))
    try:
        try:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise MountError(f"fuse: failed to open /dev/fuse: {exc.strerror}") from exc
        repository = store.Store(name, parameters)
        try:
            repository.load()
        except (store.Failure, OSError, ValueError) as exc:
            log(name, str(exc))
            raise MountError("Failed to initialize root file catalog (16 - file catalog failure)") from exc
    finally:
        os.seteuid(0)
        os.setegid(0)
    try:
        fuse.mount(point, device)
    except OSError as exc:
        raise MountError(f"fuse: mount failed: {exc.strerror}") from exc
    if os.fork():
        print(f"CernVM-FS: mounted cvmfs on {point}", flush=True)
        return
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.setgid(about.pw_gid)
    os.setuid(about.pw_uid)
    repository.open_catalog()
    tree = Tree(repository, point)
    place = options.cache(name, parameters) / f"cvmfs_io.{name}"
    tree.listen(place)
    fuse.Server(device, tree).serve()
    place.unlink(missing_ok=True)
    os._exit(0)


def main():
    words = sys.argv[1:]
    if words[:1] in (["--version"], ["-V"]):
        from cvmfs_standin import NOTE

        print(f"CernVM-FS version {VERSION} ({NOTE})")
        return 0
    given = words[words.index("-o") + 1] if "-o" in words else ""
    rest = [word for word in words if word not in ("-o", given)]
    if given == "parse":
        for key, value in sorted(options.read(rest[0]).items()):
            quoted = value.replace("'", "'\\''")
            print(f"{key}='{quoted}'")
        return 0
    try:
        mount(rest[0], rest[1])
    except MountError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0

# SPDX-License-Identifier: Apache-2.0
"""What an engine is asked to run: plain values, nothing of images or of the command line."""


class Mount:
    """A file system in a container: `kind` is bind, tmpfs, or proc (of the host, where a fresh one is refused)."""

    __slots__ = ("kind", "options", "read_only", "source", "target")

    def __init__(self, kind, target, source=None, read_only=False, options=""):
        self.kind = kind
        self.target = target
        self.source = source
        self.read_only = read_only
        self.options = options


class Spec:
    """One process to start in a container.

    directory: the container's folder (see store), where the engine finds `ROOT`, `upper`, `work`
    layers: folders of unpacked layers, lowest first
    argv, env (mapping), cwd: as the process sees them; argv[0] is looked up in env["PATH"] inside the container
    user: "name-or-uid[:group-or-gid]" as in an image's configuration, looked up in the container's own files
    hostname: None keeps the host's; mounts: [Mount], in order; network: "host" or "none" (loopback alone)
    read_only: the root file system cannot be written; volatile: nobody needs the changes after the process has ended
    terminal: descriptors 0, 1 and 2 are a terminal that becomes the process's controlling terminal
    init: a first process reaps orphans and passes signals on (otherwise argv itself is process 1)
    devices: paths on the host; limits: {"cpuset": "0-1", "nofile": (soft, hard), ...}
    """

    __slots__ = (
        "argv", "cwd", "devices", "directory", "env", "hostname", "init", "layers", "limits", "mounts", "network",
        "read_only", "terminal", "user", "volatile",
    )  # fmt: skip

    def __init__(self, directory, layers, argv, env=None, **more):
        self.directory = directory
        self.layers = layers
        self.argv = argv
        self.env = env or {}
        self.cwd = more.pop("cwd", "/")
        self.user = more.pop("user", "")
        self.hostname = more.pop("hostname", None)
        self.mounts = more.pop("mounts", [])
        self.network = more.pop("network", "host")
        self.read_only = more.pop("read_only", False)
        self.volatile = more.pop("volatile", False)
        self.terminal = more.pop("terminal", False)
        self.init = more.pop("init", True)
        self.devices = more.pop("devices", [])
        self.limits = more.pop("limits", {})
        if more:
            raise TypeError(f"unknown: {', '.join(more)}")

# SPDX-License-Identifier: Apache-2.0
"""Containers as they are kept: created in an instant, found by name or id, renamed, cloned, removed.

A container's folder (store.container(id)), beside what its engine keeps there (ROOT, upper, work):

    record.json      what it was made of: id, image, manifest, layers (diff-ids, lowest first), engine, options, created
    container.json   the image's configuration, and imagerepo.name the image's name, as udocker 1.3.17 writes them
    state.json       what became of it: status, keeper, running, code (see Container.state)
    stop             is there when somebody wants it stopped: no restart policy brings it back
    log, attach      of a detached one: JSON lines as Docker's json-file, the monitor's socket
    etc/             hosts, resolv.conf, hostname, passwd and group as they are bound into it
    PROTECT          it is not to be removed

While a container runs, its keeper alone writes state.json: the process that started it, a monitor or the command in
the foreground. Everybody else holds the container's lock and writes only when no keeper lives.
"""

import errno
import os

from . import records
from .errors import Error, NotFound
from .store import held, same_file

# What `create` and `run` take, by the long names of the options, with what holds when nothing is said.
# Lists hold what was given, as text in the syntax of the command line ("8080:80", "/host:/inside:ro", "NAME=value").
OPTIONS = {
    # the process
    "workdir": "", "user": "", "env": [], "env_file": [], "hostenv": False, "entrypoint": None, "nometa": False,
    "hostname": "", "init": None, "stop_signal": "", "stop_timeout": None, "label": [], "label_file": [],
    # stdin, terminal, where it runs; detach_keys as in "ctrl-p,ctrl-q"
    "tty": False, "interactive": None, "attach": [], "detach": False, "rm": False, "restart": "no", "sig_proxy": True,
    "detach_keys": "", "log_driver": "", "log_opt": [], "cidfile": "",
    # files
    "volume": [], "novol": [], "mount": [], "tmpfs": [], "volumes_from": [], "read_only": False, "bindhome": False,
    "nosysdirs": False, "hostauth": False, "containerauth": False, "shm_size": "", "location": "",
    # network
    "network": "", "publish": [], "publish_all": False, "dns": [], "dns_search": [], "dns_option": [], "add_host": [],
    # devices and limits
    "device": [], "dri": False, "nvidia": False, "gpus": "", "cpuset_cpus": "", "ulimit": [],
    # health, instead of what the image says; durations as in "1m30s"
    "health_cmd": "", "health_interval": "", "health_timeout": "", "health_retries": None, "health_start_period": "",
    "no_healthcheck": False,
    # which engine and image; `name` names the container; "docker" has Docker's manners where udocker's differ
    "name": "", "engine": "", "platform": "", "pull": "missing", "kernel": "", "nobanner": True, "dialect": "udocker",
    # taken, and said to have no effect
    "cap_add": [], "cap_drop": [], "security_opt": [], "privileged": False, "memory": "", "memory_swap": "", "cpus": "",
    "cpu_shares": "", "pids_limit": "", "ipc": "", "pid": "", "uts": "", "userns": "", "cgroupns": "", "group_add": [],
    "sysctl": [], "oom_score_adj": "", "runtime": "", "isolation": "", "mac_address": "", "ip": "", "link": [],
    "network_alias": [], "expose": [], "domainname": "", "health_start_interval": "",
}  # fmt: skip

# Options of the moment, which a container does not keep.
TRANSIENT = frozenset(
    ("attach", "cidfile", "detach", "detach_keys", "location", "name", "platform", "pull", "sig_proxy")
)

LOCK_DEADLINE = 60.0  # seconds that one command waits for another on the same container


class Container:
    """One container in a store: `id`, `directory`, `record` (record.json)."""

    __slots__ = ("_configuration", "directory", "id", "record", "store")

    def __init__(self, store, identifier, record, configuration=None):
        self.store = store
        self.id = identifier
        self.record = record
        self.directory = store.container(identifier)
        self._configuration = configuration

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    @property
    def image(self):
        """The name of its image, or ""."""
        return self.record.get("image") or ""

    @property
    def options(self):
        """What it was created with, every option of OPTIONS."""
        return dict(OPTIONS, **self.record.get("options") or {})

    @property
    def layers(self):
        """The folders of its image's layers, lowest first, less those that one above hides altogether."""
        from .trees import visible

        tree = self.record.get("tree")
        if tree:
            return [tree]
        return visible([self.store.layer(diff_id) for diff_id in self.record.get("layers") or ()])

    def engine(self):
        """The engine that it was made for; raises Error when this host does not have it."""
        from . import engines

        return engines.choose(self.store, self.record.get("engine") or None)

    def names(self):
        return names(self.store, self.id)

    @property
    def name(self):
        """Its first name, or the start of its id."""
        return (self.names() or [self.id[:12]])[0]

    def configuration(self):
        """The image's configuration as container.json holds it; {} without."""
        if self._configuration is None:
            self._configuration = _read_json(self.path("container.json")) or {}
        return self._configuration

    def config(self):
        """What of the image's configuration is for the process: Env, Cmd, Entrypoint, User, ..."""
        whole = self.configuration()
        return whole.get("config") or whole.get("container_config") or {}

    def state(self):
        """What became of it.

        status: created, running, restarting, exited or elsewhere (another machine or another pid namespace keeps it,
        so that nobody here can tell); keeper: who watches it; running: what the engine needs to enter it; code: exit
        code of the last run; started, finished: seconds since the epoch; error, restarts, health.
        """
        state = _read_json(self.path("state.json")) or {"status": "created"}
        if state["status"] in ("running", "restarting"):
            alive = is_alive(state.get("keeper") or {})
            if alive is None:
                state["status"] = "elsewhere"
            elif not alive:
                # Its keeper was killed and took the container with it. It may also have written a last word just now.
                state = _read_json(self.path("state.json")) or state
                if state["status"] in ("running", "restarting"):
                    state.update(status="exited", code=137, error="what kept it was killed")
        return state

    def write_state(self, state):
        """Write state.json: for its keeper, or under its lock."""
        if os.path.isdir(self.directory):
            records.write(self.path("state.json"), state)

    def write_record(self):
        records.write(self.path("record.json"), self.record)

    def is_running(self):
        return self.state()["status"] in ("running", "restarting", "elsewhere")

    @property
    def protected(self):
        return os.path.exists(self.path("PROTECT"))

    def locked(self, what, deadline=LOCK_DEADLINE):
        """Hold its lock for `what` ("start", "remove") in a `with`; after `deadline` s Error names who holds it."""
        return _Locked(self, what, deadline)


# Who is alive


def identity():
    """This process, as others can recognise it: a pid alone may be somebody else's soon."""
    pid = os.getpid()
    return {"boot": _boot(), "node": os.uname().nodename, "pid": pid, "space": _space(), "start": _start(pid)}


def is_alive(keeper):
    """Whether a process given by identity() lives; None when that cannot be seen from here."""
    if keeper.get("boot") != _boot():
        return False if keeper.get("node") == os.uname().nodename else None
    if keeper.get("space") != _space():
        return None
    return _start(keeper["pid"]) == keeper["start"]


def _boot():
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as source:  # loaded already, unlike ascii
            return source.read().strip()
    except OSError:
        return ""


def _space():
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid):
    """When a process was started, in ticks since boot; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


# Find


def find(store, key):
    """The container of a name, an id, or the start of an id that no other has; raises NotFound, Error."""
    folder = store.path("containers")
    identifier = ""
    if key and "/" not in key and not key.startswith("."):
        try:
            identifier = os.path.basename(os.readlink(os.path.join(folder, key)))
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # a folder, so an id
                identifier = key
        if not identifier and len(key) >= 2 and not key.strip("0123456789abcdef-"):
            found = [entry for entry in _identifiers(store) if entry.startswith(key)]
            if len(found) > 1:
                raise Error(f"{key}: {len(found)} containers have an id that starts so: give more of it")
            identifier = found[0] if found else ""
    container = _load(store, identifier) if identifier else None
    if container is None:
        raise NotFound(f"no container {key}: `ps` lists those that there are")
    return container


def listed(store):
    """All containers, the newest first."""
    found = [_load(store, identifier) for identifier in _identifiers(store)]
    return sorted(filter(None, found), key=lambda container: container.record.get("created") or 0, reverse=True)


def _identifiers(store):
    try:
        with os.scandir(store.path("containers")) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    except FileNotFoundError:
        return []


def _load(store, identifier):
    """A container by its id; None when there is none."""
    directory = store.container(identifier)
    record = _read_json(os.path.join(directory, "record.json"))
    if record is None:
        record = _foreign_record(directory, identifier)
    return None if record is None else Container(store, identifier, record)


def _foreign_record(directory, identifier):
    """The record of a container that udocker 1.3.17 made: a plain tree in ROOT."""
    if not os.path.isdir(os.path.join(directory, "ROOT")):
        return None
    try:
        with open(os.path.join(directory, "imagerepo.name"), encoding="utf-8") as source:
            image = source.read().strip()
    except OSError:
        image = ""
    created = os.stat(directory).st_mtime
    return {"id": identifier, "image": image, "layers": [], "engine": "directory", "created": created, "foreign": True}


def _read_json(path):
    """The content of a JSON file; None when there is none. Raises Error."""
    try:
        return records.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as exc:
        raise Error(f"{path} is damaged: {exc}") from exc


# Names


def names(store, identifier=None):
    """The names of one container; without `identifier` {id: [names]} of all."""
    found = {}
    try:
        with os.scandir(store.path("containers")) as entries:
            linked = [entry for entry in entries if entry.is_symlink()]
    except FileNotFoundError:
        linked = []
    for entry in linked:
        target = _target(entry.path)
        if target:
            found.setdefault(target, []).append(entry.name)
    for same in found.values():
        same.sort()
    return found if identifier is None else found.get(identifier, [])


def check_name(name):
    """Raise Error unless `name` can be a container's."""
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
    if not name or len(name) > 250 or any(char not in allowed for char in name) or name[0] in ".-_":
        raise Error(f"{name!r} cannot name a container: letters, digits, '_', '.', '-' can; the first no sign", 125)


def add_name(container, name):
    """Give it one more name; of two that want the same name at once, one gets it. Raises Error."""
    check_name(name)
    path = container.store.path("containers", name)
    for _attempt in range(3):
        try:
            os.symlink(container.id, path)
            return
        except FileExistsError:
            taken = _target(path)
            if taken is None or os.path.isdir(container.store.container(taken)):
                break
            # Of a container that is gone: whoever removed it was killed before the name was.
            _unlink(path)
    raise Error(f"the name {name} is taken by container {(_target(path) or name)[:12]}: remove or rename that one")


def remove_name(store, name):
    """Take a name from its container; raises NotFound."""
    path = store.path("containers", name)
    if "/" in name or _target(path) is None:
        raise NotFound(f"no container is named {name}")
    os.unlink(path)


def rename(container, new):
    """Give it the name `new` instead of its others."""
    old = container.names()
    add_name(container, new)
    for name in old:
        _unlink(container.store.path("containers", name))


def _unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _target(path):
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


# Create


def create(store, image=None, options=None, argv=(), rootfs=None, record=None):
    """A new container of `image` (store.Image), or with the folder `rootfs` as its root; returns a Container.

    options: of OPTIONS, those that differ; argv: the command, instead of the image's. `record`: more for record.json.
    A folder that this user may write is written to; another one is below an overlay, where that works.
    Nothing of it is left when anything fails.
    """
    from . import engines

    options = dict(options or {})
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise Error(f"unknown option: {', '.join(sorted(unknown))}", 125)
    name = options.get("name")
    if name:
        check_name(name)
        taken = _target(store.path("containers", name))
        if taken and os.path.isdir(store.container(taken)):
            raise Error(f"the name {name} is taken by container {taken[:12]}: remove or rename that one", 125)
    if rootfs is not None and not os.path.isdir(rootfs):
        raise NotFound(f"{rootfs}: no such folder", 125)
    shared = rootfs is not None and not os.access(rootfs, os.W_OK)
    wanted = options.get("engine") or ("directory" if rootfs is not None and not shared else None)
    engine = engines.choose(store, wanted, image.platform if image else None)
    if shared and engine.name in ("overlay", "fuse"):
        record, rootfs = dict(record or {}, tree=os.path.realpath(rootfs)), None
    configuration = _image_configuration(store, image)
    if options.get("env"):
        # A name without a value takes that of whoever creates it, as Docker has it, and not of whoever starts it.
        known = [entry for entry in options["env"] if "=" in entry or entry in os.environ]
        options["env"] = [entry if "=" in entry else f"{entry}={os.environ[entry]}" for entry in known]
    identifier = new_id()
    content = {
        "id": identifier,
        "image": image.name if image else "",
        "manifest": image.manifest if image else "",
        "layers": [layer["diff_id"] for layer in image.layers] if image else [],
        "platform": image.platform if image else "",
        "engine": engine.name,
        "options": {key: value for key, value in options.items() if key not in TRANSIENT and value != OPTIONS[key]},
        "command": list(argv),
        "created": _now(),
    }
    content.update(record or {})
    container = Container(store, identifier, content, configuration)
    missing = [folder for folder in container.layers if not os.path.isdir(folder)]
    if missing:
        raise Error(f"image {content['image']} lacks {len(missing)} of its layers: pull it again", 125)
    with _half_made(store, identifier) as folder:
        if rootfs is not None:
            os.symlink(os.path.realpath(rootfs), os.path.join(folder, "ROOT"))
        else:
            engine.prepare(folder, container.layers)
        _write_description(folder, content, configuration)
        _appear(store, folder, container)
    _claim(container, name)
    return container


def adopt(store, tree, image_name="", configuration=None, options=None):
    """A container whose ROOT is the folder `tree`, which is moved into the store (import --tocontainer, legacy)."""
    from . import engines

    options = options or {}
    engine = engines.choose(store, "directory")
    content = {"id": new_id(), "image": image_name, "layers": [], "engine": engine.name, "created": _now()}
    container = Container(store, content["id"], content, configuration or {})
    with _half_made(store, container.id) as folder:
        os.rename(tree, os.path.join(folder, "ROOT"))
        _write_description(folder, content, configuration or {})
        _appear(store, folder, container)
    _claim(container, options.get("name"))
    return container


def clone(container, name=None):
    """A replica with an id of its own, also of a container that runs (as it is on disk then)."""
    if name:
        check_name(name)
    store = container.store
    engine = container.engine()
    content = dict(container.record, id=new_id(), created=_now())
    content.pop("foreign", None)
    replica = Container(store, content["id"], content, container.configuration())
    with container.locked("clone"), _half_made(store, replica.id) as folder:
        engine.clone(container.directory, folder)
        _write_description(folder, content, container.configuration())
        _appear(store, folder, replica)
    _claim(replica, name)
    return replica


def new_id():
    """A random UUID (the module of that name takes longer to import than a container to create)."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _image_configuration(store, image):
    return records.loads(store.read_blob(image.config).decode("utf-8")) if image else {}


def _write_description(folder, record, configuration):
    for name, content in (("record.json", record), ("container.json", configuration)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as target:
            target.write(records.dumps(content))
    if record["image"]:
        with open(os.path.join(folder, "imagerepo.name"), "w", encoding="utf-8") as target:
            target.write(record["image"])


class _half_made:
    """A folder in tmp/ for a container that is being made."""

    def __init__(self, store, identifier):
        self.folder = store.path("tmp", f"container-{identifier}")

    def __enter__(self):
        _folder, self.holder = held(self._make)
        return self.folder

    def _make(self):
        os.makedirs(self.folder, 0o700)
        return self.folder

    def __exit__(self, kind, *_exception):
        if kind is not None:
            _delete_tree(self.folder)
        os.close(self.holder)


def _appear(store, folder, container):
    try:
        os.rename(folder, container.directory)
    except FileNotFoundError:
        os.makedirs(store.path("containers"), exist_ok=True)
        os.rename(folder, container.directory)


def _claim(container, name):
    if name:
        try:
            add_name(container, name)
        except BaseException:
            remove(container, force=True)
            raise


def _now():
    import time

    return time.time()


# Remove


def remove(container, force=False):
    """Remove a container and its names; a running one only with `force`. Raises Error (status 1 when protected)."""
    if container.protected:
        raise Error(f"container {container.name} is protected: unprotect it first", 1)
    if force and container.state()["status"] in ("running", "restarting"):
        from . import runtime

        runtime.kill_and_wait(container)
    try:
        with container.locked("remove"):
            if container.is_running() and not (force and container.state()["status"] == "elsewhere"):
                raise Error(f"container {container.name} is running: stop it, or remove it with -f", 1)
            discard(container)
    except NotFound:
        if not force:
            raise
    forget_lock(container)


def discard(container):
    """Make it disappear: for its keeper, or whoever holds its lock."""
    store = container.store
    for name in container.names():
        _unlink(store.path("containers", name))
    folder = store.path("tmp", f"removed-{container.id}")
    os.makedirs(store.path("tmp"), exist_ok=True)
    try:
        os.rename(container.directory, folder)
    except FileNotFoundError:
        return
    root = os.path.join(folder, "ROOT")
    if os.path.islink(root):
        os.unlink(root)  # --location: what it points to is not ours
    _delete_tree(folder, container)


def _delete_tree(folder, container=None):
    """Delete through the engine, since files may belong to other ids of the user's range."""
    from . import engines

    try:
        engine = container.engine() if container else engines.choose(engines_store(folder), None)
        engine.remove(folder)
    except (Error, OSError):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(folder):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def engines_store(folder):
    """The store that a folder in its tmp/ belongs to."""
    from .store import Store

    return Store(os.path.dirname(os.path.dirname(folder)))


def prune(store, wanted=lambda _container: True, failed=lambda _error: None):
    """Remove the containers that do not run and are not protected, and what killed commands left; returns their ids.

    wanted(container) says whether one is meant; failed(error) is told of one that stays, as when somebody started it.
    """
    removed = []
    for container in listed(store):
        if container.protected or container.is_running() or not wanted(container):
            continue
        try:
            remove(container)
        except Error as exc:
            failed(exc)
            continue
        removed.append(container.id)
    tidy(store)
    return removed


def tidy(store):
    """Clear away what commands that were killed left behind: folders that nobody works in, dangling names."""
    import fcntl

    try:
        left = os.listdir(store.path("tmp"))
    except FileNotFoundError:
        left = []
    for name in left:
        folder = store.path("tmp", name)
        try:
            holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # a download that goes on where it ended: `prune` takes it when it is old
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete_tree(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(holder)
    for identifier, linked in names(store).items():
        if not os.path.isdir(store.container(identifier)):
            for name in linked:
                _unlink(store.path("containers", name))


def protect(container):
    with open(container.path("PROTECT"), "w", encoding="ascii"):
        pass


def unprotect(container):
    _unlink(container.path("PROTECT"))


# Locks


class _Locked:
    def __init__(self, container, what, deadline):
        self.container, self.what, self.deadline = container, what, deadline

    def __enter__(self):
        """Returns the descriptor that holds the lock."""
        self.holder = _acquire(self.container, self.what, self.deadline)
        if not os.path.isdir(self.container.directory):
            os.close(self.holder)
            raise NotFound(f"container {self.container.id[:12]} is gone")
        return self.holder

    def __exit__(self, *_exception):
        os.close(self.holder)


def _acquire(container, what, deadline):
    import fcntl

    path = _lock_path(container)
    end = None
    pause = 0.001
    while True:
        try:
            holder = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            continue
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_file(holder, path):
                # Of one length, so that it covers what was there: to cut a file takes longer than to write it.
                os.pwrite(holder, f"{what} (process {os.getpid()})".ljust(80).encode(), 0)
                return holder
        except BlockingIOError:
            import time

            end = end or time.monotonic() + deadline
            if time.monotonic() > end:
                who = os.pread(holder, 100, 0).decode("utf-8", "replace").strip() or "another command"
                os.close(holder)
                raise Error(f"container {container.id[:12]}: cannot {what}: busy for {deadline:g} s: {who}") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        os.close(holder)


def forget_lock(container):
    """Remove the lock's file of a container that is gone."""
    _unlink(_lock_path(container))


def _lock_path(container):
    return container.store.path("locks", f"container-{container.id}")


# A tree of its own


def materialise(container):
    """Give a container a plain tree in ROOT and return its path: for scripts that look into ROOT.

    A container of the overlay engine becomes one of the directory engine (it shares no disk with its image any more,
    except where the file system can: reflinks). While it runs, the path leads into it as it runs.
    """
    from . import engines

    root = container.path("ROOT")
    if container.record["engine"] in ("directory", "proot"):
        return root
    state = container.state()
    if state["status"] == "running" and state.get("running"):
        from .ports import visible

        return f"/proc/{visible(state['running'])}/root"
    with container.locked("make a plain tree of"):
        if container.is_running():
            raise Error(f"container {container.name} was started meanwhile")
        engine = engines.choose(container.store, "directory")
        folder = container.path("plain")
        _delete_tree(folder, container)
        os.mkdir(folder, 0o700)
        layers = container.layers
        if os.path.isdir(container.path("upper")):
            layers.append(container.path("upper"))
        engine.prepare(folder, layers)
        if os.path.isdir(root):
            os.rmdir(root)
        os.rename(os.path.join(folder, "ROOT"), root)
        container.record["engine"] = engine.name
        container.write_record()
        _delete_tree(folder, container)
        for name in ("upper", "work"):
            if os.path.isdir(container.path(name)):
                _delete_tree(container.path(name), container)
    return root


# Inspect


def inspect(container):
    """What `docker inspect` says of a container: a dictionary of its form."""
    state = container.state()
    options = container.options
    config = dict(container.config())
    command = container.record.get("command") or []
    if command:
        config["Cmd"] = command
    status = state["status"]
    running = status in ("running", "elsewhere")
    policy, retries = restart_policy(options["restart"])
    engine_state = state.get("running") or {}
    found = {
        "Id": container.id,
        "Name": "/" + container.name,
        "Names": container.names(),
        "Created": timestamp(container.record.get("created") or 0),
        "Image": container.record.get("manifest") or "",
        "ImageName": container.image,
        "Driver": container.record.get("engine"),
        "Platform": container.record.get("platform") or "linux",
        "LogPath": container.path("log"),
        "Path": container.directory,
        "Root": container.path("ROOT"),
        "Protected": container.protected,
        "RestartCount": state.get("restarts", 0),
        "State": {
            "Status": status,
            "Running": running,
            "Paused": False,
            "Restarting": status == "restarting",
            "Dead": False,
            "Pid": engine_state.get("shown", 0) if running else 0,
            "ExitCode": state.get("code") or 0,
            "Error": state.get("error") or "",
            "StartedAt": timestamp(state.get("started") or 0),
            "FinishedAt": timestamp(state.get("finished") or 0),
        },
        "Config": config,
        "HostConfig": {
            "Binds": options["volume"],
            "NetworkMode": options["network"] or "host",
            "AutoRemove": options["rm"],
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries},
            "ReadonlyRootfs": options["read_only"],
        },
        "NetworkSettings": {"Ports": state.get("ports") or {}},
    }
    labels = dict(config.get("Labels") or {})
    labels.update(item.partition("=")[::2] for item in options["label"])
    config["Labels"] = labels
    config["Tty"] = bool(options["tty"])
    config["OpenStdin"] = bool(options["interactive"])
    if options["hostname"]:
        config["Hostname"] = options["hostname"]
    if state.get("health"):
        found["State"]["Health"] = state["health"]
    return found


def restart_policy(text):
    """("on-failure", 3) of "on-failure:3"; raises Error."""
    name, _colon, count = (text or "no").partition(":")
    counted = name == "on-failure" and count.isdigit()
    if name not in ("no", "on-failure", "always", "unless-stopped") or (count and not counted):
        raise Error(f"--restart {text}: no, on-failure[:COUNT], always or unless-stopped", 125)
    return name, int(count or 0)


def timestamp(seconds):
    """Seconds since the epoch as RFC 3339 with nanoseconds, in UTC; Docker's zero for 0."""
    import time

    if not seconds:
        return "0001-01-01T00:00:00Z"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e9):09d}Z"

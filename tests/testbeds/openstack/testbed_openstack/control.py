# SPDX-License-Identifier: Apache-2.0
"""Starts, looks at and stops a testbed. Standard library only."""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed_openstack import api, cached, config, seed
from testbed_openstack.place import Place, TestbedError
from testbed_openstack.processes import Processes, lives

DEADLINE = 240  # s, for all services to answer: a start takes a tenth of it on an idle machine
PORTS = range(20000, 32000)  # below those that the kernel gives to connections
READY = {  # path, and the status that says that it works
    "keystone": ("/v3", 200),
    "placement": ("/", 200),
    "glance": ("/", 300),
    "neutron": ("/", 200),
    "nova": ("/", 200),
    "metadata": ("/", 200),
}
SERVERS = ("keystone", "placement", "glance", "neutron", "nova")
KEPT = ("mysql", "keystone", "glance", "secrets.json")  # of a template


def up(state: Path, compute: str = "fake", hosts: int = 4, **more) -> Place:
    """Start a testbed; it answers when this returns. `more`: public_cidr, shared_cidr, token_seconds.

    Raises TestbedError; what was started is stopped then, and the logs are kept.
    """
    state = state.resolve()
    if len(str(state)) > 80:
        raise TestbedError(f"{state}: too long for the path of a socket; --state takes at most 80 characters")
    if hosts < 1:
        raise TestbedError("--hosts: at least 1")
    for option in ("public", "shared"):
        try:
            if f"{option}_cidr" in more and ipaddress.ip_network(more[f"{option}_cidr"]).num_addresses < 32:
                raise ValueError("32 addresses at least")
        except ValueError as error:
            raise TestbedError(f"--{option}: {error}") from None
    _refuse_running(state)
    guests = _guests(compute)
    cached.packages(cached.PACKAGES + (guests.PACKAGES if guests else []))
    venv = cached.venv()
    place = Place(
        state=state, cache=cached.folder(), key=Place.key_of(state),
        compute=compute, hosts=hosts, ports=_ports(), **more,
    )  # fmt: skip
    if guests:
        guests.check(place)
    template = _template(venv, place)
    _remove(state, place if guests else None)
    _prepare_folders(place)
    _copy(template, place)
    processes = Processes(place)
    try:
        prefix = []
        if guests:
            guests.prepare(place)
            prefix = guests.wrap(place)
        config.write(place, venv)
        _start_database(processes)
        _move(Place.load(template), place)
        _start(processes, venv, prefix)
        _await(processes)
        _write_clients(place)
    except BaseException:
        _stop(place, processes)
        raise
    return place


def down(state: Path) -> bool:
    """Stop all and remove the state; False when there was none."""
    state = state.resolve()
    if not state.exists():
        return False
    if not (state / Place.FILE).exists():
        if any(state.iterdir()):
            raise TestbedError(f"{state} is no testbed: remove it by hand")
        state.rmdir()
        return False
    place = Place.load(state)
    _remove(state, place)
    return True


def trust(
    place: Place,
    provider: str,
    issuer: str,
    ca: Path | None = None,
    audience: str | None = None,
    groups: list[str] = (),
    claim: str = "wlcg.groups",
) -> None:
    """Let people log in with bearer tokens of an OpenID Connect issuer, as members of project demo.

    ca: the certificates that its server's is checked with; audience: what tokens must be for; groups: one of them must
    be in the claim.
    """
    seed.identity_provider(place, provider, issuer, groups, claim)
    file = place.state / "oidc.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if ca:  # the caller's file may go
        kept = place.state / f"oidc-{provider}.pem"
        shutil.copy(ca, kept)
        ca = kept
    known[provider] = {"issuer": issuer, "ca": ca and str(ca), "audience": audience}
    partial = file.with_suffix(".new")
    partial.write_text(json.dumps(known, indent=1) + "\n")
    partial.replace(file)


def _guests(compute: str):
    """What the machine does for the driver; None for one that needs nothing of it."""
    if not (Path(__file__).parent / f"{compute}.py").exists():
        raise TestbedError(f"--compute: no driver {compute}; there are fake and guests")
    return importlib.import_module("testbed_openstack.guests_host") if compute == "guests" else None


def _refuse_running(state: Path) -> None:
    if not state.exists():
        return
    if not (state / Place.FILE).exists():
        if any(state.iterdir()):
            raise TestbedError(f"{state} is there and is no testbed: name another folder with --state")
        return
    running = [name for name, one in Processes(Place.load(state)).known().items() if lives(**one)]
    if running:
        raise TestbedError(f"a testbed runs in {state} ({', '.join(running)}): `testbed down --state {state}` ends it")


def _ports() -> dict[str, int]:
    """Free ones; a port stays taken until all are chosen."""
    taken, ports = [], {}
    try:
        for name in READY:
            while name not in ports:
                one = socket.socket()
                taken.append(one)
                try:
                    port = secrets.choice(PORTS)
                    one.bind(("127.0.0.1", port))
                    ports[name] = port
                except OSError:
                    continue
    finally:
        for one in taken:
            one.close()
    return ports


def _prepare_folders(place: Place) -> None:
    place.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("logs", "nova/instances", "nova/lock", "neutron/lock", "glance/images", "tmp"):
        (place.state / name).mkdir(parents=True, exist_ok=True)
    place.save()


def _environment(place: Place, venv: Path) -> dict[str, str]:
    """Of all services: nothing of the caller's that a client of OpenStack would read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "PYTHON", "UWSGI_"))}
    return {
        **kept,
        "PATH": f"{venv}/bin:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "PYTHONPATH": str(cached.SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "XDG_CACHE_HOME": str(venv.parent / f"{venv.name}.entries"),  # stevedore's; its look-up takes seconds else
        "TESTBED_STATE": str(place.state),
        "TMPDIR": str(place.state / "tmp"),
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
        "MALLOC_ARENA_MAX": "2",
        "OS_KEYSTONE_CONFIG_FILES": str(place.etc / "keystone.conf"),
        "OS_KEYSTONE_CONFIG_DIR": str(place.etc),
        "OS_PLACEMENT_CONFIG_DIR": str(place.etc),
    }


def _start_database(processes: Processes) -> None:
    place = processes.place
    options = [
        "--no-defaults", f"--datadir={place.state / 'mysql'}", f"--socket={place.socket}", "--skip-networking",
        f"--pid-file={place.state / 'mysql.pid'}", f"--tmpdir={place.state / 'tmp'}", "--skip-grant-tables",
        "--performance-schema=0", "--max-connections=500", "--innodb-buffer-pool-size=128M",
        "--innodb-log-file-size=32M", "--transaction-isolation=READ-COMMITTED",
        # It lives no longer than a test: nothing waits for a disk.
        "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0",
    ]  # fmt: skip
    user = ["--user=root"] if os.geteuid() == 0 else []
    processes.start("mariadb", ["/usr/sbin/mariadbd", *options, *user], dict(os.environ))
    deadline = time.monotonic() + 60
    while True:
        processes.check()
        if place.socket.exists() and not _query(place, "SELECT 1", check=False).returncode:
            return
        if time.monotonic() > deadline:
            raise TestbedError(f"mariadb does not answer after 60 s\n{processes.tail('mariadb')}")
        time.sleep(0.1)


def _query(place: Place, text: str, check: bool = True) -> subprocess.CompletedProcess:
    command = ["mariadb", "--no-defaults", "--socket", place.socket, "--user", "root", "--batch"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise TestbedError(f"mariadb: {done.stderr.strip()}")
    return done


def _start(processes: Processes, venv: Path, prefix: list[str], names=SERVERS) -> None:
    """All at once: who needs another one waits for it."""
    place = processes.place
    environment = _environment(place, venv)
    bin = venv / "bin"
    uwsgi = [
        bin / "uwsgi", "--virtualenv", venv, "--master", "--lazy-apps", "--need-app", "--enable-threads",
        "--die-on-term", "--threads", "4", "--processes", "1", "--buffer-size", "65535", "--listen", "100",
        "--disable-logging", "--add-header", "Connection: close", "--worker-reload-mercy", "1",
    ]  # fmt: skip

    def wsgi(name, module):
        return [*uwsgi, "--http-socket", f"127.0.0.1:{place.ports[name]}", "--module", f"{module}:application"]

    commands = {
        "keystone": wsgi("keystone", "testbed_openstack.keystone_oidc"),
        "placement": wsgi("placement", "placement.wsgi.api"),
        "glance": [bin / "glance-api", "--config-file", place.etc / "glance-api.conf"],
        "neutron": [bin / "neutron-server", "--config-file", place.etc / "neutron.conf"],
        "nova": [
            *prefix, bin / "python", "-m", "testbed_openstack.nova_onebox", "--config-file", place.etc / "nova.conf",
        ],
    }  # fmt: skip
    for name in names:
        processes.start(name, commands[name], environment)


def _await(processes: Processes, names=tuple(READY), seconds: float = DEADLINE) -> None:
    """Until all answer as they should, to a user too. Raises TestbedError at once when a process has died."""
    place = processes.place
    waiting = {name: READY[name] for name in names}
    deadline = time.monotonic() + seconds
    while True:
        processes.check()
        for name, (path, code) in list(waiting.items()):
            if api.status(place.url(name) + path) == code:
                del waiting[name]
        mapped = "nova" not in names or (place.state / "nova" / "ready").exists()
        if not waiting and mapped:
            return
        if time.monotonic() > deadline:
            late = list(waiting) or ["nova"]
            what = ", ".join(late) if waiting else f"nova: not all of its {place.hosts} hosts are mapped"
            tail = processes.tail(late[0].replace("metadata", "nova"))  # one process is both
            raise TestbedError(f"not ready after {seconds:.0f} s: {what}\n{tail}")
        time.sleep(0.1)


def _template(venv: Path, place: Place) -> Path:
    """Databases with all tables, users, flavors, the image and networks, made by the services themselves."""
    command = ["/usr/sbin/mariadbd", "--no-defaults", "--version"]
    server = subprocess.run(command, capture_output=True, check=True).stdout
    content = Path(seed.__file__).read_bytes()
    target = place.cache / f"template-{cached.key(venv.name, server, place.public_cidr, place.shared_cidr, content)}"
    with cached.made(target) as empty:
        if empty:
            cached.say(f"making {target}: about two minutes, once")
            short = Path(tempfile.mkdtemp(prefix="ostb-"))
            try:
                made = _make_template(venv, short, place)
                for name in (*KEPT, Place.FILE):
                    shutil.move(made.state / name, target / name)
            except BaseException:
                cached.say(f"logs are kept in {short}/logs")
                raise
            shutil.rmtree(short)
    return target


def _make_template(venv: Path, state: Path, like: Place) -> Place:
    place = Place(
        state=state, cache=like.cache, key=Place.key_of(state), compute="fake", hosts=0, ports=_ports(),
        public_cidr=like.public_cidr, shared_cidr=like.shared_cidr,
    )  # fmt: skip
    _prepare_folders(place)
    names = ("admin", "metadata", *seed.SERVICE_USERS, *seed.PEOPLE)
    file = state / "secrets.json"
    file.touch(0o600)
    file.write_text(json.dumps({name: secrets.token_urlsafe(16) for name in names}))
    config.write(place, venv)
    install = [
        "mariadb-install-db", "--no-defaults", f"--datadir={state / 'mysql'}", "--skip-test-db",
        "--auth-root-authentication-method=normal", "--innodb-log-file-size=32M",
        *(["--user=root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    _run(place, "mariadb-install-db", [install], dict(os.environ))
    processes = Processes(place)
    try:
        _start_database(processes)
        _query(place, "".join(f"CREATE DATABASE {name} CHARACTER SET utf8mb4;" for name in config.DATABASES))
        _make_tables(place, venv)
        _start(processes, venv, [], ["keystone"])
        _await(processes, ["keystone"])
        seed.identity(place)
        _start(processes, venv, [], ["placement", "glance", "neutron", "nova"])
        _await(processes)
        seed.cloud(place)
    finally:
        processes.stop(60)
    return place


def _make_tables(place: Place, venv: Path) -> None:
    """Two at a time, the longest first: it is Python that takes the time."""
    etc, bin = place.etc, venv / "bin"
    owner = ["--keystone-user", str(os.geteuid()), "--keystone-group", str(os.getegid())]
    for name in ("fernet", "credential"):
        (place.state / "keystone" / name).mkdir(mode=0o700, parents=True)
    keystone = [bin / "keystone-manage", "--config-file", etc / "keystone.conf"]
    nova = [bin / "nova-manage", "--config-file", etc / "nova.conf"]
    url = place.auth_url
    bootstrap = ["bootstrap", *(f"--bootstrap-{kind}-url={url}" for kind in ("public", "internal", "admin"))]
    jobs = {
        "neutron": [[bin / "neutron-db-manage", "--config-file", etc / "neutron.conf", "upgrade", "heads"]],
        "nova": [
            [*nova, "api_db", "sync"],
            [*nova, "cell_v2", "map_cell0", "--database_connection", config.database(place, "nova_cell0")],
            [*nova, "cell_v2", "create_cell", "--name", "cell1", "--transport-url", "fake://",
             "--database_connection", config.database(place, "nova")],
            [*nova, "db", "sync"],
        ],
        "keystone": [
            [*keystone, "db_sync"],
            [*keystone, "fernet_setup", *owner],
            [*keystone, "credential_setup", *owner],
            [*keystone, *bootstrap, "--bootstrap-region-id", config.REGION],
        ],
        "glance": [[bin / "glance-manage", "--config-file", etc / "glance-api.conf", "db_sync"]],
        "placement": [[bin / "placement-manage", "--config-file", etc / "placement.conf", "db", "sync"]],
    }  # fmt: skip
    environment = {**_environment(place, venv), "OS_BOOTSTRAP_PASSWORD": place.secrets()["admin"]}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _run(place, f"tables-{name}", jobs[name], environment), jobs))


def _run(place: Place, name: str, commands: list[list], environment: dict[str, str]) -> None:
    path = place.logs / f"{name}.out"
    with path.open("ab") as log:
        for command in commands:
            if subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode:
                tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
                raise TestbedError(f"{Path(command[0]).name} {command[1]} failed\n--- {path}\n{tail}")


def _copy(template: Path, place: Place) -> None:
    for name in KEPT:
        # cp knows holes and file systems that share blocks.
        subprocess.run(["cp", "-a", "--reflink=auto", template / name, place.state], check=True)


def _move(before: Place, place: Place) -> None:
    """Write this testbed's addresses where the template's are."""
    lines = []
    for name, port in before.ports.items():
        old, new = f"//127.0.0.1:{port}", f"//127.0.0.1:@{place.ports[name]}"
        lines.append(f"UPDATE keystone.endpoint SET url = REPLACE(url, '{old}', '{new}');")
    lines.append("UPDATE keystone.endpoint SET url = REPLACE(url, ':@', ':');")  # no new port is taken for an old one
    column = "database_connection"
    lines.append(
        f"UPDATE nova_api.cell_mappings SET {column} = REPLACE({column}, '{before.socket}', '{place.socket}');"
    )
    _query(place, "\n".join(lines))


def _write_clients(place: Place) -> None:
    """clouds.yaml, which is JSON as well."""
    known = place.secrets()
    common = {"region_name": config.REGION, "identity_api_version": 3, "interface": "public"}

    def password(user, project):
        domains = {"user_domain_name": "Default", "project_domain_name": "Default"}
        auth = {"auth_url": place.auth_url, "username": user, "password": known[user], "project_name": project}
        return {**common, "auth": {**auth, **domains}}

    oidc = {
        "auth_url": place.auth_url, "identity_provider": "iam", "protocol": "openid", "access_token": "",
        "project_name": "demo", "project_domain_name": "Default",
    }  # fmt: skip
    clouds = {name: password(name, project) for name, project in (("admin", "admin"), *seed.PEOPLE.items())}
    clouds["demo-oidc"] = {**common, "auth_type": "v3oidcaccesstoken", "auth": oidc}
    path = place.state / "clouds.yaml"
    path.touch(0o600)
    path.write_text(json.dumps({"clouds": clouds}, indent=2) + "\n")


def _stop(place: Place, processes: Processes) -> None:
    # A second Ctrl-C would leave half of it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        processes.stop()
        if place.compute == "guests":
            _guests(place.compute).after_down(place)
    finally:
        signal.signal(signal.SIGINT, before)


def _remove(state: Path, place: Place | None) -> None:
    if (state / Place.FILE).exists():
        place = Place.load(state)
    if place:
        _stop(place, Processes(place))
    shutil.rmtree(state, ignore_errors=True)
    if state.exists():
        shutil.rmtree(state)

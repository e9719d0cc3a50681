# SPDX-License-Identifier: Apache-2.0
"""The udocker engine on a real supervisor, with the real app agent; a stand-in runs what the runtime would run."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agent_runtime import AGENT, eventually
from ansible_collections.dodas.cluster.plugins.lookup import supervisor
from ansible_collections.dodas.cluster.plugins.module_utils.configfiles import ConfigFile
from ansible_collections.dodas.cluster.plugins.module_utils.engine import app as engine
from ansible_collections.dodas.cluster.plugins.module_utils.engine import plainhost
from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError, parse
from ansible_collections.dodas.cluster.plugins.module_utils.engine.udocker import UdockerApp
from ports import free_port

IMAGE = "localhost/dodas/web:latest"
# A stand-in for the runtime: `run` serves the folder that is mounted, `exec` runs the command here.
RUNTIME = f"""#!/bin/sh
command=$1
shift
case $command in
run)
  for one; do case $one in
    --volume=*:/data:*) data=${{one#--volume=}}; data=${{data%%:*}} ;;
    --env-file=*) . "${{one#--env-file=}}" ;;
  esac; done
  exec {sys.executable} -m http.server --bind 127.0.0.1 --directory "$data" "$PORT" ;;
exec) shift; exec "$@" ;;
esac
"""


@pytest.fixture
def place(monkeypatch):
    """A host with a supervisor and an agent, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="dodas-"))  # a socket wants a short path
    monkeypatch.setattr(plainhost.PlainHost, "image_id", lambda self, name: "sha256:1" if name == IMAGE else None)
    monkeypatch.setattr(plainhost, "_crontab", lambda: "")
    monkeypatch.setattr(plainhost.PlainHost, "_keep_in_crontab", lambda *_: None)
    made = plainhost.PlainHost(folder / "host")
    made.make_folders()
    runtime = made.lib / "udocker"
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    archive = supervisor.LookupModule().run([])[0]
    made.unpack_supervisor(archive)
    for one in made.files():
        one.write()
    ConfigFile(made.lib / "dodas_agent.py", AGENT.read_text(encoding="utf-8"), owner="").write()
    made.start()
    try:
        yield made
    finally:
        made.remove()
        assert not made.root.exists() and made.processes() == []
        shutil.rmtree(folder)


def definition(port, **changes):
    return {
        "id": "/web",
        "env": {"PORT": port, "TOKEN": "s3cret-of-env"},
        "container": {
            "docker": {"image": IMAGE},
            "volumes": [{"hostPath": "/var/lib/dodas/web", "containerPath": "/data", "mode": "RW"}],
        },
        "portDefinitions": [{"port": port}],
        "healthChecks": [{"protocol": "HTTP", "path": "/", "portIndex": 0, "intervalSeconds": 1, "timeoutSeconds": 2},
                         {"protocol": "COMMAND", "command": {"value": "true"}, "intervalSeconds": 1}],
        **changes,
    }  # fmt: skip


FILES = [{"path": "/etc/dodas/web/config", "content": "colour\n"},
         {"path": "/etc/dodas/web/key", "content": "s3cret", "mode": "0600"}]  # fmt: skip


def make(place, port, files=FILES, **changes):
    return UdockerApp(parse(definition(port, **changes)), files, root=place.root, address="127.0.0.1")


def up(app):
    plan = app.plan()
    app.apply(plan, 20)
    app.wait_healthy(20)
    return plan


def pid(place):
    return place._control("pid", "dodas-web").strip()


def test_an_app_s_life(place):
    port = free_port()
    app = make(place, port)
    assert up(app)["restart"]
    assert engine.states(place.root)["web"]["state"] == "passing"
    assert (place.root / "var/lib/dodas/web").is_dir()
    assert (place.root / "etc/dodas/web/config").read_text() == "colour\n"
    first = pid(place)

    assert up(make(place, port)) == {"files": [], "restart": False}
    assert pid(place) == first

    changed = [{**FILES[0], "content": "colourful\n"}, FILES[1]]
    assert up(make(place, port, changed))["restart"]
    second = pid(place)
    assert second != first

    os.kill(int(second), 9)
    eventually(lambda: pid(place) not in ("0", second))
    make(place, port, changed).wait_healthy(20)

    (place.root / "etc/dodas/web/config").write_text("grey")
    assert [one.path.name for one in up(make(place, port, changed))["files"]] == ["config"]

    assert app.exists() and "GET /" in app.log(3)
    app.remove(purge=True)
    assert not app.exists(purge=True)
    eventually(lambda: engine.states(place.root) == {})
    assert "dodas-web" not in place._control("status", check=False)
    assert not [path for path in place.root.rglob("*web*") if place.lib not in path.parents]


def test_agent_restarts_what_keeps_failing(place):
    port = free_port()
    check = {"protocol": "HTTP", "path": "/index", "port": port, "intervalSeconds": 1, "maxConsecutiveFailures": 2}
    app = make(place, port, healthChecks=[{**check, "gracePeriodSeconds": 0}])
    app.apply(app.plan(), 20)
    first = pid(place)
    eventually(lambda: pid(place) not in ("0", first), 20)
    (place.root / "var/lib/dodas/web/index").touch()
    app.wait_healthy(20)


def test_secrets_are_in_files_of_mode_600_and_in_no_command_line(place):
    app = make(place, free_port())
    up(app)
    for path in place.root.rglob("*"):
        if path.is_file() and "s3cret" in path.read_text(errors="replace"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    shown = [Path(f"/proc/{one}/cmdline").read_bytes() for one in place.processes()]
    assert len(shown) >= 3 and not [line for line in shown if b"s3cret" in line]
    assert stat.S_ISSOCK(place.socket.stat().st_mode) and stat.S_IMODE(place.socket.stat().st_mode) == 0o600


def test_a_port_in_use_is_named_before_anything_is_written(place):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        port = server.server_address[1]
        with pytest.raises(engine.EngineError, match=rf"app web: port {port} \(port0\) is in use by"):
            up(make(place, port))
        assert not (place.root / "etc/dodas/web").exists()


def test_supervisor_that_was_killed_is_started_with_its_apps(place):
    app = make(place, free_port())
    up(app)
    supervisor = place._pid()
    os.kill(supervisor, 9)
    eventually(lambda: not place.is_up())
    place.reload()
    assert place._pid() != supervisor
    app.restarted = time.time()
    app.wait_healthy(20)
    assert len(subprocess.run(["pgrep", "-f", f"{place.lib}/dodas_agent.py"], capture_output=True).stdout.split()) == 1


@pytest.mark.parametrize(
    ("changes", "files", "message"),
    [
        ({"container": {"docker": {"image": IMAGE, "privileged": True}}}, [],
         "container.docker.privileged: the udocker engine does not do this: a plain user"),
        ({}, [{"path": "/etc/systemd/x", "content": ""}], r"files\[0\].path: /etc/systemd/x belongs to root"),
        ({}, [{"path": "/etc/dodas/../passwd", "content": ""}], r"files\[0\].path: /etc/passwd belongs to root"),
        ({}, [{**FILES[0], "owner": "consul"}], r"files\[0\].owner: the udocker engine cannot give a file to consul"),
    ],
)  # fmt: skip
def test_what_a_plain_user_cannot_have_is_refused_by_its_path(tmp_path, changes, files, message):
    with pytest.raises(DefinitionError, match=message):
        UdockerApp(parse(definition(8080, **changes)), files, root=tmp_path)


def test_low_ports_are_refused_to_a_plain_user(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(plainhost.PlainHost, "__init__", lambda self, root: None)
    with pytest.raises(
        DefinitionError, match=r"portDefinitions\[0\].port: the udocker engine does not do this: a plain"
    ):
        UdockerApp._refuse(parse(definition(80)))


def test_paths_of_the_machine_stay_and_those_of_the_host_are_below_its_folder(tmp_path):
    volumes = [{"hostPath": path, "containerPath": "/x", "mode": "RO"}
               for path in ("/cvmfs", "/etc/dodas/web", "/etc/dodasx", "/var/lib/dodas")]  # fmt: skip
    app = UdockerApp(parse(definition(8080, container={"docker": {"image": IMAGE}, "volumes": volumes})), root=tmp_path)
    found = [source for source, _target, _mode in app.app.volumes]
    assert found == ["/cvmfs", f"{tmp_path}/etc/dodas/web", "/etc/dodasx", f"{tmp_path}/var/lib/dodas"]


def test_an_image_that_is_missing_is_named(tmp_path):
    app = UdockerApp(parse(definition(8080)), root=tmp_path)
    with pytest.raises(engine.EngineError, match=f"image {IMAGE} is not in {tmp_path}/udocker"):
        app.plan()


def test_long_paths_have_their_socket_elsewhere_and_odd_ones_are_refused(tmp_path):
    long = plainhost.PlainHost(tmp_path / ("x" * 90))
    assert str(long.socket).startswith(f"/tmp/dodas-{os.geteuid()}/")
    with pytest.raises(engine.EngineError, match="only letters, digits"):
        plainhost.PlainHost(tmp_path / "a b")


def test_crontab_keeps_its_other_lines(tmp_path, monkeypatch):
    table = tmp_path / "table"
    program = tmp_path / "crontab"
    # A stand-in for crontab: a file.
    program.write_text(f"#!/bin/sh\ncase $1 in\n-l) cat {table} ;;\n-r) rm {table} ;;\n-) cat > {table} ;;\nesac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(plainhost, "_lingers", lambda: False)
    one, other = plainhost.PlainHost(tmp_path / "one"), plainhost.PlainHost(tmp_path / "other")
    assert one.keep() == "cron" and one.keep() == "cron" and other.keep() == "cron"
    assert len(table.read_text().splitlines()) == 2
    assert one.keep(False) == "" and other.boot() == "cron"
    assert other.keep(False) == "" and not table.exists()
    table.write_text("@daily true\n")
    one.keep()
    one.keep(False)
    assert table.read_text() == "@daily true\n"


def test_record_of_an_app_tells_the_agent_where_it_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(plainhost.PlainHost, "image_id", lambda *_: "sha256:1")
    app = UdockerApp(parse(definition(8080)), root=tmp_path, address="127.9.8.10")
    record = next(one for one in app.render() if one.path.name == "web.json")
    assert json.loads(record.content)["address"] == "127.9.8.10"

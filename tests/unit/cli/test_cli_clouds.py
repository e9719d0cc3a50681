# SPDX-License-Identifier: Apache-2.0
"""What the command line knows of clouds without asking one."""

import json
import uuid

import pytest
from click.testing import CliRunner

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec
from dodas import clouds, deployments, doctor, machine, services
from dodas.cli import main
from dodas.errors import DodasError

CLOUDS = """clouds:
  mysite: {auth: {auth_url: http://127.0.0.1:1/v3, username: a, password: hidden-here, project_name: p}}
  other: {}
"""
HOSTS = {"front-1": {"address": "10.88.0.5", "public_address": "192.0.2.9", "id": "a", "jump": None},
         "worker-1": {"address": "10.88.0.6", "public_address": None, "id": "b", "jump": "front-1"}}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DODAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    monkeypatch.setattr(machine, "become_root", lambda keep=None: None)
    monkeypatch.setattr(machine, "ensure_packages", lambda *_: None)
    (tmp_path / "clouds.yaml").write_text(CLOUDS)
    return tmp_path / "home"


@pytest.fixture
def dodas():
    """The command line, in this process; how it ended."""

    def run(*arguments, status=0, **environment):
        done = CliRunner().invoke(main, arguments, prog_name="dodas", env=environment)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, f"{arguments}: {done.exit_code}\n{done.output}"
        return done

    return run


@pytest.fixture
def recorded(home):
    """A deployment in a cloud that is recorded here."""

    def record(name="lab", **inputs):
        folder = home / "deployments" / name
        folder.mkdir(parents=True)
        source = deployments.ROOT / "templates/tier3.yaml"
        files = {"deployment.json": {"source": str(source), "backend": "openstack", "engine": "podman"},
                 "inputs.json": inputs,
                 "hosts.json": HOSTS}  # fmt: skip
        for file, value in files.items():
            (folder / file).write_text(json.dumps(value))
        (folder / "uuid").write_text(f"{uuid.uuid4()}\n")
        return deployments.Deployment.load(name)

    return record


def completed(dodas, words):
    place = len(words.split(" ")) - 1
    done = dodas(_DODAS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(place))
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_clouds_are_completed(dodas):
    assert completed(dodas, "dodas up --cloud ") == ["mysite", "other"]
    assert completed(dodas, "dodas down --cloud m") == ["mysite"]


@pytest.mark.parametrize("text", [None, "", "clouds: [", "clouds: text", "- 1"])
def test_what_is_no_file_of_clouds_completes_to_nothing(dodas, tmp_path, text):
    (tmp_path / "clouds.yaml").unlink()
    if text is not None:
        (tmp_path / "clouds.yaml").write_text(text)
    assert completed(dodas, "dodas up --cloud ") == []


def test_settings_are_completed_when_they_are_begun(dodas):
    assert "workers=" in completed(dodas, "dodas up -p w") and "cloud_image=" not in completed(dodas, "dodas up -p ")
    assert completed(dodas, "dodas up -p cloud_im") == ["cloud_image="]


def test_a_setting_that_there_is_not_is_refused_with_the_nearest(dodas, home):
    done = dodas("up", "--cloud", "mysite", "-p", "cloud_imagge=x", status=2)
    assert 'unknown setting "cloud_imagge"; did you mean "cloud_image"?' in done.output
    assert not home.exists()


def test_a_setting_is_not_for_this_machine(dodas):
    assert "cloud_image: for --backend openstack" in dodas("up", "-p", "cloud_image=x", status=2).output


def test_an_inventory_is_not_for_a_cloud(dodas):
    source = str(deployments.ROOT / "inventories/existing/hosts.yml")
    assert "backend openstack needs a TOSCA template" in dodas("up", source, "--cloud", "mysite", status=2).output


def test_engine_udocker_is_not_for_a_cloud(dodas):
    assert "engine udocker is for machines where you are not root" in dodas(
        "up", "--cloud", "mysite", "--engine", "udocker", status=2
    ).output  # fmt: skip


def test_a_cloud_that_does_not_answer_is_said_before_images_are_built(dodas, home):
    done = dodas("up", "--cloud", "mysite", status=1)
    assert "http://127.0.0.1:1/v3" in done.output and "building" not in done.output
    assert "hidden-here" not in done.output and not home.exists()


def test_a_cloud_that_is_not_in_the_file(dodas):
    assert "cloud mysiet is not in clouds.yaml" in dodas("up", "--cloud", "mysiet", status=1).output


def test_help_shows_the_settings_that_matter(dodas):
    text = dodas("up", "--help").output
    assert "--cloud NAME" in text and "cloud_image=" in text and "docs/openstack.md" in text
    documented = (deployments.ROOT / "docs/openstack.md").read_text(encoding="utf-8")
    assert [name for name in spec.SETTINGS if f"`{name}`" not in documented] == []


def test_inputs_of_a_cloud_are_remembered(recorded):
    lab = recorded(cloud_name="mysite", workers=1)
    assert lab.settings == {"cloud_name": "mysite"} and lab.is_remote and not lab.is_plain
    assert lab.addresses() == {"front-1": "10.88.0.5", "worker-1": "10.88.0.6"}


def test_hosts_are_reached_from_outside_or_through_the_front(recorded):
    lab = recorded(workers=1)
    front, worker = lab.ssh("front-1", "hostname"), lab.ssh("worker-1", "hostname")
    assert front[-2:] == ["root@192.0.2.9", "hostname"] and "HostKeyAlias=front-1" in front
    assert worker[-2:] == ["root@10.88.0.6", "hostname"]
    assert any(word.startswith("ProxyCommand=") and "root@192.0.2.9 -W" in word for word in worker)


def test_lists_and_mappings_are_read_as_such(recorded):
    lab = recorded(cloud_open_ports="[{port: 443}]", cloud_flavor="{front: large}", cloud_image="[")
    with pytest.raises(Exception, match="cloud_image"):
        assert lab.settings
    lab.inputs.pop("cloud_image")
    assert lab.settings == {"cloud_open_ports": [{"port": 443}], "cloud_flavor": {"front": "large"}}


def test_down_needs_to_know_which(dodas, recorded):
    recorded()
    assert "name it with --deployment" in dodas("down", "--cloud", "mysite", status=2).output
    assert "needs no --deployment" in dodas("down", "lab", "--deployment", "lab", status=2).output


def test_a_lost_deployment_is_found_by_name_or_uuid(monkeypatch):
    there = [{"name": "lab", "uuid": "1"}, {"name": "lab", "uuid": "2"}, {"name": "tier3", "uuid": "3"}]
    monkeypatch.setattr(clouds, "deployed", lambda _given: there)
    assert clouds.find("3") == clouds.find("tier3") == there[2]
    assert clouds.find("2") == there[1]
    with pytest.raises(DodasError, match=r"several deployments 'lab', say which by its UUID: lab \(1\), lab \(2\)$"):
        clouds.find("lab")
    with pytest.raises(DodasError, match=r"no deployment 'leb' \(it has: lab \(1\), lab \(2\), tier3 \(3\)\)"):
        clouds.find("leb")


def test_what_is_recorded_of_another_with_the_name_stays(recorded, monkeypatch):
    from dodas import cli

    lab = recorded()
    there = [{"name": "lab", "uuid": "other"}, {"name": "lab", "uuid": lab.uuid}]
    monkeypatch.setattr(clouds, "deployed", lambda _given: there)
    assert cli._lost(lab.uuid, "mysite").directory == lab.directory
    found = cli._lost("other", "mysite")
    assert found.uuid == "other" and found.directory != lab.directory and found.settings == {"cloud_name": "mysite"}


def test_the_doctor_of_a_cloud_says_what_the_login_lacks(dodas):
    done = dodas("doctor", "--cloud", "mysite", "--json", status=1)
    (first, login) = json.loads(done.stdout)["checks"]
    assert (first["name"], first["ok"]) == ("clouds.yaml", True)
    assert (login["name"], login["ok"]) == ("login", False) and "127.0.0.1:1" in login["found"]


def test_servers_that_went_or_failed_are_found(recorded, monkeypatch):
    lab = recorded(cloud_name="mysite", workers=1)
    there = {"front-1": {"status": "SHUTOFF"}, "worker-9": {"status": "ACTIVE"}}
    monkeypatch.setattr(clouds, "servers", lambda _one: there)
    check = doctor._cloud(lab, None)
    assert check.ok is False and "up --plan" in check.advice
    assert check.found == "worker-1 has no server; front-1 is SHUTOFF; worker-9 is not of the template"
    monkeypatch.setattr(clouds, "servers", lambda one: {host: {"status": "ACTIVE"} for host in one.hosts})
    assert doctor._cloud(lab, None).ok is True


def test_services_that_cannot_be_reached_do_not_stop_the_doctor(recorded, monkeypatch):
    lab = recorded(workers=1)

    def unreachable(*_):
        raise DodasError("front-1: no way to it by SSH")

    monkeypatch.setattr(deployments.Deployment, "entry", unreachable)
    with pytest.raises(DodasError, match="no way"):
        services.of(lab)
    assert doctor._services(lab).resolve[services.CREDENTIALS] == "10.88.0.5"

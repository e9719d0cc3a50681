# SPDX-License-Identifier: Apache-2.0
"""The life of a cluster in a cloud, in the order of the tests."""

import json
import shutil

import pytest

from clusters import ROOT, wait_for

NEW = ["front-1", "worker-1", "worker-2"]
METADATA = "curl --silent --output /dev/null --max-time 20 http://169.254.169.254/openstack"


def plan(dodas, *arguments):
    return json.loads(dodas("up", *arguments, "--plan", "--json", timeout=900).stdout)


def alive(lab):
    """Members of Consul that are alive, with their addresses."""
    rows = [line.split() for line in lab.run(lab.front, "consul members").splitlines()[1:]]
    return {row[0]: row[1].partition(":")[0] for row in rows if row[2] == "alive"}


def test_the_plan_says_what_would_be_made_and_makes_nothing(dodas, reality):
    found = plan(dodas, "--cloud", "site", "--name", "lab", "-p", 'cloud_prices={m1.medium: 0.2, m1.small: 0.1}')
    assert (sorted(found["plan"]["create"]), found["plan"]["remove"], found["errors"]) == (NEW, [], [])
    assert "0.4" in found["summary"] and "3 hosts" in found["summary"]
    assert dodas.json("list") == [] and [one for one in reality.everything()["server"] if "lab" in one["name"]] == []


def test_a_name_that_the_cloud_does_not_have(dodas):
    done = dodas("up", "--cloud", "site", "--name", "wrong", "-p", "cloud_image=debain-12", status=1, timeout=900)
    assert "debain-12" in done.stderr and "debian-12" in done.stderr
    assert dodas.json("list") == []


def test_a_cluster_made_with_a_token(dodas, lab, reality):
    assert sorted(reality.servers(lab.made)) == NEW
    front, worker = lab.hosts["front-1"], lab.hosts["worker-1"]
    assert front["public_address"] and front["jump"] is None
    assert worker["public_address"] is None and worker["jump"] == "front-1"
    assert alive(lab) == {name: one["address"] for name, one in lab.hosts.items()}
    (listed,) = [one for one in dodas.json("list", "--cloud", "site") if one["uuid"] == lab.made.uuid]
    assert listed["name"] == "lab" and listed["expires"]


def test_dimuon(dodas, lab, tmp_path):
    folder = tmp_path / "dimuon"
    shutil.copytree(ROOT / "examples/dimuon", folder)
    done = dodas("submit", str(folder), "--wait", "--name", "lab", "--json", timeout=900)
    found = json.loads(done.stdout.splitlines()[-1])  # after what the example's own last step prints
    assert (found["done"], found["failed"]) == (18, 0) and set(found["workers"]) == {"worker-1", "worker-2"}


def test_status_and_doctor_find_nothing_wrong(dodas, lab):
    found = dodas.json("status", "--name", "lab")
    assert found["complete"] and found["uuid"] == lab.made.uuid
    assert {name: one["id"] for name, one in found["hosts"].items()} == {n: o["id"] for n, o in lab.hosts.items()}
    checks = dodas.json("doctor", "--name", "lab")
    assert checks["ok"], checks
    # These two were asked through SSH: their ports are not open.
    assert {"issuer", "credentials", "cloud"} <= {one["name"] for one in checks["checks"] if one["ok"]}


def test_hosts_have_the_keys_that_were_made_for_them_and_one_account(lab):
    for host in NEW:
        made = (lab.folder / "ssh/hosts" / host / "host.pub").read_text().split()[:2]
        assert lab.run(host, "cat /etc/ssh/ssh_host_*_key.pub").split()[:2] == made
        ours = (lab.folder / "ssh/id_ed25519.pub").read_text().split()[:2]
        assert lab.run(host, "cat /root/.ssh/authorized_keys").split()[:2] == ours


def test_a_job_cannot_ask_the_metadata_service(lab):
    assert lab.run("worker-1", f"{METADATA}; echo $?").strip() == "0"
    assert lab.run("worker-1", f"setpriv --reuid 65534 --clear-groups {METADATA}; echo $?").strip() == "7"
    inside = f"podman exec -u dodas dodas-worker python3 -c '{ASK}'"
    assert "refused" in lab.run("worker-1", inside)


ASK = """import socket
try:
    socket.create_connection(("169.254.169.254", 80), 20)
    print("open")
except OSError as error:
    print(error)"""


def test_nothing_changes(dodas, lab):
    lives = {host: lab.life(host) for host in NEW}
    found = plan(dodas, "--name", "lab")
    assert [found["plan"][kind] for kind in ("create", "remove", "replace", "drift")] == [[], [], [], []]
    assert {host: lab.life(host) for host in NEW} == lives


def test_one_more_touches_no_other(dodas, lab, reality):
    lives = {host: lab.life(host) for host in NEW}
    found = dodas.json("scale", "workers=3", "--name", "lab", timeout=1800)
    assert found["complete"], found
    assert {host: lab.life(host) for host in NEW} == lives
    assert sorted(reality.servers(lab.made)) == [*NEW, "worker-3"] and len(lab.slots()) == 3


@pytest.mark.nightly
def test_a_server_that_was_deleted_is_made_again(dodas, lab, reality, tmp_path):
    before = lab.hosts["worker-2"]["id"]
    others = {host: lab.life(host) for host in ("front-1", "worker-1", "worker-3")}
    reality.connection.compute.delete_server(before)
    wait_for(lambda: "worker-2" not in reality.servers(lab.made), 120, "the server is gone")
    sick = json.loads(dodas("doctor", "--name", "lab", "--json", status=1).stdout)
    assert [one["found"] for one in sick["checks"] if one["name"] == "cloud"] == ["worker-2 has no server"]
    assert plan(dodas, "--name", "lab")["plan"]["create"] == ["worker-2"]
    found = dodas.json("up", "--name", "lab", timeout=1800)
    assert found["complete"], found
    assert lab.hosts["worker-2"]["id"] != before
    assert alive(lab) == {name: one["address"] for name, one in lab.hosts.items()}
    assert {host: lab.life(host) for host in others} == others
    batch = lab.submit(tmp_path / "jobs", 3, 20)
    wait_for(lambda: "worker-2" in lab.running(batch), 120, "a job runs on the new host")
    wait_for(lambda: lab.finished(batch) == 3, 120, "the jobs ended")


@pytest.mark.nightly
def test_what_was_changed_by_hand_is_seen(dodas, lab, reality):
    network = reality.connection.network
    (group,) = [one for one in network.security_groups() if lab.made.uuid[:8] in f"{one.description}{one.tags}"]
    rule = {"direction": "ingress", "protocol": "tcp", "ethertype": "IPv4"}
    network.create_security_group_rule(security_group_id=group.id, port_range_min=9618, port_range_max=9618, **rule)
    found = plan(dodas, "--name", "lab")
    assert any("9618" in text for text in [*found["plan"]["drift"], found["summary"]])
    dodas.json("up", "--name", "lab", timeout=900)
    assert plan(dodas, "--name", "lab")["plan"]["drift"] == []


def test_one_less_takes_its_server(dodas, lab, reality):
    found = dodas.json("scale", "workers=2", "--name", "lab", timeout=900)
    assert found["complete"], found
    assert sorted(reality.servers(lab.made)) == NEW and len(lab.slots()) == 2
    assert not (lab.folder / "ssh/hosts/worker-3").exists() and "worker-3" not in alive(lab)


def test_down_finds_everything_although_its_state_is_lost(dodas, lab, reality):
    made = lab.made
    assert len(reality.of(made)) > 10
    shutil.rmtree(lab.folder)
    done = dodas("down", "--cloud", "site", "--deployment", "0" * 8, status=2)
    assert made.uuid in done.stderr
    dodas("down", "--cloud", "site", "--deployment", made.uuid, timeout=600)
    assert reality.of(made) == []
    assert made.uuid not in [one["uuid"] for one in dodas.json("list", "--cloud", "site")]
    assert list((dodas.home / "deployments").glob("*")) == []


@pytest.mark.nightly
def test_a_network_of_the_site_without_floating_ips(dodas, cluster_of, reality, tmp_path):
    options = ("-p", "cloud_network=shared", "-p", "workers=1")
    assert dodas.json("up", "--cloud", "site", "--yes", "--name", "inside", *options, timeout=1800)["complete"]
    inside = cluster_of("inside")
    assert {(one["public_address"], one["jump"]) for one in inside.hosts.values()} == {(None, None)}
    assert reality.inside(inside.hosts["worker-1"]["address"], "shared")
    batch = inside.submit(tmp_path / "jobs", 1, 1)
    wait_for(lambda: inside.finished(batch) == 1, 120, "the job ended")
    made = inside.made
    dodas("down", "--name", "inside", timeout=600)
    assert reality.of(made) == []
    assert reality.connection.network.find_network("shared", ignore_missing=False)

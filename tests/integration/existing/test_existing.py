# SPDX-License-Identifier: Apache-2.0
"""A cluster on machines that are there already, from bare Debian to a job and back. Tests build on each other."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

from dodas import jobs
from dodas.deployments import ROOT, Deployment

HOSTS = ("front-1", "worker-1")
# Everything on a machine that is dodas's by its name or by what it says; packages' own files are not.
OURS = """
find /etc /usr/local /var /opt /srv /root /home /tmp /run -xdev -name '*dodas*' 2>/dev/null
grep -rIl dodas /etc /usr/local /var/lib/consul /root /home /var/spool 2>/dev/null
ls /var/lib/consul 2>/dev/null
systemctl list-units --all --plain --no-legend | grep -E 'dodas|consul'
systemctl list-unit-files --no-legend | grep dodas
command -v podman >/dev/null && podman ps --all --quiet && podman images --quiet
true
"""
JOB = """
set -e
cd $(mktemp -d)
cat > job <<END
executable = /bin/cat
arguments = /etc/hostname
output = out
log = log
should_transfer_files = YES
request_memory = 64
request_disk = 1MB
queue
END
condor_submit job >/dev/null
condor_wait -wait 90 log >/dev/null
condor_history -limit 1 -af ExitCode LastRemoteHost -file $(condor_config_val HISTORY)
cat out
"""
SIGNS = {}  # what a machine was like before


def test_check_mode_shows_what_would_change_and_changes_nothing(site, machines):
    for host in HOSTS:
        SIGNS[host] = (machines.run(host, OURS), _name_servers(machines, host), _packages(machines, host))
        assert SIGNS[host][0] == ""
    output, recap = site.play("up", "--check", "--diff")
    for host in HOSTS:
        assert recap[host]["changed"] > 0 and recap[host]["failed"] == recap[host]["unreachable"] == 0
        assert (machines.run(host, OURS), _name_servers(machines, host), _packages(machines, host)) == SIGNS[host]
    unit = "/etc/systemd/system/dodas-htcondor.service"
    for shown in ("+podman", "+consul", "+nameserver 127.0.0.1", unit, "(secret, changed)"):
        assert shown in output
    assert not (site.folder / "home/deployments").exists()


def test_unreachable_machine_is_named_before_another_is_changed(site, machines):
    nobody = re.sub(r"\d+$", "250", machines.addresses["worker-1"])
    site.groups["worker"]["hosts"]["worker-2"] = {"ansible_host": nobody}
    output, recap = site.play("up", ok=False)
    del site.groups["worker"]["hosts"]["worker-2"]
    assert recap["worker-2"]["unreachable"] == 1 and nobody in output
    assert all(recap[host]["changed"] == 0 and machines.run(host, OURS) == "" for host in HOSTS)


def test_user_without_root_is_told_what_to_set(site, machines):
    site.groups["worker"]["hosts"]["worker-1"]["ansible_become"] = False
    output, recap = site.play("up", ok=False)
    del site.groups["worker"]["hosts"]["worker-1"]["ansible_become"]
    words = "worker-1: tasks run as admin (it must be root: set ansible_user or ansible_become)"
    assert words in " ".join(output.split())
    assert all(recap[host]["changed"] == 0 and machines.run(host, OURS) == "" for host in HOSTS)


def test_port_in_use_is_named_with_its_process(site, machines):
    machines.run("front-1", "systemd-run --quiet --unit squatter python3 -m http.server 3128")
    output, _ = site.play("up", ok=False)
    process = machines.run("front-1", "systemctl show --property MainPID --value squatter")
    machines.run("front-1", "systemctl stop squatter")
    assert f"app squid: port 3128 (proxy) is in use by python3 (process {process})" in output


def test_up_goes_on_from_there_to_a_cluster(site, machines):
    _, recap = site.play("up")
    assert recap["front-1"]["changed"] > 0 and recap["worker-1"]["changed"] > 0
    assert site.recorded() == {name: {"address": machines.addresses[name]} for name in HOSTS}


def test_second_run_changes_nothing(site):
    output, recap = site.play("up", "--diff")
    assert [host for host, counts in recap.items() if counts["changed"]] == [], output
    _, recap = site.play("up", "--check")
    assert [host for host, counts in recap.items() if counts["changed"]] == []


def test_job_runs_on_the_worker(machines):
    printed = machines.run("front-1", f"podman exec --user dodas dodas-htcondor sh -c '{JOB}'").split()
    assert printed[0] == "0"
    assert printed[1].endswith("@worker-1") or "worker-1" in printed[1]
    assert printed[2] == "worker-1"
    assert machines.run("worker-1", ". /etc/os-release; echo $VERSION_CODENAME") == "trixie"


def test_a_plain_user_s_machine_joins_the_pool_without_root_or_podman(site, machines, monkeypatch, tmp_path):
    before = machines.run("campus-1", OURS), _packages(machines, "campus-1")
    site.groups["worker"]["hosts"]["campus-1"] = {
        "ansible_host": machines.addresses["campus-1"], "ansible_user": "physicist", "dodas_engine": "udocker",
    }  # fmt: skip
    _, recap = site.play("scale")
    assert recap["campus-1"]["changed"] > 0 and recap["campus-1"]["failed"] == 0
    assert recap["front-1"]["changed"] == recap["worker-1"]["changed"] == 0
    owners = machines.run("campus-1", "ps -o user= -C condor_startd,condor_master,supervisord,udocker").split()
    assert set(owners) == {"physicist"}
    assert _packages(machines, "campus-1") == before[1] and machines.run("campus-1", "command -v podman || true") == ""

    monkeypatch.setenv("DODAS_HOME", str(site.folder / "home"))
    folder = tmp_path / "dimuon"
    shutil.copytree(ROOT / "examples/dimuon", folder)
    submit = (folder / "dimuon.sub").read_text(encoding="utf-8")
    (folder / "dimuon.sub").write_text(f'requirements = Machine == "campus-1.node.consul"\n{submit}', encoding="utf-8")
    batch = jobs.Batch(Deployment("site", site.inventory, "existing"), folder)
    batch.submit()
    batch.wait(180, show=False)
    assert batch.results() == {"done": 18, "failed": 0, "workers": {"campus-1": 18}}
    batch.fetch()
    assert batch.finish() == 0

    _, recap = site.play("down", "--limit", "campus-1")
    assert (machines.run("campus-1", OURS), _packages(machines, "campus-1")) == before
    assert machines.run("campus-1", "ps -u physicist -o args= | grep -v sshd || true") == ""
    del site.groups["worker"]["hosts"]["campus-1"]
    site.forget("campus-1")


def test_nothing_listens_that_the_cluster_does_not_need(machines):
    listening = machines.run("worker-1", "ss -Hltn | awk '{print $4}'").split()
    open_ports = {int(one.rpartition(":")[2]) for one in listening if not one.startswith(("127.", "[::1]"))}
    assert open_ports <= {22, 8301, 9618}


def test_machine_leaves_alone_and_comes_back(site, machines):
    _, recap = site.play("down", "--limit", "worker-1")
    assert list(recap) == ["worker-1"]
    assert machines.run("worker-1", OURS) == ""
    site.forget("worker-1")
    _, recap = site.play("scale")
    assert recap["worker-1"]["changed"] > 0 and recap["front-1"]["changed"] == 0
    assert recap["front-1"]["ok"] < 5  # looked at by the probes alone


def test_down_leaves_packages_and_nothing_else(site, machines):
    site.play("down")
    with ThreadPoolExecutor() as pool:
        left = list(pool.map(lambda host: machines.run(host, OURS), HOSTS))
    assert left == ["", ""]
    for host in HOSTS:
        assert _name_servers(machines, host) == SIGNS[host][1]
        assert "consul" in _packages(machines, host) - SIGNS[host][2]
    assert not (site.folder / "home/deployments/site").exists()
    _, recap = site.play("down")
    assert [host for host, counts in recap.items() if counts["changed"]] == []


def _name_servers(machines, host):
    return machines.run(host, "cat /etc/resolv.conf")


def _packages(machines, host):
    return set(machines.run(host, "dpkg-query --show --showformat='${Package}\\n'").split())

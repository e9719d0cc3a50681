# SPDX-License-Identifier: Apache-2.0
"""What servers are told at their first boot."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.dodas.cluster.plugins.module_utils import cloudinit


@pytest.fixture
def seed(state):
    """What a host is told with some settings."""

    def told(host="worker-1", **settings):
        text = cloudinit.Seed(state, "test", settings)(host)
        assert text.startswith("#cloud-config\n") and text.isascii()
        return yaml.safe_load(text)

    return told


def test_a_host_has_the_key_that_was_made_for_it(seed, keys):
    found = seed()
    private, public = keys.host_key("worker-1")
    assert found["ssh_keys"] == {"ed25519_private": private, "ed25519_public": public}
    assert found["ssh_deletekeys"] is True and found["hostname"] == "worker-1"


def test_the_same_is_told_every_time(seed):
    assert seed() == seed()
    assert seed("worker-2")["ssh_keys"] != seed()["ssh_keys"]


def test_root_logs_in_with_the_deployments_key_and_nobody_else(seed, keys):
    found = seed()
    assert found["ssh_authorized_keys"] == [keys.public_key]
    assert (found["users"], found["disable_root"], found["ssh_pwauth"]) == ([], False, False)


def test_further_keys_as_text_or_list(seed):
    further = ["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b"]
    for given in (further, "\n".join(further)):
        assert seed(authorized_keys=given)["ssh_authorized_keys"][1:] == further


def test_mirror_and_proxy_of_packages(seed):
    assert "apt" not in seed()
    found = seed(apt_mirror="http://mirror.example.org/debian/", proxy="http://proxy.example.org:3128")["apt"]
    assert found["primary"] == [{"arches": ["default"], "uri": "http://mirror.example.org/debian"}]
    assert found["security"] == [{"arches": ["default"], "uri": "http://mirror.example.org/debian-security"}]
    assert found["http_proxy"] == found["https_proxy"] == "http://proxy.example.org:3128"


def test_sshd_takes_its_configuration(seed, keys, tmp_path):
    (file,) = seed()["write_files"]
    config = tmp_path / "sshd_config"
    config.write_text(f"HostKey {keys.folder}/hosts/worker-1/host\n{file['content']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    command = ["/usr/sbin/sshd", "-T", "-f", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "passwordauthentication no" in done.stdout and "permitrootlogin without-password" in done.stdout
    assert file["path"].startswith("/etc/ssh/sshd_config.d/") and "maxstartups 100:30:300" in done.stdout


def test_volumes_are_mounted_where_they_have_a_place(seed):
    volumes = [{"node": "worker", "size_gb": 9, "mount": "/scratch"}, {"node": "worker", "size_gb": 9, "mount": None},
               {"node": "front", "size_gb": 9, "mount": "/data"}]  # fmt: skip
    found = seed(volumes=volumes)
    assert found["runcmd"] == [[cloudinit.VOLUMES, "/scratch"]]
    assert [one["path"] for one in found["write_files"]][1:] == [cloudinit.VOLUMES]
    assert "runcmd" not in seed(volumes=volumes[2:]) and "runcmd" not in seed()


# What lsblk and blkid say of disks vda (the system's), vdb and vdc; `labels` has a line for each file system.
LSBLK = """case "$*" in
  *--nodeps*) printf '/dev/vda\\n/dev/vdb\\n/dev/vdc\\n';;
  */dev/vda) printf 'vda\\nvda1\\n';;
  *) echo "${2##*/}";;
esac"""
BLKID = """case "$1" in
  --label) grep -q " $2$" labels;;
  *) grep -q "^$2 " labels;;
esac"""


@pytest.fixture
def volumes(tmp_path):
    """Runs the program with disks of a shell's imagination; (its exit status, file systems, the host's mounts)."""
    programs = {"lsblk": LSBLK, "blkid": BLKID, "mkfs.ext4": 'echo "$4 $3" >>labels', "mount": 'echo "$1" >>mounted'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "labels").touch()
    script = cloudinit.MOUNTING.replace("/etc/fstab", "fstab")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*folders):
        for name in ("fstab", "mounted"):
            (tmp_path / name).write_text("")
        folders = [str(tmp_path / one) for one in folders]
        done = subprocess.run(["sh", "-c", script, "dodas-volumes", *folders], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=20, check=False)  # fmt: skip
        read = [(tmp_path / name).read_text().replace(f"{tmp_path}/", "") for name in ("labels", "fstab", "mounted")]
        return done.returncode, *(text.splitlines() for text in read)

    return run


def test_empty_volumes_get_a_file_system(volumes):
    status, labels, fstab, mounted = volumes("scratch", "data")
    assert (status, mounted) == (0, ["scratch", "data"])
    assert labels == ["/dev/vdb dodas-volume-1", "/dev/vdc dodas-volume-2"]
    assert [line.split()[1] for line in fstab] == ["scratch", "data"]


def test_what_is_on_a_volume_stays(volumes, tmp_path):
    (tmp_path / "labels").write_text("/dev/vdc dodas-volume-1\n/dev/vdb somebody\n")
    assert volumes("scratch") == (0, ["/dev/vdc dodas-volume-1", "/dev/vdb somebody"],
                                  ["LABEL=dodas-volume-1 scratch ext4 defaults,nofail 0 2"], ["scratch"])  # fmt: skip


def test_a_volume_that_is_not_there_is_an_error(volumes, tmp_path):
    (tmp_path / "labels").write_text("/dev/vdc other\n/dev/vdb somebody\n")
    status, labels, _fstab, mounted = volumes("scratch")
    assert status == 1 and len(labels) == 2 and mounted == []


def test_it_fits_what_clouds_take(seed, state):
    settings = {"authorized_keys": ["ssh-rsa " + "A" * 700] * 20}
    assert len(cloudinit.Seed(state, "test", settings)("worker-1").encode()) < 48000  # 64 KiB in base64

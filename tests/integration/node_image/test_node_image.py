# SPDX-License-Identifier: Apache-2.0
"""The disk image of a host in a cloud, as `./dodas images build --format qcow2` makes it: what is on it, whether it
starts with either firmware, and what a cloud is told of it."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_root
from clusters import ROOT
from dodas import machine
from openstack_testbed import testbed_fixture

pytestmark = pytest.mark.nightly

NODE = node.load(ROOT / "nodes/debian-12", ROOT)
# Emulated, as machines that run tests are often virtual themselves and have no room for another.
BOOT_TIMEOUT = 1500
FIRMWARE = Path("/usr/share/OVMF")
# Run on the host at the end of its first boot; each line tells one thing.
PROBE = """\
exec > /dev/ttyS0 2>&1
tell() { printf '\\nprobe %s: %s\\n' "$1" "$2"; }
tell kernel "$(uname -r)"
tell firmware "$(if [ -d /sys/firmware/efi ]; then echo uefi; else echo bios; fi)"
tell root "$(df --output=size -BM / | tail -n 1 | tr -dc 0-9)"
tell hostname "$(hostname)"
tell machine "$(cat /etc/machine-id)"
tell address "$(ip -4 -o addr show scope global | wc -l)"
tell keys "$(ls /etc/ssh/ssh_host_*_key | wc -l)"
tell sources "$(grep -c '^deb' /etc/apt/sources.list)"
tell failed "$(systemctl --no-pager --plain --no-legend --failed | cut -d ' ' -f 1 | tr '\\n' ' ')"
tell ssh "$(systemctl is-active ssh)"
tell consul "$(systemctl is-enabled consul) $(consul version | head -n 1)"
tell sudo "$(runuser -u debian -- sudo -n id -un)"
tell images "$(podman images --format '{{.Repository}}:{{.Tag}}' | tr '\\n' ' ')"
tell container "$(podman run --rm --network=host --entrypoint=/bin/echo localhost/dodas/conditions:latest runs)"
tell end now
poweroff
"""

testbed = testbed_fixture(compute="fake")


@pytest.fixture(scope="module")
def built():
    """What the command says of the image that it has built, or that was there."""
    command = [ROOT / "dodas", "images", "build", "debian-12", "--format", "qcow2", "--yes", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def manifest(built):
    return json.loads(Path(built["path"]).with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def raw(built, tmp_path_factory):
    """The disk as a host sees it."""
    path = tmp_path_factory.mktemp("raw") / "disk"
    run("qemu-img", "convert", "-O", "raw", built["path"], path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def root(built, tmp_path_factory):
    """The root file system."""
    path = tmp_path_factory.mktemp("unpacked") / "root"
    node_root.unpack(built["path"], path)
    yield path
    shutil.rmtree(path)


def run(*command, timeout=600):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=True).stdout


def test_it_is_named_by_its_content_and_not_built_twice(built, manifest):
    assert built["content"] == NODE.content == manifest["content"]
    before = Path(built["path"]).stat()
    again = json.loads(run(ROOT / "dodas", "images", "build", "--format", "qcow2", "--yes", "--json"))
    assert again == [built]
    assert Path(built["path"]).stat().st_ino == before.st_ino


def test_partitions_and_boot_loaders(raw, tmp_path):
    table = json.loads(run("sfdisk", "--json", raw))["partitiontable"]
    assert [one["name"] for one in table["partitions"]] == ["bios", "efi", "root"]
    assert "No errors" in run("sfdisk", "--verify", raw)
    with raw.open("rb") as stream:
        assert b"GRUB" in stream.read(512)
        stream.seek(table["partitions"][0]["start"] * 512)
        assert stream.read(2**20).strip(b"\0")
    run("mcopy", "-n", "-i", f"{raw}@@{table['partitions'][1]['start'] * 512}", "::/EFI/BOOT/BOOTX64.EFI", tmp_path)
    assert (tmp_path / "BOOTX64.EFI").read_bytes()[:2] == b"MZ"


def test_the_file_system_is_whole(raw, tmp_path):
    start, length = node_root.partition(raw)
    part = ("iflag=skip_bytes,count_bytes", f"skip={start}", f"count={length}", "conv=sparse", "status=none")
    run("dd", f"if={raw}", f"of={tmp_path / 'root'}", "bs=1M", *part)
    run("e2fsck", "-fn", tmp_path / "root")
    assert run("e2label", tmp_path / "root") == "dodas-root\n"


def test_what_starts_it(root):
    (line,) = (root / "etc/fstab").read_text().splitlines()
    assert line.split()[:3] == ["LABEL=dodas-root", "/", "ext4"]
    for name in ("vmlinuz", "initrd.img"):
        assert f"/{name}" in (root / "boot/grub/grub.cfg").read_text()
        assert (root / os.readlink(root / name).lstrip("/")).is_file()


def test_cloud_init_is_set_up(root):
    settings = yaml.safe_load((root / "etc/cloud/cloud.cfg.d/50-dodas.cfg").read_text())
    assert settings["datasource_list"] == ["NoCloud", "ConfigDrive", "OpenStack", "None"]
    assert settings["apt"]["preserve_sources_list"] is False
    user = yaml.safe_load((root / "etc/cloud/cloud.cfg").read_text())["system_info"]["default_user"]
    assert (user["name"], user["lock_passwd"]) == (NODE.properties["os_admin_user"], True)
    wanted = root / "etc/systemd/system"
    assert (wanted / "multi-user.target.wants/systemd-networkd.service").is_symlink()
    assert (root / "etc/systemd/system/cloud-init.target.wants").is_dir() or list(wanted.glob("*/cloud-init*"))
    for name in ("consul.service", "podman.service", "apt-daily.timer"):
        assert not list(wanted.glob(f"*.wants/{name}")), name


def test_no_secret_and_nobodys_identity_is_on_it(root):
    assert not list(root.glob("etc/ssh/ssh_host_*"))
    assert (root / "etc/machine-id").read_text() == ""
    assert not list(root.glob("var/lib/cloud/*"))
    assert not list(root.glob("root/.ssh/*"))
    assert not list(root.glob("home/*"))
    for line in (root / "etc/shadow").read_text().splitlines():
        assert re.match(r"[!*]", line.split(":")[1]), f"{line.split(':')[0]} has a password"
    assert (root / "etc/apt/sources.list").read_text() == ""
    assert not list(root.glob("etc/apt/sources.list.d/*"))
    assert not list(root.glob("var/lib/apt/lists/*_*"))


def test_packages_are_those_of_the_roles_and_named_with_their_versions(root, manifest):
    shown = run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n")
    installed = dict(line.split() for line in shown.splitlines())
    assert manifest["packages"] == installed
    assert set(NODE.packages) | {"consul"} <= set(installed)


def test_container_images_are_in_it_read_only(root):
    found = json.loads((root / "usr/lib/dodas/images/overlay-images/images.json").read_text())
    names = {name for image in found for name in image["names"]}
    assert {image.reference for image in NODE.images} <= names
    assert {f"localhost/dodas/{image.name}:latest" for image in NODE.images} <= names
    assert "/usr/lib/dodas/images" in (root / "etc/containers/storage.conf").read_text()
    programs = list(root.glob("usr/lib/dodas/images/overlay/*/diff/usr/sbin/nginx"))
    assert programs
    assert stat.S_IMODE(programs[0].stat().st_mode) == 0o755


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_starts(built, tmp_path, firmware):
    machine.ensure_packages(True, ("qemu-system-x86", "ovmf", "mtools", "dosfstools"), "starting disk images")
    data = {"hostname": "probe", "runcmd": [["sh", "-c", PROBE]]}
    (tmp_path / "user-data").write_text("#cloud-config\n" + json.dumps(data))
    (tmp_path / "meta-data").write_text("instance-id: probe\n")
    with (tmp_path / "seed").open("wb") as stream:
        stream.truncate(2**21)
    run("/usr/sbin/mkfs.vfat", "-n", "CIDATA", tmp_path / "seed")
    run("mcopy", "-i", tmp_path / "seed", tmp_path / "user-data", tmp_path / "meta-data", "::")
    # Larger than the image, so that it has to grow.
    run("qemu-img", "create", "-f", "qcow2", "-b", built["path"], "-F", "qcow2", tmp_path / "disk", "8G")
    drives = [f"if=virtio,format=qcow2,file={tmp_path / 'disk'}"]
    drives.append(f"if=virtio,format=raw,readonly=on,file={tmp_path / 'seed'}")
    if firmware == "uefi":
        shutil.copy(FIRMWARE / "OVMF_VARS.fd", tmp_path / "vars")
        drives.append(f"if=pflash,format=raw,readonly=on,file={FIRMWARE / 'OVMF_CODE.fd'}")
        drives.append(f"if=pflash,format=raw,file={tmp_path / 'vars'}")
    command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
               "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{tmp_path / 'console'}",
               "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
               "-device", "virtio-rng-pci", *(word for drive in drives for word in ("-drive", drive))]  # fmt: skip
    try:
        subprocess.run(command, timeout=BOOT_TIMEOUT, check=True, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        console = (tmp_path / "console").read_text(errors="replace")
        pytest.fail(f"not off after {BOOT_TIMEOUT} s; its console ends with:\n{console[-3000:]}")
    found = dict(re.findall(r"^probe (\w+): (.*?) *\r?$", (tmp_path / "console").read_text(errors="replace"), re.M))
    assert found["firmware"] == firmware
    assert found["failed"] == ""
    assert int(found["root"]) > 7000, "it took the whole disk"
    assert found["hostname"] == "probe"
    assert re.fullmatch("[0-9a-f]{32}", found["machine"])
    assert found["address"] == "1"
    assert int(found["keys"]) >= 1
    assert int(found["sources"]) >= 1
    assert (found["ssh"], found["sudo"]) == ("active", "root")
    assert found["consul"].startswith("disabled Consul v1.")
    assert {image.reference for image in NODE.images} <= set(found["images"].split())
    assert found["container"] == "runs"
    assert found["end"] == "now"


def test_a_cloud_gets_it_once_and_is_told_what_it_is(built, testbed, monkeypatch):
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(testbed.clouds_file))
    command = (ROOT / "dodas", "images", "build", "--format", "qcow2", "--cloud", "demo", "--yes", "--json")
    connection = testbed.connection("demo")
    identifiers = set()
    for _again in range(2):
        (found,) = json.loads(run(*command))
        identifiers.add(found["cloud_id"])
    (identifier,) = identifiers
    try:
        (listed,) = json.loads(run(ROOT / "dodas", "images", "list", "--format", "qcow2", "--cloud", "demo", "--json"))
        assert listed["cloud_id"] == identifier
        image = connection.image.get(f"/images/{identifier}").json()
        assert (image["status"], image["disk_format"], image["visibility"]) == ("active", "qcow2", "private")
        assert NODE.properties.items() <= image.items()
        assert (image["dodas_content"], image["dodas_base"]) == (NODE.content, NODE.base)
        assert image["size"] == Path(built["path"]).stat().st_size
        assert image["min_disk"] * 2**30 >= image["virtual_size"] > 2**30
        assert image["name"] == NODE.reference
    finally:
        connection.image.delete_image(identifier)

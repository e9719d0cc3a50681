# SPDX-License-Identifier: Apache-2.0
"""Folders of disk images: the hash of what goes in, what is wrong with them, and which image of a cloud is taken."""

from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import node
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError

ROOT = Path(__file__).resolve().parents[3]
DESCRIPTION = """\
suite: bookworm
packages: [systemd-sysv]
roles:
  base: [base_packages, base_time_package]
earlier:
  bullseye: [consul]
images: [squid]
properties:
  os_distro: debian
"""


@pytest.fixture
def project(tmp_path):
    write(tmp_path, "containers/base/rootfs.yaml", "suite: trixie\npackages: [python3]\n")
    write(tmp_path, "containers/squid/Containerfile", "FROM localhost/dodas/base\n")
    write(tmp_path, "containers/other/Containerfile", "FROM localhost/dodas/base\n")
    write(tmp_path, "roles/base/defaults/main.yml", "base_packages: [curl]\nbase_time_package: chrony\nbase_x: 1\n")
    write(tmp_path, "nodes/debian-12/node.yaml", DESCRIPTION)
    write(tmp_path, "nodes/debian-12/root/etc/fstab", "LABEL=x / ext4\n")
    write(tmp_path, "nodes/debian-12/customize", "true\n")
    return tmp_path


def write(project, path, text):
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    (project / path).write_text(text)


def change(project, old, new, path="nodes/debian-12/node.yaml"):
    text = (project / path).read_text()
    assert old in text
    write(project, path, text.replace(old, new))


def load(project):
    return node.load(project / "nodes/debian-12", project)


def test_what_goes_in(project):
    found = load(project)
    assert found.packages == ["chrony", "curl", "systemd-sysv"]
    assert [image.name for image in found.images] == ["squid"]
    assert [image.name for image in found.parents] == ["base"], "built with it, but not in it by itself"
    assert found.reference == f"dodas-debian-12-{found.content}"
    assert node.catalogue(project / "nodes", project) == {"debian-12": found}


@pytest.mark.parametrize(
    ("alter", "changed"),
    [
        (lambda p: change(p, "systemd-sysv", "systemd"), "base content"),
        (lambda p: change(p, "bullseye: [consul]", "bullseye: [consul, pipexec]"), "base content"),
        (lambda p: change(p, "os_distro: debian", "os_distro: other"), "base content"),
        (lambda p: change(p, "[curl]", "[curl, procps]", "roles/base/defaults/main.yml"), "base content"),
        (lambda p: write(p, "nodes/debian-12/root/etc/fstab", "LABEL=y / ext4\n"), "base content"),
        (lambda p: (p / "nodes/debian-12/customize").chmod(0o755), "base content"),
        (lambda p: write(p, "nodes/debian-12/root/new", ""), "base content"),
        (lambda p: change(p, "[squid]", "[squid, other]"), "content"),
        (lambda p: write(p, "containers/squid/entry", "run"), "content"),
        (lambda p: change(p, "python3", "python3, curl", "containers/base/rootfs.yaml"), "content"),
        (lambda p: change(p, "base_x: 1", "base_x: 2", "roles/base/defaults/main.yml"), ""),
        (lambda p: change(p, "[systemd-sysv]", "[systemd-sysv, curl]"), ""),
        (lambda p: change(p, "suite:", "# why\nsuite:"), ""),
        (lambda p: write(p, "containers/other/entry", "run"), ""),
        (lambda p: (p / "nodes/debian-12/root/etc/fstab").touch(), ""),
    ],
)
def test_the_hash_changes_with_what_goes_in_and_only_then(project, alter, changed):
    before = load(project)
    alter(project)
    after = load(project)
    assert {name for name in ("base", "content") if getattr(before, name) != getattr(after, name)} == set(
        changed.split()
    )


def test_the_hash_does_not_depend_on_where_the_project_is(project, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "p"
    before = load(project).content
    project.rename(moved)
    assert load(moved).content == before
    moved.rename(project)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("suite: bookworm\n", "", "debian-12/node.yaml: needs exactly suite, packages, roles, earlier, images"),
        ("suite: bookworm", "suite: bookworm\nsuites: 1", "needs exactly"),
        ("suite: bookworm", "suite: 12", "node.yaml: suite must be text"),
        ("suite: bookworm", "suite: [", "node.yaml: while parsing"),
        ("[systemd-sysv]", "systemd-sysv", "node.yaml: packages must be a list"),
        ("[systemd-sysv]", "[1]", "node.yaml: packages must be a list of names"),
        ("[consul]", "consul", "node.yaml: earlier.bullseye must be a list of names"),
        ("[base_packages, base_time_package]", "base_packages", "node.yaml: roles.base must be a list of names"),
        ("base_time_package", "base_tim_package", "defaults/main.yml has no variable base_tim_package"),
        ("  base: [", "  bases: [", "node.yaml: roles.bases: "),
        ("[squid]", "[squit]", "node.yaml: images: no container image 'squit': there are base, other, squid"),
        ("os_distro: debian", "os_version: 12", "node.yaml: properties.os_version must be text"),
    ],
)
def test_what_is_wrong_is_named(project, old, new, message):
    change(project, old, new)
    with pytest.raises(ImageError) as caught:
        load(project)
    assert message in str(caught.value)


def test_no_folder_and_no_image_of_that_name(project):
    with pytest.raises(ImageError, match="nowhere: is no folder of disk images"):
        node.catalogue(project / "nowhere", project)
    every = node.catalogue(project / "nodes", project)
    assert node.named(every, []) == node.named(every, ["debian-12"]) == list(every.values())
    with pytest.raises(ImageError, match="no disk image 'debian-13': there are debian-12"):
        node.named(every, ["debian-13"])


def test_which_image_of_a_cloud_is_taken(project):
    wanted = load(project)
    exact = {"id": "1", "dodas_content": wanted.content, "dodas_base": wanted.base, "dodas_built": "2026-01-01"}
    older = {**exact, "id": "2", "dodas_built": "2025-12-31"}
    near = {"id": "3", "dodas_content": "x", "dodas_base": wanted.base, "dodas_built": "2026-03-01"}
    nearer = {**near, "id": "4", "dodas_built": "2026-04-01"}
    unready = {**exact, "id": "5", "status": "saving", "dodas_built": "2026-05-01"}
    others = [{"id": "6", "os_distro": "debian"}, {"id": "7", "dodas_content": "x", "dodas_base": "y"}]
    assert node.choose([*others, near, older, exact, nearer, unready], wanted) == exact
    assert node.choose([*others, near, nearer, unready], wanted) == nearer
    assert node.choose([*others, unready], wanted) is None


def test_the_image_of_the_project_has_what_the_roles_install():
    found = node.load(ROOT / "nodes/debian-12", ROOT)
    assert {"curl", "chrony", "podman", "crun", "netavark", "cloud-init", "openssh-server"} <= set(found.packages)
    assert found.earlier["bullseye"][0] == "consul"
    apps = {"identity", "credentials", "squid", "conditions", "htcondor", "worker"}
    assert {image.name for image in found.images} == apps
    wanted = {"os_distro": "debian", "os_version": "12", "os_admin_user": "debian", "hw_disk_bus": "virtio"}
    assert wanted.items() <= found.properties.items()
    assert not list(found.folder.rglob("*ssh_host*"))

# SPDX-License-Identifier: Apache-2.0
"""A disk image before a real image service: uploaded once, with its properties, whole; and through faults."""

import hashlib
import subprocess

import pytest

import openstack_faults as faults
from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build, node_upload
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError

PROPERTIES = {"os_distro": "debian", "os_version": "12", "os_admin_user": "debian", "hw_disk_bus": "virtio"}


@pytest.fixture
def one(tmp_path):
    content = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    return node.Node("test", tmp_path, content, f"b{content}", "bookworm", [], {}, [], [], PROPERTIES)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(node_upload, "PAUSE", 0.1)


@pytest.fixture
def built(tmp_path):
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1500M"], check=True)
    manifest = {"size_mb": 1500, "built": "2026-01-01T00:00:00Z", "sha512": node_build._sha512(path)}
    return node_build.Built(path, manifest)


@pytest.fixture
def connect(testbed, monkeypatch):
    """Log in with a clouds.yaml; images of the test go afterwards."""

    def connect(clouds_file):
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds_file))
        return node_upload.connect("demo")

    yield connect
    glance = connect(testbed.clouds_file)
    for image in glance.images(tag=node_upload.TAG):
        if image["name"].startswith("dodas-test-"):
            glance.cloud.delete("image", f"/images/{image['id']}")


def test_it_is_there_once_with_its_properties(connect, testbed, one, built):
    glance = connect(testbed.clouds_file)
    assert glance.present(one) is None
    image = glance.upload(one, built)
    assert glance.upload(one, built)["id"] == image["id"] == glance.present(one)["id"]
    assert PROPERTIES.items() <= image.items()
    assert (image["dodas_content"], image["dodas_base"], image["min_disk"]) == (one.content, one.base, 2)
    assert (image["status"], image["size"], image["tags"]) == ("active", built.size, ["dodas"])
    newer = node.Node(**{**vars(one), "content": "0" * 16})
    assert glance.present(newer) is None
    assert node.choose(glance.images(), newer)["id"] == image["id"], "all but its container images are the same"


@pytest.mark.parametrize("broken", [faults.status(503), faults.reset, faults.lost, faults.status(401)])
def test_an_upload_that_breaks_off_is_repeated(connect, faulty, faulty_clouds, one, built, broken):
    glance = connect(faulty_clouds)
    fault = faulty.fault("PUT image /file$", broken)
    image = glance.upload(one, built)
    assert fault.hits == 1
    assert (image["status"], image["size"]) == ("active", built.size)
    assert [found["id"] for found in glance.images(name=one.reference)] == [image["id"]]


def test_the_answer_that_an_image_was_made_is_lost(connect, faulty, faulty_clouds, one, built):
    glance = connect(faulty_clouds)
    fault = faulty.fault("POST image /images$", faults.lost)
    image = glance.upload(one, built)
    assert fault.hits == 1
    assert [found["id"] for found in glance.images(name=one.reference)] == [image["id"]]


def test_one_that_cannot_be_uploaded_leaves_nothing(connect, faulty, faulty_clouds, one, built):
    glance = connect(faulty_clouds)
    faulty.fault("PUT image /file$", faults.status(403, message="no room for it"), times=10)
    with pytest.raises(ImageError, match="403: no room for it"):
        glance.upload(one, built)
    assert glance.images(name=one.reference) == []

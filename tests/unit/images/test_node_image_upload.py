# SPDX-License-Identifier: Apache-2.0
"""Uploads of disk images: what is remembered of them, when they break off, and what is not what was sent.

They go to a real image service in tests/conformance/openstack and tests/integration/node_image.
"""

import datetime as dt
import hashlib

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build, node_upload
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError


class Cloud:
    """An image service's answers; `fail` makes that many uploads break off, `spoil` changes what arrives."""

    name, project_id = "test", "us"

    def __init__(self, images=(), fail=0, spoil=b""):
        self.kept = {one["id"]: one for one in images}
        self.fail, self.spoil, self.sent = fail, spoil, 0

    def list(self, _service, _path, _key, limit, **wanted):
        return [one for one in self.kept.values() if all(one.get(key) == value for key, value in wanted.items())]

    def post(self, _service, _path, body, find):
        self.kept["new"] = {**body, "id": "new", "status": "queued", "owner": self.project_id,
                            "created_at": f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"}  # fmt: skip
        return self.kept["new"] if find() else None

    def send(self, _service, path, stream, timeout):
        self.sent += 1
        content = stream.read()
        if self.sent <= self.fail:
            raise ApiError("image: PUT: 503: later", "image", 503)
        content += self.spoil
        digest = hashlib.sha512(content).hexdigest()
        arrived = {"size": len(content), "os_hash_algo": "sha512", "os_hash_value": digest}
        self.kept["new"] |= {"status": "active", **arrived}

    def get(self, _service, path):
        return self.kept[path.rpartition("/")[2]]

    def delete(self, _service, path):
        del self.kept[path.rpartition("/")[2]]

    def pause(self, _seconds):
        pass


@pytest.fixture
def one(tmp_path):
    return node.Node("debian-12", tmp_path, "c0", "b0", "bookworm", [], {}, [], [], {"os_distro": "debian"})


@pytest.fixture
def built(tmp_path):
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"disk")
    manifest = {"size_mb": 2049, "built": "2026-01-01T00:00:00Z", "sha512": hashlib.sha512(b"disk").hexdigest()}
    return node_build.Built(path, manifest)


def test_it_is_uploaded_once_with_what_it_is(one, built):
    cloud = Cloud()
    steps = []
    image = node_upload.Glance(cloud).upload(one, built, progress=lambda *step: steps.append(step[0]))
    assert (image["name"], image["dodas_content"], image["dodas_base"]) == ("dodas-debian-12-c0", "c0", "b0")
    assert (image["os_distro"], image["visibility"], image["tags"]) == ("debian", "private", ["dodas"])
    assert image["min_disk"] == 3, "2049 MB are more than 2 GB"
    assert steps == ["upload to test"] * 2
    assert node_upload.Glance(cloud).upload(one, built) == image
    assert cloud.sent == 1


def test_an_upload_that_breaks_is_begun_again(one, built):
    cloud = Cloud(fail=2)
    assert node_upload.Glance(cloud).upload(one, built)["size"] == 4
    assert cloud.sent == 3


def test_one_that_always_breaks_leaves_nothing(one, built):
    cloud = Cloud(fail=3)
    with pytest.raises(ImageError, match="503: later"):
        node_upload.Glance(cloud).upload(one, built)
    assert cloud.kept == {}


def test_what_arrived_otherwise_than_it_was_sent_goes(one, built):
    cloud = Cloud(spoil=b"!")
    with pytest.raises(ImageError, match="image new: size is 5 after the upload, not 4"):
        node_upload.Glance(cloud).upload(one, built)
    assert cloud.kept == {}


def test_what_broke_off_long_ago_is_removed_and_nothing_else(one, built):
    def unfinished(identifier, hours, **other):
        created = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)
        return {"id": identifier, "name": one.reference, "status": "saving", "owner": "us", "tags": ["dodas"],
                "created_at": f"{created:%Y-%m-%dT%H:%M:%SZ}", **other}  # fmt: skip

    cloud = Cloud([unfinished("old", 5), unfinished("running", 1), unfinished("theirs", 5, owner="them"),
                   unfinished("untagged", 5, tags=[]), unfinished("ready", 5, status="active"),
                   unfinished("another", 5, name="dodas-debian-12-c1")])  # fmt: skip
    node_upload.Glance(cloud).upload(one, built)
    assert set(cloud.kept) == {"running", "theirs", "untagged", "ready", "another", "new"}

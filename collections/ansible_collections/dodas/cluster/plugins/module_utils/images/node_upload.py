# SPDX-License-Identifier: Apache-2.0
"""Takes disk images (node_build.Built) to a cloud's image service: each once for the same content.

    glance = node_upload.connect("mycloud")
    image = glance.upload(node, built)           # as /v2/images has it
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time

from ansible_collections.dodas.cluster.plugins.module_utils.images import node as nodes
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud as openstack
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError

TAG = "dodas"
TIMEOUT = 3600  # seconds for one upload; what was begun earlier, and has no end, is removed
ATTEMPTS = 3
PAUSE = 3  # seconds before the second attempt; more before later ones
MIN_RAM_MB = 512


def connect(name=None, region=None, **options):
    """The image service of a cloud, as openstack.cloud.connect. Raises ImageError."""
    with _told():
        return Glance(openstack.connect(name, region, **options))


def described(node, built, image):
    """What is known of a disk image: on this machine (a Built or None), and in a cloud (an image or None)."""
    return {
        "name": node.name,
        "reference": node.reference,
        "content": node.content,
        "path": str(built.path) if built else None,
        "size": built.size if built else 0,
        "cloud_id": image["id"] if image else None,
    }


class Glance:
    """The images of a `cloud` (openstack.cloud.Cloud). All raise ImageError."""

    def __init__(self, cloud):
        self.cloud = cloud

    def images(self, **wanted):
        """The images, or those with these properties, as /v2/images lists them."""
        with _told():
            return self.cloud.list("image", "/images", "images", limit=500, **wanted)

    def present(self, node):
        """The image with exactly this content; None where the cloud has none."""
        ready = self.images(**{nodes.CONTENT: node.content, "status": "active"})
        return nodes.choose(ready, node)

    def upload(self, node, built, progress=None):
        """The image with this content, uploaded where the cloud lacks it; what an upload left that broke off goes.

        `progress(step, seconds or None)` is called when the upload starts and ends.
        """
        found = self.present(node)
        if found:
            return found
        start = time.monotonic()
        step = f"upload to {self.cloud.name}"
        if progress:
            progress(step, None)
        with _told():
            self._tidy(node)
            image = self._create(node, built)
            try:
                self._send(image["id"], built.path)
                image = self.cloud.get("image", f"/images/{image['id']}")
                self._verify(image, built)
            except BaseException:
                with contextlib.suppress(OpenStackError):
                    self.cloud.delete("image", f"/images/{image['id']}")
                raise
        if progress:
            progress(step, round(time.monotonic() - start, 1))
        return image

    def _create(self, node, built):
        fields = {
            "name": node.reference, "disk_format": "qcow2", "container_format": "bare", "visibility": "private",
            "min_disk": -(-built.manifest["size_mb"] // 1024), "min_ram": MIN_RAM_MB, "tags": [TAG], **node.properties,
            nodes.CONTENT: node.content, nodes.BASE: node.base, nodes.BUILT: built.manifest["built"],
        }  # fmt: skip
        begun = {one["id"] for one in self._unfinished(node)}

        def lost():
            return next((one for one in self._unfinished(node) if one["id"] not in begun), None)

        return self.cloud.post("image", "/images", fields, find=lost)

    def _send(self, identifier, path):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with path.open("rb") as stream:
                    self.cloud.send("image", f"/images/{identifier}/file", stream, timeout=TIMEOUT)
                return
            except OpenStackError:
                self.cloud.pause(PAUSE * attempt)
                if self.cloud.get("image", f"/images/{identifier}")["status"] == "active":
                    return  # all of it arrived, only the answer was lost
                if attempt == ATTEMPTS:
                    raise

    def _verify(self, image, built):
        """What arrived is what was sent, where the cloud says what arrived."""
        wanted = {"status": "active", "size": built.size}
        if image.get("os_hash_algo") == "sha512":
            wanted["os_hash_value"] = built.manifest["sha512"]
        for field, value in wanted.items():
            if image.get(field) != value:
                raise ImageError(f"image {image['id']}: {field} is {image.get(field)} after the upload, not {value}")

    def _unfinished(self, node):
        """Uploads of this content that did not come to their end, those that are under way among them."""
        every = self.cloud.list("image", "/images", "images", limit=500, name=node.reference)
        own = [one for one in every if one.get("owner") == self.cloud.project_id and TAG in one.get("tags", [])]
        return [one for one in own if one["status"] in ("queued", "saving")]

    def _tidy(self, node):
        before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=TIMEOUT * ATTEMPTS)
        for one in self._unfinished(node):
            if dt.datetime.fromisoformat(one["created_at"]) < before:
                self.cloud.delete("image", f"/images/{one['id']}")


@contextlib.contextmanager
def _told():
    """The cloud's errors as this library's own."""
    try:
        yield
    except OpenStackError as exc:
        raise ImageError(str(exc)) from exc

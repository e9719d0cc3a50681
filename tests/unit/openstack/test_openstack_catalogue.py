# SPDX-License-Identifier: Apache-2.0
"""Images and flavors are chosen as people name them, and quotas are added up before anything is made."""

from __future__ import annotations

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.catalogue import Catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.spec import Host
from openstack_paper import IMAGES, Paper


@pytest.fixture
def cloud():
    return Paper()


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        (None, "image-2"),
        ("debian-12", "image-2"),
        ("image-1", "image-1"),
        ("tag:old", "image-1"),
        ("property:os_distro=rocky", "image-0"),
    ],
)
def test_an_image_is_chosen(cloud, wish, found):
    assert Catalogue(cloud).image(wish)["id"] == found


def test_an_image_that_was_made_for_it_is_preferred(cloud):
    cloud.listings["/images"] = [*IMAGES, {"id": "baked", "name": "dodas-debian-12-abc", "dodas_content": "abc"}]
    assert Catalogue(cloud).image(None)["id"] == "baked"


def test_a_cloud_without_debian_needs_a_choice(cloud):
    cloud.listings["/images"] = IMAGES[2:]
    with pytest.raises(OpenStackError, match="settings.image: the cloud has no Debian 12 image; choose one"):
        Catalogue(cloud).image(None)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"cpus": 1, "mem_mb": 500}, "m1.tiny"),
        ({"mem_mb": 1073}, "m1.small"),  # 1024 of nova's MB are 1073 MB
        ({"mem_mb": 1074}, "m1.large"),
        ({"cpus": 2}, "m1.large"),
        ({"disk_gb": 8, "mem_mb": 500}, "m1.small"),
        ({}, "m1.small"),
    ],
)
def test_the_smallest_flavor_that_fits(cloud, host, name):
    assert Catalogue(cloud).flavor(None, Host("a", "a", **host), IMAGES[0])["name"] == name


def test_prices_decide_where_they_are_known(cloud):
    prices = {"m1.tiny": 3, "m1.small": 2, "m1.large": 1}
    assert Catalogue(cloud).flavor(None, Host("a", "a", mem_mb=1), IMAGES[0], prices=prices)["name"] == "m1.large"
    del prices["m1.tiny"]
    assert Catalogue(cloud).flavor(None, Host("a", "a", mem_mb=1), IMAGES[0], prices=prices)["name"] == "m1.tiny"


def test_a_flavor_must_hold_the_image(cloud):
    image = {"name": "big", "min_disk": 8, "min_ram": 600}
    catalogue = Catalogue(cloud)
    assert catalogue.flavor(None, Host("a", "a", mem_mb=1), image)["name"] == "m1.small"
    with pytest.raises(OpenStackError, match="m1.tiny with .*, but image big needs 600 MB"):
        catalogue.flavor("m1.tiny", Host("a", "a"), image)
    with pytest.raises(OpenStackError, match="5 GB of disk, but image big needs 8 GB"):
        catalogue.flavor("m1.tiny", Host("a", "a"), {**image, "min_ram": 0})
    assert catalogue.flavor("m1.tiny", Host("a", "a"), {**image, "min_ram": 0}, volume_gb=20)["name"] == "m1.tiny"


def test_flavors_with_devices_are_only_taken_by_name(cloud):
    gpu = {"id": "g", "name": "gpu", "vcpus": 8, "ram": 8192, "disk": 50, "extra_specs": {"resources:VGPU": "1"}}
    cloud.listings["/flavors/detail"] = [gpu]
    with pytest.raises(OpenStackError, match="host a: the cloud has no flavor with 8 cpus"):
        Catalogue(cloud).flavor(None, Host("a", "a", cpus=8), IMAGES[0])
    assert Catalogue(cloud).flavor("gpu", Host("a", "a"), IMAGES[0]) is not None


def test_quotas_say_everything_that_is_missing(cloud):
    needs = {"instances": 3, "cores": 1000, "port": 2, "floatingip": 1, "ram": -5}
    assert Catalogue(cloud).lacks(needs) == [
        "instances: 3 more needed, 2 free (8 of 10 in use)",
        "port: 2 more needed, 1 free (4 of 5 in use)",
    ]

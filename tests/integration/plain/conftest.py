# SPDX-License-Identifier: Apache-2.0
"""Users without rights who bring up clusters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import build, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from plain_user import ROOT, User
from udocker_people import Person

CACHE = Path(os.environ.get("DODAS_CACHE", "/var/cache/dodas")) / "tests/plain"
SERVICES = ("identity", "credentials", "squid", "htcondor", "worker")  # the image of conditions is left to be built


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """An archive of the images, but for one; cached by what is in it."""
    if os.geteuid() != 0:
        pytest.skip("users are made by root")
    podman = Podman(tmp_path_factory.mktemp("podman"))
    podman.configure()
    every = catalogue.catalogue(ROOT / "containers", ROOT)
    wanted = [*catalogue.with_parents(every, SERVICES), every["base"]]
    build.build(podman, wanted, ROOT)
    archive = build.archive(podman, list({one.name: one for one in wanted}.values()), CACHE)[0]
    for old in set(CACHE.glob("*.tar")) - {Path(archive)}:  # of images that are not made any more
        old.unlink()
    return archive


@pytest.fixture(scope="module")
def user(request, images):
    """With further ids (/etc/subuid), unless the module says `SUBIDS = False`."""
    with Person("plain", subids=getattr(request.module, "SUBIDS", True)) as person:
        yield User(person, images)

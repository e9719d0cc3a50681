# SPDX-License-Identifier: Apache-2.0
"""The one file under other Pythons than the one that made it: those of other Debian releases, in containers of its own.

So it also runs within itself.
"""

from __future__ import annotations

import pytest

import udocker_images as images
from udocker_program import Program, image

PYTHONS = {"bullseye": "3.9", "trixie": "3.13"}


@pytest.fixture(scope="module")
def udocker():
    with Program() as program:
        yield program


@pytest.mark.parametrize("suite", sorted(PYTHONS))
def test_other_pythons_run_it(udocker, suite):
    name = f"python:{suite}"
    udocker.out("import", udocker.person.give(images.debian_root(suite, ("python3",))), name, timeout=300)
    udocker.out("create", "--name", suite, name)
    shared = udocker.person.give(image())
    inside = ["run", "-v", f"{udocker.path}:/usr/bin/udocker:ro", "-v", f"{shared}:/busybox.tar:ro", suite]
    said = udocker.out(*inside, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    assert said == PYTHONS[suite]
    assert udocker.out(*inside, "udocker", "version").startswith("version: ")
    kept = udocker.out(*inside, "sh", "-c", "echo ~/.cache/udocker/*").split()
    assert len(kept) == 1 and "*" not in kept[0]
    assert udocker.out(*inside, "udocker", "load", "-i", "/busybox.tar").endswith("busybox:latest")
    assert udocker.out(*inside, "udocker", "--help").startswith("Usage: udocker")
    assert udocker.out(*inside, "udocker", "images") == "REPOSITORY\nbusybox:latest    ."
    assert udocker.out(*inside, "udocker", "run", "--rm", "busybox", "echo", "within") == "within"
    assert udocker.out(*inside, "udocker", "ps", "-q") == ""

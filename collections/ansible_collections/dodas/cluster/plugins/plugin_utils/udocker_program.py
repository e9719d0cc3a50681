# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runtime's one file on the controller: made of this collection when it is first needed, and kept."""

from __future__ import annotations

import hashlib
import os
import sys

from ansible import constants as C

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import bundle


def digest():
    """Stands for the runtime's source, and for the Python that compiles it."""
    found = hashlib.sha256(sys.version.encode())
    for name, (path, _package) in sorted(bundle.modules().items()):
        with open(path, "rb") as source:
            found.update(f"{name}\0".encode() + hashlib.sha256(source.read()).digest())
    return found.hexdigest()[:16]


def path():
    """Where it is."""
    found = os.path.join(C.ANSIBLE_HOME, "udocker", digest())
    if not os.path.exists(found):
        os.makedirs(os.path.dirname(found), mode=0o700, exist_ok=True)
        bundle.write(found)
    return found

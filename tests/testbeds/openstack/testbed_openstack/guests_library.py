# SPDX-License-Identifier: Apache-2.0
"""What guests use of the collection: its podman, which knows machines of all kinds, and its images."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[4] / "collections"))

# Only now can they be found.
from ansible_collections.dodas.cluster.plugins.module_utils import host
from ansible_collections.dodas.cluster.plugins.module_utils.images import node_root
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.bootstrap import debian_sources

__all__ = ["Podman", "PodmanError", "debian_sources", "host", "node_root"]

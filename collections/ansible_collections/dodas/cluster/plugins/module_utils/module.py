# SPDX-License-Identifier: Apache-2.0
"""What modules share: a module whose parameters may hold secrets, and parameters that several have."""

from __future__ import annotations

import platform
import sys

from ansible.module_utils.basic import AnsibleModule

# Fragment `files` documents it.
FILES = {
    "type": "list",
    "elements": "dict",
    "options": {
        "path": {"type": "path", "required": True},
        # may hold a secret: kept out of the journal and of the result, and of diffs where the mode keeps others out
        "content": {"type": "str", "required": True, "no_log": False},
        "mode": {"type": "str", "default": "0644"},
        "owner": {"type": "str", "default": "root"},
        "in_place": {"type": "bool", "default": False},
    },
}


class Module(AnsibleModule):
    """Keeps its invocation out of the host's journal: it may hold secrets where `no_log` would hide the diff too."""

    def _log_invocation(self):
        pass

    def need_cryptography(self):
        """Fail where the library cryptography is missing or too old, saying where and what to do."""
        # here, because modules that do not need it would wait for it
        from ansible_collections.dodas.cluster.plugins.module_utils.x509 import deps

        lacks = deps.MISSING
        if not lacks and not hasattr(deps.x509.Certificate, "not_valid_after_utc"):
            lacks = "the one that is there is older than version 42"
        if lacks:
            self.fail_json(
                msg=f"{platform.node()}: {sys.executable} needs the library cryptography, version 42 or newer "
                f"(package python3-cryptography): {lacks}"
            )

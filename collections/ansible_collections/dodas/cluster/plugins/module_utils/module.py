# SPDX-License-Identifier: Apache-2.0
"""What modules share: a module whose parameters may hold secrets, and parameters that several have."""

from __future__ import annotations

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
    },
}


class Module(AnsibleModule):
    """Keeps its invocation out of the host's journal: it may hold secrets where `no_log` would hide the diff too."""

    def _log_invocation(self):
        pass

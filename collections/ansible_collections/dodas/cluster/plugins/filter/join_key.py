# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: join_key
short_description: The key by which a host proves that it is of a deployment
version_added: 0.1.0
description:
  - Derives a host's key from the join secret of its deployment and its name.
  - The host signs tokens with it that the deployment's credentials service takes, and cannot pass for another host.
author: [The dodas developers (@dodas)]
positional: host
options:
  _input:
    description: The join secret of the deployment, 32 bytes in base64, as M(dodas.cluster.deployment_secrets) makes it.
    type: str
    required: true
  host:
    description: The host's name, in lower case letters, digits, dots and hyphens.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: The key of a worker
  dodas.cluster.config_files:
    files:
      - path: /etc/dodas/worker/join_key
        mode: "0600"
        content: "{{ join_secret | dodas.cluster.join_key(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The host's key in base64. It is a secret.
  type: str
"""

import base64

from ansible.errors import AnsibleFilterError

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import join

SECRET_BYTES = 32


def join_key(secret, host):
    """The key (base64) of a host, from the deployment's join secret (base64)."""
    try:
        decoded = base64.b64decode(secret, validate=True)
    except (TypeError, ValueError):
        decoded = b""
    if len(decoded) != SECRET_BYTES:
        raise AnsibleFilterError(f"join_key: the join secret must be {SECRET_BYTES} bytes in base64")
    if not isinstance(host, str):
        raise AnsibleFilterError("join_key: the host's name must be text")
    try:
        return base64.b64encode(join.derive(decoded, host)).decode()
    except ValueError as error:
        raise AnsibleFilterError(f"join_key: {error}") from error


class FilterModule:
    """Filters of the file."""

    def filters(self):
        """Functions by name."""
        return {"join_key": join_key}

# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Where Marathon is.
    DOCUMENTATION = r"""
options:
  urls:
    description:
      - Marathon's endpoints. Any of them serves; another is asked where one does not answer.
      - While there is no leader, requests are repeated until O(timeout).
    type: list
    elements: str
    required: true
  ca_path:
    description: File with the authorities that endpoints' certificates are checked against; the host's when not given.
    type: path
  credentials_file:
    description: File on the host with one line C(user:password), which others must not be able to read.
    type: path
  resolve:
    description: Addresses of names that are not looked up, such as those in Consul, which may be what is out of order.
    type: dict
    default: {}
  timeout:
    description: Seconds until all must be done, with all that is waited for.
    type: int
    default: 300
"""

    # What changes apps.
    CHANGES = r"""
options:
  wait:
    description: Whether to wait until what was asked for is deployed, runs and is healthy.
    type: bool
    default: true
  force:
    description:
      - Whether deployments that lock an app are cancelled, also where the app is as it shall be.
      - Otherwise they are waited for, and named when O(timeout) passes.
    type: bool
    default: false
  rollback_on_failure:
    description:
      - Whether a deployment that is not done before O(timeout) is undone, for which there is as much time again.
      - Otherwise it goes on, and is named with the reasons why it is late.
    type: bool
    default: false
"""

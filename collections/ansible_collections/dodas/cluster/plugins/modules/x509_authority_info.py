#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_authority_info
short_description: The authorities of a CA directory
version_added: 0.1.0
description:
  - Reads a CA directory (C(X509_CERT_DIR)) and says of each authority how long it and its revocation list last, and
    what grid software would miss or refuse.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.cryptography]
options:
  ca_directory:
    description: The directory.
    type: path
    default: /etc/grid-security/certificates
seealso:
  - module: dodas.cluster.x509_authority
"""

EXAMPLES = r"""
- name: Look at the authorities
  dodas.cluster.x509_authority_info:
  register: trusted

- name: All of them are complete
  ansible.builtin.assert:
    that: trusted.authorities | map(attribute='problems') | flatten | length == 0
"""

RETURN = r"""
authorities:
  description: One entry a certificate file. An authority has two, by the present and by the old hash of its name.
  returned: always
  type: list
  elements: dict
  contains:
    file:
      description: Name of the certificate's file.
      returned: always
      type: str
    problems:
      description: What is missing, ended or of another authority. Empty where all is well.
      returned: always
      type: list
      elements: str
    subject:
      description: DN of the authority in slash form.
      returned: when the file is a certificate
      type: str
    hashes:
      description: The hashes of its name, as OpenSSL computes them now and did before version 1.0.
      returned: when the file is a certificate
      type: list
      elements: str
    not_after:
      description: When it ends, in UTC.
      returned: when the file is a certificate
      type: str
    remaining:
      description: Seconds until then.
      returned: when the file is a certificate
      type: int
    crl_next_update:
      description: When its revocation list ends, in UTC; null where there is none.
      returned: when the file is a certificate
      type: str
    crl_remaining:
      description: Seconds until then.
      returned: when the file is a certificate
      type: int
    revoked:
      description: How many certificates its list has.
      returned: when the file is a certificate
      type: int
"""

import platform

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authorities


def main():
    module = Module(
        argument_spec={"ca_directory": {"type": "path", "default": "/etc/grid-security/certificates"}},
        supports_check_mode=True,
    )
    module.need_cryptography()
    try:
        found = authorities.read(module.params["ca_directory"])
    except OSError as error:
        module.fail_json(msg=f"{platform.node()}: {error}")
    listed = [
        {"file": name, "problems": problems, **(entry.describe() if entry else {})} for name, entry, problems in found
    ]
    module.exit_json(changed=False, authorities=listed)


if __name__ == "__main__":
    main()

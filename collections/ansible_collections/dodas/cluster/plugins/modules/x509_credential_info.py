#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_credential_info
short_description: What an X.509 certificate or proxy in a file is
version_added: 0.1.0
description:
  - Reads a file with a certificate, its key and the chain, as M(dodas.cluster.x509_credential), C(voms-proxy-init) or
    C(grid-proxy-init) write it.
  - Says what it is, how long it lasts, what of a VO is in it and what is wrong with it. The key is not returned.
author: [The dodas developers (@dodas)]
requirements:
  - openssl on the managed host, for O(ca_directory)
extends_documentation_fragment: [dodas.cluster.attributes.info, dodas.cluster.cryptography]
options:
  path:
    description: The file.
    type: path
    required: true
  ca_directory:
    description:
      - A CA directory (C(X509_CERT_DIR)) that the credential is verified by with OpenSSL, as proxies are, with
        revocation lists where it has those of all authorities concerned. Signing policies and attributes of VOs are not
        verified.
    type: path
seealso:
  - module: dodas.cluster.x509_credential
"""

EXAMPLES = r"""
- name: Look at the proxy
  dodas.cluster.x509_credential_info:
    path: /tmp/x509up_u1000
    ca_directory: /etc/grid-security/certificates
  register: proxy

- name: It must last until the jobs are done
  ansible.builtin.assert:
    that:
      - proxy.credential is not none
      - proxy.credential.remaining > 6 * 3600
      - proxy.verified
"""

RETURN = r"""
credential:
  description: What the file holds; null where there is no file.
  returned: always
  type: dict
  contains:
    kind:
      description: V(eec), V(proxy) or V(host).
      returned: always
      type: str
    subject:
      description: The certificate's DN in slash form.
      returned: always
      type: str
    identity:
      description: The DN of the person, robot or host behind it. Of a proxy, the subject without the proxies' C(CN).
      returned: always
      type: str
    issuer:
      description: DN of who signed the certificate.
      returned: always
      type: str
    authority:
      description: DN of the authority that signed the certificate of the identity.
      returned: always
      type: str
    serial:
      description: The certificate's serial number.
      returned: always
      type: str
    not_before:
      description: When it begins, in UTC.
      returned: always
      type: str
    not_after:
      description: When the first certificate of it and its chain ends, in UTC.
      returned: always
      type: str
    remaining:
      description: Seconds until then, negative afterwards.
      returned: always
      type: int
    policy:
      description: What a proxy may do, V(inherit-all), V(limited) or V(independent); null for others.
      returned: always
      type: str
    path_length:
      description: How many proxies may follow below a proxy; null where that has no limit.
      returned: always
      type: int
    key_type:
      description: Kind of the key, such as V(rsa-2048).
      returned: always
      type: str
    key_fits:
      description: Whether the file has the certificate's key.
      returned: always
      type: bool
    attributes:
      description: Attribute certificates of VOs in it, each with C(vo), C(fqans), C(server) and C(not_after).
      returned: always
      type: list
      elements: dict
problems:
  description: What is wrong with the credential or its file. Empty where nothing is.
  returned: always
  type: list
  elements: str
verified:
  description: Whether OpenSSL accepts it by O(ca_directory); null where there is no openssl.
  returned: when O(ca_directory) is given and there is a credential
  type: bool
crl_checked:
  description: Whether revocation lists were looked at.
  returned: when O(ca_directory) is given and there is a credential
  type: bool
"""

import os
import platform

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import held


def main():
    module = Module(
        argument_spec={"path": {"type": "path", "required": True}, "ca_directory": {"type": "path"}},
        supports_check_mode=True,
    )
    module.need_cryptography()
    path, directory = module.params["path"], module.params["ca_directory"]
    try:
        found = held.read(path)
        if found is None:
            module.exit_json(changed=False, credential=None, problems=[f"{path}: there is none"])
        if directory and not os.path.isdir(directory):
            raise ValueError(f"{directory} is no directory")
        problems = held.problems(path)
        if not found.key_fits:
            problems.append("its key is missing or another's")
        if found.remaining <= 0:
            problems.append("it has ended")
        result = {}
        if directory:
            result["verified"], reason, result["crl_checked"] = held.verify(found, directory)
            problems += [f"not verified: {reason}"] if reason else []
        module.exit_json(changed=False, credential=found.describe(), problems=problems, **result)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{platform.node()}: {path}: {error}")


if __name__ == "__main__":
    main()

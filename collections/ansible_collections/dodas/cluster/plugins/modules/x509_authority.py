#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_authority
short_description: A certificate authority, and the directory of those that are trusted
version_added: 0.1.0
description:
  - Makes a certificate authority in a directory of the managed host, and keeps its revocation list fresh. Its key is
    made there and never leaves it.
  - Puts authorities into a CA directory as grid software reads it (C(X509_CERT_DIR)) - certificate, revocation list and
    signing policy, by both hashes of the authority's name. Other authorities in it are left alone.
  - It issues no certificates. The credentials service, or whoever has the directory of the authority, does.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.cryptography]
attributes:
  diff_mode:
    details: It has names, ends and signing policies, and never the key.
options:
  path:
    description:
      - The directory of an own authority - C(ca.key) (mode 0600), C(ca.pem), C(crl.pem), C(revoked.json), and a
        CA directory of it alone, C(certificates).
      - At least one of this and O(ca_directory) is needed.
    type: path
  subject:
    description:
      - Name of the own authority in slash form, a C(CN) below something else. It signs names below the same.
      - Needed with O(path) for O(state=present). An authority that is there keeps its name; another is refused.
    type: str
  days:
    description: Lifetime of the own authority in days, when it is made. It is not made anew before its end.
    type: int
    default: 365
  crl_hours:
    description: How long a revocation list is valid, in hours. A run of the module in its second half signs a new one.
    type: int
    default: 168
  key_type:
    description: Kind of the own authority's key, when it is made.
    type: str
    choices: [rsa-2048, ec-p256]
    default: rsa-2048
  ca_directory:
    description: The CA directory that the own authority and those of O(authorities) are put into.
    type: path
  authorities:
    description: Authorities of others.
    type: list
    elements: dict
    default: []
    suboptions:
      certificate:
        description: The authority's certificate, PEM.
        type: str
        required: true
      crl:
        description: Its revocation list, PEM. Without, the one that is there stays.
        type: str
      signing_policy:
        description:
          - Its signing policy. Without, the one that is there stays; where there is none, it may sign the names below
            its own name without the last C(CN).
        type: str
  state:
    description:
      - V(absent) removes the own authority with its key, and what O(ca_directory) has of it and of O(authorities). What
        it signed is worth nothing afterwards.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: dodas.cluster.x509_authority_info
  - module: dodas.cluster.x509_credential
"""

EXAMPLES = r"""
- name: An authority for the hosts of a site
  dodas.cluster.x509_authority:
    path: /var/lib/site-ca
    subject: /DC=org/DC=example/CN=Site CA
    days: 1825
    ca_directory: /etc/grid-security/certificates

- name: Trust the authority of an experiment
  dodas.cluster.x509_authority:
    ca_directory: /etc/grid-security/certificates
    authorities:
      - certificate: "{{ lookup('ansible.builtin.file', 'experiment-ca.pem') }}"
        crl: "{{ lookup('ansible.builtin.file', 'experiment-ca.crl.pem') }}"
        signing_policy: "{{ lookup('ansible.builtin.file', 'experiment-ca.signing_policy') }}"
"""

RETURN = r"""
authority:
  description: The own authority; null in check mode where it would be made.
  returned: when O(path) is given and O(state=present)
  type: dict
  contains:
    subject:
      description: Its DN in slash form.
      returned: always
      type: str
    hashes:
      description: The hashes of its name, as OpenSSL computes them now and did before version 1.0.
      returned: always
      type: list
      elements: str
    not_after:
      description: When it ends, in UTC.
      returned: always
      type: str
    remaining:
      description: Seconds until then.
      returned: always
      type: int
    crl_next_update:
      description: When its revocation list ends, in UTC.
      returned: always
      type: str
    crl_remaining:
      description: Seconds until then.
      returned: always
      type: int
    revoked:
      description: How many certificates it has revoked.
      returned: always
      type: int
    certificate:
      description: Its certificate, PEM.
      returned: always
      type: str
    crl:
      description: Its revocation list, PEM.
      returned: always
      type: str
    signing_policy:
      description: Its signing policy.
      returned: always
      type: str
files:
  description: Files of O(path) and O(ca_directory) that differed.
  returned: always
  type: list
  elements: str
"""

import contextlib
import os
import platform

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authorities, cadirectory, files, names, store
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority, AuthorityError
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import utcnow

SECRET = ("ca.key", "revoked.json")
PUBLIC = ("ca.pem", "crl.pem")
SOON = 30 * 86400


def main():
    authority = {
        "certificate": {"type": "str", "required": True},
        "crl": {"type": "str"},
        "signing_policy": {"type": "str"},
    }
    module = Module(
        argument_spec={
            "path": {"type": "path"},
            "subject": {"type": "str"},
            "days": {"type": "int", "default": 365},
            "crl_hours": {"type": "int", "default": 168},
            "key_type": {"type": "str", "choices": ["rsa-2048", "ec-p256"], "default": "rsa-2048", "no_log": False},
            "ca_directory": {"type": "path"},
            "authorities": {"type": "list", "elements": "dict", "options": authority, "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_one_of=[("path", "ca_directory")],
        supports_check_mode=True,
    )
    module.need_cryptography()
    parameters = module.params
    try:
        for name in ("days", "crl_hours"):
            if parameters[name] < 1:
                raise ValueError(f"{name}: {parameters[name]} must be at least 1")
        if parameters["authorities"] and not parameters["ca_directory"]:
            raise ValueError("ca_directory is needed for authorities")
        given = [authorities.Entry.parse(**one) for one in parameters["authorities"]]
        (_present if parameters["state"] == "present" else _absent)(module, given)
    except (AuthorityError, store.StoreError, OSError, ValueError) as error:
        module.fail_json(msg=f"{platform.node()}: {error}")


def _present(module, given):
    parameters = module.params
    path, directory = parameters["path"], parameters["ca_directory"]
    own, changed = _own(module) if path else (None, {})
    if own and own.describe()["remaining"] < SOON:
        module.warn(f"{platform.node()}: the authority {own.subject} ends on {own.describe()['not_after']}")
    for one in given:
        if one.certificate.not_valid_after_utc <= utcnow():
            module.warn(f"{platform.node()}: the authority {one.subject} has ended")
    installed = {}
    if directory:
        for entry in [*([own] if own else []), *given]:
            installed.update(entry.changes(directory))
        if not module.check_mode:
            cadirectory.write(installed)
    changed = {**changed, **installed}
    result = {"authority": own and _describe(own)} if path else {}
    module.exit_json(changed=bool(changed), files=sorted(changed), diff=_diff(changed), **result)


def _own(module):
    """(the own authority or None where it would be made, what of its files changed: {path: (before, after)})."""
    parameters = module.params
    path, subject, hours = (parameters[name] for name in ("path", "subject", "crl_hours"))
    if not subject:
        raise ValueError("subject is needed for an authority at path")
    names.parse(subject)
    own, before = _existing(path, subject), _read(path)
    if module.check_mode:
        due = own and (own.crl is None or own.describe()["crl_remaining"] <= hours * 1800)
        unknown = before if own is None else [os.path.join(path, "crl.pem")] if due else []
        return own, {name: (before[name], b"(new)\n") for name in unknown}
    authority = Authority.open(path, subject, parameters["days"], hours, parameters["key_type"])
    after = _read(path)
    own = authorities.Entry(authority.certificate, authority.crl, authority.signing_policy)
    return own, {name: (before[name], after[name]) for name in after if before[name] != after[name]}


def _read(path):
    """{file: bytes or None} of what everybody may read of an own authority."""
    return {os.path.join(path, name): _content(os.path.join(path, name)) for name in PUBLIC}


def _content(path):
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        return stream.read()
    return None


def _existing(path, subject):
    """The own authority as it is; None where there is none."""
    certificate, crl = _read(path).values()
    if certificate is None:
        return None
    try:
        found = authorities.Entry.parse(certificate.decode(), crl and crl.decode())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if subject and found.subject != subject:
        raise ValueError(f"{path} has the authority {found.subject}, not {subject}: give its name, or remove it first")
    return found


def _describe(own):
    return {
        **own.describe(),
        "certificate": files.certificate_pem(own.certificate).decode(),
        "crl": None if own.crl is None else files.certificate_pem(own.crl).decode(),
        "signing_policy": own.signing_policy,
    }


def _absent(module, given):
    path, directory = module.params["path"], module.params["ca_directory"]
    own = _existing(path, module.params["subject"]) if path else None
    doomed = []
    for entry in [*([own] if own else []), *given]:
        doomed += authorities.files_of(directory, entry.certificate) if directory else []
        if entry is own:
            doomed += authorities.files_of(os.path.join(path, "certificates"), entry.certificate)
    if path:
        there = (os.path.join(path, name) for name in (*SECRET, *PUBLIC))
        doomed += [name for name in there if os.path.lexists(name)]
    if not module.check_mode:
        for name in doomed:
            os.unlink(name)
        if path:
            _remove_empty(path)
    module.exit_json(
        changed=bool(doomed),
        files=sorted(doomed),
        diff=[
            {"before_header": name, "after_header": name, "before": "present\n", "after": ""} for name in sorted(doomed)
        ],
    )


def _remove_empty(path):
    """Remove the directory, where nobody has put anything else into it."""
    for name in os.listdir(path) if os.path.isdir(path) else []:
        if name.startswith(".lock"):
            os.unlink(os.path.join(path, name))
    for folder in (os.path.join(path, "certificates"), path):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _diff(changed):
    texts = ((name, *map(authorities.summary, pair)) for name, pair in sorted(changed.items()))
    return [{"before_header": name, "after_header": name, "before": before, "after": after}
            for name, before, after in texts]  # fmt: skip


if __name__ == "__main__":
    main()

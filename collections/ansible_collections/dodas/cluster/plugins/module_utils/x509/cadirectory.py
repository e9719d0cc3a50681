# SPDX-License-Identifier: Apache-2.0
"""A directory of CAs as grid software reads it (X509_CERT_DIR): ``<hash>.0``, ``.r0`` and ``.signing_policy``."""

from __future__ import annotations

import os

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files


def install(directory, ca_pem, crl_pem, signing_policy, link_names, above=()):
    """Make or refresh one CA. Returns whether anything changed. Raises OSError.

    Contents: bytes, bytes (or None), str; link_names: the hashes. above: for each CA above it, the same four; of those
    a revocation list or policy that is there already stays: their owner's tools keep them.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    changed = _install(directory, ca_pem, crl_pem, signing_policy, link_names, False)
    return any([changed, *(_install(directory, *one, True) for one in above)])


def install_document(directory, document):
    """The same, of what client.fetch_authority gives."""
    *above, own = ([*map(_content, (one["ca"], one.get("crl"))), one["signing_policy"], one["hashes"]]
                   for one in (*document.get("chain", ()), document))  # fmt: skip
    return install(directory, *own, above=above)


def signing_policy(subject, conditions):
    """What Globus wants to read of a CA with this subject (slash form); conditions: DNs it may sign, * at the end of
    one for all below. Raises ValueError for a name that cannot stand there."""
    for name in (subject, *conditions):
        if "'" in name or '"' in name:
            raise ValueError(f"a signing policy cannot hold quotation marks: {name}")
    names = " ".join(f'"{name}"' for name in conditions)
    return (
        f"access_id_CA   X509    '{subject}'\n"
        "pos_rights     globus  CA:sign\n"
        f"cond_subjects  globus  '{names}'\n"
    )  # fmt: skip


def _install(directory, ca_pem, crl_pem, policy, link_names, keep):
    changed = False
    for name in link_names:
        for suffix, content in (("0", ca_pem), ("r0", crl_pem), ("signing_policy", policy.encode())):
            path = os.path.join(directory, f"{name}.{suffix}")
            if content is None or (keep and suffix != "0" and os.path.exists(path)) or _holds(path, content):
                continue
            files.write(path, content, files.PUBLIC)
            changed = True
    return changed


def _holds(path, content):
    try:
        return files.read(path) == content
    except FileNotFoundError:
        return False


def _content(text):
    return None if text is None else text.encode()

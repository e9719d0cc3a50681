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
    return write(changes(directory, ca_pem, crl_pem, signing_policy, link_names, above))


def install_document(directory, document):
    """The same, of what client.fetch_authority gives."""
    return write(document_changes(directory, document))


def changes(directory, ca_pem, crl_pem, signing_policy, link_names, above=()):
    """What install would write: {path: (bytes that are there or None, bytes)}. Raises OSError."""
    found = _changes(directory, ca_pem, crl_pem, signing_policy, link_names, False)
    for one in above:
        found.update(_changes(directory, *one, True))
    return found


def document_changes(directory, document):
    """What install_document would write."""
    *above, own = ([*map(_content, (one["ca"], one.get("crl"))), one["signing_policy"], one["hashes"]]
                   for one in (*document.get("chain", ()), document))  # fmt: skip
    return changes(directory, *own, above=above)


def write(changed):
    """Write what changes found, for everybody to read. Returns whether there was anything. Raises OSError."""
    for path, (_before, content) in changed.items():
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        files.write(path, content, files.PUBLIC)
    return bool(changed)


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


def _changes(directory, ca_pem, crl_pem, policy, link_names, keep):
    found = {}
    for name in link_names:
        for suffix, content in (("0", ca_pem), ("r0", crl_pem), ("signing_policy", policy and policy.encode())):
            path = os.path.join(directory, f"{name}.{suffix}")
            before = _read(path)
            if content is not None and before != content and not (keep and suffix != "0" and before is not None):
                found[path] = before, content
    return found


def _read(path):
    try:
        return files.read(path)
    except FileNotFoundError:
        return None


def _content(text):
    return None if text is None else text.encode()

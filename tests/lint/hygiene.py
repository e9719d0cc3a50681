#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What no file may hold: a package registry's host (the machine supplies it), a path of the machine it was written on,
a private key, anything that is no text; and what each source file must hold: its licence.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Registries and mirrors of packages and images. Names are written so that this file does not hold them either. In a
# list by itself one of them is a package of Debian's.
REGISTRY = re.compile(
    r"[\w.-]*(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|yarnpkg\.com|(?:deb|ftp|mirror)[\w.-]*\.debian\.org"
    r"|archive\.ubuntu\.com|(?<!\[)docker\.io|quay\.io|ghcr\.io|gcr\.io)\b"
)
# Names without a host mean images of a default registry, as everywhere: one file has to say which that is.
DEFAULT_REGISTRY = "collections/ansible_collections/dodas/cluster/plugins/module_utils/udocker/reference.py"
# Where people keep checkouts and files of their own; users `ann` and `new` are in examples and containers only.
MACHINE = re.compile(
    r"(?<![\w.}~-])(?:/(?:work|farm|home|Users)/(?!(?:ann|new)\b)[a-z][\w./-]*|/root/\.(?:cache|config|local|pyenv)\b"
    rf"|{re.escape(str(ROOT))}\b)"
)
SECRET = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/=]{60}")
# Ansible doubles backslashes of expressions: only what YAML has made of a text in double quotes ends a line.
ESCAPE = re.compile(r"\{\{(?:(?!\}\}).)*?(\w+\('\\[nt]'\)|'\\[nt]')", re.S)
SOURCE = {".py", ".mjs", ".js", ".sh"}
SOURCE_NAMES = {"Containerfile", "Makefile"}
TEXTS = {"LICENSE", "LICENSES/GPL-3.0-or-later.txt"}  # not ours to change


def files():
    """The repository's files, committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()} - TEXTS)


def problems(name):
    """What is wrong with a file: (line number, what) each."""
    try:
        text = (ROOT / name).read_text()
    except UnicodeDecodeError:
        yield 1, "no text: what is fetched or built is not kept here"
        return
    path = Path(name)
    source = path.suffix in SOURCE or path.name in SOURCE_NAMES or text.startswith("#!")
    if source and "SPDX-License-Identifier: " not in "\n".join(text.splitlines()[:8]):
        yield 1, "no SPDX-License-Identifier"
    for what, pattern in (("a registry's host", REGISTRY), ("a path of a machine", MACHINE), ("a private key", SECRET)):
        for match in pattern.finditer(text):
            if pattern is REGISTRY and name == DEFAULT_REGISTRY:
                continue
            yield text.count("\n", 0, match.start()) + 1, f"{what}: {match[0].splitlines()[0]}"
    if path.suffix == ".yml" and path.parts[0] in ("roles", "playbooks"):
        for node in (one for document in yaml.compose_all(text) for one in scalars(document)):
            for match in ESCAPE.finditer(node.value):
                yield node.start_mark.line + 1, f"{match[1]}: no line ends there, but would in a text in double quotes"
    if text and not text.endswith("\n"):
        yield text.count("\n") + 1, "no newline at the end"


def scalars(node):
    """The nodes of a YAML document, or of what is in it, that hold nothing else."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif node:
        for one in node.value:
            yield from (found for part in (one if isinstance(one, tuple) else (one,)) for found in scalars(part))


def main():
    """Whether a file has problems, which are printed."""
    found = [f"{name}:{line}: {what}" for name in files() for line, what in problems(name)]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""argument_specs.py ROLE...: what a role's defaults say and what its argument specification says is the same.

A variable that a role needs is `required` and has no default. Any other has one, the same in defaults/main.yml and
meta/argument_specs.yml. Public names begin with the role's name, those of vars/ with an underscore before it. What may
be a secret by its name says whether it is one: `no_log`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

ABSENT = object()
SECRET = re.compile(r".*_(keys?|secrets?|passwords?|tokens?)")


def read(path):
    """The mapping in a YAML file; empty where there is no file."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def same(one, other):
    """Whether two defaults are equal: True is not 1, as it would be in Python."""
    return type(one) is type(other) and one == other


def problems(role):
    """What is wrong with a role, one line each."""
    defaults = read(role / "defaults" / "main.yml")
    points = read(role / "meta" / "argument_specs.yml").get("argument_specs", {})
    if not points:
        yield "meta/argument_specs.yml is missing"
    described = {name: spec for point in points.values() for name, spec in point.get("options", {}).items()}
    for name, spec in described.items():
        for key in ("type", "description"):
            if key not in spec:
                yield f"{name} has no {key}"
        if SECRET.fullmatch(name) and "no_log" not in spec:
            yield f"{name} may be a secret and does not say no_log"
        if spec.get("required"):
            if name in defaults or "default" in spec:
                yield f"{name} is required and has a default"
        elif name not in defaults:
            yield f"{name} is neither required nor in defaults/main.yml"
        elif not same(spec.get("default", ABSENT), defaults[name]):
            yield f"{name} is {defaults[name]!r} in defaults/main.yml and {spec.get('default')!r} in its specification"
    for name in defaults.keys() - described.keys():
        yield f"{name} is in defaults/main.yml only"
    for name in defaults.keys() | described.keys():
        if not name.startswith(f"{role.name}_"):
            yield f"{name} does not begin with {role.name}_"
    for path in sorted((role / "vars").glob("*.yml")):
        for name in read(path):
            if not name.startswith(f"_{role.name}_"):
                yield f"{name} in {path.relative_to(role)} does not begin with _{role.name}_"


def main(roles):
    """The number of roles with problems, which are printed."""
    found = {role: sorted(problems(Path(role))) for role in roles}
    for role, lines in found.items():
        for line in lines:
            print(f"{role}: {line}")
    return sum(map(bool, found.values()))


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))

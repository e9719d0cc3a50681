# SPDX-License-Identifier: Apache-2.0
"""Readers of JSON: each takes a value and its path, returns what it means, and notes what is wrong with it.

Paths are written as the API does: `/healthChecks(0)/protocol`.
"""

from __future__ import annotations

import re

REQUIRED = object()
OPTIONAL = object()


class Problems:
    """What is wrong: `shape` are wrong types (status 400), `values` are right types with wrong values (422)."""

    def __init__(self):
        self.shape = []
        self.values = []


def number(least=None, most=None, whole=False):
    """A number; `whole` for integers."""

    def read(value, path, problems):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.shape.append((path, "error.expected.jsnumber"))
        elif whole and value != int(value):
            problems.shape.append((path, "error.expected.int"))
        elif least is not None and value < least:
            problems.values.append((path, f"is less than {least}"))
        elif most is not None and value > most:
            problems.values.append((path, f"is greater than {most}"))
        else:
            return int(value) if value == int(value) else value
        return 0

    return read


def integer(least=None, most=None):
    """A whole number."""
    return number(least, most, whole=True)


PORT = integer(0, 65535)


def text(pattern=None, least=0, choices=None):
    """A string that `pattern` matches as a whole, of at least `least` characters, or one of `choices`."""

    def read(value, path, problems):
        if not isinstance(value, str):
            problems.shape.append((path, "error.expected.jsstring"))
        elif choices and value not in choices:
            problems.shape.append((path, f"error.unknown.enum.literal: {value} is none of {', '.join(choices)}"))
        elif len(value) < least:
            problems.values.append((path, "error.minLength"))
        elif pattern and not re.fullmatch(pattern, value):
            problems.values.append((path, f"'{value}' must match the pattern {pattern}"))
        return value

    return read


def boolean(value, path, problems):
    """True or false."""
    if not isinstance(value, bool):
        problems.shape.append((path, "error.expected.jsboolean"))
    return value


def anything(value, path, problems):
    """Whatever it is."""
    return value


def array(element, unique=False):
    """A list."""

    def read(value, path, problems):
        if not isinstance(value, list):
            problems.shape.append((path, "error.expected.jsarray"))
            return []
        found = [element(one, f"{path}({index})", problems) for index, one in enumerate(value)]
        if unique and any(one in found[:index] for index, one in enumerate(found)):
            problems.values.append((path, "elements must be unique"))
        return found

    return read


def mapping(element):
    """A JSON object whose keys are free."""

    def read(value, path, problems):
        if not isinstance(value, dict):
            problems.shape.append((path, "error.expected.jsobject"))
            return {}
        return {key: element(one, f"{path}/{key}", problems) for key, one in value.items()}

    return read


def record(**fields):
    """A JSON object with `fields` name=(reader, default): REQUIRED, OPTIONAL (left out) or what it is without.

    Null is as if it were not there; fields that nobody knows are passed over, as the API does.
    """

    def read(value, path, problems, defaults=True):
        if not isinstance(value, dict):
            problems.shape.append((path or "/", "error.expected.jsobject"))
            return {}
        found = {}
        for name, (reader, default) in fields.items():
            given = value.get(name)
            if given is not None:
                found[name] = reader(given, f"{path}/{name}", problems)
            elif default is REQUIRED and defaults:
                problems.shape.append((f"{path}/{name}", "error.path.missing"))
            elif default is not OPTIONAL and default is not REQUIRED and defaults:
                found[name] = default() if callable(default) else default
        return found

    return read

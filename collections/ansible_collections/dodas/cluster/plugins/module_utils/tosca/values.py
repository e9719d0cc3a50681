# SPDX-License-Identifier: Apache-2.0
"""Values by TOSCA's types and constraints (Simple Profile in YAML 1.0, sections 3.2.6 and 3.5.2).

A schema is the mapping that declares a property or an input: type, constraints, entry_schema. Errors are
ValueErrors with a text of the form `expected integer >= 1, got "three"`.
"""

from __future__ import annotations

import json
import re

from ansible_collections.dodas.cluster.plugins.module_utils.tosca.deps import yaml

_SCALAR_UNITS = {
    "scalar-unit.size": {
        "B": 1,
        "kB": 1000,
        "KiB": 1024,
        "MB": 1000**2,
        "MiB": 1024**2,
        "GB": 1000**3,
        "GiB": 1024**3,
        "TB": 1000**4,
        "TiB": 1024**4,
    },
    "scalar-unit.time": {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "scalar-unit.frequency": {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
}
_EXAMPLES = {"scalar-unit.size": "2 GB", "scalar-unit.time": "12 h", "scalar-unit.frequency": "2 GHz"}
# checked here; the others (version, timestamp, range, complex types) are left to tosca-parser
_PYTHON_TYPES = {
    "string": str,
    "integer": int,
    "float": (int, float),
    "number": (int, float),
    "boolean": bool,
    "list": list,
    "map": dict,
}
TYPES = (*_PYTHON_TYPES, *_SCALAR_UNITS, "version", "timestamp", "range")

_CONSTRAINTS = {
    "equal": (lambda value, limit: value == limit, "equal to {}"),
    "greater_than": (lambda value, limit: value > limit, "> {}"),
    "greater_or_equal": (lambda value, limit: value >= limit, ">= {}"),
    "less_than": (lambda value, limit: value < limit, "< {}"),
    "less_or_equal": (lambda value, limit: value <= limit, "<= {}"),
    "length": (lambda value, limit: len(value) == limit, "of length {}"),
    "min_length": (lambda value, limit: len(value) >= limit, "of length >= {}"),
    "max_length": (lambda value, limit: len(value) <= limit, "of length <= {}"),
    "pattern": (lambda value, limit: re.fullmatch(limit, value) is not None, "matching {}"),
    "valid_values": (lambda value, limit: value in limit, "that is one of {}"),
}


def check(schema, value, from_text=False, secret=False):
    """`value` as the schema's type, within its constraints.

    `from_text`: a string is converted by the declared type, as on a command line. `secret`: errors do not
    show it.
    """
    if not isinstance(schema, dict) or not isinstance(schema.get("type"), str):
        raise ValueError('the schema has no "type"')
    kind = schema["type"]
    constraints = _constraints(schema)
    try:
        typed = _typed(kind, _parse(kind, value) if from_text and isinstance(value, str) else value)
        json.dumps(typed, allow_nan=False, default=str)  # what is recorded is JSON, which has no NaN and no infinity
        fits = all(
            _CONSTRAINTS[name][0](_comparable(kind, typed), _comparable(kind, limit))
            for name, limit in constraints
        )
    except (ValueError, TypeError, OverflowError, re.error, yaml.YAMLError):
        fits = False
    if not fits:
        raise ValueError(f"expected {_describe(kind, constraints)}, got {_show(kind, value, secret)}")
    entries = schema.get("entry_schema")
    if entries and kind in ("list", "map"):
        entries = {"type": entries} if isinstance(entries, str) else entries
        if kind == "list":
            return [check(entries, entry, secret=secret) for entry in typed]
        return {key: check(entries, entry, secret=secret) for key, entry in typed.items()}
    return typed


def megabytes(size):
    """A scalar-unit.size, such as "2 GB", in whole MB (10**6 bytes), rounded down; None stays None."""
    return None if size is None else int(_quantity("scalar-unit.size", size)[0] / 1000**2)


def _constraints(schema):
    """The schema's constraints as (name, limit) pairs; a range is two of them."""
    pairs = []
    constraints = schema.get("constraints") or []
    if not isinstance(constraints, list):
        raise ValueError('"constraints" must be a list')
    for constraint in constraints:
        if not isinstance(constraint, dict) or len(constraint) != 1:
            raise ValueError(f"{json.dumps(constraint, default=str)} is not a constraint")
        ((name, limit),) = constraint.items()
        if name == "in_range":
            if not isinstance(limit, list) or len(limit) != 2:
                raise ValueError("the constraint in_range needs a list of two limits")
            names = ("greater_or_equal", "less_or_equal")
            pairs += [(name, end) for name, end in zip(names, limit, strict=True) if end != "UNBOUNDED"]
        elif name not in _CONSTRAINTS:
            raise ValueError(f'unknown constraint "{name}"')
        else:
            pairs.append((name, limit))
    return pairs


def _parse(kind, text):
    """A string from a command line as `kind`. Strict: no blanks, no "1_000", no "yes"."""
    if kind == "integer" and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if kind in ("float", "number") and re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text
    ):
        return float(text) if kind == "float" or re.search(r"[.eE]", text) else int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind in ("list", "map", "range"):
        return yaml.safe_load(text)
    return text


def _typed(kind, value):
    if kind in _SCALAR_UNITS:
        return _quantity(kind, value)[1]
    if kind not in _PYTHON_TYPES:
        return value
    if not isinstance(value, _PYTHON_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise ValueError
    return float(value) if kind == "float" else value


def _quantity(kind, value):
    """A number with a unit, as (base units, "number unit" in the standard spelling)."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", value) if isinstance(value, str) else None
    units = _SCALAR_UNITS[kind]
    unit = match and next((one for one in units if one.lower() == match[2].lower()), None)
    if not unit:
        raise ValueError
    return float(match[1]) * units[unit], f"{match[1]} {unit}"


def _comparable(kind, value):
    if kind not in _SCALAR_UNITS:
        return value
    return (
        [_quantity(kind, one)[0] for one in value] if isinstance(value, list) else _quantity(kind, value)[0]
    )


def _describe(kind, constraints):
    what = f'{kind} such as "{_EXAMPLES[kind]}"' if kind in _EXAMPLES else kind
    limits = [
        _CONSTRAINTS[name][1].format(", ".join(map(str, limit)) if isinstance(limit, list) else limit)
        for name, limit in constraints
    ]
    return " ".join([what, " and ".join(limits)]).rstrip()


def _show(kind, value, secret):
    if secret and isinstance(value, str):
        return "a value that is not shown"
    text = json.dumps(value, default=str, ensure_ascii=False)
    if len(text) > 60:
        text = f"{text[:57]}..."
    return f"{text} (put it in quotes)" if kind == "string" and isinstance(value, (int, float)) else text

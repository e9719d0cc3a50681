# SPDX-License-Identifier: Apache-2.0
"""The inputs of a template: what it declares, and the values a deployment gives.

tosca-parser accepts unknown and missing inputs in silence and converts loosely, so all of it is decided here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ansible_collections.dodas.cluster.plugins.module_utils.tosca import values
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.deps import yaml
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError, suggest
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.source import Source

PATH = ("topology_template", "inputs")
CLOUD = "cloud_"  # what settings of a cloud begin with, which every template takes
_KEYS = ("type", "description", "required", "default", "constraints", "status", "entry_schema", "key_schema")
_SECRET = re.compile("token|secret|password|passphrase|credential|private_key")


@dataclass(frozen=True)
class Input:
    """A declared input. `value` is the given one or the default, in its declared `type`; None if neither."""

    name: str
    type: str
    description: str
    default: Any
    required: bool
    value: Any


def read(path):
    """The mapping of input values in a JSON or YAML file. Raises TemplateError."""
    source = Source(path)
    if not isinstance(source.data, dict):
        raise source.error("expected a mapping of inputs to values")
    return source.data


def settings(given):
    """The settings of a cloud among the inputs given; text that begins as a list or mapping is read as one."""
    return {name: _structure(name, value) for name, value in given.items() if name.startswith(CLOUD)}


def _structure(name, value):
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise TemplateError(f'input "{name}": {" ".join(str(exc).split())}') from exc


def resolve(source, given):
    """{name: Input} for the template in `source`; `given` maps names to strings or typed values."""
    declared = (source.data.get("topology_template") or {}).get("inputs") or {}
    if not isinstance(declared, dict):
        raise source.error('"inputs" must be a mapping', PATH)
    for name in given:
        if name not in declared and not name.startswith(CLOUD):
            raise source.error(f'unknown input "{name}"{suggest(name, declared)}', PATH)
    return {name: _resolve(source, name, schema, given) for name, schema in declared.items()}


def _resolve(source, name, schema, given):
    path = (*PATH, name)
    if not isinstance(name, str) or not isinstance(schema, dict):
        raise source.error(f'input "{name}": expected a mapping with "type"', path)
    for key in schema:
        if key not in _KEYS:
            raise source.error(f'input "{name}": unknown key "{key}"{suggest(key, _KEYS)}', (*path, key))
    kind = schema.get("type")
    if kind not in values.TYPES:
        message = (
            f'unknown type "{kind}"{suggest(kind, values.TYPES)}' if "type" in schema else '"type" is missing'
        )
        raise source.error(f'input "{name}": {message}', (*path, "type"))
    required = schema.get("required", True)
    if not isinstance(required, bool):
        raise source.error(f'input "{name}": "required" must be true or false', (*path, "required"))
    secret = _SECRET.search(name.lower()) is not None
    value = default = schema.get("default")
    try:
        if default is not None:
            path = (*path, "default")
            value = default = values.check(schema, default, secret=secret)
        path = (*PATH, name)
        if given.get(name) is not None:
            value = values.check(schema, given[name], from_text=True, secret=secret)
    except ValueError as exc:
        raise source.error(f'input "{name}": {exc}', path) from exc
    if value is None and required:
        raise source.error(f'input "{name}": required, and no value was given', path)
    return Input(name, kind, " ".join(str(schema.get("description") or "").split()), default, required, value)

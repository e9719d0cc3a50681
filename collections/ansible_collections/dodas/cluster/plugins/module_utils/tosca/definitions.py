# SPDX-License-Identifier: Apache-2.0
"""Node types: TOSCA's own, the collection's (types/*.yaml) and a template's.

The only file that imports tosca-parser.
"""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.tosca.deps import (
    ExceptionCollector,
    NodeType,
    ToscaTemplate,
    yaml,
)

SHIPPED = Path(__file__).with_name("types")
SECTIONS = (
    "node_types",
    "capability_types",
    "relationship_types",
    "data_types",
    "interface_types",
    "artifact_types",
    "policy_types",
    "group_types",
)
COMPUTE = "tosca.nodes.Compute"

for _name in ("tosca", "toscaparser"):  # it logs the errors that it raises
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Definition:
    """A node type with all that it inherits: schemas by name, of its properties and of each capability's."""

    lineage: tuple[str, ...]
    role: str | None
    properties: dict
    capabilities: dict
    attributes: frozenset
    requirements: frozenset

    @property
    def is_compute(self):
        return COMPUTE in self.lineage


class Definitions:
    """The node types a template may use: `sections` holds its own and imported ones, as in a TOSCA file."""

    def __init__(self, sections):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.sections = {section: {} for section in SECTIONS}
        shipped = [yaml.load(file.read_bytes(), loader) for file in sorted(SHIPPED.glob("*.yaml"))]
        for types in (*shipped, sections):
            for section in SECTIONS:
                self.sections[section].update(types.get(section) or {})
        self._custom = {name: body for section in self.sections.values() for name, body in section.items()}
        self._cache = {}

    def names(self):
        """The node types that a template can deploy."""
        return [COMPUTE, *(name for name in self.sections["node_types"] if name != "dodas.nodes.Service")]

    def get(self, name):
        """The Definition of node type `name`, or None. Raises ValueError for a type that is itself wrong."""
        if not isinstance(name, str):
            return None
        if name not in self._cache:
            tosca = name in NodeType.TOSCA_DEF and name.startswith("tosca.nodes.")
            self._cache[name] = self._define(name) if tosca or name in self.sections["node_types"] else None
        return self._cache[name]

    def validate(self, data, inputs):
        """The complaints of tosca-parser about the template `data`, whose types are taken from here."""
        # it writes into what it is given
        data = copy.deepcopy(
            {**data, **{section: types for section, types in self.sections.items() if types}}
        )
        data.pop("imports", None)
        try:
            ToscaTemplate(yaml_dict_tpl=data, parsed_params=inputs)
        except Exception as exc:  # besides its own it raises whatever a malformed section makes Python raise
            complaints = [str(one).strip("'") for one in ExceptionCollector.getExceptions()]
            return complaints or [f"{type(exc).__name__}: {exc}"]
        finally:
            ExceptionCollector.stop()
            ExceptionCollector.clear()
        return []

    def _define(self, name):
        try:
            lineage = []
            node = NodeType(name, self._custom)
            role = None
            kind = node
            while kind is not None and kind.type not in lineage:
                lineage.append(kind.type)
                role = role or ((kind.defs or {}).get("metadata") or {}).get("role")
                kind = kind.parent_type
            if kind is not None:
                raise ValueError("it is derived from itself")
            if role is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", str(role)):
                raise ValueError(f'metadata.role "{role}" is not the name of a group')
            return Definition(
                lineage=tuple(lineage),
                role=role,
                properties=_schemas(node),
                capabilities={key: _schemas(one) for key, one in (node.get_capabilities() or {}).items()},
                attributes=frozenset(node.get_attributes_def()),
                requirements=frozenset(key for one in node.get_all_requirements() or [] for key in one),
            )
        except Exception as exc:  # as above
            raise ValueError(f'node type "{name}" is not well defined: {exc}') from exc


def _schemas(kind):
    return {name: definition.schema for name, definition in kind.get_properties_def().items()}

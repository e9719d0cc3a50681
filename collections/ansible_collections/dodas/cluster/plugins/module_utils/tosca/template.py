# SPDX-License-Identifier: Apache-2.0
"""A TOSCA template as hosts, groups and variables.

`load` reads a template, checks it and its inputs down to the last property, and gives a `Template`.
tosca-parser knows TOSCA's own types and has the last word on the document; what it misses (unknown inputs,
hosts that do not exist, the line of an error) is decided here. Nothing is ever downloaded.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.tosca import functions, values
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import inputs as tosca_inputs
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.definitions import (
    SECTIONS,
    SHIPPED,
    Definitions,
)
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.deps import VERSIONS
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError, suggest
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.outputs import Scope
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.source import Source

NODES = ("topology_template", "node_templates")
_VERSION = "tosca_definitions_version"
_TOP_KEYS = (
    _VERSION,
    "metadata",
    "description",
    "imports",
    "topology_template",
    "dsl_definitions",
    "repositories",
    "template_name",
    "template_author",
    "template_version",
    *SECTIONS,
)
_TOPOLOGY_KEYS = (
    "description",
    "inputs",
    "node_templates",
    "outputs",
    "relationship_templates",
    "groups",
    "policies",
    "substitution_mappings",
)
_NODE_KEYS = (
    "type",
    "description",
    "metadata",
    "directives",
    "properties",
    "attributes",
    "requirements",
    "capabilities",
    "interfaces",
    "artifacts",
    "node_filter",
    "copy",
)
_HOST_NODE = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"  # "-" and a number follow, and the whole is a DNS label
_lock = threading.RLock()  # tosca-parser collects its errors in one global list


@dataclass(frozen=True)
class Host:
    """Host number `index` (from 1) of compute node `node`. Sizes in MB (10**6 bytes); None: not asked for."""

    name: str
    node: str
    index: int
    cpus: float | None
    mem_mb: int | None
    disk_mb: int | None
    roles: list[str]


@dataclass(frozen=True)
class Template:
    """A template with its inputs applied.

    name: the file's stem. inputs: {name: Input}. groups: {role: [names of hosts]}.
    group_vars: {role: {"role_property": value}}. scalable: {compute node: {"count", "min", "max", "input"}},
    where input names the input that sets the count, or is None. instances: {role: input} of services whose number is
    an input. settings: {"cloud_...": value} of the cloud that hosts come from, which templates need not declare.
    """

    name: str
    description: str
    inputs: dict[str, tosca_inputs.Input]
    hosts: list[Host]
    groups: dict[str, list[str]]
    group_vars: dict[str, dict]
    scalable: dict[str, dict]
    instances: dict[str, str]
    settings: dict
    _outputs: dict = field(repr=False)
    _scope: Scope = field(repr=False)

    @property
    def values(self):
        """{input: value in use}, to be recorded and given to `load` again."""
        return {**self.settings, **{name: one.value for name, one in self.inputs.items() if one.value is not None}}

    def outputs(self, addresses):
        """{output: value}, None where an address is needed that is not known.

        `addresses` maps hosts to an address or to {"address": ...}, which stands for private_address and
        public_address alike unless it has those. An attribute of a node that is scaled (by an input, or above
        1) is the list of all its hosts' that are known.
        """
        scope = self._scope.at(addresses)
        path = ("topology_template", "outputs")
        return {
            name: functions.evaluate(one["value"], scope, (*path, name, "value"))
            for name, one in self._outputs.items()
        }


def load(path, inputs=None):
    """The Template in file `path`, with `inputs` ({name: string or typed value}). Raises TemplateError."""
    with _lock:
        try:
            return _load(Path(path), inputs or {})
        except RecursionError as exc:
            raise TemplateError("nested too deeply", path) from exc


def _load(file, given):
    source = Source(file)
    if not isinstance(source.data, dict) or _VERSION not in source.data:
        raise source.error(f'not a TOSCA template: no "{_VERSION}" at the top')
    if source.data[_VERSION] not in VERSIONS:
        raise source.error(f"{_VERSION}: expected one of {', '.join(VERSIONS)}", (_VERSION,))
    _keys(source, (), _TOP_KEYS)
    for path in (("description",), ("topology_template", "description")):
        if not isinstance(_mapping(source, path[:-1]).get("description") or "", str):
            raise source.error('"description" must be a string', path)
    if not _keys(source, NODES[:1], _TOPOLOGY_KEYS) or not _mapping(source, NODES):
        raise source.error("the template has no node_templates", NODES)
    definitions = Definitions(_types(source))
    resolved_inputs = tosca_inputs.resolve(source, given)
    topology = _Topology(source, definitions, {name: one.value for name, one in resolved_inputs.items()})
    outputs = topology.check_outputs()
    topology.check_tosca()
    hosts = topology.hosts()
    return Template(
        name=file.stem,
        description=str(source.data.get("description") or "").strip(),
        inputs=resolved_inputs,
        hosts=hosts,
        groups={role: [host.name for host in hosts if role in host.roles] for role in topology.roles},
        group_vars={
            role: {f"{role}_{name}": value for name, value in topology.nodes[node]["properties"].items()}
            for role, node in topology.roles.items()
        },
        scalable=topology.scalable,
        instances=topology.instances(),
        settings={**tosca_inputs.settings(given), **_declared_settings(resolved_inputs)},
        _outputs=outputs,
        _scope=topology.scope,
    )


def _declared_settings(found):
    return tosca_inputs.settings({name: one.value for name, one in found.items() if one.value is not None})


class _Topology:
    """The node templates with all functions resolved, checked in the order in which they stand."""

    def __init__(self, source, definitions, inputs):
        self.source = source
        self.definitions = definitions
        self.raw = {name: _keys(source, (*NODES, name), _NODE_KEYS) for name in _mapping(source, NODES)}
        self.inputs = inputs
        self.kinds = {name: self._kind(name) for name in self.raw}
        self.host_of = {name: self._requirements(name) for name in self.raw}
        self.scope = Scope(self)
        self.nodes = {name: self._resolve(name) for name in self.raw}
        self.roles = self._roles()
        self.scalable = {name: self._scale(name) for name, kind in self.kinds.items() if kind.is_compute}
        if not self.scalable:
            raise source.error("the template has no Compute node, so no host", NODES)

    def hosts(self):
        """All hosts, in the order of the template."""
        found = []
        for name, scale in self.scalable.items():
            size = self.nodes[name]["capabilities"].get("host", {})
            roles = [role for role, service in self.roles.items() if self.host_of[service] == name]
            cpus = size.get("num_cpus")
            found += [
                Host(
                    name=f"{name}-{index}",
                    node=name,
                    index=index,
                    cpus=None if cpus is None else float(cpus),
                    mem_mb=values.megabytes(size.get("mem_size")),
                    disk_mb=values.megabytes(size.get("disk_size")),
                    roles=roles,
                )
                for index in range(1, scale["count"] + 1)
            ]
        return found

    def instances(self):
        """The input that says how many instances there are of a service, by its role."""
        found = {role: functions.input_name(self.scope.raw(node, None, "instances"))
                 for role, node in self.roles.items() if "instances" in self.nodes[node]["properties"]}  # fmt: skip
        return {role: name for role, name in found.items() if name}

    def check_outputs(self):
        """The outputs as declared, after a trial without addresses."""
        path = ("topology_template", "outputs")
        outputs = _mapping(self.source, path)
        for name, output in outputs.items():
            if not isinstance(output, dict) or output.get("value") is None:
                raise self.source.error(f'output "{name}": "value" is missing', (*path, name))
            functions.evaluate(output["value"], self.scope, (*path, name, "value"))
        return outputs

    def check_tosca(self):
        """Let tosca-parser judge the document, with the values in place of the functions."""
        data = self.source.data
        nodes = {}
        for name, raw in self.raw.items():
            capabilities = {
                key: {"properties": part} for key, part in self.nodes[name]["capabilities"].items()
            }
            nodes[name] = {**raw, "properties": self.nodes[name]["properties"], "capabilities": capabilities}
        complaints = self.definitions.validate(
            {**data, "topology_template": {**data["topology_template"], "node_templates": nodes}}, self.inputs
        )
        if complaints:
            quoted = re.findall(r'"([^"]+)"', complaints[0])
            node = next((name for name in quoted if name in self.raw), None)
            raise self.source.error(f"not valid TOSCA: {complaints[0]}", (*NODES, node) if node else ())

    def value(self, node, capability, name, raw, schema):
        """A property's resolved value, with type and constraints checked; None if an input has none."""
        path = (*NODES, node, *(("capabilities", capability) if capability else ()), "properties", name)
        resolved = functions.evaluate(raw, self.scope, path)
        if resolved is None:
            return None
        what = f'{capability}.{name} of "{node}"' if capability else f'property "{name}" of "{node}"'
        given_by = functions.input_name(raw)
        label = f'input "{given_by}" ({what})' if given_by else what
        try:
            return values.check(schema, resolved)
        except ValueError as exc:
            raise self.source.error(f"{label}: {exc}", path) from exc

    def _kind(self, name):
        path = (*NODES, name)
        if not isinstance(name, str):
            raise self.source.error(
                f"node template {name}: the name must be a string; put it in quotes", path
            )
        type_name = self.raw[name].get("type")
        if type_name is None:
            raise self.source.error(f'node template "{name}": "type" is missing', path)
        try:
            kind = self.definitions.get(type_name)
        except ValueError as exc:
            raise self.source.error(exc, (*path, "type")) from exc
        if kind is None:
            hint = suggest(type_name, self.definitions.names())
            raise self.source.error(f'unknown node type "{type_name}"{hint}', (*path, "type"))
        if not kind.is_compute and not kind.role:
            raise self.source.error(
                f'node type "{type_name}" of "{name}" is nothing that dodas can deploy', (*path, "type")
            )
        if kind.is_compute and not re.fullmatch(_HOST_NODE, name):
            raise self.source.error(
                f'node template "{name}": it names hosts; use lower-case letters, digits and '
                "hyphens, 40 at most",
                path,
            )
        return kind

    def _requirements(self, node):
        """Check what `node` requires; the Compute it is hosted on, or None for a Compute."""
        path = (*NODES, node, "requirements")
        requirements = self.raw[node].get("requirements") or []
        if not isinstance(requirements, list):
            raise self.source.error(f'requirements of "{node}" must be a list', path)
        host = None
        for index, requirement in enumerate(requirements):
            place = (*path, index)
            if not isinstance(requirement, dict) or len(requirement) != 1:
                raise self.source.error(f'requirements of "{node}": expected "- NAME: NODE"', place)
            ((name, target),) = requirement.items()
            if name not in self.kinds[node].requirements:
                hint = suggest(name, self.kinds[node].requirements)
                raise self.source.error(f'"{node}" has no requirement "{name}"{hint}', place)
            target = target.get("node") if isinstance(target, dict) else target
            if not isinstance(target, str) or target not in self.raw:
                what = f'requirement "{name}" of "{node}"'
                hint = suggest(target, self.raw)
                raise self.source.error(f'{what}: no node template "{target}"{hint}', place)
            if name != "host":
                continue
            if host is not None:
                raise self.source.error(f'"{node}" has two hosts', place)
            if not self.kinds[target].is_compute:
                raise self.source.error(
                    f'requirement "host" of "{node}": "{target}" is no Compute node', place
                )
            host = target
        if host is None and not self.kinds[node].is_compute:
            raise self.source.error(f'"{node}" has no requirement "host", so it would run nowhere', path)
        return host

    def _resolve(self, node):
        """Its properties, and those of the capabilities that it sets or that dodas reads, as values."""
        kind = self.kinds[node]
        path = (*NODES, node)
        self._known((*path, "properties"), kind.properties, f'property of "{node}"')
        given = self._known((*path, "capabilities"), kind.capabilities, f'capability of "{node}"')
        for capability in given:
            _keys(
                self.source, (*path, "capabilities", capability), ("properties", "attributes", "occurrences")
            )
            self._known(
                (*path, "capabilities", capability, "properties"),
                kind.capabilities[capability],
                f'property of capability "{capability}" of "{node}"',
            )
        if kind.is_compute:
            given = {**{name: {} for name in ("scalable", "host")}, **given}
        return {
            "properties": self._values(node, None, kind.properties),
            "capabilities": {name: self._values(node, name, kind.capabilities[name]) for name in given},
        }

    def _values(self, node, capability, schemas):
        found = {}
        for name, schema in schemas.items():
            value = self.scope.property(node, capability, name)
            if value is not None:
                found[name] = value
            elif schema.get("required", True):
                what = f'{capability}.{name} of "{node}"' if capability else f'property "{name}" of "{node}"'
                raise self.source.error(f"{what} is required", (*NODES, node, "properties"))
        return found

    def _known(self, path, known, what):
        found = _mapping(self.source, path)
        for name in found:
            if name not in known:
                raise self.source.error(f'unknown {what}: "{name}"{suggest(name, known)}', (*path, name))
        return found

    def _roles(self):
        """{role: node template}, in the order of the template."""
        roles = {}
        for node, kind in self.kinds.items():
            if not kind.role:
                continue
            if kind.role in roles:
                raise self.source.error(
                    f'"{node}" and "{roles[kind.role]}" both give the role "{kind.role}"', (*NODES, node)
                )
            roles[kind.role] = node
        return roles

    def _scale(self, node):
        properties = self.nodes[node]["capabilities"]["scalable"]
        low, high = properties["min_instances"], properties["max_instances"]
        name = "count" if "count" in properties else "default_instances"
        count = properties.get(name, low)
        path = (*NODES, node, "capabilities", "scalable", "properties", name)
        given_by = functions.input_name(self.scope.raw(node, "scalable", name))
        if low > high:
            raise self.source.error(
                f'scalable of "{node}": min_instances {low} is above max_instances {high}', path
            )
        if not max(low, 1) <= count <= high:
            what = f'scalable.{name} of "{node}"'
            label = f'input "{given_by}" ({what})' if given_by else what
            raise self.source.error(
                f"{label}: expected integer >= {max(low, 1)} and <= {high}, got {count}", path
            )
        return {"count": count, "min": low, "max": high, "input": given_by}


def _types(source, seen=()):
    """The type sections of the template and of the files it imports."""
    sections = {section: {} for section in SECTIONS}
    imports = source.data.get("imports") or []
    if not isinstance(imports, list):
        raise source.error('"imports" must be a list', ("imports",))
    for index, entry in enumerate(imports):
        place = ("imports", index)
        if isinstance(entry, dict) and "file" not in entry and len(entry) == 1:  # "- NAME: FILE"
            entry = next(iter(entry.values()))
        name = entry.get("file") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name:
            raise source.error("imports: expected the name of a file", place)
        if "://" in name:
            raise source.error(
                f'imports: "{name}" is a URL, and nothing is downloaded; the types of dodas are there '
                "without an import",
                place,
            )
        if (SHIPPED / f"{name.removesuffix('.yaml')}.yaml").is_file() and "/" not in name:
            continue
        file = Path(source.file).parent / name
        if file in seen:
            continue
        if not file.is_file():
            raise source.error(f'imports: no file "{name}" beside the template', place)
        imported = Source(file)
        if not isinstance(imported.data, dict):
            raise imported.error("not a TOSCA file")
        for section, types in _types(imported, (*seen, file)).items():
            sections[section].update(types)
    for section in SECTIONS:
        sections[section].update(_mapping(source, (section,)))
    return sections


def _mapping(source, path):
    """The mapping at `path`, {} if there is none."""
    value = source.data
    for step in path:
        value = value.get(step) or {}
        if not isinstance(value, dict):
            raise source.error(f'"{step}" must be a mapping; check the indentation', path)
    return value


def _keys(source, path, known):
    """The mapping at `path`, whose keys must be TOSCA's."""
    found = _mapping(source, path)
    for key in found:
        if key not in known:
            where = f' in "{path[-1]}"' if path else ""
            raise source.error(f'unknown key "{key}"{where}{suggest(key, known)}', (*path, key))
    return found

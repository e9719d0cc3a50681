# SPDX-License-Identifier: Apache-2.0
"""What get_input, get_property and get_attribute mean in a template, with and without addresses of hosts."""

from __future__ import annotations

import copy

from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import suggest

_ADDRESSES = ("private_address", "public_address")


class Scope:
    """What the functions (functions.evaluate) can refer to in `topology`, a template's checked nodes."""

    def __init__(self, topology):
        self._topology = topology
        self._values = {}  # (node, capability, property) -> value, or _PENDING while it is worked out
        self._addresses = {}

    def at(self, addresses):
        """The same scope with the addresses of hosts: {host: address or {"address": ...}}."""
        scope = copy.copy(self)
        scope._addresses = {
            host: one if isinstance(one, dict) else {"address": one} for host, one in addresses.items() if one
        }
        return scope

    def error(self, message, path):
        return self._topology.source.error(message, path)

    def get_input(self, arguments, path):
        name = arguments[0]
        inputs = self._topology.inputs
        if name not in inputs:
            raise self.error(f'get_input: no input "{name}"{suggest(name, inputs)}', path)
        return self._select(inputs[name], arguments[1:], path)

    def get_property(self, arguments, path):
        node = self._node(arguments[0], path)
        kind = self._topology.kinds[node]
        name, rest = arguments[1], arguments[2:]
        if name in kind.properties:
            return self._select(self.property(node, None, name, path), rest, path)
        if rest and name in kind.capabilities and rest[0] in kind.capabilities[name]:
            return self._select(self.property(node, name, rest[0], path), rest[1:], path)
        raise self.error(
            f'get_property: "{node}" has no property "{name}"{suggest(name, kind.properties)}', path
        )

    def get_attribute(self, arguments, path):
        if path[1] != "outputs":
            raise self.error(
                "get_attribute: known only when the hosts exist, so it can be used in outputs only", path
            )
        node = self._node(arguments[0], path)
        name = arguments[1]
        host = self._topology.host_of[node]
        if host or name not in _ADDRESSES:
            hint = f'; its host is "{host}"' if host else suggest(name, _ADDRESSES)
            raise self.error(f'get_attribute: "{node}" has no attribute "{name}"{hint}', path)
        scale = self._topology.scalable[node]
        records = [self._addresses.get(f"{node}-{index}", {}) for index in range(1, scale["count"] + 1)]
        found = [record.get(name, record.get("address")) for record in records]
        if len(arguments) > 2:
            return self._select(found, arguments[2:], path)
        if scale["count"] == 1 and scale["input"] is None:
            return found[0]
        return [address for address in found if address is not None]

    def raw(self, node, capability, name):
        """The property as the template has it, None if it does not."""
        body = self._topology.raw[node]
        if capability:
            body = (body.get("capabilities") or {}).get(capability) or {}
        return (body.get("properties") or {}).get(name)

    def property(self, node, capability, name, path=()):
        """The property's value: the template's, or else the type's default, or None."""
        key = (node, capability, name)
        if key not in self._values:
            kind = self._topology.kinds[node]
            schema = (kind.capabilities[capability] if capability else kind.properties)[name]
            self._values[key] = _PENDING
            value = self._topology.value(*key, self.raw(*key), schema)
            if value is None:
                value = self._topology.value(*key, schema.get("default"), schema)
            self._values[key] = value
        if self._values[key] is _PENDING:
            raise self.error(f'get_property: property "{name}" of "{node}" is defined by itself', path)
        return self._values[key]

    def _node(self, name, path):
        """A node template's name; SELF and HOST are the one that `path` is in and the one it is hosted on."""
        topology = self._topology
        if name in ("SELF", "HOST") and path[1] == "node_templates":
            here = path[2]
            return here if name == "SELF" else topology.host_of[here] or here
        if name not in topology.raw:
            raise self.error(f'{path[-1]}: no node template "{name}"{suggest(name, topology.raw)}', path)
        return name

    def _select(self, value, steps, path):
        for step in steps:
            if value is None:
                return None
            try:
                value = value[step]
            except (LookupError, TypeError) as exc:
                raise self.error(f'{path[-1]}: there is no "{step}" in the value', path) from exc
        return value


_PENDING = object()

# SPDX-License-Identifier: Apache-2.0
"""TOSCA's functions get_input, get_property, get_attribute, concat, join and token (sections 4.3 to 4.5)."""

from __future__ import annotations

NAMES = ("get_input", "get_property", "get_attribute", "concat", "join", "token")


def called(value):
    """The name of the function that `value` calls, or None."""
    if isinstance(value, dict) and len(value) == 1:
        name = next(iter(value))
        return name if name in NAMES else None
    return None


def input_name(value):
    """The input that `value` is, when it is nothing but a get_input; else None."""
    if called(value) != "get_input":
        return None
    argument = value["get_input"]
    return argument[0] if isinstance(argument, list) and len(argument) == 1 else argument


def evaluate(value, scope, path):
    """`value` with each function in it replaced by its result; None where something is not known yet.

    `scope` answers get_input, get_property and get_attribute (methods of these names that take the arguments
    and the path) and makes errors (`error(message, path)`); `path` is where `value` stands in the template.
    """
    name = called(value)
    if name:
        path = (*path, name)
        arguments = value[name]
        if name.startswith("get_"):
            arguments = arguments if isinstance(arguments, list) else [arguments]
            if len(arguments) < (1 if name == "get_input" else 2) or any(
                isinstance(one, (dict, list)) for one in arguments
            ):
                raise scope.error(
                    f"{name}: expected {'a name' if name == 'get_input' else 'two or more names'}", path
                )
            return getattr(scope, name)(arguments, path)
        if not isinstance(arguments, list) or not arguments:
            raise scope.error(f"{name}: expected a list of arguments", path)
        return _TEXT[name](evaluate(arguments, scope, path), scope, path)
    if isinstance(value, list):
        return [evaluate(one, scope, (*path, index)) for index, one in enumerate(value)]
    if isinstance(value, dict):
        return {key: evaluate(one, scope, (*path, key)) for key, one in value.items()}
    return value


def _concat(parts, scope, path):
    """The parts in one string; a list among them (the addresses of a scaled node) gives a list of strings."""
    if any(part is None for part in parts):
        return None
    lengths = {len(part) for part in parts if isinstance(part, list)}
    if any(isinstance(part, dict) for part in parts) or len(lengths) > 1:
        raise scope.error("concat: expected strings, or lists of one length", path)
    if not lengths:
        return "".join(str(part) for part in parts)
    return [
        "".join(str(part[row] if isinstance(part, list) else part) for part in parts)
        for row in range(lengths.pop())
    ]


def _join(arguments, scope, path):
    if arguments[0] is None:
        return None
    if not isinstance(arguments[0], list) or len(arguments) > 2:
        raise scope.error("join: expected a list of strings and a delimiter", path)
    delimiter = arguments[1] if len(arguments) == 2 else ""
    return None if None in arguments[0] else str(delimiter).join(str(part) for part in arguments[0])


def _token(arguments, scope, path):
    if arguments[0] is None:
        return None
    text, separator, index = arguments if len(arguments) == 3 else (None, None, None)
    valid = isinstance(text, str) and isinstance(separator, str) and separator and isinstance(index, int)
    parts = text.split(separator) if valid else []
    if not valid or not 0 <= index < len(parts):
        raise scope.error("token: expected a string, a separator and the index of a part", path)
    return parts[index]


_TEXT = {"concat": _concat, "join": _join, "token": _token}

# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the store's JSON files without importing json, which would be a third of start-up.

The interpreter's own scanner does the reading; where it has none, json does.
"""

import os


class _Context:
    """What the scanner asks for: JSON as json.loads reads it by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name):
        return float(name.replace("Infinity", "inf"))


def loads(text):
    """The value that a JSON text stands for; raises ValueError."""
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = make_scanner(_Context)(text, 0)
    except StopIteration as exc:
        raise ValueError(f"no JSON at character {exc.value}") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def dumps(value):
    """JSON of plain values: None, booleans, numbers, texts, lists, tuples, and mappings with texts as keys."""
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([dumps(one) for one in value]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join([_quoted(key) + ": " + dumps(one) for key, one in value.items()]) + "}"
    raise TypeError(f"cannot be JSON: {value!r}")


def _quoted(text):
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json.encoder import encode_basestring_ascii
    return encode_basestring_ascii(text)


def read(path):
    """The value in file `path`; raises OSError, ValueError."""
    with open(path, "rb") as source:
        return loads(source.read().decode("utf-8", "surrogateescape"))


def write(path, value):
    """Write a file as a whole or not at all."""
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            _write(temporary, value)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(temporary, value)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def _write(path, value):
    with open(path, "wb") as target:
        target.write(dumps(value).encode())

# SPDX-License-Identifier: Apache-2.0
"""Sections of a configuration file: data classes that say which keys a mapping may hold, and of what kind.

Only what such files need, and the standard library alone: a service that checks its file once should neither be slower
to start for it, nor larger for as long as it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from pathlib import Path

KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}

# For subclasses of Section.
section = dataclasses.dataclass(frozen=True, kw_only=True)


class SectionError(ValueError):
    """A value that does not do. where: the keys that lead to it; the value itself is not in the message."""

    def __init__(self, problem: str, *where: str):
        super().__init__(f"{'.'.join(where)}: {problem}" if where else problem)
        self.problem, self.where = problem, where


@dataclasses.dataclass(frozen=True)
class Between:
    """A number, both ends included."""

    least: float
    most: float

    def __call__(self, value) -> None:
        if not self.least <= value <= self.most:
            raise ValueError(f"must be {self.least} to {self.most}")


@dataclasses.dataclass(frozen=True)
class Length:
    """Text or a list of so many characters or entries."""

    least: int
    most: int | None = None

    def __call__(self, value) -> None:
        if len(value) < self.least:
            raise ValueError(f"must not be shorter than {self.least}" if self.least > 1 else "must not be empty")
        if self.most is not None and len(value) > self.most:
            raise ValueError(f"must not be longer than {self.most}")


@dataclasses.dataclass(frozen=True)
class Matches:
    """Text of which a regular expression fits the whole; says: what it stands for."""

    pattern: str
    says: str

    def __call__(self, value) -> None:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.says}")


@section
class Section:
    """Checks and converts its fields by their types. Raises SectionError."""

    def __post_init__(self):
        for name, kind in _kinds(type(self)).items():
            value = _located(_converted, name, kind, getattr(self, name))
            object.__setattr__(self, name, value)
        _located(type(self).check, None, self)

    def check(self) -> None:
        """What holds between fields. Raises ValueError."""

    @classmethod
    def parse(cls, document) -> typing.Self:
        """From a mapping, as YAML gives it. Raises SectionError."""
        if not isinstance(document, dict):
            raise SectionError("must be a mapping")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in document:
            if key not in fields:
                raise SectionError("unknown key", str(key))
        for name, field in fields.items():
            optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            if name not in document and not optional:
                raise SectionError("is missing", name)
        return cls(**document)


@functools.cache
def _kinds(cls) -> dict:
    return typing.get_type_hints(cls, include_extras=True)


def _located(function, where: str | None, *arguments):
    """Call it; what goes wrong is said to be at that key."""
    at = () if where is None else (where,)
    try:
        return function(*arguments)
    except SectionError as error:
        raise SectionError(error.problem, *at, *error.where) from None
    except ValueError as error:
        raise SectionError(str(error), *at) from None


def _converted(kind, value):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        value = _converted(arguments[0], value)
        for check in arguments[1:]:
            check(value)
        return value
    if origin in (types.UnionType, typing.Union):  # of one kind and None
        return None if value is None else _converted(arguments[0], value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"must be one of {', '.join(arguments)}")
        return value
    if origin is list:
        _need(list, list(value) if isinstance(value, tuple) else value)
        return [_located(_converted, str(number), arguments[0], one) for number, one in enumerate(value)]
    if origin is dict:
        return _need(dict, value)
    if kind is typing.Any or (isinstance(value, kind) and isinstance(value, (Section, Path))):
        return value
    if issubclass(kind, Section):
        return kind.parse(value)
    if kind is Path:
        return Path(_need(str, value))
    return _need(kind, value)


def _need(kind, value):
    if kind is int and isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        return int(value)  # as templates write them
    if kind is float and type(value) is int:
        return value
    if type(value) is not kind:
        raise ValueError(f"must be {KINDS[kind]}")
    return value

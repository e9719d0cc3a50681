# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dodas.credentials.sections import Between, Length, Matches, Section, SectionError, section


@section
class Inner(Section):
    port: Annotated[int, Between(1, 10)] = 5
    names: Annotated[list[str], Length(1)]

    def check(self):
        if self.names[0] == "bad":
            raise ValueError("bad comes first")


@section
class Outer(Section):
    inner: Inner
    many: list[Inner] = dataclasses.field(default_factory=list)
    path: Path | None = None
    kind: Literal["a", "b"] = "a"
    ratio: Annotated[float, Between(0, 1)] = 0.5
    flag: bool = False
    word: Annotated[str, Matches("[a-z]+", "lower case"), Length(0, 5)] = "a"
    free: dict[str, Any] = dataclasses.field(default_factory=dict)


GOOD = {"inner": {"names": ["x"]}}


def test_values_are_converted():
    found = Outer.parse({**GOOD, "path": "/x", "ratio": 1, "many": [{"names": ["y"], "port": "7"}], "free": {"a": [1]},
                         "word": "abc"})  # fmt: skip
    assert found.inner == Inner(names=["x"]) and found.inner.port == 5
    assert (found.path, found.ratio, found.many[0].port, found.free) == (Path("/x"), 1, 7, {"a": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.flag = True
    assert dataclasses.replace(found, kind="b").kind == "b"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "must be a mapping"),
        ([], "must be a mapping"),
        ({}, "inner: is missing"),
        ({"inner": {}}, "inner.names: is missing"),
        ({"inner": []}, "inner: must be a mapping"),
        ({"inner": {"names": []}}, "inner.names: must not be empty"),
        ({"inner": {"names": "x"}}, "inner.names: must be a list"),
        ({"inner": {"names": ["x", 1]}}, "inner.names.1: must be text"),
        ({"inner": {"names": ["bad"]}}, "inner: bad comes first"),
        ({"inner": {"names": ["x"], "port": 11}}, "inner.port: must be 1 to 10"),
        ({"inner": {"names": ["x"], "port": True}}, "inner.port: must be a whole number"),
        ({"inner": {"names": ["x"], "port": 1.0}}, "inner.port: must be a whole number"),
        ({"inner": {"names": ["x"], "port": "x"}}, "inner.port: must be a whole number"),
        ({**GOOD, "many": [{"names": ["y"]}, {"names": [None]}]}, "many.1.names.0: must be text"),
        ({**GOOD, "path": 1}, "path: must be text"),
        ({**GOOD, "kind": "c"}, "kind: must be one of a, b"),
        ({**GOOD, "kind": ["a"]}, "kind: must be one of a, b"),
        ({**GOOD, "ratio": "0.5"}, "ratio: must be a number"),
        ({**GOOD, "flag": "yes"}, "flag: must be true or false"),
        ({**GOOD, "word": "A"}, "word: must be lower case"),
        ({**GOOD, "word": "abcdef"}, "word: must not be longer than 5"),
        ({**GOOD, "free": []}, "free: must be a mapping"),
        ({**GOOD, "other": 1}, "other: unknown key"),
        ({**GOOD, 1: 1}, "1: unknown key"),
    ],
)
def test_what_does_not_do_is_named(document, message):
    with pytest.raises(SectionError) as caught:
        Outer.parse(document)
    assert str(caught.value) == message


def test_the_service_starts_without_what_only_plugins_need():
    script = "import sys, dodas.credentials.__main__; print('pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"

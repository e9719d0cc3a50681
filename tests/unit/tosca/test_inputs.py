# SPDX-License-Identifier: Apache-2.0
"""Inputs: strings from a command line, typed values from a file; everything else is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.tosca import inputs, values
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.template import load

TEMPLATE = """\
tosca_definitions_version: tosca_simple_yaml_1_0
topology_template:
  inputs:
    workers:
      type: integer
      default: 2
      constraints: [{ greater_or_equal: 1 }]
    ratio: { type: float, default: 1 }
    debug: { type: boolean, default: false }
    name: { type: string, default: x, constraints: [{ pattern: "[a-z]*" }, { max_length: 5 }] }
    mode: { type: string, default: fast, constraints: [{ valid_values: [fast, slow] }] }
    memory: { type: scalar-unit.size, default: 1 GB, constraints: [{ in_range: [512 MB, 8 GB] }] }
    ports: { type: list, default: [1], entry_schema: { type: integer } }
    tags: { type: map, default: {}, entry_schema: string }
    extra: { type: string, required: false }
    access_token: { type: string, default: abc, constraints: [{ min_length: 3 }] }
    needed: { type: string }
  node_templates:
    front:
      type: dodas.nodes.Compute
      capabilities:
        scalable: { properties: { count: { get_input: workers } } }
        host: { properties: { mem_size: { get_input: memory } } }
    pool:
      type: dodas.nodes.HTCondor
      properties: { pool_name: { get_input: extra } }
      requirements: [{ host: front }]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "site.yaml"
    path.write_text(TEMPLATE)
    return path


def used(template, **given):
    return load(template, {"needed": "y", **given}).values


def fails(template, **given):
    with pytest.raises(TemplateError) as caught:
        load(template, {"needed": "y", **given})
    return caught.value.message


def test_defaults(template):
    loaded = load(template, {"needed": "y"})
    assert loaded.values == {
        "workers": 2,
        "ratio": 1.0,
        "debug": False,
        "name": "x",
        "mode": "fast",
        "memory": "1 GB",
        "ports": [1],
        "tags": {},
        "access_token": "abc",
        "needed": "y",
    }
    assert loaded.inputs["extra"].value is None and not loaded.inputs["extra"].required
    assert loaded.group_vars["htcondor"]["htcondor_pool_name"] == "", (
        "an input without a value leaves the default"
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("workers", "3", 3),
        ("ratio", "0.5", 0.5),
        ("ratio", "2", 2.0),
        ("debug", "true", True),
        ("name", "", ""),
        ("mode", "slow", "slow"),
        ("memory", "2gib", "2 GiB"),
        ("ports", "[80, 443]", [80, 443]),
        ("tags", "{a: b}", {"a": "b"}),
        ("extra", "07", "07"),
    ],
)
def test_strings_are_converted(template, name, text, value):
    assert used(template, **{name: text})[name] == value
    assert used(template, **{name: value})[name] == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("workers", "three", 'input "workers": expected integer >= 1, got "three"'),
        ("workers", "0", 'input "workers": expected integer >= 1, got "0"'),
        ("workers", 0, 'input "workers": expected integer >= 1, got 0'),
        ("workers", -1, 'input "workers": expected integer >= 1, got -1'),
        ("workers", 1.5, 'input "workers": expected integer >= 1, got 1.5'),
        ("workers", "1.5", 'input "workers": expected integer >= 1, got "1.5"'),
        ("workers", "1_0", 'input "workers": expected integer >= 1, got "1_0"'),
        ("workers", " 3", 'input "workers": expected integer >= 1, got " 3"'),
        ("workers", "", 'input "workers": expected integer >= 1, got ""'),
        ("workers", True, 'input "workers": expected integer >= 1, got true'),
        ("workers", [3], 'input "workers": expected integer >= 1, got [3]'),
        (
            "workers",
            1001,
            'input "workers" (scalable.count of "front"): expected integer >= 1 and <= 1000, got 1001',
        ),
        ("ratio", "nan", 'input "ratio": expected float, got "nan"'),
        ("ratio", float("inf"), 'input "ratio": expected float, got Infinity'),
        ("ports", [float("nan")], 'input "ports": expected list, got [NaN]'),
        ("debug", "yes", 'input "debug": expected boolean, got "yes"'),
        ("name", "A", 'input "name": expected string matching [a-z]* and of length <= 5, got "A"'),
        (
            "name",
            5,
            'input "name": expected string matching [a-z]* and of length <= 5, got 5 (put it in quotes)',
        ),
        ("mode", "quick", 'input "mode": expected string that is one of fast, slow, got "quick"'),
        (
            "memory",
            "1 MB",
            'input "memory": expected scalar-unit.size such as "2 GB" >= 512 MB and <= 8 GB, got "1 MB"',
        ),
        (
            "memory",
            1024,
            'input "memory": expected scalar-unit.size such as "2 GB" >= 512 MB and <= 8 GB, got 1024',
        ),
        ("ports", "80", 'input "ports": expected list, got "80"'),
        ("ports", ["a"], 'input "ports": expected integer, got "a"'),
        ("ports", "[", 'input "ports": expected list, got "["'),
        ("tags", {"a": 1}, 'input "tags": expected string, got 1 (put it in quotes)'),
        ("wokers", "3", 'unknown input "wokers"; did you mean "workers"?'),
        (
            "access_token",
            "s3",
            'input "access_token": expected string of length >= 3, got a value that is not shown',
        ),
        ("extra", "x" * 100, None),
        ("mode", "x" * 100, f'input "mode": expected string that is one of fast, slow, got "{"x" * 56}...'),
    ],
)
def test_wrong_inputs(template, name, value, message):
    if message is None:
        assert used(template, **{name: value})[name] == value
    else:
        assert fails(template, **{name: value}) == message


def test_required_input(template):
    with pytest.raises(TemplateError) as caught:
        load(template)
    assert (caught.value.message, caught.value.line) == (
        'input "needed": required, and no value was given',
        17,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(min_value=-10, max_value=30))
def test_any_count(template, count):
    if count < 1:
        assert fails(template, workers=str(count)) == f'input "workers": expected integer >= 1, got "{count}"'
    else:
        loaded = load(template, {"needed": "y", "workers": str(count)})
        assert [host.name for host in loaded.hosts] == [f"front-{index}" for index in range(1, count + 1)]
        assert loaded.groups["htcondor"] == [host.name for host in loaded.hosts]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANYTHING = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=8)
NAMES = st.sampled_from(
    ["workers", "ratio", "debug", "name", "mode", "memory", "ports", "tags", "extra", "other"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_inputs=st.dictionaries(NAMES, ANYTHING, max_size=3))
def test_anything_is_taken_or_refused_by_name(template, given_inputs):
    try:
        loaded = load(template, {"needed": "y", **given_inputs})
    except TemplateError as error:
        assert any(f'input "{name}"' in error.message for name in given_inputs)
        assert "\n" not in str(error)
    else:
        recorded = json.loads(json.dumps(loaded.values))
        assert load(template, recorded).values == loaded.values, (
            "what is recorded gives the same deployment again"
        )


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(values.TYPES), value=ANYTHING, text=st.booleans())
def test_check_gives_a_value_or_a_value_error(kind, value, text):
    try:
        checked = values.check({"type": kind}, value, from_text=text)
    except ValueError as error:
        assert str(error).startswith(f"expected {kind}")
    else:
        assert values.check({"type": kind}, checked) == checked


def test_read(tmp_path):
    file = tmp_path / "inputs.json"
    file.write_text('{"workers": 3}')
    assert inputs.read(file) == {"workers": 3}
    file.write_text("workers: 3\nworkers: 4\n")
    with pytest.raises(
        TemplateError, match=r'inputs.json:2: key "workers" appears twice \(first on line 1\)$'
    ):
        inputs.read(file)
    file.write_text("[1]")
    with pytest.raises(TemplateError, match=r"inputs.json:1: expected a mapping of inputs to values$"):
        inputs.read(file)

# SPDX-License-Identifier: Apache-2.0
"""Templates: what a good one becomes, and what each way of being wrong is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.template import load

TIER3 = Path(__file__).parents[3] / "templates" / "tier3.yaml"
SERVICES = ("consul", "identity", "credentials", "squid", "conditions", "htcondor")

GOOD = """\
tosca_definitions_version: tosca_simple_yaml_1_0
topology_template:
  inputs:
    workers:
      type: integer
      default: 2
  node_templates:
    front:
      type: dodas.nodes.Compute
    worker:
      type: dodas.nodes.Compute
      capabilities:
        scalable:
          properties:
            count: { get_input: workers }
            max_instances: 5
        host:
          properties:
            num_cpus: 0.5
            mem_size: 2 GiB
            disk_size: 10 gb
    squid:
      type: dodas.nodes.Squid
      properties:
        port: 3129
      requirements:
        - host: front
    startd:
      type: dodas.nodes.Worker
      requirements:
        - host: worker
        - dependency: squid
"""


@pytest.fixture
def write(tmp_path):
    """Write a template: GOOD with (old, new) replacements, or a text; returns its path."""

    def _write(*replacements, text=GOOD):
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "site.yaml"
        path.write_text(text)
        return path

    return _write


def fails(path, inputs=None):
    """(message, line) of the error, which must be short and name the file."""
    with pytest.raises(TemplateError) as caught:
        load(path, inputs)
    error = caught.value
    place = f"{path}:{error.line}" if error.line else f"{path}"
    assert str(error) == f"{place}: {error.message}"
    assert "\n" not in str(error) and "Traceback" not in str(error) and len(error.message) < 320
    return error.message, error.line


def test_cms_mesos():
    template = load(TIER3.with_name("cms-mesos.yaml"), {"workers": "5", "masters": "1"})
    assert template.groups["mesos_master"] == template.groups["zookeeper"] == ["master-1"]
    assert template.groups["worker"] == template.groups["mesos_agent"] == ["agent-1", "agent-2"]
    assert template.instances == {"worker": "workers", "squid": "squids"}
    assert template.group_vars["worker"]["worker_instances"] == 5
    with pytest.raises(TemplateError, match="masters"):
        load(TIER3.with_name("cms-mesos.yaml"), {"masters": "2"})


def test_tier3():
    template = load(TIER3, {"workers": "3", "worker_memory_mb": 2048})
    assert template.name == "tier3"
    assert template.description.startswith("A Tier-3 for a week")
    assert [host.name for host in template.hosts] == ["front-1", "worker-1", "worker-2", "worker-3"]
    assert template.groups == {
        **{role: ["front-1"] for role in SERVICES},
        "worker": ["worker-1", "worker-2", "worker-3"],
    }
    assert template.group_vars == {
        "consul": {"consul_datacenter": "dc1"},
        "identity": {"identity_port": 8443, "identity_issuer": "", "identity_token_lifetime": 3600},
        "credentials": {"credentials_port": 8444, "credentials_proxy_lifetime": 43200},
        "squid": {"squid_port": 3128, "squid_cache_mb": 1024, "squid_instances": 1, "squid_memory_mb": 64},
        "conditions": {"conditions_port": 8088},
        "htcondor": {"htcondor_port": 9618, "htcondor_pool_name": "T3_Dodas"},
        "worker": {"worker_cpus": 1, "worker_memory_mb": 2048, "worker_scratch_mb": 1024, "worker_instances": 1,
                   **dict.fromkeys(("worker_outside_host", "worker_outside_ccb", "worker_cms_site"), "")},
    }
    assert template.instances == {}
    assert template.scalable == {
        "front": {"count": 1, "min": 1, "max": 1, "input": None},
        "worker": {"count": 3, "min": 1, "max": 200, "input": "workers"},
    }
    assert template.inputs["workers"].value == 3 and template.inputs["workers"].default == 2
    assert template.hosts[1].mem_mb == 2048
    assert load(TIER3, template.values) == template or load(TIER3, template.values).values == template.values


def test_outputs_of_tier3():
    template = load(TIER3)
    outputs = template.outputs({"front-1": {"address": "10.0.0.2"}, "worker-1": "10.0.0.3", "worker-2": None})
    assert outputs == {
        "front_address": "10.0.0.2",
        "worker_addresses": ["10.0.0.3"],
        "htcondor_endpoint": "10.0.0.2:9618",
        "identity_issuer": "",
        "identity_endpoint": "https://10.0.0.2:8443",
        "credentials_endpoint": "https://10.0.0.2:8444",
        "squid_proxy": "http://10.0.0.2:3128",
        "conditions_url": "http://10.0.0.2:8088",
        "workers": 2,
    }
    assert template.outputs({})["htcondor_endpoint"] is None


def test_sizes_of_hosts(write):
    template = load(write())
    front, worker = template.hosts[0], template.hosts[2]
    assert (front.cpus, front.mem_mb, front.disk_mb, front.roles) == (None, None, None, ["squid"])
    assert (worker.name, worker.node, worker.index) == ("worker-2", "worker", 2)
    assert (worker.cpus, worker.mem_mb, worker.disk_mb, worker.roles) == (0.5, 2147, 10000, ["worker"])


def test_types_of_tosca_itself(write):
    template = load(write(("front:\n      type: dodas.nodes", "front:\n      type: tosca.nodes")))
    assert template.scalable["front"] == {"count": 1, "min": 1, "max": 1, "input": None}


def test_own_type_keeps_the_role(write):
    own = """
        node_types:
          site.nodes.Squid:
            derived_from: dodas.nodes.Squid
            properties:
              refresh: { type: integer, default: 5 }
        topology_template:"""
    path = write(
        ("\ntopology_template:", textwrap.dedent(own)), ("type: dodas.nodes.Squid", "type: site.nodes.Squid")
    )
    assert load(path).group_vars["squid"] == {
        "squid_port": 3129,
        "squid_cache_mb": 1024, "squid_instances": 1,
        "squid_memory_mb": 64,
        "squid_refresh": 5,
    }


def test_import_of_a_file_beside_the_template(write, tmp_path):
    (tmp_path / "own.yaml").write_text("node_types:\n  site.nodes.Squid: {derived_from: dodas.nodes.Squid}\n")
    head = "\nimports: [dodas, dodas.yaml, own.yaml, {own: own.yaml}]\ntopology_template:"
    path = write(("\ntopology_template:", head), ("dodas.nodes.Squid\n", "site.nodes.Squid\n"))
    assert "squid" in load(path).groups


FUNCTIONS = [
    ("{ concat: [a, 1, { get_input: workers }] }", "a12"),
    ('{ join: [[a, b], "-"] }', "a-b"),
    ('{ token: ["a:b", ":", 1] }', "b"),
    ("{ get_property: [squid, port] }", 3129),
    ("{ get_property: [worker, scalable, max_instances] }", 5),
    ("{ get_attribute: [front, public_address] }", "10.0.0.1"),
    ("{ get_attribute: [worker, private_address] }", ["10.0.1.1", "10.0.1.2"]),
    ("{ get_attribute: [worker, private_address, 1] }", "10.0.1.2"),
    ('{ concat: [{ get_attribute: [worker, private_address] }, ":80"] }', ["10.0.1.1:80", "10.0.1.2:80"]),
    ('{ join: [{ get_attribute: [worker, private_address] }, ","] }', "10.0.1.1,10.0.1.2"),
]


@pytest.mark.parametrize(("expression", "value"), FUNCTIONS)
def test_functions_in_outputs(write, expression, value):
    path = write(text=f"{GOOD}  outputs:\n    it: {{ value: {expression} }}\n")
    addresses = {"front-1": "10.0.0.1", "worker-1": "10.0.1.1", "worker-2": "10.0.1.2"}
    assert load(path).outputs(addresses) == {"it": value}


def test_functions_in_properties(write):
    path = write(("port: 3129", "port: { get_property: [startd, memory_mb] }"))
    assert load(path).group_vars["squid"]["squid_port"] == 1024
    path = write(("port: 3129", "cache_mb: { get_property: [SELF, port] }"))
    assert load(path).group_vars["squid"]["squid_cache_mb"] == 3128
    path = write(("port: 3129", "cache_mb: { get_property: [HOST, scalable, max_instances] }"))
    assert load(path).group_vars["squid"]["squid_cache_mb"] == 1000


COUNT = "count: { get_input: workers }"
SQUID = "type: dodas.nodes.Squid"
ERRORS = {
    # YAML
    "tab": ([("  inputs:", "\tinputs:")], "not valid YAML: a tab; indent with spaces", 3),
    "indent": (
        [("      default: 2", "     default: 2")],
        "not valid YAML: expected <block end>, but found '<block mapping start>'; check the indentation",
        6,
    ),
    "colon": (
        [("type: integer", "type: integer: x")],
        "not valid YAML: mapping values are not allowed here; check the indentation",
        5,
    ),
    "key twice": (
        [("        port: 3129", "        port: 3129\n        port: 3130")],
        'key "port" appears twice (first on line 25)',
        26,
    ),
    "node twice": ([("    startd:", "    squid:")], 'key "squid" appears twice (first on line 22)', 28),
    "alias of itself": ([("      default: 2", "      default: &a [*a]")], "an alias contains itself", 6),
    # not TOSCA
    "no version": (
        [("tosca_definitions_version: tosca_simple_yaml_1_0\n", "")],
        'not a TOSCA template: no "tosca_definitions_version" at the top',
        1,
    ),
    "other version": (
        [("yaml_1_0", "yaml_9")],
        "tosca_definitions_version: expected one of tosca_simple_yaml_1_0, tosca_simple_yaml_1_2, "
        "tosca_simple_yaml_1_3",
        1,
    ),
    "unknown section": (
        [("\ntopology_template", "\ntopology_templates")],
        'unknown key "topology_templates"; did you mean "topology_template"?',
        2,
    ),
    "key of a node": (
        [("      properties:\n        port: 3129", "      propertis:\n        port: 3129")],
        'unknown key "propertis" in "squid"; did you mean "properties"?',
        24,
    ),
    "list for a mapping": (
        [("      properties:\n        port: 3129", "      properties:\n        - port: 3129")],
        '"properties" must be a mapping; check the indentation',
        24,
    ),
    # nodes
    "unknown type": (
        [(SQUID, "type: dodas.nodes.Sqiud")],
        'unknown node type "dodas.nodes.Sqiud"; did you mean "dodas.nodes.Squid"?',
        23,
    ),
    "type without its prefix": (
        [(SQUID, "type: squid")],
        'unknown node type "squid"; did you mean "dodas.nodes.Squid"?',
        23,
    ),
    "type missing": ([(SQUID, "description: x")], 'node template "squid": "type" is missing', 22),
    "type that cannot be deployed": (
        [(SQUID, "type: tosca.nodes.WebServer")],
        'node type "tosca.nodes.WebServer" of "squid" is nothing that dodas can deploy',
        23,
    ),
    "name of a host": (
        [("    front:", "    Front_1:"), ("host: front", "host: Front_1")],
        'node template "Front_1": it names hosts; use lower-case letters, digits and hyphens, 40 at most',
        8,
    ),
    "unknown property": (
        [("port: 3129", "prot: 3129")],
        'unknown property of "squid": "prot"; did you mean "port"?',
        25,
    ),
    "unknown capability": (
        [("        scalable:", "        scaleable:")],
        'unknown capability of "worker": "scaleable"; did you mean "scalable"?',
        13,
    ),
    "unknown capability property": (
        [("num_cpus: 0.5", "num_cpu: 0.5")],
        'unknown property of capability "host" of "worker": "num_cpu"; did you mean "num_cpus"?',
        19,
    ),
    "ill-typed property": (
        [("port: 3129", 'port: "3129"')],
        'property "port" of "squid": expected integer >= 1 and <= 65535, got "3129"',
        25,
    ),
    "property out of range": (
        [("port: 3129", "port: 70000")],
        'property "port" of "squid": expected integer >= 1 and <= 65535, got 70000',
        25,
    ),
    "boolean for a number": (
        [("port: 3129", "port: yes")],
        'property "port" of "squid": expected integer >= 1 and <= 65535, got true',
        25,
    ),
    "size": (
        [("2 GiB", "abc")],
        'host.mem_size of "worker": expected scalar-unit.size such as "2 GB" >= 1 MB, got "abc"',
        20,
    ),
    "number for a string": (
        [(SQUID, "type: dodas.nodes.Consul"), ("port: 3129", "datacenter: 1.5")],
        'property "datacenter" of "squid": expected string matching [a-z0-9_-]{1,60}, '
        "got 1.5 (put it in quotes)",
        25,
    ),
    # requirements
    "host that is not there": (
        [("host: front", "host: frnt")],
        'requirement "host" of "squid": no node template "frnt"; did you mean "front"?',
        27,
    ),
    "host that is a service": (
        [("host: worker", "host: squid")],
        'requirement "host" of "startd": "squid" is no Compute node',
        31,
    ),
    "no host": (
        [("        - host: front\n", "")],
        '"squid" has no requirement "host", so it would run nowhere',
        26,
    ),
    "two hosts": ([("- host: front", "- host: front\n        - host: worker")], '"squid" has two hosts', 28),
    "unknown requirement": (
        [("dependency: squid", "depends: squid")],
        '"startd" has no requirement "depends"; did you mean "dependency"?',
        32,
    ),
    "dependency that is not there": (
        [("dependency: squid", "dependency: { node: sqid }")],
        'requirement "dependency" of "startd": no node template "sqid"; did you mean "squid"?',
        32,
    ),
    "role twice": (
        [("dodas.nodes.Worker", "dodas.nodes.Squid")],
        '"startd" and "squid" both give the role "squid"',
        28,
    ),
    # counts
    **{
        f"count {count}": (
            [(COUNT, f"count: {count}")],
            f'scalable.count of "worker": expected integer >= 1, got {shown}',
            15,
        )
        for count, shown in [("0", "0"), ("-1", "-1"), ("three", '"three"'), ("1.5", "1.5")]
    },
    "count above max": (
        [(COUNT, "count: 6")],
        'scalable.count of "worker": expected integer >= 1 and <= 5, got 6',
        15,
    ),
    "default input above max": (
        [("default: 2", "default: 6")],
        'input "workers" (scalable.count of "worker"): expected integer >= 1 and <= 5, got 6',
        15,
    ),
    "min above max": (
        [("max_instances: 5", "max_instances: 5\n            min_instances: 6")],
        'scalable of "worker": min_instances 6 is above max_instances 5',
        15,
    ),
    # inputs and functions
    "undeclared input": (
        [("get_input: workers", "get_input: wokers")],
        'get_input: no input "wokers"; did you mean "workers"?',
        15,
    ),
    "type of an input": (
        [("type: integer", "type: int")],
        'input "workers": unknown type "int"; did you mean "integer"?',
        5,
    ),
    "default of an input": (
        [("default: 2", "default: two")],
        'input "workers": expected integer, got "two"',
        6,
    ),
    "key of an input": (
        [("default: 2", "defualt: 2")],
        'input "workers": unknown key "defualt"; did you mean "default"?',
        6,
    ),
    "constraint of an input": (
        [("default: 2", "default: 2\n      constraints: [{ at_least: 1 }]")],
        'input "workers": unknown constraint "at_least"',
        6,
    ),
    "attribute in a property": (
        [("port: 3129", "port: { get_attribute: [front, private_address] }")],
        "get_attribute: known only when the hosts exist, so it can be used in outputs only",
        25,
    ),
    "property of itself": (
        [("port: 3129", "port: { get_property: [SELF, port] }")],
        'get_property: property "port" of "squid" is defined by itself',
        25,
    ),
    "property of nobody": (
        [("port: 3129", "port: { get_property: [sqid, port] }")],
        'get_property: no node template "sqid"; did you mean "squid"?',
        25,
    ),
    "function without arguments": (
        [("port: 3129", "port: { get_property: squid }")],
        "get_property: expected two or more names",
        25,
    ),
    # imports and types
    "import from the net": (
        [("\ntopology_template:", "\nimports:\n  - types: https://example.org/t.yaml\ntopology_template:")],
        'imports: "https://example.org/t.yaml" is a URL, and nothing is downloaded; '
        "the types of dodas are there without an import",
        3,
    ),
    "import that is not there": (
        [("\ntopology_template:", "\nimports:\n  - own.yaml\ntopology_template:")],
        'imports: no file "own.yaml" beside the template',
        3,
    ),
    "type derived from itself": (
        [
            ("\ntopology_template:", "\nnode_types:\n  a.B: { derived_from: a.B }\ntopology_template:"),
            (SQUID, "type: a.B"),
        ],
        'node type "a.B" is not well defined: it is derived from itself',
        25,
    ),
    "type derived from nothing": (
        [
            ("\ntopology_template:", "\nnode_types:\n  a.B: { derived_from: a.C }\ntopology_template:"),
            (SQUID, "type: a.B"),
        ],
        'node type "a.B" is not well defined: Type "a.C" is not a valid type.',
        25,
    ),
    "required property": (
        [
            (
                "\ntopology_template:",
                "\nnode_types:\n  a.B:\n    derived_from: dodas.nodes.Squid\n    properties:\n"
                "      mode: { type: string }\ntopology_template:",
            ),
            (SQUID, "type: a.B"),
        ],
        'property "mode" of "squid" is required',
        29,
    ),
    # what only tosca-parser finds
    "interface": (
        [("port: 3129", "port: 3129\n      interfaces:\n        Standard: { explode: x }")],
        'not valid TOSCA: "interfaces" of template "squid" contains unknown field "explode". Refer to the '
        "definition to verify valid values.",
        22,
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(write, case):
    replacements, message, line = ERRORS[case]
    assert fails(write(*replacements)) == (message, line)


OUTPUT_ERRORS = [
    ("{ description: x }", 'output "it": "value" is missing'),
    (
        "{ value: { get_attribute: [frnt, private_address] } }",
        'get_attribute: no node template "frnt"; did you mean "front"?',
    ),
    (
        "{ value: { get_attribute: [front, private_addres] } }",
        'get_attribute: "front" has no attribute "private_addres"; did you mean "private_address"?',
    ),
    (
        "{ value: { get_attribute: [squid, private_address] } }",
        'get_attribute: "squid" has no attribute "private_address"; its host is "front"',
    ),
    (
        "{ value: { get_property: [squid, prot] } }",
        'get_property: "squid" has no property "prot"; did you mean "port"?',
    ),
    ("{ value: { get_input: wokers } }", 'get_input: no input "wokers"; did you mean "workers"?'),
    ("{ value: { concat: x } }", "concat: expected a list of arguments"),
    ('{ value: { token: [a, ":", 4] } }', "token: expected a string, a separator and the index of a part"),
    (
        "{ value: { get_attribute: [worker, private_address, 9] } }",
        'get_attribute: there is no "9" in the value',
    ),
]


@pytest.mark.parametrize(("output", "message"), OUTPUT_ERRORS)
def test_errors_in_outputs(write, output, message):
    assert fails(write(text=f"{GOOD}  outputs:\n    it: {output}\n")) == (message, 34)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "the file is empty", None),
        ("# nothing\n", "the file is empty", None),
        ("- a\n- b\n", 'not a TOSCA template: no "tosca_definitions_version" at the top', 1),
        ("tosca_definitions_version: tosca_simple_yaml_1_0\n", "the template has no node_templates", 1),
        ("a: \x07\n", "not valid YAML: it contains a control character", None),
        ("a: 2020-13-45\n", "not valid YAML: month must be in 1..12", 1),
        ("a: 1\n---\nb: 2\n", "not valid YAML: but found another document", 2),
        ("[" * 5000, "nested too deeply", None),
    ],
)
def test_files_that_are_not_templates(write, text, message, line):
    assert fails(write(text=text)) == (message, line)


def test_files_that_cannot_be_read(tmp_path):
    assert fails(tmp_path / "none.yaml") == ("no such file", None)
    assert fails(tmp_path) == ("is a directory, not a file", None)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: b\nc: \xff\n")
    assert fails(binary) == ("not UTF-8 text", 2)


def test_a_small_file_that_expands_to_a_huge_one(write):
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    message, _ = fails(write(text=f"a0: &a0 x\n{levels}"))
    assert message == "more than 100000 values"


def test_errors_do_not_depend_on_what_was_loaded_before(write):
    good, bad = TIER3, write((SQUID, "type: x.Y"))
    before = load(good).group_vars
    fails(bad)
    assert load(good).group_vars == before


def test_loading_is_silent_and_fast():
    code = f"""
import time
start = time.perf_counter()
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.template import load
load({str(TIER3)!r})
assert time.perf_counter() - start < 5, "the import of tosca-parser included"
start = time.perf_counter()
load({str(TIER3)!r})
assert time.perf_counter() - start < 1
"""
    environment = {**os.environ, "PYTHONPATH": str(TIER3.parents[1] / "collections")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LINES = TIER3.read_text().splitlines()
JUNK = [
    "",
    "  - x",
    "x: y",
    "    type: [a]",
    "  1: 2",
    "null",
    "- {a: {b: c}}",
    "        count: {}",
    "  properties: 3",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.integers(0, len(LINES) - 1), junk=st.sampled_from(JUNK), indent=st.integers(-4, 8))
def test_a_damaged_template_loads_or_says_why(write, line, junk, indent):
    old = LINES[line]
    new = junk or (" " * indent + old if indent > 0 else old[-indent:])
    path = write(text="\n".join([*LINES[:line], new, *LINES[line + 1 :]]) + "\n")
    try:
        load(path)
    except TemplateError:
        fails(path)

# SPDX-License-Identifier: Apache-2.0
"""The checks of `make lint` that are ours find what they are for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

LINT = Path(__file__).resolve().parents[2] / "lint"


def load(name):
    spec = importlib.util.spec_from_file_location(name, LINT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


argument_specs = load("argument_specs")
hygiene = load("hygiene")

SPEC = """
argument_specs:
  main:
    options:
      squid_port: {type: int, description: Port., default: 3128}
      squid_name: {type: str, description: Name., required: true}
"""


def role(folder, defaults="squid_port: 3128\n", spec=SPEC, private="_squid_app: {}\n"):
    """A role named squid."""
    path = folder / "squid"
    for name, text in (("defaults/main", defaults), ("meta/argument_specs", spec), ("vars/main", private)):
        file = path / f"{name}.yml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_a_role_that_agrees(tmp_path):
    assert list(argument_specs.problems(role(tmp_path))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"defaults": "squid_port: 3129\n"}, "squid_port is 3129"),
        ({"defaults": "squid_port: '3128'\n"}, "squid_port is '3128'"),
        ({"defaults": "squid_port: true\n", "spec": SPEC.replace("3128", "1")}, "squid_port is True"),
        ({"defaults": ""}, "squid_port is neither required nor in"),
        ({"defaults": "squid_port: 3128\nsquid_more: 1\n"}, "squid_more is in defaults/main.yml only"),
        ({"defaults": "squid_port: 3128\nsquid_name: x\n"}, "squid_name is required and has a default"),
        ({"spec": SPEC.replace("description: Port., ", "")}, "squid_port has no description"),
        ({"spec": SPEC + "      port: {type: int, description: Port., required: true}\n"}, "port does not begin with"),
        ({"spec": SPEC + "      squid_key: {type: str, description: K., required: true}\n"}, "squid_key may be a"),
        ({"private": "squid_app: {}\n"}, "squid_app in vars/main.yml does not begin with _squid_"),
        ({"spec": ""}, "meta/argument_specs.yml is missing"),
    ],
)
def test_a_role_that_differs(tmp_path, change, said):
    assert any(said in line for line in argument_specs.problems(role(tmp_path, **change)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.py", "print()\n", "no SPDX-License-Identifier"),
        ("script", "#!/bin/sh\n", "no SPDX-License-Identifier"),
        ("Containerfile", "FROM base\n", "no SPDX-License-Identifier"),
        ("a.txt", "from https://files.python" + "hosted.org/x\n", "a registry's host"),
        ("a.txt", "image: docker" + ".io/library/debian\n", "a registry's host"),
        ("a.txt", "see /ho" + "me/alice/x\n", "a path of a machine"),
        ("a.txt", f"see {hygiene.ROOT}/x\n", "a path of a machine"),
        ("a.txt", "-----BEGIN PRIVATE " + "KEY-----\n" + "A" * 64 + "\n", "a private key"),
        ("a.txt", "no end", "no newline"),
        ("a.txt", "roles/work/main.yml, {{ x }}/home/condor, debian.org and python3\n", None),
    ],
)
def test_files(tmp_path, monkeypatch, name, text, said):
    monkeypatch.setattr(hygiene, "ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    lines = [what for _, what in hygiene.problems(name)]
    assert lines == [] if said is None else any(said in line for line in lines)

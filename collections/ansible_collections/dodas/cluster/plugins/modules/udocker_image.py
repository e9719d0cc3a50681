#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_image
short_description: A container image without root
version_added: 0.1.0
description:
  - Pulls, loads, builds, tags, pushes and removes images of the container runtime of this collection, as the user who
    logs in.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.udocker, dodas.cluster.udocker.program]
attributes:
  check_mode:
    details:
      - With O(force=true) or O(push=true), the registry is asked for digests. Builds and archives are not looked into.
options:
  name:
    description: The image's name, such as V(debian:12) or V(registry.example.org:5000/group/image:2).
    type: str
    required: true
  state:
    description: Whether it shall be there. V(absent) also removes containers' claim to it, not the containers.
    type: str
    choices: [present, absent]
    default: present
  source:
    description: Where it comes from if it is not there, its registry, an archive, or a build.
    type: str
    choices: [pull, load, build]
    default: pull
  force:
    description:
      - Whether it is got again although it is there. With O(source=pull), it is where the registry has another one.
    type: bool
    default: false
  archive:
    description: For O(source=load), the archive of Docker or OCI on the managed host, or the folder of an OCI layout.
    type: path
  build:
    description: For O(source=build), what to build.
    type: dict
    suboptions:
      path:
        description: Folder on the managed host that has the files.
        type: path
        required: true
      containerfile:
        description: The file with the steps. Default is C(Containerfile) or C(Dockerfile) in O(build.path).
        type: path
      args:
        description: Values of C(ARG).
        type: dict
        default: {}
      target:
        description: Stage to end with.
        type: str
      no_cache:
        description: Whether all steps are done again.
        type: bool
        default: false
  engine:
    description: How the steps of a build are run. Default is what suits the host best.
    type: str
    choices: [overlay, directory, fuse, proot]
  platform:
    description: Another system's image, such as V(linux/arm64). Default is the host's.
    type: str
  tags:
    description: More names for it.
    type: list
    elements: str
    default: []
  push:
    description: Whether it and O(tags) are pushed to the registries in their names, where those have another one.
    type: bool
    default: false
  username:
    description: Who to log in as at the registry of O(name). Default is what the user has logged in to.
    type: str
  password:
    description: Password or token of O(username).
    type: str
  ca:
    description: PEM file on the managed host of authorities that registries are checked against, besides the system's.
    type: path
  insecure:
    description: Whether a registry's certificate need not be verified.
    type: bool
    default: false
  timeout:
    description: Seconds that one pull, load, build or push may take.
    type: int
    default: 1800
seealso:
  - module: dodas.cluster.udocker_image_info
  - module: dodas.cluster.udocker_container
"""

EXAMPLES = r"""
- name: Have an image
  dodas.cluster.udocker_image:
    name: debian:12

- name: Have the newest one of the group
  dodas.cluster.udocker_image:
    name: registry.example.org/group/analysis:latest
    username: robot
    password: "{{ vault_registry_token }}"
    force: true

- name: Load what somebody saved
  dodas.cluster.udocker_image:
    name: localhost/analysis:2
    source: load
    archive: /data/analysis.tar

- name: Build one, and give it to the group
  dodas.cluster.udocker_image:
    name: registry.example.org/group/analysis:3
    source: build
    build:
      path: /home/ann/analysis
      args:
        RELEASE: "3"
    tags: [registry.example.org/group/analysis:latest]
    push: true
"""

RETURN = r"""
image:
  description: The image, as M(dodas.cluster.udocker_image_info) returns it.
  returned: when it is there
  type: dict
pushed:
  description: Names that were, or would be, pushed.
  returned: when O(state=present)
  type: list
  elements: str
"""

import base64
import json
import os

from ansible_collections.dodas.cluster.plugins.module_utils import udocker_module
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import reference


def main():
    module = udocker_module.UdockerModule(
        argument_spec={
            **udocker_module.PROGRAM,
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "source": {"type": "str", "choices": ["pull", "load", "build"], "default": "pull"},
            "force": {"type": "bool", "default": False},
            "archive": {"type": "path"},
            "build": {
                "type": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "containerfile": {"type": "path"},
                    "args": {"type": "dict", "default": {}},
                    "target": {"type": "str"},
                    "no_cache": {"type": "bool", "default": False},
                },
            },
            "engine": {"type": "str", "choices": ["overlay", "directory", "fuse", "proot"]},
            "platform": {"type": "str"},
            "tags": {"type": "list", "elements": "str", "default": []},
            "push": {"type": "bool", "default": False},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "ca": {"type": "path"},
            "insecure": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 1800},
        },
        required_if=[("source", "load", ("archive",)), ("source", "build", ("build",))],
        required_together=[("username", "password")],
        supports_check_mode=True,
    )
    udocker_module.run(module, apply)


def apply(module):
    parameters = module.params
    name = parameters["name"]
    names = [name, *parameters["tags"]]
    before = {one: _digest(module, one) for one in names}
    if parameters["state"] == "absent":
        there = [one for one in names if before[one]]
        if there and not module.check_mode:
            for one in there:
                module.udocker("rmi", "--force", one)
        module.exit_json(changed=bool(there), diff=_diff(before, {}))
    program = _Program(module)
    wanted = before[name]
    if _get(program, before[name]):
        wanted = None  # nobody knows before it is there
        if not module.check_mode:
            _METHODS[parameters["source"]](program)
            wanted = _digest(module, name)
            if wanted is None:
                module.fail(f"image {name} is not there after it was got: has the archive another platform's?")
        elif parameters["source"] == "pull":
            wanted = program.remote(name)
    tags = [one for one in parameters["tags"] if wanted is None or before[one] != wanted]
    if not module.check_mode:
        for one in tags:
            module.udocker("tag", name, one)
    after = dict.fromkeys(names, wanted or "(not known yet)")
    pushed = [one for one in names if wanted is None or program.remote(one) != wanted] if parameters["push"] else []
    if not module.check_mode:
        for one in pushed:
            program.run("push", "--quiet", one)
    image = module.image(name)
    module.exit_json(
        changed=before != after or bool(pushed),
        pushed=pushed,
        diff=_diff(before, after),
        **({"image": udocker_module.describe(image)} if image else {}),
    )


def _digest(module, name):
    image = module.image(name)
    return image.manifest if image else None


def _get(program, digest):
    """Whether it has to be got."""
    parameters = program.module.params
    if digest is None:
        return True
    if not parameters["force"]:
        return False
    return parameters["source"] != "pull" or program.remote(parameters["name"]) != digest


class _Program:
    """The runtime, with what is needed to reach registries."""

    def __init__(self, module):
        self.module = module
        parameters = module.params
        self.environment = {}
        folder = module.tmpdir  # of the user alone, and gone in the end
        if parameters["username"]:
            entry = base64.b64encode(f"{parameters['username']}:{parameters['password']}".encode()).decode()
            path = os.path.join(folder, "auth.json")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as target:
                host = reference.parse(parameters["name"]).registry
                json.dump({"auths": {host: {"auth": entry}}}, target)
            self.environment["REGISTRY_AUTH_FILE"] = path
        ca = parameters["ca"]
        self.config = udocker_module.settings(folder, ca_file=ca, http_insecure=parameters["insecure"])

    def run(self, *words, check=True):
        timeout = self.module.params["timeout"]
        return self.module.udocker(
            *words, timeout=timeout, environment=self.environment, config=self.config, check=check
        )

    def remote(self, name):
        """The digest that the registry has under a name, or None."""
        platform = self.module.params["platform"]
        words = ["manifest", "inspect", *([f"--platform={platform}"] if platform else [])]
        status, output, _errors = self.run(*words, "--json", name, check=False)
        return json.loads(output).get("digest") if status == 0 else None


def _pull(program):
    platform = program.module.params["platform"]
    words = ["pull", "--quiet", *([f"--platform={platform}"] if platform else [])]
    program.run(*words, program.module.params["name"])


def _load(program):
    parameters = program.module.params
    program.run("load", "--quiet", f"--input={parameters['archive']}", parameters["name"])


def _build(program):
    parameters = program.module.params
    build = parameters["build"]
    words = ["build", "--quiet", f"--tag={parameters['name']}"]
    words += [f"--build-arg={name}={value}" for name, value in build["args"].items()]
    for option, value in (("file", build["containerfile"]), ("target", build["target"]),
                          ("engine", parameters["engine"]), ("platform", parameters["platform"])):  # fmt: skip
        words += [f"--{option}={value}"] if value else []
    words += ["--no-cache"] if build["no_cache"] else []
    program.run(*words, build["path"])


_METHODS = {"pull": _pull, "load": _load, "build": _build}


def _diff(before, after):
    def text(digests):
        return "".join(f"{name}: {digest}\n" for name, digest in sorted(digests.items()) if digest)

    return {"before": text(before), "after": text(after)}


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: udocker_container
short_description: A container without root
version_added: 0.1.0
description:
  - Creates, starts, stops and removes a container of the runtime of this collection, as the user who logs in.
  - What a container was created with is recorded. Where that is not what is asked for, or where its image is a newer
    one, the container is removed and created again, which loses what it has written to places that are no volumes.
  - A container that is started has a process of the user that keeps it, its log and its restarts. It ends with the
    machine, or with the user's session where the machine ends those processes (see C(loginctl enable-linger)).
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.udocker, dodas.cluster.udocker.program]
attributes:
  diff_mode:
    details: Values of variables are left out.
options:
  name:
    description: The container's name.
    type: str
    required: true
  state:
    description:
      - V(present) means that it exists, and is left as it is otherwise; V(started) and V(stopped) that it runs or does
        not, V(restarted) that it is stopped, if it runs, and started.
      - V(absent) stops and removes it.
    type: str
    choices: [present, started, stopped, restarted, absent]
    default: started
  image:
    description: Image to create it of. Needed unless O(state=absent) or it exists.
    type: str
  pull:
    description: Whether the image is pulled when it is not there, always, or never.
    type: str
    choices: [missing, always, never]
    default: missing
  command:
    description: What it runs instead of the image's command, as a list of words.
    type: list
    elements: str
  entrypoint:
    description: Program instead of the image's entry point; empty for none.
    type: str
  env:
    description: Variables.
    type: dict
    default: {}
  volumes:
    description: C(SOURCE:TARGET) or C(SOURCE:TARGET:ro), where the source is a path on the managed host or a name.
    type: list
    elements: str
    default: []
  ports:
    description:
      - C(PORT:PORT) or C(IP:PORT:PORT), of the host and of the container, with O(network=none).
      - With the host's network, the container listens there itself.
    type: list
    elements: str
    default: []
  user:
    description: User and group in the container, C(USER) or C(USER:GROUP), by name or number.
    type: str
  workdir:
    description: Folder that it starts in.
    type: str
  hostname:
    description: Its host name.
    type: str
  network:
    description: The host's network, or none but loopback.
    type: str
    choices: [host, none]
    default: host
  labels:
    description: What is remembered of it.
    type: dict
    default: {}
  restart_policy:
    description: When it is started again after its end; C(on-failure:5) gives up after five times.
    type: str
    default: "no"
  devices:
    description: Devices of the host.
    type: list
    elements: str
    default: []
  read_only:
    description: Whether it cannot write to its root file system.
    type: bool
    default: false
  stop_timeout:
    description: Seconds that it may take to end when it is stopped. Default is 10.
    type: int
  engine:
    description: How it is run. Default is what suits the host best.
    type: str
    choices: [overlay, directory, fuse, proot]
  recreate:
    description: Whether it is created again although it is as it shall be.
    type: bool
    default: false
  detached:
    description: Whether it goes on when the module has ended. Otherwise the module waits for its end.
    type: bool
    default: true
  timeout:
    description:
      - Seconds within which it must run, and be healthy where it has a health check.
      - With O(detached=false), seconds within which it must end.
    type: int
    default: 60
seealso:
  - module: dodas.cluster.udocker_container_info
  - module: dodas.cluster.udocker_image
  - plugin: dodas.cluster.udocker
    plugin_type: connection
"""

EXAMPLES = r"""
- name: A cache for the group, kept running without root
  dodas.cluster.udocker_container:
    name: cache
    image: registry.example.org/group/squid:6
    volumes: [/data/cache:/var/spool/squid]
    env:
      CACHE_MB: 10000
    restart_policy: always

- name: One run of the calibration, to its end
  dodas.cluster.udocker_container:
    name: calibration
    image: registry.example.org/group/calibration:2
    command: [calibrate, --run, "4711"]
    volumes: ["/data:/data:ro", "/home/ann/results:/results"]
    detached: false
    timeout: 3600

- name: No cache any more
  dodas.cluster.udocker_container:
    name: cache
    state: absent
"""

RETURN = r"""
container:
  description: The container, as M(dodas.cluster.udocker_container_info) returns it.
  returned: when it exists, and not in check mode where it would change
  type: dict
recreated:
  description: Why it was, or would be, created again; empty where it stayed.
  returned: always
  type: list
  elements: str
status:
  description: How it ended.
  returned: when O(detached=false) and it was started
  type: int
stdout:
  description: What it wrote to standard output.
  returned: when O(detached=false) and it was started
  type: str
stderr:
  description: What it wrote to standard error.
  returned: when O(detached=false) and it was started
  type: str
"""

import time

from ansible_collections.dodas.cluster.plugins.module_utils import udocker_module
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import containers, desired
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import NotFound

# Parameters, by the options of the runtime that they are.
OPTIONS = {
    "devices": "device", "engine": "engine", "entrypoint": "entrypoint", "hostname": "hostname", "network": "network",
    "ports": "publish", "read_only": "read_only", "restart_policy": "restart", "stop_timeout": "stop_timeout",
    "user": "user", "volumes": "volume", "workdir": "workdir",
}  # fmt: skip
LINES = 10  # of the log, in errors
SETTLED = 0.5  # seconds after which one that runs has not failed at once


def main():
    module = udocker_module.UdockerModule(
        argument_spec={
            **udocker_module.PROGRAM,
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "started", "stopped", "restarted", "absent"],
                "default": "started",
            },
            "image": {"type": "str"},
            "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
            "command": {"type": "list", "elements": "str"},
            "entrypoint": {"type": "str"},
            "env": {"type": "dict", "default": {}},
            "volumes": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str"},
            "workdir": {"type": "str"},
            "hostname": {"type": "str"},
            "network": {"type": "str", "choices": ["host", "none"], "default": "host"},
            "labels": {"type": "dict", "default": {}},
            "restart_policy": {"type": "str", "default": "no"},
            "devices": {"type": "list", "elements": "str", "default": []},
            "read_only": {"type": "bool", "default": False},
            "stop_timeout": {"type": "int"},
            "engine": {"type": "str", "choices": ["overlay", "directory", "fuse", "proot"]},
            "recreate": {"type": "bool", "default": False},
            "detached": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )  # fmt: skip
    module.params["env"] = {name: _text(value) for name, value in module.params["env"].items()}
    udocker_module.run(module, apply)


def apply(module):
    parameters = module.params
    found = _find(module)
    if parameters["state"] == "absent":
        _absent(module, found)
    changes, recreated = _changes(module, found)
    create = found is None or bool(recreated)
    was_running = found is not None and found.is_running()
    run = {"present": was_running, "stopped": False, "started": True, "restarted": True}[parameters["state"]]
    start = run and (create or not was_running or parameters["state"] == "restarted")
    stop = not run and was_running
    result = {"changed": create or start or stop, "recreated": recreated, "diff": _diff(module, found, changes, run)}
    if not module.check_mode:
        if found is not None and (create or stop or (start and was_running)):
            _stop(module)
        if create:
            _create(module, found)
        if start:
            result.update(_start(module))
        found = _find(module)
    if found is not None and not (module.check_mode and result["changed"]):
        result["container"] = containers.inspect(found)
    module.exit_json(**result)


def _find(module):
    try:
        return containers.find(module.store, module.params["name"])
    except NotFound:
        return None


def _absent(module, found):
    name = module.params["name"]
    diff = {"before": f"{name}: {found.state()['status']}\n" if found is not None else "", "after": ""}
    if found is not None and not module.check_mode:
        module.udocker("rm", "--force", name)
    module.exit_json(changed=found is not None, recreated=[], diff=diff)


def _options(module):
    """Options of the runtime, by their names there."""
    parameters = module.params
    options = {option: parameters[name] for name, option in OPTIONS.items() if parameters[name] not in (None, "", [])}
    if parameters["entrypoint"] == "":
        options["entrypoint"] = ""
    if options["network"] == "host":
        del options["network"]
    options["env"] = [f"{name}={value}" for name, value in parameters["env"].items()]
    options["label"] = [f"{name}={_text(value)}" for name, value in parameters["labels"].items()]
    return options


def _text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changes(module, found):
    """({name: (before, after)} of its definition, reasons why it is created again)."""
    wanted = desired.definition(_options(module), module.params["command"] or ())
    image = module.params["image"] and module.image(module.params["image"])
    if found is None:
        if not module.params["image"]:
            raise ValueError(f"container {module.params['name']} does not exist: image is needed to create it")
        return {}, []
    if not module.params["image"]:
        # Nothing but its state is asked for.
        return {}, ["recreate"] if module.params["recreate"] else []
    if module.params["pull"] == "always" and not module.check_mode:
        module.udocker("pull", "--quiet", module.params["image"])
        image = module.image(module.params["image"])
    changes = desired.differences(wanted, found.record, image.manifest if image else None)
    if not image and found.image != module.params["image"]:
        changes["image"] = (found.image, module.params["image"])
    return changes, sorted(changes) or (["recreate"] if module.params["recreate"] else [])


def _diff(module, found, changes, run):
    """Before and after, as text."""
    parameters = module.params
    name = parameters["name"]
    wanted = desired.definition(_options(module), parameters["command"] or ())
    status = f"{name}: {'running' if run else 'not running'}\n"
    if found is None:
        return {"before": "", "after": status + desired.summary(wanted, parameters["image"])}
    before = f"{name}: {'running' if found.is_running() else 'not running'}\n"
    after = status
    for key, (old, new) in sorted(changes.items()):
        before += desired.summary({key: old}) or ""
        after += desired.summary({key: new}) or ""
        if key == "env":
            names = sorted({item.partition("=")[0] for item in set(old) ^ set(new)})
            after += f"changed variables: {' '.join(names)}\n"
    return {"before": before, "after": after}


def _stop(module):
    words = ["stop"]
    if module.params["stop_timeout"] is not None:
        words.append(f"--time={module.params['stop_timeout']}")
    module.udocker(*words, module.params["name"])


def _create(module, found):
    parameters = module.params
    if not parameters["image"]:
        parameters["image"] = found.image
    words = ["create", f"--name={parameters['name']}", f"--pull={parameters['pull']}"]
    variables, environment = desired.variables(parameters["env"])
    words += variables
    for option, value in sorted(_options(module).items()):
        spelling = "--" + option.replace("_", "-")
        if option == "env":
            continue
        if isinstance(value, list):
            words += [f"{spelling}={one}" for one in value]
        elif value is True:
            words.append(spelling)
        elif value is not False:
            words.append(f"{spelling}={value}")
    if found is not None:
        module.udocker("rm", "--force", parameters["name"])
    module.udocker(*words, parameters["image"], *(parameters["command"] or ()), environment=environment)


def _start(module):
    """Start it; what of the result this makes."""
    parameters = module.params
    name, timeout = parameters["name"], parameters["timeout"]
    if not parameters["detached"]:
        status, output, errors = module.udocker("start", "--attach", name, timeout=timeout, check=False)
        ended = {"status": status, "stdout": output, "stderr": errors}
        if status:
            module.fail(f"container {name} ended with status {status}: {_last(output + errors)}", changed=True, **ended)
        return ended
    module.udocker("start", name, timeout=timeout)
    settled, deadline = time.monotonic() + SETTLED, time.monotonic() + timeout
    while True:
        state = containers.find(module.store, name).state()
        health = (state.get("health") or {}).get("Status", "healthy")
        if state["status"] == "running" and health == "healthy" and time.monotonic() > settled:
            return {}
        if state["status"] == "exited" and (state.get("code") or not _one_shot(module)):
            code = state.get("code")
            log = _last(module.udocker("logs", f"--tail={LINES}", name, check=False))
            module.fail(f"container {name} ended at once with status {code}; its last lines:\n{log}", changed=True)
        if state["status"] == "exited":
            return {}
        if time.monotonic() > deadline:
            log = _last(module.udocker("logs", f"--tail={LINES}", name, check=False))
            what = state["status"] if health == "healthy" else health
            module.fail(f"container {name} is {what} after {timeout} s; its last lines:\n{log}", changed=True)
        time.sleep(0.1)


def _one_shot(module):
    """Whether it may end by itself."""
    return module.params["restart_policy"] == "no"


def _last(text):
    """The last lines of an output, or of (status, output, errors)."""
    if isinstance(text, tuple):
        text = text[1] + text[2]
    return "\n".join(text.rstrip().splitlines()[-LINES:])


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The modules that run an app, one an engine, do this."""

from __future__ import annotations

from ansible_collections.dodas.cluster.plugins.module_utils.engine import definition
from ansible_collections.dodas.cluster.plugins.module_utils.engine.app import EngineError
from ansible_collections.dodas.cluster.plugins.module_utils.module import FILES, Module

# Fragment `app` documents it.
ARGUMENTS = {
    "definition": {"type": "dict", "required": True},
    "files": {**FILES, "default": []},
    "timeout": {"type": "int", "default": 120},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": False},
}


def main(make, **more):
    """Run the app that `make(app, files, check, **more)` gives; `more`: names of parameters of the engine's own, and
    how they are specified."""
    module = Module(argument_spec={**ARGUMENTS, **more}, supports_check_mode=True)
    parameters = dict(module.params)
    module.params["definition"] = {"id": parameters["definition"].get("id")}
    module.params["files"] = [one["path"] for one in parameters["files"]]
    own = {name: parameters[name] for name in more}
    try:
        if parameters["state"] == "absent":
            minimal = {"id": parameters["definition"].get("id"), "container": {"docker": {"image": "none"}}}
            _absent(module, make(definition.parse(minimal), (), module.check_mode, **own))
        app = make(definition.parse(parameters["definition"]), parameters["files"], module.check_mode, **own)
        plan = app.plan()
        result = {
            "changed": bool(plan["files"]) or plan["restart"],
            "restarted": plan["restart"],
            "diff": [one.diff() for one in plan["files"]],
        }
        if not module.check_mode:
            app.apply(plan, parameters["timeout"])
            app.wait_healthy(parameters["timeout"])
        module.exit_json(**result)
    except definition.DefinitionError as exc:
        module.fail_json(msg=f"app definition: {exc}")
    except (EngineError, OSError, ValueError, LookupError) as exc:
        module.fail_json(msg=str(exc))


def _absent(module, app):
    purge = module.params["purge"]
    there = app.exists(purge)
    if not module.check_mode:
        app.remove(purge)
    module.exit_json(changed=there, restarted=False)

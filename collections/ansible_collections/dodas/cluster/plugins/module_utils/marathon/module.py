# SPDX-License-Identifier: Apache-2.0
"""What the modules about Marathon share. Fragment `marathon` documents it."""

from __future__ import annotations

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import deployments
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.client import Marathon, read_credentials
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import MarathonError, NotDeployed

CONNECTION = {
    "urls": {"type": "list", "elements": "str", "required": True},
    "ca_path": {"type": "path"},
    "credentials_file": {"type": "path"},
    "resolve": {"type": "dict", "default": {}},
    "timeout": {"type": "int", "default": 300},
}
CHANGES = {
    "wait": {"type": "bool", "default": True},
    "force": {"type": "bool", "default": False},
    "rollback_on_failure": {"type": "bool", "default": False},
}


def run(module, act):
    """End the module with what `act(module, marathon)` returns, or with one clear line."""
    given = module.params
    try:
        path = given["credentials_file"]
        credentials = read_credentials(path) if path else None
        marathon = Marathon(given["urls"], given["ca_path"], credentials, given["timeout"], given["resolve"])
        module.exit_json(**act(module, marathon))
    except MarathonError as exc:
        module.fail_json(msg=str(exc))


def wait(module, marathon, definitions, gone=()):
    """Wait for apps where the module shall; undo their deployments where it fails and the module shall. Raises
    MarathonError."""
    if not module.params["wait"]:
        return
    try:
        deployments.wait(marathon, definitions, gone)
    except NotDeployed as exc:
        if not module.params["rollback_on_failure"]:
            raise
        became = deployments.roll_back(marathon, exc.deployments, module.params["timeout"])
        raise NotDeployed(f"{exc}. {became[0].upper()}{became[1:]}") from exc


def result(changes, made):
    """What modules return for [Change] and the ids of the deployments that were made."""
    return {
        "changed": bool(changes),
        "changes": [one.result() for one in changes],
        "deployments": made,
        "diff": [one.diff() for one in changes],
    }

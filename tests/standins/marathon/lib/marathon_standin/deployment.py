# SPDX-License-Identifier: Apache-2.0
"""Deployments: the steps from one state of all apps to another, each with actions that are done side by side."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field


@dataclass
class Deployment:
    """A change under way. `steps` are lists of actions {"action", "app"}; `step` is the index of the current one.

    `original` is what each app was before, {id: version or None}: what rolling back restores. `kill` are tasks that
    go besides.
    """

    id: str
    version: str
    steps: list
    original: dict
    step: int = 0
    kill: list = field(default_factory=list)
    started: bool = False  # the current step has been announced
    groups: tuple = ()  # what was before and what comes, as events give it; not kept

    @property
    def apps(self):
        """The apps that it changes."""
        return list(dict.fromkeys(action["app"] for actions in self.steps for action in actions))

    @property
    def actions(self):
        """What is being done."""
        return self.steps[self.step] if self.step < len(self.steps) else []

    def stored(self):
        """As it is kept."""
        return {name: getattr(self, name) for name in ("id", "version", "steps", "original", "step", "kill")}

    def view(self):
        """As /v2/deployments gives it."""
        return {
            "id": self.id,
            "version": self.version,
            "affectedApps": self.apps,
            "affectedPods": [],
            "steps": [{"actions": actions} for actions in self.steps],
            "currentActions": [{**action, "readinessCheckResults": []} for action in self.actions],
            "currentStep": self.step + 1,
            "totalSteps": len(self.steps),
        }

    def plan(self):
        """As events give it."""
        steps = [
            {"actions": [{"type": action["action"], "app": action["app"]} for action in actions]}
            for actions in self.steps
        ]
        original, target = self.groups
        return {"id": self.id, "original": original, "target": target, "steps": steps, "version": self.version}


def plan(before, after, restarted=(), kill=()):
    """The Deployment from root `before` to root `after`."""
    removed = sorted(before.apps.keys() - after.apps.keys())
    added = sorted(after.apps.keys() - before.apps.keys())
    steps = [[{"action": "StopApplication", "app": key} for key in removed]]
    steps += [[{"action": "StartApplication", "app": key} for key in added]]
    for layer in after.layers():
        steps.append([action for key in layer if (action := change(key, before, after, restarted, kill))])
    steps = [actions for actions in steps if actions]
    changed = {action["app"] for actions in steps for action in actions}
    original = {key: before.apps[key]["version"] if key in before.apps else None for key in sorted(changed)}
    return Deployment(str(uuid.uuid4()), after.version, steps, original, kill=list(kill))


def change(key, before, after, restarted, kill):
    """The action that makes app `key` what it is to be; None where nothing changes."""
    old, new = before.apps.get(key), after.apps[key]
    if old is None:
        return {"action": "ScaleApplication", "app": key}
    if key in restarted or old["versionInfo"]["lastConfigChangeAt"] != new["versionInfo"]["lastConfigChangeAt"]:
        return {"action": "RestartApplication", "app": key}
    if old["instances"] != new["instances"]:
        return {"action": "ScaleApplication", "app": key}
    return None

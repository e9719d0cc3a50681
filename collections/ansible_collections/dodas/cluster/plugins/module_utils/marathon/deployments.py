# SPDX-License-Identifier: Apache-2.0
"""Apps and groups brought to what they shall be: planned, sent, waited for, explained when late, rolled back."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, reasons
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import (
    Locked,
    MarathonError,
    NotDeployed,
)

TICK = 0.5  # seconds between two looks
EXPLAIN = 10  # seconds for finding the reason after the deadline
EMBED = ("counts", "deployments")


@dataclass
class Change:
    """What becomes of one app. action: created, changed, scaled, restarted or removed; fields: that differ."""

    id: str
    action: str
    fields: list = field(default_factory=list)
    before: dict = field(default_factory=dict)  # for people: without values of environments
    after: dict = field(default_factory=dict)

    def result(self):
        """As a module returns it."""
        return {"id": self.id, "action": self.action, "fields": self.fields}

    def diff(self):
        """As Ansible shows it."""
        return {"before_header": self.id, "after_header": self.id, "before": self.before, "after": self.after}


def current(marathon):
    """{id: app} of what Marathon has, with counts and deployments."""
    return {one["id"]: one for one in marathon.apps(embed=EMBED)}


def plan(definitions, found):
    """What differs, as [Change]. definitions: parsed; found: what Marathon has, as `current` gives it."""
    return [change for one in definitions for change in _planned(one, found.get(one["id"]))]


def _planned(definition, app):
    if app is None:
        return [Change(definition["id"], "created", sorted(definition), {}, apps.shown(definition))]
    differing = apps.difference(definition, app)
    if not differing:
        return []
    before, after = apps.settled(definition, app)
    before, after = apps.shown(before), apps.shown(after)
    was, becomes = differing.get("env", ({}, {}))
    for key in after.get("env", {}):
        if key in was and was[key] != becomes[key]:
            after["env"][key] = f"{apps.HIDDEN[:-1]}, another)"
    action = "scaled" if set(differing) == {"instances"} else "changed"
    return [Change(definition["id"], action, sorted(differing), before, after)]


# Changes. Each returns the ids of its deployments, and waits while others lock the apps.


def cancel(marathon, ids):
    """End the deployments of these apps where they are, and wait until they are over.

    One that cannot be done stays for ever, and Marathon replaces nothing of the apps that it has locked.
    """
    while going := [one["id"] for one in marathon.deployments() if set(ids) & set(one.get("affectedApps") or [])]:
        for one in going:
            marathon.cancel(one)
        if not marathon.deadline.pause(TICK):
            raise Locked(f"after {marathon.deadline.seconds:g} s not cancelled: deployment {', '.join(going)}", going)


def put(marathon, definitions, found, force=False):
    """Send the definitions of apps, in one deployment."""
    sent = [{**one, "instances": apps.wanted_instances(one, found.get(one["id"]))} for one in definitions]
    return [_unlocked(marathon, lambda: marathon.put_apps(sent, force))] if sent else []


def put_group(marathon, definition, found, force=False):
    """Send the definition of a group."""
    sent = _with_instances(definition, found)
    return [_unlocked(marathon, lambda: marathon.put_group(definition["id"], sent, force))]


def restart(marathon, ids, force=False):
    """Replace the instances of apps."""
    made = [_unlocked(marathon, lambda one=one: marathon.restart_app(one, force)) for one in ids]
    return [one for one in made if one]


def remove(marathon, definitions, force=False):
    """Remove apps, those first on which no other of them depends."""
    ids = reversed(apps.order(definitions))
    made = [_unlocked(marathon, lambda one=one: marathon.delete_app(one, force)) for one in ids]
    return [one for one in made if one]


def remove_group(marathon, group_id, force=False):
    """Remove a group with all below it."""
    made = _unlocked(marathon, lambda: marathon.delete_group(group_id, force))
    return [made] if made else []


def _with_instances(group, found):
    done = dict(group)
    if "apps" in done:
        done["apps"] = [{**one, "instances": apps.wanted_instances(one, found.get(one["id"]))} for one in done["apps"]]
    if "groups" in done:
        done["groups"] = [_with_instances(one, found) for one in done["groups"]]
    return done


def _unlocked(marathon, act):
    while True:
        try:
            return act()
        except Locked as exc:
            if marathon.deadline.pause(TICK):
                continue
            with marathon.within(EXPLAIN):
                going = [reasons.deployment(one) for one in marathon.deployments() if one["id"] in exc.deployments]
            by = "; ".join(going) or ", ".join(exc.deployments)
            raise Locked(
                f"after {marathon.deadline.seconds:g} s still locked by deployment {by}: wait for it, roll it back, or "
                f"use force",
                exc.deployments,
            ) from exc


# Waiting


def wait(marathon, definitions, gone=()):
    """Wait until apps whose definitions were just sent run and are healthy, and those of `gone` are not there any more.

    definitions: parsed, of which only the id has to be there. Returns {id: app}. Raises NotDeployed with the reasons.
    """
    made = {}  # what Marathon made of each at first: a version that writes a field in its own way is not someone else
    while True:
        found = current(marathon)
        late = {}
        for one in definitions:
            differing = _differing(one, found.get(one["id"]))
            late[one["id"]] = _late(one["id"], found.get(one["id"]), differing - made.setdefault(one["id"], differing))
        late.update({one: "it is still there" if one in found else "" for one in gone})
        late = {name: reason for name, reason in late.items() if reason}
        if not late:
            return found
        if not marathon.deadline.pause(TICK):
            break
    seconds = marathon.deadline.seconds
    try:
        with marathon.within(EXPLAIN):
            why, going = explain(marathon, late)
    except MarathonError as exc:
        why, going = "; ".join(f"app {name}: {lack}" for name, lack in late.items()) + f"; the reason: {exc}", ()
    raise NotDeployed(f"after {seconds:g} s: {why}", going)


def _differing(definition, app):
    """The fields by which an app is another than its definition."""
    return set(apps.difference(definition, app)) if app and len(definition) > 1 else set()


def _late(name, app, undone):
    """What an app lacks; empty when it is as it shall be. Raises NotDeployed where it will not be."""
    if app is None:
        raise NotDeployed(f"app {name}: it was removed, or its deployment was rolled back by somebody else")
    if undone:
        which = ", ".join(sorted(undone))
        raise NotDeployed(f"app {name}: its deployment was undone, or somebody else changed {which}")
    return reasons.instances(app) or ("its deployment goes on" if app.get("deployments") else "")


def explain(marathon, late):
    """(one text for {app: what it lacks}, the ids of its deployments that go on)."""
    queue = {(one.get("app") or {}).get("id"): one for one in marathon.queue()}
    going = [one for one in marathon.deployments() if set(late) & set(one.get("affectedApps") or [])]
    said = []
    for name, lack in late.items():
        app = marathon.app(name, embed=("tasks", "counts", "deployments", "lastTaskFailure")) or {}
        why = [*(reasons.waiting(queue[name]) if name in queue else []), *reasons.tasks(app)]
        before = [one for one in app.get("dependencies") or [] if any(apps.below(other, one) for other in late)]
        if before and not why:
            why = [f"it comes after {', '.join(before)}"]
        said.append(f"app {name}: {'; '.join([lack, *why])}")
    said += [f"deployment {reasons.deployment(one)} goes on" for one in going]
    return ". ".join(said), [one["id"] for one in going]


def roll_back(marathon, deployments, seconds):
    """Undo deployments and wait for that, for `seconds`. Returns what became of it, in a few words."""
    try:
        with marathon.within(seconds):
            undoing = {*deployments, *(marathon.roll_back(one) for one in deployments)}
            while any(one["id"] in undoing for one in marathon.deployments()):
                if not marathon.deadline.pause(TICK):
                    return f"rolling back was begun, and goes on after {seconds:g} s"
    except MarathonError as exc:
        return f"rolling back failed: {exc}"
    return "it was rolled back" if deployments else "no deployment goes on that could be rolled back"

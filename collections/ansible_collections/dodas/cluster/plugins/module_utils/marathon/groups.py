# SPDX-License-Identifier: Apache-2.0
"""Groups of apps, as for `/v2/groups`: read strictly, and the apps in them."""

from __future__ import annotations

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import apps, fields
from ansible_collections.dodas.cluster.plugins.module_utils.marathon.errors import DefinitionError


def parse(given, parent="/"):
    """The group as it is sent, with absolute ids. given: a dict, or strict JSON. Raises DefinitionError."""
    definition = apps.parse_json(given) if isinstance(given, str) else given
    name = definition.get("id") if isinstance(definition, dict) else None
    try:
        fields.group("", definition)
        done = {**definition, "id": apps.absolute(definition["id"], parent)}
        inside = f"{done['id']}/"
        if "dependencies" in done:
            done["dependencies"] = [apps.absolute(one, done["id"]) for one in done["dependencies"]]
        if "apps" in done:
            done["apps"] = [apps.parse(one, done["id"]) for one in done["apps"]]
        if "groups" in done:
            done["groups"] = [parse(one, done["id"]) for one in done["groups"]]
        for one in [*done.get("apps", []), *done.get("groups", [])]:
            if not one["id"].startswith(inside):
                raise DefinitionError(f"{one['id']} is not below {done['id']}")
    except DefinitionError as exc:
        raise DefinitionError(f"group {name}: {exc}" if isinstance(name, str) else f"group: {exc}") from None
    return done


def apps_of(group):
    """{id: app} of a group and all below it."""
    found = {one["id"]: one for one in (group or {}).get("apps") or []}
    for one in (group or {}).get("groups") or []:
        found.update(apps_of(one))
    return found


def groups_of(group):
    """{id: group} of a group and all below it."""
    found = {group["id"]: group} if group else {}
    for one in (group or {}).get("groups") or []:
        found.update(groups_of(one))
    return found


def removed(definition, current):
    """Ids of the apps that go: those that a list does not name any more. A group without the list keeps what it has."""
    if current is None:
        return []
    gone = []
    if "apps" in definition:
        named = {one["id"] for one in definition["apps"]}
        gone += [one["id"] for one in current.get("apps") or [] if one["id"] not in named]
    if "groups" in definition:
        named = {one["id"]: one for one in definition["groups"]}
        for one in current.get("groups") or []:
            gone += removed(named[one["id"]], one) if one["id"] in named else sorted(apps_of(one))
    return gone


def differs(definition, current):
    """Whether groups, or what is said of them besides their apps, differ."""
    ours, theirs = groups_of(definition), groups_of(current)
    if ours.keys() - theirs.keys():
        return True
    for name, one in ours.items():
        other = theirs[name]
        if "groups" in one and {sub["id"] for sub in one["groups"]} != {sub["id"] for sub in other.get("groups") or []}:
            return True
        if "dependencies" in one and sorted(one["dependencies"]) != sorted(other.get("dependencies") or []):
            return True
        if "enforceRole" in one and one["enforceRole"] != other.get("enforceRole", False):
            return True
    return False

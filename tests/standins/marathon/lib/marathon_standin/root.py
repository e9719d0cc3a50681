# SPDX-License-Identifier: Apache-2.0
"""All apps and groups at one time, and what a request makes of them."""

from __future__ import annotations

import calendar
import copy
import math
import random
import time

from .definition import canonical, configuration, id_problems, parse, ports, updated
from .errors import ApiError, invalid_json, invalid_object
from .readers import OPTIONAL, Problems, anything, array, number, record, text

GROUP = record(
    id=(text(), OPTIONAL), apps=(array(anything), OPTIONAL), groups=(array(anything), OPTIONAL),
    dependencies=(array(text(least=1)), OPTIONAL), scaleBy=(number(0), OPTIONAL), version=(text(), OPTIONAL),
)  # fmt: skip


def now():
    """The time as versions and events write it."""
    return stamp(time.time())


def stamp(moment):
    """A time in seconds since 1970 as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(moment)) + f"{int(moment * 1000) % 1000:03d}Z"


def parents(path):
    """The groups around an app or group, from the root on."""
    parts = path.strip("/").split("/")[:-1]
    return ["/", *("/" + "/".join(parts[: index + 1]) for index in range(len(parts)))] if path != "/" else []


def within(path, group):
    """Whether an id is a group's or below it."""
    return path == group or group == "/" or path.startswith(f"{group}/")


class Root:
    """Apps {id: app} and groups {id: {"version", "dependencies"}}; there is always the group /."""

    def __init__(self, version, apps=None, groups=None):
        self.version = version
        self.apps = apps or {}
        self.groups = groups or {"/": {"version": version, "dependencies": []}}

    def copy(self):
        """Another one, to be changed."""
        return Root(self.version, copy.deepcopy(self.apps), copy.deepcopy(self.groups))

    # What requests change

    def set_app(self, app):
        """Put a complete app there, with its groups. Raises ApiError where a group has its id."""
        if app["id"] in self.groups:
            raise invalid_object([("/id", f"Groups and Applications may not have the same identifier: {app['id']}")])
        for path in parents(app["id"]):
            if path in self.apps:
                raise invalid_object([("/id", f"Groups and Applications may not have the same identifier: {path}")])
            self.groups.setdefault(path, {"version": self.version, "dependencies": []})
        self.apps[app["id"]] = app

    def remove_group(self, path):
        """Take a group away with all that is in it; the root only loses what is in it."""
        self.apps = {key: app for key, app in self.apps.items() if not within(key, path)}
        self.groups = {key: one for key, one in self.groups.items() if key == "/" or not within(key, path)}

    def set_group(self, path, value):
        """Make a group what JSON `value` says: apps, groups and dependencies that it names replace those there.

        Raises ApiError.
        """
        problems = Problems()
        given = GROUP(value, "", problems)
        if problems.shape or problems.values:
            raise invalid_json(problems.shape) if problems.shape else invalid_object(problems.values)
        if wrong := id_problems(path):
            raise invalid_object(wrong)
        if "scaleBy" in given:
            for key in [key for key in self.apps if within(key, path)]:
                app = self.apps[key]
                self.apps[key] = {**app, "instances": math.ceil(app["instances"] * given["scaleBy"])}
            return
        if path in self.apps:
            raise invalid_object([("/id", f"Groups and Applications may not have the same identifier: {path}")])
        for one in (*parents(path), path):
            self.groups.setdefault(one, {"version": self.version, "dependencies": []})
        if "dependencies" in given:
            self.groups[path]["dependencies"] = [canonical(one, path) for one in given["dependencies"]]
        if "apps" in given:
            apps = [self.child(parse(one, path), path, f"/apps({index})") for index, one in enumerate(given["apps"])]
            direct = [key for key in self.apps if (parents(key) or ["/"])[-1] == path]
            for key in direct:
                del self.apps[key]
            for app in apps:
                self.set_app(app)
        if "groups" in given:
            for index, one in enumerate(given["groups"]):
                if not isinstance(one, dict) or not isinstance(one.get("id"), str):
                    raise invalid_json([(f"/groups({index})/id", "error.path.missing")])
            paths = [canonical(one["id"], path) for one in given["groups"]]
            for key in [key for key in self.groups if key != "/" and parents(key)[-1] == path and key not in paths]:
                self.remove_group(key)
            for index, key in enumerate(paths):
                self.child({"id": key}, path, f"/groups({index})")
                self.set_group(key, given["groups"][index])

    @staticmethod
    def child(one, path, where):
        """An app or group that must be in group `path`. Raises ApiError."""
        if not within(one["id"], path) or one["id"] == path:
            text_ = f"identifier {one['id']} is not child of {path}. Hint: use relative paths."
            raise invalid_object([(f"{where}/id", text_)])
        return one

    def update_app(self, app_id, update):
        """Replace fields of an app. Raises ApiError."""
        self.apps[app_id] = updated(self.apps[app_id], update)

    # What follows from it

    def settle(self, before, port_range, restarted=()):
        """Give changed apps their version and their service ports, and check dependencies. Raises ApiError.

        `before` is the root before the change; apps in `restarted` get a new configuration although none changed.
        """
        self.version = max(now(), later(before.version))
        taken = {one.get("servicePort", one.get("port")) for app in self.apps.values() for one in ports(app)}
        for key, app in self.apps.items():
            old = before.apps.get(key)
            assign_ports(app, old, taken, port_range)
            versions = {"lastScalingAt": self.version, "lastConfigChangeAt": self.version}
            if old and key not in restarted and configuration(app) == configuration(old):
                if app["instances"] == old["instances"]:
                    app.update(version=old["version"], versionInfo=old["versionInfo"])
                    continue
                versions["lastConfigChangeAt"] = old["versionInfo"]["lastConfigChangeAt"]
            app.update(version=self.version, versionInfo=versions)
        self.layers()

    def depends(self):
        """The apps that each app waits for, {id: {ids}}: its own dependencies and those of its groups."""
        found = {}
        for key, app in self.apps.items():
            wanted = list(app.get("dependencies", ()))
            for path in parents(key):
                wanted += self.groups.get(path, {}).get("dependencies", ())
            found[key] = {one for path in wanted for one in self.apps if within(one, path) and one != key}
        return found

    def layers(self):
        """The ids of apps in the order in which they start, [[id]]. Raises ApiError where they wait for each other."""
        waiting, found = self.depends(), []
        while waiting:
            ready = sorted(key for key, others in waiting.items() if not others & waiting.keys())
            if not ready:
                raise invalid_object([("/", "Dependency graph has cyclic dependencies.")])
            found.append(ready)
            for key in ready:
                del waiting[key]
        return found


def later(version):
    """A version just after another one."""
    seconds = calendar.timegm(time.strptime(version[:19], "%Y-%m-%dT%H:%M:%S"))
    return stamp(seconds + (int(version[20:23]) + 1.5) / 1000)


def assign_ports(app, old, taken, port_range):
    """Give each service port that is 0 a number that no app has: the app's former ones first."""
    name = "port" if "portDefinitions" in app else "servicePort"
    own = [one[name] for one in ports(app)]
    former = [one.get("servicePort", one.get("port")) for one in ports(old)] if old else []
    spare = [port for port in former if port_range[0] <= port <= port_range[1] and port not in own]
    for one in ports(app):
        if one[name]:
            continue
        if spare:
            one[name] = spare.pop(0)
            continue
        free = [port for port in range(port_range[0], port_range[1] + 1) if port not in taken]
        if not free:
            raise ApiError(
                422, f"All ports in the range [{port_range[0]}-{port_range[1]}) are already in use"
            )
        one[name] = random.choice(free)
        taken.add(one[name])

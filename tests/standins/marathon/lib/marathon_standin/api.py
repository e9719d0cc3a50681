# SPDX-License-Identifier: Apache-2.0
"""The REST API of the leading instance: requests in, answers out."""

from __future__ import annotations

import json
import re
import statistics
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

from . import BUILD, VERSION
from .definition import canonical, parse, parse_update
from .deployment import plan
from .errors import ApiError, invalid_json, unknown_app
from .root import within


@dataclass
class Answer:
    """An answer; `body` becomes JSON unless it is a string or None."""

    status: int = 200
    body: object = None
    headers: dict = field(default_factory=dict)


@dataclass
class Request:
    """A request: `query` has lists of values by name, `body` is bytes."""

    method: str
    path: str
    query: dict
    body: bytes
    client: str = ""

    def flag(self, name, default=False):
        """Whether a parameter is true."""
        return self.query[name][-1].lower() == "true" if name in self.query else default

    def value(self, name):
        """A parameter's value; None without it."""
        return self.query[name][-1] if name in self.query else None

    def json(self, kind=dict):
        """The body, of type `kind`. Raises ApiError 400 for what is no strict JSON."""
        if not self.body.strip():
            raise ApiError(
                400, "Please specify data in JSON format", details="No content to map due to end-of-input"
            )
        try:
            found = json.loads(self.body, parse_constant=refuse_constant)
        except ValueError as exc:
            raise ApiError(400, "Invalid JSON", details=str(exc)) from exc
        if not isinstance(found, kind):
            name = "error.expected.jsobject" if kind is dict else "error.expected.jsarray"
            raise invalid_json([("", name)])
        return found


def refuse_constant(name):
    """NaN and Infinity are no JSON."""
    raise ValueError(f"Non-standard token '{name}'")


class Api:
    """Answers requests from a Scheduler; `member` is the instance that it runs in."""

    def __init__(self, member, scheduler):
        self.member = member
        self.scheduler = scheduler

    def answer(self, request):
        """The Answer to a request. Raises ApiError."""
        path = unquote(request.path).rstrip("/") or "/"
        for pattern, handler in ROUTES:
            if found := re.fullmatch(pattern, path):
                with self.scheduler.lock:
                    return handler(self, request, *found.groups())
        raise ApiError(404, f"URI not found: {request.path}")

    def by_method(self, request, **handlers):
        """Answer by the handler of the request's method. Raises ApiError."""
        method = "GET" if request.method == "HEAD" else request.method
        if method not in handlers:
            raise ApiError(405, "Method Not Allowed")
        return handlers[method]()

    def changed(self, found, status=200, headers=None):
        """The answer that announces a deployment."""
        return Answer(
            status, {"version": found.version, "deploymentId": found.id},
            {"Marathon-Deployment-Id": found.id, **(headers or {})},
        )  # fmt: skip

    def post_event(self, request, app):
        """Tell that an app was changed by a request."""
        self.scheduler.events.publish(
            "api_post_event", clientIp=request.client, uri=request.path, appDefinition=app
        )

    # Apps

    def apps(self, request):
        """/v2/apps"""
        return self.by_method(
            request,
            GET=lambda: self.list_apps(request), POST=lambda: self.create_app(request),
            PUT=lambda: self.update_apps(request, True), PATCH=lambda: self.update_apps(request, False),
        )  # fmt: skip

    def list_apps(self, request):
        """The apps that the filters let through."""
        cmd, app_id, label = (request.value(name) for name in ("cmd", "id", "label"))
        selectors = label_selectors(label) if label else []
        embed = self.embeds(request, "apps") or {"counts", "deployments"}
        found = [
            self.app_view(app, embed) for app in self.scheduler.root.apps.values()
            if (not cmd or cmd.lower() in app.get("cmd", "").lower())
            and (not app_id or app_id.lower() in app["id"].lower())
            and all(one(app["labels"]) for one in selectors)
        ]  # fmt: skip
        return Answer(200, {"apps": found})

    @staticmethod
    def embeds(request, prefix):
        """What a request wants embedded, without its prefix; both spellings are taken."""
        found = set()
        for one in request.query.get("embed", ()):
            name = re.sub(r"^(group\.)?apps?\.", "", one)
            found |= {"counts"} if name == "count" else {name}
        if "failures" in found:
            found |= {"lastTaskFailure", "tasks", "counts", "deployments"}
        if "tasks" in found:
            found.add("deployments")
        return found

    def create_app(self, request):
        """Create an app; it must not be there yet."""
        app = parse(request.json())
        if app["id"] in self.scheduler.root.apps:
            raise ApiError(409, f"An app with id [{app['id']}] already exists.")
        found = self.scheduler.change(lambda root: root.set_app(app), request.flag("force"))
        app = self.scheduler.root.apps[app["id"]]
        self.post_event(request, app)
        view = self.app_view(app, {"counts", "deployments", "tasks"})
        return Answer(201, view, {"Marathon-Deployment-Id": found.id, "Location": app["id"]})

    def update_apps(self, request, creates):
        """Change several apps at once."""
        given = request.json(list)
        for index, one in enumerate(given):
            if not isinstance(one, dict) or not isinstance(one.get("id"), str):
                raise invalid_json([(f"({index})/id", "error.path.missing")])

        def edit(root):
            for one in given:
                self.put(root, canonical(one["id"]), one, request, creates)

        return self.changed(self.scheduler.change(edit, request.flag("force")))

    def put(self, root, app_id, value, request, creates):
        """Create or update an app in `root`."""
        old = root.apps.get(app_id)
        if old is None:
            if not creates:
                raise unknown_app(app_id)
            root.set_app(parse({**value, "id": app_id}))
            return
        update = parse_update({**value, "id": app_id}, app_id)
        if "version" in update:
            former = self.scheduler.versions.get(app_id, update["version"])
            if former is None:
                raise unknown_app(app_id, update["version"])
            root.set_app({key: former[key] for key in former if key not in ("version", "versionInfo")})
        elif request.flag("partialUpdate", True) or request.method == "PATCH":
            root.update_app(app_id, update)
        else:
            root.set_app(parse({**value, "id": app_id}))

    def app(self, request, app_id):
        """/v2/apps/ID"""
        key = canonical(app_id)
        return self.by_method(
            request,
            GET=lambda: self.show_app(request, key),
            PUT=lambda: self.update_app(request, key, True),
            PATCH=lambda: self.update_app(request, key, False),
            DELETE=lambda: self.delete_app(request, key),
        )

    def show_app(self, request, key):
        """One app, or all in a group for an id that ends in *."""
        embed = self.embeds(request, "app")
        embed = embed | {"counts", "deployments"} if embed else {"tasks", "counts", "deployments", "lastTaskFailure"}
        if key.endswith("*"):
            path = key[:-1].rstrip("/") or "/"
            found = [self.app_view(app, embed) for one, app in self.scheduler.root.apps.items() if within(one, path)]
            return Answer(200, {"*": found})
        return Answer(200, {"app": self.app_view(self.scheduler.app(key), embed)})

    def update_app(self, request, key, creates):
        """Change an app; PUT creates it too. The id in the URL is the one that counts."""
        value = request.json()
        new = key not in self.scheduler.root.apps
        found = self.scheduler.change(
            lambda root: self.put(root, key, value, request, creates), request.flag("force")
        )
        self.post_event(request, self.scheduler.root.apps[key])
        return self.changed(found, 201, {"Location": key}) if new else self.changed(found)

    def delete_app(self, request, key):
        """Stop an app for good."""
        self.post_event(request, self.scheduler.app(key))
        return self.changed(self.scheduler.change(lambda root: root.apps.pop(key), request.flag("force", True)))

    def restart(self, request, app_id):
        """/v2/apps/ID/restart"""
        key = canonical(app_id)
        self.scheduler.app(key)
        return self.by_method(
            request,
            POST=lambda: self.changed(
                self.scheduler.change(lambda root: None, request.flag("force"), restarted=(key,))
            ),
        )

    def versions(self, request, app_id, version):
        """/v2/apps/ID/versions[/VERSION]"""
        key = canonical(app_id)
        self.scheduler.app(key)
        if not version:
            return self.by_method(
                request, GET=lambda: Answer(200, {"versions": self.scheduler.versions.list(key)})
            )
        found = self.scheduler.versions.get(key, version)
        if found is None:
            raise unknown_app(key, version)
        return self.by_method(request, GET=lambda: Answer(200, found))

    def app_view(self, app, embed):
        """An app with what is embedded."""
        tasks = self.scheduler.of_app(app["id"])
        found = dict(app)
        if "counts" in embed:
            found.update(counts(tasks))
        if "deployments" in embed:
            running = self.scheduler.deployments.values()
            found["deployments"] = [{"id": one.id} for one in running if app["id"] in one.apps]
        if "readiness" in embed:
            found["readinessCheckResults"] = []
        if "tasks" in embed:
            found["tasks"] = [one.view() for one in tasks]
        if "lastTaskFailure" in embed and app["id"] in self.scheduler.failures:
            found["lastTaskFailure"] = self.scheduler.failures[app["id"]]
        if "taskStats" in embed:
            found["taskStats"] = task_stats(app, tasks)
        return found

    # Tasks

    def app_tasks(self, request, app_id):
        """/v2/apps/ID/tasks"""
        if app_id.endswith("*"):
            path = canonical(app_id[:-1])
            found = [one for one in self.scheduler.instances.values() if within(one.app_id, path)]
        else:
            found = self.scheduler.of_app(self.scheduler.app(canonical(app_id))["id"])
        host = request.value("host")
        found = [one for one in found if host in (None, "*", one.host)]
        return self.by_method(
            request,
            GET=lambda: Answer(200, {"tasks": [one.view() for one in found]}),
            DELETE=lambda: self.kill(request, found, lambda views: {"tasks": views}),
        )

    def app_task(self, request, app_id, task_id):
        """/v2/apps/ID/tasks/TASK"""
        app = self.scheduler.app(canonical(app_id))
        found = [one for one in self.scheduler.of_app(app["id"]) if task_id in (one.id, one.instance_id)]
        if not found:
            raise ApiError(404, f"Task '{task_id}' does not exist")
        return self.by_method(request, DELETE=lambda: self.kill(request, found, lambda views: {"task": views[0]}))

    def kill(self, request, tasks, wrap):
        """Stop tasks, and scale their apps down by them if asked to."""
        if request.flag("scale") and request.flag("wipe"):
            raise ApiError(400, "You cannot use scale and wipe at the same time.")
        views = [one.view() for one in tasks]
        found = self.scheduler.kill(tasks, request.flag("scale"), request.flag("force"))
        return self.changed(found) if found else Answer(200, wrap(views))

    def tasks(self, request):
        """/v2/tasks"""
        wanted = request.query.get("status", []) + request.query.get("status[]", [])
        states = {{"running": "TASK_RUNNING", "staging": "TASK_STAGING"}.get(one.lower(), one) for one in wanted}
        found = [one for one in self.scheduler.instances.values() if not states or one.state in states]
        return self.by_method(request, GET=lambda: Answer(200, {"tasks": [one.view() for one in found]}))

    def delete_tasks(self, request):
        """/v2/tasks/delete"""

        def delete():
            ids = request.json().get("ids")
            if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
                raise invalid_json([("/ids", "error.path.missing")])
            found = [one for one in self.scheduler.instances.values() if one.id in ids or one.instance_id in ids]
            return self.kill(request, found, lambda views: {"tasks": views})

        return self.by_method(request, POST=delete)

    # Groups

    def group(self, request, path):
        """/v2/groups[/ID]"""
        key = canonical(path or "/")
        return self.by_method(
            request,
            GET=lambda: self.show_group(request, key),
            POST=lambda: self.create_group(request, key),
            PUT=lambda: self.update_group(request, key),
            DELETE=lambda: self.delete_group(request, key),
        )

    def known_group(self, key):
        """Make sure that a group is there. Raises ApiError."""
        if key not in self.scheduler.root.groups:
            raise ApiError(404, f"Group '{key}' does not exist")

    def show_group(self, request, key):
        """A group with its apps and groups."""
        self.known_group(key)
        given = set(request.query.get("embed", ())) or {"group.groups", "group.apps"}
        embed = self.embeds(request, "group") - {"group.groups", "group.apps", "group.pods"}
        return Answer(200, self.group_view(self.scheduler.root, key, given, embed))

    def group_view(self, root, key, given, embed):
        """A group of `root`."""
        direct = [app for one, app in root.apps.items() if one.rpartition("/")[0] == key.rstrip("/")]
        groups = [one for one in root.groups if one != "/" and one.rpartition("/")[0] == key.rstrip("/")]
        apps = direct if "group.apps" in given or any(one.startswith("group.apps") for one in given) else []
        nested = groups if "group.groups" in given else []
        return {
            "id": key,
            "dependencies": root.groups[key]["dependencies"],
            "version": root.version,
            "apps": [self.app_view(app, embed) if embed else app for app in apps],
            "groups": [self.group_view(root, one, given, embed) for one in nested],
            "pods": [],
        }

    def create_group(self, request, key):
        """Create a group; it must not be there yet."""
        value = request.json()
        key = canonical(value.get("id") or key, key)
        if key in self.scheduler.root.groups:
            raise ApiError(409, f"Group {key} is already created. Use PUT to change this group.")
        if key in self.scheduler.root.apps:
            raise ApiError(409, f"An app with the path {key} already exists.")
        found = self.scheduler.change(lambda root: root.set_group(key, value), request.flag("force"))
        return self.changed(found, 201, {"Location": key})

    def update_group(self, request, key):
        """Change a group, scale it, or take it back to a former version."""
        value = request.json()
        if isinstance(value.get("id"), str) and not path_of_url(request):
            key = canonical(value["id"])
        if value.get("version"):
            former = self.scheduler.root_at(value["version"])
            if former is None:
                raise ApiError(404, f"Group '{key}' does not exist in version {value['version']}")
            edit = restore(former, key)
        else:
            def edit(root):
                root.set_group(key, value)
        if request.flag("dryRun"):
            after = self.scheduler.root.copy()
            edit(after)
            after.settle(self.scheduler.root, self.scheduler.options.port_range)
            return Answer(200, {"steps": [{"actions": one} for one in plan(self.scheduler.root, after).steps]})
        return self.changed(self.scheduler.change(edit, request.flag("force")))

    def delete_group(self, request, key):
        """Stop a group with all that is in it."""
        self.known_group(key)
        return self.changed(self.scheduler.change(lambda root: root.remove_group(key), request.flag("force")))

    def group_versions(self, request, path, version):
        """/v2/groups[/ID]/versions[/VERSION]"""
        key = canonical(path or "/")
        if not version:
            self.known_group(key)
            return self.by_method(request, GET=lambda: Answer(200, self.scheduler.store.names("roots")[::-1]))
        former = self.scheduler.root_at(version)
        if former is None or key not in former.groups:
            raise ApiError(404, f"Group '{key}' does not exist in version {version}")
        return self.by_method(
            request,
            GET=lambda: Answer(200, self.group_view(former, key, {"group.groups", "group.apps"}, set())),
            PUT=lambda: self.changed(self.scheduler.change(restore(former, key), request.flag("force"))),
        )

    # The rest

    def deployments(self, request):
        """/v2/deployments"""
        return self.by_method(
            request, GET=lambda: Answer(200, [one.view() for one in self.scheduler.deployments.values()])
        )

    def deployment(self, request, deployment_id):
        """/v2/deployments/ID"""

        def cancel():
            found = self.scheduler.cancel(deployment_id, request.flag("force"))
            return self.changed(found) if found else Answer(202)

        return self.by_method(request, DELETE=cancel)

    def queue(self, request):
        """/v2/queue"""
        offers = "lastUnusedOffers" in request.query.get("embed", ())
        return self.by_method(request, GET=lambda: Answer(200, self.scheduler.queue(offers)))

    def queue_delay(self, request, app_id):
        """/v2/queue/ID/delay"""
        key = canonical(app_id)
        if key not in self.scheduler.waiting:
            raise ApiError(404, f"Application {key} not found in tasks queue.")

        def reset():
            self.scheduler.delays.pop(key, None)
            self.scheduler.wake.set()
            return Answer(204)

        return self.by_method(request, DELETE=reset)

    def info(self, request):
        """/v2/info"""
        options = self.scheduler.options
        names = ("master", "failover_timeout", "framework_name", "hostname", "webui_url", "mesos_role", "mesos_user",
                 "local_port_min", "local_port_max", "executor", "task_launch_timeout", "reconciliation_initial_delay",
                 "reconciliation_interval", "leader_proxy_read_timeout", "default_network_name")  # fmt: skip
        numbers = ("zk_timeout", "zk_connection_timeout", "zk_session_timeout", "zk_max_versions")
        config = {name: getattr(options, name) for name in names}
        config["leader_proxy_read_timeout_ms"] = config.pop("leader_proxy_read_timeout")
        config["leader_proxy_connection_timeout_ms"] = options.leader_proxy_connection_timeout
        return self.by_method(
            request,
            GET=lambda: Answer(
                200,
                {
                    "name": "marathon",
                    "version": VERSION,
                    "buildref": BUILD,
                    "elected": True,
                    "leader": options.address,
                    "frameworkId": self.scheduler.framework,
                    "marathon_config": {
                        **config, "ha": True, "checkpoint": True, "features": [],
                        "mesos_leader_ui_url": options.mesos_leader_ui_url or f"{self.scheduler.master}/",
                    },
                    "zookeeper_config": {
                        "zk": re.sub(r"//[^@/]*@", "//", options.zk),
                        **{name: getattr(options, name) for name in numbers},
                    },
                    "http_config": {"http_port": options.http_port, "https_port": options.https_port},
                },
            ),
        )  # fmt: skip

    def leader(self, request):
        """/v2/leader"""

        def abdicate():
            self.member.abdicate()
            return Answer(200, {"message": "Leadership abdicated"})

        return self.by_method(
            request, GET=lambda: Answer(200, {"leader": self.scheduler.options.address}), DELETE=abdicate
        )

    def ping(self, request):
        """/ping"""
        return self.by_method(request, GET=lambda: Answer(200, "pong"))

    def metrics(self, request):
        """/metrics"""
        apps, tasks = self.scheduler.root.apps, list(self.scheduler.instances.values())
        totals = counts(tasks)
        gauges = {
            "marathon.apps.active.gauge": len(apps),
            "marathon.deployments.active.gauge": len(self.scheduler.deployments),
            "marathon.instances.running.gauge": totals["tasksRunning"],
            "marathon.instances.staged.gauge": totals["tasksStaged"],
            "marathon.instances.launch-overdue.gauge": sum(one.count for one in self.scheduler.waiting.values()),
            "marathon.leadership.duration.gauge.seconds": time.monotonic() - self.member.elected,
        }
        return Answer(
            200,
            {
                "version": "4.0.0", "gauges": {name: {"value": value} for name, value in gauges.items()},
                "counters": {}, "histograms": {}, "meters": {}, "timers": {},
            },
        )  # fmt: skip


ROUTES = [
    (r"/ping", Api.ping),
    (r"/metrics", Api.metrics),
    (r"/v2/info", Api.info),
    (r"/v2/leader", Api.leader),
    (r"/v2/tasks", Api.tasks),
    (r"/v2/tasks/delete", Api.delete_tasks),
    (r"/v2/queue", Api.queue),
    (r"/v2/queue/(.+)/delay", Api.queue_delay),
    (r"/v2/deployments", Api.deployments),
    (r"/v2/deployments/([^/]+)", Api.deployment),
    (r"/v2/groups(?:/(.+?))?/+versions(?:/([^/]+))?", Api.group_versions),
    (r"/v2/groups(?:/(.+))?", Api.group),
    (r"/v2/apps", Api.apps),
    (r"/v2/apps/(.+)/restart", Api.restart),
    (r"/v2/apps/(.+)/versions(?:/([^/]+))?", Api.versions),
    (r"/v2/apps/(.+)/tasks", Api.app_tasks),
    (r"/v2/apps/(.+)/tasks/([^/]+)", Api.app_task),
    (r"/v2/apps/(.+)", Api.app),
]


def path_of_url(request):
    """The group that a URL names, empty for the root."""
    return unquote(request.path).rstrip("/").removeprefix("/v2/groups").strip("/")


def restore(former, key):
    """An edit that makes group `key` what it was in root `former`."""

    def edit(root):
        root.remove_group(key)
        for path, one in former.groups.items():
            if within(path, key):
                root.groups[path] = one
        for path, app in former.apps.items():
            if within(path, key):
                root.set_app({name: app[name] for name in app if name not in ("version", "versionInfo")})

    return edit


def counts(tasks):
    """How many tasks of an app there are in which condition."""
    return {
        "tasksStaged": len([one for one in tasks if one.state in ("TASK_STAGING", "TASK_STARTING")]),
        "tasksRunning": len([one for one in tasks if one.state == "TASK_RUNNING"]),
        "tasksHealthy": len([one for one in tasks if one.state == "TASK_RUNNING" and one.healthy is True]),
        "tasksUnhealthy": len([one for one in tasks if one.state == "TASK_RUNNING" and one.healthy is False]),
    }


def task_stats(app, tasks):
    """Statistics of an app's tasks by what they run with."""
    changed, scaled = (app["versionInfo"][name] for name in ("lastConfigChangeAt", "lastScalingAt"))
    groups = {
        "startedAfterLastScaling": [one for one in tasks if one.version >= scaled],
        "withLatestConfig": [one for one in tasks if one.version >= changed],
        "withOutdatedConfig": [one for one in tasks if one.version < changed],
        "totalSummary": tasks,
    }
    found = {}
    for name, some in groups.items():
        if not some:
            continue
        numbers = {key.removeprefix("tasks").lower(): value for key, value in counts(some).items()}
        ages = [time.time() - one.started for one in some if one.started]
        life = {"averageSeconds": statistics.mean(ages), "medianSeconds": statistics.median(ages)} if ages else None
        found[name] = {"stats": {"counts": numbers, **({"lifeTime": life} if life else {})}}
    return found


def label_selectors(text):
    """What labels must fulfil, as functions of them: `a`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`."""
    found = []
    for part in re.split(r",(?![^(]*\))", text):
        word = part.strip().replace("\\", "")
        if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\((.*)\)", word):
            values = {one.strip() for one in match[3].split(",")}
            wanted = match[2] == "in"
            found.append(lambda labels, k=match[1], v=values, w=wanted: k in labels and (labels[k] in v) == w)
        elif match := re.fullmatch(r"(.+?)\s*(==|!=)\s*(.+)", word):
            wanted = match[2] == "=="
            found.append(lambda labels, k=match[1], v=match[3], w=wanted: k in labels and (labels[k] == v) == w)
        elif re.fullmatch(r"[-\w.]+", word):
            found.append(lambda labels, k=word: k in labels)
        else:
            raise ApiError(422, f"Can not parse label selector '{text}'")
    return found

# SPDX-License-Identifier: Apache-2.0
"""The marathon engine: an app's files go to the hosts that may run it, its definition goes to Marathon.

Marathon chooses among these hosts, starts the container there and looks after it. What differs from the definition that
the other engines take is made here: names within the group /dodas, images in the cluster's registry, placement.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime

from ansible_collections.dodas.cluster.plugins.module_utils.engine.definition import DefinitionError

GROUP = "/dodas"
LABEL = "dodas.app"  # of containers, so that they can be found on their host
FILES = "dodas-files"  # label of apps: other files on its hosts are another version of the app
OURS = "localhost/dodas/"
EAGER = 5  # seconds between health checks, at most


def translate(definition, hosts, images, instances=1, known=None):
    """The definition as Marathon takes it.

    hosts: names of the agents that may run it; images: what stands for the images of ours, by name
    instances: how many; with a fixed port or with folders of its host, each on a host of its own
    known: names of the apps that the cluster has; others are not waited for (a site may have an identity provider of
    its own), all are when it is None
    Raises DefinitionError.
    """
    app = json.loads(json.dumps(definition))
    name = app.get("id", "").strip("/")
    if not re.fullmatch("[a-z][a-z0-9-]{0,40}", name):
        raise DefinitionError(f"id: {app.get('id')!r} must be lower-case letters, digits and dashes")
    if not hosts:
        raise DefinitionError(f"app {name}: no agent may run it")
    docker = app.get("container", {}).get("docker", {})
    parameters = [*docker.get("parameters", []), {"key": "label", "value": f"{LABEL}={name}"}]
    user = app.pop("user", "")
    if user:
        parameters.append({"key": "user", "value": user})
    docker.update(image=_image(name, docker.get("image", ""), images), parameters=parameters)
    fixed = any(port.get("port") for port in app.get("portDefinitions", []))
    if fixed:
        app["requirePorts"] = True
    constraints = [["hostname", "LIKE", "|".join(re.escape(host) for host in hosts)]]
    if instances > 1 and fixed:
        constraints.append(["hostname", "UNIQUE"])
    if fixed and instances > len(hosts):
        raise DefinitionError(f"app {name}: {instances} instances have one port, and {len(hosts)} hosts may run it")
    dependencies = [one.strip("/") for one in app.get("dependencies", [])]
    app.update(
        id=f"{GROUP}/{name}",
        dependencies=[f"{GROUP}/{one}" for one in dependencies if known is None or one in known],
        instances=instances,
        constraints=[*constraints, *app.get("constraints", [])],
        healthChecks=[_check(one) for one in app.get("healthChecks", [])],
    )
    # Two of one port cannot be on a host at once: the old one goes first.
    app.setdefault("upgradeStrategy", {"minimumHealthCapacity": 0 if fixed else 0.5, "maximumOverCapacity": 0})
    return app


def _image(name, image, images):
    if not image.startswith(OURS):
        return image
    short = image.removeprefix(OURS).partition(":")[0]
    if short not in images:
        raise DefinitionError(f"app {name}: container.docker.image: {image} is not in the cluster's registry")
    return images[short]


def _check(check):
    """Its agent does it, where the container is.

    And more often, because an app that is not healthy yet is looked at no sooner than one that is; it is given up after
    the same time.
    """
    protocol = check.get("protocol", "HTTP")
    protocol = protocol if protocol.startswith(("MESOS_", "COMMAND")) else f"MESOS_{protocol}"
    asked, failures = check.get("intervalSeconds", 60), check.get("maxConsecutiveFailures", 3)
    interval = min(EAGER, asked) or 1
    often = {"intervalSeconds": interval, "maxConsecutiveFailures": math.ceil(failures * asked / interval)}
    return {"delaySeconds": 0, **check, **often, "protocol": protocol}


def folders(definition):
    """What an app writes on its host: Docker makes it, podman wants to find it."""
    volumes = definition.get("container", {}).get("volumes", [])
    return [one["hostPath"] for one in volumes if one.get("mode") == "RW" and one["hostPath"].startswith("/var/lib/")]


def digest(files):
    """Stands for the content of an app's files [{path, content, mode, owner}] on one host."""
    parts = sorted((one["path"], one["content"], one.get("mode"), one.get("owner")) for one in files)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def collect(found):
    """The apps of all hosts, by id; `found`: for each host {app: {"definition", "digest"}}.

    Other files on any of its hosts make another version of the app, which Marathon starts anew.
    """
    definitions, digests = {}, {}
    for host in sorted(found):
        for name, one in found[host].items():
            definitions[name] = one["definition"]
            digests.setdefault(name, []).append(f"{host} {one['digest']}")
    apps = []
    for name in sorted(definitions):
        label = hashlib.sha256("\n".join(digests[name]).encode()).hexdigest()[:16]
        app = definitions[name]
        apps.append({**app, "labels": {**app.get("labels", {}), FILES: label}})
    return apps


def states(apps, agent=None):
    """What runs on `agent`, as the other engines tell it: {app: {"state", "output", "since"}}.

    apps: as Marathon gives them with their tasks. Without `agent`: apps that lack instances.
    """
    found = {}
    for app in apps:
        name = app["id"].rpartition("/")[2]
        tasks = app.get("tasks", [])
        if agent is None:
            missing = app["instances"] - len([one for one in tasks if one.get("startedAt")])
            if missing > 0:
                reason = app.get("lastTaskFailure", {}).get("message") or "waits for an offer"
                found[name] = {"state": "critical", "since": 0, "output": f"{missing} of {app['instances']}: {reason}"}
            continue
        here = [one for one in tasks if one.get("host") == agent]
        if here:
            sick = [one for one in here if not _is_healthy(app, one)]
            output = next((_output(one) for one in sick), f"{len(here)} of {app['instances']} here")
            state = "critical" if sick else "passing"
            found[name] = {"state": state, "output": output, "since": min(_started(one) for one in here)}
    return found


def _is_healthy(app, task):
    if task.get("state", "TASK_RUNNING") != "TASK_RUNNING":
        return False
    results = task.get("healthCheckResults", [])
    return not app.get("healthChecks") or (bool(results) and all(one.get("alive") for one in results))


def _output(task):
    failed = [one.get("lastFailureCause") for one in task.get("healthCheckResults", []) if not one.get("alive")]
    return next((one for one in failed if one), "not healthy yet")


def _started(task):
    """Seconds since the epoch, 0 when it has not started."""
    text = task.get("startedAt") or ""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0

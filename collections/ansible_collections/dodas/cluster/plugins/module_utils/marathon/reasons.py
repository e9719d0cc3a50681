# SPDX-License-Identifier: Apache-2.0
"""Why apps do not run, in plain words, from what Marathon says of its queue, of tasks and of deployments."""

from __future__ import annotations

# What Marathon calls the reason, and the resource that it is about.
_SCALARS = {
    "InsufficientCpus": ("cpus", "cpus"), "InsufficientMemory": ("mem", "MB of memory"),
    "InsufficientDisk": ("disk", "MB of disk"), "InsufficientGpus": ("gpus", "gpus"),
}  # fmt: skip


def waiting(item):
    """Why an entry of /v2/queue waits, as sentences without a full stop."""
    app = item.get("app") or {}
    delay = item.get("delay") or {}
    if not delay.get("overdue", True) and delay.get("timeLeftSeconds"):
        return [f"it failed before and is started again in {delay['timeLeftSeconds']:g} s"]
    summary = item.get("processedOffersSummary") or {}
    rows = [one for one in summary.get("rejectSummaryLastOffers") or [] if one.get("declined")]
    offers = item.get("lastUnusedOffers") or []
    if not rows and offers:
        return _from_offers(app, offers)
    if not rows:
        return ["Marathon was offered nothing: no agent is registered, or none has anything free"]
    total = max(one.get("processed", 0) for one in rows)
    return [_declined(one["reason"], one["declined"], total, app, offers) for one in rows]


def _from_offers(app, offers):
    """Where the summary says nothing, the first reason of each offer."""
    counts = {}
    for one in offers:
        for reason in (one.get("reason") or ["unknown"])[:1]:
            counts[reason] = counts.get(reason, 0) + 1
    return [_declined(reason, count, len(offers), app, offers) for reason, count in counts.items()]


def _declined(reason, declined, total, app, offers):
    lacking = [one["offer"] for one in offers if reason in (one.get("reason") or []) and "offer" in one]
    lack = _lack(reason, app, lacking)
    return f"no offer {lack}" if declined >= total else f"{declined} of {total} offers: none {lack}"


def _lack(reason, app, offers):
    """What no offer does: `has 4 cpus: the largest has 2 (worker-1)`."""
    if reason in _SCALARS:
        name, unit = _SCALARS[reason]
        largest = max(offers, key=lambda one: _scalar(one, name), default=None)
        has = f": the largest has {_scalar(largest, name):g} ({largest.get('hostname')})" if largest else ""
        return f"has {app.get(name, 0):g} {unit}{has}"
    if reason == "InsufficientPorts":
        ports = [one.get("port", 0) for one in app.get("portDefinitions") or []]
        mapped = (app.get("container") or {}).get("portMappings") or []
        fixed = ports if app.get("requirePorts") else [one.get("hostPort", 0) for one in mapped]
        named = ", ".join(str(one) for one in fixed or [] if one)
        return f"has port {named} free" if named else f"has {len(ports or mapped)} free ports"
    if reason == "UnfulfilledConstraint":
        return f"fulfils the constraints {_constraints(app)}"
    if reason == "UnfulfilledRole":
        return f"is for the role {', '.join(app.get('acceptedResourceRoles') or [app.get('role') or '*'])}"
    if reason == "NoCorrespondingReservationFound":
        return "has what is reserved for this app and its volumes"
    if reason in ("AgentMaintenance", "AgentUnavailable"):
        return "is of an agent that is not about to go for maintenance"
    return f"fits: {reason}"


def _constraints(app):
    return ", ".join(" ".join(filter(None, parts)) for parts in app.get("constraints") or []) or "of its definition"


def _scalar(offer, name):
    """How much of a resource an offer has, over all roles."""
    return sum(one.get("scalar") or 0 for one in offer.get("resources") or [] if one.get("name") == name)


def instances(app):
    """What lacks of an app's instances; empty when all run and, where there are health checks, are healthy.

    app: with counts and deployments embedded.
    """
    wanted = app["instances"]
    running, healthy = app.get("tasksRunning", 0), app.get("tasksHealthy", 0)
    if running < wanted:
        return f"{running} of {wanted} instances run"
    if app.get("healthChecks") and (healthy < wanted or app.get("tasksUnhealthy")):
        return f"{healthy} of {wanted} instances are healthy"
    return ""


def tasks(app):
    """What its tasks say of an app: failed health checks, and the last failure. app: with these embedded."""
    said = []
    for task in app.get("tasks") or []:
        for result in task.get("healthCheckResults") or []:
            if not result.get("alive") and result.get("lastFailureCause"):
                said.append(f"on {task.get('host')} its health check fails: {_line(result['lastFailureCause'])}")
    failure = app.get("lastTaskFailure") or {}
    # Both are points in time that sort as texts do.
    if failure and str(failure.get("timestamp", "")) >= str(app.get("version", "")):
        cause = _line(failure.get("message")) or "no message"
        said.append(f"on {failure.get('host')} it ended with {failure.get('state')}: {cause}")
    return sorted(set(said))


def of(app, item=None):
    """Why an app is not as it shall be; nothing where it is. app: with all embedded; item: its entry of the queue."""
    lack = instances(app) or ("its deployment goes on" if app.get("deployments") else "")
    return [lack, *(waiting(item) if item else []), *tasks(app)] if lack else []


def _line(text):
    """The last line that says something: of a long output it is the one that tells."""
    lines = [one.strip() for one in str(text or "").splitlines() if one.strip()]
    return lines[-1][:300] if lines else ""


def deployment(one):
    """A deployment in a few words."""
    actions = [f"{action.get('action') or action.get('type')} {action.get('app') or action.get('pod')}"
               for action in one.get("currentActions") or []]  # fmt: skip
    doing = f", {' and '.join(actions)}" if actions else ""
    return f"{one['id']} of {one.get('version')} (step {one.get('currentStep')} of {one.get('totalSteps')}{doing})"

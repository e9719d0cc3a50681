# SPDX-License-Identifier: Apache-2.0
"""Reasons in plain words, from what Marathon's queue, tasks and deployments say."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.marathon import reasons


def offer(host, reason, **scalars):
    resources = [{"name": name, "role": "*", "scalar": value} for name, value in scalars.items()]
    return {"offer": {"hostname": host, "resources": resources}, "reason": [reason], "timestamp": "t"}


def item(rows, offers=(), delay=None, **app):
    return {
        "app": {"id": "/a", "cpus": 4, "mem": 512, "disk": 0, "gpus": 0, **app},
        "count": 1,
        "delay": delay or {"timeLeftSeconds": 0, "overdue": True},
        "processedOffersSummary": {
            "processedOffersCount": 9,
            "unusedOffersCount": 9,
            "rejectSummaryLastOffers": [
                {"reason": reason, "declined": declined, "processed": processed} for reason, declined, processed in rows
            ],
        },
        "lastUnusedOffers": list(offers),
    }


CPUS = [("UnfulfilledRole", 0, 2), ("UnfulfilledConstraint", 0, 2), ("InsufficientCpus", 2, 2)]


def test_the_largest_offer_is_named():
    offers = [offer("worker-1", "InsufficientCpus", cpus=1.5), offer("worker-2", "InsufficientCpus", cpus=2, mem=9)]
    assert reasons.waiting(item(CPUS, offers)) == ["no offer has 4 cpus: the largest has 2 (worker-2)"]


def test_without_offers_the_number_wanted_is_named():
    assert reasons.waiting(item(CPUS)) == ["no offer has 4 cpus"]


def test_offers_fail_for_different_reasons():
    rows = [("UnfulfilledConstraint", 1, 3), ("InsufficientCpus", 2, 2)]
    offers = [
        offer("worker-1", "UnfulfilledConstraint", cpus=16),
        offer("worker-2", "InsufficientCpus", cpus=2),
        offer("worker-3", "InsufficientCpus", cpus=1),
    ]
    assert reasons.waiting(item(rows, offers, constraints=[["hostname", "UNIQUE"], ["rack", "LIKE", "a"]])) == [
        "1 of 3 offers: none fulfils the constraints hostname UNIQUE, rack LIKE a",
        "2 of 3 offers: none has 4 cpus: the largest has 2 (worker-2)",
    ]


def test_several_roles_add_up_in_an_offer():
    both = {"hostname": "worker-1", "resources": [{"name": "mem", "role": role, "scalar": 128} for role in ("*", "r")]}
    said = reasons.waiting(item([("InsufficientMemory", 1, 1)], [{"offer": both, "reason": ["InsufficientMemory"]}]))
    assert said == ["no offer has 512 MB of memory: the largest has 256 (worker-1)"]


@pytest.mark.parametrize(
    ("reason", "app", "said"),
    [
        ("InsufficientPorts", {"portDefinitions": [{"port": 80}], "requirePorts": True}, "no offer has port 80 free"),
        ("InsufficientPorts", {"portDefinitions": [{"port": 3128}, {"port": 0}]}, "no offer has 2 free ports"),
        ("InsufficientPorts", {"container": {"portMappings": [{"hostPort": 80}]}}, "no offer has port 80 free"),
        ("UnfulfilledConstraint", {}, "no offer fulfils the constraints of its definition"),
        ("UnfulfilledRole", {"acceptedResourceRoles": ["cms"]}, "no offer is for the role cms"),
        ("NoCorrespondingReservationFound", {}, "no offer has what is reserved for this app and its volumes"),
        ("AgentMaintenance", {}, "no offer is of an agent that is not about to go for maintenance"),
        ("SomethingNew", {}, "no offer fits: SomethingNew"),
    ],
)
def test_each_reason_in_words(reason, app, said):
    assert reasons.waiting(item([(reason, 1, 1)], **app)) == [said]


def test_no_offers_at_all():
    assert reasons.waiting(item([])) == [
        "Marathon was offered nothing: no agent is registered, or none has anything free"
    ]
    assert reasons.waiting({"app": {"id": "/a"}, "count": 1}) == reasons.waiting(item([]))


def test_only_offers_and_no_summary():
    offers = [offer("worker-1", "InsufficientCpus", cpus=1), offer("worker-2", "InsufficientCpus", cpus=2)]
    assert reasons.waiting(item([], offers)) == ["no offer has 4 cpus: the largest has 2 (worker-2)"]


def test_a_delay_after_failures():
    said = reasons.waiting(item(CPUS, delay={"timeLeftSeconds": 35, "overdue": False}))
    assert said == ["it failed before and is started again in 35 s"]


def test_what_lacks_of_the_instances():
    app = {"instances": 3, "tasksRunning": 3, "tasksHealthy": 2, "tasksUnhealthy": 1, "healthChecks": [{}]}
    assert reasons.instances(app) == "2 of 3 instances are healthy"
    assert reasons.instances({**app, "tasksRunning": 1}) == "1 of 3 instances run"
    assert reasons.instances({**app, "healthChecks": []}) == ""
    assert reasons.instances({**app, "tasksHealthy": 3, "tasksUnhealthy": 0}) == ""
    assert reasons.instances({"instances": 0}) == ""


def test_what_tasks_say():
    failure = {"host": "worker-1", "state": "TASK_FAILED", "message": "pull\nno such image\n", "timestamp": "2024-02"}
    app = {
        "version": "2024-01",
        "lastTaskFailure": failure,
        "tasks": [{"host": "worker-2", "healthCheckResults": [{"alive": False, "lastFailureCause": "refused"}]},
                  {"host": "worker-3", "healthCheckResults": [{"alive": True, "lastFailureCause": "before"}]}],
    }  # fmt: skip
    assert reasons.tasks(app) == [
        "on worker-1 it ended with TASK_FAILED: no such image",
        "on worker-2 its health check fails: refused",
    ]
    assert len(reasons.tasks({**app, "version": "2024-03"})) == 1  # a failure of an older version
    assert reasons.tasks({}) == []


def test_of_an_app_that_is_as_it_shall_be_there_is_nothing_to_say():
    good = {"instances": 1, "tasksRunning": 1, "deployments": [], "lastTaskFailure": {"host": "x", "timestamp": "9"}}
    assert reasons.of(good) == []
    assert reasons.of({**good, "deployments": [{"id": "d"}]})[0] == "its deployment goes on"
    assert reasons.of({**good, "instances": 2}, item(CPUS))[:2] == ["1 of 2 instances run", "no offer has 4 cpus"]


def test_a_deployment_in_words():
    one = {"id": "d-1", "version": "v", "currentStep": 1, "totalSteps": 2,
           "currentActions": [{"action": "StartApplication", "app": "/a"}]}  # fmt: skip
    assert reasons.deployment(one) == "d-1 of v (step 1 of 2, StartApplication /a)"

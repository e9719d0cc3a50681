# SPDX-License-Identifier: Apache-2.0
"""A look at a running cluster: probes, apps and slots."""

from __future__ import annotations

from ansible_collections.dodas.cluster.plugins.module_utils import deployment as store
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import template as tosca
from dodas import deployments

SLOTS = "Machine TotalSlotCpus Cpus TotalSlotMemory NumDynamicSlots"


def look(deployment, timeout=0):
    """Everything that `status` shows. `timeout`: seconds until the probes must hold; 0 looks once."""
    report = deployment.play("check", {"dodas_check_timeout": timeout}, quiet=True)
    return describe(deployment, report)


def describe(deployment, report):
    """The cluster as a playbook that ended with check.yml found it."""
    probes = [{"host": host, **probe} for host, found in report["probes"].items() for probe in found]
    recorded = deployment.hosts if deployment.is_remote else {}
    hosts = {
        name: {"address": address, "apps": report.get("apps", {}).get(name, {}),
               **{key: value for key, value in recorded.get(name, {}).items() if key != "address"}}
        for name, address in deployment.addresses().items()
    }  # fmt: skip
    healthy = [app["state"] == "passing" for host in hosts.values() for app in host["apps"].values()]
    mesos = report.get("mesos")
    healthy.append(not mesos or (mesos["quorum"]["ok"] and not mesos["missing"]))
    front = next((probe["host"] for probe in probes if probe["name"] == "collector" and probe["ok"]), None)
    return {
        "name": deployment.name,
        "backend": deployment.backend,
        "engine": deployment.engine,
        "source": str(deployment.source),
        "uuid": store.uuid(deployment.directory, make=False),
        "only": len(deployments.names()) == 1,
        "complete": report["status"] == 0 and bool(probes) and all(probe["ok"] for probe in probes) and all(healthy),
        "hosts": hosts,
        "probes": probes,
        "errors": report["errors"],
        "unkept": report.get("unkept", []),
        "mesos": mesos,
        "marathon": report.get("marathon"),
        "slots": slots(deployment, front) if front else [],
        "endpoints": endpoints(deployment),
    }


def slots(deployment, front):
    """The pool's slots: machine, cpus, memory in MB, jobs that run."""
    query = ("condor_status", "-const", 'SlotType == "Partitionable"', "-af", *SLOTS.split())
    printed = deployment.execute(front, "htcondor", *query)
    found = []
    for line in printed.splitlines():
        machine, cpus, free, memory, jobs = line.split()
        found.append({
            "machine": machine.removesuffix(".node.consul"), "cpus": int(cpus), "used_cpus": int(cpus) - int(free),
            "memory_mb": int(memory), "jobs": int(jobs) if jobs.isdigit() else 0,
        })  # fmt: skip
    return found


def endpoints(deployment):
    """The template's outputs that have a value; none for a plain inventory."""
    if deployment.backend == "existing":
        return {}
    outputs = tosca.load(deployment.source, deployment.inputs).outputs(deployment.hosts)
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in outputs.items() if value}

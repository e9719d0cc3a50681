# SPDX-License-Identifier: Apache-2.0
"""What the command line shows of a cluster."""

from __future__ import annotations

import datetime as dt

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def status(found):
    """Show what `cluster.look` found: hosts, services, probes, slots."""
    console.print(f"\n[bold]{found['name']}[/]  {found['backend']}, {found['engine']}, from {found['source']}")
    hosts = table("host", "address", "service", "health", "since")
    for name, one in found["hosts"].items():
        rows = one["apps"] or {"-": {"state": "-", "output": ""}}
        for i, (app, state) in enumerate(rows.items()):
            health = {"passing": "[green]passing[/]"}.get(state["state"], f"[red]{state['state']}[/] {state['output']}")
            since = _age(state.get("since"))
            hosts.add_row(name if i == 0 else "", _address(one) if i == 0 else "", app, health, since)
    console.print(hosts)
    if found["mesos"]:
        _mesos(found["mesos"], found["marathon"] or {})
    probes = table("probe", "host", "", "found")
    for probe in found["probes"]:
        mark = "[green]✓[/]" if probe["ok"] else "[red]✗[/]"
        detail = f"  [dim]{probe['detail']}[/]" if probe["detail"] else ""
        probes.add_row(probe["name"], probe["host"], mark, f"{probe['output']}{detail}")
    console.print(probes)
    slots = table("slot", "cpus", "memory", "jobs")
    for slot in found["slots"]:
        cpus, memory = f"{slot['used_cpus']} of {slot['cpus']} used", f"{slot['memory_mb']} MB"
        slots.add_row(slot["machine"], cpus, memory, str(slot["jobs"]))
    console.print(slots)
    if found["unkept"]:
        hosts = ", ".join(found["unkept"])
        console.print(f"[yellow]after a reboot nothing starts {hosts}[/]: ./dodas up does "
                      "(loginctl enable-linger or a crontab would)")  # fmt: skip


def _address(host):
    """Where a host is: for others of the cluster, and from outside."""
    outside = f" ({host['public_address']})" if host.get("public_address") else ""
    return f"{host['address'] or ''}{outside}"


def deployed(found):
    """Show what is deployed in a cloud."""
    listing = table("deployment", "uuid", "hosts", "owner", "expires")
    for one in found:
        listing.add_row(one["name"], one["uuid"], str(len(one.get("hosts") or ())), one.get("owner") or "",
                        one.get("expires") or "")  # fmt: skip
    console.print(listing)


def _mesos(mesos, marathon):
    """Masters and their majority, agents and what of them is in use, apps and their instances."""
    quorum = mesos["quorum"]
    colour = "green" if quorum["ok"] else "red"
    alive = f"[{colour}]{quorum['alive']} of {quorum['masters']} alive, {quorum['needed']} needed[/]"
    masters = table("master", "", alive)
    for one in mesos["masters"]:
        state = f"[green]{one['state']}[/]" if one["state"] in ("leading", "following") else f"[red]{one['state']}[/]"
        masters.add_row(one["address"], state, one["problem"])
    console.print(masters)
    agents = table("agent", "", "cpus", "memory", "offered")
    for one in mesos["agents"]:
        state = "[green]active[/]" if one["active"] and one["connected"] else f"[red]{one['drain'] or 'lost'}[/]"
        has, used, offered = one["resources"], one["used"], one["offered"]
        agents.add_row(
            one["hostname"], state, f"{used.get('cpus', 0):g} of {has.get('cpus', 0):g} used",
            f"{used.get('mem', 0):g} of {has.get('mem', 0):g} MB used",
            f"{offered.get('cpus', 0):g} cpus, {offered.get('mem', 0):g} MB",
        )  # fmt: skip
    console.print(agents)
    if mesos["missing"]:
        console.print(f"[red]not there: {', '.join(mesos['missing'])}[/]")
    if mesos["unreachable"]:
        console.print(f"[red]{mesos['unreachable']} agents are unreachable[/]")
    apps = table(f"app  [dim]Marathon {marathon.get('leader', 'has no leader')}[/]", "running", "healthy", "")
    for one in marathon.get("apps", []):
        wanted = one["instances"]
        good = one.get("tasksRunning", 0) == wanted
        running = f"[{'green' if good else 'red'}]{one.get('tasksRunning', 0)} of {wanted}[/]"
        healthy = str(one.get("tasksHealthy", 0)) if one.get("healthChecks") else "[dim]unchecked[/]"
        apps.add_row(one["id"], running, healthy, "; ".join(one["reasons"]))
    console.print(apps)


def how_to(found):
    """Show endpoints and what to do next."""
    endpoints = table("endpoint", "where")
    for name, value in found["endpoints"].items():
        endpoints.add_row(name, str(value))
    console.print(endpoints)
    name = "" if found["only"] else f" --name {found['name']}"
    console.print(f"run jobs:   ./dodas submit examples/dimuon --wait{name}")
    console.print(f"more hosts: ./dodas scale workers={len(found['slots']) + 2}{name}")
    console.print(f"remove it:  ./dodas down{name}")


def phases(report, total):
    """Show how long each phase took."""
    took = [f"{one['name'].lower()} {one['seconds']:.1f}" for one in report["phases"] if one["hosts"]]
    console.print(f"\nphases (s): {', '.join(took)}; [bold]{total:.1f} in all[/]")


def images(found):
    """Show the images."""
    listing = table("image", "content", "built", "size")
    for one in found:
        built = "[green]yes[/]" if one["present"] else "no"
        size = f"{one['size'] / 1e6:.0f} MB" if one["present"] else ""
        listing.add_row(one["name"], one["reference"].rpartition(":")[2], built, size)
    console.print(listing)


def node_images(found):
    """Show the disk images of hosts in a cloud."""
    listing = table("image", "built", "size", "in the cloud")
    for one in found:
        built = "[green]yes[/]" if one["path"] else "no"
        size = f"{one['size'] / 1e6:.0f} MB" if one["path"] else ""
        listing.add_row(one["reference"], built, size, one["cloud_id"] or "")
    console.print(listing)


def table(*columns):
    """An empty table."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _age(since):
    if not since:
        return ""
    seconds = int(dt.datetime.now(dt.UTC).timestamp() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"

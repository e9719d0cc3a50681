# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click

from ansible_collections.dodas.cluster.plugins.module_utils import deployment as store
from ansible_collections.dodas.cluster.plugins.module_utils.images import build, builders, catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman, PodmanError
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import inputs as tosca_inputs
from ansible_collections.dodas.cluster.plugins.module_utils.tosca import template as tosca
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError
from dodas import access, clouds, cluster, deployments, jobs, machine, nodes, show, udocker
from dodas.clouds import cloud_option
from dodas.deployments import ROOT, Deployment
from dodas.doctor import APPS, counted
from dodas.errors import DodasError, InputError
from dodas.options import complete_names, json_option, name_option

DEFAULT_TEMPLATE = ROOT / "templates" / "tier3.yaml"


def _complete_inputs(_context, _parameter, incomplete):
    template = tosca.load(DEFAULT_TEMPLATE)
    known = list(template.inputs)
    if incomplete.startswith(clouds.PREFIX):  # else the many would hide the few
        known += clouds.settings()
    return [f"{name}=" for name in known if name.startswith(incomplete)]


yes_option = click.option("--yes", "-y", is_flag=True, help="Install what is needed without asking.")
verbose_option = click.option("--verbose", "-v", count=True, help="Show what Ansible does; more with -vv.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option("0.1.0", prog_name="dodas")
def main():
    """HTCondor clusters on demand: one YAML file in, a working batch cluster out, and away again without a trace.

    \b
    A first cluster, on this machine:
      ./dodas up                              make it, and prove that it works
      ./dodas submit examples/dimuon --wait   run 18 jobs and fit a Z boson
      ./dodas scale workers=4                 more workers
      ./dodas down                            remove it

    \b
    The same on OpenStack, with an entry of clouds.yaml:
      ./dodas up --cloud NAME --plan          what would be made, how large, at what cost
      ./dodas up --cloud NAME
    """


@main.command()
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[TEMPLATE]")
@click.option("--backend", type=click.Choice(deployments.BACKENDS),
              help="Where hosts come from.  [default: local; openstack with --cloud]")  # fmt: skip
@cloud_option
@click.option("--engine", type=click.Choice(deployments.ENGINES),
              help="What runs the services.  [default: podman; udocker where root is missing]")  # fmt: skip
@click.option("--name", "-n", metavar="NAME", help="Name of the deployment.  [default: that of the template's file]")
@click.option("-p", "--input", "pairs", multiple=True, metavar="NAME=VALUE", shell_complete=_complete_inputs,
              help="An input of the template, or a setting of the cloud (cloud_...); may be repeated.")  # fmt: skip
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path), help="Inputs from a YAML or JSON file.")
@click.option("--vars", "variables", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Ansible variables, such as the secret of a client of your IAM; may be a vault.")  # fmt: skip
@click.option("--plan", is_flag=True, help="Show what would change, and change nothing.")
@yes_option
@json_option
@verbose_option
def up(source, backend, cloud, engine, name, pairs, inputs_file, variables, plan, yes, as_json, verbose):
    """Make a cluster from a template, or finish or change the one that is there.

    TEMPLATE is a TOSCA file (default: templates/tier3.yaml) or, for machines that exist, an Ansible inventory whose
    groups are named after roles (see inventories/existing). Says complete only when every probe holds.

    \b
    On OpenStack, -p also sets what the cloud is to give; docs/openstack.md has all of it:
      -p cloud_image=debian-12 -p cloud_flavor=m1.medium   by name, id or tag; else what fits the template
      -p cloud_network=NAME                                one that is there; else a new one with a router
      -p cloud_floating_ips=none                           reach hosts by their own addresses, or by the first one
      -p cloud_expires=7d                                  noted on all that is made
    """
    start = time.monotonic()
    if cloud:
        backend, pairs = backend or "openstack", (*pairs, f"cloud_name={cloud}")
    deployment = _deployment(source, backend, engine, name, pairs, inputs_file, yes or as_json)
    if deployment.is_plain:
        if not plan:
            _build_images("udocker", progress=None if as_json else _say_built)
    elif deployment.backend != "existing":
        machine.become_root(keep=clouds.file() if deployment.is_remote else None)
        machine.ensure_packages(yes)
        if deployment.is_remote:
            clouds.connect(deployment.settings)  # a login that is refused is not to wait for images
        if not plan:
            names = [app for app in deployment.groups() if app in APPS] if deployment.is_remote else ()
            _build_images("podman", names, progress=None if as_json else _say_built)
    if plan:
        sys.exit(_plan(deployment, variables, verbose, as_json))
    known = deployment.name in deployments.names()
    with deployment.lock():
        deployment.save()
        try:
            report = deployment.play("up", variables, verbose=verbose, quiet=as_json)
        finally:
            if not known and not deployment.hosts and not (deployment.directory / "secrets.json").exists():
                _forget(deployment)
    found = cluster.describe(deployment, report)
    if as_json:
        click.echo(json.dumps({**found, "phases": report["phases"], "seconds": round(time.monotonic() - start, 1)}))
    elif found["complete"]:
        show.status(found)
        show.how_to(found)
        show.phases(report, time.monotonic() - start)
        show.console.print(f"[bold green]complete[/]: {deployment.name}")
    if not found["complete"]:
        _explain(deployment, report, found, shown=not as_json and not verbose)


@main.command()
@name_option
@json_option
def status(name, as_json):
    """Look at a cluster: hosts, services and their health, probes, slots. Exit status 1 if something is wrong."""
    deployment = deployments.only(name)
    found = cluster.look(deployment)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show.status(found)
        show.how_to(found)
    if not found["complete"]:
        for error in found["errors"]:
            click.echo(f"dodas: {error['host']}: {error['reason']}", err=True)
        sys.exit(1)


@main.command()
@name_option
@click.option("--timeout", default=60, show_default=True, help="Seconds until every probe must have held.")
@json_option
def check(name, timeout, as_json):
    """Wait until every probe holds, or name the host, the probe and its last error."""
    deployment = deployments.only(name)
    found = cluster.look(deployment, timeout)
    if as_json:
        click.echo(json.dumps(found))
    if not found["complete"]:
        _explain(deployment, {"errors": found["errors"], "status": 1}, found)
    if not as_json:
        click.echo(f"{deployment.name}: {len(found['probes'])} probes hold")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--wait/--no-wait", help="Watch the queue until all jobs ended, fetch the results, run the last step.")
@click.option("--timeout", default=3600, show_default=True, help="Seconds to wait at most.")
@name_option
@json_option
def submit(folder, wait, timeout, name, as_json):
    """Run a FOLDER of jobs (see examples/README.md). Exit status 1 if a job or the last step fails."""
    deployment = deployments.only(name)
    batch = jobs.Batch(deployment, folder)
    batch.submit()
    result = {"cluster": batch.cluster, "jobs": batch.jobs, "name": batch.name}
    if not as_json:
        click.echo(f"submitted {batch.jobs} jobs as cluster {batch.cluster}")
    if wait:
        batch.wait(timeout, show=not as_json)
        result.update(batch.results())
        result["outputs"] = str(batch.fetch())
        if not as_json:
            workers = ", ".join(f"{host} {number}" for host, number in sorted(result["workers"].items()))
            click.echo(f"{result['done']} of {batch.jobs} done ({workers}); results in {result['outputs']}")
        good = result["failed"] == 0
        if good and batch.finish() != 0:
            raise DodasError(f"the last step failed: {' '.join(batch.file.finish)}")
        if not good:
            raise DodasError(f"{result['failed']} of {batch.jobs} jobs failed: see *.err in {result['outputs']}")
    if as_json:
        click.echo(json.dumps(result))


@main.command()
@name_option
@json_option
def queue(name, as_json):
    """Show the jobs in the queue."""
    found = jobs.queue(deployments.only(name))
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        click.echo(f"{one['id']:>8}  {one['owner']:<10} {one['state']:<12} {one['host']:<16} {one['command']}")
    click.echo(f"{len(found)} jobs")


@main.command()
@click.argument("counts", nargs=-1, required=True, metavar="WORKERS=N...")
@name_option
@json_option
@verbose_option
def scale(counts, name, as_json, verbose):
    """Change how many there are of a kind: `scale workers=4`.

    Touches only hosts that are new or leave; those that leave finish their jobs first. Where Marathon places workers,
    it starts or stops them, and no host is touched.
    """
    start = time.monotonic()
    deployment = deployments.only(name)
    if deployment.backend == "existing":
        raise InputError(
            f"the hosts of {deployment.name} are not ours to make: edit {deployment.source}, then ./dodas up"
        )
    wanted = _pairs(counts)
    template = _load(deployment.source, deployment.inputs)
    placed = set(template.instances.values()) if deployment.engine == "marathon" else set()
    inputs = sorted({one["input"] for one in template.scalable.values() if one.get("input")} | placed)
    for key in wanted:
        if key not in inputs:
            raise InputError(f"{key} sets no number of hosts or apps in {deployment.source}: {', '.join(inputs)} does")
    deployment.inputs = {**deployment.inputs, **_load(deployment.source, {**deployment.inputs, **wanted}).values}
    with deployment.lock():
        deployment.save()
        report = deployment.play(_scaling(deployment, wanted, template), verbose=verbose, quiet=as_json)
    found = cluster.describe(deployment, report)
    if as_json:
        seconds = round(time.monotonic() - start, 1)
        click.echo(json.dumps({**found, "phases": report["phases"], "tasks": report.get("tasks"), "seconds": seconds}))
    if not found["complete"]:
        _explain(deployment, report, found, shown=not as_json and not verbose)
    if not as_json:
        show.status(found)
        show.phases(report, time.monotonic() - start)


@main.command()
@name_option
@click.argument("which", required=False, metavar="[NAME]", shell_complete=complete_names)
@click.option("--backend", type=click.Choice(["openstack"]), help="For a deployment that is not recorded here.")
@cloud_option
@click.option("--deployment", "lost", metavar="UUID|NAME", help="One that is found in the cloud, by what is tagged.")
@json_option
@verbose_option
def down(name, which, backend, cloud, lost, as_json, verbose):
    """Remove a cluster: hosts, networks, volumes, keys and secrets. Images stay, for the next one.

    \b
    When all that this machine knew of it is lost, or it was made from another one:
      ./dodas down --cloud NAME --deployment UUID
    """
    start = time.monotonic()
    if name and which and name != which:
        raise InputError(f"which deployment is it: {name} or {which}?")
    if (backend or cloud) and not lost:
        raise InputError("--backend and --cloud are for what is not recorded here: name it with --deployment")
    if lost and (name or which):
        raise InputError("a deployment that is recorded here needs no --deployment")
    deployment = _lost(lost, cloud) if lost else deployments.only(name or which)
    if deployment.backend == "local" and not deployment.is_plain:
        machine.become_root()
    with deployment.lock(end=True):
        report = deployment.play("down", verbose=verbose, quiet=as_json)
    deployment.hang_up()
    if report["status"] != 0:
        _explain(deployment, report, {"hosts": {}}, "down again finishes it", shown=not as_json and not verbose)
    seconds = round(time.monotonic() - start, 1)
    record = {"name": deployment.name, "seconds": seconds}
    click.echo(json.dumps(record) if as_json else f"{deployment.name} is gone ({seconds} s)")


@main.command("list")
@cloud_option
@json_option
def list_(cloud, as_json):
    """List the deployments: those that are recorded here or, with --cloud, all that are in a cloud."""
    if cloud:
        there = clouds.deployed({"cloud_name": cloud})
        if as_json:
            click.echo(json.dumps(there))
        else:
            show.deployed(there)
        return
    found = [Deployment.load(name) for name in deployments.names()]
    if as_json:
        rows = [
            {
                "name": one.name,
                "backend": one.backend,
                "engine": one.engine,
                "source": str(one.source),
                "hosts": one.hosts,
            }
            for one in found
        ]
        click.echo(json.dumps(rows))
        return
    for one in found:
        click.echo(f"{one.name:<20} {one.backend:<10} {one.engine:<8} {len(one.hosts):>3} hosts  {one.source}")


@main.command()
@click.argument("action", type=click.Choice(["list", "build", "prune"]), default="list")
@click.argument("names", nargs=-1)
@click.option("--engine", type=click.Choice(deployments.ENGINES),
              help="The engine that they are for.  [default: podman; udocker without root]")  # fmt: skip
@nodes.options
@yes_option
@json_option
def images(action, names, engine, disk_format, cloud, upload, yes, as_json):
    """List the container images, build them (all, or those NAMES), or remove those that are out of date.

    With --format, disk images of hosts in a cloud, which have the container images and all packages in them.
    """
    if disk_format:
        if engine:
            raise InputError("a disk image has its own engine: leave out --engine or --format")
        nodes.command(action, names, cloud, upload, yes, as_json)
        return
    if cloud or upload is not None:
        raise InputError("container images are not uploaded: say --format qcow2 for an image of a cloud's hosts")
    engine = engine or ("podman" if os.geteuid() == 0 else "udocker")
    if engine == "podman":
        machine.become_root()
        machine.ensure_packages(yes)
    progress = None if as_json else _say_built
    if action == "build":
        took, there = _build_images(engine, names, progress)
        if not as_json:
            click.echo(f"{took} built, {there} were there")
    try:
        builder, every = _images(engine)
        if action == "prune":
            for reference in build.prune(builder, every.values()):
                click.echo(f"removed {reference}", err=as_json)
        found = build.listing(builder, catalogue.with_parents(every, names or list(every)))
    except (PodmanError, catalogue.ImageError) as exc:
        raise DodasError(str(exc)) from exc
    if as_json:
        click.echo(json.dumps(found))
    else:
        show.images(found)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@name_option
def ssh(host, command, name):
    """Log in to a HOST of the cluster, or run a COMMAND on it."""
    arguments = deployments.only(name).ssh(host, *command)
    os.execvp(arguments[0], arguments)


@main.command()
@click.argument("app")
@click.option("--host", help="On this host.  [default: the first that runs it]")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines come.")
@click.option("--lines", default=50, show_default=True, help="How many lines to begin with.")
@name_option
def logs(app, host, follow, lines, name):
    """Show what an APP logged: identity, credentials, squid, conditions, htcondor or worker."""
    deployment = deployments.only(name)
    if not re.fullmatch(r"[a-z-]+", app):
        raise InputError(f"{app!r} is no app")
    host = host or deployment.host_of(app)
    command = deployment.place(host).logs(app, lines, follow)
    sys.exit(subprocess.run(deployment.ssh_as_root(host, command), check=False).returncode)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell):
    """Print tab completion for a SHELL: eval "$(./dodas completion bash)"."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)(main, {}, "dodas", "_DODAS_COMPLETE").source()
    click.echo(script)


for command in (*access.COMMANDS, *udocker.COMMANDS):
    main.add_command(command)


def _deployment(source, backend, engine, name, pairs, inputs_file, yes):
    """The deployment that `up` is about: the one recorded, with what is given now. Raises InputError."""
    if name and not store.valid_name(name):
        raise InputError(f"deployment name {name!r} must be lower-case letters, digits and dashes, 31 at most")
    if name and source is None and name in deployments.names():
        source = Deployment.load(name).source
    source = (source or DEFAULT_TEMPLATE).resolve()
    name = name or (source.parent.name if source.stem == "hosts" else source.stem)
    if not store.valid_name(name):
        raise InputError(f"{name!r} cannot name a deployment: give it another with --name")
    known = Deployment.load(name) if name in deployments.names() else None
    if known and known.source != source:
        raise InputError(
            f"deployment {name} exists, made from {known.source}: give this one another --name, or ./dodas down {name}"
        )
    backend = backend or (known.backend if known else ("local" if _is_tosca(source) else "existing"))
    if known and backend != known.backend:
        raise InputError(f"deployment {name} exists with backend {known.backend}: ./dodas down {name} first")
    if backend != "existing" and not _is_tosca(source):
        raise InputError(f"{source}: backend {backend} needs a TOSCA template, and this is none")
    given = {}
    if backend != "existing":
        try:
            given = {**(tosca_inputs.read(str(inputs_file)) if inputs_file else {}), **_pairs(pairs)}
        except TemplateError as exc:
            raise InputError(str(exc)) from exc
        template = _load(source, {**(known.inputs if known else {}), **given})
        given = template.values
        if backend == "openstack":
            clouds.check(template.settings)
        elif template.settings:
            raise InputError(f"{', '.join(template.settings)}: for --backend openstack")
    elif pairs or inputs_file:
        raise InputError("an inventory has no inputs: set variables in it")
    if known and engine and engine != known.engine:
        raise InputError(f"deployment {name} exists with engine {known.engine}: ./dodas down {name} first")
    if backend == "openstack" and engine == "udocker":
        raise InputError("engine udocker is for machines where you are not root: servers of a cloud have podman")
    if not engine:
        engine = known.engine if known else _engine(source, given, backend, yes)
    deployment = Deployment(name, source, backend, engine, given)
    groups = deployment.groups()  # refuses what is no inventory
    if backend == "existing" and "marathon" in groups:
        deployment.engine = "marathon"
    return deployment


def _lost(which, cloud):
    """A deployment of the cloud, as it is recorded here or as its tags tell."""
    for name in deployments.names():
        known = Deployment.load(name)
        if known.is_remote and which == known.uuid:
            return known
    given = {"cloud_name": cloud} if cloud else {}
    found = clouds.find(which, given)
    known = Deployment.load(found["name"]) if found["name"] in deployments.names() else None
    if known and known.uuid == found["uuid"]:
        return known
    # Where another one of its name is recorded here, that one's directory is not to go.
    name = found["name"] if not known else f"lost-{found['uuid'][:8]}"
    return Deployment(name, Path("localhost,"), "openstack", inputs=given, uuid=found["uuid"])


def _plan(deployment, variables, verbose, as_json):
    """Show what `up` would change; the exit status. Hosts that are not there yet cannot be looked at."""
    report = deployment.play("provision", variables, verbose=verbose, quiet=not verbose, check=True)
    planned = report.get("planned") or {"plan": {}}
    new = [host for kind in ("create", "replace") for host in planned["plan"].get(kind, ())]
    for error in report["errors"] if not verbose else ():
        click.echo(f"dodas: {error['host']}: {error['task']}: {error['reason']}", err=True)
    if report["status"] == 0 and not new:
        report = deployment.play("up", variables, verbose=verbose, quiet=as_json, check=True)
    if as_json:
        click.echo(json.dumps({"name": deployment.name, **planned, "errors": report["errors"]}))
    elif report["status"] == 0:
        if new:
            click.echo(planned.get("summary") or f"make {', '.join(new)}")
        hosts = f"{counted(len(new), 'host')} would be made" if new else "all hosts are there"
        click.echo(f"{deployment.name}: {hosts}; nothing was changed")
    return report["status"]


def _scaling(deployment, wanted, template):
    """The playbook that changes these numbers."""
    if deployment.engine != "marathon":
        return "scale"
    # Hosts of a Mesos cluster know each other, and so do squids: more of them are for `up`.
    return "scale_apps" if set(wanted) <= {template.instances.get("worker")} else "up"


def _is_tosca(path):
    try:
        return "tosca_definitions_version" in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; templates/ has some to start from") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: {exc}") from exc


def _load(path, inputs):
    try:
        return tosca.load(str(path), inputs)
    except TemplateError as exc:
        raise InputError(str(exc)) from exc


def _pairs(pairs):
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"{pair!r} is not of the form NAME=VALUE")
        found[key] = value
    return found


def _engine(source, given, backend, yes):
    """The engine for a new deployment, where nobody said which."""
    if backend == "existing":
        return "podman"
    if "marathon" in _load(source, given).groups:
        return "marathon"
    return machine.choose_engine(yes) if backend == "local" else "podman"


def _forget(deployment):
    """Leave nothing of a deployment of which nothing was made."""
    for path in sorted(deployment.directory.glob("*")):
        path.unlink()
    deployment.directory.rmdir()


def _explain(deployment, report, found, advice=None, shown=False):
    """Say what is wrong, host by host, unless it was `shown` while it happened, and end with exit status 1."""
    for error in [] if shown else report["errors"]:
        click.echo(f"dodas: {error['host']}: {error['task']}: {error['reason']}", err=True)
    for host, one in found["hosts"].items() if not report["errors"] else ():
        for app, state in one["apps"].items():
            if state["state"] != "passing":
                click.echo(f"dodas: {host}: {app}: {state['output']}", err=True)
    if not advice and deployment.name not in deployments.names():
        raise DodasError(f"{deployment.name}: nothing was made")
    command = deployment.command
    advice = advice or f"{command('up')} goes on from here, {command('down')} removes it"
    raise DodasError(f"{deployment.name} is not complete: {advice}")


def _images(engine):
    """Who builds images for an engine, and all images by name."""
    every = catalogue.catalogue(ROOT / "containers", ROOT)
    if engine == "udocker":
        # Hosts are folders, and have no image: neither Debian as a whole machine nor what is built on it.
        lines = {name: {one.name for one in catalogue.with_parents(every, [name])} for name in every}
        return builders.Udocker(), {name: image for name, image in every.items() if "bookworm" not in lines[name]}
    podman = Podman(store.home())
    podman.configure()
    return podman, every


def _build_images(engine, names=(), progress=None):
    """Build the images that are missing; returns how many were built and how many were there. Raises DodasError."""
    try:
        builder, every = _images(engine)
        wanted = catalogue.with_parents(every, names or list(every))
        missing = build.missing(builder, wanted)
        if missing and progress:
            click.echo(f"building {len(missing)} of {len(wanted)} images; they are kept for later clusters")
        took = build.build(builder, wanted, ROOT, progress=progress)
    except (PodmanError, catalogue.ImageError) as exc:
        raise DodasError(str(exc)) from exc
    return len(took), len(wanted) - len(took)


def _say_built(name, seconds):
    click.echo(f"  {name}: building" if seconds is None else f"  {name}: {seconds} s")

# SPDX-License-Identifier: Apache-2.0
"""Clouds as the command line sees them: names in clouds.yaml, what is deployed there, whether they can be used.

The library for it is imported where it is needed: most commands have nothing to do with a cloud.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import click
import yaml

from dodas.errors import DodasError, InputError

FILE = "OS_CLIENT_CONFIG_FILE"
PREFIX = "cloud_"


def _complete_clouds(_context, _parameter, incomplete):
    return [name for name in names() if name.startswith(incomplete)]


cloud_option = click.option("--cloud", metavar="NAME", shell_complete=_complete_clouds,
                            help="An entry of clouds.yaml.  [default: what OS_* variables name]")  # fmt: skip


def files():
    """Where clouds.yaml may be, as all clients of OpenStack look for it; the first that is there counts."""
    if os.environ.get(FILE):
        return [Path(os.environ[FILE])]
    folders = Path.cwd(), Path.home() / ".config/openstack", Path("/etc/openstack")
    return [folder / f"clouds.{end}" for folder in folders for end in ("yaml", "yml", "json")]


def file():
    """The clouds.yaml in use, or None."""
    return next((path for path in files() if path.is_file()), None)


def names():
    """Names of the clouds; empty where there is no file that can be read."""
    try:
        return sorted(yaml.safe_load(file().read_text(encoding="utf-8"))["clouds"].keys())
    except (OSError, yaml.YAMLError, AttributeError, TypeError, LookupError):
        return []


def settings():
    """{setting: what it is for}, as inputs are named: cloud_image."""
    from ansible_collections.dodas.cluster.plugins.module_utils.openstack import spec

    return {f"{PREFIX}{name}": text for name, text in spec.SETTINGS.items()}


def check(given):
    """Refuse settings that there are not. Raises InputError with the nearest name."""
    from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import suggest

    for name in given:
        if name not in settings():
            raise InputError(f'unknown setting "{name}"{suggest(name, settings())}')


def explained(function):
    """A function whose errors of the cloud are those of the command line."""

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
        except ImportError as error:
            raise DodasError(f"clouds need the library openstacksdk: {error}") from error
        try:
            return function(*arguments, **options)
        except OpenStackError as error:
            raise DodasError(str(error)) from error

    return call


@explained
def connect(given=None):
    """A login to the cloud that settings (cloud_name, cloud_region, ...) name. Raises DodasError."""
    from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cloud

    given = given or {}
    return cloud.connect(name=given.get(f"{PREFIX}name"), region=given.get(f"{PREFIX}region"))


@explained
def deployed(given=None):
    """What is deployed in the cloud: [{"uuid", "name", "hosts", ...}]."""
    from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cluster

    return cluster.deployments(connect(given))


def find(which, given=None):
    """The one deployment in the cloud with this UUID or name. Raises InputError, naming those that there are."""
    found = deployed(given)
    fits = [one for one in found if which in (one["uuid"], one["name"])]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{one['name']} ({one['uuid']})" for one in fits or found) or "none"
    if fits:
        raise InputError(f"the cloud has several deployments {which!r}, say which by its UUID: {there}")
    raise InputError(f"the cloud has no deployment {which!r} (it has: {there})")


@explained
def servers(deployment):
    """The servers of a deployment by host: addresses, id and status, as the cloud says now."""
    from ansible_collections.dodas.cluster.plugins.module_utils.openstack import cluster

    return cluster.OpenStackCluster(connect(deployment.settings), deployment.name, deployment.uuid).found()


@explained
def quotas(cloud):
    """{thing: (in use, limit)} of the project; a limit below 0 is none."""
    limits = cloud.get("compute", "/limits")["limits"]["absolute"]
    found = {thing: (limits[f"total{used}Used"], limits[f"maxTotal{limit}"]) for thing, used, limit in (
        ("servers", "Instances", "Instances"), ("CPUs", "Cores", "Cores"), ("memory (MB)", "RAM", "RAMSize"),
    )}  # fmt: skip
    details = cloud.get("network", f"/quotas/{cloud.project_id}/details")["quota"]
    for thing, key in (("floating IPs", "floatingip"), ("networks", "network"), ("ports", "port")):
        found[thing] = (details[key]["used"], details[key]["limit"])
    return found

# SPDX-License-Identifier: Apache-2.0
"""Disk images of hosts in a cloud: `./dodas images ... --format qcow2`."""

from __future__ import annotations

import json

import click

from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import PodmanError
from dodas import clouds, machine, show
from dodas.deployments import ROOT
from dodas.errors import DodasError, InputError

FOLDER = ROOT / "nodes"


def options(command):
    """The options of `./dodas images` that are about disk images."""
    for option in (
        click.option("--upload/--no-upload", default=None,
                     help="Whether a disk image that was built goes to the cloud.  [default: with --cloud]"),
        click.option("--cloud", metavar="NAME", help="The cloud that it is for, an entry of clouds.yaml."),
        click.option("--format", "disk_format", type=click.Choice(["qcow2"]),
                     help="The disk image of a host in a cloud, with packages and container images in it."),
    ):  # fmt: skip
        command = option(command)
    return command


def command(action, names, cloud, upload, yes, as_json):
    """List the disk images or build them; with `cloud` those that it has, or that they are uploaded there."""
    # openstacksdk takes half a second, which other commands need not wait for
    from ansible_collections.dodas.cluster.plugins.module_utils.images import node, node_build, node_upload

    if upload and not cloud:
        raise InputError("--upload needs --cloud NAME, an entry of clouds.yaml")
    if action == "prune":
        raise InputError("disk images that nobody asked for in a week go when another is built: nothing to prune")
    if action == "build":
        machine.become_root(keep=clouds.file() if cloud else None)
        machine.ensure_packages(yes, (*machine.PACKAGES, *node_build.PACKAGES), "building disk images")
    progress = None if as_json else _say
    try:
        known = node.catalogue(FOLDER, ROOT)
        glance = node_upload.connect(cloud) if cloud else None  # before the long work: a login may be refused
        found = []
        for one in node.named(known, names):
            image = glance.present(one) if glance else None
            if action == "build" and (not image or upload is False):
                built = node_build.build(one, ROOT, progress=progress)
                if glance and upload is not False:
                    image = glance.upload(one, built, progress)
            found.append(node_upload.described(one, node_build.present(one), image))
    except (ImageError, PodmanError) as exc:
        raise DodasError(str(exc)) from exc
    if as_json:
        click.echo(json.dumps(found))
    else:
        show.node_images(found)
        for one in found:
            if one["path"]:
                click.echo(one["path"])


def _say(step, seconds):
    click.echo(f"  {step}" if seconds is None else f"  {step}: {seconds} s")

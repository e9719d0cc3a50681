# SPDX-License-Identifier: Apache-2.0
"""The command that writes the container runtime as one file, to be copied to other machines."""

from __future__ import annotations

from pathlib import Path

import click

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import bundle
from dodas.errors import DodasError


@click.command("udocker")
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path("udocker"), show_default=True,
              metavar="FILE", help="Where to write it.")  # fmt: skip
def write(output):
    """Write the container runtime, which needs no root, as one file.

    It runs wherever there is a Python from 3.8 on: copy it to a folder of PATH, and see `udocker --help`.
    """
    if output.is_dir():
        output = output / "udocker"
    try:
        bundle.write(str(output))
    except OSError as error:
        raise DodasError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(output)


COMMANDS = (write,)

# SPDX-License-Identifier: Apache-2.0
"""Options that many commands share."""

import click

from dodas import deployments


def complete_names(_context, _parameter, incomplete):
    """Names of deployments, for tab completion."""
    return [name for name in deployments.names() if name.startswith(incomplete)]


name_option = click.option("--name", "-n", metavar="NAME", shell_complete=complete_names,
                           help="The deployment; not needed when there is only one.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

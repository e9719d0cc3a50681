# SPDX-License-Identifier: Apache-2.0
"""Errors that the command line shows in a line or two; everything else is a defect and shows a traceback."""

import click


class DodasError(click.ClickException):
    """Something went wrong that the user can mend; the message says what and how. Exit status 1."""

    def show(self, file=None):
        click.echo(f"dodas: {self.format_message()}", err=True, file=file)


class InputError(DodasError):
    """What the user gave is wrong; nothing was changed. Exit status 2."""

    exit_code = 2

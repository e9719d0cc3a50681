# SPDX-License-Identifier: Apache-2.0
"""The one error that the runtime raises for what a user can mend."""


class Error(Exception):
    """What went wrong, to what, and what to do; `status` is what a command line exits with."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


class NotFound(Error):
    """No image, container or file of that name."""

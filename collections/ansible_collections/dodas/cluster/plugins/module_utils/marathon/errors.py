# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with Marathon. No message holds a password or a value of an environment."""

from __future__ import annotations

import re


class MarathonError(Exception):
    """Marathon could not be made to do it; the message names the app or the endpoint, and the reason."""


class DefinitionError(MarathonError):
    """A definition is wrong; the message starts with the path of the field, or names the app."""


class Unreachable(MarathonError):
    """No endpoint answered before the deadline; the message names each with its last problem."""


class Unclear(MarathonError):
    """The answer to a request that must not be repeated was lost: it may have been done or not."""


class Denied(MarathonError):
    """The endpoint is not trusted, or does not let this user in."""


class NotFound(MarathonError):
    """There is no such app, group or deployment."""


class Invalid(MarathonError):
    """Marathon refused a definition (400 or 422); the message has the path of each field."""


class Locked(MarathonError):
    """Running deployments lock the app. deployments: their ids."""

    def __init__(self, message, deployments):
        super().__init__(message)
        self.deployments = deployments


class NotDeployed(MarathonError):
    """Apps were not as they shall be before the deadline. deployments: ids of those that go on."""

    def __init__(self, message, deployments=()):
        super().__init__(message)
        self.deployments = list(deployments)


def refused(method, url, status, answer, sent=None):
    """The error for an answer of status 4xx or 5xx. answer: its JSON or None; sent: the body of the request."""
    answer = answer if isinstance(answer, dict) else {}
    said = str(answer.get("message") or answer.get("errors") or "no reason is given")
    what = f"{method} {url}"
    if status == 401:
        return Denied(f"{what}: Marathon wants a user name and a password, or these are wrong")
    if status == 403:
        return Denied(f"{what}: this user may not do that: {said}")
    if status == 404:
        return NotFound(f"{what}: {said}")
    if status == 409 and answer.get("deployments"):
        return Locked(f"{what}: {said}", [str(one.get("id")) for one in answer["deployments"]])
    if status in (400, 422):
        return Invalid(f"{what}: {said}{_details(answer.get('details'), sent)}")
    return MarathonError(f"{what}: HTTP status {status}: {said}")


def _details(details, sent):
    """The fields that Marathon names, each with what it finds wrong."""
    lines = []
    for one in details if isinstance(details, list) else []:
        path = _named(str(one.get("path") or "/"), sent)
        lines += [f"{path}: {error}" for error in one.get("errors") or ["is wrong"]]
    return ": " + "; ".join(lines) if lines else ""


def _named(path, sent):
    """The path with the app's id where it begins with its number in the list that was sent."""
    found = re.match(r"/?(?:value|obj)?[(\[](\d+)[)\]]", path)
    if not found or not isinstance(sent, list) or int(found.group(1)) >= len(sent):
        return path
    return f"app {sent[int(found.group(1))].get('id')} {path[found.end():] or '/'}"

# SPDX-License-Identifier: Apache-2.0
"""What the API answers when it refuses a request."""

from __future__ import annotations


class ApiError(Exception):
    """A refusal: HTTP `status` and the JSON `body` that goes with it."""

    def __init__(self, status, message, **more):
        super().__init__(message)
        self.status = status
        self.body = {"message": message, **more}


def unknown_app(app_id, version=None):
    """404 for an app, or for a version of it."""
    which = f" in version {version}" if version else ""
    return ApiError(404, f"App '{app_id}' does not exist{which}")


def locked(ids):
    """409 while the deployments `ids` change what the request would change."""
    return ApiError(
        409,
        "App is locked by one or more deployments. Override with the option '?force=true'. "
        "View details at '/v2/deployments/<DEPLOYMENT_ID>'.",
        deployments=[{"id": one} for one in ids],
    )


def invalid_json(problems):
    """400 for [(path, text)]: JSON of another shape than the API's."""
    return ApiError(400, "Invalid JSON", details=details(problems))


def invalid_object(problems):
    """422 for [(path, text)]: values that the API does not take."""
    return ApiError(422, "Object is not valid", details=details(problems))


def details(problems):
    """The problems by their path, as the API lists them."""
    by_path = {}
    for path, text in problems:
        by_path.setdefault(path, []).append(text)
    return [{"path": path, "errors": texts} for path, texts in by_path.items()]
